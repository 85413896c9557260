"""Laws of multilevel_sde.testing: strategies make what they say; a check passes what is right and names what is not."""

import itertools
import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

import multilevel_sde as mls
from multilevel_sde.problems import geometric_brownian_motion, ornstein_uhlenbeck, scaling_law
from multilevel_sde.testing import (
    check_ladder,
    check_order,
    check_rates,
    check_unbiased,
    grids,
    ladders,
    plans,
    probabilities,
    states,
)

DOUBLE = torch.float64
TIMES = torch.linspace(0.0, 1.0, 5, dtype=DOUBLE)
PAGE = Path(__file__).parent.parent / "docs" / "testing.md"


def fails(message):
    return pytest.raises(AssertionError, match=message)


def refused(message):
    return pytest.raises(ValueError, match=message)


def some(strategy, condition=lambda value: True):
    """Some example that fits a condition, not the least one."""
    return find(strategy, condition, settings=settings(phases=[Phase.generate], max_examples=300))


# -- strategies -------------------------------------------------------------------------------------------------------


@given(ladder=ladders(min_levels=2, max_levels=4, max_ratio=8.0), y=states(), t=st.floats(0.0, 1.0))
def test_ladders_are_ladders(ladder, y, t):
    assert 2 <= len(ladder) <= 4
    assert all(1.01 - 1e-12 <= b / a <= 8.0 + 1e-12 for a, b in itertools.pairwise(ladder.costs))
    time, limit = torch.tensor(t), -torch.sin(y)
    for k, drift in enumerate(ladder.drifts):
        value = drift(y, time)
        assert (value.shape, value.dtype) == (y.shape, y.dtype)
        assert (value - limit).abs().max() <= 0.7 ** (k + 1) + 1e-12
        assert torch.equal(drift(y[:1], time), value[:1])


def test_ladders_approximate_the_drift_that_is_given():
    ladder = some(ladders(drift=lambda x, t: 5 * x, min_levels=5))
    x = torch.ones(1, dtype=DOUBLE)
    assert (ladder.drifts[4](x, torch.tensor(0.0)) - 5).abs() < 0.2


@pytest.mark.parametrize("descending", [None, False, True])
def test_grids_run_as_they_are_told(descending):
    @given(times=grids(min_steps=2, max_steps=7, low=-1.0, high=3.0, descending=descending, dtype=torch.float32))
    def law(times):
        assert times.dtype == torch.float32
        assert 2 <= len(times) - 1 <= 7
        assert -1.0 <= times.min() < times.max() <= 3.0
        down = bool(times[1] < times[0])
        assert ((times.diff() < 0) if down else (times.diff() > 0)).all()
        assert down == descending or descending is None
        assert times.diff().abs().min() > 3.9e-4

    law()


def test_grids_go_both_ways_even_and_uneven():
    for down, even in itertools.product((False, True), repeat=2):
        some(
            grids(min_steps=3),
            lambda g, down=down, even=even: bool(g[1] < g[0]) == down and (g.diff().std() < 1e-9) == even,
        )


@given(data=st.data(), ladder=ladders(), times=grids())
def test_probabilities_are_probabilities(data, ladder, times):
    table = data.draw(probabilities(ladder, times, smallest=0.3))
    assert table.shape == (len(times) - 1, len(ladder))
    assert ((table >= 0.3) & (table <= 1)).all()
    mls.FixedSchedule(table)
    mls.FixedSchedule(data.draw(probabilities(ladder, times, truncate=True)), truncate=True)


def test_truncated_probabilities_reach_zero_and_others_do_not():
    ladder = scaling_law(2.0, 3).ladder
    some(probabilities(ladder, TIMES, truncate=True), lambda table: bool((table[0, 1:] == 0).all()))
    some(plans(ladder, TIMES, truncate=True), lambda plan: plan.truncated)


@given(data=st.data(), ladder=ladders(max_levels=3), times=grids(max_steps=6), samples=st.sampled_from([None, 1, 3]))
def test_plans_fit_their_ladder_and_times(data, ladder, times, samples):
    plan = data.draw(plans(ladder, times, samples=samples, step=mls.Heun(), smallest=0.25))
    y0 = torch.ones(samples or 2, dtype=DOUBLE)
    assert mls.solve(ladder, y0, times, plan, step=mls.Heun()).status == "completed"
    assert plan.samples == samples
    assert plan.weights.max() <= 4.0


