"""Trees of intervals: where Levy's construction splits, and with which variance.

The points of a tree are integers, cut into top intervals of `cells` cells each. An interval is split at one of its
inner points, which is found from the interval alone:

    the point nearest to the middle among those of 2, 10, 20, 100, 128, 200, 1000, 1024 even steps of a top interval,
    of the fewest steps that have one inside; then the middle.

So 10, 20, 100 and 1000 even steps find all their points before any other, powers of two find theirs soon after, and
N steps of any kind, of F cells, are found in about N (1 + log2(F / N)) splits at most.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from array import array
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from multilevel_sde.steps.sums import transformed

__all__ = ["TICKS", "GridTree", "Split", "TickTree", "Tree", "packed"]

TICKS = 1_024_000
_EVEN = (2, 10, 20, 100, 128, 200, 1000, 1024)


@dataclass(frozen=True)
class Split:
    """How an interval with the total D is split: share D + deviation z is in the shorter part, the rest in the other.

    Attributes:
        middle: The point where it splits.
        left: Whether the left part is the shorter one.
        share: The shorter part's share of the variance, at most a half.
        deviation: Standard deviation of the shorter part, given the total.
    """

    middle: int
    left: bool
    share: float
    deviation: float


class Tree(ABC):
    """A tree of intervals (low, high) of points; a subclass gives the variance of W over each.

    Attributes:
        cells: How many cells a top interval has; it begins at a multiple of them.
    """

    cells: int

    @abstractmethod
    def variance(self, low: int, high: int) -> float:
        """Return the variance of W(high) - W(low)."""

    def base(self, low: int) -> int:
        """Return where the top interval begins that holds the cell above `low`."""
        return low // self.cells * self.cells

    def split(self, low: int, high: int) -> Split:
        """Return how an interval of two or more cells is split.

        The shorter part is drawn and the longer one is what remains, so that neither loses digits to the other.

        Example:
            >>> TickTree(1.0).split(0, TICKS)
            Split(middle=512000, left=True, share=0.5, deviation=0.5)
        """
        base = self.base(low)
        middle = base + _middle(low - base, high - base, self.cells)
        left, right = self.variance(low, middle), self.variance(middle, high)
        shorter, longer = min(left, right), max(left, right)
        if longer == 0:
            return Split(middle, True, 0.5, 0.0)
        whole = shorter + longer
        return Split(middle, left <= right, shorter / whole, math.sqrt(shorter * (longer / whole)))


def _middle(low: int, high: int, cells: int) -> int:
    for steps in _EVEN:
        if steps < cells:
            point = round(round((low + high) * steps / (2 * cells)) * cells / steps)
            if low < point < high:
                return point
    return (low + high) // 2


@dataclass(frozen=True)
class TickTree(Tree):
    """Without end either way: ticks of unit / TICKS, top intervals of one unit."""

    unit: float

    cells = TICKS

    def variance(self, low: int, high: int) -> float:
        """Return its length of time."""
        return (high - low) / TICKS * self.unit


class GridTree(Tree):
    """The points of one grid, one top interval, with W a Brownian motion in a clock.

    Arguments:
        clock: The clock at the points, float64 numbers that never fall.
    """

    def __init__(self, clock: memoryview[float]):
        self.clock, self.cells = clock, len(clock) - 1

    @staticmethod
    def of(clock: Tensor) -> GridTree:
        """Return the tree of a clock, float64 (F + 1,); one and the same for equal clocks, so that recipes are kept."""
        return _grid_tree(bytes(packed(clock.double(), "d")))

    def variance(self, low: int, high: int) -> float:
        """Return how far the clock goes."""
        return self.clock[high] - self.clock[low]

    def __reduce__(self) -> tuple:
        return _grid_tree, (bytes(self.clock),)


@lru_cache(maxsize=4)
def _grid_tree(clock: bytes) -> GridTree:
    return GridTree(memoryview(clock).cast("d"))


def packed(numbers: Tensor, code: str) -> array:
    """Return the numbers of a tensor in eight bytes each; a list would take five times the memory.

    Example:
        >>> import torch
        >>> packed(torch.tensor([3, 4]), "q")
        array('q', [3, 4])
    """
    if transformed():  # inside a transform of torch.func a tensor has no memory to look at
        return array(code, numbers.tolist())
    out = array(code)
    out.frombytes(numbers.numpy().data.cast("B"))
    return out
