"""Laws of plans that track their corrections: totals, posterior means, equal costs, and predictions that hold."""

import dataclasses
import functools
from functools import partial
from itertools import pairwise

import pytest
import torch

import multilevel_sde as mls
from multilevel_sde.pilots.answers import Form
from multilevel_sde.pilots.curves import allocate_levels
from multilevel_sde.pilots.responses import Responses
from multilevel_sde.pilots.tracking import predictor, total_weights, track, tracking_table
from multilevel_sde.pilots.trial import typical
from multilevel_sde.plans.memory import combined, corrections

WAVES = torch.tensor([[1.0, 2.0, 3.0], [2.0, -1.0, 1.0], [0.5, 0.3, -2.0]], dtype=torch.float64)
AB2 = partial(mls.adams_bashforth_weights, order=2)


def errors_of_level(k, t):
    return 2.0**-k * torch.sin(WAVES[k] * (1 + 4 * t) + k)


def scalar_ladder(rate):
    """f^k = -rate y + e_k(t): every component decays alike, so that responses differ by a number, the gain."""

    def level(k):
        return lambda y, t: -rate * y + errors_of_level(k, t)

    return mls.Ladder([level(k) for k in range(3)], costs=[1.0, 10.0, 100.0])


def start(samples=4):
    return torch.randn(samples, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def grid(steps):
    return torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64)


def uneven(steps):
    return grid(steps) ** 1.5


def some_part(steps=12, stride=1, seed=0):
    """Responses of one correction with random gains, from a Gaussian process on `steps` x `stride` candidates."""
    generator = torch.Generator().manual_seed(seed)
    times = uneven(steps * stride)[1:]
    gains = 0.5 + torch.rand(len(times), generator=generator, dtype=torch.float64)
    sizes = 0.2 + torch.rand(len(times), generator=generator, dtype=torch.float64)
    process = torch.exp(-8 * (times[:, None] - times).square()) * sizes[:, None] * sizes
    coefficients = 0.5 + torch.rand(len(times), generator=generator, dtype=torch.float64)
    return Responses.measured(process * gains[:, None] * gains, coefficients, sizes[:, None].square(), stride)


HITS = [1, 4, 5, 9]


# -- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2])
def test_what_a_correction_is_worth_in_all_is_its_quadrature_weight(stride):
    part = some_part(stride=stride)
    table = tracking_table(part, HITS)
    gain = part.gain()
    worth = (table * gain[:, None] / gain).sum(0)
    optimal = torch.linalg.solve(part.gram[HITS][:, HITS], part.cross[HITS].sum(1))
    torch.testing.assert_close(worth[HITS], optimal, rtol=1e-6, atol=1e-6)
    plan = combined(0, torch.ones(12, 1), {(0, 1): table}, 2)
    torch.testing.assert_close(total_weights(plan, part)[HITS, 1], optimal, rtol=1e-6, atol=1e-6)
    others = [n for n in range(12) if n not in HITS]
    assert table[:, others].abs().max() == 0
    assert table.triu(1).abs().max() == 0


@pytest.mark.parametrize("stride", [1, 2])
def test_at_every_step_the_sum_so_far_is_the_best_estimate(stride):
    """u_n by conditioning on the hits up to n of the candidates up to the end of step n, written as a regression."""
    part = some_part(stride=stride)
    gain = part.gain()
    sums = (tracking_table(part, HITS) * gain[:, None] / gain).cumsum(0)
    for n in range(12):
        known = [h for h in HITS if h <= n]
        expected = torch.zeros(12, dtype=torch.float64)
        if known:
            due = part.cross[known][:, : (n + 1) * stride].sum(1)
            expected[known] = torch.linalg.solve(part.gram[known][:, known], due)
        torch.testing.assert_close(sums[n], expected, rtol=1e-6, atol=1e-6)


