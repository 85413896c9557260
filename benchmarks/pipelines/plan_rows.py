"""Rows of `bench_pipelines.py` for ladders, and for what others make of the same networks.

- default, calibrated, ladder fitted: the ladder on 28 calls (SDE: 50), calibrated on 4 samples, fitted on 16; budgets
  count FLOPs, those of "calibrated, seconds" the measured seconds of a call of each level;
- T-Stitch (small first), SRDiffusion (large first), FlowBlending (large at both ends): one size a step, under UniPC
  (flow: under UniPC for flow; SDE: DDPM), at the best boundary that the budget allows;
- FirstBlockCache, TaylorSeer: diffusers' caches in the largest transformer, under the same scheduler, at the best of
  some settings that the budget allows; their cost is that of the FLOPs that a run made.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers.hooks.first_block_cache import FirstBlockCacheConfig, apply_first_block_cache
from diffusers.hooks.hooks import HookRegistry
from diffusers.hooks.taylorseer_cache import TaylorSeerCacheConfig, apply_taylorseer_cache
from diffusers.models.cache_utils import CacheMixin
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import multilevel_sde as mls
from benchmarks.pipelines.models import StatePipeline
from benchmarks.pipelines.one_table import BUDGETS, SEED, TRAILING, Bench, Row
from multilevel_diffusion.diffusers import MultilevelUNet

__all__ = ["parts"]

Rows = Iterator[tuple[str, Callable[[], Row]]]
THRESHOLDS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8)
INTERVALS, ORDERS = (2, 3, 4, 6, 9), (1, 2)


def parts(bench: Bench) -> list[Rows]:
    """All rows of ladders and choices, in this order."""
    caches = [cached(bench)] if bench.name.startswith("dit_") and not bench.noisy and not bench.quick else []
    return [plans(bench), choices(bench), *caches]


def plans(bench: Bench) -> Rows:
    """Plans of the ladder in the stock loop: without a measurement, calibrated, fitted."""
    calls = bench.stock()[1]
    budgets = [b for b in BUDGETS if b < calls and (not bench.quick or b < 8)]
    ladders = {price: _Calibrated(bench, price) for price in ("given", "seconds")}
    for budget in budgets:
        yield f"default @ {budget}", lambda budget=budget: _row(bench, *_ladder(bench, budget / calls), budget)
    for (price, ladder), budget in itertools.product(ladders.items(), budgets):
        name = "calibrated" if price == "given" else "calibrated, seconds"
        yield f"{name} @ {budget}", lambda ladder=ladder, budget=budget: ladder.row(budget)
    for budget in filter(bench.fits, budgets):
        yield f"ladder fitted @ {budget}", lambda budget=budget: ladders["given"].row(budget, fit=True)


def _ladder(bench: Bench, fraction: float) -> tuple[StatePipeline, MultilevelUNet]:
    pipe, _ = bench.stock()
    return pipe, MultilevelUNet(bench.networks.models, budget_fraction=fraction, costs=bench.networks.costs).install(
        pipe
    )


def _row(bench: Bench, pipe: StatePipeline, ladder: MultilevelUNet, budget: float, **notes: Any) -> Row:
    calls, relative = bench.stock()[1], bench.networks.relative

    def cost() -> float:
        evaluations = ladder.stats.trajectory.evaluations
        return sum(n * one for n, one in zip(evaluations, relative, strict=True))

    def all_notes() -> dict[str, Any]:
        return {"evaluations": list(ladder.stats.trajectory.evaluations), "budget": budget, **notes}

    return Row(
        lambda count: bench.run(pipe, calls, count), cost, bench.networks.models, notes=all_notes
    )  # fmt: skip


class _Calibrated:
    """A ladder that is calibrated when its first row is made."""

    def __init__(self, bench: Bench, price: str):
        self.bench, self.price, self.calls = bench, price, bench.stock()[1]
        self.made: tuple[StatePipeline, MultilevelUNet, mls.Pilot] | None = None

    def row(self, budget: float, *, fit: bool = False) -> Row:
        """The row of a budget.

        Raises:
            ValueError: Levels take too nearly equal seconds for a budget in seconds.
        """
        bench = self.bench
        if self.made is None:
            pipe, ladder = _ladder(bench, 0.5)
            pilot = ladder.calibrate(pipe, num_inference_steps=self.calls, price=self.price, progress=False)
            self.made = pipe, ladder, pilot
        pipe, ladder, pilot = self.made
        ladder.allocate(budget_fraction=budget / self.calls)
        notes: dict[str, Any] = {"calibration in plain images": pilot.cost / pilot.costs[-1] / self.calls}
        if fit:
            ladder.calibrate(
                pipe, num_inference_steps=self.calls, samples=16, fit=True, price=self.price, progress=False
            )
        else:
            notes["predicted"] = ladder.advise().best.predicted.mse
        return _row(bench, pipe, ladder, budget, **notes)


def _fast(bench: Bench) -> StatePipeline:
    """The largest network under the scheduler that choices and caches run in."""
    return bench.stock()[0] if bench.noisy else bench.networks.pipe("UniPCMultistepScheduler", **TRAILING)


def choices(bench: Bench) -> Rows:
    """One size a step: the smallest and the largest network, at the best boundary."""
    calls, small, models = bench.stock()[1], bench.networks.relative[0], bench.networks.models
    for name, budget in itertools.product(("T-Stitch", "SRDiffusion", "FlowBlending"), BUDGETS):
        count = min(calls, int((budget - calls * small) / (1 - small)))
        ends = {"T-Stitch": [0], "SRDiffusion": [count], "FlowBlending": range(1, count, 1 + count // 8)}[name]
        if count < 1 or not len(ends) or count == calls or (bench.quick and budget > 5):
            continue

        def make(ends: Any = ends, count: int = count) -> Row:
            pipe = _fast(bench)

            def run(first: int, images: int) -> Tensor:
                weights = torch.ones(calls, len(models), dtype=torch.float64)
                weights[first : calls - (count - first), 1:] = 0.0
                MultilevelUNet(models, plan=mls.Plan(weights > 0, weights), costs=bench.networks.costs).install(pipe)
                return bench.run(pipe, calls, images)

            best = min(ends, key=lambda first: bench.error(run(first, bench.paired)))
            cost = count + (calls - count) * small
            notes = {"large first": best, "large last": count - best}
            return Row(lambda images: run(best, images), lambda: cost, [models[0], models[-1]], notes=lambda: notes)

        yield f"{name} @ {budget}", make


def cached(bench: Bench) -> Rows:
    """The largest transformer with a cache of diffusers, at the best setting."""
    steps = bench.stock()[1]
    settings: dict[str, list[Any]] = {
        "FirstBlockCache": [FirstBlockCacheConfig(threshold) for threshold in THRESHOLDS],
        "TaylorSeer": [
            TaylorSeerCacheConfig(
                interval, 2, None, order, torch.float32, cache_identifiers=[r"transformer_blocks\.\d+\.(attn1|ff)"]
            )
            for interval, order in itertools.product(INTERVALS, ORDERS)
        ],
    }
    tried: dict[str, list[tuple[float, float, Any]]] = {}
    for name, budget in itertools.product(settings, BUDGETS):

        def make(name: str = name, budget: float = budget) -> Row:
            if name not in tried:
                tried[name] = [_tried(bench, steps, one) for one in settings[name]]
            allowed = [one for one in tried[name] if one[0] <= budget]
            if not allowed:
                raise ValueError(f"no setting costs {budget} evaluations or fewer")
            cost, _, config = min(allowed, key=lambda one: one[1])
            run = lambda count: _with_cache(bench, steps, config, count)  # noqa: E731
            notes = lambda: {"setting": str(config)}  # noqa: E731
            return Row(run, lambda: cost, bench.networks.models[-1:], notes=notes)

        yield f"{name} @ {budget}", make


def _tried(bench: Bench, steps: int, config: Any) -> tuple[float, float, Any]:
    """What a setting costs in evaluations, by the FLOPs of a run, and what it errs."""
    plain = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), plain:
        _with_cache(bench, steps, None, bench.paired)
    kept = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), kept:
        images = _with_cache(bench, steps, config, bench.paired)
    return steps * kept.get_total_flops() / plain.get_total_flops(), bench.error(images), config


def _with_cache(bench: Bench, steps: int, config: Any, count: int) -> Tensor:
    """Images of the largest network with a cache, which is taken off again."""
    pipe, parts = _fast(bench), []
    model = pipe.unet
    registry = HookRegistry.check_if_exists_or_initialize(model)
    if isinstance(config, FirstBlockCacheConfig):
        apply_first_block_cache(model, config)
    elif config is not None:
        apply_taylorseer_cache(model, config)
    registry.invalidate_child_registries_cache()
    try:
        for start in range(0, count, bench.paired):
            registry.reset_stateful_hooks(recurse=True)
            with CacheMixin.cache_context(model, "run"):
                parts.append(bench.run(pipe, steps, min(bench.paired, count - start), SEED + start))
        return torch.cat(parts)
    finally:
        for module in model.modules():
            hooks = getattr(module, "_diffusers_hook", None)
            if isinstance(hooks, HookRegistry):
                for name in list(hooks.hooks):
                    hooks.remove_hook(name, recurse=False)
