r"""The coefficients of a ladder at every call of a foreign sampling loop, and the sum that they weigh.

At the n-th call of a trajectory the estimate of the top level is sum_k (w_k - w_{k+1}) f^k (see
:mod:`multilevel_sde.ladder`). Rows n of these coefficients are drawn as far as needed, without knowing the number of
steps (the running sum of a systematic draw needs none), or taken from a given plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import multilevel_sde as mls
from multilevel_sde.arguments import as_number
from multilevel_sde.plans.drawing import check_probabilities

__all__ = ["DrawnRows", "PlannedRows", "combine", "step_probabilities"]

_BLOCK = 1024  # calls whose draw is made at once


class DrawnRows:
    """Coefficients of every call, drawn from probabilities with a seed of their own.

    Arguments:
        probabilities: p_k, shape (K,), for any number of calls; or p_k(n), shape (N, K), for exactly N calls.
        draw: The way of drawing.
        seed: Seed of the draw. The same seed gives the same rows.

    Raises:
        ValueError: See :func:`multilevel_sde.plans.drawing.check_probabilities`.

    Example:
        >>> rows = DrawnRows(torch.tensor([1.0, 0.25]), mls.systematic, seed=0)
        >>> sum(rows[n][1] > 0 for n in range(4000))
        1000
    """

    def __init__(self, probabilities: Tensor, draw: mls.Draw = mls.systematic, seed: int = 0):
        table = torch.as_tensor(probabilities)
        self.steps = None if table.dim() == 1 else len(table)
        self._table = check_probabilities(table[None] if table.dim() == 1 else table)
        self._draw = draw
        self._generator = torch.Generator().manual_seed(seed)
        self._rows: list[list[float]] = []

    def __getitem__(self, position: int) -> list[float]:
        """Return the coefficients of a call, K floats."""
        _check_position(position, self.steps)
        while position >= len(self._rows):
            table = self._table.expand(_BLOCK, -1) if self.steps is None else self._table
            plan = mls.draw_plan(table, self._draw, generator=self._generator)
            self._rows += plan.coefficients.tolist()
        return self._rows[position]


class PlannedRows:
    """Coefficients of every call as a plan gives them, without what it recalls (:mod:`.loops.memory`).

    Arguments:
        plan: A plan of N steps with one draw for the whole batch.

    Raises:
        ValueError: The plan has a draw for each sample.

    Example:
        >>> plan = mls.Plan(torch.tensor([[True, True], [True, False]]), torch.tensor([[1.0, 2.0], [1.0, 0.0]]))
        >>> PlannedRows(plan)[0]
        [-1.0, 2.0]
    """

    def __init__(self, plan: mls.Plan):
        if plan.samples is not None:
            raise ValueError(
                f'"plan" has draws of their own for {plan.samples} samples, expected one draw for the whole batch; '
                "draw it without samples="
            )
        self.steps = plan.steps
        self._rows = plan.coefficients.tolist()

    def __getitem__(self, position: int) -> list[float]:
        """Return the coefficients of a call, K floats."""
        _check_position(position, self.steps)
        return self._rows[position]


def _check_position(position: int, steps: int | None) -> None:
    if steps is not None and position >= steps:
        raise ValueError(
            f'"plan" has {steps} steps, the sampler made call number {position + 1} of a trajectory; make a plan for '
            "the number of network calls that this sampler makes"
        )


def combine(row: Sequence[float], evaluate: Callable[[int], Tensor]) -> Tensor:
    """Return sum_k row[k] * evaluate(k), evaluating only the levels whose coefficient is not zero.

    Half precision is summed in float32 (weights are large and of both signs) and rounded once; a single level with
    coefficient 1 is returned untouched.

    Example:
        >>> combine([-1.0, 2.0, 0.0], lambda k: torch.tensor([1.0, 10.0, float("nan")])[k])
        tensor(19.)
    """
    total, dtype = None, None
    for level, coefficient in enumerate(row):
        if coefficient == 0.0:
            continue
        value = evaluate(level)
        if total is None:
            if coefficient == 1.0 and not any(row[level + 1 :]):
                return value
            dtype = value.dtype
            total = value.to(torch.promote_types(dtype, torch.float32)) * coefficient
        else:
            total = torch.add(total, value, alpha=coefficient)
    assert total is not None
    return total.to(dtype)


def step_probabilities(
    ladder: mls.Ladder, budget_fraction: float, schedule: mls.Schedule, draw: mls.Draw = mls.systematic
) -> Tensor:
    """Return probabilities of one step, (K,), whose expected cost is a fraction of one evaluation of the top level.

    Arguments:
        ladder: K levels with their costs.
        budget_fraction: In (0, 1], at least the relative cost of the cheapest level.
        schedule: Probabilities up to a scale, the same at every step.
        draw: The way of drawing that the budget is meant for.

    Raises:
        TypeError: `schedule` is no schedule that scales to a budget, or `budget_fraction` no number.
        ValueError: `budget_fraction` outside (0, 1] or below what the cheapest level costs.

    Example:
        >>> ladder = mls.Ladder([torch.sin, torch.cos], costs=[1.0, 8.0])
        >>> step_probabilities(ladder, 0.375, mls.InverseCostSchedule())
        tensor([1.0000, 0.2500], dtype=torch.float64)
    """
    if not isinstance(schedule, mls.Schedule):
        raise TypeError(
            f'"schedule" must be a schedule with a scale, such as InverseCostSchedule(), got '
            f"{type(schedule).__name__}; give anything else as a plan"
        )
    fraction = as_number("budget_fraction", budget_fraction)
    if isinstance(budget_fraction, bool) or not 0 < fraction <= 1:
        raise ValueError(
            f'"budget_fraction" must be in (0, 1], got {budget_fraction}; 1 evaluates the top level at every step'
        )
    least = ladder.costs[0] / ladder.costs[-1]
    if fraction < least:
        raise ValueError(
            f'"budget_fraction" must be at least {least:.4g}, what the cheapest level costs relative to the top, got '
            f"{budget_fraction}; raise it or add a cheaper level"
        )
    return schedule.probabilities(ladder, [1.0, 0.0], budget=fraction * ladder.costs[-1], draw=draw)[0]
