"""Evaluating the drifts that a step needs: with the conditions of their samples, in the dtype they are made for.

Three things may lie between a loop and the drifts. Conditions give each call the rows of the samples that it sees.
States of 16 bits are carried in float32, and the drifts see them rounded. And where no gradient is wanted, values are
detached as they come, so that a drift may differentiate inside while nothing outlives its call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from multilevel_sde.conditions import Conditioned, Conditions, naming_arguments, naming_conditions, some_rows
from multilevel_sde.cost import GivenCost
from multilevel_sde.ladder import Ladder
from multilevel_sde.steps.sums import HALF

__all__ = ["Evaluate", "detacher", "evaluator", "in_float32"]

Evaluate = Callable[[Tensor, Tensor, Any], dict[int, Tensor]]
Drifts = list[Callable[..., Tensor]]


def evaluator(
    ladder: Ladder,
    *,
    shared: bool,
    conditions: Conditions | None = None,
    seen: torch.dtype | None = None,
    detached: Callable[[Tensor], Tensor] | None = None,
) -> Evaluate:
    """Return evaluate(y, t, needed) -> {level: value}, which calls the drifts that are needed, once each.

    The first value of each drift is checked; of later ones only that they are tensors.

    Arguments:
        ladder: The drifts.
        shared: `needed` lists levels; else it is a bool table (B, K), and values are zero in the samples that do not
            need them.
        conditions: One row a sample of y.
        seen: The dtype of the states that drifts see and of their values; None is that of y. What is returned has the
            dtype of y.
        detached: Applied to every value; None leaves them as they are.
    """
    evaluate = (_by_level if shared else _by_sample)(ladder, conditions or {}, detached)
    return evaluate if seen is None else _rounded(evaluate, seen)


def detacher() -> Callable[[Tensor], Tensor]:
    """Return a function that takes a tensor off its graph, and is quick where it has none."""
    if forward_ad._current_level >= 0:  # a tensor does not say that it has a tangent
        return Tensor.detach
    return lambda value: value.detach() if value.requires_grad else value


def in_float32(ladder: Ladder, dtype: torch.dtype) -> Ladder:
    """Return the ladder for states carried in float32 whose drifts are made for a dtype of 16 bits, else the ladder.

    Example:
        >>> halves = in_float32(Ladder([lambda x, t: -x], costs=[1.0]), torch.bfloat16)
        >>> halves.drifts[0](torch.tensor([1.001]), torch.tensor(0.0))
        tensor([-1.])
    """
    if dtype not in HALF:
        return ladder
    return Ladder([_Rounded(drift, dtype) for drift in ladder.drifts], GivenCost(ladder.costs, ladder.unit))


@dataclass(frozen=True)
class _Rounded:
    """A drift that sees its states in a dtype of 16 bits, and gives values in theirs."""

    drift: Callable[..., Tensor]
    dtype: torch.dtype

    def __call__(self, x: Tensor, t: Tensor, /, **conditions: Tensor) -> Tensor:
        return self.drift(x.to(self.dtype), t, **conditions).to(x.dtype)


def _by_level(ladder: Ladder, conditions: Conditions, detached: Callable[[Tensor], Tensor] | None) -> Evaluate:
    drifts: Drifts = [Conditioned(drift, conditions) if conditions else drift for drift in ladder.drifts]
    for level, drift in enumerate(drifts):
        drifts[level] = _checked_once(drifts, level, drift)

    def by_level(y: Tensor, t: Tensor, needed: Iterable[int]) -> dict[int, Tensor]:
        values, plain = {}, not y.requires_grad
        for level in needed:  # a comprehension would cost a call a step
            value = values[level] = drifts[level](y, t)
            if not isinstance(value, Tensor):
                _check_value(level, y, value)
            if detached is not None:
                values[level] = detached(value)
        if plain and y.requires_grad:
            y.requires_grad_(False)  # a drift asked for it, to differentiate inside; the state is not its own
        return values

    return by_level


def _by_sample(ladder: Ladder, conditions: Conditions, detached: Callable[[Tensor], Tensor] | None) -> Evaluate:
    drifts: Drifts = list(ladder.drifts)
    for level, drift in enumerate(ladder.drifts):
        drifts[level] = _checked_once(drifts, level, drift)

    def by_sample(y: Tensor, t: Tensor, needed: Tensor) -> dict[int, Tensor]:
        values, plain = {}, not y.requires_grad
        for level, drift in enumerate(drifts):
            rows = needed[:, level].nonzero()[:, 0]
            if not len(rows):
                continue
            chosen = None if len(rows) == len(y) else rows.to(y.device, non_blocking=True)
            given = conditions if chosen is None or not conditions else some_rows(conditions, rows)
            some = y if chosen is None else y[chosen]
            if chosen is None:
                value = drift(some, t, **given)
            else:
                called = f"the drift was called with {len(rows)} of {len(y)} samples"
                with naming_conditions(conditions, f"the plan draws for each sample, so {called}"):
                    value = drift(some, t, **given)
            if not isinstance(value, Tensor) or value.dtype != y.dtype or value.shape != some.shape:
                _check_value(level, some, value)
            if detached is not None:
                value = detached(value)
            values[level] = value if chosen is None else torch.zeros_like(y).index_copy(0, chosen, value)
        if plain and y.requires_grad:
            y.requires_grad_(False)
        return values

    return by_sample


def _rounded(evaluate: Evaluate, seen: torch.dtype) -> Evaluate:
    def rounded(y: Tensor, t: Tensor, needed: Any) -> dict[int, Tensor]:
        return {level: value.to(y.dtype) for level, value in evaluate(y.to(seen), t, needed).items()}

    return rounded


def _checked_once(drifts: Drifts, level: int, drift: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the drift with a check of its value, which puts the drift itself into the list after the first call."""

    def first(y: Tensor, t: Tensor, /, **conditions: Tensor) -> Tensor:
        with naming_arguments(level, drift, conditions):
            value = drift(y, t, **conditions)
        _check_value(level, y, value)
        drifts[level] = drift
        return value

    return first


def _check_value(level: int, y: Tensor, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"the drift of level {level + 1} must return a Tensor, got {type(value).__name__}")
    for name in ("shape", "dtype", "device"):
        came, expected = getattr(value, name), getattr(y, name)
        if came != expected:
            raise ValueError(
                f"the drift of level {level + 1} returned {name} {came} for a state of {name} {expected}; "
                f"a drift must return a tensor like its state"
            )
