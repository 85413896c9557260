r"""Noise as a callable of an interval: brownian(t, s) returns the increment W(s) - W(t) of every sample.

One seed a sample, nothing global: the same seed gives the same path whatever the batch, its split or its order, and
whatever the step size. W is built by Levy's midpoint construction on a tree of intervals: given W at both ends of an
interval, W at a point inside is normal with the interpolated mean and variance (mid - lo)(hi - mid)/(hi - lo). So a
coarse step takes the normals that lead to its ends, not those of the fine steps inside. Two trees are on offer:

- The stated one (default): multiples of unit / 1 024 000 = unit / (2^13 5^3), which contains the usual decimal steps
  (1/10, 1/50, 1/1000, ...) and the dyadic ones down to 2^-13. Times are rounded to it.
- The user's own (`grid=times`): any monotone times. The cheapest where all runs use sub-grids of one known grid, and
  the only way for very uneven times.

N of the F steps of a grid take about N (1 + log2(F / N)) normals at most, all F of them F, and 10, 20, 100 and 1000
even ones about N (:mod:`multilevel_sde.noise.trees`).

References:
    Levy, "Processus stochastiques et mouvement brownien", 1948 (midpoint construction);
    Gaines and Lyons, SIAM J. Appl. Math. 57, 1997 (paths that can be refined).
"""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Self

import torch
from torch import Tensor

from multilevel_sde.arguments import as_integer, as_items, as_number
from multilevel_sde.noise.counter import CounterNormals, hash_seeds
from multilevel_sde.noise.levy import Draw, LevyWalk
from multilevel_sde.noise.trees import TICKS, GridTree, TickTree, Tree, packed
from multilevel_sde.times import as_times, device_dtype, places_on

__all__ = ["Brownian", "BrownianPath", "TorchSDEBrownian"]

Brownian = Callable[[float, float], Tensor]

_ROUGH, _WRONG = 0.01, 0.1  # relative error of a step's variance by rounding its ends: warned of, refused
_CHUNK = 1 << 17  # normals drawn at a time; bounds memory and amortises the calls of small states


class BrownianPath:
    """One Brownian path per seed, W(0) = 0, independent between seeds and elements.

    Arguments:
        seeds: One integer per sample, taken modulo 2^64; none for an empty batch.
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

    _least = torch.float32  # least dtype in which increments are computed

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
        if not isinstance(seeds, range):  # of which a million takes no time
            seeds = tuple(as_integer("seeds", seed) for seed in as_items("seeds", seeds, "integers"))
        self.seeds: Sequence[int] = seeds
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
        self._keys = hash_seeds(self.seeds, self.device)
        if self.grid is not None:
            self._times: Tensor = self.grid if self.grid[1] > self.grid[0] else self.grid.flip(0)
        self._tree: Tree = TickTree(unit) if self.grid is None else GridTree.of(self._times)

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
        yield from map(self._rounded, self._along(grid))

    def _rounded(self, increment: Tensor) -> Tensor:
        return increment.to(self.dtype)

    def _along(self, grid: Tensor) -> Iterator[Tensor]:
        """Yield the increments along float64 times, in the dtype in which they are computed."""
        return self._between(self._ticks(grid) if self.grid is None else places_on(self._times, grid))

    def _between(self, points: Tensor) -> Iterator[Tensor]:
        """Yield the increments between points of the tree."""
        for increments in LevyWalk(packed(points, "q"), self._tree, *self._source(), self.device).increments():
            waiting = list(increments.unbind(0))[::-1]
            del increments  # a large one is not kept here while it is used
            while waiting:
                yield waiting.pop()

    def _source(self) -> tuple[Draw, int]:
        """Return draw(nodes, deviations) -> normals (M, B, *shape), and how many nodes to draw at a time."""
        shape = (len(self.seeds), *(self.shape or ()))
        normals = CounterNormals(self._keys, math.prod(shape[1:]))
        dtype = device_dtype(torch.promote_types(self._least, self.dtype), self.device)

        def draw(nodes: Tensor | int, deviations: Tensor | float) -> Tensor:
            drawn = normals(nodes, deviations, dtype)
            return drawn.view(len(drawn), *shape)

        return draw, _CHUNK // max(1, math.prod(shape))

    def _ticks(self, grid: Tensor) -> Tensor:
        ticks = (grid * (TICKS / self.unit)).round().long()
        _check_rounding(grid, ticks, self.unit)
        return ticks


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
