"""Laws of the pilot: exact on linear problems, counts what it spends, rates, and advice that real runs confirm."""

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import multilevel_sde as mls
from multilevel_sde.pilots.answers import Calibration, Form
from multilevel_sde.pilots.responses import Responses
from multilevel_sde.pilots.trial import typical

MATRIX = torch.tensor([[-1.0, 0.5, 0.0], [-0.5, -1.0, 0.2], [0.0, 0.3, -0.4]], dtype=torch.float64)


def exact_error(gram: torch.Tensor, plan: mls.Plan) -> float:
    """The first-order error by the measured matrix itself, without shrinkage."""
    return Responses(gram, gram, gram, torch.ones(plan.steps, plan.levels - 1)).error(plan.weights)


def linear_ladder():
    """f^k = A y + e_k(t): the differences do not depend on the state, so the first order is all there is."""
    waves = torch.tensor([[1.0, 2.0, 3.0], [2.0, -1.0, 1.0], [0.5, 0.3, -2.0]], dtype=torch.float64)

    def level(k):
        return lambda y, t: y @ MATRIX.T + 2.0**-k * torch.sin(waves[k] * (1 + 4 * t.to(y)) + k)

    return mls.Ladder([level(k) for k in range(3)], costs=[1.0, 10.0, 100.0])


