"""Laws of SA-Solver: orders, DDIM and DDPM at order one, formulas by hand, diffusers on the same noise, ladders."""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import multilevel_sde as mls
from multilevel_diffusion.grids import uniform
from multilevel_diffusion.multistep import exact_moments, midpoint_moments, multistep_weights, rescaled_moments
from multilevel_diffusion.noise import coupled_noise
from multilevel_diffusion.sa_solver import SASolver
from multilevel_diffusion.schedules import CosineSchedule, EDMSchedule, LinearSchedule, RectifiedFlowSchedule
from multilevel_diffusion.steps import DDIM, DDPM, ExponentialStep, NoiseExponentialStep

DOUBLE = torch.float64
COSINE, EDM, LINEAR = CosineSchedule(), EDMSchedule(0.01, 20.0), LinearSchedule()
MEAN, SCALE = 0.7, 0.5


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def gaussian(schedule):
    """The exact denoiser of N(0.7, 0.5^2)."""

    def denoise(x, t):
        alpha, sigma = schedule.alpha(float(t)), schedule.sigma(float(t))
        return MEAN + alpha * SCALE**2 / (alpha**2 * SCALE**2 + sigma**2) * (x - alpha * MEAN)

    return denoise


def mixture(schedule, shift=0.0):
    """The exact denoiser of half N(-1, 0.3^2), half N(0.5, 0.3^2), elementwise."""
    means = torch.tensor([-1.0, 0.5], dtype=DOUBLE) + shift

    def denoise(x, t):
        alpha, sigma = schedule.alpha(float(t)), schedule.sigma(float(t))
        variance = alpha**2 * 0.09 + sigma**2
        gap = x.double()[..., None] - alpha * means
        weights = torch.softmax(-(gap**2) / (2 * variance), -1)
        return (weights * (means + alpha * 0.09 / variance * gap)).sum(-1).to(x)

    return denoise


def pair(schedule):
    return mls.Ladder([mixture(schedule, 0.05), mixture(schedule)], costs=[1.0, 8.0])


def solve(step, drifts, x, times, plan=None, **noise):
    ladder = drifts if isinstance(drifts, mls.Ladder) else mls.Ladder([drifts], costs=[1.0])
    plan = mls.em_plan(ladder, times, step=step) if plan is None else plan
    return mls.solve(ladder, x, times, plan, step=step, **noise)


def by_normals(normals):
    """A brownian that gives these unit normals, one a step."""
    rest = iter(normals)
    return {"diffusion": 1.0, "brownian": lambda t, s: next(rest) * math.sqrt(abs(s - t))}


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


# -- order one and the formulas ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, lambda t: 1.0 if t > 0.5 else 0.0], ids=["0", "half", "1", "switch"])
def test_order_one_is_the_exponential_step_bit_for_bit(tau):
    times, x = uniform(COSINE, 12), random(4, 3)
    noise = {} if tau == 0.0 else {"diffusion": 1.0, "brownian": coupled_noise(COSINE, range(4), times, tau)}
    rule = solve(SASolver(COSINE, tau, 1, 0), mixture(COSINE), x, times, **noise).y
    assert torch.equal(rule, solve(ExponentialStep(COSINE, tau), mixture(COSINE), x, times, **noise).y)
    if tau in (0.0, 1.0):
        assert torch.equal(rule, solve({0.0: DDIM, 1.0: DDPM}[tau](COSINE), mixture(COSINE), x, times, **noise).y)


