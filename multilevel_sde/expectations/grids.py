"""The grids of an expectation, from coarse to fine, each with about half the steps of the next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from multilevel_sde.ladder import Ladder
from multilevel_sde.solver.check_arguments import kept_indices
from multilevel_sde.steps.rules import Step, StepRule, plan_rows
from multilevel_sde.times import as_times, thinned

__all__ = ["Grids"]


@dataclass(frozen=True)
class Grids:
    """Subgrids of the finest times, with what is saved on each and how often a step evaluates its drift.

    Attributes:
        times: The times of each grid.
        kept: What `save` means on each: False for the last state, True for all, or the places of the same times.
        rows: How often a path on each grid evaluates the drift.
    """

    times: tuple[Tensor, ...]
    kept: tuple[bool | tuple[int, ...], ...]
    rows: tuple[int, ...]

    @classmethod
    def of(
        cls, times: Tensor | Sequence[float], save: bool | Sequence[float], step: Step | StepRule, coarsest: int
    ) -> Grids:
        """Return the grids down to `coarsest` steps; the times of `save` are on all of them.

        Raises:
            TypeError, ValueError: As `solve` does for times, saved times and steps; saved times in another order than
                `times`; `coarsest` outside 1..steps.

        Example:
            >>> from multilevel_sde.steps.rules import euler_maruyama
            >>> Grids.of(torch.linspace(0.0, 1.0, 11), False, euler_maruyama, 2).rows
            (2, 3, 5, 10)
        """
        finest = as_times(times)
        steps = len(finest) - 1
        if not 1 <= coarsest <= steps:
            raise ValueError(
                f'"coarsest" must be a number of steps within 1..{steps}, which is what "times" has, got {coarsest}'
            )
        saved = None if isinstance(save, bool) else kept_indices(save, finest)
        if saved is not None and any(after <= before for before, after in pairwise(saved)):
            raise ValueError(
                f'"save" must have its times in the order of "times" and each once, as phi sees the states in that '
                f"order, got {torch.as_tensor(save).tolist()}"
            )
        grids: list[Tensor] = []
        kept: list[bool | tuple[int, ...]] = []
        count = steps
        while count >= coarsest:
            places = thinned(steps, count)
            if saved is not None:
                places = torch.cat([places, torch.tensor(saved)]).unique()
                kept.append(tuple(int(torch.searchsorted(places, place)) for place in saved))
            else:
                kept.append(bool(save))
            if not grids or len(places) < len(grids[-1]):
                grids.append(finest[places])
            else:
                kept.pop()
            if count == 1:
                break
            count = (count + 1) // 2
        rows = [len(plan_rows(step, grid)) for grid in grids]
        return cls(tuple(grids[::-1]), tuple(kept[::-1]), tuple(rows[::-1]))

    def __len__(self) -> int:
        return len(self.times)

    def steps(self, grid: int) -> int:
        """Return the number of steps of a grid."""
        return len(self.times[grid]) - 1

    def saved(self, grid: int) -> int:
        """Return how many states are saved on a grid."""
        kept = self.kept[grid]
        return (len(self.times[grid]) if kept else 1) if isinstance(kept, bool) else len(kept)

    def inside(self, grid: int, coarse: int) -> list[int]:
        """Return how many steps of a grid each step of a coarser one takes.

        Raises:
            ValueError: The times are not those of steps of equal length inside each coarse one.

        Example:
            >>> from multilevel_sde.steps.rules import euler_maruyama
            >>> Grids.of(torch.linspace(0.0, 1.0, 9), False, euler_maruyama, 2).inside(2, 0)
            [4, 4]
        """
        fine, few = self.times[grid].double(), self.times[coarse].double()
        up = 1.0 if fine[1] > fine[0] else -1.0
        places = torch.searchsorted(up * fine, up * few)
        lengths, counts = fine.diff(), places.diff()
        means = few.diff() / counts
        even = (lengths - means.repeat_interleave(counts)).abs() <= 1e-3 * lengths.abs()
        if not torch.equal(fine[places], few) or not bool(even.all()):
            raise ValueError(
                '"antithetic" turns increments around inside each coarse step, which takes fine steps of equal length '
                f'there, and the grid of {len(fine) - 1} steps has others; give "times" a power of two of equal steps'
            )
        return counts.tolist()

    def cost(self, ladder: Ladder, level: int, grid: int) -> float:
        """Return the cost of one path of a level on a grid."""
        return self.rows[grid] * ladder.costs[level]
