"""A ladder whose levels share a memory that lives as long as one trajectory.

A drift with memory is no function of (x, t). Kept in the drift, its memory would leak from one solve into the next;
here the drifts are made anew whenever they are asked for, which `multilevel_sde.solve` does once, at its start. So two
solves in a row give the same result, and two at a time do not meet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import multilevel_sde as mls
from multilevel_sde.cost import CostModel, Drift

__all__ = ["MemoryLadder"]


class MemoryLadder(mls.Ladder):
    """A ladder whose drifts are made for one trajectory each.

    What samples by itself and asks for `ladder.drifts[k]` at every call gets a new memory every time; such a loop asks
    for `drifts` once per trajectory and keeps the answer, as `multilevel_sde.solve` does.

    Arguments:
        make: Returns new drifts that share a new memory, cheapest first.
        costs: As for `multilevel_sde.Ladder`.

    Raises:
        TypeError, ValueError: As `multilevel_sde.Ladder`.

    Example:
        >>> import torch
        >>> def make():
        ...     seen = []
        ...     return [lambda x, t: (seen.append(t), x * len(seen))[1]]
        >>> ladder = MemoryLadder(make, [1.0])
        >>> plan = mls.em_plan(ladder, [0.0, 1.0, 2.0])
        >>> [mls.solve(ladder, torch.ones(1), [0.0, 1.0, 2.0], plan).y.item() for _ in range(2)]
        [6.0, 6.0]
    """

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[], Sequence[Drift]], costs: Sequence[float] | CostModel):
        super().__init__(make(), costs)
        self._make = make

    @property
    def drifts(self) -> tuple[Drift, ...]:
        """New drifts with a memory of their own, cheapest first: ask once per trajectory."""
        return tuple(self._make())

    def subset(self, levels: Sequence[int]) -> MemoryLadder:
        """Return the ladder of the given levels, which remember as before.

        Raises:
            ValueError: As `multilevel_sde.Ladder.subset`.
        """
        chosen = super().subset(levels)
        make = self._make

        def make_chosen() -> list[Drift]:
            made = make()
            return [made[k] for k in levels]

        return MemoryLadder(make_chosen, mls.GivenCost(chosen.costs, chosen.unit))
