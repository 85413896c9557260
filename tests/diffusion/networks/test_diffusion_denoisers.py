"""Every convention of the same exact model is the same denoiser; clipping belongs to a level."""

import math

import pytest
import torch

import multilevel_sde as mls
from multilevel_diffusion.networks.denoisers import (
    DataDenoiser,
    EDMDenoiser,
    EpsilonDenoiser,
    FlowDenoiser,
    TableIndex,
    VDenoiser,
)
from multilevel_diffusion.process.grids import uniform
from multilevel_diffusion.process.schedules import CosineSchedule, EDMSchedule, RectifiedFlowSchedule
from multilevel_diffusion.process.steps import DDIM
from multilevel_diffusion.process.tables import LinearSchedule, ScaledLinearSchedule

SCHEDULES = [CosineSchedule(), LinearSchedule(), ScaledLinearSchedule(), EDMSchedule(), RectifiedFlowSchedule()]

MEANS = torch.tensor([[0.6, -0.3, 0.1], [-0.5, 0.4, 0.8]], dtype=torch.float64)
SCALE = 0.2


def posterior_mean(x, alpha, sigma):
    """E[x_0 | x_t] for the mixture of N(MEANS[i], SCALE^2 I) with equal weights; alpha, sigma (B, 1) or 0-d."""
    variance = alpha**2 * SCALE**2 + sigma**2
    logits = torch.stack([-((x - alpha * mean) ** 2).sum(-1, keepdim=True) / (2 * variance) for mean in MEANS])
    weights = torch.softmax(logits, 0)
    each = torch.stack([mean + alpha * SCALE**2 / variance * (x - alpha * mean) for mean in MEANS])
    return (weights * each).sum(0)


