"""Schedules, an exact denoiser and a solve by one rule: what the tests of SA-Solver share."""

import torch

import multilevel_sde as mls
from multilevel_diffusion.process.schedules import CosineSchedule, EDMSchedule
from multilevel_diffusion.process.tables import LinearSchedule

DOUBLE = torch.float64
COSINE, EDM, LINEAR = CosineSchedule(), EDMSchedule(0.01, 20.0), LinearSchedule()


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


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


def solve(step, drifts, x, times, plan=None, **noise):
    ladder = drifts if isinstance(drifts, mls.Ladder) else mls.Ladder([drifts], costs=[1.0])
    plan = mls.em_plan(ladder, times, step=step) if plan is None else plan
    return mls.solve(ladder, x, times, plan, step=step, **noise)
