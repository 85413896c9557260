"""Error against cost of greedily made plans, for one choice of levels and steps."""

from __future__ import annotations

import math
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from multilevel_sde.pilots.allocation import Allocation, allocate
from multilevel_sde.pilots.answers import Form, PilotPlan, Prediction
from multilevel_sde.pilots.error_model import ErrorModel
from multilevel_sde.pilots.grids import refined
from multilevel_sde.pilots.responses import Responses
from multilevel_sde.plans.memory import multistep
from multilevel_sde.plans.plan import Plan

__all__ = ["Alone", "Curve", "adjacent_needs", "allocate_levels", "plan_of"]

_AS_GOOD = 0.02  # errors that differ by less are alike, and the cheaper plan is taken


class Curve:
    """Error against cost for one choice of levels and steps: one greedy run, cut where a budget ends."""

    def __init__(self, pilot: ErrorModel, levels: tuple[int, ...], steps: int):
        self.pilot, self.levels, self.steps = pilot, levels, steps
        self.base_cost = steps * pilot.costs[levels[0]]
        self._made: dict[tuple[int, bool], tuple[float, PilotPlan]] = {}

    @cached_property
    def allocation(self) -> Allocation:
        """The greedy picks up to the cost of the top level at every step."""
        costs = [self.pilot.costs[level] for level in self.levels]
        parts = [self.pilot.responses(self.steps).merged(low, high) for low, high in pairwise(self.levels)]
        return allocate_levels(parts, costs, self.steps * self.pilot.costs[-1] - self.base_cost)

    def estimate(self, budget: float, memory: bool = True) -> float:
        """What the plan at a budget is ranked by, without correlations between levels: cheap, for choosing curves."""
        promised, form = (
            self.allocation.errors[self.allocation.count_within(budget - self.base_cost)],
            self.form(memory),
        )
        common = self.pilot.common_typical(promised, self.steps, form, "promised")
        return math.sqrt(self.pilot.expected(promised, self.steps, form) * common)

    def form(self, memory: bool) -> Form:
        """The form that its plans take."""
        if not memory:
            return Form.PLAIN
        other = Form.BASE if self.pilot.multistep else Form.PLAIN
        return self.pilot.preferred(self.steps, [Form.TRACKED, other])

    def ranked(self, budget: float, memory: bool = True) -> tuple[float, PilotPlan]:
        """That plan after what plans are chosen by: the error by the runs on their own grid and on all, in equal parts.

        A grid has few runs; the least of several predictions that scatter would be the one that was lucky.
        """
        count = self.allocation.count_within(budget - self.base_cost)
        if (count, memory) not in self._made:
            self._made[count, memory] = self._ranked(count, memory)
        return self._made[count, memory]

    def _ranked(self, count: int, memory: bool) -> tuple[float, PilotPlan]:
        few = plan_of(self.allocation.weights(count), self.steps, len(self.levels))
        weights = torch.ones(self.steps, self.pilot.levels, dtype=torch.float64)
        for place, low in enumerate(self.levels[:-1], 1):
            weights[:, low + 1 :] = few.weights[:, [place]]
        plan, pilot, form = Plan(weights != 0, weights), self.pilot, self.form(memory)
        stride = pilot.rows // self.steps
        if form is Form.TRACKED:
            plan = pilot.track(plan)
        elif form is Form.BASE:
            plan = multistep(plan, pilot.multistep[self.steps])
        first_order = pilot.first_order(plan)
        predicted = pilot.prediction(first_order, self.steps, plan.evaluations.double(), form)
        rank = math.sqrt(predicted.mse * pilot.common_typical(first_order, self.steps, form))
        return rank, PilotPlan(plan, pilot.times[::stride].clone(), self.levels, predicted, form)


