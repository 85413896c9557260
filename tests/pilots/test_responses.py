"""Laws of responses: what coarse plans leave out, what merged levels amount to, what an allocation promises."""

from itertools import pairwise

import pytest
import torch

import multilevel_sde as mls
from multilevel_sde.pilots.curves import allocate_levels
from multilevel_sde.pilots.responses import SHRINKAGE, Responses

STEPS = 24
WAVES = torch.tensor([[1.0, 2.0, 3.0], [2.0, -1.0, 1.0], [0.5, 0.3, -2.0]], dtype=torch.float64)


def ladder(rate):
    """f^k = -rate y + e_k(t); the errors of neighbouring levels have much in common."""

    def level(k):
        return lambda y, t: -rate * y + 2.0**-k * torch.sin(WAVES[k] * (1 + 4 * t) + k)

    return mls.Ladder([level(k) for k in range(3)], costs=[1.0, 10.0, 100.0])


def grid(power=1.0):
    return torch.linspace(0.0, 1.0, STEPS + 1, dtype=torch.float64) ** power


def start():
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def weights_of(steps, seed):
    """Random weights on about half of the corrections."""
    generator = torch.Generator().manual_seed(seed)
    weights = 3 * torch.randn(steps, 3, generator=generator, dtype=torch.float64)
    weights[torch.rand(steps, 3, generator=generator) < 0.5] = 0.0
    weights[:, 0] = 1.0
    return weights


def part(gram):
    """Responses as measured, without shrinkage."""
    return Responses(gram, gram, gram, torch.ones(STEPS, 2, dtype=torch.float64))


