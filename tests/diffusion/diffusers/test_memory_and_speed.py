"""What users switch on to save time or memory: caches, compiled blocks, casting by layers, offloading by groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from families import FAMILIES, Family  # noqa: E402

from multilevel_diffusion.diffusers import attach, multilevel  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:levels . and . differ"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def counted(block: torch.nn.Module) -> list[int]:
    """How often a block does something: a cache is inside its call."""
    calls: list[int] = []
    next(block.children()).register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("way", [attach, multilevel])
@pytest.mark.parametrize("name", ["flux", "wan 2.1"])
def test_the_base_level_may_cache_and_others_may_not(name: str, way: Any):
    """A cache that always hits: of the base level's blocks the first runs at every call, the others once a context."""
    family = FAMILIES[name]()
    low = FAMILIES[name]().pipe.transformer  # with more than one block
    family.lower = [low]
    blocks = low.transformer_blocks if name == "flux" else low.blocks
    ladder = way(family.pipe, family.lower, budget_fraction=0.5, costs=[1.0, 10.0])
    config = diffusers.FirstBlockCacheConfig(threshold=1e9)
    ladder.levels[0].enable_cache(config)
    first, last = counted(blocks[0]), counted(blocks[-1])
    for run in (1, 2):
        family.run()
        used = ladder.stats.total.evaluations[0]
        contexts = 2 if family.calls > family.steps else 1
        assert (len(first), len(last)) == (used, run * contexts)
    low.disable_cache()
    ladder.levels[-1].enable_cache(config)
    with pytest.raises(ValueError, match=r'"levels\[1\]" has a cache but is called at few steps'):
        family.run()
    ladder.allocate(budget_fraction=1.0)
    family.run()


def test_repeated_blocks_of_every_level_are_compiled():
    family = FAMILIES["flux"]()
    with attach(family.pipe, family.lower, budget_fraction=0.7) as ladder:
        ladder.compile_repeated_blocks(fullgraph=True, backend="eager")
        for level in ladder.levels:
            assert all(block._compiled_call_impl is not None for block in level.transformer_blocks)
        family.run()
    wrapper = multilevel(family.pipe, family.lower, budget_fraction=0.7)
    for level in wrapper.levels:
        level.transformer_blocks[0]._compiled_call_impl = None
    wrapper.compile_repeated_blocks(fullgraph=True, backend="eager")
    assert all(level.transformer_blocks[0]._compiled_call_impl is not None for level in wrapper.levels)


@pytest.mark.parametrize("way", [attach, multilevel])
def test_the_step_that_a_pipeline_announces_is_the_position(way: Any):
    """The scheduler is never stepped, and the second run begins at its step 0."""
    family = FAMILIES["flux"]()
    given: list[dict[str, Any]] = []
    family.pipe.transformer.register_forward_pre_hook(lambda _, args, call: given.append(call), with_kwargs=True)
    family.run(num_inference_steps=1)
    ladder = way(family.pipe, family.lower, budget_fraction=0.7)
    family.pipe.scheduler.set_timesteps(10, mu=1.0)
    for run in (1, 2):
        for step, time in enumerate(family.pipe.scheduler.timesteps):
            for name in ("cond", "uncond"):
                with family.pipe.transformer.cache_context(name, step_index=step):
                    family.pipe.transformer(**given[0] | {"timestep": time[None] / 1000})
        assert (ladder.stats.trajectory.calls, ladder.stats.trajectories) == (20, run)


def half(family: Family) -> None:
    for level in (*family.lower, family.pipe.transformer):
        level.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def offload(family: Family) -> None:
    for level in (*family.lower, family.pipe.transformer):
        level.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")


@pytest.mark.parametrize("change", [half, offload])
@pytest.mark.parametrize("way", [attach, multilevel])
@pytest.mark.parametrize("before", [True, False])
def test_levels_may_be_cast_and_offloaded(way: Any, change: Any, before: bool):
    """Each by itself; what a level computes in is what counts."""
    family = FAMILIES["flux"]()
    if before:
        change(family)
    ladder = way(family.pipe, family.lower, budget_fraction=0.7)
    if not before:
        change(family) if way is attach else [change(Family(Parts(level), [], {})) for level in ladder.levels]
    assert family.run().isfinite().all()
    assert ladder.costs.unit == "FLOPs"
    assert ladder.stats.trajectory.calls == 10
    assert all(level.dtype == torch.float32 for level in ladder.levels)


class Parts:
    def __init__(self, transformer: Any):
        self.transformer = transformer
