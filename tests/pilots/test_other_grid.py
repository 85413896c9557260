"""Single levels on another grid than the candidates': the best of them may be there, and the advice must know."""

import dataclasses

import pytest
import torch

import multilevel_sde as mls
from multilevel_sde.pilots.curves import Alone
from multilevel_sde.pilots.trial import typical

FINE = torch.linspace(0, 1, 129, dtype=torch.float64)
STATES = torch.linspace(0.5, 1.5, 16, dtype=torch.float64)[:, None]


def layered(error):
    """All that happens is near the start."""
    return lambda y, t: -20 * torch.exp(-20 * t) * (y + error * torch.cos(3 * y))


LADDER = mls.Ladder([layered(1.0), layered(0.0)], [1.0, 2.0])
BUDGET = 16 * 2.0


def early(steps):
    """Times that are dense near the start, all of the finest grid."""
    index = (128 * torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** 2).round().long()
    for n in range(1, steps + 1):
        index[n] = max(int(index[n]), int(index[n - 1]) + 1)
    return FINE[index]


@pytest.fixture(scope="module")
def pilot():
    return mls.pilot(LADDER, STATES, FINE, candidates=64, other_grid=early)


def test_the_best_single_level_may_be_on_the_other_grid(pilot):
    plain = mls.pilot(LADDER, STATES, FINE, candidates=64)
    here, there = plain.single(budget=BUDGET), pilot.single(budget=BUDGET)
    assert torch.equal(there.times, early(len(there.times) - 1))
    errors = []
    for one in (here, there):
        target = mls.solve(LADDER, STATES, FINE, mls.em_plan(LADDER, FINE)).y
        measured = float((mls.solve(LADDER, STATES, one.times, one.plan).y - target).square().mean())
        assert measured == pytest.approx(one.predicted.mse, rel=0.1)
        errors.append(measured)
    assert errors[1] < 0.2 * errors[0]
    assert pilot.single_cost(there.predicted.mse) <= there.predicted.cost < plain.single_cost(there.predicted.mse)


def test_the_words_name_the_other_grid(pilot):
    alike = dataclasses.replace(pilot, costs=(1.9, 2.0))
    advice = alike.advise(budget=BUDGET)
    assert not advice.pays
    assert f"level 2 alone with {len(advice.single.times) - 1} steps on the other grid" in advice.text


def test_plans_do_not_change(pilot):
    plain = mls.pilot(LADDER, STATES, FINE, candidates=64)
    one, other = (
        next(plan for plan in p.plans(budget=24.0, count=100) if len(plan.levels) > 1) for p in (plain, pilot)
    )
    assert torch.equal(one.plan.weights, other.plan.weights)
    assert torch.equal(one.times, other.times)
    assert pilot.cost > plain.cost


def test_a_multistep_method_has_its_coefficients_there(tmp_path):
    def order_2(times):
        return mls.adams_bashforth_weights(times, order=2)

    measured = mls.pilot(LADDER, STATES, FINE, candidates=64, other_grid=early, multistep=order_2)
    measured.save(tmp_path / "pilot.safetensors")
    finest = mls.multistep(mls.em_plan(LADDER, FINE), order_2(FINE))
    target = mls.solve(LADDER, STATES, FINE, finest).y
    for pilot in (measured, mls.Pilot.load(tmp_path / "pilot.safetensors")):
        best = Alone(pilot, 1, True, True).within(BUDGET)
        times = early(len(best.times) - 1)
        assert torch.equal(best.times, times)
        plan = mls.multistep(mls.em_plan(LADDER, times), order_2(times))
        assert torch.equal(*[mls.solve(LADDER, STATES, times, way).y for way in (plan, best.plan)])
        plan = mls.multistep(mls.em_plan(LADDER, early(16)), order_2(early(16)))
        errors = (mls.solve(LADDER, STATES, early(16), plan).y - target).square().mean(1)
        assert typical(errors) == pytest.approx(pilot.single_error(1, 16, True, True), rel=1e-6)


@pytest.mark.parametrize(
    "wrong", [lambda n: FINE[: n + 1], lambda n: early(n)[:-1], lambda n: torch.linspace(0, 1, n + 1) ** 3]
)
def test_other_grids_are_made_of_the_finest_grids_times(wrong):
    with pytest.raises(ValueError, match=r'"other_grid" must give \d steps of "times"'):
        mls.pilot(LADDER, STATES, FINE, candidates=64, other_grid=wrong)


def test_what_is_no_function_is_refused():
    with pytest.raises(TypeError, match='"other_grid" must be a function of a number of steps'):
        mls.pilot(LADDER, STATES, FINE, candidates=64, other_grid=early(16))