class Alone:
    """One level at every step, in as many steps as a budget pays and the pilot has measured.

    Arguments:
        pilot: The measurements.
        level: From 0.
        multistep: By the pilot's multistep method, else one step at a time.
        elsewhere: On the pilot's other grids.
    """

    def __init__(self, pilot: ErrorModel, level: int, multistep: bool, elsewhere: bool = False):
        self.pilot, self.level, self.multistep, self.elsewhere = pilot, level, multistep, elsewhere
        self.bases = pilot.other_multistep if elsewhere else pilot.multistep
        known = self._known
        self.least, self.most = (min(known), max(known)) if known else (1, 0)
        self.levels = (level,)

    @property
    def price(self) -> float:
        """What a step costs."""
        return self.pilot.costs[self.level] * self.pilot.rows / self.pilot.steps

    @property
    def base_cost(self) -> float:
        """The least that it costs."""
        return self.least * self.price

    def estimate(self, budget: float, memory: bool = True) -> float:
        """What the plan at a budget is ranked by; infinite where plans may not remember and this one does."""
        if self.multistep and not memory:
            return math.inf
        return self._rank(self._predicted(self._steps(budget)))

    def ranked(self, budget: float, memory: bool = True) -> tuple[float, PilotPlan]:
        """The plan after what plans are chosen by: its mean and its typical error, in equal parts."""
        plan = self.within(budget, memory)
        return self._rank(plan.predicted), plan

    @staticmethod
    def _rank(predicted: Prediction) -> float:
        return math.sqrt(predicted.mse * predicted.typical)

    def within(self, budget: float, memory: bool = True) -> PilotPlan:
        """The plan that costs at most the budget, which must pay the fewest steps."""
        steps = self._steps(budget)
        pilot = self.pilot
        grid = pilot.other_grids[steps] if self.elsewhere else refined(pilot.fine_times, pilot.times, steps)
        weights = torch.zeros(steps * self.pilot.rows // self.pilot.steps, self.pilot.levels, dtype=torch.float64)
        weights[:, : self.level + 1] = 1.0
        plan = Plan(weights > 0, weights, truncated=self.level < self.pilot.levels - 1)
        plan = multistep(plan, self.bases[steps]) if self.multistep else plan
        return PilotPlan(plan, grid, self.levels, self._predicted(steps), Form.ALONE)

    def cost_of(self, mse: float) -> float:
        """Cost at which it reaches a mean squared error, infinite where it does not."""
        known = {n: self._mse(n) for n in self._known}
        before: tuple[int, float] | None = None
        for n, error in known.items():
            if error <= mse:
                if before is None or error <= 0:
                    return n * self.price
                m, above = before
                part = math.log(above / mse) / math.log(above / error)
                return self.price * math.exp(math.log(m) + part * math.log(n / m))
            before = n, error
        return math.inf

    def _steps(self, budget: float) -> int:
        """The fewest steps that err about as little as all that the budget pays."""
        most = int(min(self.most, budget / self.price * (1 + 1e-9)))
        if self.multistep:
            choices = sorted(n for n in self.bases if self.least <= n <= most) or [self.least]
        else:
            choices = [*(n for n in self._known if n < most), max(self.least, most)]
        least = self._mse(choices[-1])
        return next(n for n in choices if self._mse(n) <= (1 + _AS_GOOD) * least)

    def _mse(self, steps: int) -> float:
        return self.pilot.single_mean(self._typical(steps), self.level, self.multistep, self.elsewhere)

    def _typical(self, steps: int) -> float:
        return self.pilot.single_error(self.level, steps, self.multistep, self.elsewhere)

    @property
    def _known(self) -> dict[int, float]:
        return self.pilot.measured_alone(self.level, self.multistep, self.elsewhere)

    def _predicted(self, steps: int) -> Prediction:
        pilot = self.pilot
        evaluations = torch.zeros(pilot.levels, dtype=torch.float64)
        evaluations[self.level] = steps * pilot.rows / pilot.steps
        mse, typical = self._mse(steps), self._typical(steps)
        top = Alone(pilot, pilot.levels - 1, self.multistep, self.elsewhere)
        step_mse = min(mse, top._mse(steps))
        return pilot.expectation(mse - step_mse, step_mse, typical, evaluations)


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
