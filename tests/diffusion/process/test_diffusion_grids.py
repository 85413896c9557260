"""Laws of the time grids: ends, monotony, equal steps in the quantity each is named after."""

import pytest
import torch

from multilevel_diffusion.process.grids import karras, log_snr_uniform, uniform
from multilevel_diffusion.process.schedules import CosineSchedule, EDMSchedule, RectifiedFlowSchedule
from multilevel_diffusion.process.tables import LinearSchedule, ScaledLinearSchedule

SCHEDULES = [CosineSchedule(), LinearSchedule(), ScaledLinearSchedule(), EDMSchedule(), RectifiedFlowSchedule()]


@pytest.mark.parametrize("grid", [uniform, log_snr_uniform, karras])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("steps", [3, 10, 1000])
def test_grid_falls_from_the_noise_to_the_data(grid, schedule, steps):
    times = grid(schedule, steps)
    assert times.shape == (steps + 1,)
    assert times.dtype == torch.float64
    assert times[0] == schedule.t_max
    assert times[-1] == 0
    assert (times.diff() < 0).all()
    if grid is not uniform:
        assert times[-2] == schedule.t_min


def spread(values):
    """Largest relative deviation of the steps from their mean."""
    steps = values.diff()
    return ((steps - steps.mean()).abs() / steps.mean().abs()).max()


@pytest.mark.parametrize("schedule", SCHEDULES[:4], ids=lambda s: type(s).__name__)
def test_steps_are_equal_in_the_named_quantity(schedule):
    assert spread(uniform(schedule, 40)) < 1e-12
    log_snr = schedule.log_snr(log_snr_uniform(schedule, 40)[:-1])
    assert spread(log_snr) < 1e-6
    for rho in (1.0, 7.0):
        times = karras(schedule, 40, rho=rho)[:-1]
        assert spread((schedule.sigma(times) / schedule.alpha(times)) ** (1 / rho)) < 1e-6


def test_rectified_flow_leaves_the_pure_noise_in_one_step():
    schedule = RectifiedFlowSchedule(t_min=0.01)
    times = log_snr_uniform(schedule, 40)
    assert times[1] == 0.99
    assert spread(schedule.log_snr(times[1:-1])) < 1e-9


def test_uniform_grids_are_contained_in_their_refinements_to_the_bit():
    for schedule in SCHEDULES:
        fine, coarse = uniform(schedule, 1000), uniform(schedule, 50)
        assert torch.isin(coarse, fine).all()


def test_a_trajectory_may_start_and_end_inside():
    times = karras(EDMSchedule(), 5, start=10.0, end=0.1)
    assert (times[0], times[-2], times[-1]) == (10.0, 0.1, 0.0)
    assert uniform(CosineSchedule(), 5, start=0.5)[0] == 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: uniform(CosineSchedule(), 0), '"steps"'),
        (lambda: uniform(CosineSchedule(), 5, start=2.0), '"start"'),
        (lambda: log_snr_uniform(CosineSchedule(), 1), '"steps"'),
        (lambda: log_snr_uniform(CosineSchedule(), 5, end=1.0), '"end"'),
        (lambda: karras(CosineSchedule(), 5, rho=0.0), '"rho"'),
    ],
)
def test_errors_name_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()