def independent_error(measured, weights, stride):
    """What the error would be if no two responses had anything in common: the sum of those of all candidates.

    A coarse step stands for itself (its ratio s of coefficients, its weight w) and for the stride - 1 candidates that
    it jumps over, whose responses it does not know.
    """
    own, total = measured.gram.diagonal().reshape(2, STEPS), 0.0
    share = measured.coefficients.reshape(-1, stride).sum(1) / measured.coefficients[::stride]
    for k in range(2):
        for n in range(STEPS // stride):
            total += float((share[n] * weights[n, k + 1] - 1) ** 2 * own[k, stride * n])
            total += float(own[k, stride * n + 1 : stride * (n + 1)].sum())
    return total


@pytest.mark.parametrize("power", [1.0, 1.7], ids=["even", "uneven"])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_the_error_of_a_coarse_plan_is_predicted_exactly_where_steps_make_none(stride, power):
    """With f^0 = 0 the error is that of a quadrature; an allocation takes 5% as that of unrelated corrections."""
    still, times = ladder(0.0), grid(power)
    measured = mls.pilot(still, start(), times, candidates=times)
    target = mls.solve(still, start(), times, mls.em_plan(still, times)).y
    moving = mls.solve(still, start(), times, lowest(STEPS)).y
    for seed in range(4):
        weights = weights_of(STEPS // stride, seed)
        plan = mls.Plan(weights != 0, weights)
        found = mls.solve(still, start(), times[::stride], plan).y
        base = mls.solve(still, start(), times[::stride], lowest(STEPS // stride)).y
        error = float((found - base - (target - moving)).square().mean())  # the base's own steps are no level error
        assert measured.first_order(plan) == pytest.approx(error, rel=1e-9)
        cautious = (1 - SHRINKAGE) * error + SHRINKAGE * independent_error(measured, weights, stride)
        assert measured.responses(plan.steps).error(weights) == pytest.approx(cautious, rel=1e-9)
        assert measured.predict(plan).cost == pytest.approx(plan.cost(still))


def lowest(steps):
    weights = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).expand(steps, 3)
    return mls.Plan(weights > 0, weights, truncated=True)


@pytest.mark.parametrize("stride", [2, 4])
def test_the_error_of_a_coarse_plan_is_predicted_where_the_path_decays(stride):
    """A coarse step propagates by 1 - s h instead of (1 - h)^s: off by s h per unit of time, by 2 s h in the square."""
    decaying, times = ladder(0.8), grid()
    measured = mls.pilot(decaying, start(), times, candidates=STEPS)
    target = mls.solve(decaying, start(), times, mls.em_plan(decaying, times)).y
    moving = mls.solve(decaying, start(), times, lowest(STEPS)).y
    for seed in range(4):
        weights = weights_of(STEPS // stride, seed)
        plan = mls.Plan(weights != 0, weights)
        found = mls.solve(decaying, start(), times[::stride], plan).y
        base = mls.solve(decaying, start(), times[::stride], lowest(STEPS // stride)).y
        error = float((found - base - (target - moving)).square().mean())
        assert measured.first_order(plan) == pytest.approx(error, rel=2 * stride / STEPS)


def test_every_correction_at_every_step_leaves_no_error():
    measured = mls.pilot(ladder(0.8), start(), grid(), candidates=STEPS)
    responses = measured.responses(STEPS)
    assert responses.error(torch.ones(STEPS, 3, dtype=torch.float64)) == pytest.approx(0.0, abs=1e-15)
    assert responses.error(lowest(STEPS).weights) == pytest.approx(float(responses.fine.sum()), rel=1e-12)
    assert responses.error(lowest(STEPS).weights) > 1e-3


# -- merged levels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize(("low", "high"), [(0, 1), (1, 2), (0, 2), (1, 3)])
def test_merged_responses_are_sums(low, high, stride):
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(36, 40, generator=generator, dtype=torch.float64)
    variances = 0.5 + torch.rand(12, 3, generator=generator, dtype=torch.float64)
    whole = Responses.measured(half @ half.T, 0.5 + torch.rand(12, generator=generator).double(), variances, stride)
    merged, steps = whole.merged(low, high), 12 // stride
    assert (whole.steps, whole.levels, merged.steps, merged.levels) == (steps, 3, steps, 1)
    for n in range(steps):
        for m in range(12):
            blocks = [(k, j) for k in range(low, high) for j in range(low, high)]
            if m < steps:
                expected = sum(float(whole.gram[k * steps + n, j * steps + m]) for k, j in blocks)
                assert float(merged.gram[n, m]) == pytest.approx(expected, rel=1e-12)
            expected = sum(float(whole.cross[k * steps + n, j * 12 + m]) for k, j in blocks)
            assert float(merged.cross[n, m]) == pytest.approx(expected, rel=1e-12)
            expected = sum(float(whole.fine[k * 12 + n, j * 12 + m]) for k, j in blocks)
            assert float(merged.fine[n, m]) == pytest.approx(expected, rel=1e-12)
    weights = torch.zeros(steps, 4, dtype=torch.float64)
    weights[:, low + 1 : high + 1] = torch.rand(steps, 1, generator=generator, dtype=torch.float64)
    weights[:, high + 1 :] = 0.0
    one = torch.cat([torch.ones(steps, 1), weights[:, high : high + 1]], 1)
    rest = whole.error(weights) - whole.error(torch.zeros_like(weights))
    inside = [k * steps + n for k in range(low, high) for n in range(steps)]
    outside = [k * 12 + m for k in range(3) if not low <= k < high for m in range(12)]
    common = 2 * float((one[:, 1].repeat(high - low) @ whole.cross[inside][:, outside]).sum())
    assert rest + common == pytest.approx(merged.error(one) - merged.error(torch.zeros_like(one)), rel=1e-9)


def test_levels_left_out_are_measured_as_if_they_did_not_exist():
    whole = mls.pilot(ladder(0.8), start(), grid(), candidates=STEPS)
    two = mls.pilot(ladder(0.8).subset([0, 2]), start(), grid(), candidates=STEPS)
    torch.testing.assert_close(part(whole.gram).merged(0, 2).gram, two.gram, rtol=1e-12, atol=1e-18)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_the_gain_of_merged_corrections_is_theirs(stride):
    """Every response is s h (1 - h)^(steps left) times its correction, also where corrections have much in common."""
    measured = mls.pilot(ladder(0.8), start(), grid(), candidates=STEPS)
    h = 1 / STEPS
    expected = torch.tensor([h * (1 - 0.8 * h) ** (STEPS - 1 - n) for n in range(STEPS)], dtype=torch.float64)
    expected = stride * expected[::stride]
    for low, high in [(0, 1), (1, 2), (0, 2)]:
        torch.testing.assert_close(
            measured.responses(STEPS // stride).merged(low, high).gain(), expected, rtol=1e-9, atol=0
        )


# -- what has fallen due, and allocation ------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_what_has_fallen_due_ends_with_each_step(stride):
    measured = mls.pilot(ladder(0.8), start(), grid(), candidates=STEPS)
    one = measured.responses(STEPS // stride).merged(0, 1)
    for n in range(one.steps):
        torch.testing.assert_close(one.due()[:, n], one.cross[:, : (n + 1) * stride].sum(1), rtol=1e-12, atol=1e-16)
    torch.testing.assert_close(one.due()[:, -1], one.target, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_an_allocation_promises_the_error_of_its_weights(stride):
    """Level by level; its last promise is the least error of any weights on those hits."""
    measured = mls.pilot(ladder(0.8), start(), grid(), candidates=STEPS)
    steps = STEPS // stride
    parts = [measured.responses(steps).merged(k, k + 1) for k in (0, 1)]
    allocation = allocate_levels(parts, [1.0, 10.0, 100.0], 600.0)
    assert len(allocation.picks) > 5
    for count in range(len(allocation.picks) + 1):
        chosen = allocation.weights(count).reshape(2, steps)
        errors = [one.error(torch.stack([torch.ones(steps), w], 1)) for one, w in zip(parts, chosen, strict=True)]
        assert sum(errors) == pytest.approx(allocation.errors[count], rel=1e-6)
    assert all(before >= after for before, after in pairwise(allocation.errors))
    best = allocation.weights(len(allocation.picks))
    hit = (best != 0).nonzero()[:, 0]
    gradient = allocation.gram[hit] @ best - allocation.target[hit]
    assert float(gradient.abs().max()) < 1e-9 * float(allocation.target.abs().max())


def test_only_divisors_of_the_candidates_have_responses():
    measured = mls.pilot(ladder(0.8), start(), grid(), candidates=STEPS)
    with pytest.raises(ValueError, match='"what" has 7 steps, the pilot has 24 candidates; one must divide the other'):
        measured.responses(7)
