"""Error against cost of greedily made plans, for one choice of levels and steps."""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from multilevel_sde.allocate import Allocation, allocate, shrink
from multilevel_sde.plan import Plan
from multilevel_sde.results import PilotPlan

if TYPE_CHECKING:
    from multilevel_sde.error_model import Pilot

__all__ = ["SHRINKAGE", "Curve", "adjacent_needs", "first_order_error", "plan_of"]

SHRINKAGE = 0.05


class Curve:
    """Error against cost for one choice of levels and steps: one greedy run, cut where a budget ends."""

    def __init__(self, pilot: Pilot, levels: tuple[int, ...], steps: int):
        self.pilot, self.levels, self.steps = pilot, levels, steps
        self.base_cost = steps * pilot.costs[levels[0]]

    @cached_property
    def allocation(self) -> Allocation:
        """The greedy picks up to the cost of the top level at every step."""
        gram = self.pilot.gram_for(self.steps)
        blocks = gram.reshape(self.pilot.levels - 1, self.steps, self.pilot.levels - 1, self.steps)
        merged = [blocks[low:high, :, low:high].sum((0, 2)) for low, high in pairwise(self.levels)]
        needs, prices = adjacent_needs([self.pilot.costs[level] for level in self.levels], self.steps)
        total = self.steps * self.pilot.costs[-1] - self.base_cost
        return allocate(shrink(torch.block_diag(*merged), SHRINKAGE), needs, prices, total)

    def estimate(self, budget: float) -> float:
        """The predicted error at a budget, without correlations between levels: cheap, for choosing among curves."""
        count = self.allocation.count_within(budget - self.base_cost)
        return self.pilot.prediction(
            self.allocation.errors[count], self.steps, torch.zeros(self.pilot.levels, dtype=torch.float64)
        ).mse

    def within(self, budget: float) -> PilotPlan:
        """The best plan that costs at most the budget, which must be the base cost or more."""
        pilot = self.pilot
        count = self.allocation.count_within(budget - self.base_cost)
        few = plan_of(self.allocation.weights(count), self.steps, len(self.levels))
        weights = torch.zeros(self.steps, pilot.levels, dtype=torch.float64)
        weights[:, : self.levels[0] + 1] = 1.0
        for place, (low, high) in enumerate(pairwise(self.levels)):
            weights[:, low + 1 : high + 1] = few.weights[:, place + 1 : place + 2]
        plan = pilot.track(Plan(weights != 0, weights))
        stride = pilot.steps // self.steps
        predicted = pilot.prediction(pilot.first_order(plan), self.steps, plan.evaluations.double())
        return PilotPlan(plan, pilot.times[::stride].clone(), self.levels, predicted)


def adjacent_needs(costs: tuple[float, ...] | list[float], steps: int) -> tuple[Tensor, Tensor]:
    """What observing D_k(n) takes: networks k and k - 1 at step n, the lowest being evaluated anyway.

    Returns:
        needs, int64 ((K - 1) M, 2), and the prices of the K M evaluations, index k M + n.
    """
    levels = len(costs)
    prices = torch.tensor(costs, dtype=torch.float64)[:, None].repeat(1, steps)
    prices[0] = 0.0
    index = torch.arange(levels * steps).reshape(levels, steps)
    return torch.stack([index[1:], index[:-1]], dim=-1).reshape(-1, 2), prices.reshape(-1)


def first_order_error(gram: Tensor, weights: Tensor) -> float:
    """(w - 1)' G (w - 1) for weights (N, K), index k M + n; steps that share a response share their weights."""
    levels = weights.shape[1] - 1
    shared = weights[:, 1:].reshape(len(gram) // levels, -1, levels).mean(1)
    left_out = shared.T.reshape(-1) - 1
    return float(left_out @ gram @ left_out)


def plan_of(weights: Tensor, steps: int, levels: int) -> Plan:
    """The plan with these weights on the corrections, index k M + n, and the lowest level at every step."""
    table = torch.ones(steps, levels, dtype=torch.float64)
    table[:, 1:] = weights.reshape(levels - 1, steps).T
    return Plan(table != 0, table)
