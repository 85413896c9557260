"""Formulas of schedules at the ends of what a float can hold: a table of probabilities, or one sentence."""

import math

import pytest
import torch

import multilevel_sde as mls
from multilevel_sde.plans.draws import independent, nested, systematic

TIMES = [0.0, 0.5, 1.0]
COSTS = [[1.0, 8.0], [1e-70, 1e70], [1e-75, 2e-75, 4e-75], [0.3, 1.0, 1.5], [1e60, 2e60, 1e70]]
EXTREMES = [5e-324, 1e-300, 1e-4, 1.0, 1e4, 1e300, 1.7e308]


def ladder_of(costs):
    return mls.Ladder([lambda x, t, k=k: -k * x for k in range(len(costs))], costs=costs)


@pytest.mark.parametrize("costs", COSTS, ids=str)
@pytest.mark.parametrize("gamma", EXTREMES)
@pytest.mark.parametrize("beta", EXTREMES)
def test_the_theorem_meets_every_budget_whatever_its_exponents(costs, gamma, beta):
    ladder, schedule = ladder_of(costs), mls.TheoremSchedule(gamma, beta)
    low, high = 2 * costs[0], 2 * costs[-1]
    for part in (0.01, 0.3, 0.99, 1.0):
        for draw in (systematic, independent, nested):
            budget = low + part * (high - low)
            p = schedule.probabilities(ladder, TIMES, budget=budget, draw=draw)
            assert bool(((p > 0) & (p <= 1)).all())
            assert mls.expected_cost(ladder, p, draw) == pytest.approx(budget, rel=1e-9)
    for scale in EXTREMES:
        p = schedule.probabilities(ladder, TIMES, scale=scale)
        assert bool(((p > 0) & (p <= 1)).all())
        p = mls.InverseCostSchedule().probabilities(ladder, TIMES, scale=scale)
        assert bool(((p > 0) & (p <= 1)).all())


def test_levels_keep_their_order_where_a_float_holds_none_of_the_powers():
    """8^-5000 and 64^-5000 are both 0 in a float, but the second is by far the smaller."""
    p = mls.TheoremSchedule(1e-4, beta=1.0).probabilities(ladder_of([1.0, 8.0, 64.0]), TIMES, budget=8.0)
    assert p[0, 1] == pytest.approx((8.0 - 2.0) / 2 / (8.0 + 1.0 - 1.0), rel=0.2)
    assert p[0, 2] < 1e-100


@pytest.mark.parametrize("gamma", [1.0, 3.0, 10.0])
def test_where_a_float_holds_them_the_powers_are_those_of_the_formula(gamma):
    p = mls.TheoremSchedule(gamma).probabilities(ladder_of([1.0, 16.0, 256.0]), TIMES, scale=0.5)
    assert p[0, 1:].tolist() == pytest.approx([0.5 * cost ** (-(gamma + 2) / (2 * gamma)) for cost in (16.0, 256.0)])


@pytest.mark.parametrize("largest", [1e-300, 1.0, 1e300, math.inf])
@pytest.mark.parametrize("least", [5e-324, 1e-200, 0.5])
def test_a_shape_of_any_size_is_scaled_to_a_budget(largest, least):
    ladder = ladder_of([1.0, 8.0, 64.0])
    shape = torch.tensor([[1.0, largest, largest * least if largest < math.inf else least]], dtype=torch.float64)
    shape = shape.clamp_min(5e-324)
    for budget in (1.5, 20.0, 63.0):
        p = mls.scale_to_budget(ladder, shape, budget)
        assert mls.expected_cost(ladder, p) == pytest.approx(budget, rel=1e-9)


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan])
def test_a_shape_that_is_not_positive_is_named(wrong):
    shape = torch.tensor([[1.0, 0.5], [1.0, wrong]])
    with pytest.raises(ValueError, match=rf'"shape" must be positive, got {wrong} at step 1, level 2'):
        mls.scale_to_budget(ladder_of([1.0, 8.0]), shape, 3.0)
    for other in (torch.ones(2), torch.ones(2, 3), torch.ones(0, 2)):
        with pytest.raises(ValueError, match=r'"shape" must be \(steps, levels\) with 2 levels, got'):
            mls.scale_to_budget(ladder_of([1.0, 8.0]), other, 3.0)


@pytest.mark.parametrize("cost", [5e-324, 1e-76, 1e76, 1e308])
def test_costs_whose_products_are_no_numbers_are_refused(cost):
    costs = [cost, 1.0] if cost < 1 else [1.0, cost]
    with pytest.raises(ValueError, match=r'"costs\[[01]\]" must lie between 1e-75 and 1e\+75, .* choose another unit'):
        ladder_of(costs)


@pytest.mark.parametrize("value", [1e101, 1e308, -1e200])
def test_learned_parameters_whose_sums_are_no_numbers_are_refused(value):
    for arguments in (((value,), (0.0,), 0.1), ((0.0,), (value,), 0.1)):
        with pytest.raises(ValueError, match=r'"alphas", "betas" and "delta" must be finite and at most 1e\+100'):
            mls.LearnedSchedule(*arguments)


def test_the_largest_learned_parameters_meet_a_budget():
    schedule, ladder = mls.LearnedSchedule((1e100,), (-1e100,), 0.5), ladder_of([1.0, 8.0])
    p = schedule.probabilities(ladder, TIMES, budget=9.0)
    assert bool(((p > 0) & (p <= 1)).all())
    assert mls.expected_cost(ladder, p) <= 9.0 * (1 + 1e-9)


@pytest.mark.parametrize("says", [1.5, None, "11", [1, True], [1, 1.0]])
def test_a_rule_that_does_not_say_how_often_it_evaluates(says):
    class Rule(mls.StepRule):
        def evaluations(self, times):
            return says

        def start(self, times):
            raise AssertionError

    with pytest.raises(ValueError, match=r"Rule.evaluations must return 2 counts of at least 0, one for each step"):
        mls.plan_rows(Rule(), TIMES)
