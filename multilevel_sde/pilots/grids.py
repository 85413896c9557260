"""Grids of any number of steps, from a pilot's candidates and the finest grid."""

from __future__ import annotations

import torch
from torch import Tensor

from multilevel_sde.times import thinned

__all__ = ["refined"]


def refined(fine: Tensor, candidates: Tensor, steps: int) -> Tensor:
    """Return a grid of so many steps of the finest grid, dense where the candidates are.

    Steps that divide the number M of candidates are some of those. Where the candidates are spread evenly over the
    finest grid, so are all others; elsewhere they are thinned from the candidates and, above M, from the times halfway
    between.

    Arguments:
        fine: The finest grid, (F + 1,).
        candidates: Some of its times, (M + 1,).
        steps: At most F.

    Example:
        >>> refined(torch.arange(9.0), torch.tensor([0.0, 4.0, 8.0]), 4)
        tensor([0., 2., 4., 6., 8.])
    """
    index, finest, count = torch.isin(fine, candidates).nonzero()[:, 0], len(fine) - 1, len(candidates) - 1
    if count % steps and torch.equal(index, thinned(finest, count)):
        return fine[thinned(finest, steps)]
    while len(index) - 1 < min(steps, finest):
        index = torch.cat([index, (index[1:] + index[:-1]) // 2]).unique()
    return fine[index[thinned(len(index) - 1, steps)]]
