"""Conditions: what a drift is told about each sample beside its state, such as a class label.

They are a mapping of names to tensors with one row a sample, and a drift is called f(x, t, **conditions) with the rows
of exactly the samples in x.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Conditioned",
    "Conditions",
    "as_conditions",
    "naming_arguments",
    "naming_conditions",
    "repeated_rows",
    "some_rows",
]

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


@contextmanager
def naming_conditions(conditions: Conditions | None, why: str) -> Iterator[None]:
    """Add a note to the error of a drift that may know its batch: what belongs to a sample goes into conditions.

    Arguments:
        conditions: Those that drifts are given; with some there is no note.
        why: Why drifts see other samples than they may have expected.

    Example:
        >>> try:
        ...     with naming_conditions(None, "drifts see parts of the batch"):
        ...         torch.ones(2) + torch.ones(3)
        ... except RuntimeError as error:
        ...     error.__notes__
        ['drifts see parts of the batch; what belongs to a sample, such as its label, goes into conditions=']
    """
    try:
        yield
    except (RuntimeError, IndexError) as error:
        if not conditions:
            error.add_note(f"{why}; what belongs to a sample, such as its label, goes into conditions=")
        raise


@contextmanager
def naming_arguments(level: int, drift: Callable[..., Any], conditions: Conditions | None = None) -> Iterator[None]:
    """Say in one sentence which condition a drift lacks or does not take, where a call of it fails for that reason.

    Arguments:
        level: Of the drift, from 0.
        drift: f(x, t, **conditions), or a :class:`Conditioned` one.
        conditions: Those that it is given.

    Raises:
        TypeError: The drift cannot be called so; in these words in place of Python's.

    Example:
        >>> drift = lambda x, t: -x
        >>> with naming_arguments(0, drift, {"label": torch.ones(1)}):
        ...     drift(torch.ones(1), 0.0, label=torch.ones(1))
        Traceback (most recent call last):
        ...
        TypeError: the drift of level 1 takes no "label", which "conditions" give to every level; add it or ...
    """
    try:
        yield
    except TypeError:
        if isinstance(drift, Conditioned):
            drift, conditions = drift.drift, drift.conditions
        wrong = _wrong_arguments(drift, conditions or {})
        if wrong is None:
            raise
        raise TypeError(f"the drift of level {level + 1} {wrong}") from None


def _wrong_arguments(drift: Callable[..., Any], conditions: Conditions) -> str | None:
    """What is wrong with f(x, t, **conditions), or None where it fits what the drift says of itself."""
    try:  # a module's own signature says nothing, that of its forward does
        signature = inspect.signature(drift.forward if isinstance(drift, torch.nn.Module) else drift)
    except (TypeError, ValueError):
        return None
    rest = list(signature.parameters.values())
    kinds = {one.kind for one in rest}
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return None
    if len([one for one in rest if one.kind is not one.KEYWORD_ONLY]) < 2:
        return f"must be a callable f(x, t) -> Tensor, but takes {signature}; add an argument for the time"
    for one in rest[:2]:
        if one.name in conditions and one.kind is one.POSITIONAL_OR_KEYWORD:
            return f'has "{one.name}" as an argument of its own, which "conditions" give too; rename the condition'
    taken = {one.name for one in rest[2:]}
    for one in rest[2:]:
        if one.default is one.empty and one.kind is not one.VAR_KEYWORD and one.name not in conditions:
            return (
                f'needs "{one.name}", which "conditions" do not hold; pass conditions={{"{one.name}": ...}} with one '
                "row a sample, or give the argument a default"
            )
    unwanted = next((name for name in conditions if name not in taken), None)
    if unwanted is None or inspect.Parameter.VAR_KEYWORD in kinds:
        return None
    return f'takes no "{unwanted}", which "conditions" give to every level; add it or **others to its arguments'
