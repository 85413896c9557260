"""Laws of the grids of a process: part of its finest grid, as even in time or in log-SNR as that allows."""

import math

import pytest
import torch

from multilevel_diffusion import CosineSchedule, Process, uniform

COSINE = CosineSchedule()
PROCESS = Process(COSINE, 0.0, uniform(COSINE, 1000))


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 28, 56, 200])
def test_a_log_snr_grid_is_part_of_the_finest_and_about_even(steps):
    grid = PROCESS.log_snr_grid(steps)
    assert len(grid) == steps + 1
    assert torch.isin(grid, PROCESS.fine_times).all()
    assert torch.equal(grid[[0, -1]], PROCESS.fine_times[[0, -1]])
    assert (grid.diff() < 0).all()
    if 8 <= steps <= 56:  # more are finer than the finest grid near pure noise
        gaps = torch.tensor([float(COSINE.log_snr(float(t))) for t in grid[1:-1]]).diff()
        few = gaps[: len(gaps) * 3 // 4]  # at the end the finest grid is coarser than that in log-SNR
        assert few.max() < 2.5 * few.median()
        assert abs(float(COSINE.log_snr(float(grid[1]))) - float(few[0]) + 5.1) < 0.4  # the first is pure noise


@pytest.mark.parametrize("steps", [2, 3, 4])
def test_few_steps_are_even_from_the_lowest_log_snr_to_the_last_time_of_the_finest_grid(steps):
    found = [float(COSINE.log_snr(float(t))) for t in PROCESS.log_snr_grid(steps)[1:-1]]
    highest = float(COSINE.log_snr(float(PROCESS.fine_times[-2])))
    assert found == pytest.approx([-5.1 + n * (highest + 5.1) / (steps - 1) for n in range(1, steps)], abs=0.02)


def test_the_lowest_log_snr_can_be_chosen():
    first = [float(COSINE.log_snr(float(PROCESS.log_snr_grid(28, lowest=lowest)[1]))) for lowest in (-7.0, -3.0)]
    assert -7.0 < first[0] < -6.0
    assert -3.0 < first[1] < -2.5


def test_more_steps_than_the_finest_grid_has_are_refused():
    small = Process(COSINE, 0.0, uniform(COSINE, 20))
    assert len(small.log_snr_grid(12)) == 13
    with pytest.raises(ValueError, match='"steps" is 21: the finest grid has not so many'):
        small.log_snr_grid(21)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"schedule": None}, TypeError, '"schedule" is a NoneType'),
        ({"tau": math.nan}, ValueError, '"tau" is nan, expected a finite number'),
        ({"tau": -1.0}, ValueError, '"tau" is -1.0, expected a finite number'),
        ({"tau": "ddim"}, TypeError, '"tau" must be a number, got str'),
        ({"tau": lambda t: 1.0}, TypeError, '"tau" of a process must be a number'),
        ({"fine_times": [1.0, 0.5, 0.7]}, ValueError, '"times" must be strictly'),
        ({"fine_times": [0.0, 0.5, 1.0]}, ValueError, '"fine_times" must fall, from noise to data, got 0 to 1'),
        ({"fine_times": [2.0, 1.0, 0.0]}, ValueError, r'"t" is 2.0, expected a time in \[0'),
        ({"fine_times": [1.0, -0.5]}, ValueError, r'"t" is -0.5, expected a time in \[0'),
    ],
)
def test_what_is_no_process_is_refused(change, error, message):
    with pytest.raises(error, match=message):
        Process(**({"schedule": COSINE, "tau": 1.0, "fine_times": uniform(COSINE, 4)} | change))


def test_the_finest_grid_may_be_a_list():
    assert torch.equal(Process(COSINE, 0.0, [1.0, 0.5, 0.25, 0.0]).grid(2), torch.tensor([1.0, 0.25, 0.0]).double())


@pytest.mark.parametrize(("tau", "noise"), [(0.0, None), (1.0, 1.0)])
def test_the_ode_has_no_noise(tau, noise):
    given = Process(COSINE, tau, uniform(COSINE, 10)).arguments([0, 1])
    assert given["diffusion"] == noise
    assert (given["brownian"] is None) == (noise is None)
