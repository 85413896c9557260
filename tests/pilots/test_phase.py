"""Laws of random-phase plans: unbiased over the phase, the plan's own cost, shifted copies of its hits."""

import math

import pytest
import torch

import multilevel_sde as mls
from multilevel_sde.pilots.phases import PhasePlans
from multilevel_sde.plans.recall import Recall


def given_plan(steps: int = 40) -> mls.Plan:
    """Four levels: every step, uneven hits, the same again (a skipped level), and few hits."""
    weights = torch.zeros(steps, 4, dtype=torch.float64)
    weights[:, 0] = 1.0
    for n, w in [(3, 6.0), (8, 4.0), (12, 2.0), (13, 1.0), (14, 1.0), (17, 3.0), (24, 7.0), (35, 12.0)]:
        weights[n, 1:3] = w
    weights[12, 3], weights[24, 3] = 14.0, 20.0
    return mls.Plan(weights != 0, weights)


LADDER = mls.Ladder([lambda x, t, k=k: -x * (1 + 0.1 * k) for k in range(4)], [1.0, 4.0, 16.0, 64.0])


def test_the_mean_weight_over_the_phase_is_one():
    plans = mls.phase_plans(given_plan())
    phases, lengths = plans.pieces()
    mean = sum(length * plans.at(phase).weights for phase, length in zip(phases, lengths, strict=True))
    assert sum(lengths) == pytest.approx(1.0, abs=1e-9)
    assert torch.allclose(mean, torch.ones(40, 4, dtype=torch.float64), atol=1e-9, rtol=0)


def test_the_pieces_give_every_plan_of_the_family():
    plans = mls.phase_plans(given_plan())
    phases, lengths = plans.pieces()
    for phase, length in zip(phases, lengths, strict=True):
        for inside in (-0.49, 0.3, 0.49):
            assert plans.at(phase + inside * length) == plans.at(phase)


def test_the_solution_of_a_drift_in_time_alone_is_unbiased():
    """Mean over all phases of the solution = that of the top level, as the solution is linear in the weights."""
    ladder = mls.Ladder([lambda x, t, k=k: torch.cos(k * t) + 0 * x for k in range(4)], [1.0, 4.0, 16.0, 64.0])
    plans, times, y0 = mls.phase_plans(given_plan()), torch.linspace(0.0, 1.0, 41).double(), torch.zeros(1).double()
    top = mls.solve(ladder, y0, times, mls.em_plan(ladder, times)).y
    pairs = list(zip(*plans.pieces(), strict=True))
    found = [mls.solve(ladder, y0, times, plans.at(phase)).y for phase, _ in pairs]
    mean = sum(length * y for (_, length), y in zip(pairs, found, strict=True))
    assert float(mean) == pytest.approx(float(top), abs=1e-9)
    assert max(abs(float(y - top)) for y in found) > 1e-3


def test_every_phase_has_as_many_hits_as_the_plan():
    plans = mls.phase_plans(given_plan())
    wanted = given_plan().hits.sum(0)
    for phase in plans.pieces()[0]:
        assert torch.equal(plans.at(phase).hits.sum(0), wanted)


def test_a_skipped_level_stays_skipped_and_the_cost_is_that_of_the_plan():
    plans, plan = mls.phase_plans(given_plan()), given_plan()
    assert all(int(plans.at(phase).evaluations[1]) == 0 for phase in plans.pieces()[0])
    assert abs(plans.cost(LADDER) - plan.cost(LADDER)) < LADDER.costs[-1]
    draws = torch.tensor([plans.draw(torch.Generator().manual_seed(seed)).cost(LADDER) for seed in range(400)])
    error = float(draws.double().std()) / math.sqrt(400)
    assert abs(float(draws.double().mean()) - plans.cost(LADDER)) < 4.4 * error + 1e-9  # level 1e-5


def test_evenly_spaced_hits_of_equal_weight_are_shifted_as_they_are():
    weights = torch.zeros(30, 2, dtype=torch.float64)
    weights[:, 0], weights[2::5, 1] = 1.0, 5.0
    plans = mls.phase_plans(mls.Plan(weights != 0, weights))
    for first in range(5):
        hits = plans.at((4 - first + 0.5) / 5).hits[:, 1].nonzero()[:, 0]
        assert hits.tolist() == list(range(first, 30, 5))


