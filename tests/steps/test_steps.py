"""Laws of step rules: orders on problems with an exact solution, rows of the plan, memory that a solve starts anew."""

import math

import numpy as np
import pytest
import torch

import multilevel_sde as mls
from multilevel_sde.solver import estimators, loop
from multilevel_sde.steps.adams import interpolation_weights
from multilevel_sde.testing import check_order

DOUBLE = torch.float64
RULES = [mls.Heun(), mls.Midpoint(), mls.AdamsBashforth(2), mls.AdamsBashforth(3)]
NAMES = ["heun", "midpoint", "adams2", "adams3"]


class OneCall(mls.StepRule):
    """Euler-Maruyama written as a rule."""

    def evaluations(self, times):
        return [1] * (len(times) - 1)

    def start(self, times):
        return lambda y, F, t, s, noise: mls.euler_maruyama(y, F(y, t), t, s, noise)


class Calls(mls.StepRule):
    """A rule that says one thing and does another."""

    def __init__(self, says, does):
        self.says, self.does = says, does

    def evaluations(self, times):
        return self.says

    def start(self, times):
        return lambda y, F, t, s, noise: y + sum(F(y, t) for _ in range(self.does))


def solve(rule, ladder, y0, times, plan=None, **options):
    plan = mls.em_plan(ladder, times, step=rule) if plan is None else plan
    return mls.solve(ladder, y0, times, plan, step=rule, **options)


def ladder_of(drift):
    return mls.Ladder([drift], costs=[1.0])


def pair():
    """Two nonlinear drifts that depend on the time."""
    return mls.Ladder([lambda y, t: torch.sin(y) - t.to(y), lambda y, t: torch.sin(1.1 * y) - t.to(y)], [1.0, 8.0])


def slope(counts, errors):
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


# -- orders -----------------------------------------------------------------------------------------------------------


def uniform(n):
    return torch.linspace(0.0, 2.0, n + 1, dtype=DOUBLE)


def uneven(n):
    """Steps that grow from h to 5 h, and back in time."""
    u = torch.linspace(1.0, 0.0, n + 1, dtype=DOUBLE)
    return 2.0 * u * (1 + 2 * u) / 3


@pytest.mark.parametrize("grid", [uniform, uneven])
@pytest.mark.parametrize(("rule", "order"), [*zip(RULES, [2, 2, 2, 3], strict=True), (mls.AdamsBashforth(1), 1)])
def test_order_for_an_ode(rule, order, grid):
    """y' = -2 t y^2, y = 1 / (1 + t^2): nonlinear and with the time in it."""
    counts, errors = [40, 80, 160, 320], []
    for n in counts:
        times = grid(n)
        start, end = (1 / (1 + times[i] ** 2) for i in (0, -1))
        y = solve(rule, ladder_of(lambda y, t: -2 * t * y**2), start.reshape(1), times).y
        errors.append(float((y - end).abs()))
    assert slope(counts, errors) == pytest.approx(order, abs=0.15), errors


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_strong_order_one_with_additive_noise(rule):
    check_order(rule, mls.problems.decaying_noise(alpha=0.8, beta=1.5), 1.0, tolerance=0.1)


@pytest.mark.parametrize("rule", RULES[:2], ids=NAMES[:2])
def test_little_noise_leaves_the_second_order_drift(rule):
    """dX = -X^3 dt + 0.01 dW, 16 steps: less than a tenth of Euler-Maruyama's error."""
    times, path = uniform(16), mls.BrownianPath(range(200), grid=uniform(4096))
    ladder, y0 = ladder_of(lambda y, t: -(y**3)), torch.ones(200, dtype=DOUBLE)
    noise = {"diffusion": 0.01, "brownian": path}
    exact = solve(rule, ladder, y0, uniform(4096), **noise).y
    error, euler = ((solve(r, ladder, y0, times, **noise).y - exact).square().mean().sqrt() for r in (rule, OneCall()))
    assert error < 0.1 * euler


