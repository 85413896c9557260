"""Laws of the forward-value sampler: its formula, the sign of its error, its mean with DDIM, one evaluation a step."""

import itertools
import math

import numpy as np
import pytest
import torch

import multilevel_sde as mls
from multilevel_diffusion.process.forward_value import ForwardValue
from multilevel_diffusion.process.grids import uniform
from multilevel_diffusion.process.schedules import CosineSchedule, EDMSchedule, RectifiedFlowSchedule
from multilevel_diffusion.process.steps import DDIM

DOUBLE = torch.float64
COSINE, EDM = CosineSchedule(), EDMSchedule(0.01, 20.0)
MEAN, SCALE = 0.7, 0.5


def gaussian(schedule):
    """The exact denoiser of N(0.7, 0.5^2)."""

    def denoise(x, t):
        alpha, sigma = schedule.alpha(float(t)), schedule.sigma(float(t))
        return MEAN + alpha * SCALE**2 / (alpha**2 * SCALE**2 + sigma**2) * (x - alpha * MEAN)

    return denoise


def flow(schedule, x, t, s):
    """The exact solution of the ODE: (x_t - alpha m) / sd_t is constant."""

    def deviation(u):
        return math.hypot(schedule.alpha(u) * SCALE, schedule.sigma(u))

    return schedule.alpha(s) * MEAN + deviation(s) / deviation(t) * (x - schedule.alpha(t) * MEAN)


def tanh(x, t):
    return torch.tanh(x) * (1 - 0.3 * t)


def solve(step, drifts, x, times, plan=None, **noise):
    ladder = drifts if isinstance(drifts, mls.Ladder) else mls.Ladder([drifts], costs=[1.0])
    plan = mls.em_plan(ladder, times, step=step) if plan is None else plan
    return mls.solve(ladder, x, times, plan, step=step, **noise)


def grid(steps):
    """Equal steps of lambda between the noise levels 3 and 0.5."""
    return torch.linspace(math.log(3.0), math.log(0.5), steps + 1, dtype=DOUBLE).exp()


def lookahead_by_hand(schedule, known, x, t, s):
    """sum_q phi_q (A^{-1} E)_q, phi_0 = 1 - e^{-h}, phi_q = q phi_{q-1} - h^q e^{-h}, A_jq = (lambda_j - lambda)^q."""
    start, h, p = schedule.log_snr(t), schedule.log_snr(s) - schedule.log_snr(t), len(known)
    phi = [1 - math.exp(-h)]
    for q in range(1, p):
        phi.append(q * phi[-1] - h**q * math.exp(-h))
    matrix = torch.tensor([[(place - start) ** q for q in range(p)] for place, _ in known], dtype=DOUBLE)
    solved = torch.linalg.solve(matrix, torch.stack([eps for _, eps in known]))
    total = sum(f * row for f, row in zip(phi, solved, strict=True))
    return schedule.alpha(s) / schedule.alpha(t) * x - schedule.alpha(s) * math.exp(-start) * total


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_formulas_by_hand(order):
    times = [0.95, 0.8, 0.65, 0.55, 0.3, 0.12]
    x = y = torch.linspace(-2.0, 2.0, 6, dtype=DOUBLE)
    known, states = [(COSINE.log_snr(times[0]), x / COSINE.sigma(times[0]))], [x]
    for t, s in itertools.pairwise(times):
        point = lookahead_by_hand(COSINE, known[:order], y, t, s)
        data = tanh(point, s)
        known.insert(0, (COSINE.log_snr(s), (point - COSINE.alpha(s) * data) / COSINE.sigma(s)))
        ratio = COSINE.sigma(s) / COSINE.sigma(t)
        y = ratio * y - (ratio * COSINE.alpha(t) - COSINE.alpha(s)) * data
        states.append(y)
    solution = solve(ForwardValue(COSINE, order), tanh, x, times, save=True)
    torch.testing.assert_close(solution.ys, torch.stack(states), rtol=1e-11, atol=1e-11)
    assert solution.stats.calls == (5,)


def errors_of(step, counts):
    x, out = torch.tensor([3.0, -1.0], dtype=DOUBLE), []
    for steps in counts:
        times = grid(steps)
        out.append(solve(step, gaussian(EDM), x, times).y - flow(EDM, x, float(times[0]), float(times[-1])))
    return torch.stack(out)


