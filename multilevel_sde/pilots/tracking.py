r"""Tracking: at every step, add what the corrections so far are now known to amount to.

An optimal quadrature adds each correction at its hit, with the weight of all the steps that it stands for. That is an
impulse: between hits the path is far from that of f^K, and the next correction is evaluated at the wrong state, an
error of second order which for ODEs is larger than the first. The same total can be spent as it falls due. Let R(m) be
the response of the final state to the correction at step m, K = E<R, R> their Gram matrix and H_n the hits up to step
n. The best estimate of what all corrections up to step n amount to is linear in the known ones,

    E[ sum_{m <= n} R(m) | R(h), h in H_n ] = sum_{h in H_n} u_n(h) R(h),    u_n = K[H_n, H_n]^{-1} K[H_n, :n+1] 1,

and a tracking plan adds the change u_n - u_{n-1} at step n: between hits a prediction from the stored corrections, at a
hit also what the predictions before it missed. The sum over n is the quadrature, so that the first-order error is the
same. A correction D(h) that is stored at step h and used at step n has the response (g(n) / g(h)) R(h), with the gain
g(n) = sqrt(K(n, n) / E|D(n)|^2).

References:
    O'Hagan, "Bayes-Hermite quadrature", J. Stat. Plan. Inference 29, 1991; docs/theory.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from multilevel_sde.pilots.responses import Responses
from multilevel_sde.plans.memory import base_level, combined, corrections, evaluated_levels
from multilevel_sde.plans.plan import Plan

__all__ = ["predictor", "total_weights", "track", "tracking_table"]

_RIDGE = 1e-9  # of the diagonal, for hits whose responses coincide


def predictor(part: Responses) -> Tensor:
    """Return c[n, h], (N, N): the best linear prediction of D(n) from D(h) is c[n, h] D(h)."""
    gain = part.gain()
    return part.gram / part.gram.diagonal().clamp_min(1e-300) * gain / gain[:, None]


def tracking_table(part: Responses, hits: Sequence[int]) -> Tensor:
    """Return T, lower triangular (N, N): step n adds T[n, h] D(h) for the hits h up to n.

    Example:
        >>> times = torch.linspace(0, 1, 5, dtype=torch.float64)
        >>> gram, ones = torch.exp(-(times[:, None] - times).square()), torch.ones(5, dtype=torch.float64)
        >>> table = tracking_table(Responses.measured(gram, ones, ones[:, None]), [1, 3])
        >>> table[0].sum().item(), table[1, 1].item() > 1, table[2, 1].item() < 1  # late, made up for, predicted
        (0.0, True, True)
    """
    steps, due, gain = part.steps, part.due(), part.gain()
    order = sorted(set(hits))
    totals = torch.zeros(steps, steps, dtype=torch.float64)  # row n: u_n
    if order:
        matrix = part.gram[order][:, order]
        # Those known at a step are the first of all, and so is their factor.
        factor = torch.linalg.cholesky(matrix + _RIDGE * torch.diag(matrix.diagonal().clamp_min(1e-300)))
        for count, (first, last) in enumerate(pairwise([*order, steps]), 1):
            known = torch.tensor(order[:count])
            totals[first:last, known] = torch.cholesky_solve(due[known, first:last], factor[:count, :count]).T
    table = totals.diff(dim=0, prepend=torch.zeros(1, steps, dtype=torch.float64))
    return table * gain / gain[:, None]


def track(plan: Plan, responses: Responses, base: Tensor | None = None) -> Plan:
    """Return the plan with the same evaluations that tracks the corrections, its base integrated by a multistep method.

    Arguments:
        plan: Says where each correction is evaluated; its weights on the corrections are not used.
        responses: Those of its steps.
        base: Multistep coefficients (N, order); by default the base is integrated as it is.
    """
    coefficients = torch.ones(plan.steps, 1, dtype=torch.float64) if base is None else base
    tables = {(low, high): tracking_table(responses.merged(low, high), hits) for (low, high), hits in corrections(plan)}
    return combined(base_level(plan), coefficients, tables, plan.levels, truncated=plan.truncated)


def total_weights(plan: Plan, responses: Responses) -> Tensor:
    """Return what each correction is worth in all, at its own step and wherever it is recalled, (N, K).

    A recalled D(h) at step n counts g(n) / g(h) times; the lowest level, which nothing corrects, counts 1.
    """
    weights = plan.weights
    if plan.recall is None:
        return weights
    weights[:, 0] = 1.0
    base = evaluated_levels(plan)[0]
    for low, high in [*pairwise(range(base + 1)), *(pair for pair, _ in corrections(plan))]:
        gain = responses.merged(low, high).gain()
        added = torch.zeros(plan.steps, dtype=torch.float64)
        for n, level, source, value in plan.recall.entries:
            if level >= high:
                added[source] += value * float(gain[n] / gain[source])
        weights[:, low + 1 : high + 1] += added[:, None]
    return weights