@pytest.mark.parametrize("tau", [0.0, 0.7])
@pytest.mark.parametrize("schedule", [COSINE, EDM, LINEAR], ids=["cosine", "edm", "linear"])
def test_the_step_that_holds_the_noise_is_its_formula(schedule, tau):
    t, s = 0.6 * schedule.t_max, 0.4 * schedule.t_max
    h = schedule.log_snr(s) - schedule.log_snr(t)
    x, eps, xi = random(3, 20)
    ratio, sigma = schedule.alpha(s) / schedule.alpha(t), schedule.sigma(s)
    expected = ratio * x - (1 + tau**2) * sigma * (math.exp(h) - 1) * eps
    expected += tau * sigma * math.sqrt(math.exp(2 * h) - 1) * xi
    made = NoiseExponentialStep(schedule, tau)(x, eps, t, s, xi * math.sqrt(t - s))
    torch.testing.assert_close(made, expected, rtol=1e-10, atol=1e-10)
    data = (x - schedule.sigma(t) * eps) / schedule.alpha(t)
    zero = NoiseExponentialStep(schedule)(x, eps, t, s, None)
    torch.testing.assert_close(zero, DDIM(schedule)(x, data, t, s, None), rtol=1e-10, atol=1e-10)
    end = NoiseExponentialStep(schedule)(x, eps, t, 0.0, None)
    torch.testing.assert_close(end, schedule.alpha(0.0) * data, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("lower_order_final", [False, True])
@pytest.mark.parametrize("moments", [exact_moments, rescaled_moments, midpoint_moments])
def test_the_predictor_is_the_exponential_step_with_the_table_of_weights(moments, lower_order_final):
    times, x, xi = uniform(LINEAR, 9), random(5), random(9, 5, seed=1)
    options = {"moments": moments, "lower_order_final": lower_order_final}
    for order in (2, 3):
        rule, weights = (
            SASolver(LINEAR, 0.6, order, 0, **options),
            multistep_weights(LINEAR, 0.6, times, order, **options),
        )
        y, known = x, []
        for n, (t, s) in enumerate(itertools.pairwise(times.tolist())):
            known.insert(0, mixture(LINEAR)(y, t))
            estimate = sum(w * value for w, value in zip(weights[n].tolist(), known, strict=False))
            y = ExponentialStep(LINEAR, 0.6)(y, estimate, t, s, xi[n] * math.sqrt(t - s))
        torch.testing.assert_close(
            solve(rule, mixture(LINEAR), x, times, **by_normals(xi)).y, y, rtol=1e-11, atol=1e-11
        )


def coefficients(schedule, tau, nodes, t, s):
    """(1 + tau^2) sigma_s e^{-tau^2 lambda_s} int e^{(1 + tau^2) lambda} l_j d lambda, by 60 points of Gauss."""
    start, end, k = schedule.log_snr(t), schedule.log_snr(s), 1 + tau**2
    points, weights = np.polynomial.legendre.leggauss(60)
    places = start + (end - start) * (1 + points) / 2
    scale = k * schedule.sigma(s) * math.exp(-(tau**2) * end) * (end - start) / 2
    out = []
    for j, node in enumerate(nodes):
        lagrange = np.prod([(places - other) / (node - other) for i, other in enumerate(nodes) if i != j], axis=0)
        out.append(scale * float((weights * np.exp(k * places) * lagrange).sum()))
    return out


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("again", [False, True], ids=["pec", "pece"])
def test_predictor_and_corrector_by_hand(again, final):
    """Predictor 3, corrector 4, tau = 0.7, with the same normals in both, on an uneven grid with nothing shared."""
    times, tau, x = [0.9, 0.8, 0.65, 0.55, 0.3, 0.12], 0.7, random(6)
    xi, net = random(5, 6, seed=1), mixture(COSINE)
    place = COSINE.log_snr

    def move(y, nodes, t, s, n):
        h = place(s) - place(t)
        out = math.exp(-(tau**2) * h) * COSINE.sigma(s) / COSINE.sigma(t) * y
        for b, (_, value) in zip(coefficients(COSINE, tau, [p for p, _ in nodes], t, s), nodes, strict=True):
            out = out + b * value
        return out + COSINE.sigma(s) * math.sqrt(1 - math.exp(-2 * tau**2 * h)) * xi[n]

    known, states, corrected = [(place(times[0]), net(x, times[0]))], [x], x
    for n, (t, s) in enumerate(itertools.pairwise(times)):
        limit = min(3, 5 - n) if final else 3
        predicted = move(corrected, known[:limit], t, s, n)
        ahead = (place(s), net(predicted, s))
        corrected = move(corrected, [ahead, *known[:limit]], t, s, n)
        known.insert(0, (place(s), net(corrected, s)) if again else ahead)
        states.append(corrected if again else predicted)
    rule = SASolver(COSINE, tau, 3, 4, again, lower_order_final=final)
    solution = solve(rule, net, x, times, save=True, **by_normals(xi))
    torch.testing.assert_close(solution.ys, torch.stack(states), rtol=1e-11, atol=1e-11)
    assert solution.stats.calls == (10 if again else 5,)


@pytest.mark.parametrize("again", [False, True], ids=["pec", "pece"])
@pytest.mark.parametrize("schedule", [COSINE, EDM, RectifiedFlowSchedule()], ids=["cosine", "edm", "flow"])
def test_a_last_step_to_the_data_returns_the_estimate_and_evaluates_once(schedule, again):
    """As does a first one from alpha = 0."""
    times, seen = uniform(schedule, 6), []

    def net(x, t):
        seen.append(mixture(schedule)(x, t))
        return seen[-1]

    rule = SASolver(schedule, evaluate_corrected=again)
    y = solve(rule, net, schedule.sigma(schedule.t_max) * random(8), times).y
    torch.testing.assert_close(y, seen[-1], rtol=1e-13, atol=1e-13)
    assert len(seen) == len(mls.plan_rows(rule, times)) == 6 + (5 - (schedule.alpha(schedule.t_max) == 0)) * again


def test_a_first_step_from_pure_noise_is_neither_corrected_nor_a_node():
    """alpha = 0 at the start: two steps are DDIM's, bit for bit."""
    flow, times = RectifiedFlowSchedule(), torch.tensor([1.0, 0.8, 0.5], dtype=DOUBLE)
    made = solve(SASolver(flow, lower_order_final=False), mixture(flow), random(8), times)
    assert torch.equal(made.y, solve(DDIM(flow), mixture(flow), random(8), times).y)


# -- diffusers --------------------------------------------------------------------------------------------------------


def scheduler_grid(scheduler, steps):
    """Set float64 noise levels of our own table; diffusers has float32 ones. Return our times of them."""
    scheduler.set_timesteps(steps)
    indices = scheduler.timesteps.tolist()
    times = torch.tensor([(index + 1) / 1000 for index in indices] + [1 / 1000], dtype=DOUBLE)
    ours = torch.exp(-LINEAR.log_snr(times))
    torch.testing.assert_close(ours.float(), scheduler.sigmas, rtol=1e-4, atol=0)
    scheduler.sigmas = ours
    return times, indices


def their_sa_solver(steps, predictor, corrector, tau, predict_noise, final):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.SASolverScheduler(
        predictor_order=predictor,
        corrector_order=corrector,
        prediction_type="sample",
        tau_func=tau,
        algorithm_type="noise_prediction" if predict_noise else "data_prediction",
        lower_order_final=final,
    )
    times, indices = scheduler_grid(scheduler, steps)
    x = x0 = random(50, 1)
    generator, again = (torch.Generator().manual_seed(7) for _ in range(2))
    for n, index in enumerate(indices):
        x = scheduler.step(mixture(LINEAR)(x, times[n]), index, x, generator=generator).prev_sample
    normals = [torch.randn(50, 1, generator=again, dtype=DOUBLE) for _ in indices]
    return times, x0, normals, x


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("orders", [(1, 1), (2, 2), (3, 3), (3, 4), (4, 4), (2, 3), (1, 3)], ids=str)
@pytest.mark.parametrize(("predict_noise", "tau"), [(False, 0.0), (False, 0.5), (False, 1.0), (True, 0.0), (True, 0.5)])
def test_diffusers_makes_the_same_images_of_the_same_noise(orders, final, predict_noise, tau):
    """With its rescaling at order 2, which is for the data only. To rounding: with noise and tau > 0 x is near 1e4."""
    times, x, normals, theirs = their_sa_solver(8, *orders, lambda t: torch.tensor(tau), predict_noise, final)
    moments = exact_moments if predict_noise else rescaled_moments
    rule = SASolver(LINEAR, tau, *orders, moments=moments, lower_order_final=final, predict_noise=predict_noise)
    ours = solve(rule, mixture(LINEAR), x, times, **by_normals(normals)).y
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10 * max(1.0, float(theirs.abs().max())))


