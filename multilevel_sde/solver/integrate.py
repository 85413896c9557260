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
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from multilevel_sde.conditions import Conditions, as_conditions
from multilevel_sde.ladder import Ladder
from multilevel_sde.noise.brownian import Brownian, BrownianPath
from multilevel_sde.noise.diffusion import Diffusion
from multilevel_sde.plans.plan import Plan, mean_cost
from multilevel_sde.solver.check_arguments import check_moving, check_plan, check_problem, check_rows, kept_indices
from multilevel_sde.solver.estimators import Estimator, Telescoping
from multilevel_sde.solver.evaluate import detacher, evaluator
from multilevel_sde.solver.finite import FiniteWatch
from multilevel_sde.solver.heat import warn_of_heat
from multilevel_sde.solver.loop import Loop
from multilevel_sde.solver.noise_along import check_sense, noise_along
from multilevel_sde.solver.solution import Solution, Stats
from multilevel_sde.steps.rules import Step, StepRule, euler_maruyama, plan_rows
from multilevel_sde.steps.sums import HALF, transformed
from multilevel_sde.times import as_times, device_dtype

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
    conditions: Conditions | None = None,
    save: bool | Sequence[int] | Sequence[float] = False,
    callback: Callable[[int, float, Tensor], object] | None = None,
    gradients: bool | None = None,
    check_finite: bool = True,
    progress: bool = False,
) -> Solution:
    r"""Solve dy = f^K(y, t) dt + g dW along a time grid, evaluating the ladder as the plan says.

    Arguments:
        ladder: K drifts f^k(y, t) -> Tensor shaped like y; t is a 0-d tensor on y's device, of the dtype of `times`
            (float32 for float64 on a device that has none).
        y0: Initial state of any shape, floating point; samples along the first dimension where noise or draws are
            per sample. A state of 16 bits is carried in float32: the drifts see it rounded, and so is the result.
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
        save: True for all states, or which to keep: indices (integers) or times of the grid (floats); by default only
            the last state. States come in the order of `times`, each once.
        callback: callback(n, t, y), called with each new state y at t = times[n], which it must not change. It stops
            the solve by returning True: the solution ends there, and its status says so.
        conditions: What drifts are told about each sample: tensors by name, with one row a sample. Drifts are then
            called f(y, t, **conditions), with the rows of exactly the samples in y.
        gradients: By default the graph is that of autograd: with grad mode on it is kept where y0, times or a drift's
            value requires a gradient, and torch.func works. False takes everything off the graph as it comes, so that
            drifts may differentiate inside. Memory: see docs/gradients.
        check_finite: Stop at the first NaN or infinity (looked for at every step; with small states and on a GPU every
            32 steps).
        progress: Show a progress bar.

    Returns:
        A :class:`Solution`. Memory does not grow with N unless states are saved or a graph is kept.

    Warns:
        UserWarning: Corrections at random steps heat a rule for Langevin dynamics.

    Raises:
        TypeError, ValueError: An argument does not fit the others; a drift returns another shape, dtype or device;
            times that require a gradient with a diffusion or a step that has none.
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
    moving = _require_gradient(times) and gradients is not False
    grid = _grid(times)
    given = as_conditions(conditions, check_problem(ladder, y0, diffusion, brownian, check_finite))
    check_plan(ladder, y0, plan)
    check_rows(plan, step, grid)
    check_sense(step, diffusion)
    warn_of_heat(step, plan, grid)
    if moving:
        check_moving(step, diffusion, y0.dtype)
    kept = set(kept_indices(save, grid))
    off = detacher() if gradients is False else None
    half = y0.dtype if y0.dtype in HALF else None
    y = begin = (y0 if off is None else off(y0)).to(y0.dtype if half is None else torch.float32)
    needed = estimator.needed(plan)
    loop = Loop(
        times if moving else grid,  # type: ignore[arg-type]
        needed,
        evaluator(ladder, shared=needed.dim() == 2, conditions=given, seen=half, detached=off),
        estimator.start(plan),
        None if brownian is None else noise_along(step, diffusion, brownian, grid, begin, half, off),  # type: ignore
        FiniteWatch(begin, half) if check_finite else None,
        progress,
        off,
        moving,
        device_dtype(grid.dtype, y0.device),
    )
    saved, at, n = ([begin], [0], 0) if 0 in kept else ([], [], 0)
    stopped, last = False, len(grid) - 1
    try:
        for n, y in enumerate(loop.states(step, begin), 1):
            stopped = callback is not None and _stops(callback(n, float(grid[n]), y if half is None else y.to(half)))
            if n in kept or stopped:
                saved.append(y if half is None else y.to(half))
                at.append(n)
            if stopped:
                break
    finally:  # a drift that raises on NaN is not to blame for the NaN
        if loop.watch is not None:
            loop.watch.look()
    if half is not None:
        y, saved = y.to(half), [state.to(half) for state in saved]
    if n < last:
        needed = needed[: int((plan_rows(step, grid) < n).sum())]
    stats = _stats(needed, ladder, n, start)
    ys = y[None] if at == [n] else torch.stack(saved)  # one state is not copied
    when = grid[n : n + 1].clone() if save is False else grid[at]  # an index takes ten times as long
    return Solution(y, ys, when, stats, _status(n, grid, plan))


def _stats(needed: Tensor, ladder: Ladder, steps: int, start: float) -> Stats:
    """What was done, from the levels that each row of the plan needed."""
    evaluations = needed.sum(0)
    calls = evaluations if needed.dim() == 2 else needed.any(1).sum(0)
    seconds = time.perf_counter() - start
    return Stats(evaluations, tuple(calls.tolist()), mean_cost(evaluations, ladder), seconds, steps)


def _status(n: int, grid: Tensor, plan: Plan) -> str:
    if n < len(grid) - 1:
        return f"stopped by the callback at step {n} of {len(grid) - 1}, time {float(grid[n]):.6g}"
    return "completed" + (
        "; biased on purpose: the plan leaves out the top levels at some steps" if plan.truncated else ""
    )


def _stops(answer: object) -> bool:
    """Whether a callback wants to stop.

    Raises:
        TypeError: It returned neither True, False nor None.
    """
    if answer is None or isinstance(answer, bool):
        return bool(answer)
    if isinstance(answer, Tensor) and answer.dtype == torch.bool and answer.numel() == 1:
        return bool(answer)
    raise TypeError(f'"callback" must return True to stop, or False or None to go on, got {type(answer).__name__}')


def _require_gradient(times: object) -> bool:
    """Whether a gradient of the times is wanted, in reverse or forward mode."""
    if not isinstance(times, Tensor):
        return False
    backwards = times.requires_grad and torch.is_grad_enabled()
    return backwards or (forward_ad._current_level >= 0 and forward_ad.unpack_dual(times).tangent is not None)


def _grid(times: Tensor | Sequence[float]) -> Tensor:
    try:
        return as_times(times)
    except RuntimeError:
        if not transformed():
            raise
        raise ValueError('"times" must be the same for all inside torch.vmap, got one grid for each') from None
