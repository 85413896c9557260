"""Laws of fitted plans: exact responses, lower errors on new samples, the same evaluations, every call paid for."""

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch

import multilevel_sde as mls
import multilevel_sde.fitting.perturbed_runs as fit_run
from multilevel_sde.fitting.perturbed_runs import Direction, FitRun, Parts
from multilevel_sde.pilots.trial import typical
from multilevel_sde.plans.memory import combined

AB2 = partial(mls.adams_bashforth_weights, order=2)
WAVES = torch.tensor([[1.0, 2.0, 3.0], [2.0, -1.0, 1.0], [0.5, 0.3, -2.0]], dtype=torch.float64)


def grid(steps):
    return torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def squared(a, b):
    return float((a - b).square().mean())


# -- responses to coefficients ----------------------------------------------------------------------------------------


def linear_ladder():
    """f^k = -0.8 y + e_k(t): the final state is affine in every single coefficient."""

    def level(k):
        return lambda y, t: -0.8 * y + 2.0**-k * torch.sin(WAVES[k] * (1 + 4 * t) + k)

    return mls.Ladder([level(k) for k in range(3)], costs=[1.0, 10.0, 100.0])


def some_parts(order):
    tables, generator = {}, torch.Generator().manual_seed(1)
    for pair, distance in {(0, 1): 2, (1, 2): 3}.items():
        tables[pair] = torch.zeros(8, 8, dtype=torch.float64)
        for h in range(0, 8, distance):
            tables[pair][h:, h] = torch.rand(8 - h, generator=generator, dtype=torch.float64)
    return Parts.of(combined(0, mls.adams_bashforth_weights(grid(8), order), tables, 3))


