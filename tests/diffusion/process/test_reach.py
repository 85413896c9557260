"""A base does not extrapolate over a step that is much longer than the one before."""

import math
from itertools import pairwise

import pytest
import torch

from multilevel_diffusion import CosineSchedule, Process, uniform
from multilevel_diffusion.loops.euler_base import euler_base
from multilevel_diffusion.process.multistep import REACH, corrected_table, corrected_weights, predictor_table
from multilevel_diffusion.sampling.one_network import base_coefficients


@pytest.mark.parametrize(("length", "order"), [(2.9, 2), (3.1, 1)])
def test_beyond_three_lengths_of_the_last_step_the_order_is_one(length, order):
    places = [0.0, 1.0, 2.0, 2.0 + length]
    table = predictor_table(places, [1.0, 1.0, length], 2, reach=REACH)
    assert int((table[2] != 0).sum()) == order
    assert torch.equal(table[:2], predictor_table(places, [1.0, 1.0, length], 2)[:2])
    assert int((predictor_table(places, [1.0, 1.0, length], 2)[2] != 0).sum()) == 2  # SA-Solver as published


def test_the_corrector_of_such_a_step_starts_from_its_own_prediction():
    """Rows after a long step correct what it predicted, which was of order 1: hand computation by the formula."""
    places = [0.0, 1.0, 5.0, 6.0]
    steps = [(math.exp(-h), -math.expm1(-h)) for h in (1.0, 4.0, 1.0)]
    short = corrected_table(places, [1.0, 4.0, 1.0], steps, 2, 2, reach=REACH)
    long = corrected_table(places, [1.0, 4.0, 1.0], steps, 2, 2)
    ahead = predictor_table(places, [1.0, 4.0, 1.0], 2)[1]
    ratio = steps[2][0] * steps[1][1] / steps[2][1]
    assert short[2, 1:3].tolist() == pytest.approx((long[2, 1:3] + ratio * (ahead - torch.tensor([1.0, 0.0]))).tolist())


def test_bases_of_all_loops_follow_it():
    """Our own, of the ODE and the SDE, and Euler's of k-diffusion, on times that end just before the data."""
    schedule, times = CosineSchedule(), [1.0, 0.75, 0.5, 0.25, 0.001, 0.0]
    for tau in (0.0, 1.0):
        table = base_coefficients(Process(schedule, tau, uniform(schedule, 1000)), torch.tensor(times))
        assert float(table[3].abs().max()) < 1.5
    assert float(corrected_weights(schedule, 0.0, times, 2, 2)[3].abs().max()) > 3
    calls, x = [], torch.ones(1)
    for sigma, following in pairwise([8.0, 4.0, 2.0, 0.01, 0.0]):
        calls.append((sigma, x, 0.5 * x))
        x = x + (following - sigma) * (x - 0.5 * x) / sigma
    table = euler_base(calls, x)
    assert table is not None
    assert float(table[2].abs().max()) < 1.5
