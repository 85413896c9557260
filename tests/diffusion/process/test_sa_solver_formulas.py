"""SA-Solver against others: DDIM and DDPM at order one, formulas by hand, diffusers on the same noise."""

import itertools
import math

import numpy as np
import pytest
import torch
from sa_solver_problem import COSINE, DOUBLE, EDM, LINEAR, mixture, random, solve

import multilevel_sde as mls
from multilevel_diffusion.process.grids import uniform
from multilevel_diffusion.process.multistep import exact_moments, midpoint_moments, multistep_weights, rescaled_moments
from multilevel_diffusion.process.noise import coupled_noise
from multilevel_diffusion.process.sa_solver import SASolver
from multilevel_diffusion.process.schedules import RectifiedFlowSchedule
from multilevel_diffusion.process.steps import DDIM, DDPM, ExponentialStep, NoiseExponentialStep


def by_normals(normals):
    """A brownian that gives these unit normals, one a step."""
    rest = iter(normals)
    return {"diffusion": 1.0, "brownian": lambda t, s: next(rest) * math.sqrt(abs(s - t))}


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
