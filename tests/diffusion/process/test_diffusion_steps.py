"""Laws of the exponential step: the classical formulas, marginals, order one on a path, affine, dtype."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import multilevel_sde as mls
from multilevel_diffusion.networks.denoisers import DataDenoiser
from multilevel_diffusion.process.grids import karras, uniform
from multilevel_diffusion.process.noise import coupled_noise
from multilevel_diffusion.process.schedules import CosineSchedule, EDMSchedule, RectifiedFlowSchedule
from multilevel_diffusion.process.steps import DDIM, DDPM, ExponentialStep
from multilevel_diffusion.process.tables import LinearSchedule, ScaledLinearSchedule

SCHEDULES = [CosineSchedule(), LinearSchedule(), ScaledLinearSchedule(), EDMSchedule(), RectifiedFlowSchedule()]
TABLES = [CosineSchedule(), LinearSchedule(), ScaledLinearSchedule()]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("schedule", TABLES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("index", [1, 2, 10, 500, 990, 999, 1000])
def test_ddpm_is_the_classical_posterior(schedule, index):
    """Mean and variance of q(x_{s-1} | x_s, x_0) from betas, Ho et al. 2020, equations 6 and 7."""
    t, s = index / 1000, (index - 1) / 1000
    bar_t, bar_s = schedule.alpha(t) ** 2, schedule.alpha(s) ** 2
    alpha = bar_t / bar_s
    beta = 1 - alpha
    x, x0 = random(2, 50)
    mean = math.sqrt(bar_s) * beta / (1 - bar_t) * x0 + math.sqrt(alpha) * (1 - bar_s) / (1 - bar_t) * x
    step = DDPM(schedule)
    zero = torch.zeros_like(x)
    torch.testing.assert_close(step(x, x0, t, s, zero), mean, rtol=1e-8, atol=1e-8)
    noise = random(50, seed=1) * math.sqrt(t - s)
    added = step(x, x0, t, s, noise) - step(x, x0, t, s, zero)
    deviation = math.sqrt(beta * (1 - bar_s) / (1 - bar_t))
    torch.testing.assert_close(added, deviation * noise / math.sqrt(t - s), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("schedule", TABLES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.999), (1.0, 0.5), (0.5, 0.499), (0.5, 0.1), (0.002, 0.001), (0.2, 0.0)])
def test_ddim_is_the_classical_formula(schedule, t, s):
    """x_s = sqrt(bar_s) x_0 + sqrt(1 - bar_s) eps, with eps from x_t and x_0; Song et al. 2021, equation 12."""
    x, x0 = random(2, 50)
    bar_t, bar_s = schedule.alpha(t) ** 2, schedule.alpha(s) ** 2
    eps = (x - math.sqrt(bar_t) * x0) / math.sqrt(1 - bar_t)
    expected = math.sqrt(bar_s) * x0 + math.sqrt(1 - bar_s) * eps
    torch.testing.assert_close(DDIM(schedule)(x, x0, t, s, None), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("eta", [0.3, 0.7])
def test_tau_is_ddim_with_eta(schedule, eta):
    """x_s = alpha_s x_0 + sqrt(sigma_s^2 - d^2) eps + d xi, d = sigma_s sqrt(1 - e^{-2 tau^2 h}); DDIM's eta form."""
    t, s = 0.6 * schedule.t_max, 0.4 * schedule.t_max
    step = ExponentialStep(schedule, tau=eta)
    x, x0 = random(2, 50)
    h = schedule.log_snr(s) - schedule.log_snr(t)
    d = schedule.sigma(s) * math.sqrt(1 - math.exp(-2 * eta**2 * h))
    eps = (x - schedule.alpha(t) * x0) / schedule.sigma(t)
    expected = schedule.alpha(s) * x0 + math.sqrt(schedule.sigma(s) ** 2 - d**2) * eps
    torch.testing.assert_close(step(x, x0, t, s, torch.zeros(50)), expected, rtol=1e-11, atol=1e-11)
    assert step.coefficients(t, s).deviation == pytest.approx(d, rel=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_a_right_estimate_keeps_the_marginal(schedule, tau):
    """If x_t = alpha_t x_0 + sigma_t eps and the estimate is x_0, then x_s ~ N(alpha_s x_0, sigma_s^2) exactly."""
    grid = [1.0, 0.9, 0.5, 0.1, 0.01, 0.0]
    for t, s in pairwise(grid):
        t, s = t * schedule.t_max, s * schedule.t_max
        c = ExponentialStep(schedule, tau).coefficients(t, s)
        assert c.state * schedule.alpha(t) + c.data == pytest.approx(schedule.alpha(s), rel=1e-11)
        variance = c.state**2 * schedule.sigma(t) ** 2 + c.deviation**2
        assert variance == pytest.approx(schedule.sigma(s) ** 2, rel=1e-11, abs=1e-15)


def gaussian_law(schedule, tau, times, mean, scale):
    """Mean and variance at the last time of the step with the exact denoiser of N(mean, scale^2), in closed form."""
    step = ExponentialStep(schedule, tau)
    alpha, sigma = schedule.alpha(times[0]), schedule.sigma(times[0])
    m, v = alpha * mean, alpha**2 * scale**2 + sigma**2
    for t, s in pairwise(times):
        alpha, sigma, c = schedule.alpha(t), schedule.sigma(t), step.coefficients(t, s)
        gain = alpha * scale**2 / (alpha**2 * scale**2 + sigma**2)
        m = (c.state + c.data * gain) * m + c.data * (1 - gain * alpha) * mean
        v = (c.state + c.data * gain) ** 2 * v + c.deviation**2
    return m, v


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("schedule", "grid"),
    [
        (CosineSchedule(), uniform),
        (LinearSchedule(), uniform),
        (EDMSchedule(), karras),
        (RectifiedFlowSchedule(), uniform),
    ],
    ids=["cosine", "linear", "edm", "flow"],
)
def test_gaussian_data_are_sampled_with_order_one(schedule, grid, tau):
    """N(0.7, 0.5^2): mean and variance are wrong by O(1/N); Euler's constant halves from N = 800 to 1600."""
    errors = []
    for steps in (800, 1600):
        m, v = gaussian_law(schedule, tau, grid(schedule, steps).tolist(), 0.7, 0.5)
        errors.append((abs(m - 0.7), abs(v - 0.25)))
    assert errors[1][0] < 1e-3
    assert errors[1][1] < 5e-3
    assert errors[0][1] / errors[1][1] == pytest.approx(2.0, abs=0.15)
    # The mean of a variance-preserving start is right from the beginning; elsewhere it converges too.
    assert errors[1][0] < 1e-9 or errors[0][0] / errors[1][0] == pytest.approx(2.0, abs=0.15)


