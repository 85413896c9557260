"""The plan of a ladder that has not been measured: the top level at evenly spread calls, its correction held."""

from __future__ import annotations

import torch
from torch import Tensor

import multilevel_sde as mls

__all__ = ["held_plan"]


def held_plan(ladder: mls.Ladder, calls: int, budget_fraction: float, base: Tensor | None = None) -> mls.Plan | None:
    """Return the plan, or None where the budget does not pay the top level once.

    The cheapest level runs at every call. The top level runs in the middle of each of n equal parts of the calls, and
    its difference to the cheapest is used until the next one is known. Levels between them are left out: without a
    measurement nothing says what they are worth (benchmarks/pipelines).

    Arguments:
        ladder: K levels with their costs.
        calls: Of a trajectory.
        budget_fraction: Cost relative to the top level at every call.
        base: Coefficients of a multistep base, (calls, order).

    Example:
        >>> ladder = mls.Ladder([torch.sin, torch.cos], costs=[1.0, 10.0])
        >>> held_plan(ladder, 12, 0.35).hits[:, 1].nonzero()[:, 0].tolist()
        [2, 6, 10]
        >>> held_plan(ladder, 12, 0.15) is None
        True
    """
    low, top = ladder.costs[0], ladder.costs[-1]
    count = min(calls, int((budget_fraction * top - low) * calls / top * (1 + 1e-9)))
    if len(ladder) < 2 or count < 1:
        return None
    hits = torch.zeros(calls, len(ladder), dtype=torch.bool)
    hits[:, 0] = True
    for part in range(count):
        hits[int((part + 0.5) * calls / count), 1:] = True
    plan = mls.hold(mls.Plan(hits, hits.double()), torch.arange(calls + 1.0))
    return plan if base is None else mls.multistep(plan, base)
