"""What newcomers get wrong at attach, calibrate and advise: each works, or is one sentence that says what to do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from multilevel_diffusion.diffusers import attach, multilevel  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:levels . and . differ"),
    pytest.mark.filterwarnings("ignore:the ladder has not been measured"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

COSTS = (1.0, 8.0)
FEW = {"num_inference_steps": 8, "samples": 2, "candidates": 2, "progress": False}


def images(pipe: Any, steps: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.as_tensor(pipe(generator=generator, num_inference_steps=steps, output_type="np").images)


@pytest.fixture
def made(unet, ddim) -> Callable[..., tuple[Any, Any]]:
    """A pipeline of a UNet, with a smaller one attached."""

    def build(**options: Any) -> tuple[Any, Any]:
        pipe = ddim(unet(8), timestep_spacing="trailing")
        return pipe, attach(pipe, [unet(4)], costs=COSTS, **{"budget_fraction": 0.4, **options})

    return build


def test_one_smaller_model_needs_no_list(unet, ddim, tmp_path):
    """Neither does its folder."""
    unet(4).save_pretrained(tmp_path)
    pipe = ddim(unet(8))
    expected = None
    for lower in ([unet(4)], unet(4), tmp_path, str(tmp_path)):
        with attach(pipe, lower, budget_fraction=0.4, costs=COSTS) as ladder:
            found = images(pipe)
            assert len(ladder.levels) == 2
        expected = found if expected is None else expected
        torch.testing.assert_close(found, expected)
    assert len(multilevel(pipe, unet(4), budget_fraction=0.4, costs=COSTS).levels) == 2


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"budget": 0.3}, TypeError, '"budget" is no option of a ladder, expected some of budget_fraction'),
        ({"budget_fraction": "0.3"}, TypeError, '"budget_fraction" must be a number, got str'),
        ({"budget_fraction": 0.0}, ValueError, r'"budget_fraction" must be in \(0, 1\]'),
        ({"budget_fraction": float("nan")}, ValueError, r'"budget_fraction" must be in \(0, 1\]'),
        ({"budget_fraction": 0.01}, ValueError, '"budget_fraction" must be at least 0.125'),
    ],
)
def test_options(made, options: dict[str, Any], error: type[Exception], said: str):
    with pytest.raises(error, match=said):
        made(**options)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"num_inference_steps": 0}, ValueError, '"num_inference_steps" must be at least 1, got 0'),
        ({"num_inference_steps": 8.0}, TypeError, '"num_inference_steps" must be an integer, got float'),
        ({"num_inference_steps": 4}, ValueError, "makes 4 calls, a pilot needs at least 8"),
        ({"samples": 0}, ValueError, '"samples" must be at least 1, got 0'),
        ({"samples": 1}, ValueError, r"returned 1 samples, a pilot needs at least 2"),
        ({"samples": 2, "fit": True}, ValueError, '"samples" is 2, expected at least 8'),
        ({"candidates": 1}, ValueError, '"candidates" must be at least 2'),
        ({"batch_size": 4}, ValueError, '"batch_size" is set by the pilot'),
    ],
)
def test_arguments_of_calibrate(made, arguments: dict[str, Any], error: type[Exception], said: str):
    """And the ladder is as before."""
    pipe, ladder = made()
    before = images(pipe)
    with pytest.raises(error, match=said):
        ladder.calibrate(pipe, **{**FEW, **arguments})
    assert torch.equal(images(pipe), before)


@pytest.mark.parametrize("steps", [1, 2])
def test_one_or_two_steps(made, steps: int):
    """Before a calibration the budget, which does not pay one large call, is that of a draw's mean; then the most."""
    pipe, ladder = made()
    images(pipe, steps)
    assert ladder.stats.trajectory.calls == steps
    ladder.calibrate(pipe, **FEW)
    images(pipe, steps)
    assert (ladder.stats.trajectory.calls, ladder.stats.trajectory.fraction <= 0.4) == (steps, True)


def test_a_pipeline_whose_model_was_replaced(made, unet):
    """Its own run needs no ladder; a calibration says that the ladder is not in it."""
    pipe, ladder = made()
    pipe.unet = unet(8)
    images(pipe)
    assert ladder.stats.trajectory.calls == 0
    for other in (pipe, diffusers.DDIMPipeline(unet(8), pipe.scheduler)):
        with pytest.raises(ValueError, match='"pipe" is not the pipeline that the ladder is in'):
            ladder.calibrate(other, **FEW)
    ladder.detach()
    with pytest.raises(ValueError, match='"pipe" is not the pipeline that the ladder is in'):
        ladder.calibrate(pipe, **FEW)


