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

import copy
import itertools
import math
import warnings
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Self

import torch
from torch import Tensor

from multilevel_sde.arguments import as_integer, as_items, as_number
from multilevel_sde.noise.counter import CounterNormals, hash_seeds
from multilevel_sde.noise.levy import TICKS, Draw, LevyWalk
from multilevel_sde.steps.sums import transformed
from multilevel_sde.times import as_times, places_on

__all__ = ["Brownian", "BrownianPath", "TorchSDEBrownian"]

Brownian = Callable[[float, float], Tensor]

_ROUGH, _WRONG = 0.01, 0.1  # relative error of a step's variance by rounding its ends: warned of, refused
_BLOCK = 1024  # steps whose lengths are unpacked at a time
_CHUNK = 1 << 17  # normals drawn at a time; bounds memory and amortises the calls of small states


class BrownianPath:
    """One Brownian path per seed, W(0) = 0, independent between seeds and elements.

    Arguments:
        seeds: One integer per sample; none for an empty batch.
        grid: The finest times (monotone); by default multiples of unit / 1 024 000, to which times are rounded.
        unit: Length of the intervals whose increments are drawn first, and which are then refined; take about the
            length of the whole solve if that is far from 1.
        shape: Shape of one sample. Left out, :func:`multilevel_sde.solve` takes it from the state.
        dtype: Dtype of the increments; half precisions are computed in float32.
        device: Where they are computed; the same to rounding on every device.

    Raises:
        TypeError: Seeds or a shape that are no integers, a unit that is no number.
        ValueError: A unit that is not positive, a bad grid; at a call, a time off the given grid, or an interval that
            rounding to the stated one changes by more than a tenth.

    Warns:
        UserWarning: At a call, an interval that rounding to the stated grid changes by more than a hundredth.

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
        self.seeds = tuple(as_integer("seeds", seed) for seed in as_items("seeds", seeds, "integers"))
        unit = as_number("unit", unit)
        if not (math.isfinite(unit) and unit > 0):
            raise ValueError(f'"unit" must be a positive finite length of time, got {unit}')
        if not dtype.is_floating_point:
            raise ValueError(f'"dtype" must be a floating-point dtype, got {dtype}')
        self.grid = None if grid is None else as_times(grid).double()
        self.unit = unit
        sides = None if shape is None else as_items("shape", shape, "integers")
        self.shape = None if sides is None else tuple(as_integer("shape", side) for side in sides)
        if self.shape is not None and min(self.shape, default=0) < 0:
            raise ValueError(f'"shape" must not have negative sizes, got {self.shape}')
        self.dtype, self.device = dtype, torch.device(device)
        self._keys = hash_seeds(list(self.seeds), self.device)
        if self.grid is not None:
            ascending = self.grid if self.grid[1] > self.grid[0] else self.grid.flip(0)
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
        path = copy.copy(self)
        path.shape = tuple(y.shape[1:]) if self.shape is None else self.shape
        path.dtype, path.device, path._keys = y.dtype, y.device, self._keys.to(y.device)
        return path

    def subset(self, rows: Sequence[int]) -> Self:
        """Return the paths of some of the samples.

        Example:
            >>> path = BrownianPath(seeds=[1, 2, 3], shape=(2,))
            >>> torch.equal(path.subset([2, 0])(0.0, 1.0), path(0.0, 1.0)[[2, 0]])
            True
        """
        path = copy.copy(self)
        path.seeds, path._keys = tuple(self.seeds[row] for row in rows), self._keys[list(rows)]
        return path

    def __call__(self, t: float, s: float) -> Tensor:
        """Return W(s) - W(t), shape (B, *shape)."""
        return next(self.increments([t, s]))

    def increments(self, times: Tensor | Sequence[float]) -> Iterator[Tensor]:
        """Yield W(times[n + 1]) - W(times[n]) for every n: the values of single calls, much faster in a row."""
        if self.shape is None:
            raise ValueError('"shape" of this path is not set; pass shape=y.shape[1:] or use path.like(y)')
        grid = as_times(times).double()
        if not self.seeds:
            yield from torch.empty(len(grid) - 1, 0, *self.shape, dtype=self.dtype, device=self.device)
            return
        yield from self._refined(grid) if self.grid is None else self._summed(grid)

    def _source(self) -> tuple[Draw, int]:
        """Return draw(nodes, deviations) -> normals (M, B, *shape), and how many nodes to draw at a time."""
        shape = (len(self.seeds), *(self.shape or ()))
        normals = CounterNormals(self._keys, math.prod(shape[1:]))
        dtype = torch.promote_types(torch.float32, self.dtype)

        def draw(nodes: Tensor | int, deviations: Tensor | float) -> Tensor:
            drawn = normals(nodes, deviations)
            return drawn.view(len(drawn), *shape).to(dtype)

        return draw, _CHUNK // max(1, math.prod(shape))

    # -- the user's grid: sums of cells ---------------------------------------------------------------------------

    def _summed(self, grid: Tensor) -> Iterator[Tensor]:
        index = places_on(self._times, grid)
        first, last, lengths = int(index[0]), int(index[-1]), index.diff().abs()
        up = last > first
        cells = torch.arange(first, last) if up else torch.arange(first - 1, last - 1, -1)
        increments = self._cell_increments(cells, 1.0 if up else -1.0)
        del index
        for block in lengths.split(_BLOCK):
            for length in block.tolist():
                yield self._sum(itertools.islice(increments, length))

    def _sum(self, increments: Iterator[Tensor]) -> Tensor:
        """Add them up, in place; a function, as a generator would keep the sum alive beside the next one."""
        total = next(increments)
        for increment in increments:
            total.add_(increment)
        return total.to(self.dtype)

    def _cell_increments(self, cells: Tensor, sign: float) -> Iterator[Tensor]:
        draw, limit = self._source()
        deviations = self._times.diff().sqrt()[cells] * sign
        if limit <= 1:
            for chunk, scales in zip(cells.split(_BLOCK), deviations.split(_BLOCK), strict=True):
                for cell, deviation in zip(chunk.tolist(), scales.tolist(), strict=True):
                    yield draw(cell, deviation)[0]
            return
        for chunk, scales in zip(cells.split(limit), deviations.split(limit), strict=True):
            yield from draw(chunk, scales).unbind(0)

    # -- the stated grid: Levy's construction ---------------------------------------------------------------------

    def _refined(self, grid: Tensor) -> Iterator[Tensor]:
        ticks = self._ticks(grid)
        for increments in LevyWalk(ticks, math.sqrt(self.unit), *self._source(), self.device).increments():
            waiting = list(increments.to(self.dtype).unbind(0))[::-1]
            del increments  # a large one is not kept here while it is used
            while waiting:
                yield waiting.pop()

    def _ticks(self, grid: Tensor) -> Sequence[int]:
        ticks = (grid * (TICKS / self.unit)).round().long()
        _check_rounding(grid, ticks, self.unit)
        if transformed():  # inside a transform of torch.func a tensor has no memory to look at
            return array("q", ticks.tolist())
        packed = array("q")  # a list would take five times the memory
        packed.frombytes(ticks.numpy().data.cast("B"))
        return packed


def _check_rounding(grid: Tensor, ticks: Tensor, unit: float) -> None:
    """Refuse or warn where a step is so short that rounding its ends to ticks changes the variance of its noise."""
    lengths = grid.diff().abs() * (TICKS / unit)
    off = ((ticks.diff().abs() - lengths).abs() / lengths).nan_to_num(math.inf)
    worst = int(off.argmax())
    if not float(off[worst]) > _ROUGH:
        return
    text = (
        f'"times" have a step of {float(grid.diff()[worst].abs()):.3g} at index {worst}, which is '
        f"{float(lengths[worst]):.3g} ticks of this BrownianPath: the variance of its noise is off by "
        f"{float(off[worst]):.0%}; give the path grid=times, or a smaller unit"
    )
    if float(off[worst]) > _WRONG:
        raise ValueError(text)
    warnings.warn(text, stacklevel=2)


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


def increments(brownian: Brownian | BrownianPath | None, grid: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Yield the increments of a grid, for states like y; nothing where there is no noise."""
    if brownian is None:
        return iter(())
    if isinstance(brownian, BrownianPath):
        return brownian.like(y).increments(grid)
    points = grid.tolist()
    return (brownian(t, s) for t, s in itertools.pairwise(points))
