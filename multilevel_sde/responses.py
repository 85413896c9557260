r"""Responses: what corrections at the steps of a plan do to the final state, beside what they stand for.

R_k(m) is the response of the final state to the correction D_k at candidate step m. A plan on every c-th candidate step
has steps c times as large, so that a correction there has the response s(n) R_k(c n), s the ratio of the step
coefficients, but it stands for all candidate steps between:

    y - x = sum_{k,n} w_k(n) s(n) R_k(c n) - sum_{k,m} R_k(m).

References:
    docs/theory; O'Hagan, "Bayes-Hermite quadrature", J. Stat. Plan. Inference 29, 1991.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from multilevel_sde.allocate import shrink

__all__ = ["SHRINKAGE", "Responses"]

SHRINKAGE = 0.05


@dataclass(frozen=True)
class Responses:
    """Inner products of responses, mean over samples and numbers; rows run over level k and step n, index k N + n.

    Attributes:
        gram: Of the plan's own responses, (L N, L N).
        cross: Of the plan's with those of all candidate steps, (L N, L M).
        fine: Of those of all candidate steps, (L M, L M).
        variances: E|D_k(n)|^2 at the plan's steps, (N, L).
    """

    gram: Tensor
    cross: Tensor
    fine: Tensor
    variances: Tensor

    @classmethod
    def measured(cls, gram: Tensor, coefficients: Tensor, variances: Tensor, stride: int = 1) -> Responses:
        """Return those of a plan on every `stride`-th candidate step, trusting the off-diagonal by 95%.

        Arguments:
            gram: Of the candidate steps, (L M, L M).
            coefficients: The step's coefficient of the estimate at every candidate, (M,); that of a larger step is
                taken as the sum.
            variances: (M, L).
            stride: Candidate steps per step of the plan, a divisor of M.
        """
        fine = shrink(gram, SHRINKAGE)
        if stride == 1:
            return cls(fine, fine, fine, variances)
        candidates, levels = variances.shape
        share = (coefficients.reshape(-1, stride).sum(1) / coefficients[::stride]).repeat(levels)
        rows = torch.arange(levels * candidates).reshape(levels, candidates)[:, ::stride].reshape(-1)
        cross = fine[rows] * share[:, None]
        return cls(cross[:, rows] * share, cross, fine, variances[::stride])

    @property
    def steps(self) -> int:
        """Number of steps N of the plan."""
        return len(self.variances)

    @property
    def levels(self) -> int:
        """Number of corrections L."""
        return self.variances.shape[1]

    @property
    def target(self) -> Tensor:
        """Covariance of each of the plan's responses with the sum of all, (L N,)."""
        return self.cross.sum(1)

    def merged(self, low: int, high: int) -> Responses:
        """Those of one correction, f^high - f^low, which is the sum of the ones between.

        What the ones between have in common is known of the responses but not of the corrections, so the mean square of
        the correction follows from its response and the gain of the ones between.
        """

        def part(table: Tensor) -> Tensor:
            blocks = table.reshape(self.levels, -1, self.levels, table.shape[1] // self.levels)
            return blocks[low:high, :, low:high].sum((0, 2))

        gram, apart = part(self.gram), self.variances[:, low:high].sum(1)
        power = self.gram.diagonal().reshape(self.levels, -1)[low:high].sum(0)
        variances = gram.diagonal() * apart / power.clamp_min(1e-300)
        return Responses(gram, part(self.cross), part(self.fine), variances[:, None])

    def error(self, weights: Tensor) -> float:
        """First-order mean squared error of a plan with these weights, (N, L + 1) with the base in front."""
        w = weights[:, 1:].T.reshape(-1)
        return float(w @ self.gram @ w - 2 * (w @ self.target) + self.fine.sum())

    def due(self) -> Tensor:
        """Covariance of each response with the sum of all up to the end of each step, (N, N); one level."""
        ends = self.cross.shape[1] // self.steps
        return self.cross.cumsum(1)[:, ends - 1 :: ends]

    def gain(self) -> Tensor:
        """Response per unit of correction, g(n) = sqrt(K(n, n) / E|D(n)|^2), (N,); one level."""
        return (self.gram.diagonal() / self.variances[:, 0].clamp_min(1e-300)).clamp_min(1e-300).sqrt()
