"""A pilot of one number of calls serves another, by the log-SNR of its calls."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from test_attached import TRAILING, errors, images, smooth  # noqa: E402

from multilevel_diffusion.diffusers import MultilevelUNet, answering, attach  # noqa: E402
from multilevel_diffusion.diffusers.scheduler_grid import half_log_snr  # noqa: E402
from multilevel_diffusion.loops.carried import carried  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:levels . and . differ"),
    pytest.mark.filterwarnings("ignore:the ladder has not been measured"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def a_ladder(pipe):
    return attach(pipe, [smooth(0.1)], budget_fraction=0.3, costs=[1.0, 10.0])


def test_at_its_own_calls_a_pilot_is_itself(ddim):
    pipe = ddim(smooth(0.0), **TRAILING)
    ladder = a_ladder(pipe)
    pilot = ladder.calibrate(pipe, num_inference_steps=20, progress=False)
    pipe.scheduler.set_timesteps(20)
    places = half_log_snr(pipe.scheduler)
    assert len(places) == 21
    assert math.isinf(places[-1])
    same = carried(pilot, places, places, pilot.multistep[20])
    torch.testing.assert_close(same.gram, pilot.gram.double())
    torch.testing.assert_close(same.variances, pilot.variances)
    assert torch.equal(same.plan(budget=60.0).plan.hits, pilot.plan(budget=60.0).plan.hits)


@pytest.mark.parametrize("steps", [12, 40])
def test_responses_are_those_that_are_measured_at_other_calls(ddim, steps):
    """By the median to 10%, each to 25%, and their sum to 20%."""
    found, places = {}, {}
    for calls in (20, steps):
        pipe = ddim(smooth(0.0), **TRAILING)
        found[calls] = a_ladder(pipe).calibrate(pipe, num_inference_steps=calls, progress=False).gram.double()
        pipe.scheduler.set_timesteps(calls)
        places[calls] = half_log_snr(pipe.scheduler)
    pipe = ddim(smooth(0.0), **TRAILING)
    pilot = a_ladder(pipe).calibrate(pipe, num_inference_steps=20, progress=False)
    told = carried(pilot, places[20], places[steps], None)
    assert told.steps == steps
    ratios = told.gram.diagonal().sqrt() / found[steps].diagonal().sqrt()
    assert float((ratios - 1).abs().median()) < 0.1
    assert float((ratios - 1).abs().max()) < 0.25
    assert float(told.gram.sum()) == pytest.approx(float(found[steps].sum()), rel=0.2)


@pytest.mark.parametrize("steps", [14, 30])
def test_a_carried_plan_is_about_as_good_as_one_that_was_measured_there(ddim, steps):
    """At most 1.5 times its error, and less than that of a ladder that was not measured, within the same budget."""
    pipe = ddim(smooth(0.0), **TRAILING)
    fine = images(pipe, 1000, seed=100)
    found = {}
    for calls in (None, 20, steps):
        ladder = a_ladder(pipe)
        if calls is not None:
            ladder.calibrate(pipe, num_inference_steps=calls, progress=False)
        found[calls] = errors(pipe, steps, fine)
        assert ladder.stats.trajectory.calls == steps
        assert ladder.stats.trajectory.fraction <= 0.3
        ladder.detach()
    assert found[20] < 1.5 * found[steps]
    assert found[20] < found[None]


def test_it_is_carried_after_loading_too(ddim, unet, tmp_path: Path):
    pipe = ddim(unet(8), **TRAILING)
    ladder = MultilevelUNet([unet(4), pipe.unet], budget_fraction=0.5, costs=(1.0, 8.0)).install(pipe)
    ladder.calibrate(pipe, num_inference_steps=10, progress=False)
    expected = images(pipe, 14)
    ladder.save_pretrained(tmp_path)
    MultilevelUNet.from_pretrained(tmp_path).install(pipe)
    torch.testing.assert_close(images(pipe, 14), expected, rtol=0, atol=1e-3)  # the file keeps responses in float32


def test_it_is_made_once_for_the_same_calls_and_not_said_to_be_unmeasured(ddim, unet, monkeypatch):
    made = []
    real = answering.plans_at
    monkeypatch.setattr(answering, "plans_at", lambda *given: made.append(given) or real(*given))
    pipe = ddim(unet(8), **TRAILING)
    ladder = attach(pipe, [unet(4)], budget_fraction=0.5, costs=(1.0, 8.0))
    ladder.calibrate(pipe, num_inference_steps=10, progress=False)
    with warnings.catch_warnings(record=True) as seen:
        first = images(pipe, 14)
        assert torch.equal(images(pipe, 14), first)
        assert len(made) == 1
        images(pipe, 12)
        ladder.allocate(budget_fraction=0.3)
        images(pipe, 12)
    assert len(made) == 3
    assert not any("not been measured" in str(one.message) for one in seen)


def test_as_many_calls_of_another_scheduler(conditional, stable_diffusion, guided):
    """One network: on other noise levels it has their base, under UniPC none, which is said once; and back."""
    first, text = {"solver_order": 1, "final_sigmas_type": "zero"}, torch.ones(1, 5, 16)
    pipe = stable_diffusion(conditional(8), diffusers.DPMSolverMultistepScheduler(**first))
    karras = diffusers.DPMSolverMultistepScheduler(**first, use_karras_sigmas=True)
    given = {"num_inference_steps": 8, "samples": 2, "progress": False, "height": 16, "width": 16}
    ladder = attach(pipe, costs=[1.0])
    schedulers, found = {"own": pipe.scheduler, "karras": karras, "unipc": diffusers.UniPCMultistepScheduler()}, {}
    for name in ("karras", "own"):
        pipe.scheduler = schedulers[name]
        ladder.calibrate(pipe, **given, prompt_embeds=text, negative_prompt_embeds=text)
        found[name] = guided(pipe, steps=8)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        moved = {}
        for name in ("karras", "unipc", "unipc", "own"):
            pipe.scheduler = schedulers[name]
            moved[name] = guided(pipe, steps=8)
    assert sum("the scheduler is of another kind than in the calibration" in str(one.message) for one in seen) == 1
    ladder.detach()
    pipe.scheduler = schedulers["unipc"]
    for name, expected in {**found, "unipc": guided(pipe, steps=8)}.items():
        torch.testing.assert_close(moved[name], expected, msg=name)
    assert not torch.equal(found["own"], found["karras"])


def test_a_plan_with_noise_is_for_its_own_scheduler(ddim, unet, tmp_path: Path):
    """The eta of a calibration is kept with the ladder, and the same plan is followed after loading."""
    pipe = ddim(unet(8), **TRAILING)
    ladder = MultilevelUNet([unet(4), pipe.unet], budget_fraction=0.5, costs=(1.0, 8.0)).install(pipe)
    ladder.calibrate(pipe, num_inference_steps=8, samples=2, candidates=2, eta=1.0, progress=False)
    ladder.save_pretrained(tmp_path)
    run = {"num_inference_steps": 8, "eta": 1.0, "output_type": "np"}
    for one in (ladder, MultilevelUNet.from_pretrained(tmp_path)):
        one.install(pipe)
        chosen = torch.as_tensor(pipe(generator=torch.Generator().manual_seed(0), **run).images)
        one.allocate(plan=one.plan)
        followed = torch.as_tensor(pipe(generator=torch.Generator().manual_seed(0), **run).images)
        assert torch.equal(chosen, followed)


def test_a_plan_of_the_users_is_not_carried(ddim, unet):
    pipe = ddim(unet(8), **TRAILING)
    ladder = attach(pipe, [unet(4)], budget_fraction=0.5, costs=(1.0, 8.0))
    ladder.calibrate(pipe, num_inference_steps=10, progress=False)
    ladder.allocate(plan=ladder.plan)
    with pytest.raises(ValueError, match='"plan" has 10 steps, the scheduler makes 14 calls'):
        images(pipe, 14)


def test_noise_levels_that_do_not_rise_are_not_known():
    scheduler = diffusers.HeunDiscreteScheduler()
    scheduler.set_timesteps(10)
    assert half_log_snr(scheduler) == ()
