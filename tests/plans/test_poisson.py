"""Laws of the Poisson limit: unbiased, with the variance of a Poisson process, at a cost that no grid enters."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import multilevel_sde as mls
from multilevel_sde.plans.poisson import PoissonPlan
from multilevel_sde.steps.rules import plan_rows

COARSE = torch.linspace(0.0, 1.0, 241, dtype=torch.float64)  # cells that are large enough to see
BASE = torch.linspace(0.0, 1.0, 13, dtype=torch.float64)
BOUND = 4.4  # standard errors; a normal variable is beyond with probability 1e-5


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def at_phase(phase: float):
    """Evenly spread arrivals behind a given phase."""
    return lambda total, generator: phase + torch.arange(math.ceil(total - phase), dtype=torch.float64)


def rate(t: Tensor) -> Tensor:
    return 6.0 + 5.0 * torch.sin(5 * t)


def phases_of(mean: Tensor) -> list[tuple[float, float]]:
    """Phases that between them give all draws, and their probabilities, from the expected jumps of the cells."""
    ends = torch.cat([mean.cumsum(0) % 1.0, torch.tensor([0.0, 1.0], dtype=torch.float64)]).unique()
    return [(float(a + b) / 2, float(b - a)) for a, b in pairwise(ends)]


def time_ladder(levels: int = 2) -> mls.Ladder:
    drifts = [lambda x, t, k=k: torch.cos(3 * k * t) + 0 * x for k in range(levels)]
    return mls.Ladder(drifts, [8.0**k for k in range(levels)])


def integral(drawn: PoissonPlan, correction: int = 1) -> float:
    """What a plan makes of the integral of sin(2 t) + 1, in the place of a correction."""
    t, steps = drawn.times[:-1], drawn.times.diff()
    return float((drawn.plan.weights[:, correction] * steps * (torch.sin(2 * t) + 1)).sum())


@pytest.mark.parametrize("backwards", [False, True])
def test_the_mean_over_the_phase_is_the_finest_sum(backwards):
    """Euler with a drift in time alone: exactly what EM on the top level does on the finest grid."""
    finest, base = (grid.flip(0) if backwards else grid for grid in (COARSE, BASE))
    ladder, y0 = time_ladder(), torch.zeros(1, dtype=torch.float64)
    mean = rate((finest[1:] + finest[:-1]) / 2) * finest.diff().abs()
    total = 0.0
    for phase, part in phases_of(mean):
        drawn = mls.poisson_plan([rate], base, generator=seeded(0), arrivals=at_phase(phase), finest=finest)
        whole = mls.solve(ladder, y0, drawn.times, drawn.plan).y
        total += part * float(
            whole
            - mls.solve(
                ladder.subset([0]), y0, drawn.times, mls.Plan([[True]] * drawn.plan.steps, [[1.0]] * drawn.plan.steps)
            ).y
        )
    top, low = (
        mls.solve(time_ladder().subset([k]), y0, finest, mls.em_plan(time_ladder().subset([k]), finest)).y
        for k in (1, 0)
    )
    assert total == pytest.approx(float(top - low), rel=1e-9)


def exponential(t: float, s: float) -> tuple[float, float]:
    """Coefficients of the state and of the estimate of a step that solves y' = c(t) (F - y) exactly, c = 1/(2 - t)."""
    keep = (2 - s) / (2 - t)
    return keep, 1 - keep


def test_an_exponential_step_is_unbiased_with_its_coefficient():
    """y' = (F - y) / (2 - t) with F in time alone: the mean over the phase is the exponential step's finest path."""

    def step(y, estimate, t, s, noise):
        keep, data = exponential(t, s)
        return keep * y + data * estimate

    ladder = mls.Ladder([lambda x, t: 0 * x, lambda x, t: torch.cos(3 * t) + 0 * x], [1.0, 8.0])
    y0, total = torch.ones(1, dtype=torch.float64), 0.0
    times = 1.5 * BASE
    for phase, part in phases_of(rate(1.5 * (COARSE[1:] + COARSE[:-1]) / 2) * 1.5 / 240):
        drawn = mls.poisson_plan(
            [rate], times, generator=seeded(0), arrivals=at_phase(phase), finest=1.5 * COARSE,
            coefficient=lambda t, s: exponential(t, s)[1],
        )  # fmt: skip
        total += part * float(mls.solve(ladder, y0, drawn.times, drawn.plan, step=step).y)
    fine = mls.solve(ladder, y0, 1.5 * COARSE, mls.em_plan(ladder, COARSE), step=step).y
    assert total == pytest.approx(float(fine), rel=1e-9)


