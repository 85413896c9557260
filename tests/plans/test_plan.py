"""Laws of plans: unbiased estimates, their variance, exact costs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import multilevel_sde as mls

DRAWS = [mls.independent, mls.nested, mls.systematic]
NAMES = ["independent", "nested", "systematic"]
COSTS = [1.0, 3.0, 10.0, 40.0]
# Equal neighbours (0.7, 0.9, 0.5), where a network cancels, and clipped ones (1.0).
TABLE = torch.tensor([[1.0, 0.7, 0.7, 0.1], [1.0, 0.4, 0.9, 0.9], [1.0, 1.0, 0.35, 0.02], [1.0, 1.0, 1.0, 0.5]])


def ladder_of(costs):
    return mls.Ladder([lambda x, t: x] * len(costs), costs=costs)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def estimates(plan, values):
    """F of every step and sample for drift values f (K, d): (N, B, d)."""
    return plan.coefficients @ values


@pytest.mark.parametrize("draw", DRAWS, ids=NAMES)
def test_the_mean_estimate_is_the_top_drift(draw):
    values = torch.randn(4, 3, dtype=torch.float64, generator=generator())
    plan = mls.draw_plan(TABLE, draw, generator=generator(1), samples=100_000)
    sample = estimates(plan, values)
    error = sample.std(1) / len(sample[0]) ** 0.5
    assert ((sample.mean(1) - values[-1]).abs() <= 4 * error + 1e-12).all()


@given(
    levels=st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=4),
    seed=st.integers(0, 2**31),
    draw=st.sampled_from(DRAWS),
)
def test_weights_have_mean_one_for_any_probabilities(levels, seed, draw):
    p, count = torch.tensor([[1.0, *levels]], dtype=torch.float64), 4000
    plan = mls.draw_plan(p, draw, generator=generator(seed), samples=count)
    frequency = plan.hits.double().mean(1)
    # 40 examples of up to 4 levels: 5 standard errors are a false alarm in 1 of 10 000 runs; seeds are fixed.
    assert ((frequency - p).abs() <= 5 * (p * (1 - p) / count).sqrt() + 1 / count).all()
    torch.testing.assert_close(plan.weights, plan.hits / p[:, None], rtol=0, atol=0)


def test_the_variance_of_independent_draws_is_the_formula():
    values = torch.randn(4, 5, dtype=torch.float64, generator=generator())
    differences = values.diff(dim=0, prepend=torch.zeros(1, 5, dtype=torch.float64))
    p = torch.tensor([[1.0, 0.7, 0.5, 0.2]], dtype=torch.float64)
    sample = estimates(mls.draw_plan(p, mls.independent, generator=generator(3), samples=200_000), values)[0]
    expected = ((1 / p[0] - 1) * differences.square().sum(1)).sum()
    squares = (sample - values[-1]).square().sum(1)
    assert (squares.mean() - expected).abs() < 4 * squares.std() / len(squares) ** 0.5


def test_nested_draws_add_the_stated_cross_terms():
    values = torch.randn(3, 4, dtype=torch.float64, generator=generator(1))
    d = values.diff(dim=0, prepend=torch.zeros(1, 4, dtype=torch.float64))
    p = torch.tensor([[1.0, 0.5, 0.2]], dtype=torch.float64)
    sample = estimates(mls.draw_plan(p, mls.nested, generator=generator(3), samples=200_000), values)[0]
    squares = (sample - values[-1]).square().sum(1)
    expected = ((1 / p[0] - 1) * d.square().sum(1)).sum() + 2 * (1 / p[0, 1] - 1) * (d[1] @ d[2])
    assert (squares.mean() - expected).abs() < 4 * squares.std() / len(squares) ** 0.5


@pytest.mark.parametrize("draw", DRAWS, ids=NAMES)
def test_expected_cost_is_the_mean_realised_cost(draw):
    ladder = ladder_of(COSTS)
    plan = mls.draw_plan(TABLE, draw, generator=generator(4), samples=50_000)
    each = plan.evaluations.double() @ torch.tensor(COSTS, dtype=torch.float64)
    expected = mls.expected_cost(ladder, TABLE, draw)
    assert abs(each.mean() - expected) < 4 * each.std() / len(each) ** 0.5
    assert plan.cost(ladder) == pytest.approx(float(each.mean()), rel=1e-12)


@pytest.mark.parametrize(
    ("row", "cost"),
    [
        ([1.0, 1.0, 1.0, 1.0], 40.0),  # only the top network is left
        ([1.0, 1.0, 1.0, 1e-12], 10.0),
        ([1.0, 1e-12, 1e-12, 1e-12], 1.0),
        ([1.0, 0.5, 0.5, 0.5], 0.5 * 40.0 + 0.5 * 1.0 + 0.5 * 1.0),  # nested: all or none; f^1 has weight 1 - 2 or 1
    ],
)
def test_expected_cost_by_hand(row, cost):
    assert mls.expected_cost(ladder_of(COSTS), torch.tensor([row]), mls.nested) == pytest.approx(cost, rel=1e-9)


def test_expected_cost_of_a_truncated_table():
    table = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    for draw in DRAWS:
        assert mls.expected_cost(ladder_of(COSTS), table, draw) == 3.0 + 1.0


def test_equal_weights_cancel_though_probabilities_differ_in_the_last_bit():
    p = torch.tensor([[1.0, 1 - 2.0**-53, 1 - 2.0**-52]], dtype=torch.float64)  # both 1 / p round to 1 + 2^-52
    ladder = ladder_of([1.0, 8.0, 64.0])
    assert mls.draw_plan(p, mls.systematic, generator=generator()).cost(ladder) == 65.0
    assert mls.expected_cost(ladder, p) == pytest.approx(65.0, rel=1e-12)


def test_a_network_is_needed_exactly_where_its_coefficient_is_not_zero():
    hits = torch.tensor([[True, False, True], [True, True, False], [True, True, True], [True, False, False]])
    weights = torch.tensor([[1.0, 0.0, 4.0], [1.0, 2.0, 0.0], [1.0, 4.0, 4.0], [1.0, 0.0, 0.0]])
    plan = mls.Plan(hits, weights)
    assert plan.coefficients.tolist() == [[1, -4, 4], [-1, 2, 0], [-3, 0, 4], [1, 0, 0]]
    assert plan.evaluations.tolist() == [4, 2, 2]
    assert plan.cost(ladder_of([1.0, 2.0, 8.0])) == 4 + 4 + 16


def test_em_is_probability_one_everywhere():
    ladder, times = ladder_of(COSTS), torch.linspace(1.0, 0.0, 8)
    plan = mls.em_plan(ladder, times)
    assert plan.evaluations.tolist() == [0, 0, 0, 7]
    for draw in DRAWS:
        assert plan == mls.draw_plan(torch.ones(7, 4), draw, generator=generator())
    assert not plan.truncated


def test_plans_do_not_change():
    hits, weights = torch.tensor([[True, True]]), torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    plan = mls.Plan(hits, weights)
    copy = mls.Plan(hits, weights)
    hits.fill_(False)
    weights.fill_(7.0)
    plan.hits.fill_(False)
    plan.weights.fill_(7.0)
    plan.coefficients.fill_(7.0)
    plan.needed.fill_(False)
    assert plan == copy
    assert plan.evaluations.tolist() == copy.evaluations.tolist() == [1, 1]
    with pytest.raises(AttributeError):
        plan.hits = hits
    with pytest.raises(AttributeError):
        plan.note = "changed"


def test_equality_compares_everything():
    hits, weights = torch.tensor([[True, True]]), torch.tensor([[1.0, 2.0]])
    plan = mls.Plan(hits, weights)
    assert plan == mls.Plan(hits.clone(), weights.double())
    assert plan != mls.Plan(hits, torch.tensor([[1.0, 3.0]]))
    assert plan != mls.Plan(hits, weights, truncated=True)
    assert mls.Plan(hits, torch.tensor([[1.0, 0.0]])) != mls.Plan(
        torch.tensor([[True, False]]), torch.tensor([[1.0, 0.0]])
    )
    assert plan != mls.Plan(hits[:, None], weights[:, None])
    assert plan != "plan"


def test_a_truncating_table_is_said():
    table = torch.tensor([[1.0, 0.5], [1.0, 0.0]])
    plan = mls.draw_plan(table, mls.systematic, generator=generator(), truncate=True)
    assert plan.truncated
    assert not plan.hits[1, 1]
    assert not mls.draw_plan(table[:1], generator=generator(), truncate=True).truncated


def test_systematic_is_the_default_draw():
    table = TABLE.repeat(20, 1)
    default = mls.draw_plan(table, generator=generator(9))
    assert default == mls.draw_plan(table, mls.systematic, generator=generator(9))
