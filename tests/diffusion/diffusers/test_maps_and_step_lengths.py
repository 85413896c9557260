"""What is read off a scheduler: maps of a network's output to the data and back, and the lengths of its steps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from multilevel_diffusion.diffusers.scheduler_grid import (  # noqa: E402
    base_coefficients,
    signal_levels,
    step_lengths,
)
from multilevel_diffusion.loops.memory import DataMap  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "flow_prediction"])
def test_maps_to_the_data_and_back(prediction: str):
    """x = alpha x_0 + sigma eps: the output of an exact network is mapped to x_0, in 16 bits too."""
    alpha, sigma = (0.3, 0.7) if prediction == "flow_prediction" else (0.6, 0.8)
    data, eps = torch.randn(2, 3, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    state = alpha * data + sigma * eps
    output = {
        "epsilon": eps,
        "v_prediction": alpha * eps - sigma * data,
        "sample": data,
        "flow_prediction": eps - data,
    }[prediction]
    here = DataMap.of(prediction, alpha, sigma)
    torch.testing.assert_close(here.data(state, output), data)
    torch.testing.assert_close(here.prediction(state, data), output)
    assert here.data(state.half(), output.half()).dtype == torch.float32
    more = torch.cat([output, eps], 1)  # learned variances behind the output
    torch.testing.assert_close(here.data(state, more), torch.cat([data, eps], 1))
    wider = torch.cat([state, eps], 1)  # a mask behind the state
    torch.testing.assert_close(here.data(wider, output), data)


def test_what_no_map_exists_for():
    with pytest.raises(ValueError, match="expected one of epsilon, v_prediction, sample, flow_prediction"):
        DataMap.of("score", 0.6, 0.8)
    with pytest.raises(ValueError, match="'epsilon' says nothing about the data at alpha 0"):
        DataMap.of("epsilon", 0.0, 1.0)


@pytest.mark.parametrize(
    ("name", "options", "given", "factor"),
    [
        ("DDIMScheduler", {"clip_sample": False}, {}, 1.0),
        ("DDIMScheduler", {"clip_sample": False}, {"eta": 1.0}, 2.0),
        ("DDPMScheduler", {"clip_sample": False}, {}, 2.0),
        ("EulerDiscreteScheduler", {}, {}, 1.0),
        ("EulerAncestralDiscreteScheduler", {}, {}, 2.0),
        ("EDMEulerScheduler", {}, {}, 1.0),
        ("DPMSolverMultistepScheduler", {"solver_order": 1}, {}, 1.0),
        ("DPMSolverMultistepScheduler", {"solver_order": 1, "algorithm_type": "sde-dpmsolver++"}, {}, 2.0),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, {}, 1.0),
        ("DPMSolverMultistepScheduler", {}, {}, None),
        ("UniPCMultistepScheduler", {}, {}, None),
        ("HeunDiscreteScheduler", {}, {}, None),
        ("PNDMScheduler", {}, {}, None),
        ("DEISMultistepScheduler", {}, {}, None),
    ],
)
def test_the_length_of_first_order_steps(
    name: str, options: dict[str, Any], given: dict[str, Any], factor: float | None
):
    """(1 + tau^2) h by trial steps: h for the ODE, 2 h for the SDE; None for a scheduler that remembers."""
    scheduler = getattr(diffusers, name)(**options)
    scheduler.set_timesteps(6)
    lengths = step_lengths(scheduler, given)
    if factor is None:
        assert lengths is None
        assert base_coefficients(scheduler, given) is None
        return
    alphas, sigmas = signal_levels(scheduler)
    assert lengths is not None
    for n in range(1, 5):
        h = math.log(alphas[n + 1] / sigmas[n + 1]) - math.log(alphas[n] / sigmas[n])
        assert lengths[n] == pytest.approx(factor * h, rel=2e-3)