@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_solve_follows_the_closed_form_law(tau):
    """10000 samples through mls.solve: mean and variance within 4 standard errors of the recursion above."""
    schedule, count = CosineSchedule(), 10000
    times = uniform(schedule, 20)

    def denoise(x, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return 0.7 + alpha * 0.25 / (alpha**2 * 0.25 + sigma**2) * (x - alpha * 0.7)

    ladder = mls.Ladder([DataDenoiser(denoise_batched(denoise), schedule)], costs=[1.0])
    start = schedule.alpha(1.0), schedule.sigma(1.0)
    x = start[0] * 0.7 + math.sqrt(start[0] ** 2 * 0.25 + start[1] ** 2) * random(count)[:, None]
    noise = {} if tau == 0 else {"diffusion": 1.0, "brownian": coupled_noise(schedule, range(count), times, tau)}
    y = mls.solve(ladder, x, times, mls.em_plan(ladder, times), step=ExponentialStep(schedule, tau), **noise).y
    m, v = gaussian_law(schedule, tau, times.tolist(), 0.7, 0.5)
    assert abs(float(y.mean()) - m) < 4 * math.sqrt(v / count)
    assert abs(float(y.var()) - v) < 4 * v * math.sqrt(2 / count)


def denoise_batched(denoise):
    return lambda x, t: denoise(x, t[:, None])


def mixture(schedule):
    """The exact denoiser of half N(-1, 0.3^2), half N(0.5, 0.3^2), elementwise."""
    means = torch.tensor([-1.0, 0.5], dtype=torch.float64)

    def denoise(x, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        variance = alpha**2 * 0.09 + sigma**2
        gap = x[..., None] - alpha * means
        weights = torch.softmax(-(gap**2) / (2 * variance), -1)
        return (weights * (means + alpha * 0.09 / variance * gap)).sum(-1)

    return denoise


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("schedule", [CosineSchedule(), EDMSchedule(0.05, 20.0)], ids=["cosine", "edm"])
def test_order_one_on_a_path(schedule, tau):
    """RMS error at t > 0 to the 8192-step path of the same noise, N = 128 ... 1024: log-log slope 1 within 0.15."""
    fine = torch.linspace(1.0, 0.05, 8193, dtype=torch.float64)
    if isinstance(schedule, EDMSchedule):
        fine = schedule.t_max * fine**2
    ladder = mls.Ladder([mixture(schedule)], costs=[1.0])
    x = schedule.sigma(schedule.t_max) * random(512, 4)
    noise = {} if tau == 0 else {"diffusion": 1.0, "brownian": coupled_noise(schedule, range(512), fine, tau)}

    def end(steps):
        times = fine[:: 8192 // steps].contiguous()
        return mls.solve(ladder, x, times, mls.em_plan(ladder, times), step=ExponentialStep(schedule, tau), **noise).y

    reference, counts = end(8192), [128, 256, 512, 1024]
    errors = [float((end(steps) - reference).square().mean().sqrt()) for steps in counts]
    # The reference has the error of its own step size: regress on 1/N - 1/8192.
    slope = np.polyfit(np.log([1 / n - 1 / 8192 for n in counts]), np.log(errors), 1)[0]
    assert slope == pytest.approx(1.0, abs=0.15), errors


def test_the_step_is_affine_in_the_estimate_and_may_be_split_over_levels():
    schedule = CosineSchedule()
    step = DDPM(schedule)
    x, a, b, noise = random(4, 30)
    left = step(x, 0.3 * a + 0.7 * b, 0.6, 0.4, noise)
    right = 0.3 * step(x, a, 0.6, 0.4, noise) + 0.7 * step(x, b, 0.6, 0.4, noise)
    torch.testing.assert_close(left, right, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtype_is_kept_and_inputs_are_not_changed(dtype):
    step = DDPM(CosineSchedule())
    x, x0, noise = (random(3, 4, seed=k).to(dtype) for k in range(3))
    copies = x.clone(), x0.clone(), noise.clone()
    y = step(x, x0, 0.5, 0.4, noise)
    assert y.dtype == dtype
    assert all(torch.equal(a, b) for a, b in zip((x, x0, noise), copies, strict=True))
    exact = step(x.double(), x0.double(), 0.5, 0.4, noise.double())
    # Three roundings of numbers of size about 4, and one of noise / sqrt(0.1).
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=32 * torch.finfo(dtype).eps)


def test_gradients_flow_through_the_step():
    x, x0 = (random(3, seed=k).requires_grad_() for k in range(2))
    assert torch.autograd.gradcheck(lambda x, x0: DDIM(CosineSchedule())(x, x0, 0.5, 0.4, None), (x, x0))


def test_a_ddim_step_can_be_inverted():
    step = DDIM(CosineSchedule())
    x, x0 = random(2, 30)
    torch.testing.assert_close(step(step(x, x0, 0.6, 0.3, None), x0, 0.3, 0.6, None), x, rtol=1e-12, atol=1e-12)


def test_tau_may_depend_on_the_time_the_step_starts_from():
    schedule = CosineSchedule()
    step = ExponentialStep(schedule, tau=lambda t: 1.0 if t > 0.5 else 0.0)
    assert step.coefficients(0.6, 0.4) == DDPM(schedule).coefficients(0.6, 0.4)
    assert step.coefficients(0.5, 0.4) == DDIM(schedule).coefficients(0.5, 0.4)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ExponentialStep("cosine"), TypeError, '"schedule"'),
        (lambda: ExponentialStep(CosineSchedule(), tau=-1.0), ValueError, '"tau"'),
        (lambda: ExponentialStep(CosineSchedule(), tau=lambda t: -1.0).coefficients(0.5, 0.4), ValueError, '"tau"'),
        (lambda: DDIM(CosineSchedule()).coefficients(0.0, 0.4), ValueError, '"t"'),
        (lambda: DDPM(CosineSchedule()).coefficients(0.4, 0.5), ValueError, '"s"'),
        (lambda: DDPM(CosineSchedule())(torch.ones(1), torch.ones(1), 0.5, 0.4, None), ValueError, '"noise"'),
    ],
)
def test_errors_name_the_argument(make, error, message):
    with pytest.raises(error, match=message):
        make()