def test_plans_recall_where_they_may():
    ladder = scaling_law(2.0, 3).ladder
    some(plans(ladder, TIMES, recall=True), lambda plan: plan.recall is not None and len(plan.recall) > 1)
    with refused('"recall" needs one draw for the batch'):
        some(plans(ladder, TIMES, recall=True, samples=2))


@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32, torch.bfloat16])
def test_states_have_the_shape_dtype_and_bound_that_is_asked_for(dtype):
    @given(y=states(min_samples=2, max_samples=3, max_dims=2, max_side=3, bound=0.3, dtype=dtype))
    def law(y):
        assert y.dtype == dtype
        assert 2 <= len(y) <= 3
        assert y.dim() <= 3
        assert max(y.shape[1:], default=1) <= 3
        assert (y.abs() <= torch.tensor(0.3, dtype=dtype)).all()

    law()


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (ladders(min_levels=0), '"min_levels" must be at least 1, got 0'),
        (ladders(min_levels=3, max_levels=2), '"max_levels" must be at least 3, got 2'),
        (ladders(max_ratio=1.0), '"max_ratio" must be a finite number of at least 1.01, got 1.0'),
        (grids(min_steps=0), '"min_steps" must be at least 1, got 0'),
        (grids(min_steps=5, max_steps=4), '"max_steps" must be at least 5, got 4'),
        (grids(max_steps=2000), '"max_steps" must be at most 1000, got 2000'),
        (grids(low=1.0, high=1.0), '"low" must be below "high" and both finite, got 1.0 and 1.0'),
        (grids(dtype=torch.int64), '"dtype" must resolve times'),
        (grids(dtype=torch.bfloat16), '"dtype" must resolve times'),
        (grids(low=1000.0, high=1001.0, dtype=torch.float32), '"dtype" must resolve times'),
        (probabilities(scaling_law(2.0, 2).ladder, TIMES, smallest=0.0), r'"smallest" must lie in \(0, 1\], got 0.0'),
        (states(min_samples=0), '"min_samples" must be at least 1, got 0'),
        (states(min_samples=9), '"max_samples" must be at least 9, got 6'),
        (states(max_dims=-1), '"max_dims" must be at least 0, got -1'),
        (states(bound=math.inf), '"bound" must be a positive finite number, got inf'),
        (states(dtype=torch.int32), '"dtype" must be a floating-point dtype, got torch.int32'),
    ],
)
def test_arguments_of_strategies(strategy, message):
    with refused(message):
        some(strategy)


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
    with fails(r"the drift of level 1 at time 0\.25 " + message):
        check_ladder(ladder, Y, 0.25, cost=mls.GivenCost(ladder.costs))


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_mixing_below_the_tolerance_passes(size):
    """The tolerance is relative."""
    ladder = ladder_of(lambda x, t: size * WRONG["mixing"][0](x, t))
    with fails("must not mix samples"):
        check_ladder(ladder, Y, 0.0, cost=mls.GivenCost(ladder.costs), tolerance=1e-8)
    assert check_ladder(ladder, Y, 0.0, cost=mls.GivenCost(ladder.costs), tolerance=1e-5).differences == ()


def test_costs_are_really_measured():
    with fails("costs must increase with the level, got 64 for level 0 and 64 for level 1 .FLOPs."):
        check_ladder(ladder_of(*matmuls((2, 0.5), (2, 0.0))), Y, 0.0)
    with fails("costs must increase with the level, got 64 for level 1 and 32 for level 2 .FLOPs."):
        check_ladder(ladder_of(*matmuls((1, 0.5), (2, 0.1), (1, 0.0))), Y, 0.0)
    with refused("no operation that the FLOP counter sees"):
        check_ladder(ladder_of(lambda x, t: -x), Y, 0.0)


def test_differences_really_shrink():
    ladder = ladder_of(*matmuls((1, 0.5), (2, 0.4), (3, 0.0)))
    with fails(r"differences must shrink .* measured .* from level 0 to 1 and .* from level 1 to 2 \(RMS\)"):
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
    with refused('"ladder" has equal levels 1 and 2'):
        check_rates(ladder_of(*matmuls((1, 0.5), (1, 0.1), (1, 0.1))), Y, 0.0, gamma=2.0)


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


# -- the page that shows them -----------------------------------------------------------------------------------------


def test_the_page_runs():
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict = {}
    exec(compile(block, str(PAGE), "exec"), names)
    laws = [value for name, value in names.items() if name.startswith("test_")]
    assert len(laws) == 2
    for law in laws:
        settings(max_examples=2)(law)()
