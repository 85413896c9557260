r"""Where to spend a budget: hits and weights that minimise the first-order error of a plan.

To first order the error of a multilevel path against the path of f^K is linear in what the plan leaves out. Let R_k(m)
be the response of the final state to adding the correction D_k = f^k - f^{k-1} at step m with the step's own weight, as
vectors over samples and dimensions, and w_k(m) the weight that the plan gives it. Then

    y - x = sum_{k,m} (w_k(m) - 1) R_k(m),        MSE = E||y - x||^2 / dim = (w - 1)' G (w - 1),

with the Gram matrix G of the responses. This covers every draw. For given hits the best weights are the projection of
all responses on those observed, w_H = G_HH^{-1} G_H. 1 (quadrature with a measured covariance); hits are chosen one by
one, each the one that lowers the posterior variance most per unit of cost, as in Bayesian quadrature. The picks for a
small budget are the first picks for a larger one, so one run gives the whole curve.

References:
    O'Hagan, "Bayes-Hermite quadrature", J. Stat. Plan. Inference 29, 1991; docs/theory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Allocation", "allocate", "shrink"]


def shrink(gram: Tensor, amount: float) -> Tensor:
    """Return (1 - amount) G + amount diag(G): a Gram matrix from few samples trusts its off-diagonal less.

    Example:
        >>> shrink(torch.tensor([[1.0, 0.5], [0.5, 1.0]]), 0.2)
        tensor([[1.0000, 0.4000],
                [0.4000, 1.0000]])
    """
    return (1 - amount) * gram + amount * torch.diag(torch.diag(gram))


@dataclass(frozen=True)
class Allocation:
    """Greedy picks in order.

    Attributes:
        picks: Index of the response picked at each turn.
        costs: Cumulative cost after each turn.
        errors: Predicted mean squared error before the first turn and after each, by the matrix it was made with.
        gram: That matrix.
        target: Covariance of each response with what all are to amount to.
    """

    picks: tuple[int, ...]
    costs: tuple[float, ...]
    errors: tuple[float, ...]
    gram: Tensor
    target: Tensor

    def count_within(self, budget: float) -> int:
        """How many picks cost at most the budget."""
        return sum(cost <= budget * (1 + 1e-9) for cost in self.costs)

    def weights(self, count: int) -> Tensor:
        """Best weights of the first `count` picks, zero elsewhere, float64 (n,)."""
        weights = torch.zeros(len(self.gram), dtype=torch.float64)
        if count:
            hits = torch.tensor(self.picks[:count])
            right = self.target[hits][:, None]
            weights[hits] = torch.linalg.lstsq(self.gram[hits][:, hits], right, driver="gelsd").solution[:, 0]
        return weights


def allocate(
    gram: Tensor,
    needs: Tensor,
    prices: Tensor,
    budget: float,
    *,
    target: Tensor | None = None,
    total: float | None = None,
) -> Allocation:
    """Pick responses greedily by variance reduction per cost until the budget is spent.

    Arguments:
        gram: Gram matrix of the responses, (n, n), positive semi-definite.
        needs: What must be evaluated to observe each response, int64 (n, 2), indices into `prices`; what one pick
            paid for is free for the others.
        prices: Cost of each evaluation, (q,), not negative.
        budget: Total cost of the picks.
        target: Covariance of each response with the sum that the picks stand for, (n,); by default the sum of all n.
        total: Mean square of that sum.

    Returns:
        An :class:`Allocation`; it ends early once nothing is left to explain.

    Example:
        >>> times = torch.linspace(0, 1, 9, dtype=torch.float64)
        >>> gram = torch.exp(-(times[:, None] - times).square())
        >>> needs = torch.arange(9)[:, None].expand(9, 2)
        >>> allocate(gram, needs, torch.ones(9), budget=1.0).picks  # the middle first
        (4,)
    """
    gram = gram.double()
    target = gram.sum(1) if target is None else target.double()
    due = prices.double().clone()
    same = needs[:, 0] == needs[:, 1]
    variance, sums = torch.diag(gram).clone(), target.clone()  # of the posterior: diagonal, covariance with the sum
    factor = torch.empty(64, len(gram), dtype=torch.float64)  # posterior = gram - factor' factor
    floor = 1e-12 * float(variance.max().clamp_min(torch.finfo(torch.float64).tiny))
    spent, picks, costs, errors = 0.0, [], [], [float(sums.sum()) if total is None else total]
    open_ = torch.ones(len(gram), dtype=torch.bool)
    while bool(open_.any()):
        price = due[needs[:, 0]] + torch.where(same, 0.0, due[needs[:, 1]])
        open_ &= (variance > floor) & (spent + price <= budget * (1 + 1e-9))
        gain = torch.where(open_, sums.square() / variance.clamp_min(floor), 0.0)
        best = int((gain / price.clamp_min(1e-9 * float(prices.max()))).argmax())
        if gain[best] <= 1e-9 * errors[0]:
            break
        if len(picks) == len(factor):
            factor = torch.cat([factor, torch.empty_like(factor)])
        known = factor[: len(picks)]
        column = (gram[best] - known[:, best] @ known) / variance[best].sqrt()
        factor[len(picks)] = column
        variance -= column.square()
        explained = float(sums[best] / column[best])  # column[best] is its posterior deviation
        sums -= column * explained
        spent += float(price[best])
        due[needs[best]] = 0.0
        open_[best] = False
        picks.append(best)
        costs.append(spent)
        errors.append(max(0.0, errors[-1] - explained**2))
    return Allocation(tuple(picks), tuple(costs), tuple(errors), gram, target)
