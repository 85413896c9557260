"""One level alone as plans to fit: on some grids, by some multistep methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from math import nan

from torch import Tensor

from multilevel_sde.arguments import as_integer, as_items
from multilevel_sde.ladder import Ladder
from multilevel_sde.pilots.answers import Form, PilotPlan, Prediction
from multilevel_sde.plans.memory import as_coefficients, combined
from multilevel_sde.steps.adams import adams_bashforth_weights
from multilevel_sde.times import as_times

__all__ = ["Base", "single_plans"]

Base = Callable[[Tensor], Tensor]

_EULER_AND_ADAMS = tuple(partial(adams_bashforth_weights, order=order) for order in (1, 2, 3))


def single_plans(
    ladder: Ladder,
    grids: Tensor | Sequence[Tensor],
    bases: Sequence[Base] = _EULER_AND_ADAMS,
    *,
    level: int = -1,
) -> list[PilotPlan]:
    """Return plans of one level alone, for :func:`fit_plan`: F(n) = sum_j a[n, j] f(n - j), with a = base(grid).

    Arguments:
        ladder: The drifts; one is enough.
        grids: Times to try, each (N + 1,); one needs no list.
        bases: Functions of a grid that return coefficients, (N, order), rows with sum 1; by default those of
            Adams-Bashforth of orders 1 (Euler) to 3.
        level: Which level, as an index from 0; by default the top level.

    Returns:
        A plan for each grid and base, the bases of the first grid first. Errors are not predicted: they are NaN.

    Raises:
        TypeError: No `Ladder`, `grids` or `bases` that are no sequences, a base that is no function or returns no
            numbers, a level that is no integer.
        ValueError: No grid, a bad one, no base, a level that the ladder lacks, or coefficients of another shape or sum,
            or for values from before the first step.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder = mls.Ladder([lambda y, t: -torch.sin(y)], costs=[1.0])
        >>> y0, times = torch.linspace(0.2, 2.0, 16)[:, None], torch.linspace(0.0, 1.0, 6)
        >>> exact = 2 * torch.atan(torch.tan(y0 / 2) / torch.e)
        >>> fitted = mls.fit_plan(ladder, y0, mls.single_plans(ladder, times), exact, order=3)
        >>> fitted.held_out[1] < 0.1 * fitted.held_out[0], fitted.plan.cost(ladder)
        (True, 5.0)
    """
    if not isinstance(ladder, Ladder):
        raise TypeError(f'"ladder" must be a multilevel_sde.Ladder, got {type(ladder).__name__}; one drift is enough')
    grids = [grids] if isinstance(grids, Tensor) and grids.dim() < 2 else as_items("grids", grids, "grids of times")
    grids, bases = [as_times(grid) for grid in grids], as_items("bases", bases, "functions of a grid")
    for base in bases:
        if not callable(base):
            raise TypeError(f'"bases" must be functions of a grid, got {type(base).__name__}')
    level, levels = as_integer("level", level), len(ladder)
    if not grids or not bases:
        raise ValueError('"grids" and "bases" must hold at least one each, such as grids=[torch.linspace(0, 1, 11)]')
    if not -levels <= level < levels:
        raise ValueError(f'"level" must lie between {-levels} and {levels - 1}, got {level}')
    found = []
    for grid, base in product(grids, bases):
        steps = len(grid) - 1
        table = as_coefficients("bases", base(grid), steps)
        cost = steps * ladder.costs[level]
        plan = combined(level % levels, table, {}, levels)
        found.append(PilotPlan(plan, grid, (level % levels,), Prediction(nan, nan, nan, nan, cost, nan), Form.ALONE))
    return found