def test_hits_are_dense_where_the_weights_are_small():
    """Between hits of weights a and b the density is geometric: equal ratios from step to step."""
    weights = torch.zeros(60, 2, dtype=torch.float64)
    weights[:, 0] = 1.0
    weights[20, 1], weights[40, 1] = 32.0, 8.0
    p = mls.phase_plans(mls.Plan(weights != 0, weights)).probabilities[:, 1]
    assert float(p.sum()) == pytest.approx(2.0, abs=1e-9)
    assert float(p[40] / p[20]) == pytest.approx(4.0, rel=1e-9)
    assert torch.allclose(p[21:41] / p[20:40], torch.tensor(4.0 ** (1 / 20)).double())
    assert torch.equal(p[:20], p[20].expand(20))
    assert torch.equal(p[41:], p[40].expand(19))


@pytest.mark.parametrize(("first", "second", "ratio"), [(16.0, 1.25, 12.8), (-4.0, 2.0, 2.0), (0.5, 3.0, 1 / 3)])
def test_small_and_negative_weights_count_by_size(first, second, ratio):
    """A weight counts by its absolute value, and as 1 where that is less: no step can have more than one hit."""
    weights = torch.zeros(200, 2, dtype=torch.float64)
    weights[:, 0], weights[20, 1], weights[40, 1] = 1.0, first, second
    p = mls.phase_plans(mls.Plan(weights != 0, weights)).probabilities[:, 1]
    assert float(p[40] / p[20]) == pytest.approx(ratio, rel=1e-9)


def test_rounding_does_not_lose_a_sure_hit():
    first, phase = 0.7911478921803037, 0.2088521078196962  # the running sums round up to 2 and down below 3
    plans = PhasePlans(torch.tensor([[1.0, first], [1.0, 1.0], [1.0, 1.0]], dtype=torch.float64))
    assert bool(plans.at(phase).hits[1:].all())


def test_a_level_without_hits_gets_one():
    weights = torch.tensor([[1.0, 1.0, 0.0]]).expand(8, 3)
    plans = mls.phase_plans(mls.Plan(weights != 0, weights))
    assert torch.allclose(plans.probabilities[:, 2], torch.full((8,), 0.125).double())
    assert (plans.probabilities[:, :2] == 1).all()
    assert all(int(plans.at(phase).hits[:, 2].sum()) == 1 for phase in plans.pieces()[0])


def test_the_memory_of_a_plan_counts_as_weight():
    """Corrections held until the next hit: the family of the plan that adds them at once."""
    plan = given_plan()
    weights, entries = plan.weights, []
    for (low, high), rest in (((0, 2), 2.0), ((2, 3), 9.0)):
        for h in plan.hits[:, high].nonzero()[:, 0].tolist():
            held = min(rest, float(weights[h, high]) - 0.5)
            weights[h, low + 1 : high + 1] -= held
            entries += [
                (h + 1 + i, level, h, sign * held / 2) for i in (0, 1) for level, sign in ((high, 1), (low, -1))
            ]
    remembering = mls.Plan(plan.hits, weights, recall=Recall(entries))
    assert torch.allclose(mls.phase_plans(remembering).probabilities, mls.phase_plans(plan).probabilities)


def test_a_plan_on_upper_levels_keeps_its_base():
    weights = torch.ones(12, 3, dtype=torch.float64)
    weights[:, 2] = 0.0
    weights[[2, 8], 2] = 6.0
    plans = mls.phase_plans(mls.Plan(weights != 0, weights))
    assert all(plans.at(phase).evaluations.tolist() == [0, 12, 2] for phase in plans.pieces()[0])


def test_the_plan_of_a_pilot_comes_with_its_grid():
    ladder = mls.problems.scaling_law(2.5, levels=3).ladder
    y0, times = torch.linspace(-1, 1, 64).double().reshape(8, 8), torch.linspace(0.0, 1.0, 41).double()
    best = mls.pilot(ladder, y0, times, candidates=40).plan(budget=6 * ladder.costs[-1])
    plan = mls.phase_plans(best).draw(torch.Generator().manual_seed(0))
    assert plan.steps == len(best.times) - 1
    assert abs(mls.phase_plans(best).cost(ladder) - best.predicted.cost) < ladder.costs[-1]


def test_bad_arguments():
    plan = given_plan()
    with pytest.raises(ValueError, match="shared by the batch"):
        mls.phase_plans(mls.Plan(plan.hits[:, None], plan.weights[:, None]))
    weights = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    with pytest.raises(ValueError, match="lowest level at every step"):
        mls.phase_plans(mls.Plan(weights != 0, weights))
    with pytest.raises(ValueError, match=r"in \[0, 1\), got 1\.0"):
        PhasePlans(torch.ones(3, 2)).at(1.0)
