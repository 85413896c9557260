"""Laws of plans that remember: orders of convergence, exactness, and unbiasedness by enumeration of all draws."""

import math
from itertools import pairwise, product

import pytest
import torch

import multilevel_sde as mls
from multilevel_sde.plans.memory import base_level, corrections, evaluated_levels


def grid(steps, end=1.0):
    return torch.linspace(0.0, end, steps + 1, dtype=torch.float64)


def slope(x, y):
    """Least-squares slope in log-log."""
    u, v = torch.tensor(x, dtype=torch.float64).log(), torch.tensor(y, dtype=torch.float64).log()
    u = u - u.mean()
    return float((u * v).sum() / (u * u).sum())


def spread(steps, distance, first=0):
    """Hits of the upper of two levels at every so manieth step."""
    hits = torch.ones(steps, 2, dtype=torch.bool)
    hits[:, 1] = False
    hits[first::distance, 1] = True
    return mls.Plan(hits, hits.double())


# -- multistep bases --------------------------------------------------------------------------------------------------

SINE = mls.Ladder([lambda y, t: -torch.sin(y)], costs=[1.0])


def sine_at(y0, t):
    return 2 * torch.atan(torch.tan(y0 / 2) * math.exp(-t))


UNEVEN = torch.tensor([0.0, 0.1, 0.15, 0.4, 0.45, 0.5, 0.8, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("noise", [None, 0.3])
@pytest.mark.parametrize("times", [UNEVEN, UNEVEN.flip(0)], ids=["up", "down"])
@pytest.mark.parametrize("order", [1, 2])
def test_adams_bashforth_by_recall_is_the_adams_bashforth_rule(order, times, noise):
    y0, step = torch.linspace(0.2, 2.0, 5, dtype=torch.float64), mls.AdamsBashforth(order=order)
    options = {"diffusion": noise, "brownian": mls.BrownianPath(range(5), grid=times)} if noise else {}
    plan = mls.multistep(mls.em_plan(SINE, times), mls.adams_bashforth_weights(times, order))
    found = mls.solve(SINE, y0, times, plan, **options).y
    rule = mls.solve(SINE, y0, times, mls.em_plan(SINE, times, step=step), step=step, **options).y
    torch.testing.assert_close(found, rule, rtol=1e-13, atol=1e-14)
    assert plan.evaluations.tolist() == [7]


@pytest.mark.parametrize("order", [1, 2])
def test_a_multistep_base_has_its_order(order):
    y0, counts, errors = torch.linspace(0.2, 2.0, 5, dtype=torch.float64), (10, 20, 40, 80, 160), []
    for steps in counts:
        plan = mls.multistep(mls.em_plan(SINE, grid(steps)), mls.adams_bashforth_weights(grid(steps), order))
        errors.append(float((mls.solve(SINE, y0, grid(steps), plan).y - sine_at(y0, 1.0)).square().mean().sqrt()))
    assert slope(counts, errors) == pytest.approx(-order, abs=0.1)


def test_corrections_stay_out_of_the_history():
    """y' = f^0 + w (f^1 - f^0) with weights at single steps: the base is extrapolated, the correction is not."""
    steps, drifts = 12, [lambda y, t: -y, lambda y, t: -y * (1 + 0.3 * torch.cos(5 * t))]
    ladder, times = mls.Ladder(drifts, costs=[1.0, 9.0]), grid(steps)
    weights = torch.ones(steps, 2, dtype=torch.float64)
    weights[:, 1] = torch.tensor([0.0, 2.5, 0.0] * 4)
    plan = mls.multistep(mls.Plan(weights != 0, weights), mls.adams_bashforth_weights(times, 2))
    y, before = torch.ones(3, dtype=torch.float64), None
    found = mls.solve(ladder, y, times, plan)
    for n, (t, s) in enumerate(pairwise(times)):
        low, high = (drift(y, t) for drift in drifts)
        mixed = low if before is None else 1.5 * low - 0.5 * before
        y, before = y + (s - t) * (mixed + weights[n, 1] * (high - low)), low
    torch.testing.assert_close(found.y, y, rtol=1e-13, atol=0)
    assert found.stats.evaluations.tolist() == [steps, 4]


def test_the_base_is_the_highest_level_that_is_never_left_out():
    weights = torch.ones(4, 3, dtype=torch.float64)
    assert base_level(mls.Plan(weights != 0, weights)) == 2
    weights[1, 2] = 0.5
    assert base_level(mls.Plan(weights != 0, weights)) == 1
    assert evaluated_levels(mls.Plan(weights != 0, weights)) == (1, 2)
    weights[3, 1] = 0.0
    plan = mls.Plan(weights != 0, weights)
    assert base_level(plan) == 0
    assert corrections(plan) == [((0, 1), [0, 1, 2]), ((1, 2), [0, 1, 2, 3])]


# -- held corrections -------------------------------------------------------------------------------------------------

# y' = -sin y + g(t) from a base -0.8 y: both levels smooth in y and t.
SMOOTH = mls.Ladder(
    [lambda y, t: -0.8 * y, lambda y, t: -torch.sin(y) + 0.5 * torch.cos(3 * t).to(y)], costs=[1.0, 8.0]
)
START = torch.linspace(0.2, 2.0, 5, dtype=torch.float64)
FINE = 960


def reference():
    """The top level by AdamsBashforth of order 3 at 960 steps, itself exact to 1e-9."""
    step = mls.AdamsBashforth(order=3)
    return mls.solve(SMOOTH, START, grid(FINE), mls.em_plan(SMOOTH, grid(FINE), step=step), step=step).y


def held_errors(order, distances):
    times, target = grid(FINE), reference()
    base = mls.adams_bashforth_weights(times, 3)
    for distance in distances:
        plan = mls.multistep(mls.hold(spread(FINE, distance), times, order), base)
        solution = mls.solve(SMOOTH, START, times, plan)
        assert solution.stats.evaluations.tolist() == [FINE, FINE // distance]
        yield float((solution.y - target).square().mean().sqrt())


@pytest.mark.parametrize("order", [1, 2])
def test_a_held_correction_has_its_order_in_the_distance_of_the_hits(order):
    distances = (20, 40, 60, 80, 120)
    assert slope(distances, list(held_errors(order, distances))) == pytest.approx(order, abs=0.12)


def test_extrapolating_is_better_than_holding():
    assert next(held_errors(2, [60])) < 0.2 * next(held_errors(1, [60]))


def test_an_extrapolated_correction_that_is_linear_in_time_is_integrated_exactly():
    """From the second hit on, on any grid; before the first hit it is left out, to the second it is held."""
    ladder = mls.Ladder([lambda y, t: 0 * y, lambda y, t: 0 * y + 2 - 3 * t], costs=[1.0, 8.0])
    hits = torch.tensor([[True, n in (1, 3, 6)] for n in range(7)])
    for times in (UNEVEN, UNEVEN.flip(0)):
        plan = mls.hold(mls.Plan(hits, hits.double()), times, order=2)
        states = mls.solve(ladder, torch.zeros(1, dtype=torch.float64), times, plan, save=True).ys[:, 0]
        t = times[3:]
        expected = states[3] + 2 * (t - t[0]) - 1.5 * (t**2 - t[0] ** 2)
        torch.testing.assert_close(states[3:], expected, rtol=1e-13, atol=1e-13)
        held = (2 - 3 * times[1]) * (times[1:4] - times[1])
        assert states[0] == 0
        torch.testing.assert_close(states[1:4], held, rtol=1e-13, atol=0)


@pytest.mark.parametrize("order", [1, 2])
def test_a_correction_that_is_hit_at_every_step_gives_the_top_level(order):
    """At order 1 Euler's steps; at order 2, on a base of Adams-Bashforth, those of Adams-Bashforth on the top level."""
    weights = mls.adams_bashforth_weights(UNEVEN, order)
    everywhere = spread(7, 1)
    everywhere = mls.Plan(everywhere.hits, 2 * everywhere.weights - torch.tensor([1.0, 0.0]))  # a correction, no base
    assert base_level(everywhere) == 0
    plan = mls.multistep(mls.hold(everywhere, UNEVEN, order), weights)
    found = mls.solve(SMOOTH, START, UNEVEN, plan).y
    top = mls.solve(SMOOTH, START, UNEVEN, mls.multistep(mls.em_plan(SMOOTH, UNEVEN), weights)).y
    torch.testing.assert_close(found, top, rtol=1e-13, atol=1e-14)


ODD = 945  # has many odd divisors: hits lie in the middle of the steps that they stand for


def impulse_errors(drifts, distances):
    """Mean signed error to the top level on the same grid, for corrections that are weighted with the distance."""
    ladder, times = mls.Ladder(drifts, costs=[1.0, 8.0]), grid(ODD)
    target = mls.solve(ladder, START, times, mls.em_plan(ladder, times)).y
    for distance in distances:
        plan = spread(ODD, distance, first=distance // 2)
        impulses = mls.Plan(plan.hits, plan.weights * torch.tensor([1.0, distance]))
        yield float((mls.solve(ladder, START, times, impulses).y - target).mean())


def test_centred_impulses_are_of_second_order_where_the_correction_does_not_feel_them():
    drifts = [lambda y, t: -torch.sin(y), lambda y, t: -torch.sin(y) + 0.5 * torch.cos(3 * t).to(y)]
    distances = (15, 27, 45, 63, 105)
    errors = [abs(error) for error in impulse_errors(drifts, distances)]
    assert slope(distances, errors) == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("c", [-0.4, 0.8])
def test_centred_impulses_leave_a_term_of_first_order_in_the_distance_and_second_in_the_correction(c):
    """With f^0 = 0 and D = c y each impulse is an Euler step of H: the error is that of 1/H steps, -H c^2 / 2 e^c."""
    for distance in (9, 15):
        error = next(impulse_errors([lambda y, t: 0 * y, lambda y, t: c * y], [distance]))
        first = -(distance - 1) / ODD * c**2 / 2 * math.exp(c) * float(START.mean())
        assert error == pytest.approx(first, rel=0.03)


# -- stored corrections as control variates ---------------------------------------------------------------------------

LINEAR = mls.Ladder(
    [lambda y, t: -y, lambda y, t: -1.4 * y + 0.3 * t, lambda y, t: -1.2 * y + 0.5 * t * y], costs=[1.0, 8.0, 64.0]
)


def every_draw(p):
    """All plans of independent draws from p with their probabilities."""
    free = ((p > 0) & (p < 1)).nonzero().tolist()
    for bits in product([True, False], repeat=len(free)):
        hits, chance = p == 1, 1.0
        for (n, k), bit in zip(free, bits, strict=True):
            hits[n, k] = bit
            chance *= float(p[n, k]) if bit else 1 - float(p[n, k])
        yield mls.Plan(hits, torch.where(hits, 1 / p, 0.0)), chance


def moments(ladder, p, coefficient, times):
    """Mean and mean square of the error to the top level's path over all draws; each costs what it does without."""
    y0 = torch.tensor([1.5], dtype=torch.float64)
    target = mls.solve(ladder, y0, times, mls.em_plan(ladder, times)).y
    mean = square = total = 0.0
    for plan, chance in every_draw(p):
        stored = mls.remember(plan, p, coefficient)
        error = float(mls.solve(ladder, y0, times, stored).y - target)
        mean, square, total = mean + chance * error, square + chance * error**2, total + chance
    assert total == pytest.approx(1.0, rel=1e-12)
    return mean, square


COEFFICIENTS = [lambda level, n, h: 1.0, lambda level, n, h: -2.3 + 0.7 * n - 1.9 * h + 5 * level]
TWO = torch.tensor([[1.0, 0.3], [1.0, 0.6], [1.0, 0.25], [1.0, 0.5]], dtype=torch.float64)
THREE = torch.tensor([[1.0, 0.6, 0.3], [1.0, 0.5, 0.5], [1.0, 1.0, 0.25], [1.0, 0.5, 0.4]], dtype=torch.float64)


@pytest.mark.parametrize("coefficient", COEFFICIENTS)
@pytest.mark.parametrize("p", [TWO, THREE], ids=["two levels", "three levels"])
def test_stored_corrections_are_unbiased_whatever_their_coefficient(p, coefficient):
    """The problem is linear, so the mean over all draws is exactly the top level's path."""
    mean, square = moments(LINEAR.subset(list(range(p.shape[1]))), p, coefficient, grid(4))
    assert mean == pytest.approx(0.0, abs=1e-14)
    assert square > 1e-4


@pytest.mark.parametrize("p", [TWO, THREE], ids=["two levels", "three levels"])
def test_without_a_coefficient_the_plan_stays_as_it_is(p):
    for plan, _ in every_draw(p):
        assert mls.remember(plan, p, lambda level, n, h: 0.0) == plan


def test_a_correction_that_never_changes_is_known_from_its_first_hit_on():
    """D is constant: with the coefficient 1 what follows the first hit is exact, whatever the draw."""
    ladder = mls.Ladder([lambda y, t: -y, lambda y, t: -y + 0.7], costs=[1.0, 8.0])
    p = torch.tensor([[1.0, 1.0], *[[1.0, 0.3]] * 6], dtype=torch.float64)
    mean, square = moments(ladder, p, COEFFICIENTS[0], grid(7))
    assert abs(mean) < 1e-14
    assert square < 1e-28
    assert moments(ladder, p, lambda level, n, h: 0.0, grid(7))[1] > 1e-3


def test_memory_lowers_the_variance_where_corrections_change_slowly():
    """Exact variances over all 128 draws after a sure first hit; D = y - sin y changes by 6% a step."""
    ladder = mls.Ladder([lambda y, t: -y, lambda y, t: -torch.sin(y)], costs=[1.0, 8.0])
    p = torch.tensor([[1.0, 1.0], *[[1.0, 0.5]] * 7], dtype=torch.float64)
    plain, stored = (moments(ladder, p, lambda *_, c=c: c, grid(8, 0.25)) for c in (0.0, 1.0))
    assert stored[1] < 0.03 * plain[1]
    assert abs(stored[0]) < 0.1 * math.sqrt(stored[1])  # not linear, so not exactly zero


def test_what_is_recalled_is_the_last_hit_before_each_step():
    hits = torch.tensor([[True, n in (1, 2, 5)] for n in range(8)])
    p = torch.tensor([1.0, 0.5]).expand(8, 2)
    plan = mls.Plan(hits, torch.where(hits, 1 / p.double(), 0.0))
    stored = mls.remember(plan, p, lambda level, n, h: 100 * level + 10 * n + h)
    assert stored.recall is not None
    upper = {(n, h): value for n, k, h, value in stored.recall.entries if k == 1}
    lower = {(n, h): -value for n, k, h, value in stored.recall.entries if k == 0}
    last = {2: 1, 3: 2, 4: 2, 5: 2, 6: 5, 7: 5}
    assert upper == lower
    assert upper == {(n, h): (100 + 10 * n + h) * (1 - 2 * (n in (2, 5))) for n, h in last.items()}


def test_a_level_that_is_left_out_is_not_remembered_either():
    """Levels 1 and 2 share their draws: the plan never evaluates level 1, and its memory is of f^2 - f^0."""
    p = torch.tensor([1.0, 0.5, 0.5], dtype=torch.float64).expand(6, 3)
    plan = mls.draw_plan(p, mls.nested, generator=torch.Generator().manual_seed(3))
    assert evaluated_levels(plan) == (0, 2)
    two = mls.Plan(plan.hits[:, [0, 2]], plan.weights[:, [0, 2]])
    times, y0 = grid(6), torch.ones(2, dtype=torch.float64)
    pairs = [
        (mls.remember(plan, p, lambda level, n, h: 0.4 * level), mls.remember(two, p[:, [0, 2]], lambda *_: 0.8)),
        (mls.hold(plan, times, 1), mls.hold(two, times, 1)),
        (mls.hold(plan, times, 2), mls.hold(two, times, 2)),
    ]
    for three_levels, two_levels in pairs:
        assert three_levels.evaluations[[0, 2]].tolist() == two_levels.evaluations.tolist()
        assert three_levels.evaluations[1] == 0
        found = mls.solve(LINEAR, y0, times, three_levels).y
        expected = mls.solve(LINEAR.subset([0, 2]), y0, times, two_levels).y
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)


def test_memory_costs_nothing_unless_it_needs_a_network_that_the_plan_spared():
    base = mls.adams_bashforth_weights(grid(4), 2)
    for p in (TWO, THREE):
        spared = 0
        for plan, _ in every_draw(p):
            stored, weights = mls.remember(plan, p, lambda level, n, h: 0.4 * level), plan.weights
            assert not (plan.needed & ~stored.needed).any()
            for n, k in (stored.needed & ~plan.needed).nonzero().tolist():
                assert weights[n, k] == weights[n, k + 1] != 0
                spared += 1
            assert torch.equal(mls.multistep(plan, base).needed[:, 1:], plan.needed[:, 1:])
        assert (spared > 0) == (p is THREE)


def test_memory_does_not_hide_that_a_plan_is_truncated():
    p = torch.tensor([[1.0, 0.5, 0.0]] * 4, dtype=torch.float64)
    plan = mls.draw_plan(p, generator=torch.Generator().manual_seed(0), truncate=True)
    base = mls.adams_bashforth_weights(grid(4), 2)
    for memory in (mls.remember(plan, p, lambda *_: 1.0), mls.hold(plan, grid(4)), mls.multistep(plan, base)):
        assert memory.truncated
        assert memory.recall is not None


def test_memories_are_combined():
    """A multistep base under stored corrections: both sums of the docstrings, by hand."""
    p, times = THREE[:, [0, 1]], grid(4)
    drifts, base = LINEAR.drifts, mls.adams_bashforth_weights(times, 2)
    for plan, _ in every_draw(p):
        both = mls.multistep(mls.remember(plan, p, lambda *_: 0.8), base)
        y, history, known = torch.ones(2, dtype=torch.float64), [], None
        found = mls.solve(LINEAR.subset([0, 1]), y, times, both).y
        for n, (t, s) in enumerate(pairwise(times)):
            low, high = drifts[0](y, t), drifts[1](y, t)
            history.append(low)
            estimate = sum(float(base[n, j]) * history[n - j] for j in range(2) if j <= n)
            estimate = estimate + plan.weights[n, 1] * (high - low)
            if known is not None:
                estimate = estimate + 0.8 * (1 - plan.weights[n, 1]) * known
            if plan.hits[n, 1]:
                known = high - low
            y = y + (s - t) * estimate
        torch.testing.assert_close(found, y, rtol=1e-13, atol=1e-14)