def test_hits_with_equal_responses_do_no_harm():
    """Three responses that are copies of each other: the matrix is singular, the table finite and the total 3."""
    ones = torch.ones(3, 3, dtype=torch.float64)
    part = Responses(ones, ones, ones, torch.ones(3, 1, dtype=torch.float64))
    table = tracking_table(part, [0, 1, 2])
    assert table.sum(1).tolist() == pytest.approx([1.0, 1.0, 1.0], abs=1e-6)


def test_the_predictor_is_the_regression_of_one_correction_on_another():
    """E D(n) D(h) / E D(h)^2 over components; 5% of what lies off the diagonal is not trusted."""
    measured = mls.pilot(scalar_ladder(0.8), start(), uneven(16), candidates=16)
    coefficient = measured.memory()
    for level in (1, 2):
        values = torch.stack([errors_of_level(level, t) - errors_of_level(level - 1, t) for t in uneven(16)[:-1]])
        for n, h in [(5, 3), (15, 0), (8, 7)]:
            regression = (values[n] @ values[h]) / (values[h] @ values[h])
            assert coefficient(level, n, h) == pytest.approx(0.95 * float(regression), rel=1e-9)
        assert coefficient(level, 4, 4) == pytest.approx(1.0)


def test_the_predictor_of_a_coarser_plan_is_that_of_its_steps():
    """The same times on a coarser plan: c[n, h] of every second candidate."""
    measured = mls.pilot(scalar_ladder(0.0), start(), grid(16), candidates=16)
    fine, coarse = measured.memory(), measured.memory(8)
    assert [coarse(2, n, n // 2) for n in range(8)] == pytest.approx([fine(2, 2 * n, n // 2 * 2) for n in range(8)])
    part = measured.responses(8).merged(1, 2)
    assert float(predictor(part)[5, 2]) == pytest.approx(coarse(2, 5, 2))


# -- plans of a pilot -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("diffusion", [None, 0.4])
@pytest.mark.parametrize("budget", [300.0, 700.0, 1500.0])
@pytest.mark.parametrize("times", [grid(32), uneven(32)], ids=["even", "uneven"])
def test_where_gains_are_numbers_tracking_ends_where_impulses_do(times, budget, diffusion):
    """Corrections do not feel the path here, so that only the totals count, and those are the same."""
    ladder, y0 = scalar_ladder(0.8), start()
    noise = {"diffusion": diffusion, "brownian": mls.BrownianPath(range(4), grid=times)} if diffusion else {}
    measured = mls.pilot(ladder, y0, times, candidates=32, **noise)
    weights = torch.zeros(32, 3, dtype=torch.float64)
    weights[:, 0] = 1.0
    for level, distance in ((1, 4), (2, 9)):
        part = measured.responses(32).merged(level - 1, level)
        hits = list(range(distance // 2, 32, distance))
        weights[hits, level] = torch.linalg.solve(part.gram[hits][:, hits], part.target[hits])
    plans = [mls.Plan(weights != 0, weights)]
    plans += [best.plan for best in [measured.plan(budget=budget, memory=False)] if best.plan.steps == 32]
    for plan in plans:
        tracked = measured.track(plan)
        impulses, found = (mls.solve(ladder, y0, times, p, **noise).y for p in (plan, tracked))
        torch.testing.assert_close(found, impulses, rtol=0, atol=1e-7)
        assert measured.first_order(tracked) == pytest.approx(measured.first_order(plan), rel=1e-4)
        assert tracked.evaluations.tolist() == plan.evaluations.tolist()
        assert tracked.cost(ladder) == plan.cost(ladder)
        assert tracked.recall is not None


def test_with_constant_gain_the_state_between_hits_is_the_posterior_mean():
    """f^0 = 0: the state after step n is E[sum of all corrections up to n | the corrections hit so far]."""
    y0, times = start(), uneven(24)
    still = mls.Ladder([lambda y, t: 0 * y, lambda y, t: errors_of_level(1, t) + 0 * y], costs=[1.0, 10.0])
    measured = mls.pilot(still, y0, times, candidates=24)
    hits = [2, 3, 9, 14, 20]
    flags = torch.tensor([[True, n in hits] for n in range(24)])
    tracked = measured.track(mls.Plan(flags, flags.double() * torch.tensor([1.0, 7.0])))
    found = mls.solve(still, y0, times, tracked, save=True).ys - y0
    values = torch.stack([(s - t) * errors_of_level(1, t) for t, s in pairwise(times)])
    gram = values @ values.T / 3
    gram = 0.95 * gram + 0.05 * gram.diagonal().diag()
    for n in range(24):
        known = [h for h in hits if h <= n]
        mean = torch.linalg.solve(gram[known][:, known], gram[known][:, : n + 1].sum(1)) @ values[known]
        torch.testing.assert_close(found[n + 1], mean.expand(4, 3), rtol=0, atol=1e-7)


def test_a_tracking_plan_of_left_out_levels_merges_their_corrections():
    ladder, y0, times = scalar_ladder(0.8), start(), grid(32)
    measured = mls.pilot(ladder, y0, times, candidates=32)
    flags = torch.tensor([[True, n % 5 == 2, n % 5 == 2] for n in range(32)])
    tracked = measured.track(mls.Plan(flags, flags.double() * torch.tensor([1.0, 5.0, 5.0])))
    assert tracked.evaluations.tolist() == [32, 0, 6]
    part = measured.responses(32).merged(0, 2)
    found = total_weights(tracked, measured.responses(32))
    hits = list(range(2, 32, 5))
    optimal = torch.linalg.solve(part.gram[hits][:, hits], part.target[hits])
    torch.testing.assert_close(found[hits, 1], optimal, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[:, 1], found[:, 2], rtol=0, atol=0)


FELT = {
    "sine": lambda y, t: -torch.sin(y),
    "linear": lambda y, t: -1.5 * y * (1 + torch.sin(3 * t)),
}


@pytest.mark.parametrize("distance", [5, 10, 15])
@pytest.mark.parametrize("name", FELT)
def test_tracking_is_better_than_impulses_where_corrections_feel_the_path(name, distance):
    """The same evaluations; impulses evaluate the next correction at a wrong state (see the module)."""
    ladder, times = mls.Ladder([lambda y, t: -y, FELT[name]], costs=[1.0, 30.0]), grid(120)
    y0 = torch.linspace(0.2, 2.5, 16, dtype=torch.float64)[:, None]
    measured = mls.pilot(ladder, y0, times, candidates=120)
    weights, part, hits = torch.zeros(120, 2, dtype=torch.float64), measured.responses(120), torch.arange(120)
    hits = hits[distance // 2 :: distance]
    weights[:, 0] = 1.0
    weights[hits, 1] = torch.linalg.solve(part.gram[hits][:, hits], part.target[hits])
    plan = mls.Plan(weights != 0, weights)
    target = mls.solve(ladder, y0, times, mls.em_plan(ladder, times)).y
    impulses, tracked = (
        float((mls.solve(ladder, y0, times, p).y - target).square().mean()) for p in (plan, measured.track(plan))
    )
    assert tracked < 0.25 * impulses


@pytest.mark.parametrize("order", [1, 2, 3])
def test_hits_at_every_step_are_the_multistep_method_on_the_top_level(order):
    """Three levels that feel the path differently; what is recalled is D(n - j) with a_j(n), not all weight at once."""
    base = partial(mls.adams_bashforth_weights, order=order)
    ladder = mls.Ladder([lambda y, t: -y, lambda y, t: -1.1 * y, FELT["sine"]], costs=[1.0, 10.0, 100.0])
    times, y0 = uneven(24), start()
    pilot = mls.pilot(ladder, y0, times, candidates=24, multistep=base)
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).expand(24, 3)  # the base is the level of weight 1
    everywhere = pilot.track(mls.Plan(weights > 0, weights))
    single = mls.multistep(mls.em_plan(ladder, times), base(times))
    assert pilot.first_order(everywhere) == pytest.approx(0, abs=2e-9 * float(pilot.gram.diagonal().sum()))
    assert corrections(everywhere) == [((k, k + 1), list(range(24))) for k in (0, 1)]
    torch.testing.assert_close(everywhere.coefficients[:, -1], single.coefficients[:, -1], rtol=1e-6, atol=1e-6)
    found, top = (mls.solve(ladder, y0, times, plan).y for plan in (everywhere, single))
    torch.testing.assert_close(found, top, rtol=1e-6, atol=1e-6)
    if order > 1:
        euler = mls.solve(ladder, y0, times, mls.em_plan(ladder, times)).y
        assert float((euler - top).abs().max()) > 1e-3


FOLDED = mls.Ladder([lambda y, t: -y, FELT["sine"]], costs=[1.0, 30.0]), grid(40)


@functools.cache
def pilots_of_folds(base):
    """A pilot of eight samples, and those without each fold of two."""
    ladder, times = FOLDED
    y0 = torch.linspace(0.2, 2.5, 8, dtype=torch.float64)[:, None]
    parts = [list(range(8)), *([n for n in range(8) if n % 4 != fold] for fold in range(4))]
    whole, *others = (mls.pilot(ladder, y0[kept], times, candidates=40, multistep=base) for kept in parts)
    known = {"coefficients": whole.coefficients, "variances": whole.variances}
    return whole, *(dataclasses.replace(one, **known) for one in others)


@pytest.mark.parametrize("base", [None, AB2])
@pytest.mark.parametrize("form", list(Form)[:3])
def test_calibrations_are_runs_of_plans_on_samples_kept_out(base, form):
    """Of the pilot of three quarters of the samples, on the rest, against the top level on the finest grid."""
    ladder, times, y0 = *FOLDED, torch.linspace(0.2, 2.5, 8, dtype=torch.float64)[:, None]
    whole, *without = pilots_of_folds(base)
    table = torch.ones(40, 1, dtype=torch.float64) if base is None else base(times)
    target = mls.solve(ladder, y0, times, mls.multistep(mls.em_plan(ladder, times), table)).y
    runs = [one for one in whole.calibration if one.form is form]
    if form is Form.BASE and base is None:
        assert not runs
        return
    parts = {40: (0.04, 0.12, 0.3, 0.5), 20: (0.1, 0.35, 0.8), 10: (0.35, 0.8)}  # less pays no correction
    budgets = {steps: [part * steps * 29.0 for part in shares] for steps, shares in parts.items()}
    assert [one.steps for one in runs] == [steps for steps, amounts in budgets.items() for _ in amounts]
    for (steps, budget), run in zip([(n, b) for n, amounts in budgets.items() for b in amounts], runs, strict=True):
        promises, expected, errors, coarse = 0.0, 0.0, [], times[:: 40 // steps]
        for fold, mine in enumerate(without):
            part, raw = mine.responses(steps), mine.responses(steps, 0.0)
            allocation = allocate_levels([part], [1.0, 30.0], budget)
            weights = torch.stack([torch.ones(steps), allocation.weights(len(allocation.picks))], 1)
            plain = mls.Plan(weights != 0, weights)
            own = None if base is None else base(coarse)
            tracked = track(plain, part, own)
            plan = {Form.TRACKED: tracked, Form.PLAIN: plain}.get(form) or mls.multistep(plain, own)
            promises += allocation.errors[-1] / 4
            expected += raw.error(total_weights(tracked, raw)) / 4
            errors.append((mls.solve(ladder, y0[fold::4], coarse, plan).y - target[fold::4]).square().mean(1))
        found = torch.cat(errors)
        assert run.promised == pytest.approx(promises, rel=1e-6)
        assert run.first_order == pytest.approx(expected, rel=1e-5, abs=1e-14)
        assert run.measured == pytest.approx(typical(found), rel=1e-6)