@pytest.mark.parametrize("chunk", [1 << 20, 1, 100], ids=["one batch", "one by one", "some"])
@pytest.mark.parametrize("diffusion", [None, 0.3])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_normal_equations_are_those_of_finite_differences(order, diffusion, chunk, monkeypatch):
    """Each response is the change of the final state of `solve` with that coefficient raised by one."""
    monkeypatch.setattr(fit_run, "_CHUNK", chunk)
    ladder, parts, y0 = linear_ladder(), some_parts(order), normal(12, 3)
    noise = {"diffusion": diffusion, "brownian": mls.BrownianPath(range(12), grid=grid(8))} if diffusion else {}
    held = torch.arange(12) % 4 == 3
    target = normal(12, 3, seed=2)
    run = FitRun(ladder, y0, grid(8), target, held, mls.euler_maruyama, noise.get("diffusion"), noise.get("brownian"))

    def final(parts):
        return mls.solve(ladder, y0, grid(8), combined(0, parts.base, parts.tables, 3), **noise).y

    directions, gram, right = run.normal_equations(parts)
    y = final(parts)
    torch.testing.assert_close(run.errors(parts), (y - target).square().mean(1), rtol=1e-12, atol=0)
    left = (target - y)[~held]
    error = left.square().mean(1)
    weight = (1 / (error + error.median())).sqrt()[:, None]
    rows = [(final(parts.moved([one], torch.ones(1))) - y)[~held] * weight for one in directions]
    responses = torch.stack(rows).flatten(1)
    torch.testing.assert_close(gram, responses @ responses.T, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(right, responses @ (left * weight).flatten(), rtol=1e-9, atol=1e-12)


def test_the_coefficients_that_move_are_those_that_can():
    """Of the base each earlier value against the present one; at a hit of a correction its last two values."""
    run = FitRun(
        linear_ladder(), normal(8, 3), grid(8), normal(8, 3), torch.arange(8) % 4 == 3, mls.euler_maruyama, None, None
    )
    directions, _, _ = run.normal_equations(some_parts(2))
    base = [Direction(n, None, 1) for n in range(1, 8)]
    first = [Direction(n, (0, 1), h) for n in (0, 2, 4, 6) for h in (n - 2, n) if h >= 0]
    second = [Direction(n, (1, 2), h) for n in (0, 3, 6) for h in (n - 3, n) if h >= 0]
    assert set(directions) == {*base, *first, *second}
    assert len(directions) == len(base) + len(first) + len(second)


def test_moving_coefficients_keeps_the_sum_of_the_base_and_leaves_the_parts_as_they_are():
    parts = some_parts(2)
    before = Parts(parts.base_level, parts.base.clone(), {k: v.clone() for k, v in parts.tables.items()}, parts.hits)
    moved = parts.moved([Direction(3, None, 1), Direction(3, (1, 2), 0)], torch.tensor([0.5, -2.0]))
    assert torch.equal(parts.base, before.base)
    assert all(torch.equal(parts.tables[pair], before.tables[pair]) for pair in parts.tables)
    torch.testing.assert_close(moved.base.sum(1), torch.ones(8, dtype=torch.float64))
    assert (moved.base - parts.base)[3].tolist() == [-0.5, 0.5]
    assert (moved.tables[1, 2] - parts.tables[1, 2])[3, 0] == -2.0
    assert (moved.base != parts.base).sum() + (moved.tables[1, 2] != parts.tables[1, 2]).sum() == 3


# -- fits -------------------------------------------------------------------------------------------------------------


class Toy:
    """A nonlinear problem with a pilot, samples to fit, and others to judge by."""

    def __init__(self, diffusion, budget, gain):
        problem = mls.problems.scaling_law(3.0, levels=3, dimension=4, diffusion=diffusion)
        self.ladder, self.times, self.diffusion, self.gain = problem.ladder, problem.times(80), diffusion, gain
        self.y0, self.new = problem.y0(24), problem.y0(200, seed=1)
        self.pilot = mls.pilot(self.ladder, self.y0, self.times, candidates=40, multistep=AB2, **self.noise(24))
        self.target = self.top(self.y0, 0)
        self.budget = budget * self.ladder.costs[-1]
        self.plans = self.pilot.plans(budget=self.budget, count=4)

    def noise(self, samples, first=0):
        if self.diffusion is None:
            return {}
        path = mls.BrownianPath(range(first, first + samples), grid=self.times)
        return {"diffusion": self.diffusion, "brownian": path}

    def run(self, y0, best, first):
        return mls.solve(self.ladder, y0, best.times, best.plan, **self.noise(len(y0), first)).y

    def top(self, y0, first):
        plan = mls.multistep(mls.em_plan(self.ladder, self.times), AB2(self.times))
        return mls.solve(self.ladder, y0, self.times, plan, **self.noise(len(y0), first)).y

    def fit(self, candidates=None, **options):
        return mls.fit_plan(
            self.ladder, self.y0, candidates or self.plans, self.target, **self.noise(len(self.y0)), **options
        )


@pytest.fixture(scope="module", params=[(None, 8, 0.2), (0.1, 5, 1.0)], ids=["ode", "sde"])
def toy(request):
    """The SDE has so much noise that a fit pays: with three times as much, steps of one level leave it nothing."""
    return Toy(*request.param)


@pytest.fixture(scope="module")
def fitted(toy):
    for drift in toy.ladder.drifts:
        drift.reset()
    found = toy.fit()
    return found, [drift.rows for drift in toy.ladder.drifts]


def test_a_fit_lowers_the_error_of_samples_it_has_never_seen(toy, fitted):
    found, _ = fitted
    target = toy.top(toy.new, 1000)
    (begun,) = [best for best in toy.plans if (best.levels, best.plan.steps) == (found.levels, found.plan.steps)]
    after = squared(toy.run(toy.new, found, 1000), target)
    assert after < toy.gain * squared(toy.run(toy.new, begun, 1000), target)
    assert found.held_out[1] < toy.gain * found.held_out[0]


def test_a_fit_says_what_it_did(toy, fitted):
    found, _ = fitted
    error = (toy.run(toy.y0, found, 0) - toy.target).square().mean(1)
    held = torch.arange(24) % 4 == 3
    assert found.errors[-1] == pytest.approx(typical(error[~held]), rel=1e-9)
    assert found.held_out[1] == pytest.approx(typical(error[held]), rel=1e-9)
    assert found.mean == pytest.approx(float(error[held].mean()), rel=1e-9)
    assert list(found.errors) == sorted(found.errors, reverse=True)
    assert len(set(found.errors)) == len(found.errors) > 1
    started = [(toy.run(toy.y0, best, 0) - toy.target).square().mean(1) for best in toy.plans]
    begun = [n for n, error in enumerate(started) if typical(error[~held]) == pytest.approx(found.errors[0], rel=1e-9)]
    assert begun
    assert found.held_out[0] == pytest.approx(typical(started[begun[0]][held]), rel=1e-9)


def test_a_fit_evaluates_what_its_plan_did(toy, fitted):
    found, _ = fitted
    same = [best for best in toy.plans if best.levels == found.levels and torch.equal(best.times, found.times)]
    assert len(same) == 1
    assert torch.equal(found.plan.needed, same[0].plan.needed)
    assert found.plan.cost(toy.ladder) == same[0].plan.cost(toy.ladder) <= toy.budget
    assert found.plan != same[0].plan
    torch.testing.assert_close(Parts.of(found.plan).base.sum(1), torch.ones(found.plan.steps, dtype=torch.float64))


def test_a_fit_counts_every_call_of_a_drift(toy, fitted):
    found, rows = fitted
    assert found.cost == pytest.approx(sum(n * cost for n, cost in zip(rows, toy.ladder.costs, strict=True)))


def test_the_same_samples_give_the_same_fit(toy, fitted):
    found, _ = fitted
    again = toy.fit()
    assert again.plan == found.plan
    assert again.errors == found.errors


def test_a_fit_stops_where_it_is_told(toy):
    one = toy.fit(iterations=1)
    assert len(one.errors) == 2
    assert one.errors[-1] < one.errors[0]


def test_one_candidate_needs_no_list(toy):
    alone, listed = toy.fit(toy.plans[0], iterations=1), toy.fit(toy.plans[:1], iterations=1)
    assert alone.plan == listed.plan
    assert alone.levels == toy.plans[0].levels


def test_a_fit_starts_from_any_plan_of_a_pilot_and_never_ends_with_a_worse_one(toy):
    held = torch.arange(24) % 4 == 3
    for best in toy.plans:
        error = (toy.run(toy.y0, best, 0) - toy.target).square().mean(1)
        found = toy.fit(best, iterations=2)
        assert found.errors[0] == pytest.approx(typical(error[~held]), rel=1e-9)
        assert found.errors[-1] <= found.errors[0]
        assert found.held_out[1] <= found.held_out[0]


# -- plans with nothing to gain ---------------------------------------------------------------------------------------


def doc_problem():
    ladder = mls.Ladder([lambda y, t: -y, lambda y, t: -torch.sin(y)], costs=[1.0, 30.0])
    y0 = torch.linspace(0.2, 2.0, 16, dtype=torch.float64)[:, None]
    return ladder, y0, mls.pilot(ladder, y0, grid(40), candidates=40)


def test_a_perfect_plan_is_left_alone():
    ladder, y0, pilot = doc_problem()
    best = pilot.plan(budget=150.0)
    target = mls.solve(ladder, y0, best.times, best.plan).y
    found = mls.fit_plan(ladder, y0, best, target)
    assert len(found.errors) == 1
    assert found.errors[0] < 1e-28
    torch.testing.assert_close(found.plan.weights, best.plan.weights, rtol=1e-12, atol=1e-12)


def test_a_plan_with_no_coefficient_to_move_is_left_alone():
    """The lowest level at every step, as every plan of the least budget."""
    ladder, y0, pilot = doc_problem()
    best = pilot.plan(budget=pilot.least_budget)
    assert best.plan.evaluations[1] == 0
    found = mls.fit_plan(ladder, y0, best, 2 * torch.atan(torch.tan(y0 / 2) / math.e))
    assert len(found.errors) == 1
    assert found.held_out[0] == found.held_out[1] > 0
    assert found.cost == best.plan.steps * (16 + 12)  # one run of all samples, one for the equations of those fitted
    assert found.plan.evaluations.tolist() == best.plan.evaluations.tolist()


@pytest.mark.parametrize("budget", [100.0, 200.0, 400.0])
def test_a_fit_ends_where_nothing_helps_by_one_per_cent(budget):
    ladder, y0, pilot = doc_problem()
    found = mls.fit_plan(ladder, y0, pilot.plan(budget=budget), 0.3 * y0, iterations=60)
    assert 1 < len(found.errors) < 61
    assert all(after < 0.99 * before for before, after in pairwise(found.errors))


def test_learning_by_heart_is_refused():
    """Targets that are noise: whatever a step gains on the samples of the fit, it must not lose on the others."""
    ladder, y0, pilot = doc_problem()
    for seed in range(5):
        found = mls.fit_plan(ladder, y0, pilot.plans(budget=200.0), normal(16, 1, seed=seed))
        assert found.held_out[1] <= found.held_out[0]


def test_a_candidate_that_is_not_finite_is_passed_over():
    ladder, y0, pilot = doc_problem()
    plans = pilot.plans(budget=150.0)
    steps = plans[0].plan.steps
    target = 2 * torch.atan(torch.tan(y0 / 2) / math.e)
    late = mls.Ladder(
        [lambda y, t: torch.where(t == plans[0].times[1], torch.nan, -y), lambda y, t: -torch.sin(y)], ladder.costs
    )
    others = [best for best in plans if best.plan.steps < steps and plans[0].times[1] not in best.times]
    assert others
    found = mls.fit_plan(late, y0, [plans[0], others[0]], target)
    assert found.plan.steps == others[0].plan.steps
    assert math.isfinite(found.mean)
    with pytest.raises(mls.NonFiniteError) as error:
        mls.fit_plan(late, y0, plans[0], target)
    assert error.value.samples == list(range(16))


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y0": torch.ones(7, 1)}, r'"y0" must hold at least 8 samples \(better 32\), got shape \(7, 1\)'),
        ({"y0": torch.tensor(1.0)}, r'"y0" must hold at least 8 samples \(better 32\), got shape \(\)'),
        ({"candidates": []}, '"candidates" must hold at least one plan'),
        ({"target": torch.ones(16, 2)}, r'"target" must have the shape of "y0", \(16, 1\), got \(16, 2\)'),
        ({"target": torch.full((16, 1), torch.nan)}, '"target" must be finite'),
        ({"iterations": 0}, '"iterations" must be at least 1, got 0'),
        ({"tried": 0}, '"tried" must be at least 1, got 0'),
        ({"order": 0}, '"order" must be at least 1, got 0'),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, message):
    ladder, y0, pilot = doc_problem()
    arguments = {"y0": y0, "candidates": pilot.plan(budget=150.0), "target": y0 / 2, **change}
    with pytest.raises(ValueError, match=message):
        mls.fit_plan(ladder, **arguments)


