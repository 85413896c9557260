r"""Responses: what corrections at the steps of a plan do to the final state, beside what they stand for.

R_k(m) is the response of the final state to the correction D_k at candidate step m. A plan on every c-th candidate step
has steps c times as large, so that a correction there has the response s(n) R_k(c n), s the ratio of the step
coefficients, but it stands for all candidate steps between:

    y - x = sum_{k,n} w_k(n) s(n) R_k(c n) - sum_{k,m} R_k(m).

Where the top level is integrated by a multistep method, F(m) = sum_j a_j(m) f^K(m - j), step m adds each correction's
earlier values too. A correction from step h used at step m has the response (g(m) / g(h)) R(h), g its gain, so that the
last sum, what corrections are to amount to, becomes

    sum_{k,m} sum_j a_j(m) g_k(m) / g_k(m - j) R_k(m - j).

References:
    docs/theory; O'Hagan, "Bayes-Hermite quadrature", J. Stat. Plan. Inference 29, 1991.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from multilevel_sde.pilots.allocation import shrink

__all__ = ["SHRINKAGE", "Responses"]

SHRINKAGE = 0.05


@dataclass(frozen=True)
class Responses:
    """Inner products of responses, mean over samples and numbers; rows run over level k and step n, index k N + n.

    Attributes:
        gram: Of the plan's own responses, (L N, L N).
        cross: Of the plan's with what the top level adds at all candidate steps, (L N, L M).
        fine: Of what the top level adds at all candidate steps, (L M, L M).
        variances: E|D_k(n)|^2 at the plan's steps, (N, L).
    """

    gram: Tensor
    cross: Tensor
    fine: Tensor
    variances: Tensor

    @classmethod
    def measured(
        cls,
        gram: Tensor,
        coefficients: Tensor,
        variances: Tensor,
        stride: int = 1,
        multistep: Tensor | None = None,
        *,
        shrinkage: float = SHRINKAGE,
    ) -> Responses:
        """Return those of a plan on every `stride`-th candidate step.

        Arguments:
            gram: Of the candidate steps, (L M, L M).
            coefficients: The step's coefficient of the estimate at every candidate, (M,); that of a larger step is
                taken as the sum.
            variances: (M, L).
            stride: Candidate steps per step of the plan, a divisor of M.
            multistep: Coefficients (M, order) of the multistep method with which the top level was integrated; by
                default Euler's.
            shrinkage: How much of the off-diagonal is not trusted: plans made without would lean on accidents of a few
                samples. It adds errors that are not there, so predictions are made with 0.
        """
        candidates, levels = variances.shape
        own = shrink(gram, shrinkage)
        share = (coefficients.reshape(-1, stride).sum(1) / coefficients[::stride]).repeat(levels)
        rows = torch.arange(levels * candidates).reshape(levels, candidates)[:, ::stride].reshape(-1)
        cross = own[rows] * share[:, None]
        plan = cross[:, rows] * share
        if multistep is None:
            return cls(plan, cross, own, variances[::stride])
        gains = _gain(gram.diagonal().reshape(levels, -1), variances.T)
        added = torch.block_diag(*[_additions(multistep, gain) for gain in gains])
        return cls(plan, cross @ added.T, added @ own @ added.T, variances[::stride])

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
        """Covariance of each of the plan's responses with all that the top level adds, (L N,)."""
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
        """Covariance of each response with what the top level added up to the end of each step, (N, N); one level."""
        ends = self.cross.shape[1] // self.steps
        return self.cross.cumsum(1)[:, ends - 1 :: ends]

    def gain(self) -> Tensor:
        """Response per unit of correction, g(n) = sqrt(K(n, n) / E|D(n)|^2), (N,); one level."""
        return _gain(self.gram.diagonal(), self.variances[:, 0])


def _gain(power: Tensor, variances: Tensor) -> Tensor:
    return (power / variances.clamp_min(1e-300)).clamp_min(1e-300).sqrt()


def _additions(multistep: Tensor, gain: Tensor) -> Tensor:
    """A, (M, M): the method adds sum_m A[n, m] R(m) at step n, A[n, n - j] = a_j(n) g(n) / g(n - j)."""
    steps = len(gain)
    table = torch.zeros(steps, steps, dtype=torch.float64)
    for j in range(min(steps, multistep.shape[1])):
        ahead = torch.arange(j, steps)
        table[ahead, ahead - j] = multistep[j:, j] * gain[j:] / gain[: steps - j]
    return table
