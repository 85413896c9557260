"""Arguments of the wrong kind, refused by name: what would otherwise fail deep inside torch, in torch's words."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

__all__ = ["as_integer", "as_items", "as_number", "as_tensor", "check_drift", "multiplies", "required_arguments"]


def as_number(name: str, value: Any) -> float:
    """Return a real number, or a tensor or array of one, as a float.

    Raises:
        TypeError: It is none.
        ValueError: It is an integer beyond the range of floats.

    Example:
        >>> as_number("gamma", "two")
        Traceback (most recent call last):
        ...
        TypeError: "gamma" must be a number, got str
    """
    single = getattr(value, "size", 0) == 1 and getattr(getattr(value, "dtype", None), "kind", "") in tuple("fiub")
    if isinstance(value, Tensor):
        single = value.numel() == 1 and not value.is_complex()
    if not single and not isinstance(value, Real):
        raise TypeError(f'"{name}" must be a number, got {type(value).__name__}')
    try:
        return float(value if isinstance(value, Real) else value.item())
    except OverflowError:
        raise ValueError(f'"{name}" must be a number that a float can hold, got an integer beyond 1e308') from None


def as_integer(name: str, value: Any) -> int:
    """Return an integer, of Python, NumPy or torch.

    Raises:
        TypeError: It is none.

    Example:
        >>> as_integer("seeds", 1.5)
        Traceback (most recent call last):
        ...
        TypeError: "seeds" must be an integer, got float
    """
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f'"{name}" must be an integer, got {type(value).__name__}') from None


def as_tensor(name: str, values: Any) -> Tensor:
    """Return real numbers as a tensor without a graph: a tensor as it is, anything else (nested lists) as float64.

    Raises:
        TypeError: They are no real numbers, or ragged.

    Example:
        >>> as_tensor("times", [0.0, None])
        Traceback (most recent call last):
        ...
        TypeError: "times" must be a tensor or nested lists of real numbers, got list
    """
    try:
        table = values if isinstance(values, Tensor) else torch.tensor(_listed(values), dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        table = None
    if table is None or table.is_complex():
        what = f"complex {type(values).__name__}" if table is not None else type(values).__name__
        raise TypeError(f'"{name}" must be a tensor or nested lists of real numbers, got {what}')
    return table.detach()


def _listed(values: Any) -> Any:
    return values if isinstance(values, Real) or hasattr(values, "__array__") else list(values)


def as_items(name: str, values: Any, what: str) -> list[Any]:
    """Return the items of an iterable.

    Raises:
        TypeError: It is none, or a text.

    Example:
        >>> as_items("seeds", 3, "integers")
        Traceback (most recent call last):
        ...
        TypeError: "seeds" must be a sequence of integers, got int
    """
    if isinstance(values, str | bytes) or not isinstance(values, Iterable) or getattr(values, "ndim", 1) == 0:
        raise TypeError(f'"{name}" must be a sequence of {what}, got {type(values).__name__}')
    return list(values)


def check_drift(value: Any) -> None:
    """Check that a value is callable.

    Raises:
        TypeError: It is not.

    Example:
        >>> check_drift(1.0)
        Traceback (most recent call last):
        ...
        TypeError: "drift" must be a callable f(x, t) -> Tensor, got float
    """
    if not callable(value):
        raise TypeError(f'"drift" must be a callable f(x, t) -> Tensor, got {type(value).__name__}')


def multiplies(factor: Tensor, shape: Sequence[int]) -> bool:
    """Return whether a factor multiplies tensors of a shape without changing it.

    Example:
        >>> multiplies(torch.ones(3), (4, 3)), multiplies(torch.ones(3), (4, 1)), multiplies(torch.ones(1, 4, 3), (3,))
        (True, False, False)
    """
    sides = zip(reversed(factor.shape), reversed(shape), strict=False)
    return factor.dim() <= len(shape) and all(side in (1, whole) for side, whole in sides)


def required_arguments(function: object) -> int | None:
    """Return how many positional arguments a callable needs, or None where it does not say.

    Example:
        >>> required_arguments(lambda y, t, scale=1.0: y)
        2
    """
    if not callable(function):
        return None
    try:  # a module's own signature says nothing, that of its forward does
        called = function.forward if isinstance(function, torch.nn.Module) else function
        parameters = inspect.signature(called).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return sum(p.default is p.empty for p in positional)
