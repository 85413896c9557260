"""Cost against error of Euler-Maruyama (EM) and multilevel Euler-Maruyama (ML-EM), measured and predicted.

The problem is :func:`multilevel_sde.problems.scaling_law`, the prediction that of :mod:`multilevel_sde.rate_model`: its
three constants are measured on paths of the true drift, so it knows nothing of the multilevel runs.

References:
    Jacot 2026, Theorem 1.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO

import torch
from torch import Tensor
from tqdm import tqdm

from multilevel_sde.brownian import Brownian, BrownianPath
from multilevel_sde.draw import independent
from multilevel_sde.files import write_atomically
from multilevel_sde.ladder import Ladder
from multilevel_sde.plan import Plan, draw_plan, em_plan
from multilevel_sde.problems import Problem, scaling_law
from multilevel_sde.rate_model import (
    Constants,
    Point,
    exponent,
    limits,
    predict_em,
    predict_multilevel,
    theorem_steps,
)
from multilevel_sde.schedule import TheoremSchedule
from multilevel_sde.solve import solve
from multilevel_sde.testbed import check_at_least, check_positive

__all__ = ["Constants", "Point", "RatesResult", "exponent", "measure", "rates"]

_FINE_STEPS = 2048  # steps of the reference path, and the most that a simulation takes
_PILOT_STEPS = 256  # steps of the path that gives the constants: smooth integrals, so within a per cent


@dataclass(frozen=True)
class RatesResult:
    """Measured and predicted cost-error curves of EM and ML-EM at one gamma.

    Attributes:
        gamma: Cost exponent of the ladder.
        diffusion: Noise sigma of the problem, 0 for the ODE.
        samples: Paths averaged over, each with its own draws.
        constants: What the prediction used.
        em: Measured points of EM.
        em_predicted: Their prediction.
        multilevel: Measured points of ML-EM.
        multilevel_predicted: Their prediction.
        limits: (K, EM's exponent, ML-EM's exponent) between K - 1 and K levels up to K = 40, predicted, not run.
    """

    gamma: float
    diffusion: float
    samples: int
    constants: Constants
    em: tuple[Point, ...]
    em_predicted: tuple[Point, ...]
    multilevel: tuple[Point, ...]
    multilevel_predicted: tuple[Point, ...]
    limits: tuple[tuple[int, float, float], ...]

    def table(self) -> str:
        """Return the points and the exponents as text."""
        kind = f"SDE, sigma = {self.diffusion:g}" if self.diffusion else "ODE"
        lines = [f"gamma = {self.gamma:g}, {kind}, {self.samples} paths; cost in units of 2^(gamma k) for level k", ""]
        lines.append("            K   steps   cost measured  predicted   RMS error measured  predicted")
        for name, measured, predicted in self._curves():
            for a, b in zip(measured, predicted, strict=True):
                lines.append(
                    f"{name:<9}{a.levels:4d}{a.steps:8g}{a.cost:16.4g}{b.cost:11.4g}{a.error:21.3e}{b.error:11.3e}"
                )
        lines += ["", "exponent of cost against 1/error   measured  predicted   40 levels   theory"]
        theory = (self.gamma + 1, max(2.0, self.gamma))
        for index, (name, measured, predicted) in enumerate(self._curves()):
            limit = self.limits[-1][1 + index]
            lines.append(
                f"{name:<33}{exponent(measured):10.2f}{exponent(predicted):11.2f}{limit:12.2f}{theory[index]:9.2f}"
            )
        return "\n".join(lines)

    def _curves(self) -> list[tuple[str, tuple[Point, ...], tuple[Point, ...]]]:
        return [("EM", self.em, self.em_predicted), ("ML-EM", self.multilevel, self.multilevel_predicted)]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything, with the exponents, as JSON."""
        content = asdict(self)
        content["exponents"] = {
            name: {"measured": exponent(measured), "predicted": exponent(predicted)}
            for name, measured, predicted in self._curves()
        }
        write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Write a PNG: cost against error, both logarithmic; points measured, lines predicted.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.0, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for (name, measured, predicted), color, marker in zip(self._curves(), ("C1", "C0"), "so", strict=True):
            axes.loglog([p.error for p in predicted], [p.cost for p in predicted], color=color, linewidth=1)
            label = f"{name}: exponent {exponent(measured):.2f}, predicted {exponent(predicted):.2f}"
            axes.loglog([p.error for p in measured], [p.cost for p in measured], marker, color=color, label=label)
        axes.invert_xaxis()
        axes.set_xlabel("RMS error (points measured, lines predicted)")
        axes.set_ylabel("cost of a trajectory")
        kind = f"SDE, $\\sigma$ = {self.diffusion:g}" if self.diffusion else "ODE"
        axes.set_title(f"$\\gamma$ = {self.gamma:g}, {kind}")
        axes.grid(which="major", alpha=0.3)
        axes.legend(loc="upper left")
        buffer = BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        write_atomically(path, buffer.getvalue())


