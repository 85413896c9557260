"""Laws of SA-Solver: orders, ladders of denoisers, dtype, gradients, and the errors it raises."""

import math
import re

import numpy as np
import pytest
import torch
from places import DOCS
from sa_solver_problem import COSINE, DOUBLE, EDM, mixture, random, solve

import multilevel_sde as mls
from multilevel_diffusion.process.grids import uniform
from multilevel_diffusion.process.noise import coupled_noise
from multilevel_diffusion.process.sa_solver import SASolver
from multilevel_diffusion.process.schedules import RectifiedFlowSchedule

MEAN, SCALE = 0.7, 0.5


def gaussian(schedule):
    """The exact denoiser of N(0.7, 0.5^2)."""

    def denoise(x, t):
        alpha, sigma = schedule.alpha(float(t)), schedule.sigma(float(t))
        return MEAN + alpha * SCALE**2 / (alpha**2 * SCALE**2 + sigma**2) * (x - alpha * MEAN)

    return denoise


def pair(schedule):
    return mls.Ladder([mixture(schedule, 0.05), mixture(schedule)], costs=[1.0, 8.0])


# -- orders -----------------------------------------------------------------------------------------------------------


def graded(steps, first=3.0, last=0.5, halvings=16):
    """Equal steps in lambda, the first cut into 2^-16, 2^-16, 2^-15, ..., 1/2 of itself: a start of low order."""
    low, high = -math.log(first), -math.log(last)
    h = (high - low) / steps
    places = [low, *(low + h * 2.0**-k for k in range(halvings, 0, -1)), *(low + h * i for i in range(1, steps + 1))]
    return torch.exp(-torch.tensor(places, dtype=DOUBLE))


CASES = [(p, 0, False, p) for p in (1, 2, 3, 4)]
CASES += [(p, p + 1, again, p + 1) for p in (1, 2, 3) for again in (False, True)]
CASES += [(1, 1, False, 1), (1, 4, False, 2), (1, 4, True, 2)]


@pytest.mark.parametrize("predict_noise", [False, True], ids=["data", "noise"])
@pytest.mark.parametrize(("predictor", "corrector", "again", "order"), CASES)
def test_order_for_the_ode_with_the_exact_denoiser(predictor, corrector, again, order, predict_noise):
    """Gaussian data: (x_t - alpha m) / sd_t is constant. min(c, p + 1) with a corrector; 1/N, 40 to 160 steps."""
    rule = SASolver(EDM, 0.0, predictor, corrector, again, lower_order_final=False, predict_noise=predict_noise)
    counts, errors, x = [40, 80, 160], [], torch.tensor([3.0, -1.0], dtype=DOUBLE)
    for steps in counts:
        times = graded(steps)
        scale = math.sqrt((SCALE**2 + float(times[-1]) ** 2) / (SCALE**2 + float(times[0]) ** 2))
        errors.append(float((solve(rule, gaussian(EDM), x, times).y - MEAN - scale * (x - MEAN)).abs().max()))
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(order, abs=0.2), errors


