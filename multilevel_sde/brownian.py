r"""Noise as a callable of an interval: brownian(t, s) returns the increment W(s) - W(t) of every sample.

One seed a sample, nothing global: the same seed gives the same path whatever the batch, its split or its order, and
whatever the step size, because W is a function of time on a finest grid and a coarse increment is the sum of the fine
ones. Two finest grids are on offer:

- The stated one (default): multiples of unit / 1 024 000 = unit / (2^13 5^3), which contains the usual decimal steps
  (1/10, 1/50, 1/1000, ...) and the dyadic ones down to 2^-13. Times are rounded to it. W is built by Levy's midpoint
  construction: given W at both ends of an interval, W at a point inside is normal with the interpolated mean and
  variance (mid - lo)(hi - mid)/(hi - lo). The splitting points come in an order that meets decimal steps early, so N
  equal steps of such a length take about N normals.
- The user's own (`grid=times`): any monotone times; an increment is the sum of the grid's cells inside. The cheapest
  where all runs use sub-grids of one known grid, and the only way for very uneven times.

References:
    Levy, "Processus stochastiques et mouvement brownien", 1948 (midpoint construction);
    Gaines and Lyons, SIAM J. Appl. Math. 57, 1997 (paths that can be refined).
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from operator import itemgetter

import torch
from torch import Tensor

from multilevel_sde.counter import CounterNormals, hash_seeds
from multilevel_sde.times import as_times

__all__ = ["Brownian", "BrownianPath", "TorchSDEBrownian"]

Brownian = Callable[[float, float], Tensor]
Draw = Callable[[Sequence[int], Sequence[float]], Tensor]

_TICKS = 1_024_000
_CHUNK = 1 << 17  # normals drawn at a time; bounds memory and amortises the calls of small states


class BrownianPath:
    """One Brownian path per seed, W(0) = 0, independent between seeds and elements.

    Arguments:
        seeds: One integer per sample.
        grid: The finest times (monotone); by default multiples of unit / 1 024 000.
        unit: Length of the intervals whose increments are drawn first, and which are then refined; take about the
            length of the whole solve if that is far from 1.
        shape: Shape of one sample. Left out, :func:`multilevel_sde.solve` takes it from the state.
        dtype: Dtype of the increments; half precisions are computed in float32.
        device: Where they are computed; the same to rounding on every device.

    Raises:
        ValueError: No seeds, a unit that is not positive, a bad grid; at a call, a time off the given grid, or an
            interval below the resolution of the stated one.

    Example:
        >>> path = BrownianPath(seeds=[1, 2, 3], shape=(5,), dtype=torch.float64)
        >>> fine = path(0.0, 0.25) + path(0.25, 1.0)
        >>> torch.allclose(fine, path(0.0, 1.0))
        True
        >>> torch.equal(BrownianPath(seeds=[3], shape=(5,), dtype=torch.float64)(0.0, 1.0), path(0.0, 1.0)[2:])
        True
    """

    def __init__(
        self,
        seeds: Iterable[int],
        *,
        grid: Tensor | Sequence[float] | None = None,
        unit: float = 1.0,
        shape: Sequence[int] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        self.seeds = tuple(int(seed) for seed in seeds)
        if not self.seeds:
            raise ValueError('"seeds" is empty; give one integer per sample, for example range(64)')
        if not (math.isfinite(unit) and unit > 0):
            raise ValueError(f'"unit" must be a positive finite length of time, got {unit}')
        if not dtype.is_floating_point:
            raise ValueError(f'"dtype" must be a floating-point dtype, got {dtype}')
        self.grid = None if grid is None else as_times(grid).double()
        self.unit = float(unit)
        self.shape = None if shape is None else tuple(shape)
        self.dtype, self.device = dtype, torch.device(device)
        self._keys = hash_seeds(list(self.seeds), self.device)
        if self.grid is not None:
            ascending = self.grid if self.grid[1] > self.grid[0] else self.grid.flip(0)
            self._cells: list[float] = ascending.diff().sqrt().tolist()
            self._times: Tensor = ascending

    def like(self, y: Tensor) -> BrownianPath:
        """Return the same path for states like `y`, shape (B, ...), unless a shape was given.

        Raises:
            ValueError: The number of seeds is not the size of the first dimension of `y`.
        """
        if y.dim() == 0 or y.shape[0] != len(self.seeds):
            raise ValueError(
                f'"seeds" has {len(self.seeds)} entries, the state of shape {tuple(y.shape)} needs one per sample '
                "along its first dimension"
            )
        shape = tuple(y.shape[1:]) if self.shape is None else self.shape
        return BrownianPath(self.seeds, grid=self.grid, unit=self.unit, shape=shape, dtype=y.dtype, device=y.device)

    def __call__(self, t: float, s: float) -> Tensor:
        """Return W(s) - W(t), shape (B, *shape)."""
        return next(self.increments([t, s]))

    def increments(self, times: Tensor | Sequence[float]) -> Iterator[Tensor]:
        """Yield W(times[n + 1]) - W(times[n]) for every n: the values of single calls, much faster in a row."""
        if self.shape is None:
            raise ValueError('"shape" of this path is not set; pass shape=y.shape[1:] or use path.like(y)')
        grid = as_times(times).double()
        for increment in self._refined(grid) if self.grid is None else self._summed(grid):
            yield increment.to(self.dtype)

    def _source(self) -> tuple[Draw, int]:
        """Return draw(nodes, deviations) -> normals (M, B, *shape), and how many nodes to draw at a time."""
        shape = (len(self.seeds), *(self.shape or ()))
        normals = CounterNormals(self._keys, math.prod(shape[1:]))
        dtype = torch.promote_types(torch.float32, self.dtype)

        def draw(nodes: Sequence[int], deviations: Sequence[float]) -> Tensor:
            return normals(nodes, deviations).view(len(nodes), *shape).to(dtype)

        return draw, _CHUNK // max(1, math.prod(shape))

    # -- the user's grid: sums of cells ---------------------------------------------------------------------------

    def _summed(self, grid: Tensor) -> Iterator[Tensor]:
        index = self._index(grid)
        sign = 1 if index[1] > index[0] else -1
        cells = range(index[0], index[-1]) if sign > 0 else range(index[0] - 1, index[-1] - 1, -1)
        increments = self._cell_increments(cells, sign)
        for a, b in itertools.pairwise(index):
            total = next(increments)
            for _ in range(abs(b - a) - 1):
                total.add_(next(increments))
            yield total

    def _cell_increments(self, cells: range, sign: int) -> Iterator[Tensor]:
        draw, limit = self._source()
        for start in range(0, len(cells), max(1, limit)):
            chunk = cells[start : start + max(1, limit)]
            yield from draw(chunk, [sign * self._cells[cell] for cell in chunk]).unbind(0)

    def _index(self, times: Tensor) -> list[int]:
        """Index of every time in the ascending grid; a time must agree to a thousandth of the cell beside it."""
        ascending = self._times
        right = torch.searchsorted(ascending, times).clamp(1, len(ascending) - 1)
        nearer_left = times - ascending[right - 1] < ascending[right] - times
        nearest = torch.where(nearer_left, right - 1, right)
        gap = ascending.diff()
        cell = torch.minimum(gap[(nearest - 1).clamp_min(0)], gap[nearest.clamp_max(len(gap) - 1)])
        off = (times - ascending[nearest]).abs() > 1e-3 * cell
        if off.any():
            raise ValueError(
                f"time {times[off][0].item():.9g} is not on the grid of the BrownianPath; build the path with a grid "
                "that contains all times of the solve"
            )
        if not nearest.diff().all():
            raise ValueError('"times" has two times at one point of the grid of the BrownianPath; give it a finer grid')
        return nearest.tolist()

    # -- the stated grid: Levy's construction ---------------------------------------------------------------------

    def _refined(self, grid: Tensor) -> Iterator[Tensor]:
        ticks = (grid * (_TICKS / self.unit)).round().long().tolist()
        if any(a == b for a, b in itertools.pairwise(ticks)):
            raise ValueError(
                f'"times" have steps below {self.unit / _TICKS:.3g}, the resolution of this BrownianPath; '
                "give it grid=times, or a smaller unit"
            )
        for increments in _Walk(ticks, math.sqrt(self.unit), *self._source()).increments():
            yield from increments.unbind(0)


class _Walk:
    """Levy's construction: the increments of W between increasing or decreasing ticks.

    A node of the construction is the tick where it splits an interval, with the total D over it, into

        D_left = share D + deviation z,    D_right = D - D_left;

    the total of the unit interval from u to u + 1 is node u * _TICKS. Intervals with up to `limit` ticks inside are
    refined all at once, level by level, larger ones node by node, so that small states take few calls and large ones
    little memory. Both do the same operations on the same numbers in the same order.
    """

    def __init__(self, ticks: list[int], scale: float, draw: Draw, limit: int):
        self.ascending = ticks[1] > ticks[0]
        self.ticks = ticks if self.ascending else ticks[::-1]
        self.points = frozenset(ticks)
        self.scale = scale if self.ascending else -scale
        self.draw, self.limit = draw, limit
        self.begun: Tensor | None = None  # the sum of what was visited since the last tick

    def increments(self) -> Iterator[Tensor]:
        """Yield stacks of one or more increments, in the order of the ticks."""
        first = self.ticks[0] // _TICKS
        last = max(first, -(-self.ticks[-1] // _TICKS) - 1)
        for unit in range(first, last + 1) if self.ascending else range(last, first - 1, -1):
            low = unit * _TICKS
            yield from self._visit(low, low + _TICKS, self.draw([low], [self.scale])[0])

    def _inside(self, low: int, high: int) -> int:
        """Number of ticks strictly inside."""
        return bisect_left(self.ticks, high) - bisect_right(self.ticks, low)

    def _ends(self, low: int, high: int) -> bool:
        """Whether the far end of the interval is a tick."""
        return (high if self.ascending else low) in self.points

    def _wanted(self, low: int, high: int) -> bool:
        """Whether the interval lies between the first and the last tick."""
        return self.ticks[0] <= low and high <= self.ticks[-1]

    def _visit(self, low: int, high: int, total: Tensor) -> Iterator[Tensor]:
        inside = self._inside(low, high)
        if inside == 0:
            if self._wanted(low, high):
                self.begun = total if self.begun is None else self.begun.add_(total)
                if self._ends(low, high):
                    done, self.begun = self.begun, None
                    yield done[None]
            return
        if inside <= self.limit:
            yield self._visit_at_once(low, high, total)
            return
        middle, share, deviation = self._bridge(low, high)
        left = self.draw([middle], [deviation])[0].add_(total, alpha=share)
        halves = (low, middle, left), (middle, high, total.sub_(left))
        for half in halves if self.ascending else halves[::-1]:
            yield from self._visit(*half)

    def _visit_at_once(self, low: int, high: int, total: Tensor) -> Tensor:
        """What visiting the interval yields, stacked."""
        rows = {(low, high): 0}  # where the totals of the intervals are; the right part takes the place of the whole
        nodes, groups, parents = [], [], []
        intervals = [(low, high)]
        while intervals:
            split = sorted(((*self._bridge(a, b), a, b) for a, b in intervals), key=itemgetter(1))
            for middle, _, _, a, b in split:
                parents.append(rows.pop((a, b)))
                rows[middle, b], rows[a, middle] = parents[-1], len(parents)
            nodes += split
            groups += [(share, len(list(group))) for share, group in itertools.groupby(split, key=itemgetter(1))]
            halves = itertools.chain.from_iterable(((a, middle), (middle, b)) for middle, _, _, a, b in split)
            intervals = [half for half in halves if self._inside(*half)]
        normals = self.draw([node[0] for node in nodes], [node[2] for node in nodes])
        totals = torch.cat([total[None], normals] if self.begun is None else [total[None], normals, self.begun[None]])
        places, start = torch.tensor(parents, device=total.device), 0
        for share, count in groups:
            above = totals[places[start : start + count]]
            left = totals[start + 1 : start + 1 + count].add_(above, alpha=share)
            totals[places[start : start + count]] = above.sub_(left)
            start += count
        return self._sums(totals, rows)

    def _sums(self, totals: Tensor, rows: dict[tuple[int, int], int]) -> Tensor:
        """Add up the totals of the intervals between two ticks."""
        runs: list[list[int]] = [[] if self.begun is None else [len(totals) - 1]]
        for interval in sorted(rows, reverse=not self.ascending):
            if self._wanted(*interval):
                runs[-1].append(rows[interval])
                if self._ends(*interval):
                    runs.append([])
        done = len(runs) - 1
        runs = [run for run in runs if run]
        sums = totals[torch.tensor([run[0] for run in runs], device=totals.device)]
        for depth in range(1, max(map(len, runs))):
            more = [(i, run[depth]) for i, run in enumerate(runs) if len(run) > depth]
            into, what = torch.tensor(more, device=totals.device).unbind(1)
            sums[into] += totals[what]
        self.begun = sums[-1] if len(runs) > done else None
        return sums[:done]

    def _bridge(self, low: int, high: int) -> tuple[int, float, float]:
        """Where to split an interval, the share of the left part, and the standard deviation."""
        left = _split(high - low)
        share = left / (high - low)
        return low + left, share, self.scale * math.sqrt(left * (1 - share) / _TICKS)


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


class TorchSDEBrownian:
    """Let a torchsde Brownian object, such as `torchsde.BrownianInterval`, be the noise of a solve.

    Arguments:
        bm: A callable bm(ta, tb) with ta <= tb that returns W(tb) - W(ta).

    Example:
        >>> import torchsde
        >>> bm = torchsde.BrownianInterval(t0=0.0, t1=1.0, size=(4, 2), entropy=1)
        >>> TorchSDEBrownian(bm)(0.0, 0.5).shape
        torch.Size([4, 2])
    """

    def __init__(self, bm: Callable[[float, float], Tensor]):
        if not callable(bm):
            raise TypeError(f'"bm" must be a torchsde Brownian object, got {type(bm).__name__}')
        self._bm = bm

    def __call__(self, t: float, s: float) -> Tensor:
        """Return W(s) - W(t)."""
        return self._bm(t, s) if t <= s else -self._bm(s, t)
