"""Class `Pilot`: the plans and the advice that follow from a trial run (:mod:`multilevel_sde.pilots.run_pilot`).

A plan is chosen among greedy allocations, one for each choice of levels and steps
(:mod:`multilevel_sde.pilots.curves`), by the error that the measurements predict
(:mod:`multilevel_sde.pilots.error_model`).
"""

from __future__ import annotations

import heapq
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, pairwise

import torch
from torch import Tensor

from multilevel_sde.arguments import as_number
from multilevel_sde.files import write_atomically
from multilevel_sde.ladder import Ladder
from multilevel_sde.pilots.answers import Advice, PilotPlan
from multilevel_sde.pilots.curves import Curve, TopAlone
from multilevel_sde.pilots.error_model import ErrorModel
from multilevel_sde.pilots.level_choice import choose_levels
from multilevel_sde.pilots.pilot_file import decode, encode
from multilevel_sde.pilots.tracking import predictor
from multilevel_sde.plans.draws import Draw, independent, systematic
from multilevel_sde.plans.plan import Plan
from multilevel_sde.plans.schedules import scale_to_budget

__all__ = ["Pilot"]

_ALIKE, _CHEAPER = 0.05, 0.8  # predicted errors that differ by less are alike; what saving decides between them


@dataclass(frozen=True)
class Pilot(ErrorModel):
    """The measurements of :func:`multilevel_sde.pilot`, with the plans and the advice that follow from them.

    Its attributes are those of :class:`~multilevel_sde.pilots.error_model.ErrorModel`.
    """

    @property
    def least_budget(self) -> float:
        """The lowest budget of a plan: the cheapest level on the coarsest of its grids."""
        return min(curve.base_cost for curve in self._curves)

    def plan(self, *, budget: float | None = None, target_mse: float | None = None, memory: bool = True) -> PilotPlan:
        """Return the deterministic plan with greedily chosen hits and optimal weights.

        Of plans that are expected to err as much, to 5%, the cheapest is taken if it saves a fifth of the best one's
        cost. The levels (any that contain the top one) and the number of steps (M; where coarser grids were measured,
        M/2 and M/4, and for the top level alone any) are chosen too.

        Arguments:
            budget: Cost of one trajectory in the ladder's unit.
            target_mse: Mean squared error to reach, instead of a budget.
            memory: Use a multistep base where the pilot was made with one, and track the corrections (:meth:`track`)
                where that came out better in the pilot's runs. Without it each is added at once and nothing is
                recalled, as loops other than :func:`multilevel_sde.solve` need it.

        Raises:
            ValueError: Neither or both; a budget below what the cheapest plan costs, or a target that no budget
                reaches (the message says what is reachable).
        """
        if (budget is None) == (target_mse is None):
            raise ValueError(f'give exactly one of "budget" and "target_mse", got {budget} and {target_mse}')
        if target_mse is not None:
            return self._plan_for(target_mse, memory)
        assert budget is not None
        return _thrifty(self.plans(budget=budget, memory=memory))

    def plans(self, *, budget: float, count: int = 8, memory: bool = True) -> list[PilotPlan]:
        """Return the best plans of `count` choices of levels and steps, the best first: candidates for a fit.

        Raises:
            ValueError: A budget below what the cheapest plan costs.
        """
        budget = as_number("budget", budget)
        affordable = [curve for curve in self._curves if curve.base_cost <= budget * (1 + 1e-9)]
        if not affordable:
            raise ValueError(f'"budget" must be at least {self.least_budget:.6g} {self.unit}, got {budget}')
        likely = heapq.nsmallest(count, affordable, key=lambda curve: curve.estimate(budget))
        return sorted((curve.within(budget, memory) for curve in likely), key=lambda plan: plan.predicted.mse)

    def _plan_for(self, target: float, memory: bool) -> PilotPlan:
        target = as_number("target_mse", target)
        ceiling = self.steps * self.costs[-1]
        if not target > 0 or self.plan(budget=ceiling).predicted.mse > target:
            raise ValueError(
                f'"target_mse" is {target}, the best reachable with {self.steps} candidate steps is '
                f"{self.plan(budget=ceiling).predicted.mse:.3g}; run a pilot with more candidates"
            )
        low, high = self.least_budget, ceiling
        for _ in range(24):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if self.plan(budget=middle).predicted.mse <= target else (middle, high)
        return self.plan(budget=high, memory=memory)

    @cached_property
    def _curves(self) -> list[Curve | TopAlone]:
        subsets = [
            (*chosen, self.levels - 1)
            for size in range(1, self.levels)
            for chosen in combinations(range(self.levels - 1), size)
        ]
        measured = min(self.em_errors, default=self.steps) < self.steps  # else the error of coarser grids is not known
        strides = [
            stride
            for stride in ((1, 2, 4) if measured else (1,))
            if self.steps % stride == 0 and self.steps // stride >= 8
        ]
        alone = [TopAlone(self)] if measured else []
        return [*alone, *(Curve(self, subset, self.steps // stride) for stride in strides for subset in subsets)]

    def memory(self, steps: int | None = None) -> Callable[[int, int, int], float]:
        """Return c(level, n, h), the best coefficient of a stored correction, for :func:`multilevel_sde.remember`.

        c = K(n, h) / K(h, h) g(h) / g(n) predicts f^level(n) - f^{level-1}(n) from its value at step h; being the best
        linear prediction it does not depend on the space (x_0, eps, v) in which the correction is stored.
        """
        responses = self.responses(self.steps if steps is None else steps)
        tables = [predictor(responses.merged(k, k + 1)) for k in range(self.levels - 1)]
        return lambda level, n, h: float(tables[level - 1][n, h])

    def choice(self, *, budget: float) -> PilotPlan:
        """Return the best plan that uses one level at each step, biased on purpose (:mod:`.pilots.level_choice`).

        Raises:
            ValueError: A budget below that of the lowest level on the coarsest grid.
        """
        budget = as_number("budget", budget)
        if not budget >= self.least_budget:
            raise ValueError(f'"budget" must be at least {self.least_budget:.6g} {self.unit}, got {budget}')
        found = []
        for steps in sorted({curve.steps for curve in self._curves if isinstance(curve, Curve)}):
            if steps * self.costs[0] <= budget * (1 + 1e-9):
                chosen = choose_levels(self.responses(steps), self.costs, budget)
                weights = (torch.arange(self.levels) <= chosen[:, None]).double()
                plan = Plan(weights != 0, weights, truncated=bool((chosen < self.levels - 1).any()))
                predicted = self.prediction(self.first_order(plan), steps, plan.evaluations.double())
                levels = tuple(sorted(set(chosen.tolist())))
                found.append(PilotPlan(plan, self.times[:: self.steps // steps].clone(), levels, predicted))
        return min(found, key=lambda plan: plan.predicted.mse)

    def schedule(self, *, budget: float, draw: Draw = systematic) -> Tensor:
        """Return probabilities for `pilot.times`, float64 (M, K), whose expected cost is the budget.

        For independent draws p_k(n) proportional to sqrt(G_k(n, n) / (T_k + T_{k-1})) is optimal. For systematic
        draws what counts is how fast the responses change: a gap of 1/p steps leaves an error that grows with the mean
        squared change q_k(n) per step, which gives p_k(n) proportional to (q_k(n) / (T_k + T_{k-1}))^{1/3}. Both
        shapes and 1/T are tried, and the one with the smallest predicted error for the draw is returned.

        Raises:
            ValueError: The budget cannot be met (see :func:`multilevel_sde.scale_to_budget`).
        """
        ladder = Ladder([_no_drift] * self.levels, self.costs)
        pairs = torch.tensor([a + b for a, b in pairwise(self.costs)], dtype=torch.float64)
        blocks = self.gram.reshape(self.levels - 1, self.steps, self.levels - 1, self.steps)
        power = torch.stack([blocks[k, :, k].diagonal() for k in range(self.levels - 1)], dim=1)
        lag = torch.stack([blocks[k, :, k].diagonal(1) for k in range(self.levels - 1)], dim=1)
        change = (power[1:] + power[:-1] - 2 * lag).clamp_min(0)
        change = torch.cat([change[:1], change])
        floor = 1e-6 * power.max()
        shapes = [((power + floor) / pairs).sqrt()]
        if draw is not independent:
            shapes += [((change + floor) / pairs).pow(1 / 3), (1 / pairs).expand_as(power)]
        tables = [
            scale_to_budget(ladder, torch.cat([torch.ones(self.steps, 1, dtype=torch.float64), shape], 1), budget, draw)
            for shape in shapes
        ]
        return min(tables, key=lambda table: self.predict(table, draw).mse)

    # -- advice ---------------------------------------------------------------------------------------------------

    def em_cost(self, mse: float) -> float:
        """Cost at which the top level alone reaches a mean squared error (infinite if never here)."""
        known = sorted((n, self.tail * (e + self.fine_error)) for n, e in self.em_errors.items())
        for (n, e), (m, d) in pairwise(known):
            if d <= mse <= e:
                part = (math.log(e) - math.log(mse)) / max(math.log(e) - math.log(d), 1e-12) if d > 0 else 1.0
                return self.costs[-1] * math.exp(math.log(n) + part * (math.log(m) - math.log(n)))
        return self.costs[-1] * known[0][0] if mse > known[0][1] else math.inf

    def single_cost(self, mse: float) -> float:
        """Cost at which the best single level reaches a mean squared error."""
        best = self.em_cost(mse)
        for level in range(self.levels - 1):
            weights = torch.zeros(self.levels - 1, self.steps, dtype=torch.float64)
            weights[level:] = 1.0
            bias = float(weights.reshape(-1) @ self.gram @ weights.reshape(-1))
            for steps in sorted(self.em_errors):
                if bias + self.step_error(steps) <= mse:
                    best = min(best, steps * self.costs[level])
                    break
        return best

    def advise(self, *, budget: float) -> Advice:
        """Say which levels, steps and plan to use at a budget and what it saves, or that the ladder does not pay.

        Raises:
            ValueError: The budget pays neither a plan nor one evaluation of the top level.
        """
        budget = as_number("budget", budget)
        if not math.isfinite(budget):
            raise ValueError(f'"budget" must be a finite cost, got {budget}')
        steps = max(1, int(budget / self.costs[-1] * (1 + 1e-9)))
        if budget < min(self.least_budget, self.costs[-1]):
            least = min(self.least_budget, self.costs[-1])
            raise ValueError(f'"budget" must be at least {least:.6g} {self.unit}, got {budget}')
        best = self.plan(budget=budget) if budget >= self.least_budget else TopAlone(self).within(budget)
        em, single = self.em_cost(best.predicted.mse), self.single_cost(best.predicted.mse)
        pays = len(best.levels) > 1 and best.predicted.cost < 0.9 * single
        if pays:
            levels = ", ".join(str(level + 1) for level in best.levels)
            text = (
                f"Use levels {levels} with {best.plan.steps} steps: expected mean squared error "
                f"{best.predicted.mse:.3g} at cost {best.predicted.cost:.3g} {self.unit}; the top level alone "
                f"needs {em / best.predicted.cost:.2g} times as much"
                + ("." if single == em else f", the best single level {single / best.predicted.cost:.2g} times.")
            )
        else:
            text = (
                "This ladder does not pay here: use the best single level, such as level "
                f"{self.levels} with {steps} steps."
            )
        return Advice(pays, text, best, em, single, steps)

    # -- files ----------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the pilot atomically as safetensors (needs safetensors)."""
        write_atomically(path, encode(vars(self)))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Pilot:
        """Read a pilot written by :meth:`save`.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is damaged, not a pilot, or of another version.
        """
        return cls(**decode(path))

    def report(self, path: str | os.PathLike[str], *, title: str = "Pilot report") -> None:
        """Write a self-contained HTML page and the same as JSON; see :mod:`multilevel_sde.pilots.report`."""
        from multilevel_sde.pilots.report.page import write_report

        write_report(self, path, title=title)


def _thrifty(plans: Sequence[PilotPlan]) -> PilotPlan:
    """The first plan, or the cheapest that is about as good and much cheaper."""
    best = plans[0].predicted
    about = [
        plan
        for plan in plans
        if plan.predicted.mse <= (1 + _ALIKE) * best.mse and plan.predicted.cost <= _CHEAPER * best.cost
    ]
    return min(about, key=lambda plan: plan.predicted.cost, default=plans[0])


def _no_drift(x: Tensor, t: Tensor) -> Tensor:
    return torch.zeros_like(x)