def pair(plan, levels):
    """A plan of the pilot, as one of another number of levels."""
    return replace(plan, plan=mls.em_plan(mls.Ladder([torch.sin] * levels, range(1, levels + 1)), plan.times))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda plan: {"candidates": pair(plan, 3)},
            ValueError,
            '"candidates" has a plan for 3 levels, the ladder has 2',
        ),
        (lambda plan: {"candidates": [plan, pair(plan, 1)]}, ValueError, '"candidates" has a plan for 1 levels, the'),
        (lambda plan: {"candidates": None}, TypeError, '"candidates" must be a sequence of plans of a pilot.*NoneType'),
        (lambda plan: {"candidates": plan.plan}, TypeError, '"candidates" must be a sequence of plans of a.* got Plan'),
        (lambda plan: {"candidates": [plan.plan]}, TypeError, '"candidates" must be plans of a pilot, .*, got Plan'),
        (lambda plan: {"y0": None}, TypeError, '"y0" must be a Tensor of initial states, got NoneType'),
        (lambda plan: {"target": None}, TypeError, '"target" must be a Tensor shaped like "y0", got NoneType'),
        (lambda plan: {"iterations": 1.5}, TypeError, '"iterations" must be an integer, got float'),
    ],
)
def test_arguments_of_another_kind_are_refused(change, error, message):
    ladder, y0, pilot = doc_problem()
    plan = pilot.plan(budget=150.0)
    with pytest.raises(error, match=message):
        mls.fit_plan(ladder, **{"y0": y0, "candidates": plan, "target": y0 / 2, **change(plan)})