def test_diffusers_takes_tau_where_a_step_starts_and_always_rescales():
    """The documented differences: the target's tau, as the authors' code has it, and the exact order 2 are others."""

    def tau(t):
        return 1.0 if 0.2 <= t <= 0.8 else 0.0

    times, x, normals, theirs = their_sa_solver(
        8, 2, 2, lambda index: torch.tensor(tau((index + 1) / 1000)), False, True
    )
    following = dict(itertools.pairwise(times.tolist()))
    makers = {
        "source": SASolver(LINEAR, tau, 2, 2, moments=rescaled_moments),
        "target": SASolver(LINEAR, lambda t: tau(following[t]), 2, 2, moments=rescaled_moments),
        "exact": SASolver(LINEAR, tau, 2, 2),
    }
    gaps = {
        name: float((solve(rule, mixture(LINEAR), x, times, **by_normals(normals)).y - theirs).abs().max())
        for name, rule in makers.items()
    }
    assert gaps["source"] < 1e-12
    assert gaps["target"] > 0.01
    assert gaps["exact"] > 0.01


@pytest.mark.parametrize(
    ("order", "tau", "moments", "options"),
    [
        (2, 0.0, midpoint_moments, {"algorithm_type": "dpmsolver++", "solver_type": "midpoint"}),
        (2, 0.0, exact_moments, {"algorithm_type": "dpmsolver++", "solver_type": "heun"}),
        (2, 1.0, midpoint_moments, {"algorithm_type": "sde-dpmsolver++", "solver_type": "midpoint"}),
        (2, 1.0, exact_moments, {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}),
        (
            3,
            0.0,
            lambda z, count: [m / 2 if q == 2 else m for q, m in enumerate(exact_moments(z, count))],
            {"algorithm_type": "dpmsolver++", "solver_type": "heun"},
        ),
    ],
    ids=["2m", "2m-heun", "2m-sde", "2m-sde-heun", "3m-half-of-the-square"],
)
def test_the_predictor_is_dpm_solver(order, tau, moments, options):
    """diffusers' multistep DPM-Solver++, which rounds to float32. Its 3M takes half of the quadratic term."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        solver_order=order, prediction_type="sample", final_sigmas_type="sigma_min", **options
    )
    times, indices = scheduler_grid(scheduler, 10)
    x, normals = random(50, 1), random(10, 50, 1, seed=1)
    theirs = x
    for n, index in enumerate(indices):
        data = mixture(LINEAR)(theirs, times[n])
        theirs = scheduler.step(data, index, theirs, variance_noise=normals[n]).prev_sample
    noise = by_normals(normals) if tau else {}
    ours = solve(SASolver(LINEAR, tau, order, 0, moments=moments), mixture(LINEAR), x, times, **noise).y
    torch.testing.assert_close(ours, theirs.double(), rtol=0, atol=2e-6)


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
    page = (Path(__file__).parent.parent / "docs" / "samplers.md").read_text(encoding="utf-8")
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
