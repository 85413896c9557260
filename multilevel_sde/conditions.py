"""Conditions: what a drift is told about each sample beside its state, such as a class label.

They are a mapping of names to tensors with one row a sample, and a drift is called f(x, t, **conditions) with the rows
of exactly the samples in x.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Conditioned", "Conditions", "as_conditions", "repeated_rows", "some_rows"]

Conditions = Mapping[str, Tensor]


def as_conditions(conditions: Conditions | None, y: Tensor) -> dict[str, Tensor]:
    """Return the conditions of the samples of a state, (B, ...), as a dictionary; empty where there are none.

    Raises:
        TypeError: They are no mapping of names to tensors.
        ValueError: A tensor has not one row a sample.

    Example:
        >>> as_conditions({"label": torch.tensor([3, 1])}, torch.zeros(3, 2))
        Traceback (most recent call last):
        ...
        ValueError: "conditions" has "label" of shape (2,), expected one row for each of 3 samples; ...
    """
    if conditions is None:
        return {}
    if not isinstance(conditions, Mapping):
        raise TypeError(
            f'"conditions" must be a mapping of names to tensors, got {type(conditions).__name__}; for example '
            '{"label": labels}'
        )
    for name, value in conditions.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise TypeError(f'"conditions" must have names of arguments of the drifts as keys, got {name!r}')
        if not isinstance(value, Tensor):
            raise TypeError(
                f'"conditions" must hold tensors, got {type(value).__name__} for "{name}"; bind what all samples share '
                "to the drift"
            )
        if y.dim() == 0 or value.dim() == 0 or len(value) != len(y):
            samples = "a state without samples" if y.dim() == 0 else f"one row for each of {len(y)} samples"
            raise ValueError(
                f'"conditions" has "{name}" of shape {tuple(value.shape)}, expected {samples}; bind what all samples '
                "share to the drift"
            )
    return dict(conditions)


def some_rows(conditions: Conditions, rows: Tensor | Sequence[int] | slice) -> dict[str, Tensor]:
    """Return the conditions of some of the samples.

    Example:
        >>> some_rows({"label": torch.tensor([3, 1, 4])}, [2, 0])
        {'label': tensor([4, 3])}
    """
    if isinstance(rows, Tensor):
        return {name: value[rows.to(value.device)] for name, value in conditions.items()}
    return {name: value[rows if isinstance(rows, slice) else list(rows)] for name, value in conditions.items()}


def repeated_rows(conditions: Conditions, copies: int) -> dict[str, Tensor]:
    """Return the conditions of a batch that is stacked on itself: all samples, then all samples again.

    Example:
        >>> repeated_rows({"label": torch.tensor([3, 1])}, 2)
        {'label': tensor([3, 1, 3, 1])}
    """
    return {name: torch.cat([value] * copies) for name, value in conditions.items()}


@dataclass(frozen=True)
class Conditioned:
    """A drift with the conditions of the samples that it will see.

    Arguments:
        drift: f(x, t, **conditions).
        conditions: One row a sample.

    Example:
        >>> drift = Conditioned(lambda x, t, shift: -x + shift, {"shift": torch.tensor([1.0, 2.0])})
        >>> drift(torch.zeros(2), torch.tensor(0.0))
        tensor([1., 2.])
        >>> drift.copies(2)(torch.zeros(4), torch.tensor(0.0))
        tensor([1., 2., 1., 2.])
    """

    drift: Callable[..., Tensor]
    conditions: Mapping[str, Tensor]

    def __call__(self, x: Tensor, t: Tensor) -> Any:
        """Return f(x, t, **conditions)."""
        return self.drift(x, t, **self.conditions)

    def copies(self, count: int) -> Conditioned:
        """Return the drift for a batch that is stacked on itself."""
        return Conditioned(self.drift, repeated_rows(self.conditions, count))
