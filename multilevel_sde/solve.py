r"""solve(): the one loop. Everything random was decided before, in the plan and in the Brownian path.

For dy = f(y, t) dt + g dW and a plan that estimates f^K by F(n) = sum_k w_k(n) (f^k - f^{k-1}), one step is

    y_{n+1} = step(y_n, F(n), t_n, t_{n+1}, g (W(t_{n+1}) - W(t_n))),

by default Euler-Maruyama, y_n + (t_{n+1} - t_n) F(n) + noise, together multilevel Euler-Maruyama (ML-EM).

References:
    Jacot 2026, section 2; Kloeden and Platen, "Numerical Solution of Stochastic Differential Equations", 1992.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

from multilevel_sde.brownian import Brownian, BrownianPath
from multilevel_sde.diffusion import Diffusion, as_noise
from multilevel_sde.finite import FiniteWatch
from multilevel_sde.ladder import Ladder
from multilevel_sde.plan import Plan
from multilevel_sde.times import as_times

__all__ = ["Combine", "Estimator", "Solution", "Stats", "Step", "Telescoping", "euler_maruyama", "solve"]

Step = Callable[[Tensor, Tensor, float, float, Tensor | None], Tensor]
Combine = Callable[[int, dict[int, Tensor]], Tensor]

_BLOCK = 1024  # steps whose bookkeeping is unpacked at a time, so that memory does not grow with the steps


class Estimator(Protocol):
    """How the hits of a plan become an estimate of f^K."""

    def needed(self, plan: Plan) -> Tensor:
        """Which networks each step evaluates: bool, shaped like the plan's weights."""
        ...

    def start(self, plan: Plan) -> Combine:
        """Begin a solve: return combine(n, values) -> estimate, where values[k] = f^k(y_n, t_n) for the needed k.

        With a draw per sample, values[k] is zero in the samples that do not need it.
        """
        ...


@dataclass(frozen=True)
class Telescoping:
    """The weighted sum F = sum_k w_k (f^k - f^{k-1}) = sum_k (w_k - w_{k+1}) f^k, which remembers nothing."""

    def needed(self, plan: Plan) -> Tensor:
        """Every network whose coefficient is not zero."""
        return plan.coefficients != 0

    def start(self, plan: Plan) -> Combine:
        """Return the weighted sum."""
        coefficients = plan.coefficients
        first, rows = 0, []

        def shared(n: int, values: dict[int, Tensor]) -> Tensor:
            nonlocal first, rows
            if not 0 <= n - first < len(rows):
                first, rows = n, coefficients[n : n + _BLOCK].tolist()
            row = rows[n - first]
            estimate = None
            for level, value in values.items():
                if estimate is None:
                    estimate = value if row[level] == 1.0 else value * row[level]
                else:
                    estimate = torch.add(estimate, value, alpha=row[level])
            assert estimate is not None
            return estimate

        def per_sample(n: int, values: dict[int, Tensor]) -> Tensor:
            estimate = None
            for level, value in values.items():
                column = coefficients[n, :, level].to(value, non_blocking=True).reshape(-1, *[1] * (value.dim() - 1))
                estimate = value * column if estimate is None else torch.addcmul(estimate, value, column)
            assert estimate is not None
            return estimate

        return shared if plan.samples is None else per_sample


def euler_maruyama(y: Tensor, estimate: Tensor, t: float, s: float, noise: Tensor | None) -> Tensor:
    """Return y + (s - t) * estimate + noise: one Euler-Maruyama step from t to s (Euler's where noise is None).

    Example:
        >>> euler_maruyama(torch.tensor([1.0]), torch.tensor([-1.0]), 0.0, 0.1, None)
        tensor([0.9000])
    """
    following = torch.add(y, estimate, alpha=s - t)
    return following if noise is None else following.add_(noise)


@dataclass(frozen=True)
class Stats:
    """What a solve did.

    Attributes:
        evaluations: How often a trajectory evaluated each level, int64 (K,), or (B, K) with a draw per sample.
        calls: Calls of each drift; with a draw per sample a call is on the samples that need it.
        cost: Cost of one trajectory (mean over samples) in the ladder's unit.
        seconds: Wall-clock time of the whole solve (on a GPU until the host was done, unless `check_finite`).
        steps: Number of steps.
    """

    evaluations: Tensor
    calls: tuple[int, ...]
    cost: float
    seconds: float
    steps: int


@dataclass(frozen=True)
class Solution:
    """The result of a solve.

    Attributes:
        y: State at the last time, shaped like y0.
        ys: Saved states, (S, *y0.shape); only the last one unless `save` asked for more.
        times: The times of the saved states, (S,).
        stats: What it took.
        status: One sentence: "completed", and whether the plan is biased on purpose.
    """

    y: Tensor
    ys: Tensor
    times: Tensor
    stats: Stats
    status: str