def test_one_step_of_each_rule_is_its_formula_with_noise():
    y, dw, h = torch.tensor([0.4, -1.0], dtype=DOUBLE), torch.tensor([0.2, 0.5], dtype=DOUBLE), 0.5

    def f(y, t):
        return torch.cos(y) * (1 + t)

    noise = {"diffusion": 2.0, "brownian": lambda t, s: dw}
    heun = solve(mls.Heun(), ladder_of(f), y, [0.5, 1.0], **noise).y
    ahead = y + h * f(y, 0.5) + 2 * dw
    torch.testing.assert_close(heun, y + h / 2 * (f(y, 0.5) + f(ahead, 1.0)) + 2 * dw, rtol=1e-14, atol=0)
    middle = solve(mls.Midpoint(), ladder_of(f), y, [0.5, 1.0], **noise).y
    ahead = y + h / 2 * f(y, 0.5) + dw
    torch.testing.assert_close(middle, y + h * f(ahead, 0.75) + 2 * dw, rtol=1e-14, atol=0)


# -- weights ----------------------------------------------------------------------------------------------------------


def test_adams_bashforth_weights_of_a_uniform_grid_are_the_classical_ones():
    weights = mls.adams_bashforth_weights(uniform(6), 4)
    rows = [[1, 0, 0, 0], [3 / 2, -1 / 2, 0, 0], [23 / 12, -16 / 12, 5 / 12, 0], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
    torch.testing.assert_close(weights[:4], torch.tensor(rows, dtype=DOUBLE), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(weights[5], weights[3], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_adams_bashforth_weights_integrate_polynomials(order):
    times = uneven(12)
    weights = mls.adams_bashforth_weights(times, order)
    for degree in range(order):
        for n in range(order - 1, 12):
            integral = (times[n + 1] ** (degree + 1) - times[n] ** (degree + 1)) / (degree + 1)
            values = times[: n + 1].flip(0)[:order] ** degree
            summed = (times[n + 1] - times[n]) * (weights[n] * values).sum()
            assert float(summed) == pytest.approx(float(integral), rel=1e-11, abs=1e-13)


def test_the_table_makes_of_euler_what_the_rule_does():
    """The estimate sum_j w[n, j] F_{n-j} in Euler's step; the values are those of the drift along the rule's states."""
    ladder, times, y0 = pair(), uneven(10), torch.linspace(-1.0, 1.0, 5, dtype=DOUBLE)
    ys = solve(mls.AdamsBashforth(2), ladder, y0, times, save=True).ys
    weights, values, y = mls.adams_bashforth_weights(times, 2), [], y0
    for n in range(10):
        values.insert(0, ladder.drifts[1](y, times[n]))
        effective = sum(w * v for w, v in zip(weights[n].tolist(), values, strict=False))
        y = y + (times[n + 1] - times[n]) * effective
        torch.testing.assert_close(ys[n + 1], y, rtol=1e-13, atol=1e-13)


def test_interpolation_weights_are_lagrange_polynomials_where_the_moments_are_powers():
    nodes = [0.0, 1.0, 3.0]
    assert interpolation_weights(nodes, [1.0, 3.0, 9.0]) == pytest.approx([0.0, 0.0, 1.0])
    assert interpolation_weights(nodes, [1.0, 2.0, 4.0]) == pytest.approx([-1 / 3, 1.0, 1 / 3])


# -- the plan ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [None, 4])
@pytest.mark.parametrize("sigma", [None, 0.7])
def test_a_rule_of_one_call_is_the_plain_step_bit_for_bit(sigma, samples):
    ladder, times, y0 = pair(), uneven(20), torch.linspace(-2.0, 2.0, 12, dtype=DOUBLE).reshape(4, 3)
    noise = {} if sigma is None else {"diffusion": sigma, "brownian": mls.BrownianPath(range(4), grid=times)}
    p = torch.tensor([1.0, 0.4]).expand(20, 2)
    plan = mls.draw_plan(p, generator=torch.Generator().manual_seed(0), samples=samples)
    plain = mls.solve(ladder, y0, times, plan, save=True, **noise)
    rule = mls.solve(ladder, y0, times, plan, step=OneCall(), save=True, **noise)
    assert torch.equal(plain.ys, rule.ys)
    assert torch.equal(plain.stats.evaluations, rule.stats.evaluations)
    assert plain.stats.calls == rule.stats.calls


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_probability_one_is_the_top_level_alone_bit_for_bit(rule):
    ladder, times, y0 = pair(), uniform(9), torch.ones(3)
    whole, alone = (solve(rule, levels, y0, times) for levels in (ladder, ladder.top()))
    assert torch.equal(whole.y, alone.y)
    rows = len(mls.plan_rows(rule, times))
    assert whole.stats.calls == (0, rows)
    assert whole.stats.cost == 8.0 * rows
    assert whole.stats.steps == 9


def test_every_call_takes_the_next_row():
    """Heun with the top level in rows 1 and 2 only: the second call of step 0 and the first of step 1."""
    low, high = pair().drifts
    hits = torch.tensor([[1, 0], [1, 1], [1, 1], [1, 0]]).bool()
    y0, times = torch.tensor([0.3], dtype=DOUBLE), torch.tensor([0.0, 0.5, 1.5], dtype=DOUBLE)
    solution = solve(mls.Heun(), pair(), y0, times, mls.Plan(hits, hits.double()))
    y = y0
    for t, h, first, second in [(0.0, 0.5, low, high), (0.5, 1.0, high, low)]:
        a = first(y, torch.tensor(t))
        y = y + h / 2 * (a + second(y + h * a, torch.tensor(t + h)))
    torch.testing.assert_close(solution.y, y, rtol=1e-14, atol=0)
    assert solution.stats.evaluations.tolist() == [2, 2]


def test_heun_on_a_drawn_plan_has_the_mean_of_heun_for_linear_drifts():
    """Rows are drawn independently and a linear drift makes y a product of them: 4000 draws, 4 standard errors."""
    ladder = mls.Ladder([lambda y, t: -0.5 * y, lambda y, t: -1.5 * y], costs=[1.0, 8.0])
    times, y0 = uniform(4), torch.ones(4000, dtype=DOUBLE)
    p = torch.tensor([1.0, 0.3]).expand(8, 2)
    plan = mls.draw_plan(p, mls.independent, generator=torch.Generator().manual_seed(1), samples=4000)
    y = solve(mls.Heun(), ladder, y0, times, plan).y
    exact = (1 - 0.75 + 0.75**2 / 2) ** 4
    assert abs(float(y.mean()) - exact) < 4 * float(y.std()) / math.sqrt(4000)
    assert float(y.std()) > 0.1


def test_rows_of_a_plan_follow_the_counts():
    times = uniform(3)
    assert mls.plan_rows(mls.euler_maruyama, times).tolist() == [0, 1, 2]
    assert mls.plan_rows(mls.Midpoint(), times).tolist() == [0, 0, 1, 1, 2, 2]
    assert mls.plan_rows(mls.AdamsBashforth(3), times).tolist() == [0, 0, 1, 2]
    assert mls.plan_rows(Calls([0, 3, 1], 1), times).tolist() == [1, 1, 1, 2]
    assert mls.em_plan(pair(), times, step=mls.Heun()).steps == 6


def test_rows_are_unpacked_in_blocks_without_a_seam(monkeypatch):
    ladder, times, y0 = pair(), uniform(20), torch.ones(3)
    generator = torch.Generator().manual_seed(0)
    plan = mls.draw_plan(torch.tensor([1.0, 0.4]).expand(40, 2), generator=generator)
    whole = solve(mls.Heun(), ladder, y0, times, plan, save=True).ys
    for module in (estimators, loop):
        monkeypatch.setattr(module, "_BLOCK", 7)
    assert torch.equal(solve(mls.Heun(), ladder, y0, times, plan, save=True).ys, whole)


# -- memory, gradients, NaN, times ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_what_a_rule_remembers_is_made_anew_by_every_solve(rule):
    ladder, y0 = pair(), torch.ones(3, dtype=DOUBLE)
    first = solve(rule, ladder, y0, uniform(7)).y
    solve(rule, ladder, -y0, uneven(5))
    assert torch.equal(solve(rule, ladder, y0, uniform(7)).y, first)
    one, two = (rule.start(uniform(2)) for _ in range(2))
    a = [advance(y0, lambda x, t: -x, 0.0, 1.0, None) for advance in (one, two)]
    b = [advance(y, lambda x, t: x, 1.0, 2.0, None) for advance, y in zip((one, two), a, strict=True)]
    assert torch.equal(a[0], a[1])
    assert torch.equal(b[0], b[1])


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_gradients_go_through_all_estimates(rule):
    """Against central differences, of the state and of a parameter of the drift."""

    def end(y0, a):
        return solve(rule, ladder_of(lambda y, t: a * torch.sin(y) - t), y0, uniform(4), gradients=True).y

    y0 = torch.tensor([0.3, -0.8], dtype=DOUBLE, requires_grad=True)
    a = torch.tensor(0.9, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(end, (y0, a))
    ladder = ladder_of(lambda y, t: a * y)
    assert solve(rule, ladder, y0.detach(), uniform(4)).y.requires_grad
    assert not solve(rule, ladder, y0, uniform(4), gradients=False).y.requires_grad


def test_a_nan_is_found_in_the_call_that_made_it():
    """The second call of Heun's third step, at time 2/3."""
    calls = []

    def drift(y, t):
        calls.append(float(t))
        return -y if len(calls) < 6 else -y * torch.tensor([1.0, math.nan])

    with pytest.raises(mls.NonFiniteError, match=r"level 1 .* step 2, time 0\.6666\d*, samples \[1\]"):
        solve(mls.Heun(), ladder_of(drift), torch.ones(2), torch.linspace(0.0, 2.0, 10, dtype=DOUBLE))
    calls.clear()
    y = solve(mls.Heun(), ladder_of(drift), torch.ones(2), uniform(5), check_finite=False).y
    assert y.isnan().tolist() == [False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_drift_gets_times_of_the_grid(dtype):
    seen = []

    def drift(y, t):
        seen.append(t)
        return -y

    times = torch.linspace(1.0, 0.0, 4, dtype=dtype)
    solve(mls.Heun(), ladder_of(drift), torch.ones(2), times)
    assert [t.dtype for t in seen] == [dtype] * 6
    assert [t.dim() for t in seen] == [0] * 6
    assert torch.equal(torch.stack(seen), times[[0, 1, 1, 2, 2, 3]])


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mls.AdamsBashforth(4), '"order" must be 1, 2 or 3'),
        (lambda: mls.AdamsBashforth(0), '"order"'),
        (lambda: mls.plan_rows(Calls([1], 1), uniform(2)), "evaluations must return 2 counts"),
        (lambda: mls.plan_rows(Calls([1, -1], 1), uniform(2)), "counts of at least 0"),
        (lambda: solve(Calls([1, 2], 1), pair(), torch.ones(1), uniform(2)), "1 times in step 1, its evaluations"),
        (lambda: solve(Calls([1, 1], 2), pair(), torch.ones(1), uniform(2)), "at least 2 times in step 0"),
        (
            lambda: solve(mls.Heun(), pair(), torch.ones(1), uniform(2), mls.em_plan(pair(), uniform(2))),
            '"plan" has 2 rows, Heun evaluates 4 times .*plan_rows',
        ),
    ],
)
def test_errors_are_sentences(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("step", ["heun", mls.Heun, None])
def test_a_step_is_a_function_or_a_rule(step):
    with pytest.raises(TypeError, match=r'"step" must be a function .* or a StepRule such as mls.Heun\(\)'):
        mls.solve(pair(), torch.ones(1), uniform(2), mls.em_plan(pair(), uniform(2)), step=step)
