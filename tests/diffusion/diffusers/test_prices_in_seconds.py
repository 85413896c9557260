"""After a calibration a budget counts seconds of this device, where a plan can keep within it; before, it is said."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

import multilevel_sde as mls  # noqa: E402
from multilevel_diffusion.diffusers import MultilevelUNet, attach  # noqa: E402
from multilevel_diffusion.loops.recording import Recorded  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:levels . and . differ"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

SECONDS = {"num_inference_steps": 8, "samples": 2, "progress": False, "price": "seconds"}


@pytest.fixture
def took(monkeypatch):
    """The seconds that the calls of a pilot will have taken."""

    def these(*seconds):
        monkeypatch.setattr(Recorded, "seconds", property(lambda _: seconds))

    return these


def images(pipe):
    return pipe(generator=torch.Generator().manual_seed(0), num_inference_steps=8, output_type="np").images


def test_a_budget_counts_seconds_after_a_calibration(unet, ddim, took):
    took(2.0, 5.0)
    pipe = ddim(unet(8))
    ladder = attach(pipe, [unet(4)], budget_fraction=0.6)
    assert ladder.costs.unit == "FLOPs"
    images(pipe)
    pilot = ladder.calibrate(pipe, **SECONDS)
    assert (ladder.costs.costs, ladder.costs.unit) == ([1.0, 2.5], "seconds")  # of one image of two
    assert (pilot.costs, pilot.unit) == ((1.0, 2.5), "seconds")
    assert ladder.plan.evaluations.tolist() == [8, 1]  # (16 + 5) / 40; two of the large one would take 0.65
    images(pipe)
    assert ladder.stats.trajectory.fraction == pytest.approx(21 / 40)
    assert ladder.stats.trajectories == 2  # the runs of the pilot do not count
    assert "seconds" not in ladder.advise().text  # but evaluations of the top level


def test_a_budget_that_no_plan_keeps_in_seconds_stays_in_flops(unet, ddim, took):
    took(4.0, 5.0)
    pipe = ddim(unet(8))
    ladder = attach(pipe, [unet(4)], budget_fraction=0.6)
    words = (
        "a call of the smallest level takes 0.8 of the largest one's seconds here, so no plan takes 0.6 of them; "
        '"budget_fraction" counts FLOPs'
    )
    with pytest.warns(UserWarning, match=words) as seen:
        ladder.calibrate(pipe, **SECONDS)
    assert [one.filename for one in seen if "seconds here" in str(one.message)] == [__file__]
    assert ladder.costs.unit == "FLOPs"
    assert ladder.plan.cost(mls.Ladder([torch.sin] * 2, ladder.costs)) <= 0.6 * 8 * ladder.costs.costs[-1]


def test_costs_that_were_given_stay(unet, ddim, took):
    took(2.0, 5.0)
    pipe = ddim(unet(8))
    ladder = attach(pipe, [unet(4)], budget_fraction=0.6, costs=(1.0, 8.0))
    ladder.calibrate(pipe, num_inference_steps=8, samples=2, progress=False)
    assert ladder.costs.costs == [1.0, 8.0]
    with pytest.raises(ValueError, match='"price" must be "seconds" or "given", got \'flops\''):
        ladder.calibrate(pipe, **{**SECONDS, "price": "flops"})


def test_seconds_are_saved_with_the_ladder(unet, ddim, took, tmp_path: Path):
    took(2.0, 5.0)
    pipe = ddim(unet(8))
    ladder = MultilevelUNet([unet(4), pipe.unet], budget_fraction=0.6).install(pipe)
    ladder.calibrate(pipe, **SECONDS)
    ladder.save_pretrained(tmp_path)
    loaded = MultilevelUNet.from_pretrained(tmp_path)
    assert (loaded.costs.costs, loaded.costs.unit, loaded.plan) == ([1.0, 2.5], "seconds", ladder.plan)


def test_a_ladder_that_was_not_measured_says_so_once(unet, ddim):
    pipe = ddim(unet(8))
    ladder = attach(pipe, [unet(4)], budget_fraction=0.6)
    with pytest.warns(UserWarning, match="the ladder has not been measured in this pipeline"):
        images(pipe)
    with warnings.catch_warnings(record=True) as seen:
        images(pipe)
    assert not any("not been measured" in str(one.message) for one in seen)
    other = ddim(unet(8))
    measured = attach(other, [unet(4)], budget_fraction=0.6)
    with warnings.catch_warnings(record=True) as seen:
        measured.calibrate(other, **SECONDS | {"price": "given"})
        images(other)
    assert not any("not been measured" in str(one.message) for one in seen)
    ladder.detach()
    attach(pipe)  # one network has nothing to be spread
    with warnings.catch_warnings(record=True) as seen:
        images(pipe)
    assert not any("not been measured" in str(one.message) for one in seen)


def test_a_fit_keeps_within_the_budget_in_seconds(unet, ddim, took):
    took(2.0, 5.0)
    pipe = ddim(unet(8))
    pipe.scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    ladder = attach(pipe, [unet(4)], budget_fraction=0.6)
    ladder.calibrate(pipe, **{**SECONDS, "samples": 8}, fit=True)
    assert ladder.plan.cost(mls.Ladder([torch.sin] * 2, ladder.costs)) <= 0.6 * 8 * ladder.costs.costs[-1] * (1 + 1e-9)
