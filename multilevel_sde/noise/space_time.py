r"""Space-time Levy areas of a Brownian path: what a step knows of W between its ends, beside the increment.

    H = 1/h int_t^s (W(u) - W(t) - (u - t)/h dW) du,   h = s - t,   normal with variance h/12, independent of dW.

A path with a stated finest grid has them: the area of a finest cell is a normal of a second family, and that of an
interval follows from the increments and areas of its cells by the definition, with W(t) = 0,

    h H = sum_cells h_c (W_c + dW_c / 2 + H_c) - h dW / 2,   W_c at the start of the cell,

so that one seed is one path, with one area for every interval, at every step size. The increments are those that the
path has without areas.

References:
    Foster, Lyons and Oberhauser, SIAM J. Numer. Anal. 58, 2020;
    Jelincic and Foster, "Single-seed generation of Brownian paths and integrals", 2024.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator

from torch import Tensor

from multilevel_sde.noise.brownian import Brownian, BrownianPath, TorchSDEBrownian
from multilevel_sde.times import places_on

__all__ = ["increments_and_areas", "other_seeds"]

_FAMILY = 0x5851F42D4C957F2D  # keys of a second family are those of the first with these bits flipped
_BLOCK = 1024  # steps whose cells are counted at a time


def other_seeds(seeds: Iterable[int], family: int) -> list[int]:
    """Return seeds of numbers that are independent of the paths of these seeds: one family for each use.

    Example:
        >>> other_seeds([5], 0)
        [5]
    """
    return [seed ^ (_FAMILY * family & 0xFFFFFFFFFFFFFFFF) for seed in seeds]


def increments_and_areas(brownian: Brownian | BrownianPath, grid: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (dW, H) of each interval of a grid, for states like y.

    Arguments:
        brownian: A :class:`BrownianPath` with a finest grid; torchsde's path with areas; or a callable with a method
            `with_area(t, s)` -> (dW, H).
        grid: The times, on the finest grid.
        y: A state; a path without a shape takes it from there.

    Raises:
        ValueError: A path without a finest grid, or without areas.

    Example:
        >>> import torch
        >>> path = BrownianPath([1, 2], grid=[0.0, 0.5, 1.0], shape=(3,), dtype=torch.float64)
        >>> y = torch.zeros(2, 3, dtype=torch.float64)
        >>> (a, f), (b, g) = increments_and_areas(path, torch.tensor([0.0, 0.5, 1.0]), y)
        >>> ((dW, H),) = increments_and_areas(path, torch.tensor([0.0, 1.0]), y)
        >>> torch.allclose(dW, a + b), torch.allclose(H, (f + g) / 2 + (a - b) / 4)
        (True, True)
    """
    if isinstance(brownian, BrownianPath):
        if brownian.grid is None:
            raise ValueError(
                'the step needs space-time areas, which "brownian" has on a stated finest grid only; pass '
                "BrownianPath(seeds, grid=times) with the finest times that its runs use"
            )
        return _composed(brownian.like(y), brownian.grid, grid)
    if isinstance(brownian, TorchSDEBrownian):
        return (_of_torchsde(brownian, t, s) for t, s in itertools.pairwise(grid.tolist()))
    with_area = getattr(brownian, "with_area", None)
    if with_area is None:
        raise ValueError(
            f'the step needs space-time areas, which a "brownian" of type {type(brownian).__name__} does not give; '
            "pass BrownianPath(seeds, grid=times), or give it a method with_area(t, s) -> (dW, H)"
        )
    return (with_area(t, s) for t, s in itertools.pairwise(grid.tolist()))


def _composed(path: BrownianPath, finest: Tensor, grid: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    ascending = finest if finest[1] > finest[0] else finest.flip(0)
    places = places_on(ascending, grid.double())
    first, last = int(places[0]), int(places[-1])
    cells = ascending[first : last + 1] if last > first else ascending[last : first + 1].flip(0)
    other = BrownianPath(
        other_seeds(path.seeds, 1), grid=finest, shape=path.shape, dtype=path.dtype, device=path.device
    )
    scale = math.copysign(1 / math.sqrt(12), last - first)  # increments of a path that runs down have turned signs
    lengths = cells.diff().abs().tolist()
    parts = zip(path.increments(cells), other.increments(cells), lengths, strict=True)
    for block in places.diff().abs().split(_BLOCK):
        for count in block.tolist():
            yield _joined(itertools.islice(parts, count), scale)


def _joined(parts: Iterator[tuple[Tensor, Tensor, float]], scale: float) -> tuple[Tensor, Tensor]:
    """The increment and the area of an interval from those of its cells."""
    dW, normal, h = next(parts)
    H = normal * scale
    for step, normal, length in parts:
        bridge = (length * dW - h * step) / 2  # h H + length H' + this is (h + length) times the area of both
        H = (h * H + (length * scale) * normal + bridge) / (h + length)
        dW, h = dW + step, h + length
    return dW, H


def _of_torchsde(brownian: TorchSDEBrownian, t: float, s: float) -> tuple[Tensor, Tensor]:
    low, high = min(t, s), max(t, s)
    try:
        W, U = brownian._bm(low, high, return_U=True)  # type: ignore[call-arg]
    except TypeError:
        U = W = None
    if U is None or W is None:
        raise ValueError(
            "the step needs space-time areas, which the torchsde path does not have; make it with "
            'levy_area_approximation="space-time"'
        )
    return (W if t <= s else -W), U / (high - low) - W / 2
