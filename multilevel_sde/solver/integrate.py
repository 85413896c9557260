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
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from multilevel_sde.arguments import as_integer, as_items
from multilevel_sde.conditions import Conditions, as_conditions
from multilevel_sde.ladder import Ladder
from multilevel_sde.noise.brownian import Brownian, BrownianPath, increments
from multilevel_sde.noise.diffusion import Diffusion
from multilevel_sde.plans.plan import Plan, as_plan, mean_cost
from multilevel_sde.solver.estimators import Estimator, Telescoping
from multilevel_sde.solver.evaluate import detacher, evaluator
from multilevel_sde.solver.finite import FiniteWatch, is_finite
from multilevel_sde.solver.loop import Loop
from multilevel_sde.solver.noise_along import noise_along
from multilevel_sde.solver.solution import Solution, Stats
from multilevel_sde.steps.rules import Heun, Midpoint, Step, StepRule, euler_maruyama, plan_rows
from multilevel_sde.steps.sums import HALF, transformed
from multilevel_sde.times import as_times, device_dtype

__all__ = ["check_problem", "solve"]

_DTYPES = (torch.float32, torch.float64, *HALF)


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
    save: bool | Sequence[int] = False,
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
        save: True for all states, or the indices of times to keep; by default only the last state.
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
    _check_plan(ladder, y0, plan)
    _check_rows(plan, step, grid)
    if moving:
        _check_moving(step, diffusion, y0.dtype)
    kept = _kept_indices(save, len(grid))
    off = detacher() if gradients is False else None
    half = y0.dtype if y0.dtype in HALF else None
    y = begin = (y0 if off is None else off(y0)).to(y0.dtype if half is None else torch.float32)
    needed = estimator.needed(plan)
    loop = Loop(
        times if moving else grid,  # type: ignore[arg-type]
        needed,
        evaluator(ladder, shared=needed.dim() == 2, conditions=given, seen=half, detached=off),
        estimator.start(plan),
        None if diffusion is None else noise_along(diffusion, increments(brownian, grid, begin), half, off),
        FiniteWatch(begin, half) if check_finite else None,
        progress,
        off,
        moving,
        device_dtype(grid.dtype, y0.device),
    )
    saved = [begin] if 0 in kept else []
    try:
        for n, y in enumerate(loop.states(step, begin), 1):
            if n in kept:
                saved.append(y if half is None else y.to(half))
    finally:  # a drift that raises on NaN is not to blame for the NaN
        if loop.watch is not None:
            loop.watch.look()
    if half is not None:
        y, saved = y.to(half), [state.to(half) for state in saved]
    evaluations = needed.sum(0)
    calls = evaluations if needed.dim() == 2 else needed.any(1).sum(0)
    cost, seconds = mean_cost(evaluations, ladder), time.perf_counter() - start
    stats = Stats(evaluations, tuple(calls.tolist()), cost, seconds, len(grid) - 1)
    status = "completed"
    if plan.truncated:
        status += "; biased on purpose: the plan leaves out the top levels at some steps"
    ys = y[None] if len(saved) == 1 and len(grid) - 1 in kept else torch.stack(saved)  # one state is not copied
    at = grid[-1:].clone() if save is False else grid[sorted(kept)]  # an index takes ten times as long
    return Solution(y, ys, at, stats, status)


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


def _check_moving(step: Step | StepRule, diffusion: Diffusion | None, dtype: torch.dtype) -> None:
    """Refuse a gradient of times that would be wrong: a step may compute with floats, and W is not differentiable."""
    known = step is euler_maruyama or type(step) in (Heun, Midpoint)
    if known and diffusion is None and dtype not in HALF:
        return
    what = "a diffusion" if diffusion is not None else "a state of 16 bits" if known else f"the step {step!r}"
    raise ValueError(
        f'"times" require a gradient, which there is for ODEs with euler_maruyama, Heun or Midpoint, got {what}; pass '
        "times.detach()"
    )


def check_problem(
    ladder: Ladder,
    y0: Tensor,
    diffusion: Diffusion | None,
    brownian: Brownian | BrownianPath | None,
    check_finite: bool = True,
) -> Tensor:
    """Return the states if they, the ladder and the noise are what a solve can take.

    Raises:
        TypeError, ValueError: They are not, in the words of :func:`solve`.

    Example:
        >>> check_problem(Ladder([torch.sin], [1.0]), torch.ones(2), 0.5, None)
        Traceback (most recent call last):
        ...
        ValueError: "diffusion" needs "brownian"; for example brownian=BrownianPath(seeds=range(len(y0)))
    """
    if not isinstance(ladder, Ladder):
        raise TypeError(f'"ladder" must be a multilevel_sde.Ladder, got {type(ladder).__name__}')
    if not isinstance(y0, Tensor) or y0.dtype not in _DTYPES:
        what = str(y0.dtype) if isinstance(y0, Tensor) else type(y0).__name__
        advice = ""
        if isinstance(y0, Tensor) and y0.is_complex():
            advice = "; solve for torch.view_as_real(y0), with drifts f(torch.view_as_complex(y), t) made real likewise"
        raise TypeError(f'"y0" must be a floating-point Tensor of 16, 32 or 64 bits, got {what}{advice}')
    inside = transformed() and not check_finite  # numbers cannot be looked at inside torch.vmap
    if not inside and not is_finite(y0):
        raise ValueError('"y0" must be finite, got NaN or infinity')
    if diffusion is None and brownian is not None:
        raise ValueError(
            '"brownian" was given without "diffusion", which means an ODE; pass diffusion=1.0 if the step scales the '
            "noise itself, or leave out brownian"
        )
    if diffusion is not None and brownian is None:
        raise ValueError('"diffusion" needs "brownian"; for example brownian=BrownianPath(seeds=range(len(y0)))')
    if not (brownian is None or callable(brownian)):
        raise TypeError(
            f'"brownian" must be a callable of an interval, got {type(brownian).__name__}; for example '
            "BrownianPath(seeds=range(len(y0)))"
        )
    return y0


def _check_plan(ladder: Ladder, y0: Tensor, plan: Plan) -> None:
    as_plan(plan).check_ladder(ladder)
    if plan.samples is not None and (y0.dim() == 0 or y0.shape[0] != plan.samples):
        raise ValueError(f'"plan" has draws for {plan.samples} samples, "y0" has shape {tuple(y0.shape)}')


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
    rule = "" if plan.steps % rows else ", or give the step rule that it was made for, such as step=mls.Heun()"
    raise ValueError(f'"plan" has {plan.steps} steps, "times" has {rows}; draw the plan for these times{rule}')


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
