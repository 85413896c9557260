"""Estimators: how the evaluations of a step become one estimate of f^K.

This file carries out the weights that a plan decided: `Telescoping` forms sum_k (w_k - w_{k+1}) f^k and adds what the
plan recalls of earlier steps (:mod:`multilevel_sde.plans.recall`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from multilevel_sde.plans.plan import Plan
from multilevel_sde.plans.recall import Recall
from multilevel_sde.steps.sums import HALF, added

__all__ = ["Combine", "Estimator", "Telescoping"]

Combine = Callable[[int, dict[int, Tensor]], Tensor]

_BLOCK = 1024  # rows of a plan that are unpacked at a time, so that memory does not grow with the steps


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
    """The weighted sum F = sum_k w_k (f^k - f^{k-1}) = sum_k (w_k - w_{k+1}) f^k, and what the plan recalls."""

    def needed(self, plan: Plan) -> Tensor:
        """Every network whose coefficient is not zero, or whose value is recalled later."""
        return plan.needed

    def start(self, plan: Plan) -> Combine:
        """Return the weighted sum; of values of 16 bits it is formed in float32 and rounded once."""
        if plan.recall is None:
            present = self._present(plan)
            return present if plan.samples is None else _in_float32(present)
        return _in_float32(self._with_recall(plan, plan.recall))

    def _with_recall(self, plan: Plan, remembered: Recall) -> Combine:
        present, recall = self._present(plan), remembered.reader()
        coefficients = plan.coefficients

        def both(n: int, values: dict[int, Tensor]) -> Tensor:
            now = {level: value for level, value in values.items() if coefficients[n, level] != 0}
            past = recall(n, values)
            if not now:
                return past if past is not None else torch.zeros_like(next(iter(values.values())))
            return present(n, now) if past is None else added(past, present(n, now))

        return both

    def _present(self, plan: Plan) -> Combine:
        coefficients = plan.coefficients
        first, rows, half = 0, [], False

        def shared(n: int, values: dict[int, Tensor]) -> Tensor:
            nonlocal first, rows, half
            if not 0 <= n - first < len(rows):
                first, rows = n, coefficients[n : n + _BLOCK].tolist()
                half = next(iter(values.values())).dtype in HALF
            if half:
                return _wide(shared_float32, n, values)
            row = rows[n - first]
            estimate = None
            for level, value in values.items():
                if estimate is None:
                    estimate = value if row[level] == 1.0 else value * row[level]
                else:
                    estimate = torch.add(estimate, value, alpha=row[level])
            assert estimate is not None
            return estimate

        def shared_float32(n: int, values: dict[int, Tensor]) -> Tensor:
            row = rows[n - first]
            return sum(value * row[level] for level, value in values.items())  # type: ignore[return-value]

        def per_sample(n: int, values: dict[int, Tensor]) -> Tensor:
            estimate = None
            for level, value in values.items():
                column = coefficients[n, :, level].to(value, non_blocking=True).reshape(-1, *[1] * (value.dim() - 1))
                estimate = value * column if estimate is None else torch.addcmul(estimate, value, column)
            assert estimate is not None
            return estimate

        return shared if plan.samples is None else per_sample


def _in_float32(combine: Combine) -> Combine:
    """Return the combination of float32 values where those given have 16 bits, as weights are large and of both signs.

    The first call decides for all: values of a solve are of one dtype.
    """
    chosen: Combine | None = None

    def first(n: int, values: dict[int, Tensor]) -> Tensor:
        nonlocal chosen
        if chosen is None:
            half = next(iter(values.values())).dtype in HALF
            chosen = partial(_wide, combine) if half else combine
        return chosen(n, values)

    return first


def _wide(combine: Combine, n: int, values: dict[int, Tensor]) -> Tensor:
    dtype = next(iter(values.values())).dtype
    return combine(n, {level: value.float() for level, value in values.items()}).to(dtype)
