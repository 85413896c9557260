r"""One level at each step: the searched per-step choice of a single-network sampler that may change its network.

With probabilities of 0 and 1 only, step n uses f^{l(n)} and the telescoping sum is cut there. To first order the error
is

    e = || sum_{n} sum_{k > l(n)} R_k(n) ||^2,

and levels are raised greedily, step by step, where e falls most per cost. It is biased on purpose: what no step
evaluates is never corrected. :class:`multilevel_sde.SwitchSchedule` is the special case of one change in time.

References:
    Liu et al. 2023, OMS-DPM (arXiv 2306.08860); Pan et al. 2024, T-Stitch (arXiv 2402.14167).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from multilevel_sde.pilots.responses import Responses

__all__ = ["choose_levels"]


def choose_levels(responses: Responses, costs: Sequence[float], budget: float) -> Tensor:
    """Return for each step the level to use, int64 (N,), within a budget that pays the lowest level everywhere.

    Arguments:
        responses: Those of the plan's steps.
        costs: Of the levels.
        budget: Cost of a trajectory.

    Example:
        >>> gram = torch.diag(torch.tensor([1.0, 4.0, 2.0], dtype=torch.float64))
        >>> responses = Responses(gram, gram, gram, torch.ones(3, 1))
        >>> choose_levels(responses, [1.0, 10.0], budget=12.0)  # pays the top level once
        tensor([0, 1, 0])
    """
    steps, count = responses.steps, responses.levels
    gram = responses.gram.reshape(count, steps, count, steps)
    own = torch.stack([gram[:, n, :, n] for n in range(steps)])  # (N, L, L)
    gradient = responses.target.reshape(count, steps).clone()  # covariance with what is still left out
    chosen = torch.zeros(steps, dtype=torch.int64)
    left = budget - steps * costs[0]
    while True:
        best, rate = None, 0.0
        for n in range(steps):
            for level in range(int(chosen[n]) + 1, count + 1):
                price = costs[level] - costs[int(chosen[n])]
                part = slice(int(chosen[n]), level)
                gain = float(2 * gradient[part, n].sum() - own[n, part, part].sum())
                if price <= left * (1 + 1e-9) and gain > rate * max(price, 1e-300):
                    best, rate = (n, level, price), gain / max(price, 1e-300)
        if best is None:
            return chosen
        n, level, price = best
        for k in range(int(chosen[n]), level):
            gradient -= gram[:, :, k, n]
        chosen[n], left = level, left - price
