"""Laws of check_unbiased and check_order: what is right passes, and bias and another order are named."""

import math

import pytest
import torch

import multilevel_sde as mls
from multilevel_sde.rates.problems import geometric_brownian_motion, ornstein_uhlenbeck, scaling_law
from multilevel_sde.testing import check_order, check_unbiased

DOUBLE = torch.float64


def fails(message):
    return pytest.raises(AssertionError, match=message)


def refused(message):
    return pytest.raises(ValueError, match=message)


# -- check_unbiased ---------------------------------------------------------------------------------------------------

TABLE = torch.tensor([[1.0, 0.5, 0.2], [1.0, 1.0, 0.1], [1.0, 0.3, 1.0]])


class Tilted:
    """Hits a per cent too often."""

    def __call__(self, p, generator, samples=None):
        return mls.independent((p * 1.1).clamp(max=1.0), generator, samples)

    def either(self, p, q):
        return mls.independent.either(p, q)


class Unweighted(mls.Telescoping):
    """Adds every correction once instead of 1 / p times."""

    def start(self, plan):
        plain = mls.Plan(plan.hits, plan.hits.double())
        return mls.Telescoping().start(plain)


@pytest.mark.parametrize("draw", [mls.independent, mls.nested, mls.systematic])
def test_our_draws_are_unbiased(draw):
    """A false alarm has probability 1e-6 for each draw; the seed is fixed."""
    problem = scaling_law(2.0, levels=3)
    result = check_unbiased(problem.ladder, problem.y0(1), 0.5, TABLE, draw=draw)
    assert 0 < result.worst < result.allowed
    assert 5 < result.allowed < 6
    assert result.draws == 4000


@pytest.mark.parametrize("wrong", [{"draw": Tilted()}, {"estimator": Unweighted()}])
def test_bias_is_found(wrong):
    problem = scaling_law(2.0, levels=3)
    with fails(r"the mean of 4000 draws at step 0 is .* standard errors .* expected at most .* probability 1e-06"):
        check_unbiased(problem.ladder, problem.y0(1), 0.5, TABLE, **wrong)


def test_a_sure_plan_has_nothing_but_rounding():
    problem = scaling_law(2.0, levels=3)
    for dtype in (DOUBLE, torch.float32):
        assert check_unbiased(problem.ladder, problem.y0(1).to(dtype), 0.5, torch.ones(2, 3), draws=100).worst == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"y": torch.ones(2, 8, dtype=DOUBLE)}, r'"y" must be the state of one sample, \(1, ...\), got shape \(2, 8\)'),
        ({"level": 0.0}, r'"level" must lie in \(0, 1\), got 0.0'),
        ({"draws": 999}, '"draws" must be at least 1000 for probabilities down to 0.1, got 999'),
    ],
)
def test_arguments_of_check_unbiased(options, message):
    problem = scaling_law(2.0, levels=3)
    with refused(message):
        check_unbiased(problem.ladder, options.pop("y", problem.y0(1)), 0.5, TABLE, **options)


# -- check_order ------------------------------------------------------------------------------------------------------


def off_by(size):
    """Euler-Maruyama with a drift that is wrong by `size`, in relation to the drift."""
    return lambda y, F, t, s, noise: mls.euler_maruyama(y, (1 + size) * F, t, s, noise)


def exact_step(y, F, t, s, noise):
    """The solution of dx = -sin(x) dt."""
    return 2 * torch.atan(torch.tan(y / 2) * math.exp(t - s))


def test_weak_and_strong_order_of_euler_maruyama_differ():
    """Geometric Brownian motion: 1/2 strong and 1 for the mean. The mean is noisy: 8192 paths and coarse steps."""
    problem = geometric_brownian_motion(sigma=0.4)
    options = {"samples": 8192, "steps": (4, 8, 16, 32), "tolerance": 0.15}
    strong = check_order(mls.euler_maruyama, problem, 0.5, **options)
    weak = check_order(mls.euler_maruyama, problem, 1.0, weak=lambda x: x, **options)
    assert strong.standard_error < weak.standard_error < 0.03


def test_a_reference_takes_the_place_of_a_solution():
    exact = scaling_law(3.0)
    unknown = ornstein_uhlenbeck()
    assert unknown.exact is None
    steps = (8, 16, 32)
    assert check_order(mls.Heun(), unknown, 1.0, steps=steps).steps == steps
    object.__setattr__(exact, "exact", None)
    assert check_order(mls.Heun(), exact, 2.0, steps=steps, samples=16).order == pytest.approx(2.0, abs=0.05)


def test_errors_are_those_of_the_solve():
    problem = scaling_law(3.0)
    result = check_order(mls.euler_maruyama, problem, 1.0, steps=(4, 8, 16), samples=16, seed=3)
    y0, times = problem.y0(16, 3), problem.times(8)
    y = mls.solve(problem.limit, y0, times, mls.em_plan(problem.limit, times)).y
    error = (y - problem.exact(y0, 1.0, None)).square().mean().sqrt()
    assert result.errors[1] == pytest.approx(float(error), rel=1e-12)


def test_the_standard_error_is_that_of_the_slope_over_seeds():
    """The jackknife against the spread over 12 seeds: a chi-squared of 11 degrees, between half and double."""
    problem = geometric_brownian_motion()
    options = {"steps": (8, 16, 32), "samples": 128, "tolerance": 1.0}
    results = [check_order(mls.euler_maruyama, problem, 0.5, seed=seed, **options) for seed in range(12)]
    spread = float(torch.tensor([result.order for result in results]).std())
    typical = float(torch.tensor([result.standard_error for result in results]).square().mean().sqrt())
    assert 0.5 < typical / spread < 2.0


@pytest.mark.parametrize(
    ("step", "options", "message"),
    [
        (mls.euler_maruyama, {"expected": 1.2}, "measured order 1.005, expected 1.2 within 0.1"),
        (off_by(0.05), {"expected": 1.0}, r"measured order 0\..*, expected 1 within 0.1"),
        (mls.AdamsBashforth(3), {"expected": 2.0}, "measured order 3.* expected 2 within 0.1"),
        (exact_step, {"expected": 1.0}, r"measured errors down to .*, expected more than .* \(rounding\)"),
    ],
)
def test_another_order_is_named(step, options, message):
    with fails(message):
        check_order(step, scaling_law(3.0), samples=16, **options)


def test_an_order_that_the_paths_do_not_resolve_is_not_passed():
    """Its standard error is 0.017."""
    with fails("with standard error .*, expected at most 0.0125; take more samples or a larger tolerance"):
        check_order(mls.euler_maruyama, geometric_brownian_motion(), 0.5, tolerance=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": (16, 32)}, r'"steps" must be at least 3 increasing numbers, got \[16, 32\]'),
        ({"steps": (16, 32, 32)}, r'"steps" must be at least 3 increasing numbers, got \[16, 32, 32\]'),
        ({"samples": 15}, '"samples" must be at least 16, got 15'),
    ],
)
def test_arguments_of_check_order(options, message):
    with refused(message):
        check_order(mls.euler_maruyama, scaling_law(3.0), 1.0, **options)
