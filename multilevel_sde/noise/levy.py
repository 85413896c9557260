"""Levy's construction of a Brownian path, refined only where it is looked at.

An interval with the total D over it is split into

    D_left = share D + deviation z,    D_right = D - D_left,

with share the left part of its length, deviation^2 = scale^2 share (1 - share) length and z normal. Each split is a
node, named by the tick where it splits, so that z depends on the tick alone. Ticks are multiples of unit / 1 024 000.

References:
    Levy, "Processus stochastiques et mouvement brownien", 1948;
    Gaines and Lyons, SIAM J. Appl. Math. 57, 1997 (paths that can be refined).
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["TICKS", "Draw", "LevyWalk"]

TICKS = 1_024_000

Draw = Callable[[Tensor | int, Tensor | float], Tensor]


class LevyWalk:
    """The increments of W between increasing or decreasing ticks.

    The total of the unit interval from u to u + 1 is node u * TICKS. Intervals with up to `limit` ticks inside are
    refined all at once, level by level, larger ones node by node, so that small states take few calls and large ones
    little memory. Both do the same operations on the same numbers in the same order, hence give the same bits.

    Arguments:
        ticks: Two or more, strictly increasing or decreasing.
        scale: Standard deviation of the total of a unit interval.
        draw: draw(nodes, deviations) -> normals, stacked: one node as numbers, many as int64 and float64 tensors (M,).
        limit: Most ticks inside an interval that is refined at once.
        device: Where the normals are.

    Example:
        >>> draw = lambda nodes, deviations: torch.ones(1) * torch.as_tensor(deviations).reshape(-1, 1)
        >>> torch.cat(list(LevyWalk([0, TICKS // 2, TICKS], 1.0, draw, 10).increments()))
        tensor([[1.],
                [0.]], dtype=torch.float64)
    """

    def __init__(self, ticks: Sequence[int], scale: float, draw: Draw, limit: int, device: torch.device | str = "cpu"):
        self.ascending = ticks[1] > ticks[0]
        self.ticks = ticks if self.ascending else ticks[::-1]
        self.scale = scale if self.ascending else -scale
        self.draw, self.limit, self.device = draw, limit, torch.device(device)
        self.begun: Tensor | None = None  # the sum of what was visited since the last tick

    def increments(self) -> Iterator[Tensor]:
        """Yield stacks of one or more increments, in the order of the ticks."""
        first = self.ticks[0] // TICKS
        last = max(first, -(-self.ticks[-1] // TICKS) - 1)
        for unit in range(first, last + 1) if self.ascending else range(last, first - 1, -1):
            yield from self._visit(unit * TICKS, (unit + 1) * TICKS)

    def _inside(self, low: int, high: int) -> slice:
        """The ticks strictly inside."""
        return slice(bisect_right(self.ticks, low), bisect_left(self.ticks, high))

    def _is_tick(self, point: int) -> bool:
        place = bisect_left(self.ticks, point)
        return place < len(self.ticks) and self.ticks[place] == point

    def _visit(self, low: int, high: int) -> Iterator[Tensor]:
        """Visit a unit interval. Alive are the totals that wait, at most one for every split above where it is."""
        waiting: list[tuple[int, int, Tensor | None]] = [(low, high, None)]
        while waiting:
            low, high, total = waiting.pop()
            inside = self._inside(low, high)
            count = max(0, inside.stop - inside.start)
            if 0 < count <= self.limit:
                yield self._visit_at_once(low, high, tuple(tick - low for tick in self.ticks[inside]), total)
                continue
            if total is None:
                total = self.draw(low, self.scale)[0]
            if count:
                middle, share, deviation = _bridge(low, high)
                left = self.draw(middle, self.scale * deviation)[0].add_(total, alpha=share)
                halves = [(middle, high, total.sub_(left)), (low, middle, left)]
                waiting += halves if self.ascending else halves[::-1]
                del left, halves
            elif self.ticks[0] <= low and high <= self.ticks[-1]:
                self.begun = total if self.begun is None else self.begun.add_(total)
                if self._is_tick(high if self.ascending else low):
                    total = None
                    yield self._end()
            total = None

    def _end(self) -> Tensor:
        """Hand over the sum begun, stacked; nobody else keeps it, as it may be large."""
        assert self.begun is not None
        done, self.begun = self.begun, None
        return done[None]

    def _visit_at_once(self, low: int, high: int, inside: tuple[int, ...], total: Tensor | None) -> Tensor:
        """Visit an interval with ticks inside; what is left over behind the last of them is kept for the next visit."""
        recipe = _recipe(
            high - low,
            inside,
            ascending=self.ascending,
            begins=self.ticks[0] > low,
            ends=self.ticks[-1] < high,
            closes=self._is_tick(high if self.ascending else low),
            carries=self.begun is not None,
            device=self.device,
        )
        fresh = slice(0 if total is None else 1, None)
        parts = [self.draw(recipe.nodes[fresh] + low, recipe.deviations[fresh] * self.scale)]
        if total is not None:
            parts.insert(0, total[None])
        if self.begun is not None:
            parts.append(self.begun[None])
        totals = torch.cat(parts) if len(parts) > 1 else parts[0]
        for share, rows, parents in recipe.splits:
            above = totals.index_select(0, parents)
            left = totals[rows].add_(above, alpha=share)
            totals.index_copy_(0, parents, above.sub_(left))
        sums = totals.index_select(0, recipe.heads)
        for into, what in recipe.tails:
            sums.index_copy_(0, into, sums.index_select(0, into).add_(totals.index_select(0, what)))
        self.begun = sums[-1] if len(sums) > recipe.done else None
        return sums[: recipe.done]


@dataclass(frozen=True)
class _Recipe:
    """How to refine an interval at once, for totals stacked as: the whole, the nodes in order, what was carried over.

    Attributes:
        nodes: The ticks that split, counted from the low end; the first is the whole interval itself.
        deviations: Their standard deviations, for a scale of 1.
        splits: (share, rows of the normals, rows of the intervals) of nodes to do at once; the left parts take the
            places of the normals, the right ones those of the intervals.
        heads: The row where each sum of an increment begins.
        tails: (sums, rows) to add to them, in turn.
        done: How many of the sums end at a tick; at most one does not.
    """

    nodes: Tensor
    deviations: Tensor
    splits: list[tuple[float, slice, Tensor]]
    heads: Tensor
    tails: list[tuple[Tensor, Tensor]]
    done: int


@lru_cache(maxsize=16)
def _recipe(
    length: int,
    inside: tuple[int, ...],
    *,
    ascending: bool,
    begins: bool,
    ends: bool,
    closes: bool,
    carries: bool,
    device: torch.device,
) -> _Recipe:
    """Work out the recipe of an interval of `length` with the ticks `inside`, counted from its low end.

    Arguments:
        length: Length of the interval, in ticks.
        inside: The ticks strictly inside, increasing.
        ascending: The direction of the walk.
        begins: The lowest tick of the walk is inside: what is below is not wanted.
        ends: The same for the highest tick.
        closes: The far end of the interval is a tick.
        carries: A sum begun before goes on.
        device: Where rows are to be looked up.
    """
    rows = {(0, length): 0}
    nodes, deviations, splits = [0], [1.0], []
    intervals = [(0, length)]
    while intervals:
        by_share: dict[float, list[tuple[int, int]]] = {}
        for interval in intervals:
            by_share.setdefault(_bridge(*interval)[1], []).append(interval)
        halves = []
        for share, group in by_share.items():
            start = len(nodes)
            parents = [rows.pop(interval) for interval in group]
            for (low, high), parent in zip(group, parents, strict=True):
                middle, _, deviation = _bridge(low, high)
                rows[low, middle], rows[middle, high] = len(nodes), parent
                nodes.append(middle)
                deviations.append(deviation)
                halves += [(low, middle), (middle, high)]
            splits.append((share, slice(start, len(nodes)), torch.tensor(parents).to(device)))
        intervals = [half for half in halves if bisect_left(inside, half[1]) > bisect_right(inside, half[0])]
    wanted = (inside[0] if begins else 0, inside[-1] if ends else length)
    stops = {*inside, (length if ascending else 0) if closes else -1}
    runs: list[list[int]] = [[len(nodes)] if carries else []]
    for low, high in sorted(rows, reverse=not ascending):
        if wanted[0] <= low and high <= wanted[1]:
            runs[-1].append(rows[low, high])
            if (high if ascending else low) in stops:
                runs.append([])
    done = len(runs) - 1
    runs = [run for run in runs if run]
    tails = []
    for depth in range(1, max(map(len, runs))):
        more = [(i, run[depth]) for i, run in enumerate(runs) if len(run) > depth]
        tails.append(torch.tensor(more).to(device).unbind(1))
    heads = torch.tensor([run[0] for run in runs]).to(device)
    return _Recipe(torch.tensor(nodes), torch.tensor(deviations, dtype=torch.float64), splits, heads, tails, done)


@lru_cache(maxsize=1024)
def _split(length: int) -> int:
    """How far into an interval Levy's construction splits it.

    Above 1024 ticks (a thousandth) in the order 2, 5, 2, 5, 2, 5, so that 1/10, 1/20, 1/100, 1/200 and 1/1000 are met
    on the way; five parts as 2 + 3, three as 1 + 2. Below, in halves.
    """
    parts = length // 1024 if length > 1024 else length
    unit = length // parts
    if parts % 3 == 0:
        return unit * (parts // 3)
    if parts % 2 == 0 and (parts % 5 or _power(parts, 2) >= _power(parts, 5)):
        return length // 2
    return unit * (2 * parts // 5)


def _power(number: int, prime: int) -> int:
    power = 0
    while number % prime == 0:
        number, power = number // prime, power + 1
    return power


def _bridge(low: int, high: int) -> tuple[int, float, float]:
    """Where to split an interval, the share of the left part, and the standard deviation for a scale of 1."""
    left = _split(high - low)
    share = left / (high - low)
    return low + left, share, math.sqrt(left * (1 - share) / TICKS)
