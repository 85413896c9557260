"""Laws of the greedy allocation: optimal weights, honest errors, every pick the best one, nothing paid twice."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import multilevel_sde as mls
from multilevel_sde.pilots.allocation import allocate, shrink
from multilevel_sde.pilots.curves import adjacent_needs, plan_of
from multilevel_sde.pilots.level_choice import choose_levels
from multilevel_sde.pilots.responses import Responses
from multilevel_sde.plans.plan import Plan


def exact_error(gram: torch.Tensor, plan: Plan) -> float:
    """The first-order error by the measured matrix itself, without shrinkage."""
    return Responses(gram, gram, gram, torch.ones(plan.steps, plan.levels - 1)).error(plan.weights)


def gram_of(size, rank, seed):
    factor = torch.randn(size, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return factor @ factor.T / rank


def single_needs(size):
    """Every response has its own evaluation."""
    return torch.arange(size)[:, None].expand(size, 2)


def posterior_error(gram, hits):
    """1' (G - G_H G_HH^-1 G_H') 1, with nothing updated step by step."""
    if not hits:
        return float(gram.sum())
    part = gram[hits]
    return float(gram.sum() - part.sum(1) @ torch.linalg.solve(part[:, hits], part.sum(1)))


@st.composite
def problems(draw):
    levels, steps = draw(st.integers(2, 4)), draw(st.integers(3, 8))
    size = (levels - 1) * steps
    gram = shrink(gram_of(size, draw(st.integers(size, 2 * size)), draw(st.integers(0, 10**6))), 0.05)
    costs = sorted(draw(st.lists(st.floats(0.1, 100.0), min_size=levels, max_size=levels, unique=True)))
    needs, prices = adjacent_needs(costs, steps)
    return gram, needs, prices, draw(st.floats(0.02, 1.2)) * float(prices.sum())


@given(problem=problems())
def test_costs_errors_and_weights_are_what_they_say(problem):
    gram, needs, prices, budget = problem
    result = allocate(gram, needs, prices, budget)
    assert all(cost <= budget * (1 + 1e-9) for cost in result.costs)
    assert all(later <= earlier + 1e-12 for earlier, later in zip(result.errors, result.errors[1:], strict=False))
    assert len(set(result.picks)) == len(result.picks)
    for count in range(len(result.picks) + 1):
        hits = list(result.picks[:count])
        paid = prices[needs[hits].unique()].sum() if hits else torch.tensor(0.0)
        assert ([0.0, *result.costs])[count] == pytest.approx(float(paid), rel=1e-9, abs=1e-9)
        assert result.errors[count] == pytest.approx(posterior_error(gram, hits), rel=1e-7, abs=1e-9 * result.errors[0])
        weights = result.weights(count)
        torch.testing.assert_close(gram[hits] @ weights, gram[hits].sum(1), rtol=1e-7, atol=1e-9)  # normal equations
        assert weights.count_nonzero() <= count
        left_out = weights - 1
        assert float(left_out @ gram @ left_out) == pytest.approx(result.errors[count], rel=1e-6, abs=1e-9)


@given(problem=problems(), share=st.floats(0.1, 1.0))
def test_a_smaller_budget_takes_the_first_picks_as_long_as_they_are_affordable(problem, share):
    gram, needs, prices, budget = problem
    large, small = allocate(gram, needs, prices, budget), allocate(gram, needs, prices, share * budget)
    count = large.count_within(share * budget)
    assert small.picks[:count] == large.picks[:count]
    assert small.errors[:count] == pytest.approx(large.errors[:count])
    assert count == sum(cost <= share * budget * (1 + 1e-9) for cost in large.costs)


@given(problem=problems())
def test_every_pick_lowers_the_error_most_for_its_price(problem):
    gram, needs, prices, budget = problem
    result = allocate(gram, needs, prices, budget)
    paid = torch.zeros(len(prices), dtype=torch.bool)
    for turn, pick in enumerate(result.picks):
        hits = list(result.picks[:turn])
        spent = float(prices[paid].sum())

        def rate(index, hits=hits, spent=spent, paid=paid):
            price = float(prices[[n for n in needs[index].unique().tolist() if not paid[n]]].sum())
            if index in hits or spent + price > budget:
                return 0.0
            gain = posterior_error(gram, hits) - posterior_error(gram, [*hits, index])
            return gain / max(price, 1e-9 * float(prices.max()))

        best = max(rate(index) for index in range(len(gram)))
        assert rate(pick) >= best * (1 - 1e-5)
        paid[needs[pick]] = True


def test_a_network_evaluated_for_the_neighbour_is_free():
    needs, prices = adjacent_needs([1.0, 4.0, 16.0], steps=2)
    assert prices.tolist() == [0.0, 0.0, 4.0, 4.0, 16.0, 16.0]  # the lowest level runs anyway
    assert needs.tolist() == [[2, 0], [3, 1], [4, 2], [5, 3]]
    # The upper correction at step 0 dominates and pays 16 + 4; the lower one at step 0 then costs nothing.
    gram = torch.diag(torch.tensor([1.0, 1.0, 100.0, 1e-3], dtype=torch.float64))
    result = allocate(gram, needs, prices, budget=20.0)
    assert (result.picks, result.costs) == ((2, 0), (20.0, 20.0))


def test_it_ends_once_nothing_is_left_to_explain():
    gram = gram_of(12, rank=3, seed=0)
    result = allocate(gram, single_needs(12), torch.ones(12), budget=12.0)
    assert len(result.picks) == 3
    assert result.errors[-1] == pytest.approx(0.0, abs=1e-9 * result.errors[0])


def test_many_picks_agree_with_few():
    gram = shrink(gram_of(150, rank=300, seed=1), 0.05)
    result = allocate(gram, single_needs(150), torch.ones(150), budget=140.0)
    assert len(result.picks) == 140  # more than the rows set aside at first
    assert result.errors[140] == pytest.approx(posterior_error(gram, list(result.picks)), rel=1e-6)


def test_the_inputs_are_left_as_they_are():
    gram, prices = gram_of(6, 12, 2), torch.ones(6)
    before = gram.clone()
    allocate(gram, single_needs(6), prices, budget=3.0)
    assert torch.equal(gram, before)
    assert prices.tolist() == [1.0] * 6


def test_no_budget_no_picks():
    result = allocate(gram_of(4, 8, 3), single_needs(4), torch.ones(4), budget=0.5)
    assert (result.picks, result.weights(0).tolist()) == ((), [0.0] * 4)


def test_shrinking_keeps_the_diagonal_and_definiteness():
    gram = gram_of(8, 3, 4)
    shrunk = shrink(gram, 0.1)
    torch.testing.assert_close(torch.diag(shrunk), torch.diag(gram))
    torch.testing.assert_close(shrunk[0, 1], 0.9 * gram[0, 1])
    assert torch.linalg.eigvalsh(shrunk).min() > 0


def test_the_error_of_a_plan_is_the_quadratic_form_of_what_it_leaves_out():
    gram = gram_of(6, 12, 5)
    weights = torch.tensor([1.5, 0.0, 0.0, 0.0, -0.5, 2.0], dtype=torch.float64)
    plan = plan_of(weights, steps=3, levels=3)
    assert plan.weights.tolist() == [[1.0, 1.5, 0.0], [1.0, 0.0, -0.5], [1.0, 0.0, 2.0]]
    assert exact_error(gram, plan) == pytest.approx(float((weights - 1) @ gram @ (weights - 1)))


def test_levels_are_chosen_as_an_exhaustive_search_would():
    # Uncorrelated steps make the greedy choice of one raise optimal; two levels above the lowest, one affordable raise.
    generator = torch.Generator().manual_seed(3)
    parts = [torch.randn(2, 5, generator=generator, dtype=torch.float64) for _ in range(4)]
    gram = torch.zeros(2, 4, 2, 4, dtype=torch.float64)
    for n, part in enumerate(parts):
        gram[:, n, :, n] = part @ part.T
    responses = Responses(*[gram.reshape(8, 8)] * 3, torch.ones(4, 2))
    costs = [1.0, 3.0, 9.0]
    chosen = choose_levels(responses, costs, budget=4 + 8.0)

    def error(levels):
        weights = (torch.arange(3) <= torch.tensor(levels)[:, None]).double()
        return responses.error(weights)

    affordable = [
        levels for levels in itertools.product(range(3), repeat=4) if sum(costs[level] for level in levels) <= 12
    ]
    assert error(chosen.tolist()) < error([0] * 4)
    assert sum(costs[level] for level in chosen.tolist()) <= 12
    assert error(chosen.tolist()) <= 1.2 * min(error(levels) for levels in affordable)


def test_a_choice_keeps_within_its_budget_and_uses_one_level_a_step():
    problem = mls.problems.scaling_law(2.5, levels=3)
    pilot = mls.pilot(problem.ladder, problem.y0(8), problem.times(80), candidates=40)
    found = pilot.choice(budget=6 * problem.ladder.costs[-1])
    assert found.plan.truncated
    assert found.plan.evaluations.sum() == found.plan.steps
    assert found.plan.cost(problem.ladder) <= 6 * problem.ladder.costs[-1] * (1 + 1e-9)
    times, y0 = problem.times(80), problem.y0(8)
    target = mls.solve(problem.ladder, y0, times, mls.em_plan(problem.ladder, times)).y
    lowest = mls.Plan(*[torch.tensor([[1.0, 0.0, 0.0]] * 10)] * 2, truncated=True)

    def error(plan):
        return float((mls.solve(problem.ladder, y0, times[::8], plan).y - target).square().mean())

    assert found.plan.steps == 10
    assert error(found.plan) < 0.1 * error(lowest)


def test_raising_a_step_gains_twice_its_covariance_less_its_own_size():
    # 2 * 3 - 1 = 5 at the first step, 2 * 5.5 - 5.5 = 5.5 at the second.
    gram = torch.diag(torch.tensor([1.0, 5.5], dtype=torch.float64))
    cross = torch.diag(torch.tensor([3.0, 5.5], dtype=torch.float64))
    responses = Responses(gram, cross, cross, torch.ones(2, 1))
    assert choose_levels(responses, [1.0, 10.0], budget=11.0).tolist() == [0, 1]
    assert responses.error(torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)) == pytest.approx(8.5 - 5.5)
