"""Schedulers of first order: the noise levels of the one that they replace, and steps that plans may improve."""

from __future__ import annotations

from typing import Any

import pytest

diffusers = pytest.importorskip("diffusers")

from multilevel_diffusion.diffusers.one_step_schedulers import first_order  # noqa: E402
from multilevel_diffusion.diffusers.scheduler_grid import signal_levels, step_lengths  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 5.0}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("DPMSolverMultistepScheduler", {"solver_order": 3, "use_karras_sigmas": True}),
        ("DPMSolverMultistepScheduler", {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
        ("UniPCMultistepScheduler", {"timestep_spacing": "trailing", "final_sigmas_type": "zero"}),
        ("UniPCMultistepScheduler", FLOW),  # Wan
        ("DEISMultistepScheduler", {}),
    ],
)
def test_it_has_the_noise_levels_of_the_one_that_it_replaces(name: str, options: dict[str, Any]):
    given = getattr(diffusers, name)(**options)
    before = dict(given.config)
    found = first_order(given)
    assert dict(given.config) == before
    for scheduler in (given, found):
        scheduler.set_timesteps(12)
    assert step_lengths(given) is None
    assert step_lengths(found) is not None
    for mine, theirs in zip(signal_levels(found), signal_levels(given), strict=True):
        # Their flow grids differ by the first timestep, which one of them leaves out.
        close = {"abs": 3e-3} if options is FLOW else {"rel": 1e-5}
        assert mine[:12] == pytest.approx(theirs[:12], **close)
    assert found.config.prediction_type == given.config.prediction_type


@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_one_of_first_order_is_itself(name: str):
    given = getattr(diffusers, name)(**({"clip_sample": False} if name == "DDPMScheduler" else {}))
    assert first_order(given) is given


def test_a_shift_by_the_size_of_the_image_is_known():
    given = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)  # FLUX
    assert first_order(given) is given


def test_what_cannot_be_replaced_is_named():
    """A threshold is not affine, whatever the order."""
    given = diffusers.DPMSolverMultistepScheduler(thresholding=True)
    with pytest.raises(ValueError, match="no scheduler of first order can be made of the configuration of DPMSolver"):
        first_order(given)
