"""Sums of powers of samples, block by block in the order of the samples, so that batches and ranks do not matter."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Moments"]

_BLOCK = 1024


class Moments:
    """Mean, variance and kurtosis of samples that come in pieces.

    Pieces are cut into blocks of 1024 samples, each of which is summed for itself and then added, so the result depends
    on where a piece begins and ends but not on how its values were computed.

    Arguments:
        shift: A number near the mean, float64 (m,), which is taken off each sample before its powers are summed.

    Example:
        >>> moments = Moments(torch.zeros(1, dtype=torch.float64))
        >>> moments.add(torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64))
        >>> moments.count, float(moments.mean), float(moments.variance)
        (3, 2.0, 1.0)
    """

    def __init__(self, shift: Tensor):
        self.shift, self.count = shift, 0
        self._sums = shift.new_zeros(4, len(shift))

    def add(self, values: Tensor) -> None:
        """Take samples, float64 (n, m)."""
        for block in values.split(_BLOCK):
            x = block - self.shift  # memory of its own: sums do not depend on where the values lie
            squares = x * x
            powers = (x, squares, squares * x, squares * squares)
            self._sums = self._sums + torch.stack([power.sum(0) for power in powers])
        self.count += len(values)

    @property
    def mean(self) -> Tensor:
        """The mean, (m,)."""
        return self.shift + self._sums[0] / max(1, self.count)

    @property
    def variance(self) -> Tensor:
        """The unbiased variance, (m,); NaN of fewer than two samples."""
        n = self.count
        if n < 2:
            return torch.full_like(self.shift, torch.nan)
        return ((self._sums[1] - self._sums[0].square() / n) / (n - 1)).clamp_min(0.0)

    @property
    def kurtosis(self) -> Tensor:
        """The fourth central moment over the squared variance, (m,): 3 for normal numbers, NaN without variance."""
        n = max(1, self.count)
        m1, m2, m3, m4 = self._sums / n
        central = m4 - 4 * m1 * m3 + 6 * m1.square() * m2 - 3 * m1**4
        return central / (m2 - m1.square()).square()
