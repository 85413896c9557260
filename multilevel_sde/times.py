"""Time grids: any strictly monotone sequence of times, up or down."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["as_times"]


def as_times(times: Tensor | Sequence[float]) -> Tensor:
    """Check a time grid and return it as a floating-point tensor on the CPU, its dtype kept.

    Arguments:
        times: N + 1 >= 2 finite, strictly increasing or strictly decreasing times.

    Raises:
        ValueError: Fewer than two times, more than one dimension, a time that is not finite, or not monotone.

    Example:
        >>> as_times([1.0, 0.5, 0.0])
        tensor([1.0000, 0.5000, 0.0000], dtype=torch.float64)
    """
    if isinstance(times, Tensor):
        grid = times.detach().cpu().contiguous()
        if not grid.is_floating_point():
            grid = grid.double()
    else:
        grid = torch.tensor(list(times), dtype=torch.float64)
    if grid.dim() != 1 or len(grid) < 2:
        raise ValueError(
            f'"times" must be a 1-d grid of at least 2 times, got shape {tuple(grid.shape)}; '
            "for example torch.linspace(0.0, 1.0, 101)"
        )
    if not grid.isfinite().all():
        bad = int((~grid.isfinite()).nonzero()[0, 0])
        raise ValueError(f'"times" must be finite, got {grid[bad].item()} at index {bad}')
    gaps = grid.double().diff()
    if not ((gaps > 0).all() or (gaps < 0).all()):
        wrong = int(((gaps <= 0) if gaps[0] > 0 else (gaps >= 0)).nonzero()[0, 0])
        raise ValueError(
            f'"times" must be strictly increasing or strictly decreasing, got {grid[wrong].item():.6g} followed by '
            f"{grid[wrong + 1].item():.6g} at index {wrong}"
        )
    return grid