def solve(
    ladder: Ladder,
    y0: Tensor,
    times: Tensor | Sequence[float],
    plan: Plan,
    *,
    step: Step = euler_maruyama,
    diffusion: Diffusion | None = None,
    brownian: Brownian | BrownianPath | None = None,
    estimator: Estimator = Telescoping(),
    save: bool | Sequence[int] = False,
    gradients: bool | None = None,
    check_finite: bool = True,
    progress: bool = False,
) -> Solution:
    r"""Solve dy = f^K(y, t) dt + g dW along a time grid, evaluating the ladder as the plan says.

    Arguments:
        ladder: K drifts f^k(y, t) -> Tensor shaped like y; t is a 0-d tensor on y's device, of the dtype of `times`.
        y0: Initial state of any shape, floating point; samples along the first dimension where noise or draws are
            per sample.
        times: N + 1 monotone times, up or down.
        plan: Hits and weights of N steps and K levels.
        step: One-step rule step(y, estimate, t, s, noise) -> y at s, affine in `estimate`; t, s are Python floats.
        diffusion: None (ODE), a number, sigma(t), g(y, t) (diagonal) or a :class:`NoiseTerm`. The theorem on the
            multilevel error covers sigma(t) (isotropic, the same for all levels); with g(y, t) the noise multiplies
            the multilevel error too and only Euler-Maruyama's own order 1/2 is known. A step that scales the noise
            itself takes 1.0.
        brownian: Callable of an interval (t, s) -> W(s) - W(t), variance abs(s - t); for example :class:`BrownianPath`.
        estimator: How hits become an estimate.
        save: True for all states, or the indices of times to keep; by default only the last state.
        gradients: Keep the autograd graph; by default where y0 requires a gradient. True trains drift parameters.
        check_finite: Stop at the first NaN or infinity (looked for at every step; with small states every 16 steps, on
            a GPU every 32).
        progress: Show a progress bar.

    Returns:
        A :class:`Solution`. Memory does not grow with N unless states are saved or a graph is kept.

    Raises:
        TypeError, ValueError: An argument does not fit the others; a drift returns another shape, dtype or device.
        NonFiniteError: The state became NaN or infinite.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder = mls.Ladder([lambda y, t: -y, lambda y, t: -torch.sin(y)], costs=[1.0, 8.0])
        >>> times = torch.linspace(0.0, 1.0, 101)
        >>> p = mls.TheoremSchedule(gamma=3.0).probabilities(ladder, times, budget=200.0)
        >>> plan = mls.draw_plan(p, mls.systematic, generator=torch.Generator().manual_seed(0))
        >>> solution = mls.solve(ladder, torch.ones(4), times, plan, diffusion=0.1,
        ...                      brownian=mls.BrownianPath(seeds=range(4)))
        >>> solution.y.shape, solution.stats.evaluations, solution.status
        (torch.Size([4]), tensor([100,  13]), 'completed')
    """
    start = time.perf_counter()
    grid = as_times(times)
    _check_arguments(ladder, y0, grid, plan, diffusion, brownian)
    kept = _kept_indices(save, len(grid))
    keep_graph = torch.is_grad_enabled() and (y0.requires_grad if gradients is None else gradients)
    noise_of = None if diffusion is None else as_noise(diffusion)
    with torch.set_grad_enabled(keep_graph):
        combine = estimator.start(plan)
        evaluate = _Evaluator(ladder)
        watch = FiniteWatch(y0) if check_finite else None
        noise_increments = increments(brownian, grid, y0)
        y = y0
        saved = [y0] if 0 in kept else []
        try:
            for n, t, s, time_n, needed in _steps(grid, estimator.needed(plan), y0.device, progress):
                values = evaluate(y, time_n, needed)
                noise = None if noise_of is None else noise_of(y, time_n, next(noise_increments))
                if n == 0 and noise is not None:
                    _check_noise(noise, y)
                y = step(y, combine(n, values), t, s, noise)
                if watch is not None:
                    watch(n, t, values, y)
                if n + 1 in kept:
                    saved.append(y)
        finally:  # a drift that raises on NaN is not to blame for the NaN
            if watch is not None:
                watch.look()
    evaluations = estimator.needed(plan).sum(0)
    cost = float((evaluations.double() @ torch.tensor(ladder.costs, dtype=torch.float64)).mean())
    stats = Stats(evaluations, tuple(evaluate.calls), cost, time.perf_counter() - start, len(grid) - 1)
    status = "completed"
    if plan.truncated:
        status += "; biased on purpose: the plan leaves out the top levels at some steps"
    return Solution(y, torch.stack(saved), grid[sorted(kept)], stats, status)


