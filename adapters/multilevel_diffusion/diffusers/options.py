"""What can be chosen for a ladder in a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from torch import Tensor

import multilevel_sde as mls

__all__ = ["Options"]


class Options(TypedDict, total=False):
    """Keyword arguments of :func:`.attach` and :class:`.MultilevelUNet`."""

    budget_fraction: float | None
    probabilities: Tensor | Sequence[float] | None
    plan: mls.Plan | None
    schedule: mls.Schedule | None
    draw: mls.Draw | None
    seed: int
    costs: Sequence[float] | mls.GivenCost | None
