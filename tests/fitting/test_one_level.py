"""Plans of one level alone, by every method on every grid, and fits that start from them."""

import math
from functools import partial

import pytest
import torch

import multilevel_sde as mls
from multilevel_sde.fitting.perturbed_runs import Parts
from multilevel_sde.pilots.answers import Form


def grid(steps):
    return torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64)


def problem():
    """A pendulum and its linear form, and states to begin with."""
    ladder = mls.Ladder([lambda y, t: -y, lambda y, t: -torch.sin(y)], costs=[1.0, 30.0])
    return ladder, torch.linspace(0.2, 2.0, 16, dtype=torch.float64)[:, None]


def test_plans_of_one_level_are_those_of_its_methods_on_every_grid():
    ladder, _ = problem()
    found = mls.single_plans(
        ladder,
        [grid(4), grid(6)],
        [partial(mls.adams_bashforth_weights, order=2), partial(mls.adams_bashforth_weights, order=1)],
        level=0,
    )
    assert [(one.plan.steps, one.levels, one.form) for one in found] == [(n, (0,), Form.ALONE) for n in (4, 4, 6, 6)]
    for one, order in zip(found, (2, 1, 2, 1), strict=True):
        alone = mls.Ladder(ladder.drifts[:1], [1.0])
        table = mls.adams_bashforth_weights(one.times, order)
        same = mls.multistep(mls.em_plan(alone, one.times), table)
        y0 = torch.linspace(-2.0, 2.0, 10, dtype=torch.float64).reshape(5, 2)
        y = mls.solve(ladder, y0, one.times, one.plan).y
        assert torch.equal(y, mls.solve(alone, y0, one.times, same).y)
        assert one.predicted.cost == one.plan.cost(ladder) == one.plan.steps
        assert math.isnan(one.predicted.mse)
    top = mls.single_plans(ladder, grid(4))
    assert [one.plan.cost(ladder) for one in top] == [120.0] * 3


def test_grids_are_any_sequences_and_states_have_any_shape():
    ladder, y0 = problem()
    target = 2 * torch.atan(torch.tan(y0 / 2) / math.e)
    found = mls.fit_plan(ladder, y0, mls.single_plans(ladder, [grid(4)]), target)
    for grids in (grid(4), [grid(4).tolist()], [grid(4).numpy()], grid(4)[None]):
        plans = mls.single_plans(ladder, grids)
        same = mls.fit_plan(ladder, y0[:, 0], plans, target[:, 0])
        assert same.plan == found.plan
        assert same.held_out == found.held_out


def test_a_fit_may_use_more_values_than_its_candidates_do():
    ladder, y0 = problem()
    target = 2 * torch.atan(torch.tan(y0 / 2) / math.e)
    euler = mls.single_plans(ladder, [grid(4)], [partial(mls.adams_bashforth_weights, order=1)])
    assert len(mls.fit_plan(ladder, y0, euler, target).errors) == 1  # it has nothing to move
    for order in (2, 3):
        found = mls.fit_plan(ladder, y0, euler, target, order=order)
        assert found.held_out[1] < 0.1 * found.held_out[0]
        assert Parts.of(found.plan).base.shape == (4, order)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"grids": []}, ValueError, '"grids" and "bases" must hold at least one each'),
        ({"bases": []}, ValueError, '"grids" and "bases" must hold at least one each'),
        ({"grids": 3}, TypeError, '"grids" must be a sequence of grids of times'),
        ({"level": 2}, ValueError, '"level" must lie between -2 and 1, got 2'),
        ({"level": 0.5}, TypeError, '"level" must be an integer, got float'),
        ({"grids": [1.0, 0.5]}, ValueError, '"times" must be a 1-d grid'),
        ({"grids": [[0.0, 1.0, 0.5]], "bases": [lambda times: torch.ones(2, 1)]}, ValueError, "increasing or strictly"),
        ({"bases": [3]}, TypeError, '"bases" must be functions of a grid, got int'),
        ({"bases": [lambda times: "Euler"]}, TypeError, '"bases" must be'),
        (
            {"bases": [lambda times: torch.ones(3, 1)]},
            ValueError,
            r'"bases" must have shape \(4, order\), got \(3, 1\)',
        ),
        (
            {"bases": [lambda times: torch.ones(4, 2)]},
            ValueError,
            '"bases" must have rows with sum 1, .* row 0 has sum 2',
        ),
        ({"bases": [lambda times: torch.ones(4, 1) * torch.nan]}, ValueError, "row 0 has sum nan"),
        ({"bases": [lambda times: torch.tensor([[1.5, -0.5]] * 4)]}, ValueError, "row 0 has 1 of them, .* 1 = -0.5"),
    ],
)
def test_what_makes_no_plans_of_one_level_is_refused(change, error, message):
    ladder, _ = problem()
    with pytest.raises(error, match=message):
        mls.single_plans(ladder, **{"grids": [grid(4)], **change})