def test_a_step_that_forgets_its_start_pays_the_last_cell_in_full():
    """Diffusion's step to the data returns the estimate: only a jump in the last cell counts, with weight 1 / m."""

    def coefficient(t, s):
        return 1.0 if s == 1.0 else s - t

    drawn = mls.poisson_plan(
        [60.0], BASE, generator=seeded(0), arrivals=at_phase(0.9), finest=COARSE, coefficient=coefficient
    )
    last = float(drawn.times[-2])
    assert last == float(COARSE[-2])
    assert float(drawn.plan.weights[-1, 1]) == pytest.approx(240 / 60)


def test_poisson_jumps_are_unbiased_with_the_variance_of_campbell():
    """Var of the sum of h / lambda over jumps = integral of h^2 / lambda (Campbell); mean = integral of h.

    1500 draws; both within 4.4 standard errors, of the variance by the sample's fourth moment.
    """
    found = torch.tensor(
        [integral(mls.poisson_plan([rate], BASE, generator=seeded(i), finest=COARSE)) for i in range(1500)],
        dtype=torch.float64,
    )
    t = COARSE[:-1]
    h, density = torch.sin(2 * t) + 1, rate((COARSE[1:] + COARSE[:-1]) / 2)
    mean, variance = float(h.sum() / 240), float((h**2 / density).sum() / 240)
    assert abs(float(found.mean()) - mean) < BOUND * math.sqrt(variance / 1500)
    squares = (found - mean) ** 2
    assert abs(float(squares.mean()) - variance) < BOUND * float(squares.std()) / math.sqrt(1500)


@pytest.mark.parametrize("arrivals", [mls.poisson_arrivals, mls.even_arrivals])
def test_random_draws_are_unbiased_on_the_default_cells(arrivals):
    """40 draws of two corrections from a table; a mean beyond 4.4 standard errors has probability 1e-4."""
    table = mls.FixedSchedule(torch.tensor([1.0, 0.5, 0.25])).probabilities(time_ladder(3), BASE)
    rates = mls.jump_rates(table, BASE)
    exact = (1 - math.cos(2.0)) / 2 + 1
    draws = [mls.poisson_plan(rates, BASE, generator=seeded(i), arrivals=arrivals) for i in range(40)]
    for correction in (1, 2):
        found = torch.tensor([integral(drawn, correction) for drawn in draws], dtype=torch.float64)
        assert abs(float(found.mean()) - exact) < BOUND * float(found.std()) / math.sqrt(40)


def test_even_arrivals_have_far_less_variance():
    spread = {}
    for arrivals in (mls.poisson_arrivals, mls.even_arrivals):
        values = [
            integral(mls.poisson_plan([80.0], BASE, generator=seeded(i), arrivals=arrivals, finest=COARSE))
            for i in range(100)
        ]
        spread[arrivals] = float(torch.tensor(values).var())
    assert spread[mls.even_arrivals] < 0.01 * spread[mls.poisson_arrivals]


def test_the_number_of_points():
    """A Poisson number has its mean as variance (2000 draws, 4.4 standard errors); an even one is within one of it."""
    counts = torch.tensor([len(mls.poisson_arrivals(7.3, seeded(i))) for i in range(2000)], dtype=torch.float64)
    squares = (counts - 7.3) ** 2
    assert abs(float(counts.mean()) - 7.3) < BOUND * math.sqrt(7.3 / 2000)
    assert abs(float(squares.mean()) - 7.3) < BOUND * float(squares.std()) / math.sqrt(2000)
    even = torch.tensor([len(mls.even_arrivals(7.3, seeded(i))) for i in range(2000)], dtype=torch.float64)
    assert set(even.tolist()) == {7.0, 8.0}
    assert abs(float(even.mean()) - 7.3) < BOUND * math.sqrt(0.21 / 2000)
    for arrivals in (mls.poisson_arrivals, mls.even_arrivals):
        points = arrivals(7.3, seeded(1))
        assert bool((points.diff() > 0).all())
        assert 0 <= float(points[0]) < float(points[-1]) < 7.3