def rates(
    gamma: float,
    *,
    levels: Sequence[int] = tuple(range(3, 10)),
    samples: int = 256,
    diffusion: float = 0.5,
    seed: int = 0,
    progress: bool = False,
) -> RatesResult:
    """Run EM and ML-EM on the scaling-law problem, against a fine EM path of the true drift with the same noise.

    EM takes level K and N = 2^K steps. ML-EM takes levels 1 ... K, independent draws per path, and the steps of
    :func:`theorem_steps`, rounded up to a power of two and kept between 4 2^K (step error a quarter of EM's) and 2048.

    Arguments:
        gamma: Cost exponent, positive, at most 20.
        levels: The K to run, at least two, increasing, between 2 and 9.
        samples: Paths, at least 2.
        diffusion: Noise sigma, 0 for the ODE.
        seed: Seed of the initial states, the noise and the draws.
        progress: Show a progress bar.

    Raises:
        ValueError: An argument out of range.

    Example:
        >>> result = rates(3.0, levels=(2, 3), samples=4)
        >>> [point.steps for point in result.em], [point.cost for point in result.em]
        ([4, 8], [256.0, 4096.0])
    """
    check_positive(gamma=gamma)
    check_at_least(2, samples=samples)
    if gamma > 20:
        raise ValueError(f'"gamma" must be at most 20, got {gamma}: the cost of 40 levels would overflow')
    chosen = list(levels)
    if len(chosen) < 2 or chosen != sorted(set(chosen)) or chosen[0] < 2 or chosen[-1] > 9:
        raise ValueError(f'"levels" must be at least two increasing numbers between 2 and 9, got {chosen}')
    if not (math.isfinite(diffusion) and diffusion >= 0):
        raise ValueError(f'"diffusion" must be a number that is not negative, got {diffusion}')
    problem = scaling_law(gamma, chosen[-1], diffusion=diffusion or None)
    experiment = _Experiment(problem, gamma, samples, seed)
    constants = _measure(problem, experiment.y0, experiment.brownian)
    fine_step = constants.duration / _FINE_STEPS
    em: list[Point] = []
    multilevel: list[Point] = []
    predicted: list[tuple[Point, Point]] = []
    for K in tqdm(chosen, unit="level", disable=not progress):
        unclipped = 2 ** math.ceil(math.log2(theorem_steps(gamma, constants, K)))
        steps = min(max(unclipped, 4 * 2**K), _FINE_STEPS)
        expected, scale = predict_multilevel(gamma, constants, K, steps, reference_step=fine_step)
        predicted.append((predict_em(gamma, constants, K, 2**K, reference_step=fine_step), expected))
        em.append(experiment.em(K, 2**K))
        multilevel.append(experiment.multilevel(K, steps, scale))
    em_predicted, multilevel_predicted = zip(*predicted, strict=True)
    return RatesResult(
        gamma,
        diffusion,
        samples,
        constants,
        em=tuple(em),
        em_predicted=em_predicted,
        multilevel=tuple(multilevel),
        multilevel_predicted=multilevel_predicted,
        limits=limits(gamma, constants),
    )


def measure(problem: Problem, *, samples: int = 256, seed: int = 0) -> Constants:
    """Measure the constants of the prediction on paths of the true drift; no multilevel run is involved.

    Arguments:
        problem: A :func:`multilevel_sde.problems.scaling_law`, whose drift acts on every component by itself, so that
            the response J is the product of 1 + eta f'(x_i).
        samples: Paths.
        seed: Seed of the initial states and the noise.

    Example:
        >>> constants = measure(scaling_law(3.0, diffusion=0.5), samples=16)
        >>> 0 < constants.gain < 1, constants.duration
        (True, 1.0)
    """
    return _measure(problem, problem.y0(samples, seed), _stored_noise(problem, samples, seed))


def _measure(problem: Problem, y0: Tensor, brownian: Brownian | None) -> Constants:
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
    increments = torch.stack(list(path.increments(problem.times(_FINE_STEPS))))
    w = torch.cat([torch.zeros_like(increments[:1]), increments.cumsum(0)])
    unit = _FINE_STEPS / (problem.t1 - problem.t0)
    return lambda t, s: w[round((s - problem.t0) * unit)] - w[round((t - problem.t0) * unit)]


class _Experiment:
    """Runs on one problem with the same initial states, noise and reference."""

    def __init__(self, problem: Problem, gamma: float, samples: int, seed: int):
        self.problem, self.gamma, self.samples, self.seed = problem, gamma, samples, seed
        self.y0 = problem.y0(samples, seed)
        self.brownian = _stored_noise(problem, samples, seed)
        self.reference = self._solve(problem.limit, problem.times(_FINE_STEPS))

    def _solve(self, ladder: Ladder, times: Tensor, plan: Plan | None = None) -> Tensor:
        plan = em_plan(ladder, times) if plan is None else plan
        return solve(ladder, self.y0, times, plan, diffusion=self.problem.diffusion, brownian=self.brownian).y

    def _point(self, levels: int, steps: int, cost: float, y: Tensor) -> Point:
        return Point(levels, steps, cost, float((y - self.reference).square().mean().sqrt()))

    def em(self, levels: int, steps: int) -> Point:
        ladder, times = self.problem.ladder.subset([levels - 1]), self.problem.times(steps)
        return self._point(levels, steps, steps * ladder.costs[0], self._solve(ladder, times))

    def multilevel(self, levels: int, steps: int, scale: float) -> Point:
        ladder, times = self.problem.ladder.subset(range(levels)), self.problem.times(steps)
        p = TheoremSchedule(self.gamma).probabilities(ladder, times, scale=scale)
        generator = torch.Generator().manual_seed(1000 * self.seed + levels)
        plan = draw_plan(p, independent, generator=generator, samples=self.samples)
        return self._point(levels, steps, plan.cost(ladder), self._solve(ladder, times, plan))
