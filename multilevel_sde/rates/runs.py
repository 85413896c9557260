"""Runs behind :mod:`multilevel_sde.rates.study`: the constants of the prediction, and EM and ML-EM on common noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from multilevel_sde.ladder import Ladder
from multilevel_sde.noise.brownian import Brownian, BrownianPath
from multilevel_sde.plans.drawing import draw_plan, em_plan
from multilevel_sde.plans.draws import independent
from multilevel_sde.plans.plan import Plan
from multilevel_sde.plans.schedules import TheoremSchedule
from multilevel_sde.rates.first_order import Constants, Point
from multilevel_sde.rates.problem_parts import Problem
from multilevel_sde.solver.integrate import solve

__all__ = ["FINE_STEPS", "Experiment", "measure", "measure_on"]

FINE_STEPS = 2048  # steps of the reference path, and the most that a simulation takes
_PILOT_STEPS = 256  # steps of the path that gives the constants: smooth integrals, so within a per cent


def measure(problem: Problem, *, samples: int = 256, seed: int = 0) -> Constants:
    """Measure the constants of the prediction on paths of the true drift; no multilevel run is involved.

    Arguments:
        problem: A :func:`multilevel_sde.rates.problems.scaling_law`, whose drift acts on every component by itself, so
            that the response J is the product of 1 + eta f'(x_i).
        samples: Paths.
        seed: Seed of the initial states and the noise.

    Example:
        >>> import multilevel_sde as mls
        >>> constants = measure(mls.problems.scaling_law(3.0, diffusion=0.5), samples=16)
        >>> 0 < constants.gain < 1, constants.duration
        (True, 1.0)
    """
    return measure_on(problem, problem.y0(samples, seed), _stored_noise(problem, samples, seed))


def measure_on(problem: Problem, y0: Tensor, brownian: Brownian | None) -> Constants:
    """Measure the constants from given initial states (B, d) with given noise; see :func:`measure`.

    Example:
        >>> import multilevel_sde as mls
        >>> problem = mls.problems.scaling_law(3.0)
        >>> measure_on(problem, problem.y0(4), None).duration
        1.0
    """
    times = problem.times(_PILOT_STEPS)

    def path(grid: Tensor) -> Tensor:
        plan = em_plan(problem.limit, grid)
        return solve(problem.limit, y0, grid, plan, diffusion=problem.diffusion, brownian=brownian, save=True).ys

    xs = path(times)
    eta = abs(problem.t1 - problem.t0) / _PILOT_STEPS
    drifts, t = problem.ladder.drifts, times[:-1]
    response = torch.ones_like(y0)
    squared = 0.0
    shifts = [torch.zeros_like(y0) for _ in drifts]
    for n in reversed(range(_PILOT_STEPS)):
        squared += float(response.square().mean()) / _PILOT_STEPS
        true = problem.drift(xs[n], t[n])
        for k, drift in enumerate(drifts, start=1):
            shifts[k - 1] += eta * response * (drift(xs[n], t[n]) - true) * 2.0**k
        response = response * (1 + eta * _slope(problem, xs[n], t[n]))
    level = math.sqrt(sum(float(shift.square().mean()) for shift in shifts) / len(shifts))
    coarse = path(problem.times(_PILOT_STEPS // 8))[-1]
    step = float((coarse - xs[-1]).square().mean().sqrt()) / (7 * eta)
    return Constants(level, step, squared, abs(problem.t1 - problem.t0))


def _slope(problem: Problem, x: Tensor, t: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(problem.drift(x, t).sum(), x)[0]


def _stored_noise(problem: Problem, samples: int, seed: int) -> Brownian | None:
    """The same paths for every run, W stored on the fine grid; None for an ODE."""
    if problem.diffusion is None:
        return None
    seeds = range(seed * samples, (seed + 1) * samples)
    path = BrownianPath(seeds, shape=problem.y0(1).shape[1:], dtype=torch.float64)
    increments = torch.stack(list(path.increments(problem.times(FINE_STEPS))))
    w = torch.cat([torch.zeros_like(increments[:1]), increments.cumsum(0)])
    unit = FINE_STEPS / (problem.t1 - problem.t0)
    return lambda t, s: w[round((s - problem.t0) * unit)] - w[round((t - problem.t0) * unit)]


class Experiment:
    """Runs on one problem with the same initial states, noise and reference: the fine EM path of the true drift.

    Arguments:
        problem: A :func:`multilevel_sde.rates.problems.scaling_law`.
        gamma: Its cost exponent.
        samples: Paths.
        seed: Seed of the initial states, the noise and the draws.

    Example:
        >>> import multilevel_sde as mls
        >>> problem = mls.problems.scaling_law(3.0, diffusion=0.5)
        >>> point = Experiment(problem, 3.0, samples=4, seed=0).em(levels=2, steps=4)
        >>> point.cost, 0 < point.error < 1
        (256.0, True)
    """

    def __init__(self, problem: Problem, gamma: float, samples: int, seed: int):
        self.problem, self.gamma, self.samples, self.seed = problem, gamma, samples, seed
        self.y0 = problem.y0(samples, seed)
        self.brownian = _stored_noise(problem, samples, seed)
        self.reference = self._solve(problem.limit, problem.times(FINE_STEPS))

    def _solve(self, ladder: Ladder, times: Tensor, plan: Plan | None = None) -> Tensor:
        plan = em_plan(ladder, times) if plan is None else plan
        return solve(ladder, self.y0, times, plan, diffusion=self.problem.diffusion, brownian=self.brownian).y

    def _point(self, levels: int, steps: int, cost: float, y: Tensor) -> Point:
        return Point(levels, steps, cost, float((y - self.reference).square().mean().sqrt()))

    def em(self, levels: int, steps: int) -> Point:
        """Run EM on level K = `levels` alone."""
        ladder, times = self.problem.ladder.subset([levels - 1]), self.problem.times(steps)
        return self._point(levels, steps, steps * ladder.costs[0], self._solve(ladder, times))

    def multilevel(self, levels: int, steps: int, scale: float) -> Point:
        """Run ML-EM on levels 1 ... K with the theorem's probabilities and independent draws per path."""
        ladder, times = self.problem.ladder.subset(range(levels)), self.problem.times(steps)
        p = TheoremSchedule(self.gamma).probabilities(ladder, times, scale=scale)
        generator = torch.Generator().manual_seed(1000 * self.seed + levels)
        plan = draw_plan(p, independent, generator=generator, samples=self.samples)
        return self._point(levels, steps, plan.cost(ladder), self._solve(ladder, times, plan))
