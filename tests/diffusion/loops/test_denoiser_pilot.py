"""A pilot inside a sampler of the EDM kind: Heun in sigma, asked as a black box."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import multilevel_sde as mls
from multilevel_diffusion.loops.edm import MultilevelDenoiser
from multilevel_sde.pilots.responses import Responses


def exact_error(gram: torch.Tensor, plan: mls.Plan) -> float:
    """The first-order error by the measured matrix itself, without shrinkage."""
    return Responses(gram, gram, gram, torch.ones(plan.steps, plan.levels - 1)).error(plan.weights)


def denoiser(offset: float):
    """Affine in the state: 0.3 x + offset / (1 + sigma)."""

    def level(x: Tensor, sigma: Tensor) -> Tensor:
        return 0.3 * x + offset / (1 + sigma.reshape(-1, 1))

    return level


def heun(net, seeds: Sequence[int]) -> Tensor:
    """EDM's deterministic sampler with 8 steps, 15 calls."""
    draws = [torch.randn(3, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in seeds]
    sigmas = torch.cat([torch.linspace(5.0, 0.2, 8, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    x = sigmas[0] * torch.stack(draws)
    for sigma, following in pairwise(sigmas):
        slope = (x - net(x, sigma.expand(len(x)))) / sigma
        moved = x + (following - sigma) * slope
        if following > 0:
            second = (moved - net(moved, following.expand(len(x)))) / following
            moved = x + (following - sigma) * (slope + second) / 2
        x = moved
    return x


def ladder() -> mls.Ladder:
    return mls.Ladder([denoiser(0.5), denoiser(1.0)], costs=[1.0, 10.0])


def test_the_prediction_is_exact_where_levels_differ_by_constants():
    """Heun's steps ask twice, once at a state that the first answer moved: equal to rounding all the same."""
    pilot = MultilevelDenoiser(ladder(), budget_fraction=0.5).calibrate(
        heun, budget_fraction=0.5, seeds=range(4), progress=False
    )
    assert pilot.steps == 15
    weights = torch.rand(15, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights[:, 0], weights[::3, 1] = 1.0, 0.0
    plan = mls.Plan(weights != 0, weights)
    exact = heun(denoiser(1.0), range(4))
    measured = float((heun(MultilevelDenoiser(ladder(), plan=plan), range(4)) - exact).square().mean())
    assert measured > 1e-4
    assert exact_error(pilot.gram, plan) == pytest.approx(measured, rel=1e-5)  # responses are kept in float32


def test_the_calibrated_denoiser_meets_its_budget_and_beats_the_draw():
    model = MultilevelDenoiser(ladder(), budget_fraction=0.4)
    exact = heun(denoiser(1.0), range(10, 14))
    drawn = [float((heun(model, range(10, 14)) - exact).square().mean()) for _ in range(8)]
    model.calibrate(heun, budget_fraction=0.4, seeds=range(4), progress=False)
    planned = float((heun(model, range(10, 14)) - exact).square().mean())
    assert model.stats.trajectory.fraction <= 0.4
    assert planned < 0.5 * sum(drawn) / len(drawn)


def test_a_failed_pilot_leaves_nothing_behind():
    model = MultilevelDenoiser(ladder(), budget_fraction=0.5)
    heun(model, range(2))
    stats, runs = model.stats, []

    def fails(net, seeds: Sequence[int]) -> Tensor:
        runs.append(seeds)
        if len(runs) == 5:
            raise KeyboardInterrupt
        return heun(net, seeds)

    with pytest.raises(KeyboardInterrupt):
        model.calibrate(fails, budget_fraction=0.5, progress=False)
    with pytest.raises(ValueError, match='"budget_fraction" must be at least'):
        model.calibrate(heun, budget_fraction=0.01, progress=False)
    assert model.stats == stats
    other = MultilevelDenoiser(ladder(), budget_fraction=0.5)
    heun(other, range(2))
    assert torch.equal(heun(model, range(2)), heun(other, range(2)))


def euler(net, seeds: Sequence[int], steps: int = 12) -> Tensor:
    """Euler's method in sigma, as in k-diffusion."""
    draws = [torch.randn(3, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in seeds]
    sigmas = torch.cat([torch.logspace(1.0, -1.0, steps, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    x = sigmas[0] * torch.stack(draws)
    for sigma, following in pairwise(sigmas):
        x = x + (following - sigma) * (x - net(x, sigma.expand(len(x)))) / sigma
    return x


def posterior(x: Tensor, sigma: Tensor) -> Tensor:
    """Near the mean of x_0 for Gaussian data."""
    sigma = sigma.reshape(-1, 1)
    return x / (1 + sigma**2) + 0.2 * torch.sin(x) / (1 + sigma)


def test_plans_with_memory_in_euler_are_those_of_solve():
    """To rounding, with stored values of both levels and a multistep base."""
    levels = [lambda x, sigma: 0.9 * posterior(x, sigma), posterior]
    weights = torch.ones(12, 2, dtype=torch.float64)
    weights[1::3, 1] = 0.0
    entries = [(n, n % 2, n - 1 - n % 3, 0.1 * (-1) ** n) for n in range(3, 12)]
    plan = mls.Plan(weights != 0, weights, recall=mls.Recall(entries))
    model = MultilevelDenoiser(mls.Ladder(levels, [1.0, 10.0]), plan=plan)
    sigmas = torch.cat([torch.logspace(1.0, -1.0, 12, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    start = [torch.randn(3, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in range(4)]
    ladder = mls.Ladder([lambda y, t, f=f: f(y, t.expand(len(y))) for f in levels], [1.0, 10.0])

    def step(y: Tensor, estimate: Tensor, t: float, s: float, noise: None) -> Tensor:
        return y + (s - t) * (y - estimate) / t

    expected = mls.solve(ladder, sigmas[0] * torch.stack(start), sigmas, plan, step=step).y
    for _ in range(2):  # every trajectory has a memory of its own
        torch.testing.assert_close(euler(model, range(4)), expected, rtol=1e-12, atol=1e-12)
    assert model.stats.trajectory.evaluations == tuple(plan.evaluations.tolist())


def test_euler_gets_a_multistep_base_and_heun_keeps_its_own():
    """At half of the calls' cost the plan is nearer to the fine path than Euler with the exact level at all calls."""
    levels = [lambda x, sigma: 0.9 * posterior(x, sigma), posterior]
    model = MultilevelDenoiser(mls.Ladder(levels, [1.0, 10.0]), budget_fraction=0.5)
    pilot = model.calibrate(euler, budget_fraction=0.5, seeds=range(8), progress=False)
    assert pilot.multistep[12].shape == (12, 3)
    fine = euler(posterior, range(20, 36), 2000)
    error = (euler(model, range(20, 36)) - fine).square().mean()
    assert model.stats.trajectory.fraction <= 0.5
    assert error < 0.5 * (euler(posterior, range(20, 36)) - fine).square().mean()
    pilot = model.calibrate(heun, budget_fraction=0.5, seeds=range(4), progress=False)
    assert not pilot.multistep