@pytest.mark.parametrize("arrivals", [mls.poisson_arrivals, mls.even_arrivals])
def test_the_cost_of_the_corrections_does_not_depend_on_the_base_grid(arrivals):
    drawn = [
        mls.poisson_plan([rate, 3.0], torch.linspace(0.0, 1.0, steps + 1), generator=seeded(5), arrivals=arrivals)
        for steps in (10, 1000)
    ]
    assert all(torch.equal(a, b) for a, b in zip(drawn[0].jumps, drawn[1].jumps, strict=True))
    assert drawn[0].plan.evaluations[2] == drawn[1].plan.evaluations[2] == len(drawn[0].jumps[1])
    assert drawn[0].plan.evaluations[1] == drawn[1].plan.evaluations[1]
    assert int(drawn[1].plan.evaluations[0] - drawn[0].plan.evaluations[0]) >= 990 - len(drawn[0].times)


def test_a_jump_adds_the_correction_over_the_rate():
    drawn = mls.poisson_plan([rate], BASE, generator=seeded(3))
    jumps, steps = drawn.jumps[0], drawn.times.diff()
    places = torch.searchsorted(drawn.times, jumps)
    assert torch.equal(drawn.times[places], jumps)
    assert torch.allclose(drawn.plan.weights[places, 1] * steps[places], 1 / rate(jumps), rtol=1e-5)
    assert torch.equal(drawn.plan.hits[:, 1].nonzero()[:, 0], places)
    assert (drawn.plan.weights[:, 0] == 1).all()
    assert set(BASE.tolist()) <= set(drawn.times.tolist())


def test_on_the_base_grid_even_jumps_are_systematic_draws():
    """With one cell a step and p / eta as the rate: the hits and the weights 1 / p of the systematic draw."""
    p = torch.stack([torch.ones(12), 0.1 + 0.8 * torch.arange(12) / 12], dim=1).double()
    family = mls.PhasePlans(p)
    for u in (0.13, 0.5, 0.87):
        drawn = mls.poisson_plan(
            mls.jump_rates(p, BASE), BASE, generator=seeded(0), arrivals=at_phase(1 - u), finest=BASE
        )
        assert torch.equal(drawn.plan.hits, family.at(u).hits)
        assert torch.allclose(drawn.plan.weights, family.at(u).weights, rtol=1e-12)


@pytest.mark.parametrize("backwards", [False, True])
def test_cells_beyond_the_base_grid_and_their_order_do_not_matter(backwards):
    """A noise that is known for longer than the solve, in either order, gives the same plan."""
    base = BASE.flip(0) if backwards else BASE
    longer = torch.cat([COARSE - 1.0, COARSE[1:], COARSE[1:] + 1.0])
    same = [
        mls.poisson_plan([rate], base, generator=seeded(4), finest=finest)
        for finest in (COARSE, longer, longer.flip(0))
    ]
    assert all(torch.equal(drawn.times, same[0].times) and drawn.plan == same[0].plan for drawn in same[1:])
    assert float(same[0].times[0]) == float(base[0])
    assert float(same[0].times[-1]) == float(base[-1])


def test_several_jumps_in_a_cell_add_up():
    drawn = mls.poisson_plan(
        [100.0], [0.0, 0.5, 1.0], generator=seeded(0), arrivals=at_phase(0.5), finest=[0.0, 0.5, 1.0]
    )
    assert torch.equal(drawn.plan.weights[:, 1], torch.ones(2, dtype=torch.float64))
    assert len(drawn.jumps[0]) == 100


