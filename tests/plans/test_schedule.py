"""Laws of schedules: the design formulas, budgets met, ranges refused."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import multilevel_sde as mls
from multilevel_sde.testing import ladders, probabilities

DRAWS = [mls.independent, mls.nested, mls.systematic]
TIMES = torch.linspace(0.0, 1.0, 12)


def ladder_of(costs):
    return mls.Ladder([lambda x, t: x] * len(costs), costs=costs)


def geometric(c, gamma, levels):
    """Costs c^{gamma l}."""
    return ladder_of([c ** (gamma * level) for level in range(levels)])


@pytest.mark.parametrize("beta", [1, 2])
@pytest.mark.parametrize(("c", "gamma"), [(2.0, 1.0), (2.0, 2.5), (4.0, 3.0), (1.5, 4.0)])
def test_the_theorem_schedule_has_the_stated_ratios(c, gamma, beta):
    p = mls.TheoremSchedule(gamma=gamma, beta=beta).probabilities(geometric(c, gamma, 5), TIMES, scale=0.9)
    expected = torch.tensor([c ** (-level * (gamma + beta) / 2) for level in range(5)], dtype=torch.float64)
    torch.testing.assert_close(p[:, 1:] / 0.9, expected[1:].expand(11, 4), rtol=1e-13, atol=0)
    assert (p[:, 0] == 1).all()


def test_beta_is_two_unless_told_otherwise():
    assert mls.TheoremSchedule(gamma=3.0) == mls.TheoremSchedule(gamma=3.0, beta=2.0)


def test_inverse_cost_is_equal_time_on_every_level():
    ladder = ladder_of([2.0, 5.0, 80.0])
    p = mls.InverseCostSchedule().probabilities(ladder, TIMES, scale=1.5)
    torch.testing.assert_close(
        p[:, 1:] * torch.tensor(ladder.costs[1:], dtype=torch.float64), torch.full((11, 2), 1.5).double()
    )


def test_probabilities_are_clipped_at_one():
    p = mls.InverseCostSchedule().probabilities(ladder_of([1.0, 4.0, 16.0]), TIMES, scale=8.0)
    assert p[0].tolist() == [1.0, 1.0, 0.5]


@st.composite
def schedules(draw, ladder):
    kind = draw(st.integers(0, 2))
    if kind == 0:
        return mls.InverseCostSchedule()
    if kind == 1:
        return mls.TheoremSchedule(gamma=draw(st.floats(0.5, 6.0)), beta=draw(st.floats(0.5, 3.0)))
    return mls.FixedSchedule(draw(probabilities(ladder, TIMES)))


@given(data=st.data(), ladder=ladders(max_levels=6), share=st.floats(0.0, 1.0), draw=st.sampled_from(DRAWS))
def test_any_feasible_budget_is_met_to_one_percent(data, ladder, share, draw):
    schedule = data.draw(schedules(ladder))
    low, high = 11 * ladder.costs[0], 11 * ladder.costs[-1]
    budget = low * (high / low) ** share
    p = schedule.probabilities(ladder, TIMES, budget=budget, draw=draw)
    assert mls.expected_cost(ladder, p, draw) == pytest.approx(budget, rel=0.01)
    assert p.shape == (11, len(ladder))
    assert ((p > 0) & (p <= 1)).all()


@pytest.mark.parametrize("share", [0.5, 0.999, 1.001, 1.5])
def test_the_reachable_range_is_the_lowest_to_the_top_level(share):
    ladder = ladder_of([2.0, 10.0, 70.0])
    schedule = mls.InverseCostSchedule()
    if share < 1:
        with pytest.raises(ValueError, match=r'"budget".*between 22 .*and 770 .*got ' + re.escape(str(22 * share))):
            schedule.probabilities(ladder, TIMES, budget=22 * share)
    else:
        with pytest.raises(ValueError, match=r'"budget".*between 22 .*and 770 '):
            schedule.probabilities(ladder, TIMES, budget=770 * share)


def test_the_ends_of_the_range_are_met():
    ladder = ladder_of([2.0, 10.0, 70.0])
    low = mls.InverseCostSchedule().probabilities(ladder, TIMES, budget=22.0)
    assert mls.expected_cost(ladder, low) == pytest.approx(22.0, rel=1e-4)
    assert (mls.InverseCostSchedule().probabilities(ladder, TIMES, budget=770.0) == 1).all()


def test_of_several_scales_the_largest_is_taken():
    # Scale s costs up to 1 + 9 s + 0.5 s below s = 1 and 9 + 0.5 s from there on, where the lowest network cancels:
    # 9.9 is the cost of s = 0.93 and of s = 1.8.
    p = mls.scale_to_budget(ladder_of([1.0, 9.0, 10.0]), torch.tensor([[1.0, 1.0, 0.05]]), budget=9.9)
    assert p[0].tolist() == [1.0, 1.0, pytest.approx(0.09, rel=1e-6)]


def test_a_fixed_table_is_used_as_it_is_or_scaled():
    ladder = ladder_of([1.0, 4.0])
    schedule = mls.FixedSchedule(torch.tensor([1.0, 0.5]))
    assert schedule.probabilities(ladder, [0.0, 1.0, 2.0]).tolist() == [[1.0, 0.5]] * 2
    assert schedule.probabilities(ladder, [0.0, 1.0], scale=0.5).tolist() == [[1.0, 0.25]]
    assert schedule.probabilities(ladder, [0.0, 1.0], scale=4.0).tolist() == [[1.0, 1.0]]
    given_table = schedule.probabilities(ladder, [0.0, 1.0])
    given_table.fill_(0.0)
    assert schedule.probabilities(ladder, [0.0, 1.0]).tolist() == [[1.0, 0.5]]


def test_probabilities_depend_on_time_where_the_table_does():
    table = torch.tensor([[1.0, 0.1], [1.0, 0.2], [1.0, 0.4]])
    p = mls.FixedSchedule(table).probabilities(ladder_of([1.0, 4.0]), [3.0, 2.0, 1.0, 0.0], scale=2.0)
    torch.testing.assert_close(p[:, 1], torch.tensor([0.2, 0.4, 0.8]).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("down", [False, True])
def test_a_switch_uses_one_level_at_a_time(down):
    times, boundaries = torch.linspace(0.0, 1.0, 9, dtype=torch.float64), [0.25, 0.7]
    if down:
        times, boundaries = times.flip(0), [0.75, 0.3]
    ladder = ladder_of([1.0, 4.0, 16.0])
    schedule = mls.SwitchSchedule(boundaries)
    plan = schedule.plan(ladder, times)
    used = (plan.coefficients != 0).double().argmax(1)
    expected = [0, 0, 1, 1, 1, 1, 2, 2]  # a boundary on the grid belongs to the level that takes over
    assert used.tolist() == expected
    assert (plan.evaluations.sum(), plan.truncated) == (8, True)
    drawn = mls.draw_plan(
        schedule.probabilities(ladder, times), generator=torch.Generator().manual_seed(0), truncate=True
    )
    assert drawn == plan


def test_a_switch_before_the_start_is_em_and_not_biased():
    ladder = ladder_of([1.0, 4.0])
    plan = mls.SwitchSchedule([0.0]).plan(ladder, TIMES)
    assert plan == mls.em_plan(ladder, TIMES)