def strong_errors(rule, tau, counts, samples=60):
    """RMS distance from the 2048-step path of the same noise, from noise level 3 to 0.5, Gaussian data."""
    fine = torch.linspace(math.log(3.0), math.log(0.5), 2049, dtype=DOUBLE).exp()
    noise = {"diffusion": 1.0, "brownian": coupled_noise(EDM, range(samples), fine, tau)}
    x = MEAN + 3.0 * random(samples, 1)

    def end(step, steps):
        return solve(step, gaussian(EDM), x, fine[:: 2048 // steps].contiguous(), **noise).y

    reference = end(SASolver(EDM, tau, 2, 0), 2048)
    return [float((end(rule, steps) - reference).square().mean().sqrt()) for steps in counts]


@pytest.mark.parametrize(
    ("predictor", "corrector", "again"), [(1, 0, False), (2, 0, False), (3, 4, False), (2, 2, True)]
)
def test_strong_order_one_with_noise(predictor, corrector, again):
    counts = [32, 64, 128, 256]
    errors = strong_errors(SASolver(EDM, 1.0, predictor, corrector, again, lower_order_final=False), 1.0, counts)
    slope = -np.polyfit(np.log([1 / (1 / n - 1 / 2048) for n in counts]), np.log(errors), 1)[0]
    assert slope == pytest.approx(1.0, abs=0.2), errors


def test_the_error_of_order_one_is_proportional_to_tau():
    """tau h + h^2: with little noise the second order of the predictor is what is left."""
    small, large = (strong_errors(SASolver(EDM, tau, 2, 0), tau, [128])[0] for tau in (0.05, 0.3))
    first = strong_errors(SASolver(EDM, 0.05, 1, 0), 0.05, [128])[0]
    assert large / small == pytest.approx(6.0, rel=0.2)
    assert small < 0.1 * first


# -- ladders ----------------------------------------------------------------------------------------------------------

RULES = {
    "pec": SASolver(COSINE, 0.6),
    "pece": SASolver(COSINE, 0.6, 2, 2, True),
    "noise": SASolver(COSINE, 0.6, predict_noise=True),
}


@pytest.mark.parametrize("name", RULES)
def test_probability_one_is_the_top_network_alone_bit_for_bit(name):
    times, x = uniform(COSINE, 10), random(4, 2)
    noise = {"diffusion": 1.0, "brownian": coupled_noise(COSINE, range(4), times, 0.6)}
    ladder, rule = pair(COSINE), RULES[name]
    p = torch.ones(10, 2)[mls.plan_rows(rule, times)]
    plans = [mls.draw_plan(p, generator=torch.Generator().manual_seed(0), samples=samples) for samples in (None, 4)]
    alone = solve(rule, ladder.top(), x, times, **noise)
    for plan in plans:
        assert torch.equal(solve(rule, ladder, x, times, plan, **noise).y, alone.y)


@pytest.mark.parametrize("name", RULES)
def test_a_drawn_plan_evaluates_what_it_says_and_is_remembered_not_redrawn(name):
    """The same plan twice is the same result; the large network runs in the rows of its hits alone."""
    times, x = uniform(COSINE, 10), random(4, 2)
    noise = {"diffusion": 1.0, "brownian": coupled_noise(COSINE, range(4), times, 0.6)}
    calls, networks = [0, 0], pair(COSINE).drifts

    def counted(level):
        def net(y, t):
            calls[level] += 1
            return networks[level](y, t)

        return net

    ladder, rule = mls.Ladder([counted(0), counted(1)], costs=[1.0, 8.0]), RULES[name]
    p = torch.tensor([1.0, 0.3]).expand(10, 2)[mls.plan_rows(rule, times)]
    plan = mls.draw_plan(p, generator=torch.Generator().manual_seed(0))
    first, second = (solve(rule, ladder, x, times, plan, **noise) for _ in range(2))
    assert torch.equal(first.y, second.y)
    assert first.stats.calls == tuple(count // 2 for count in calls) == tuple(plan.evaluations.tolist())
    assert 0 < calls[1] < calls[0]


@pytest.mark.parametrize("again", [False, True], ids=["pec", "pece"])
def test_the_mean_over_draws_is_the_top_network_for_linear_networks(again):
    """Every term of y holds each draw at most once; 4000 draws of 8 steps, 4 standard errors."""
    rule, times = SASolver(EDM, 0.0, 2, 3, again, lower_order_final=False), graded(8, halvings=0)
    networks = [lambda x, t: 0.5 * gaussian(EDM)(x, t), gaussian(EDM)]
    ladder, x = mls.Ladder(networks, costs=[1.0, 8.0]), torch.full((4000,), 2.0, dtype=DOUBLE)
    p = torch.tensor([1.0, 0.5]).expand(8, 2)[mls.plan_rows(rule, times)]
    plan = mls.draw_plan(p, mls.independent, generator=torch.Generator().manual_seed(3), samples=4000)
    y = solve(rule, ladder, x, times, plan).y
    exact = solve(rule, ladder.top(), x[:1], times).y
    assert abs(float(y.mean() - exact)) < 4 * float(y.std()) / math.sqrt(4000)
    assert float(y.std()) > 0.05


# -- the rest ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_is_kept_and_the_rule_may_be_used_again(dtype):
    times, x = uniform(COSINE, 8), random(3, 2).to(dtype)
    rule = SASolver(COSINE)
    first = solve(rule, mixture(COSINE), x, times).y
    solve(rule, mixture(COSINE), -x, times)
    assert first.dtype == dtype
    assert torch.equal(solve(rule, mixture(COSINE), x, times).y, first)


def test_gradients_go_through_the_memory():
    def end(x, scale):
        return solve(SASolver(COSINE), lambda x, t: scale * torch.tanh(x), x, uniform(COSINE, 5), gradients=True).y

    assert torch.autograd.gradcheck(end, (random(3).requires_grad_(), torch.tensor(0.8, dtype=DOUBLE).requires_grad_()))


def test_the_examples_of_the_page_run_and_print_what_it_says(capsys):
    page = (DOCS / "samplers.md").read_text(encoding="utf-8")
    names = {}
    for code, output in re.findall(r"```python\n((?:(?!```).)*)```\n\nprints\n\n```text\n(.*?)```", page, re.DOTALL):
        exec(code, names)
        assert capsys.readouterr().out == output
    rule = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[-1]
    exec(rule, names)
    # With a constant estimate of the data the ODE of EDM is linear, and every step towards 0 is exact.
    times, x = torch.tensor([2.0, 1.0, 0.5, 0.0], dtype=DOUBLE), random(5)
    solution = solve(names["EDMHeun"](), lambda y, t: (y - 0.3) / t, x, times)
    torch.testing.assert_close(solution.y, torch.full_like(x, 0.3))
    assert solution.stats.calls == (5,)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SASolver("cosine"), TypeError, '"schedule"'),
        (lambda: SASolver(COSINE, -1.0), ValueError, '"tau"'),
        (lambda: SASolver(COSINE, predictor=0), ValueError, '"predictor"'),
        (lambda: SASolver(COSINE, predictor=5), ValueError, '"predictor" must be at most 4'),
        (lambda: SASolver(COSINE, corrector=5), ValueError, '"corrector" must be at most 4'),
        (lambda: SASolver(COSINE, corrector=-1), ValueError, '"corrector"'),
        (lambda: SASolver(COSINE, corrector=0, evaluate_corrected=True), ValueError, '"evaluate_corrected"'),
        (lambda: SASolver(COSINE, moments="exact"), TypeError, '"moments"'),
        (lambda: solve(SASolver(COSINE, 1.0), mixture(COSINE), random(2), [0.5, 0.4]), ValueError, '"noise"'),
        (
            lambda: solve(
                SASolver(RectifiedFlowSchedule(), predict_noise=True),
                mixture(RectifiedFlowSchedule()),
                random(2),
                [1.0, 0.5],
            ),
            ValueError,
            "where alpha = 0",
        ),
    ],
)
def test_errors_name_the_argument(make, error, message):
    with pytest.raises(error, match=message):
        make()