@pytest.mark.parametrize(("arrivals", "slope"), [(mls.poisson_arrivals, -1.0), (mls.even_arrivals, -2.0)])
def test_the_error_falls_with_the_rate(arrivals, slope):
    """On a smooth nonlinear ODE the squared error is of order 1 / rate for Poisson, 1 / rate^2 for even jumps."""
    ladder = mls.problems.scaling_law(3.0, levels=2, dimension=4).ladder
    y0, errors = mls.problems.scaling_law(3.0, levels=2, dimension=4).y0(8), []
    fine = torch.linspace(0.0, 1.0, 1001, dtype=torch.float64)
    top = mls.solve(ladder, y0, fine, mls.em_plan(ladder, fine)).y
    base = torch.linspace(0.0, 1.0, 201, dtype=torch.float64)
    bias = mls.solve(ladder, y0, base, mls.em_plan(ladder, base)).y - top  # of the base grid, the same for all
    for jumps in (16.0, 128.0):
        total = 0.0
        for seed in range(60):
            drawn = mls.poisson_plan([jumps], base, generator=seeded(seed), arrivals=arrivals, finest=fine)
            y = mls.solve(ladder, y0, drawn.times, drawn.plan).y
            total += float((y - top - bias).square().mean())
        errors.append(total)
    assert math.log(errors[1] / errors[0]) / math.log(8) == pytest.approx(slope, abs=0.35)


def test_plans_share_one_path_of_the_noise():
    """On [0, 1] jump times lie on the stated grid of BrownianPath; elsewhere the plan's times are the noise's grid."""
    ladder, y0 = mls.Ladder([lambda x, t: 0 * x, lambda x, t: 0 * x], [1.0, 8.0]), torch.zeros(3, 2)
    ends = []
    for seed in range(5):
        drawn = mls.poisson_plan([30.0], torch.linspace(0.0, 1.0, 8), generator=seeded(seed))
        path = mls.BrownianPath(range(3))
        ends.append(mls.solve(ladder, y0, drawn.times, drawn.plan, diffusion=1.0, brownian=path).y)
    assert all(torch.allclose(end, ends[0], atol=1e-5) for end in ends)
    drawn = mls.poisson_plan([30.0], [0.3, 0.2, -2.0], generator=seeded(0))
    path = mls.BrownianPath(range(3), grid=drawn.times)
    end = mls.solve(ladder, y0, drawn.times, drawn.plan, diffusion=1.0, brownian=path).y
    assert torch.allclose(end, path.like(y0)(0.3, -2.0), atol=1e-5)


@pytest.mark.parametrize("rule", [mls.Heun(), mls.Midpoint()])
def test_rules_take_the_rows_of_a_plan(rule):
    """A drift in time alone that is linear between the ends of a step: Heun and midpoint integrate jumps alike."""
    ladder = mls.Ladder([lambda x, t: 0 * x, lambda x, t: 1 + 0 * x], [1.0, 8.0])
    drawn = mls.poisson_plan([rate], BASE, generator=seeded(2))
    rows = plan_rows(rule, drawn.times)
    plan = mls.Plan(drawn.plan.hits[rows], drawn.plan.weights[rows])
    y = mls.solve(ladder, torch.zeros(1, dtype=torch.float64), drawn.times, plan, step=rule).y
    assert float(y) == pytest.approx(float((1 / rate(drawn.jumps[0])).sum()), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rates": []}, '"rates" is empty'),
        ({"rates": [0.0]}, "positive and finite"),
        ({"rates": [1.0, lambda t: t - 0.5]}, r'"rates\[1\]" must be positive'),
        ({"rates": [lambda t: t[:3] + 1]}, "one rate for each of 240 times"),
        ({"finest": [0.0, 0.4, 1.0]}, "not on the grid"),
        ({"finest": None, "times": [0.0, 1e-7, 1.0]}, "steps below 9.77e-07"),
        ({"coefficient": lambda t, s: 0.0}, '"coefficient" is 0'),
        ({"coefficient": lambda t, s: 1 / (s - t)}, "grow with the step"),
    ],
)
def test_bad_arguments(changes, message):
    values = {"rates": [rate], "times": BASE, "generator": seeded(0), "finest": COARSE} | changes
    with pytest.raises(ValueError, match=message):
        mls.poisson_plan(**values)


def test_bad_tables_and_generators():
    with pytest.raises(ValueError, match='"probabilities" has 3 steps, "times" has 12'):
        mls.jump_rates(torch.ones(3, 2), BASE)
    with pytest.raises(TypeError, match=r"torch\.Generator"):
        mls.poisson_plan([1.0], BASE, generator=0)
