"""What can be chosen for a ladder in a pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypedDict

from torch import Tensor

import multilevel_sde as mls

__all__ = ["Options", "check_options"]


class Options(TypedDict, total=False):
    """Keyword arguments of :func:`.attach` and :class:`.MultilevelUNet`."""

    budget_fraction: float | None
    probabilities: Tensor | Sequence[float] | None
    plan: mls.Plan | None
    schedule: mls.Schedule | None
    draw: mls.Draw | None
    seed: int
    costs: Sequence[float] | mls.GivenCost | None


def check_options(names: Iterable[str]) -> None:
    """Refuse names that are no options.

    Raises:
        TypeError: There is one.

    Example:
        >>> check_options(["budget"])
        Traceback (most recent call last):
        ...
        TypeError: "budget" is no option of a ladder, expected some of budget_fraction, ...
    """
    known = Options.__annotations__
    for name in names:
        if name not in known:
            raise TypeError(f'"{name}" is no option of a ladder, expected some of {", ".join(known)}')
