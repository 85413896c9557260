"""What a solve can take: its problem, plan, steps and saved times, each refused in one sentence where it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real

import torch
from torch import Tensor

from multilevel_sde.arguments import as_integer, as_items
from multilevel_sde.ladder import Ladder
from multilevel_sde.noise.brownian import Brownian, BrownianPath
from multilevel_sde.noise.diffusion import Diffusion
from multilevel_sde.plans.plan import Plan, as_plan
from multilevel_sde.solver.finite import is_finite
from multilevel_sde.steps.rules import Heun, Midpoint, Step, StepRule, euler_maruyama, plan_rows
from multilevel_sde.steps.sums import HALF, transformed
from multilevel_sde.times import places_on

__all__ = ["check_moving", "check_plan", "check_problem", "check_rows", "kept_indices"]

_DTYPES = (torch.float32, torch.float64, *HALF)


def check_moving(step: Step | StepRule, diffusion: Diffusion | None, dtype: torch.dtype) -> None:
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


def check_plan(ladder: Ladder, y0: Tensor, plan: Plan) -> None:
    """Refuse a plan for another ladder or another number of samples."""
    as_plan(plan).check_ladder(ladder)
    if plan.samples is not None and (y0.dim() == 0 or y0.shape[0] != plan.samples):
        raise ValueError(f'"plan" has draws for {plan.samples} samples, "y0" has shape {tuple(y0.shape)}')


def check_rows(plan: Plan, step: Step | StepRule, grid: Tensor) -> None:
    """Refuse a plan with another number of rows than the step evaluates on these times."""
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


def kept_indices(save: bool | Sequence[int] | Sequence[float] | Tensor, grid: Tensor) -> list[int]:
    """Return the indices of the times to keep, as they were given: all, the last, indices, or times on the grid.

    Raises:
        TypeError: Neither integers nor numbers.
        ValueError: Indices outside, or times that are not on the grid.

    Example:
        >>> kept_indices([1.0, 0.5], torch.linspace(0.0, 1.0, 11))
        [10, 5]
    """
    points = len(grid)
    if save is True:
        return list(range(points))
    if save is False:
        return [points - 1]
    given = save.tolist() if isinstance(save, Tensor) else list(as_items("save", save, "indices or times"))
    if given and any(isinstance(value, Real) and not isinstance(value, Integral) for value in given):
        return _places(given, grid)
    kept = [as_integer("save", index) for index in given]
    wrong = [index for index in kept if not -points <= index < points]
    if wrong or not kept:
        raise ValueError(f'"save" must be True, False or indices of times within 0..{points - 1}, got {given}')
    return [index % points for index in kept]


def _places(times: list[float], grid: Tensor) -> list[int]:
    points, wanted = grid.double(), torch.tensor([float(time) for time in times], dtype=torch.float64)
    ascending = points if points[1] > points[0] else points.flip(0)
    try:
        each, where = wanted.unique(return_inverse=True)
        found = places_on(ascending, each)[where].tolist()
    except ValueError:
        cell = float(points.diff().abs().min())
        off = [time for time in wanted.tolist() if not float((points - time).abs().min()) <= 1e-3 * cell]
        raise ValueError(
            f'"save" has the time {off[0] if off else wanted.tolist()[0]:.6g}, which is not on the grid of the solve '
            f'(states between its {len(grid)} times are not interpolated); put it into "times"'
        ) from None
    return found if ascending is points else [len(grid) - 1 - place for place in found]
