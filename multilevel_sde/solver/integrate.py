r"""solve(): the one loop. Everything random was decided before, in the plan and in the Brownian path.

For dy = f(y, t) dt + g dW and a plan that estimates f^K by F(n) = sum_k w_k(n) (f^k - f^{k-1}), one step is

    y_{n+1} = step(y_n, F(n), t_n, t_{n+1}, g (W(t_{n+1}) - W(t_n))),

by default Euler-Maruyama, y_n + (t_{n+1} - t_n) F(n) + noise, together multilevel Euler-Maruyama (ML-EM). A step rule
(:mod:`multilevel_sde.steps.rules`) asks for its estimates itself: several in a step, or at other states and times.

References:
    Jacot 2026, section 2; Kloeden and Platen, "Numerical Solution of Stochastic Differential Equations", 1992.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from multilevel_sde.arguments import as_integer, as_items
from multilevel_sde.ladder import Ladder
from multilevel_sde.noise.brownian import Brownian, BrownianPath, increments
from multilevel_sde.noise.diffusion import Diffusion, as_noise
from multilevel_sde.plans.plan import Plan, mean_cost
from multilevel_sde.solver.estimators import Estimator, Telescoping
from multilevel_sde.solver.finite import FiniteWatch, is_finite
from multilevel_sde.solver.loop import Loop, Noise, evaluator
from multilevel_sde.solver.solution import Solution, Stats
from multilevel_sde.steps.rules import Step, StepRule, euler_maruyama, plan_rows
from multilevel_sde.times import as_times

__all__ = ["solve"]


def solve(
    ladder: Ladder,
    y0: Tensor,
    times: Tensor | Sequence[float],
    plan: Plan,
    *,
    step: Step | StepRule = euler_maruyama,
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
        plan: Hits and weights of K levels at N steps; with a step rule at each of its evaluations (see
            :func:`plan_rows`).
        step: step(y, estimate, t, s, noise) -> y at s, affine in `estimate`; t, s are Python floats. Or a
            :class:`StepRule`, such as :class:`Heun`.
        diffusion: None (ODE), a number, sigma(t), g(y, t) (diagonal) or a :class:`NoiseTerm`. The theorem on the
            multilevel error covers sigma(t) (isotropic, the same for all levels); with g(y, t) the noise multiplies
            the multilevel error too and only Euler-Maruyama's own order 1/2 is known. A step that scales the noise
            itself takes 1.0.
        brownian: Callable of an interval (t, s) -> W(s) - W(t), variance abs(s - t); for example :class:`BrownianPath`.
        estimator: How hits become an estimate.
        save: True for all states, or the indices of times to keep; by default only the last state.
        gradients: Keep the autograd graph; by default where y0 requires a gradient. True trains drift parameters.
        check_finite: Stop at the first NaN or infinity (looked for at every step; with small states and on a GPU every
            32 steps).
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
    _check_arguments(ladder, y0, plan, diffusion, brownian)
    _check_rows(plan, step, grid)
    kept = _kept_indices(save, len(grid))
    keep_graph = torch.is_grad_enabled() and (y0.requires_grad if gradients is None else gradients)
    with torch.set_grad_enabled(keep_graph):
        needed = estimator.needed(plan)
        evaluate = evaluator(ladder, shared=needed.dim() == 2)
        watch = FiniteWatch(y0) if check_finite else None
        noise = None if diffusion is None else _noise(diffusion, increments(brownian, grid, y0))
        loop = Loop(grid, needed, evaluate, estimator.start(plan), noise, watch, progress)
        y = y0
        saved = [y0] if 0 in kept else []
        try:
            for n, y in enumerate(loop.states(step, y0), 1):
                if n in kept:
                    saved.append(y)
        finally:  # a drift that raises on NaN is not to blame for the NaN
            if watch is not None:
                watch.look()
    evaluations = needed.sum(0)
    calls = evaluations if needed.dim() == 2 else needed.any(1).sum(0)
    cost, seconds = mean_cost(evaluations, ladder), time.perf_counter() - start
    stats = Stats(evaluations, tuple(calls.tolist()), cost, seconds, len(grid) - 1)
    status = "completed"
    if plan.truncated:
        status += "; biased on purpose: the plan leaves out the top levels at some steps"
    ys = y[None] if saved[0] is y else torch.stack(saved)  # the last state alone is not copied: it may be large
    at = grid[-1:].clone() if save is False else grid[sorted(kept)]  # an index takes ten times as long
    return Solution(y, ys, at, stats, status)


def _check_arguments(
    ladder: Ladder,
    y0: Tensor,
    plan: Plan,
    diffusion: Diffusion | None,
    brownian: Brownian | BrownianPath | None,
) -> None:
    if not isinstance(y0, Tensor) or not y0.is_floating_point():
        what = str(y0.dtype) if isinstance(y0, Tensor) else type(y0).__name__
        raise TypeError(f'"y0" must be a floating-point Tensor, got {what}')
    if not is_finite(y0):
        raise ValueError('"y0" must be finite, got NaN or infinity')
    for name, value, kind in (("ladder", ladder, Ladder), ("plan", plan, Plan)):
        if not isinstance(value, kind):
            raise TypeError(f'"{name}" must be a multilevel_sde.{kind.__name__}, got {type(value).__name__}')
    plan.check_ladder(ladder)
    if plan.samples is not None and (y0.dim() == 0 or y0.shape[0] != plan.samples):
        raise ValueError(f'"plan" has draws for {plan.samples} samples, "y0" has shape {tuple(y0.shape)}')
    if diffusion is None and brownian is not None:
        raise ValueError(
            '"brownian" was given without "diffusion", which means an ODE; pass diffusion=1.0 if the step scales the '
            "noise itself, or leave out brownian"
        )
    if diffusion is not None and brownian is None:
        raise ValueError('"diffusion" needs "brownian"; for example brownian=BrownianPath(seeds=range(len(y0)))')


def _check_rows(plan: Plan, step: Step | StepRule, grid: Tensor) -> None:
    plain = callable(step) and not isinstance(step, (type, StepRule))
    rows = len(grid) - 1 if plain else len(plan_rows(step, grid))
    if plan.steps == rows:
        return
    if isinstance(step, StepRule):
        raise ValueError(
            f'"plan" has {plan.steps} rows, {type(step).__name__} evaluates {rows} times on these times; '
            "draw the plan of p[mls.plan_rows(step, times)], with one row for each evaluation"
        )
    raise ValueError(f'"plan" has {plan.steps} steps, "times" has {rows}; draw the plan for these times')


def _noise(diffusion: Diffusion, increments: Iterator[Tensor]) -> Noise:
    """Return noise(y, t), which takes the next increment; the first result is checked."""
    apply, first = as_noise(diffusion), True

    def noise(y: Tensor, t: Tensor) -> Tensor:
        nonlocal first
        result = apply(y, t, next(increments))
        if first:
            _check_noise(result, y)
            first = False
        return result

    return noise


def _check_noise(noise: Tensor, y: Tensor) -> None:
    if not isinstance(noise, Tensor):
        raise TypeError(f'"diffusion" and "brownian" must give noise as a Tensor, got {type(noise).__name__}')
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
    kept = {as_integer("save", index) for index in as_items("save", save, "indices of times")}
    wrong = [index for index in kept if not -points <= index < points]
    if wrong or not kept:
        raise ValueError(f'"save" must be True, False or indices of times within 0..{points - 1}, got {list(save)}')
    return {index % points for index in kept}
