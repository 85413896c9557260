r"""The order of convergence of a step: the slope of log2 error against log2 step size, all sizes on the same paths.

    strong order:  e(h) = (E |y_h - x|^2)^{1/2},            weak order of phi:  e(h) = |E phi(y_h) - E phi(x)|,

at the final time, with the norm of the mean square over components. x is the exact solution on the same Brownian path,
or the same step on a grid 16 times as fine (which moves the slope by less than 0.05 at order 1, and less at others).
The same paths make e(h) a mean of differences, so that few paths resolve a weak error too.

References:
    Kloeden and Platen, "Numerical Solution of Stochastic Differential Equations", 1992, sections 9.6 and 9.7.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multilevel_sde.noise.brownian import BrownianPath
from multilevel_sde.noise.diffusion import nature
from multilevel_sde.plans.drawing import em_plan
from multilevel_sde.rates.problem_parts import Problem
from multilevel_sde.solver.integrate import solve
from multilevel_sde.steps.rules import Step, StepRule

__all__ = ["Order", "check_order"]

_GROUPS = 8  # of paths; leaving each out in turn gives the standard error of the slope (jackknife)
_REFERENCE = 16  # steps of the reference for each of the finest grid, where no solution is known
_ROUNDINGS = 1e3  # errors below so many roundings are not of the method


@dataclass(frozen=True)
class Order:
    """What :func:`check_order` measured.

    Attributes:
        order: The least-squares slope.
        standard_error: Its standard error over paths.
        steps: Numbers of steps.
        errors: Error at each of them.
    """

    order: float
    standard_error: float
    steps: tuple[int, ...]
    errors: tuple[float, ...]


def check_order(
    step: Step | StepRule,
    problem: Problem,
    expected: float,
    *,
    weak: Callable[[Tensor], Tensor] | None = None,
    steps: Sequence[int] = (16, 32, 64, 128, 256),
    samples: int = 512,
    tolerance: float = 0.1,
    seed: int = 0,
) -> Order:
    """Check the strong order of a step, or the weak order for a functional, on the true drift of a problem.

    Arguments:
        step: The step of a solve.
        problem: What to solve; of :mod:`multilevel_sde.rates.problems`, or your own.
        expected: The order.
        weak: phi(x) of states (B, d), one value or more for each sample; None for the strong order. For an ODE the
            strong order is the order.
        steps: Numbers of equal steps, increasing.
        samples: Paths, at least 16.
        tolerance: Largest distance of the slope to `expected`. It is to cover the next term of the expansion, which
            moves the slope by some hundredths, and the paths: four standard errors of the slope must be below it.
        seed: Of the initial states and the noise.

    Raises:
        AssertionError: The slope is further away than `tolerance`, is not resolved by so many paths, or the errors are
            not those of the method but rounding.
        ValueError: Fewer than 3 numbers of steps, or not increasing; fewer than 16 samples.

    Example:
        >>> import multilevel_sde as mls
        >>> check_order(mls.Heun(), mls.problems.scaling_law(gamma=3.0), 1.0, samples=16)
        Traceback (most recent call last):
        ...
        AssertionError: measured order 2.0..., expected 1 within 0.1
    """
    counts = tuple(steps)
    if len(counts) < 3 or any(a >= b for a, b in itertools.pairwise(counts)):
        raise ValueError(f'"steps" must be at least 3 increasing numbers, got {list(counts)}')
    if samples < 2 * _GROUPS:
        raise ValueError(f'"samples" must be at least {2 * _GROUPS}, got {samples}')
    y0 = problem.y0(samples, seed)
    brownian = None
    if problem.diffusion is not None:
        shape = nature(problem.diffusion).shape
        finest = (
            problem.times(counts[-1] * (1 if problem.exact else _REFERENCE)) if getattr(step, "area", False) else None
        )
        seeds = range(seed * samples, (seed + 1) * samples)
        shape = y0.shape[1:] if shape is None else shape
        brownian = BrownianPath(seeds, grid=finest, shape=shape, dtype=y0.dtype)

    def final(count: int) -> Tensor:
        times = problem.times(count)
        plan = em_plan(problem.limit, times, step=step)
        given: dict[str, Any] = {"step": step, "diffusion": problem.diffusion, "brownian": brownian}
        return solve(problem.limit, y0, times, plan, gradients=False, **given).y

    if problem.exact is None:
        truth = final(_REFERENCE * counts[-1])
    else:
        truth = problem.exact(y0, problem.t1, None if brownian is None else brownian(problem.t0, problem.t1))
    if weak is None:
        terms = torch.stack([(final(count) - truth).square().reshape(samples, -1) for count in counts])
    else:
        terms = torch.stack([(weak(final(count)) - weak(truth)).reshape(samples, -1) for count in counts])
    measured = _measure(terms, counts, strong=weak is None)
    _judge(measured, expected, tolerance, _ROUNDINGS * torch.finfo(y0.dtype).eps * float(truth.abs().max()))
    return measured


def _measure(terms: Tensor, counts: tuple[int, ...], *, strong: bool) -> Order:
    """Slope of the errors, and its standard error; terms (steps, samples, components) are means over samples."""

    def errors(chosen: Tensor) -> Tensor:
        return chosen.mean((1, 2)).sqrt() if strong else chosen.mean(1).square().mean(1).sqrt()

    def slope(values: Tensor) -> float:
        x = -torch.tensor(counts, dtype=values.dtype).log2()
        x = x - x.mean()
        return float((x @ values.log2()) / x.square().sum())

    group = torch.arange(terms.shape[1]) % _GROUPS
    left_out = torch.tensor([slope(errors(terms[:, group != g])) for g in range(_GROUPS)], dtype=torch.float64)
    spread = math.sqrt((_GROUPS - 1) * float(left_out.var(correction=0)))
    everything = errors(terms)
    return Order(slope(everything), spread, counts, tuple(everything.tolist()))


def _judge(measured: Order, expected: float, tolerance: float, least: float) -> None:
    if not min(measured.errors) > least:
        raise AssertionError(
            f"measured errors down to {min(measured.errors):.3g}, expected more than {least:.3g} (rounding); take "
            "fewer steps or another problem"
        )
    if not 4 * measured.standard_error <= tolerance:
        raise AssertionError(
            f"measured order {measured.order:.3f} with standard error {measured.standard_error:.3f}, expected at most "
            f"{tolerance / 4:.3g}; take more samples or a larger tolerance"
        )
    if not abs(measured.order - expected) <= tolerance:
        raise AssertionError(f"measured order {measured.order:.3f}, expected {expected:g} within {tolerance:g}")
