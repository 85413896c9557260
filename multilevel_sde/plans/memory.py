r"""Plans that remember: multistep bases, held corrections, control variates.

Each function takes a plan and returns one with the same hits that uses what was evaluated there for longer. It costs
the same, except where the weights of two neighbouring levels are equal, so that the plan spares the lower one's
network, which the memory of a correction needs. Write D_i = f^{k_i} - f^{k_{i-1}} for the corrections between the
levels k_0 < k_1 < ... that the plan evaluates, and h_1 < h_2 < ... for the steps where it evaluates D_i.

- :func:`multistep` integrates the base f^{k_0} by a linear multistep method (Adams-Bashforth; DPM-Solver++ 2M, 3M),

      f^{k_0}(n)  ->  sum_j a_j(n) f^{k_0}(n - j),

  while the corrections, which come and go, stay out of the history.
- :func:`hold` uses the last correction until the next one (deterministic multirate), or extrapolates the last two.
- :func:`remember` draws only what the last correction does not predict (a control variate, unbiased),

      D_i  ->  c_i(n, h) D_i(h) + (B_i / p_i) (D_i - c_i(n, h) D_i(h)),   h the last hit before n.

- :meth:`multilevel_sde.Pilot.track` adds at every step the best estimate of the corrections given all hits so far.

References:
    Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", III.1; Lu et al. 2022, DPM-Solver++
    (arXiv 2211.01095); Giles, Acta Numerica 24, 2015, section 1.2 (control variates).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from multilevel_sde.arguments import as_tensor
from multilevel_sde.plans.drawing import check_probabilities
from multilevel_sde.plans.plan import Plan
from multilevel_sde.plans.recall import Recall

__all__ = [
    "as_coefficients",
    "base_level",
    "combined",
    "corrections",
    "evaluated_levels",
    "hold",
    "multistep",
    "remember",
]

_ROUNDING = 1e-12  # of coefficients


def evaluated_levels(plan: Plan) -> tuple[int, ...]:
    """Return the levels that a plan evaluates somewhere, lowest first."""
    return tuple(plan.needed.any(0).nonzero()[:, 0].tolist())


def base_level(plan: Plan) -> int:
    """Return the highest level up to which all weights are 1 at every step.

    Raises:
        ValueError: There is none, or the draws are per sample.
    """
    if plan.samples is not None:
        raise ValueError('"plan" has draws per sample; a memory needs one draw for the batch')
    ones = (plan.weights == 1).all(0).long().cumprod(0)
    if not ones[0]:
        raise ValueError('"plan" must have weight 1 on the lowest level at every step')
    return int(ones.sum()) - 1


def combined(
    level: int, base: Tensor, tables: dict[tuple[int, int], Tensor], levels: int, *, truncated: bool = False
) -> Plan:
    """Return the plan F(n) = sum_j base[n, j] f^b(n - j) + sum_i sum_{m <= n} table_i[n, m] D_i(m).

    Arguments:
        level: The base b.
        base: (N, order), its coefficients.
        tables: For each pair (low, high) of neighbouring evaluated levels, D_i = f^high - f^low, a lower triangular
            table (N, N).
        levels: K.
        truncated: See :class:`Plan`.
    """
    steps = len(base)
    weights = torch.zeros(steps, levels, dtype=torch.float64)
    weights[:, : level + 1] = base[:, :1]
    entries = [
        (n, level, n - j, float(base[n, j]))
        for j in range(1, base.shape[1])
        for n in range(j, steps)
        if base[n, j] != 0
    ]
    for (low, high), table in tables.items():
        weights[:, low + 1 : high + 1] = table.diagonal()[:, None]
        for n, m in table.tril(-1).nonzero().tolist():
            value = float(table[n, m])
            entries += [(n, high, m, value), (n, low, m, -value)]
    return Plan(weights != 0, weights, truncated=truncated, recall=Recall(entries))


def multistep(plan: Plan, coefficients: Tensor) -> Plan:
    """Integrate the base level of a plan by a multistep method: f^b(n) -> sum_j a[n, j] f^b(n - j).

    The base is the highest level that has weight 1 at every step, as have all below it; for :func:`em_plan` it is the
    top level, which gives the single-network multistep method.

    Arguments:
        plan: One draw for the batch, without stored values on the base.
        coefficients: a, float64 (N, order), rows with sum 1: `adams_bashforth_weights(times, order)` for Euler steps,
            `multilevel_diffusion.process.multistep.multistep_weights(...)` for those of diffusion models.

    Raises:
        ValueError: Another number of steps; rows whose sum is not 1, or that use values from before the first step; no
            base level (see :func:`base_level`).

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder, times = mls.Ladder([lambda y, t: -y], costs=[1.0]), torch.linspace(0.0, 1.0, 101)
        >>> plan = mls.multistep(mls.em_plan(ladder, times), mls.adams_bashforth_weights(times, 2))
        >>> y = mls.solve(ladder, torch.ones(1, dtype=torch.float64), times, plan).y
        >>> bool((y - torch.exp(torch.tensor(-1.0))).abs() < 1e-4)  # Euler: 2e-3
        True
    """
    base = base_level(plan)
    table = as_coefficients("coefficients", coefficients, plan.steps)
    weights = plan.weights
    weights[:, : base + 1] = table[:, :1]
    entries = [(n, base, n - j, float(table[n, j])) for j in range(1, table.shape[1]) for n in range(j, plan.steps)]
    return Plan(plan.hits, weights, truncated=plan.truncated, recall=_joined(plan, entries))


def as_coefficients(name: str, coefficients: Any, steps: int) -> Tensor:
    """Return the coefficients of a multistep method on so many steps, float64 (steps, order), after a check.

    Raises:
        TypeError: They are no numbers.
        ValueError: Another number of rows, rows whose sum is not 1, or values used from before the first step.

    Example:
        >>> as_coefficients("bases", [[1.5, -0.5]], 1)
        Traceback (most recent call last):
        ...
        ValueError: "bases" must be 0 where no value is known: row 0 has 1 of them, got coefficient 1 = -0.5
    """
    table = as_tensor(name, coefficients).detach().cpu().double()
    if table.dim() != 2 or len(table) != steps:
        raise ValueError(f'"{name}" must have shape ({steps}, order), got {tuple(table.shape)}')
    sums = table.sum(1)
    if not torch.allclose(sums, torch.ones(steps, dtype=torch.float64), atol=1e-9):
        worst = int((sums - 1).abs().nan_to_num(math.inf).argmax())
        raise ValueError(
            f'"{name}" must have rows with sum 1, as each step integrates a constant exactly; row {worst} has sum '
            f"{float(sums[worst]):.6g}"
        )
    if len(early := (table.triu(1).abs() > _ROUNDING).nonzero()):
        n, j = early[0].tolist()
        raise ValueError(
            f'"{name}" must be 0 where no value is known: row {n} has {n + 1} of them, got coefficient {j} = '
            f"{float(table[n, j]):g}"
        )
    return table


def hold(plan: Plan, times: Tensor, order: int = 1) -> Plan:
    """Use each correction until the next one: deterministic multirate, biased, with no randomness.

    Arguments:
        plan: Says where the corrections are evaluated; their weights are not used. Before the first hit of a
            correction it is left out.
        times: The grid, (N + 1,).
        order: 1 holds the last value; 2 extrapolates the last two linearly in time.

    Returns:
        A plan of order `order` in the distance of the hits for smooth drifts (and that of the base in its steps).

    Raises:
        ValueError: Another order or number of times; no base level.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder = mls.Ladder([lambda y, t: -y, lambda y, t: -torch.sin(y)], costs=[1.0, 8.0])
        >>> times = torch.linspace(0.0, 1.0, 9)
        >>> hits = torch.tensor([[True, n % 4 == 0] for n in range(8)])
        >>> held = mls.hold(mls.Plan(hits, hits.double()), times)
        >>> held.evaluations, mls.solve(ladder, torch.ones(1), times, held).stats.cost
        (tensor([8, 2]), 24.0)
    """
    if order not in (1, 2):
        raise ValueError(f'"order" must be 1 (hold) or 2 (extrapolate linearly), got {order}')
    grid = torch.as_tensor(times, dtype=torch.float64)
    if len(grid) != plan.steps + 1:
        raise ValueError(f'"times" must be the {plan.steps + 1} times of the plan, got {len(grid)}')
    base, tables = base_level(plan), {}
    for (low, high), hits in corrections(plan):
        table = torch.zeros(plan.steps, plan.steps, dtype=torch.float64)
        for place, first in enumerate(hits):
            following = hits[place + 1] if place + 1 < len(hits) else plan.steps
            table[first:following, first] = 1.0
            if order == 2 and place > 0:
                before = hits[place - 1]
                # The mean of the extrapolation over each step, that is its value at the middle.
                middle = (grid[first:following] + grid[first + 1 : following + 1]) / 2
                ahead = (middle - grid[first]) / (grid[first] - grid[before])
                table[first:following, first] += ahead
                table[first:following, before] = -ahead
        tables[low, high] = table
    ones = torch.ones(plan.steps, 1, dtype=torch.float64)
    return combined(base, ones, tables, plan.levels, truncated=plan.truncated)


def remember(plan: Plan, probabilities: Tensor, coefficient: Callable[[int, int, int], float]) -> Plan:
    r"""Draw only what the last correction does not predict: a control variate that leaves the estimate unbiased.

    Between two hits the last correction is used with the coefficient c; at a hit what was used is taken back,

        w_i(n) D_i(n) + c_i(n, h) (1 - B_i(n) / p_i(n)) D_i(h),    h the last hit before n.

    Given the past its mean is that of the plan, D_i(n), for independent draws; for systematic draws every estimate is
    unbiased over the random phase only.

    Arguments:
        plan: Drawn from the probabilities, one draw for the batch.
        probabilities: p, (N, K).
        coefficient: c(level, n, h) for the correction below that level: 1 is the plain stored correction, which does
            harm where it is stale; `pilot.memory()` gives the best linear prediction, whatever the space it is in.

    Raises:
        ValueError: Another number of steps or levels; weights that are not those of the probabilities.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> p = torch.tensor([1.0, 0.25]).expand(8, 2)
        >>> plan = mls.draw_plan(p, mls.systematic, generator=torch.Generator().manual_seed(0))
        >>> stored = mls.remember(plan, p, lambda level, n, h: 0.5)
        >>> plan.evaluations, stored.evaluations, [entry for entry in stored.recall.entries if entry[1] == 1][:2]
        (tensor([8, 2]), tensor([8, 2]), [(2, 1, 1, 0.5), (3, 1, 1, 0.5)])
    """
    base_level(plan)
    table = check_probabilities(probabilities, truncate=True)
    drawn = torch.where(plan.hits, 1 / table, 0.0) if table.shape == plan.weights.shape else table.new_zeros(0)
    if drawn.shape != plan.weights.shape or not torch.allclose(drawn, plan.weights):
        raise ValueError('"plan" must be drawn from "probabilities": its weights are not B / p')
    entries = []
    for (low, high), hits in corrections(plan):
        known = {n: h for h, until in pairwise([*hits, plan.steps - 1]) for n in range(h + 1, until + 1)}
        for n, h in known.items():
            value = coefficient(high, n, h) * (1 - float(plan.weights[n, high]))
            entries += [(n, high, h, value), (n, low, h, -value)]
    return Plan(plan.hits, plan.weights, truncated=plan.truncated, recall=_joined(plan, entries))


def corrections(plan: Plan) -> list[tuple[tuple[int, int], list[int]]]:
    """Return for neighbouring evaluated levels (low, high) the steps where their difference is hit."""
    pairs = pairwise(evaluated_levels(plan))
    return [((low, high), plan.hits[:, high].nonzero()[:, 0].tolist()) for low, high in pairs]


def _joined(plan: Plan, entries: Iterable[tuple[int, int, int, float]]) -> Recall:
    return Recall([*(plan.recall.entries if plan.recall is not None else ()), *entries])
