"""Time grids: any strictly monotone sequence of times, up or down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from multilevel_sde.arguments import as_tensor

__all__ = ["as_times", "device_dtype", "has_float64", "places_on", "thinned"]


def as_times(times: Tensor | Sequence[float]) -> Tensor:
    """Check a time grid and return it as a floating-point tensor on the CPU, its dtype kept.

    Arguments:
        times: N + 1 >= 2 finite, strictly increasing or strictly decreasing times.

    Raises:
        TypeError: They are no real numbers.
        ValueError: Fewer than two times, more than one dimension, a time that is not finite, or not monotone.

    Example:
        >>> as_times([1.0, 0.5, 0.0])
        tensor([1.0000, 0.5000, 0.0000], dtype=torch.float64)
    """
    grid = as_tensor("times", times).cpu().contiguous()
    if not grid.is_floating_point():
        grid = grid.double()
    if grid.dim() != 1 or len(grid) < 2:
        raise ValueError(
            f'"times" must be a 1-d grid of at least 2 times, got shape {tuple(grid.shape)}; '
            "for example torch.linspace(0.0, 1.0, 101)"
        )
    gaps = grid.double().diff()
    least, most = (gap.item() for gap in gaps.aminmax())  # NaN where a gap is NaN
    if not (0 < least <= most < math.inf or -math.inf < least <= most < 0):
        _check_finite(grid)
        _check_monotone(grid, gaps)
    return grid


def _check_finite(grid: Tensor) -> None:
    if not grid.isfinite().all():
        bad = int((~grid.isfinite()).nonzero()[0, 0])
        raise ValueError(f'"times" must be finite, got {grid[bad].item()} at index {bad}')


def _check_monotone(grid: Tensor, gaps: Tensor) -> None:
    if not ((gaps > 0).all() or (gaps < 0).all()):
        wrong = int(((gaps <= 0) if gaps[0] > 0 else (gaps >= 0)).nonzero()[0, 0])
        raise ValueError(
            f'"times" must be strictly increasing or strictly decreasing, got {grid[wrong].item():.6g} followed by '
            f"{grid[wrong + 1].item():.6g} at index {wrong}"
        )


def places_on(ascending: Tensor, times: Tensor) -> Tensor:
    """Return the index of each time on an ascending grid; it must agree to a thousandth of the cells beside it.

    Raises:
        ValueError: A time is not on the grid, or two neighbouring times are the same point of it.

    Example:
        >>> places_on(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1.0, 0.0]))
        tensor([2, 0])
    """
    if torch.equal(ascending, times):
        return torch.arange(len(times))
    right = torch.searchsorted(ascending, times).clamp(1, len(ascending) - 1)
    nearest = torch.where(times - ascending[right - 1] < ascending[right] - times, right - 1, right)
    cells = ascending.diff()
    shorter = torch.minimum(cells[(nearest - 1).clamp_min(0)], cells[nearest.clamp_max(len(cells) - 1)])
    off = ~((times - ascending[nearest]).abs() <= 1e-3 * shorter)  # so NaN is off
    if off.any():
        raise ValueError(
            f'"times" contains {times[off][0].item():.9g}, which is not on the grid that the noise was made for; make '
            "the noise with a grid that contains all times of the solve"
        )
    if not nearest.diff().all():
        raise ValueError('"times" has two times at one point of the grid of the noise; make it with a finer grid')
    return nearest


def thinned(count: int, steps: int) -> Tensor:
    """Return where `steps` about equally spaced steps begin and end on a grid of `count`, int64 (steps + 1,).

    Example:
        >>> thinned(10, 4)
        tensor([ 0,  2,  5,  8, 10])
    """
    return torch.linspace(0, count, steps + 1, dtype=torch.float64).round().long()


@cache
def has_float64(kind: str) -> bool:
    """Whether devices of this type hold float64 numbers; Apple's GPUs do not.

    Example:
        >>> has_float64("cpu")
        True
    """
    if kind in ("cpu", "cuda", "meta"):
        return True
    try:
        torch.zeros((), dtype=torch.float64, device=kind)
    except (TypeError, RuntimeError):
        return False
    return True


def device_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype, or float32 for float64 on a device that has none.

    Example:
        >>> device_dtype(torch.float64, torch.device("cpu"))
        torch.float64
    """
    return torch.float32 if dtype == torch.float64 and not has_float64(device.type) else dtype
