"""Levy's construction of a Brownian path, refined only where it is looked at.

An interval with the total D over it is split into a shorter and a longer part,

    D_shorter = share D + deviation z,    D_longer = D - D_shorter,

with share the shorter part's share of the variance V, deviation^2 = share (1 - share) V and z normal. Each split is a
node, named by the point where it splits, so that z depends on the point alone. Where to split is the tree's to say
(:mod:`multilevel_sde.noise.trees`).

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

from multilevel_sde.noise.trees import Tree
from multilevel_sde.times import device_dtype

__all__ = ["Draw", "LevyWalk"]

Draw = Callable[[Tensor | int, Tensor | float], Tensor]


class LevyWalk:
    """The increments of W between increasing or decreasing points of a tree.

    The total of a top interval is the node of its low end. Intervals with up to `limit` points inside are refined all
    at once, level by level, larger ones node by node, so that small states take few calls and large ones little
    memory. Both do the same operations on the same numbers in the same order, hence give the same bits.

    Arguments:
        points: Two or more, strictly increasing or decreasing.
        tree: Where intervals are split.
        draw: draw(nodes, deviations) -> normals, stacked: one node as numbers, many as int64 and float64 tensors (M,).
        limit: Most points inside an interval that is refined at once.
        device: Where the normals are.

    Example:
        >>> from multilevel_sde.noise.trees import TICKS, TickTree
        >>> draw = lambda nodes, deviations: torch.ones(1) * torch.as_tensor(deviations).reshape(-1, 1)
        >>> torch.cat(list(LevyWalk([0, TICKS // 2, TICKS], TickTree(1.0), draw, 10).increments()))
        tensor([[1.],
                [0.]], dtype=torch.float64)
    """

    def __init__(self, points: Sequence[int], tree: Tree, draw: Draw, limit: int, device: torch.device | str = "cpu"):
        self.ascending = points[1] > points[0]
        self.points = points if self.ascending else points[::-1]
        self.sign = 1.0 if self.ascending else -1.0
        self.tree, self.draw, self.limit, self.device = tree, draw, limit, torch.device(device)
        self.begun: Tensor | None = None  # the sum of what was visited since the last point

    def increments(self) -> Iterator[Tensor]:
        """Yield stacks of one or more increments, in the order of the points."""
        cells = self.tree.cells
        first = self.points[0] // cells
        last = max(first, -(-self.points[-1] // cells) - 1)
        for top in range(first, last + 1) if self.ascending else range(last, first - 1, -1):
            yield from self._visit(top * cells, (top + 1) * cells)

    def _inside(self, low: int, high: int) -> slice:
        """The points strictly inside."""
        return slice(bisect_right(self.points, low), bisect_left(self.points, high))

    def _is_point(self, point: int) -> bool:
        place = bisect_left(self.points, point)
        return place < len(self.points) and self.points[place] == point

    def _visit(self, low: int, high: int) -> Iterator[Tensor]:
        """Visit a top interval. Alive are the totals that wait, at most one for every split above where it is."""
        waiting: list[tuple[int, int, Tensor | None]] = [(low, high, None)]
        while waiting:
            low, high, total = waiting.pop()
            inside = self._inside(low, high)
            count = max(0, inside.stop - inside.start)
            if 0 < count <= self.limit:
                yield self._visit_at_once(low, high, inside, total)
                continue
            if total is None:
                total = self.draw(low, self.sign * math.sqrt(self.tree.variance(low, high)))[0]
            if count:
                waiting += self._halves(low, high, total)
            elif self.points[0] <= low and high <= self.points[-1]:
                self.begun = total if self.begun is None else self.begun.add_(total)
                if self._is_point(high if self.ascending else low):
                    total = None
                    yield self._end()
            total = None

    def _halves(self, low: int, high: int, total: Tensor) -> list[tuple[int, int, Tensor | None]]:
        """Split an interval, in the memory of its total; the part to visit next comes last."""
        split = self.tree.split(low, high)
        shorter = self.draw(split.middle, self.sign * split.deviation)[0].add_(total, alpha=split.share)
        left, right = (shorter, total.sub_(shorter)) if split.left else (total.sub_(shorter), shorter)
        halves: list[tuple[int, int, Tensor | None]] = [(split.middle, high, right), (low, split.middle, left)]
        return halves if self.ascending else halves[::-1]

    def _end(self) -> Tensor:
        """Hand over the sum begun, stacked; nobody else keeps it, as it may be large."""
        assert self.begun is not None
        done, self.begun = self.begun, None
        return done[None]

    def _visit_at_once(self, low: int, high: int, inside: slice, total: Tensor | None) -> Tensor:
        """Visit an interval with points inside; what is left over behind the last is kept for the next visit."""
        base = self.tree.base(low)
        recipe = _recipe(
            self.tree,
            low - base,
            high - base,
            tuple(point - base for point in self.points[inside]),
            ascending=self.ascending,
            begins=self.points[0] > low,
            ends=self.points[-1] < high,
            closes=self._is_point(high if self.ascending else low),
            carries=self.begun is not None,
            device=self.device,
        )
        fresh = slice(0 if total is None else 1, None)
        parts = [self.draw(recipe.nodes[fresh] + base, recipe.deviations[fresh] * self.sign)]
        if total is not None:
            parts.insert(0, total[None])
        if self.begun is not None:
            parts.append(self.begun[None])
        totals = torch.cat(parts) if len(parts) > 1 else parts[0]
        shape = (-1, *[1] * (totals.dim() - 1))
        for shares, rows, parents in recipe.splits:
            above, drawn = totals.index_select(0, parents), totals[rows]
            shorter = torch.addcmul(drawn, above, shares.to(totals.dtype).view(shape), out=above)
            drawn.copy_(shorter)  # rounded like add_(total, alpha=share), and the next line like sub_
            totals.index_add_(0, parents, shorter, alpha=-1)
        sums = totals.index_select(0, recipe.heads)
        for into, what in recipe.tails:
            sums.index_add_(0, into, totals.index_select(0, what))
        self.begun = sums[-1] if len(sums) > recipe.done else None
        return sums[: recipe.done]


@dataclass(frozen=True)
class _Recipe:
    """How to refine an interval at once, for totals stacked as: the whole, the nodes in order, what was carried over.

    Attributes:
        nodes: The points that split; the first is the low end of the whole.
        deviations: Their standard deviations.
        splits: (shares, rows of the normals, rows of the intervals) of nodes to do at once; the shorter parts take the
            places of the normals, the longer ones those of the intervals.
        heads: The row where each sum of an increment begins.
        tails: (sums, rows) to add to them, in turn.
        done: How many of the sums end at a point; at most one does not.
    """

    nodes: Tensor
    deviations: Tensor
    splits: list[tuple[Tensor, slice, Tensor]]
    heads: Tensor
    tails: list[tuple[Tensor, Tensor]]
    done: int


@lru_cache(maxsize=64)
def _recipe(
    tree: Tree,
    low: int,
    high: int,
    inside: tuple[int, ...],
    *,
    ascending: bool,
    begins: bool,
    ends: bool,
    closes: bool,
    carries: bool,
    device: torch.device,
) -> _Recipe:
    """Work out the recipe of an interval of a tree with the points `inside`.

    Arguments:
        tree: Where intervals are split.
        low: The low end of the interval, in the first top interval of the tree.
        high: Its high end.
        inside: The points strictly inside, increasing.
        ascending: The direction of the walk.
        begins: The lowest point of the walk is inside: what is below is not wanted.
        ends: The same for the highest point.
        closes: The far end of the interval is a point.
        carries: A sum begun before goes on.
        device: Where rows are to be looked up.
    """
    rows, intervals = {(low, high): 0}, [(low, high)]
    nodes, deviations, splits = [low], [math.sqrt(tree.variance(low, high))], []
    while intervals:
        start, shares, parents, halves = len(nodes), [], [], []
        for interval in intervals:
            split = tree.split(*interval)
            parent, both = rows.pop(interval), [(interval[0], split.middle), (split.middle, interval[1])]
            shorter, longer = both if split.left else both[::-1]
            rows[shorter], rows[longer] = len(nodes), parent
            parents.append(parent)
            shares.append(split.share)
            nodes.append(split.middle)
            deviations.append(split.deviation)
            halves += both
        share = torch.tensor(shares, dtype=device_dtype(torch.float64, device)).to(device)
        splits.append((share, slice(start, len(nodes)), torch.tensor(parents).to(device)))
        intervals = [half for half in halves if bisect_left(inside, half[1]) > bisect_right(inside, half[0])]
    wanted = (inside[0] if begins else low, inside[-1] if ends else high)
    stops = {*inside, *([high if ascending else low] if closes else [])}
    runs: list[list[int]] = [[len(nodes)] if carries else []]
    for interval in sorted(rows, reverse=not ascending):
        if wanted[0] <= interval[0] and interval[1] <= wanted[1]:
            runs[-1].append(rows[interval])
            if interval[ascending] in stops:
                runs.append([])
    done = len(runs) - 1
    runs = [run for run in runs if run]
    tails = []
    for depth in range(1, max(map(len, runs))):
        more = [(i, run[depth]) for i, run in enumerate(runs) if len(run) > depth]
        tails.append(torch.tensor(more).to(device).unbind(1))
    heads = torch.tensor([run[0] for run in runs]).to(device)
    return _Recipe(torch.tensor(nodes), torch.tensor(deviations, dtype=torch.float64), splits, heads, tails, done)
