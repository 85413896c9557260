"""Laws of check_ladder and check_rates: what is right passes, and what is not is named."""

import math

import pytest
import torch

import multilevel_sde as mls
from multilevel_sde.rates.problems import scaling_law
from multilevel_sde.testing import check_ladder, check_rates

DOUBLE = torch.float64


def fails(message):
    return pytest.raises(AssertionError, match=message)


def refused(message):
    return pytest.raises(ValueError, match=message)


# -- check_ladder -----------------------------------------------------------------------------------------------------

MATRIX = torch.eye(4, dtype=DOUBLE)
Y = torch.linspace(-1.0, 1.0, 12, dtype=DOUBLE).reshape(3, 4)


def matmuls(*levels):
    """One drift for each (number of matrix products, error)."""

    def drift(count, error):
        def f(x, t):
            for _ in range(count):
                x = x @ MATRIX
            return -x + error * torch.cos(x)

        return f

    return [drift(*level) for level in levels]


def ladder_of(*drifts):
    return mls.Ladder(drifts, costs=[float(k + 1) for k in range(len(drifts))])


def test_a_good_ladder_is_measured():
    result = check_ladder(ladder_of(*matmuls((1, 0.5), (2, 0.1), (4, 0.0))), Y, [0.0, 0.5])
    assert result.costs == (32.0, 64.0, 128.0)
    assert result.unit == "FLOPs"
    size = float(torch.cos(Y).square().mean().sqrt())
    assert result.differences == pytest.approx((0.4 * size, 0.1 * size))


def test_differences_are_averaged_over_the_times():
    ladder = ladder_of(lambda x, t: x * 0, lambda x, t: x * 0 + t)
    result = check_ladder(ladder, Y, [3.0, 4.0], cost=mls.GivenCost(ladder.costs))
    assert result.differences == pytest.approx((math.sqrt(12.5),))


class Flickering:
    """Another value at every call."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x, t):
        self.calls += 1
        return x + 1e-6 * self.calls


class Buffered(Flickering):
    """The same, always in the same memory."""

    def __call__(self, x, t):
        value = super().__call__(x, t)
        self.buffer = value if self.calls == 1 else self.buffer.copy_(value)
        return self.buffer


WRONG = {
    "shape": (lambda x, t: x[:, :1], r"must return a tensor like its state, \(3, 4\).* got \(3, 1\)"),
    "dtype": (lambda x, t: x.float(), "must return a tensor like its state.* got .*float32"),
    "type": (lambda x, t: 1.0, "must return a tensor like its state.* got float"),
    "in place": (lambda x, t: x.mul_(0.5), "must leave its state as it is"),
    "nan": (lambda x, t: x / (x - x), "must be finite"),
    "flickering": (Flickering(), "must be the same at every call, two calls differ by 1e-06"),
    "buffered": (Buffered(), "must be the same at every call, two calls differ by 1e-06"),
    "mixing": (lambda x, t: x - 1e-6 * x.mean(0), "must not mix samples: .* differ by .* expected at most 2.22e-14"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_drift_that_is_no_function_of_its_state_is_named(name):
    drift, message = WRONG[name]
    ladder = ladder_of(lambda x, t: -x, drift)
    with fails(r"the drift of level 2 at time 0\.25 " + message):
        check_ladder(ladder, Y, 0.25, cost=mls.GivenCost(ladder.costs))


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_mixing_below_the_tolerance_passes(size):
    """The tolerance is relative."""
    ladder = ladder_of(lambda x, t: size * WRONG["mixing"][0](x, t))
    with fails("must not mix samples"):
        check_ladder(ladder, Y, 0.0, cost=mls.GivenCost(ladder.costs), tolerance=1e-8)
    assert check_ladder(ladder, Y, 0.0, cost=mls.GivenCost(ladder.costs), tolerance=1e-5).differences == ()


def test_costs_are_really_measured():
    with fails("costs must increase with the level, got 64 for level 1 and 64 for level 2 .FLOPs."):
        check_ladder(ladder_of(*matmuls((2, 0.5), (2, 0.0))), Y, 0.0)
    with fails("costs must increase with the level, got 64 for level 2 and 32 for level 3 .FLOPs."):
        check_ladder(ladder_of(*matmuls((1, 0.5), (2, 0.1), (1, 0.0))), Y, 0.0)
    with refused("no operation that the FLOP counter sees"):
        check_ladder(ladder_of(lambda x, t: -x), Y, 0.0)


def test_differences_really_shrink():
    ladder = ladder_of(*matmuls((1, 0.5), (2, 0.4), (3, 0.0)))
    with fails(r"differences must shrink .* measured .* from level 1 to 2 and .* from level 2 to 3 \(RMS\)"):
        check_ladder(ladder, Y, 0.0)
    equal = ladder_of(*matmuls((1, 0.5), (2, 0.25), (3, 0.0)))
    assert check_ladder(ladder_of(*matmuls((1, 0.5), (2, 0.2), (3, 0.0))), Y, 0.0).differences[0] > 0
    with fails("differences must shrink"):
        check_ladder(equal, torch.zeros_like(Y), 0.0)


@pytest.mark.parametrize(
    ("y", "t", "message"),
    [
        (torch.ones(()), 0.0, '"y" must have samples along its first dimension, got shape'),
        (torch.ones(0, 2), 0.0, '"y" must have samples along its first dimension, got shape'),
        (Y, [], '"t" is empty'),
    ],
)
def test_arguments_of_check_ladder(y, t, message):
    with refused(message):
        check_ladder(ladder_of(lambda x, t: -x), y, t)


# -- check_rates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1.5, 3.0])
def test_rates_of_ladders_with_known_ones(gamma):
    problem = scaling_law(gamma, levels=5)
    rates = check_rates(problem.ladder, problem.y0(16), [0.0, 0.5], gamma=gamma, tolerance=1e-6)
    assert rates.beta.value == pytest.approx(2.0, abs=1e-9)
    assert rates.harder_than_monte_carlo == (gamma > 2)


def test_another_rate_is_named():
    problem = scaling_law(3.0, levels=5)
    message = r"measured cost exponent 3.000 .costs grow by 3.000 .* fall by 2.000 .*, expected 2.5 within 0.2"
    with fails(message):
        check_rates(problem.ladder, problem.y0(16), 0.5, gamma=2.5)
    with fails("expected 3.5 within 0.2"):
        check_rates(problem.ladder, problem.y0(16), 0.5, gamma=3.5)
    check_rates(problem.ladder, problem.y0(16), 0.5, gamma=2.5, tolerance=0.51)


def test_ladders_without_a_rate():
    with refused('"ladder" must have at least 3 levels for a regression, got 2'):
        check_rates(ladder_of(torch.sin, torch.cos), Y, 0.0, gamma=2.0)
    with refused('"ladder" has equal levels 2 and 3'):
        check_rates(ladder_of(*matmuls((1, 0.5), (1, 0.1), (1, 0.1))), Y, 0.0, gamma=2.0)
