"""Grids of any number of steps, from a pilot's candidates and the finest grid."""

from __future__ import annotations

import torch
from torch import Tensor

from multilevel_sde.times import thinned

__all__ = ["refined"]


def refined(fine: Tensor, candidates: Tensor, steps: int) -> Tensor:
    """Return a grid of so many steps of the finest grid, dense where the candidates are.

    Up to M steps it is thinned from the M candidates, above from them and the times halfway between, as often as
    needed.

    Arguments:
        fine: The finest grid, (F + 1,).
        candidates: Some of its times, (M + 1,).
        steps: At most F.

    Example:
        >>> refined(torch.arange(9.0), torch.tensor([0.0, 4.0, 8.0]), 4)
        tensor([0., 2., 4., 6., 8.])
    """
    sign = 1.0 if bool(fine[-1] > fine[0]) else -1.0
    index = torch.searchsorted(fine * sign, candidates * sign)
    while len(index) - 1 < min(steps, len(fine) - 1):
        index = torch.cat([index, (index[1:] + index[:-1]) // 2]).unique()
    return fine[index[thinned(len(index) - 1, steps)]]