def start(samples, size=3, seed=0):
    return torch.randn(samples, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def arguments(diffusion, samples, seed=0):
    if diffusion is None:
        return {}
    return {"diffusion": diffusion, "brownian": mls.BrownianPath(seeds=range(seed, seed + samples))}


def squared(a, b):
    return float((a - b).square().mean())


def some_plan(steps, seed):
    generator = torch.Generator().manual_seed(seed)
    p = torch.tensor([[1.0, 0.4, 0.2]], dtype=torch.float64).expand(steps, 3)
    return mls.draw_plan(p, mls.independent, generator=generator)


@pytest.mark.parametrize("diffusion", [None, 0.7])
@pytest.mark.parametrize("down", [False, True])
def test_the_first_order_is_exact_on_a_linear_problem(diffusion, down):
    ladder, y0, times = linear_ladder(), start(6), torch.linspace(0.0, 1.0, 33, dtype=torch.float64)
    times = times.flip(0) if down else times
    measured = mls.pilot(ladder, y0, times, candidates=32, **arguments(diffusion, 6))
    target = mls.solve(ladder, y0, times, mls.em_plan(ladder, times), **arguments(diffusion, 6)).y
    for seed in range(5):
        plan = some_plan(32, seed)
        found = mls.solve(ladder, y0, times, plan, **arguments(diffusion, 6)).y
        assert exact_error(measured.gram, plan) == pytest.approx(squared(found, target), rel=1e-9)
        assert measured.predict(plan).cost == pytest.approx(plan.cost(ladder), rel=1e-12)
    assert measured.step_error(32) == 0


@pytest.fixture(scope="module")
def one_pilot():
    return mls.pilot(linear_ladder(), start(6), torch.linspace(0.0, 1.0, 33), candidates=32)


@settings(deadline=None, max_examples=50)
@given(
    measured=st.lists(st.floats(-18.0, 0.0), min_size=4, max_size=4), errors=st.lists(st.floats(-22.0, 2.0), min_size=2)
)
def test_a_smaller_first_order_error_never_promises_a_larger_one(one_pilot, measured, errors):
    """Whatever the calibration found: four runs scatter."""
    pairs = zip((-16.0, -10.0, -6.0, -2.0), measured, strict=True)
    calibration = tuple(Calibration(32, Form.PLAIN, math.exp(x), math.exp(x), math.exp(y), 1.0) for x, y in pairs)
    scattered = dataclasses.replace(one_pilot, calibration=calibration)
    for level in (
        [
            scattered.prediction(math.exp(e), 32, torch.tensor([32.0, 0.0, 4.0]).double(), Form.PLAIN).level_mse
            for e in sorted(errors)
        ],
        [scattered.expected(math.exp(e), 32, Form.PLAIN) for e in sorted(errors)],
    ):
        assert all(a <= b * (1 + 1e-9) for a, b in itertools.pairwise(level))
    if measured == sorted(measured):
        assert scattered.expected(math.exp(-10.0), 32, Form.PLAIN) == pytest.approx(math.exp(measured[1]))


def test_a_calibration_that_scatters_does_not_prefer_what_it_cannot_predict():
    """The four runs here err least in the middle; taken as they came, the plans at 20 and 35 would drop a level."""
    problem = mls.problems.quadrature(5, (1, 2, 4))
    fine, ladder = problem.times(400), problem.ladder
    found = mls.pilot(ladder, problem.y0(16), fine, candidates=100)
    y0 = problem.y0(64, seed=99)
    target = mls.solve(ladder, y0, fine, mls.em_plan(ladder, fine)).y
    for budget in (9, 20, 35):
        best = found.plan(budget=budget * ladder.costs[-1])
        measured = squared(mls.solve(ladder, y0, best.times, best.plan).y, target)
        assert best.predicted.mse / 3 < measured < 3 * best.predicted.mse


def test_plans_are_made_with_a_shrunk_matrix_and_predicted_without():
    times = torch.linspace(0.0, 1.0, 65)
    measured = mls.pilot(linear_ladder(), start(6), times, candidates=64)
    assert {one.steps for one in measured.calibration} == {64, 32, 16}
    plan = some_plan(64, 1)
    exact = exact_error(measured.gram, plan)
    shrunk = 0.95 * exact + 0.05 * float((plan.weights[:, 1:].T.reshape(-1) - 1).square() @ torch.diag(measured.gram))
    assert measured.first_order(plan) == pytest.approx(exact, rel=1e-9)
    assert measured.responses(64).error(plan.weights) == pytest.approx(shrunk, rel=1e-9)


@pytest.mark.parametrize("diffusion", [None, 0.5])
def test_the_pilot_counts_what_it_spends(diffusion):
    problem = mls.problems.scaling_law(2.5, levels=3, diffusion=diffusion)
    for drift in problem.ladder.drifts:
        drift.reset()
    measured = mls.pilot(problem.ladder, problem.y0(6), problem.times(80), candidates=40, **arguments(diffusion, 6))
    rows = [drift.rows for drift in problem.ladder.drifts]
    assert measured.cost == pytest.approx(sum(n * cost for n, cost in zip(rows, problem.ladder.costs, strict=True)))
    assert measured.share(100, 50.0) == pytest.approx(measured.cost / 5000)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_limit_is_kept_and_used(share):
    problem = mls.problems.scaling_law(2.5, levels=3)
    full = mls.pilot(problem.ladder, problem.y0(4), problem.times(60), candidates=60)
    limited = mls.pilot(problem.ladder, problem.y0(4), problem.times(60), candidates=60, limit=share * full.cost)
    assert limited.cost <= share * full.cost
    assert 8 <= limited.steps < 60
    assert limited.cost > 0.6 * share * full.cost


def test_a_limit_that_nothing_meets_is_refused():
    problem = mls.problems.scaling_law(2.5, levels=3)
    with pytest.raises(ValueError, match='"limit" is 100'):
        mls.pilot(problem.ladder, problem.y0(4), problem.times(60), limit=100.0)


def test_the_state_may_have_any_shape():
    ladder = mls.Ladder([lambda y, t: -y, lambda y, t: -torch.sin(y)], costs=[1.0, 20.0])
    flat = start(6, 12)
    times = torch.linspace(0.0, 1.0, 31)
    one = mls.pilot(ladder, flat, times, **arguments(0.3, 6))
    noise = mls.BrownianPath(seeds=range(6), shape=(12,))
    other = mls.pilot(
        ladder, flat.reshape(6, 3, 4), times, diffusion=0.3, brownian=lambda t, s: noise(t, s).reshape(6, 3, 4)
    )
    torch.testing.assert_close(one.gram, other.gram)


PAYING = [(3.0, None), (2.5, 0.5)]


@pytest.mark.parametrize(("gamma", "diffusion"), PAYING)
def test_where_it_pays_real_runs_beat_em_and_predictions_hold(gamma, diffusion):
    problem = mls.problems.scaling_law(gamma, levels=4, diffusion=diffusion)
    ladder, fine = problem.ladder, problem.times(160)
    found = mls.pilot(ladder, problem.y0(16), fine, candidates=80, **arguments(diffusion, 16))
    y0 = problem.y0(256, seed=1)

    def run(times, plan):
        brownian = mls.BrownianPath(range(1000, 1256), grid=fine) if diffusion else None
        return mls.solve(ladder, y0, times, plan, diffusion=diffusion, brownian=brownian)

    reference = run(fine, mls.em_plan(ladder, fine)).y
    for budget in (4, 10):
        advice = found.advise(budget=budget * ladder.costs[-1])
        assert advice.pays
        assert "Use levels" in advice.text
        best = run(advice.best.times, advice.best.plan)
        coarse = fine[torch.linspace(0, 160, budget + 1).round().long()]
        em = squared(run(coarse, mls.em_plan(ladder, coarse)).y, reference)
        assert best.stats.cost <= budget * ladder.costs[-1]
        assert squared(best.y, reference) < 0.7 * em
        assert 0.5 < squared(best.y, reference) / advice.best.predicted.mse < 2.0
        assert 0.5 < em / found.step_error(budget) < 2.0
        assert advice.em_cost > best.stats.cost


@pytest.mark.parametrize("diffusion", [None, 0.5])
def test_a_useless_cheap_level_does_not_pay(diffusion):
    ladder = mls.Ladder([lambda y, t: 5 * torch.cos(30 * y + 50 * t.to(y)), lambda y, t: -torch.sin(y)], [1.0, 1.5])
    found = mls.pilot(ladder, start(12), torch.linspace(0.0, 1.0, 81), **arguments(diffusion, 12))
    for budget in (10, 20, 40):
        advice = found.advise(budget=budget * 1.5)
        assert not advice.pays
        assert "does not pay" in advice.text
        assert f"use level 2 alone with {budget} steps" in advice.text


def test_rates_are_those_of_the_ladder():
    problem = mls.problems.scaling_law(2.5, levels=6)
    rates = mls.pilot(problem.ladder, problem.y0(8), problem.times(24)).rates
    assert rates.gamma.value == pytest.approx(2.5)
    assert rates.beta.value == pytest.approx(2.0, abs=1e-6)  # V_k = 5 4^-k exactly
    assert rates.beta.low <= 2.0 + 1e-6
    assert rates.alpha.value == pytest.approx(1.0, abs=0.15)
    assert rates.cost_exponent == pytest.approx(2.5, abs=1e-5)
    assert rates.harder_than_monte_carlo


def test_two_levels_have_no_interval():
    ladder = mls.Ladder([lambda y, t: -y, lambda y, t: -torch.sin(y)], costs=[1.0, 8.0])
    rates = mls.pilot(ladder, start(4), torch.linspace(0.0, 1.0, 17)).rates
    assert (rates.gamma.value, rates.gamma.low) == (pytest.approx(3.0), -math.inf)
    assert math.isnan(rates.beta.value)


def test_kurtosis():
    rare = mls.Ladder([lambda y, t: -y, lambda y, t: -y + (y > 2.9)], costs=[1.0, 8.0])
    y0 = torch.cat([torch.zeros(199, 1), torch.full((1, 1), 3.0)]).double()
    found = mls.pilot(rare, y0, torch.linspace(0.0, 1e-3, 9), samples=200)
    assert found.kurtosis[0] == pytest.approx(200.0)  # one in 200


def test_typical_cuts_at_ten_times_the_median():
    assert typical(torch.tensor([1.0, 1.0, 2.0, 3.0, 500.0])) == pytest.approx(27.0 / 5)


@pytest.mark.parametrize(
    ("drifts", "y0", "options", "message"),
    [
        ([torch.neg], (4, 2), {}, '"ladder" has one level'),
        ([torch.neg, torch.sin], (1, 2), {}, '"samples" must be at least 2'),
        ([torch.neg, torch.sin], (4, 2), {"samples": 1}, '"samples" must be at least 2'),
        ([torch.neg, torch.sin], (4, 2), {"candidates": 0}, '"candidates" must be at least 1'),
        ([torch.neg, torch.neg], (4, 2), {}, "levels that are equal"),
    ],
)
def test_what_cannot_be_measured_is_refused(drifts, y0, options, message):
    ladder = mls.Ladder([lambda y, t, f=f: f(y) for f in drifts], costs=[4.0**k for k in range(len(drifts))])
    with pytest.raises(ValueError, match=message):
        mls.pilot(ladder, torch.ones(y0), torch.linspace(0.0, 1.0, 21), **options)


@pytest.mark.parametrize("level", [0, 1])
def test_differences_that_are_not_finite_are_refused(level):
    drifts = [lambda y, t: -y, lambda y, t: -torch.sin(y)]
    drifts[level] = lambda y, t: torch.where(t > 0.5, torch.nan, -y)
    with pytest.raises(mls.NonFiniteError):
        mls.pilot(mls.Ladder(drifts, costs=[1.0, 8.0]), torch.ones(4, 2), torch.linspace(0.0, 1.0, 21))
