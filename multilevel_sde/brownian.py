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
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from multilevel_sde.counter import counter_normals, hash_seeds
from multilevel_sde.times import as_times

__all__ = ["Brownian", "BrownianPath", "TorchSDEBrownian"]

Brownian = Callable[[float, float], Tensor]

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
        steps = self._refined(grid) if self.grid is None else self._summed(grid)
        for increment in steps:
            yield increment.reshape(len(self.seeds), *self.shape).to(self.dtype)

    def _normals(self, nodes: list[int]) -> Iterator[Tensor]:
        """Yield the normals of the nodes one by one, (B, size), drawn in chunks."""
        size = math.prod(self.shape or ())
        chunk = max(1, _CHUNK // max(1, size * len(self.seeds)))
        numbers = torch.tensor(nodes, dtype=torch.int64, device=self.device)
        for start in range(0, len(nodes), chunk):
            normals = counter_normals(self._keys, numbers[start : start + chunk], size)
            yield from normals.to(torch.promote_types(torch.float32, self.dtype)).unbind(0)

    # -- the user's grid: sums of cells ---------------------------------------------------------------------------

    def _summed(self, grid: Tensor) -> Iterator[Tensor]:
        index = self._index(grid)
        sign = 1.0 if index[1] > index[0] else -1.0
        direction = 1 if index[1] > index[0] else -1
        first, last = (index[0], index[-1]) if direction > 0 else (index[0] - 1, index[-1] - 1)
        normals = self._normals(list(range(first, last, direction)))
        for a, b in itertools.pairwise(index):
            cells = range(a, b) if direction > 0 else range(a - 1, b - 1, -1)
            total = None
            for cell in cells:
                increment = next(normals) * (sign * self._cells[cell])
                total = increment if total is None else total.add_(increment)
            assert total is not None
            yield total

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
        return nearest.tolist()

    # -- the stated grid: Levy's construction ---------------------------------------------------------------------

    def _refined(self, grid: Tensor) -> Iterator[Tensor]:
        ticks = (grid * (_TICKS / self.unit)).round().long().tolist()
        if any(a == b for a, b in itertools.pairwise(ticks)):
            raise ValueError(
                f'"times" have steps below {self.unit / _TICKS:.3g}, the resolution of this BrownianPath; '
                "give it grid=times, or a smaller unit"
            )
        walk = _Walk(ticks, math.sqrt(self.unit))
        previous = None
        for value in walk.values(self._normals(walk.nodes())):
            if previous is not None:
                yield value - previous
            previous = value


class _Walk:
    """The order in which Levy's construction visits its nodes to give W at increasing or decreasing ticks.

    A node is the tick that it adds; the total of the unit interval from u to u + 1 is node u * _TICKS. `nodes` lists
    them in the order in which `values` uses up their normals.
    """

    def __init__(self, ticks: list[int], scale: float):
        self.ascending = ticks[1] > ticks[0]
        self.scale = scale
        self.ticks = ticks if self.ascending else ticks[::-1]
        first = self.ticks[0] // _TICKS
        last = max(first, -(-self.ticks[-1] // _TICKS) - 1)
        self.units = range(first, last + 1) if self.ascending else range(last, first - 1, -1)

    def nodes(self) -> list[int]:
        """The nodes in the order of use."""
        out: list[int] = []
        for unit in self.units:
            low = unit * _TICKS
            out.append(low)
            self._list(low, low + _TICKS, out)
        return out

    def _holds(self, low: int, high: int) -> bool:
        """Whether a tick lies strictly inside."""
        position = bisect_right(self.ticks, low)
        return position < len(self.ticks) and self.ticks[position] < high

    def _list(self, low: int, high: int, out: list[int]) -> None:
        if not self._holds(low, high):
            return
        middle = _split(low, high)
        out.append(middle)
        for child in ((low, middle), (middle, high)) if self.ascending else ((middle, high), (low, middle)):
            self._list(*child, out)

    def values(self, normals: Iterator[Tensor]) -> Iterator[Tensor]:
        """Yield W at the ticks, up to one constant."""
        base = None
        for unit in self.units:
            low, high = unit * _TICKS, (unit + 1) * _TICKS
            total = next(normals) * self.scale
            base = torch.zeros_like(total) if base is None else base
            at_low, at_high = (base, base + total) if self.ascending else (base - total, base)
            first, second = ((low, at_low), (high, at_high)) if self.ascending else ((high, at_high), (low, at_low))
            if unit == self.units[0] and first[0] in (self.ticks[0], self.ticks[-1]):
                yield first[1]
            yield from self._visit(low, high, at_low, at_high, normals)
            if self._holds(second[0] - 1, second[0] + 1):
                yield second[1]
            base = second[1]

    def _visit(
        self, low: int, high: int, at_low: Tensor, at_high: Tensor, normals: Iterator[Tensor]
    ) -> Iterator[Tensor]:
        if not self._holds(low, high):
            return
        middle = _split(low, high)
        share = (middle - low) / (high - low)
        deviation = self.scale * math.sqrt((middle - low) * (1 - share) / _TICKS)
        at_middle = torch.lerp(at_low, at_high, share).add_(next(normals), alpha=deviation)
        left, right = (low, middle, at_low, at_middle), (middle, high, at_middle, at_high)
        yield from self._visit(*(left if self.ascending else right), normals)
        if self._holds(middle - 1, middle + 1):
            yield at_middle
        yield from self._visit(*(right if self.ascending else left), normals)


def _split(low: int, high: int) -> int:
    """Where Levy's construction splits an interval.

    Above 1024 ticks (a thousandth) in the order 2, 5, 2, 5, 2, 5, so that 1/10, 1/20, 1/100, 1/200 and 1/1000 are met
    on the way; five parts as 2 + 3, three as 1 + 2. Below, in halves.
    """
    length = high - low
    parts = length // 1024 if length > 1024 else length
    unit = length // parts
    if parts % 3 == 0:
        return low + unit * (parts // 3)
    if parts % 2 == 0 and (parts % 5 or _power(parts, 2) >= _power(parts, 5)):
        return low + length // 2
    return low + unit * (2 * parts // 5)


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
