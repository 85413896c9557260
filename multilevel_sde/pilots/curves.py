"""Error against cost of greedily made plans, for one choice of levels and steps."""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from multilevel_sde.pilots.allocation import Allocation, allocate
from multilevel_sde.pilots.answers import PilotPlan
from multilevel_sde.pilots.error_model import ErrorModel
from multilevel_sde.pilots.responses import Responses
from multilevel_sde.plans.memory import multistep
from multilevel_sde.plans.plan import Plan
from multilevel_sde.times import thinned

__all__ = ["Curve", "TopAlone", "adjacent_needs", "allocate_levels", "plan_of"]


class Curve:
    """Error against cost for one choice of levels and steps: one greedy run, cut where a budget ends."""

    def __init__(self, pilot: ErrorModel, levels: tuple[int, ...], steps: int):
        self.pilot, self.levels, self.steps = pilot, levels, steps
        self.base_cost = steps * pilot.costs[levels[0]]

    @cached_property
    def allocation(self) -> Allocation:
        """The greedy picks up to the cost of the top level at every step."""
        costs = [self.pilot.costs[level] for level in self.levels]
        parts = [self.pilot.responses(self.steps).merged(low, high) for low, high in pairwise(self.levels)]
        return allocate_levels(parts, costs, self.steps * self.pilot.costs[-1] - self.base_cost)

    def estimate(self, budget: float) -> float:
        """The predicted error at a budget, without correlations between levels: cheap, for choosing among curves."""
        count = self.allocation.count_within(budget - self.base_cost)
        pilot = self.pilot
        return pilot.tail * pilot.expected(self.allocation.errors[count]) + pilot.step_error(self.steps)

    def within(self, budget: float, memory: bool = True) -> PilotPlan:
        """The best plan that costs at most the budget, which must be the base cost or more."""
        pilot = self.pilot
        count = self.allocation.count_within(budget - self.base_cost)
        few = plan_of(self.allocation.weights(count), self.steps, len(self.levels))
        weights = torch.zeros(self.steps, pilot.levels, dtype=torch.float64)
        weights[:, : self.levels[0] + 1] = 1.0
        for place, (low, high) in enumerate(pairwise(self.levels)):
            weights[:, low + 1 : high + 1] = few.weights[:, place + 1 : place + 2]
        plan = Plan(weights != 0, weights)
        plan = pilot.remembering(plan) if memory else plan
        stride = pilot.steps // self.steps
        predicted = pilot.prediction(pilot.first_order(plan), self.steps, plan.evaluations.double())
        return PilotPlan(plan, pilot.times[::stride].clone(), self.levels, predicted)


class TopAlone:
    """The top level alone, by the pilot's method, in as many steps as a budget pays."""

    def __init__(self, pilot: ErrorModel):
        self.pilot = pilot
        self.base_cost = min(pilot.em_errors) * pilot.costs[-1]  # fewer steps were not measured

    def estimate(self, budget: float) -> float:
        """The predicted error at a budget."""
        return self.pilot.step_error(self._steps(budget))

    def within(self, budget: float, memory: bool = True) -> PilotPlan:
        """The plan that costs at most the budget, which must pay one evaluation."""
        pilot, steps = self.pilot, self._steps(budget)
        weights = torch.ones(steps, pilot.levels, dtype=torch.float64)
        plan = Plan(weights > 0, weights)
        if memory and steps in pilot.multistep:
            plan = multistep(plan, pilot.multistep[steps])
        predicted = pilot.prediction(0.0, steps, plan.evaluations.double())
        return PilotPlan(plan, pilot.times[thinned(pilot.steps, steps)], (pilot.levels - 1,), predicted)

    def _steps(self, budget: float) -> int:
        return int(min(self.pilot.steps, budget / self.pilot.costs[-1] * (1 + 1e-9)))


def allocate_levels(parts: list[Responses], costs: list[float], budget: float) -> Allocation:
    """Allocate a budget for the corrections, each by itself: what they have in common, few samples do not show.

    Arguments:
        parts: The responses of the corrections between neighbouring levels.
        costs: Of the levels, one more than corrections.
        budget: Beside the cost of the lowest level at every step.
    """
    needs, prices = adjacent_needs(costs, parts[0].steps)
    gram = torch.block_diag(*[part.gram for part in parts])
    target, total = torch.cat([part.target for part in parts]), sum(float(part.fine.sum()) for part in parts)
    return allocate(gram, needs, prices, budget, target=target, total=total)


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


def plan_of(weights: Tensor, steps: int, levels: int) -> Plan:
    """The plan with these weights on the corrections, index k M + n, and the lowest level at every step."""
    table = torch.ones(steps, levels, dtype=torch.float64)
    table[:, 1:] = weights.reshape(levels - 1, steps).T
    return Plan(table != 0, table)