@pytest.mark.parametrize("order", [1, 2])
def test_the_error_is_of_first_order_opposite_to_that_of_ddim_and_their_mean_of_second(order):
    counts = [80, 160, 320]
    forward, backward = errors_of(ForwardValue(EDM, order), counts), errors_of(DDIM(EDM), counts)
    ratio = forward / backward
    assert (ratio < 0).all()
    assert ratio[-1].tolist() == pytest.approx([-1.0, -1.0], abs=0.03)
    assert ((ratio[1:] + 1) / (ratio[:-1] + 1)).flatten().tolist() == pytest.approx([0.5] * 4, abs=0.05)
    for errors, slope in ((forward, 1.0), (backward, 1.0), ((forward + backward) / 2, 2.0)):
        size = errors.abs().amax(1).log().numpy()
        assert -np.polyfit(np.log(counts), size, 1)[0] == pytest.approx(slope, abs=0.05)


@pytest.mark.parametrize(("order", "local"), [(1, 2.0), (2, 3.0)])
def test_the_lookahead_point_has_the_order_it_says(order, local):
    """Distance of the last lookahead from the exact solution through the state before it."""
    counts, gaps = [40, 80, 160], []
    for steps in counts:
        seen, times = [], grid(steps)

        def watched(x, t, seen=seen):
            seen.append(x)
            return gaussian(EDM)(x, t)

        before = solve(ForwardValue(EDM, order), watched, torch.tensor([3.0], dtype=DOUBLE), times, save=[-2]).ys[0]
        gaps.append(float((seen[-1] - flow(EDM, before, float(times[-2]), float(times[-1]))).abs()))
    assert -np.polyfit(np.log(counts), np.log(gaps), 1)[0] == pytest.approx(local, abs=0.15), gaps


@pytest.mark.parametrize("schedule", [COSINE, EDM, RectifiedFlowSchedule()], ids=["cosine", "edm", "flow"])
def test_it_evaluates_at_the_next_times_and_ends_with_ddim(schedule):
    seen, times = [], uniform(schedule, 5)

    def watched(x, t):
        seen.append((float(t), x, tanh(x, t)))
        return seen[-1][2]

    solution = solve(ForwardValue(schedule), watched, torch.ones(2, dtype=DOUBLE), times, save=True)
    assert [t for t, _, _ in seen] == [*times[1:5].tolist(), float(times[4])]
    torch.testing.assert_close(
        seen[0][1], solution.ys[0] * schedule.sigma(float(times[1])) / schedule.sigma(float(times[0]))
    )
    assert torch.equal(seen[-1][1], solution.ys[4])
    torch.testing.assert_close(solution.y, seen[-1][2], rtol=1e-13, atol=1e-13)


def test_with_a_ladder():
    """Probability one is the top network bit for bit; the mean over draws is it for linear networks (4 errors)."""
    ladder = mls.Ladder([lambda x, t: 0.5 * gaussian(EDM)(x, t), gaussian(EDM)], costs=[1.0, 8.0])
    times, x, rule = grid(8), torch.full((4000,), 2.0, dtype=DOUBLE), ForwardValue(EDM, 2)
    generator = torch.Generator().manual_seed(3)
    alone = solve(rule, ladder.top(), x, times).y
    assert torch.equal(solve(rule, ladder, x, times, mls.draw_plan(torch.ones(8, 2), generator=generator)).y, alone)
    plan = mls.draw_plan(torch.tensor([1.0, 0.5]).expand(8, 2), mls.independent, generator=generator, samples=4000)
    y = solve(rule, ladder, x, times, plan).y
    assert abs(float(y.mean() - alone[0])) < 4 * float(y.std()) / math.sqrt(4000)
    assert float(y.std()) > 0.05
    shared = mls.draw_plan(torch.tensor([1.0, 0.3]).expand(8, 2), generator=generator)
    first, second = (solve(rule, ladder, x, times, shared) for _ in range(2))
    assert torch.equal(first.y, second.y)
    assert first.stats.calls == tuple(shared.evaluations.tolist())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ForwardValue("cosine"), TypeError, '"schedule"'),
        (lambda: ForwardValue(COSINE, 0), ValueError, '"lookahead"'),
        (
            lambda: solve(
                ForwardValue(COSINE), tanh, torch.ones(1), [0.5, 0.4], diffusion=1.0, brownian=mls.BrownianPath([0])
            ),
            ValueError,
            "ODE only",
        ),
    ],
)
def test_errors_name_the_argument(make, error, message):
    with pytest.raises(error, match=message):
        make()