def conventions(schedule):
    """The same exact model as every kind of network, wrapped."""

    def at(t):
        return schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]

    def eps_net(x, t):
        alpha, sigma = at(t)
        return (x - alpha * posterior_mean(x, alpha, sigma)) / sigma

    def v_net(x, t):
        alpha, sigma = at(t)
        x0 = posterior_mean(x, alpha, sigma)
        return alpha * (x - alpha * x0) / sigma - sigma * x0

    def flow_net(x, t):
        x0 = posterior_mean(x, (1 - t)[:, None], t[:, None])
        return (x - x0) / t[:, None]

    return {
        "data": DataDenoiser(lambda x, t: posterior_mean(x, *at(t)), schedule),
        "eps": EpsilonDenoiser(eps_net, schedule),
        "v": VDenoiser(v_net, schedule),
        "edm": EDMDenoiser(
            lambda x, sigma: posterior_mean(x, torch.ones_like(sigma)[:, None], sigma[:, None]), schedule
        ),
        "flow": FlowDenoiser(flow_net, schedule),
    }


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("fraction", [1e-4, 1e-2, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.9999])
def test_all_conventions_of_one_model_agree_to_rounding(schedule, fraction):
    t = torch.tensor(fraction * schedule.t_max, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(16, 3, generator=generator, dtype=torch.float64)
    x = schedule.perturb(MEANS[torch.arange(16) % 2], noise, t)
    exact = posterior_mean(x, schedule.alpha(t), schedule.sigma(t))
    # eps is divided by alpha: its rounding is amplified by sigma / alpha.
    tolerance = 1e-13 * (1 + float(schedule.sigma(t) / schedule.alpha(t)))
    for name, denoise in conventions(schedule).items():
        torch.testing.assert_close(denoise(x, t), exact, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_one_time_per_sample_is_as_one_time_for_all(schedule):
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64) * schedule.t_max
    x = torch.randn(3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for denoise in conventions(schedule).values():
        each = torch.stack([denoise(x[i : i + 1], t[i])[0] for i in range(3)])
        torch.testing.assert_close(denoise(x, t), each, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("kind", [EpsilonDenoiser, VDenoiser, EDMDenoiser, FlowDenoiser])
def test_at_the_data_the_state_is_the_data_for_any_finite_network(schedule, kind):
    t, x = torch.zeros((), dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64)
    net = (lambda x, t: x) if kind is EDMDenoiser else (lambda x, t: 7 * x)
    assert torch.equal(kind(net, schedule)(x, t), x)


def test_pure_noise_is_legal_where_no_division_by_alpha_is_needed():
    schedule = RectifiedFlowSchedule()
    t, x = torch.ones((), dtype=torch.float64), torch.full((2, 3), 3.0, dtype=torch.float64)
    assert torch.equal(FlowDenoiser(lambda x, t: x - 0.5)(x, t), torch.full_like(x, 0.5))
    seen = []
    edm = EDMDenoiser(lambda x, sigma: seen.append((x, sigma)) or x, schedule, sigma_max=80.0)
    assert edm(x, t).isfinite().all()
    torch.testing.assert_close(seen[0][0], x * math.sqrt(1 + 80.0**2))
    assert (seen[0][1] == 80.0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [EpsilonDenoiser, VDenoiser, DataDenoiser, EDMDenoiser, FlowDenoiser])
def test_dtype_of_the_state_is_kept_and_times_are_wide(kind, dtype):
    seen = []
    denoise = kind(lambda x, t: seen.append((x.dtype, t.dtype, t.shape)) or x, CosineSchedule(), clip=(-1, 1))
    x = torch.ones(2, 3, 4, dtype=dtype)
    for t in (torch.tensor(0.5, dtype=torch.float64), torch.tensor([0.5, 0.6], dtype=torch.float64)):
        assert denoise(x, t).dtype == dtype
    time_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    assert set(seen) == {(dtype, time_dtype, (2,))}


def test_time_maps_to_the_network_s_own_convention():
    seen = []

    def net(x, t):
        seen.append(t)
        return x

    t = torch.tensor(0.7, dtype=torch.float64)
    x = torch.ones(2, 1)
    EpsilonDenoiser(net, CosineSchedule(), time=TableIndex(1000, rounded=True))(x, t)
    EpsilonDenoiser(net, CosineSchedule(), time=TableIndex(1000))(x, t)
    FlowDenoiser(net, time=lambda t: 1000 * t)(x, t)
    assert seen[0].dtype == torch.int64
    assert (seen[0] == 699).all()
    torch.testing.assert_close(seen[1], torch.full((2,), 699.0))
    torch.testing.assert_close(seen[2], torch.full((2,), 700.0))


def test_clipping_each_level_is_unbiased_and_clipping_their_sum_is_not():
    """Expectation over the two outcomes of B, exactly: f^1 + (B/p)(f^2 - f^1) with p = 1/8, levels inside the box."""
    schedule, p = CosineSchedule(), 0.125
    low = DataDenoiser(lambda x, t: 0.8 * torch.ones_like(x), schedule, clip=(-1, 1))
    top = DataDenoiser(lambda x, t: 1.4 * torch.ones_like(x), schedule, clip=(-1, 1))  # its clip makes it 1
    ladder = mls.Ladder([low, top], costs=[1.0, 8.0])
    x, times = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0.5, 0.25], dtype=torch.float64)
    step = DDIM(schedule)

    def clipped_sum(y, estimate, t, s, noise):
        return step(y, estimate.clamp(-1, 1), t, s, noise)

    def expectation(rule):
        outcomes = []
        for hit, probability in ((True, p), (False, 1 - p)):
            plan = mls.Plan(torch.tensor([[True, hit]]), torch.tensor([[1.0, hit / p]]))
            outcomes.append(probability * mls.solve(ladder, x, times, plan, step=rule).y)
        return sum(outcomes)

    exact = mls.solve(ladder, x, times, mls.em_plan(ladder, times), step=step).y
    torch.testing.assert_close(expectation(step), exact, rtol=1e-14, atol=1e-14)
    # The sum is 0.8 or 2.4, cut to 1: expectation 0.825 for the 1 of the top level.
    torch.testing.assert_close(expectation(clipped_sum), 0.825 * exact, rtol=1e-14, atol=1e-14)


def test_the_bias_of_a_clipped_sum_does_not_vanish_with_the_steps():
    """400 steps, levels 0.5 and 0.95 inside the box, 2000 draws: unbiased without the clip (z-test at 4 sigma)."""
    schedule = CosineSchedule()
    low = DataDenoiser(lambda x, t: torch.full_like(x, 0.5), schedule, clip=(-1, 1))
    top = DataDenoiser(lambda x, t: torch.full_like(x, 0.95), schedule, clip=(-1, 1))
    ladder = mls.Ladder([low, top], costs=[1.0, 8.0])
    times = uniform(schedule, 401)[:-1]  # without the last step, which returns the last estimate whatever came before
    x = torch.zeros(2000, 1, dtype=torch.float64)
    step = DDIM(schedule)

    def clipped_sum(y, estimate, t, s, noise):
        return step(y, estimate.clamp(-1, 1), t, s, noise)

    generator = torch.Generator().manual_seed(0)
    plan = mls.draw_plan(torch.tensor([1.0, 0.1]).expand(400, 2), generator=generator, samples=2000)
    exact = mls.solve(ladder, x, times, mls.em_plan(ladder, times), step=step).y
    error = mls.solve(ladder, x, times, plan, step=step).y - exact
    assert error.mean().abs() < 4 * error.std() / 2000**0.5
    assert error.std() / 2000**0.5 < 0.01
    biased = mls.solve(ladder, x, times, plan, step=clipped_sum).y - exact
    # Each clipped sum is 0.5 or 1 instead of 0.5 or 5: expectation 0.55 instead of 0.95.
    assert biased.mean() == pytest.approx(-0.4, abs=0.02)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: EpsilonDenoiser(3, CosineSchedule()), TypeError, '"net"'),
        (lambda: EpsilonDenoiser(torch.sin, "cosine"), TypeError, '"schedule"'),
        (lambda: EpsilonDenoiser(torch.sin, CosineSchedule(), clip=(1, -1)), ValueError, '"clip"'),
        (lambda: EDMDenoiser(torch.sin, CosineSchedule(), sigma_min=2.0, sigma_max=1.0), ValueError, '"sigma_min"'),
        (lambda: TableIndex(0), ValueError, '"steps"'),
    ],
)
def test_errors_name_the_argument(make, error, message):
    with pytest.raises(error, match=message):
        make()