def _check_arguments(
    ladder: Ladder,
    y0: Tensor,
    grid: Tensor,
    plan: Plan,
    diffusion: Diffusion | None,
    brownian: Brownian | BrownianPath | None,
) -> None:
    if not isinstance(y0, Tensor) or not y0.is_floating_point():
        what = str(y0.dtype) if isinstance(y0, Tensor) else type(y0).__name__
        raise TypeError(f'"y0" must be a floating-point Tensor, got {what}')
    if not bool(y0.isfinite().all()):
        raise ValueError('"y0" must be finite, got NaN or infinity')
    plan.check_ladder(ladder)
    if plan.steps != len(grid) - 1:
        raise ValueError(f'"plan" has {plan.steps} steps, "times" has {len(grid) - 1}; draw the plan for these times')
    if plan.samples is not None and (y0.dim() == 0 or y0.shape[0] != plan.samples):
        raise ValueError(f'"plan" has draws for {plan.samples} samples, "y0" has shape {tuple(y0.shape)}')
    if diffusion is None and brownian is not None:
        raise ValueError(
            '"brownian" was given without "diffusion", which means an ODE; pass diffusion=1.0 if the step scales the '
            "noise itself, or leave out brownian"
        )
    if diffusion is not None and brownian is None:
        raise ValueError('"diffusion" needs "brownian"; for example brownian=BrownianPath(seeds=range(len(y0)))')


def _check_noise(noise: Tensor, y: Tensor) -> None:
    if noise.shape != y.shape:
        raise ValueError(
            f'"diffusion" and "brownian" give noise of shape {tuple(noise.shape)} for a state of shape '
            f"{tuple(y.shape)}; a diffusion that is not diagonal goes into a NoiseTerm"
        )


def _kept_indices(save: bool | Sequence[int], points: int) -> set[int]:
    if save is True:
        return set(range(points))
    if save is False:
        return {points - 1}
    kept = {int(index) for index in save}
    wrong = [index for index in kept if not -points <= index < points]
    if wrong or not kept:
        raise ValueError(f'"save" must be True, False or indices of times within 0..{points - 1}, got {list(save)}')
    return {index % points for index in kept}


def increments(brownian: Brownian | BrownianPath | None, grid: Tensor, y: Tensor) -> Iterator[Tensor]:
    if brownian is None:
        return iter(())
    if isinstance(brownian, BrownianPath):
        return brownian.like(y).increments(grid)
    points = grid.tolist()
    return (brownian(t, s) for t, s in itertools.pairwise(points))


def _steps(
    grid: Tensor, needed: Tensor, device: torch.device, progress: bool
) -> Iterator[tuple[int, float, float, Tensor, Tensor | list[int]]]:
    """Yield (n, t, s, t as a 0-d tensor on the device, the levels to evaluate), unpacked a block at a time."""
    bar = tqdm(total=len(needed), unit="step") if progress else None
    shared = needed.dim() == 2
    for first in range(0, len(needed), _BLOCK):
        block = grid[first : first + _BLOCK + 1]
        host, on_device = block.tolist(), block.to(device).unbind()
        rows = needed[first : first + _BLOCK]
        levels = [[k for k, need in enumerate(row) if need] for row in rows.tolist()] if shared else rows
        for i, row in enumerate(levels):
            yield first + i, host[i], host[i + 1], on_device[i], row
            if bar is not None:
                bar.update()
    if bar is not None:
        bar.close()


class _Evaluator:
    """Calls the drifts that a step needs, once each, and counts the calls."""

    def __init__(self, ladder: Ladder):
        self.drifts = ladder.drifts
        self.calls = [0] * len(ladder)

    def __call__(self, y: Tensor, t: Tensor, needed: Tensor | list[int]) -> dict[int, Tensor]:
        if isinstance(needed, list):
            return {level: self._call(level, y, t) for level in needed}
        values = {}
        for level in range(len(self.drifts)):
            rows = needed[:, level].nonzero()[:, 0]
            if len(rows) == len(y):
                values[level] = self._call(level, y, t)
            elif len(rows):
                chosen = rows.to(y.device, non_blocking=True)
                values[level] = torch.zeros_like(y).index_copy(0, chosen, self._call(level, y[chosen], t))
        return values

    def _call(self, level: int, y: Tensor, t: Tensor) -> Tensor:
        value = self.drifts[level](y, t)
        if self.calls[level] == 0:
            _check_value(level, y, value)
        self.calls[level] += 1
        return value


def _check_value(level: int, y: Tensor, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"the drift of level {level} must return a Tensor, got {type(value).__name__}")
    for name in ("shape", "dtype", "device"):
        came, expected = getattr(value, name), getattr(y, name)
        if came != expected:
            raise ValueError(
                f"the drift of level {level} returned {name} {came} for a state of {name} {expected}; "
                f"a drift must return a tensor like its state"
            )