def test_budgets_of_advise(made):
    """Below the cheapest plan it is refused in the caller's words, above one it is answered."""
    pipe, ladder = made()
    with pytest.raises(ValueError, match="measured nothing yet; call"):
        ladder.advise()
    ladder.calibrate(pipe, **FEW)
    with pytest.raises(ValueError, match=r'"budget_fraction" is 0.001 of 8 calls, but "budget" must be at least 1 ev'):
        ladder.advise(0.001)
    with pytest.raises(TypeError, match='"budget_fraction" must be a number, got str'):
        ladder.advise("0.3")
    assert ladder.advise(3.0).text


def test_an_interrupted_calibration_changes_nothing(made):
    pipe, ladder = made()
    before, step, made_steps = images(pipe), pipe.scheduler.step, []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        made_steps.append(1)
        if len(made_steps) == 14:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    pipe.scheduler.step = interrupted
    with pytest.raises(KeyboardInterrupt):
        ladder.calibrate(pipe, **FEW)
    pipe.scheduler.step = step
    assert torch.equal(images(pipe), before)
    with pytest.raises(ValueError, match="measured nothing yet"):
        ladder.advise()


def test_what_is_no_model_is_named(made):
    pipe, ladder = made()
    ladder.detach()
    for lower, told in ((None, "NoneType; for one model alone leave it out"), ([3], "int; for one model alone")):
        with pytest.raises(TypeError, match=rf'"levels\[0\]" must be a model of diffusers, .* got {told}'):
            attach(pipe, lower)
    with pytest.raises(TypeError, match=rf"got {type(pipe).__name__}; give its model, .unet"):
        attach(pipe, pipe)


def test_copies_with_a_ladder_are_refused_and_without_one_work(made):
    pipe, ladder = made()
    for part in (pipe, pipe.unet):
        with pytest.raises(TypeError, match="detach the ladder first"):
            copy.deepcopy(part)
    with pytest.raises(ValueError, match="has a ladder attached already"):
        attach(pipe, ladder.levels[0])
    ladder.detach()
    ladder.detach()
    assert torch.equal(images(copy.deepcopy(pipe)), images(pipe))


def test_another_scheduler_after_the_calibration(made):
    """Another multistep one, and one that clips, which is refused when it runs."""
    pipe, ladder = made()
    ladder.calibrate(pipe, **FEW)
    pipe.scheduler.register_to_config(clip_sample=True)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match="clip_sample=True, which turns the spread"):
        images(pipe)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, clip_sample=False)
    images(pipe)
    assert ladder.stats.trajectory.calls == 8


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "PNDMScheduler"])
def test_another_pipeline_with_the_same_model(conditional, stable_diffusion, guided, name: str):
    """One with a scheduler of its own is refused, before and after a run of the ladder's; with the same it is not."""
    unet, kind = conditional(8), getattr(diffusers, name)
    config = {"clip_sample": False} if name == "DDIMScheduler" else {}
    mine, other = (stable_diffusion(unet, kind(**config)) for _ in range(2))
    ladder = attach(mine, [conditional(4)], costs=COSTS, budget_fraction=0.4)
    with pytest.raises(ValueError, match="is not the one that calls it: its scheduler was not set for this run"):
        guided(other, steps=8)
    expected = guided(mine, steps=8)
    for steps in (4, 12):
        with pytest.raises(ValueError, match="give both pipelines one scheduler, or detach the ladder"):
            guided(other, steps=steps)
        assert torch.equal(guided(mine, steps=8), expected)
    other.scheduler = mine.scheduler
    assert torch.equal(guided(other, steps=8), expected)
    assert ladder.stats.trajectory.calls == len(mine.scheduler.timesteps)


def test_a_model_interrupted_in_one_pipeline_and_called_in_another(conditional, stable_diffusion, guided):
    """The scheduler of the first stands in the middle of its run."""
    unet = conditional(8)
    mine, other = (stable_diffusion(unet, diffusers.EulerDiscreteScheduler()) for _ in range(2))
    attach(mine, [conditional(4)], costs=COSTS, budget_fraction=0.4)

    def stop(pipe: Any, step: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
        if step == 3:
            raise KeyboardInterrupt
        return given

    expected = guided(mine, steps=8)
    for steps in (8, 5):
        with pytest.raises(KeyboardInterrupt):
            guided(mine, steps=8, callback_on_step_end=stop)
        with pytest.raises(ValueError, match="is not the one that calls it"):
            guided(other, steps=steps)
    assert torch.equal(guided(mine, steps=8), expected)
