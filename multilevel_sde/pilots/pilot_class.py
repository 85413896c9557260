"""Class `Pilot`: the plans and the advice that follow from a trial run (:mod:`multilevel_sde.pilots.run_pilot`).

A plan is chosen among greedy allocations, one for each choice of levels and steps
(:mod:`multilevel_sde.pilots.curves`), by the error that the measurements predict
(:mod:`multilevel_sde.pilots.error_model`).
"""

from __future__ import annotations

import heapq
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from multilevel_sde.arguments import as_integer, as_number
from multilevel_sde.files import write_atomically
from multilevel_sde.pilots.answers import Advice, Form, PilotPlan, words_against, words_for
from multilevel_sde.pilots.curves import Alone, Curve
from multilevel_sde.pilots.error_model import ErrorModel
from multilevel_sde.pilots.level_choice import choose_levels
from multilevel_sde.pilots.pilot_file import decode, encode, read_origin
from multilevel_sde.pilots.probabilities import tables_within
from multilevel_sde.pilots.tracking import predictor
from multilevel_sde.plans.draws import Draw, systematic
from multilevel_sde.plans.plan import Plan

__all__ = ["Pilot"]

_PAYS = 0.9  # of the best single level's cost is the most that a plan may cost and be said to pay
_SHORT_LIST = 16  # choices of levels and steps at least whose plans are made, as estimates leave out what is in common
_APART = 1.05  # budgets that are tried for a target
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
            ValueError: A budget below what the cheapest plan costs; a `count` below 1.
        """
        budget = as_number("budget", budget)
        if as_integer("count", count) < 1:
            raise ValueError(f'"count" must be at least 1 plan, got {count}')
        affordable = [curve for curve in self._curves if curve.base_cost <= budget * (1 + 1e-9)]
        if not affordable:
            raise ValueError(f'"budget" must be at least {self.least_budget:.6g} {self.unit}, got {budget}')
        likely = heapq.nsmallest(max(count, _SHORT_LIST), affordable, key=lambda curve: curve.estimate(budget, memory))
        likely = [curve for curve in likely if math.isfinite(curve.estimate(budget, memory))]
        ranked = sorted((curve.ranked(budget, memory) for curve in likely), key=lambda found: found[0])
        return [plan for _, plan in ranked[:count]]

    def _plan_for(self, target: float, memory: bool) -> PilotPlan:
        target = as_number("target_mse", target)
        ceiling = self.rows * self.costs[-1]
        best = self.plan(budget=ceiling, memory=memory).predicted.mse
        if not target > 0 or best > target:
            raise ValueError(
                f'"target_mse" is {target}, the best reachable with {self.steps} candidate steps is {best:.3g}; '
                "run a pilot with more candidates"
            )

        def reaches(budget: float) -> bool:
            return self.plan(budget=budget, memory=memory).predicted.mse <= target

        # Upwards, as plans are chosen by steadier numbers than their own predictions, which may rise with the budget.
        low, high = self.least_budget / _APART, self.least_budget
        while high < ceiling and not reaches(high):
            low, high = high, min(high * _APART, ceiling)
        for _ in range(4):
            middle = math.sqrt(max(low, self.least_budget) * high)
            low, high = (low, middle) if reaches(middle) else (middle, high)
        return self.plan(budget=high, memory=memory)

    @cached_property
    def _curves(self) -> list[Curve | Alone]:
        subsets = [
            (*chosen, self.levels - 1)
            for size in range(1, self.levels)
            for chosen in combinations(range(self.levels - 1), size)
        ]
        coarse = sorted({one.steps for one in self.calibration} | {self.rows})
        alone = [one for one in self._alone if one.level == self.levels - 1]
        return [*alone, *(Curve(self, subset, steps) for steps in coarse for subset in subsets)]

    @cached_property
    def _alone(self) -> list[Alone]:
        """Every level alone, by every method and on every kind of grid that was measured."""
        measured = sorted({(one.level, one.multistep, one.elsewhere) for one in self.singles})
        return [Alone(self, *which) for which in measured]

    def memory(self, steps: int | None = None) -> Callable[[int, int, int], float]:
        """Return c(level, n, h), the best coefficient of a stored correction, for :func:`multilevel_sde.remember`.

        c = K(n, h) / K(h, h) g(h) / g(n) predicts f^level(n) - f^{level-1}(n) from its value at step h; being the best
        linear prediction it does not depend on the space (x_0, eps, v) in which the correction is stored.
        """
        responses = self.responses(self.rows if steps is None else as_integer("steps", steps))
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
                predicted = self.prediction(self.first_order(plan), steps, plan.evaluations.double(), Form.PLAIN)
                levels = tuple(sorted(set(chosen.tolist())))
                found.append(PilotPlan(plan, self.times[:: self.rows // steps].clone(), levels, predicted))
        return min(found, key=lambda plan: plan.predicted.mse)

    def schedule(self, *, budget: float, draw: Draw = systematic) -> Tensor:
        """Return probabilities for the rows of `pilot.times`, float64 (M, K), whose expected cost is the budget.

        For independent draws p_k(n) proportional to sqrt(G_k(n, n) / (T_k + T_{k-1})) is optimal. For systematic
        draws what counts is how fast the responses change: a gap of 1/p steps leaves an error that grows with the mean
        squared change q_k(n) per step, which gives p_k(n) proportional to (q_k(n) / (T_k + T_{k-1}))^{1/3}. Both
        shapes and 1/T are tried, and the one with the smallest predicted error for the draw is returned.

        Raises:
            TypeError: `draw` is no way of drawing.
            ValueError: The budget cannot be met (see :func:`multilevel_sde.scale_to_budget`).
        """
        tables = tables_within(self, budget, draw)
        return min(tables, key=lambda table: self.predict(table, draw).mse)

    # -- advice ---------------------------------------------------------------------------------------------------

    def em_cost(self, mse: float) -> float:
        """Cost at which the top level alone reaches a mean squared error, by the pilot's method; infinite if never.

        Raises:
            ValueError: The error is below 0 or NaN.
        """
        _check_mse(mse)
        return Alone(self, self.levels - 1, bool(self.multistep)).cost_of(mse)

    def single_cost(self, mse: float) -> float:
        """Cost at which the best single level reaches a mean squared error, infinite if none does.

        Raises:
            ValueError: The error is below 0 or NaN.
        """
        _check_mse(mse)
        return min((one.cost_of(mse) for one in self._alone), default=math.inf)

    def single(self, *, budget: float) -> PilotPlan:
        """Return the best single level at a budget: any level, number of steps, and method that was measured.

        Raises:
            ValueError: The budget pays no single level; the pilot measured none.
        """
        budget = as_number("budget", budget)
        affordable = [one for one in self._alone if one.base_cost <= budget * (1 + 1e-9)]
        if not affordable:
            least = min((one.base_cost for one in self._alone), default=math.inf)
            raise ValueError(f'"budget" must be at least {least:.6g} {self.unit}, got {budget}')
        plans = [one.within(budget) for one in affordable]
        return _thrifty(sorted(plans, key=lambda plan: plan.predicted.mse))

    def advise(self, *, budget: float) -> Advice:
        """Say which levels, steps and plan to use at a budget and what it saves, or which single level is better.

        Raises:
            ValueError: The budget pays neither a plan nor the fewest steps of a single level.
        """
        budget = as_number("budget", budget)
        if not math.isfinite(budget):
            raise ValueError(f'"budget" must be a finite cost, got {budget}')
        least = min([self.least_budget, *(one.base_cost for one in self._alone)])
        if budget < least * (1 - 1e-9):
            raise ValueError(f'"budget" must be at least {least:.6g} {self.unit}, got {budget}')
        paid = any(one.base_cost <= budget * (1 + 1e-9) for one in self._alone)
        best = self.plan(budget=budget) if budget >= self.least_budget or not paid else self.single(budget=budget)
        single = self.single(budget=budget) if paid else best
        em, cost = self.em_cost(best.predicted.mse), self.single_cost(best.predicted.mse)
        pays = len(best.levels) > 1 and best.predicted.cost < _PAYS * cost
        text = (
            words_for(best, single, cost, self.unit)
            if pays
            else words_against(single, self.unit, self._is_elsewhere(single))
        )
        if best.predicted.step_mse > 0.5 * best.predicted.mse and best.plan.steps >= self.rows < self._finest_rows:
            text += (
                f" More candidates would help: plans have at most {self.steps} steps, which are most of their error."
            )
        return Advice(pays, text, best, single, em, cost, max(1, int(budget / self.costs[-1] * (1 + 1e-9))))

    def _is_elsewhere(self, single: PilotPlan) -> bool:
        """Whether a single level's grid is one of the other ones."""
        other = self.other_grids.get(len(single.times) - 1)
        return other is not None and torch.equal(other, single.times)

    @property
    def _finest_rows(self) -> int:
        return (len(self.fine_times) - 1) * self.rows // self.steps

    # -- files ----------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str], made_for: Mapping[str, Any] | None = None) -> None:
        """Write the pilot atomically as safetensors (needs safetensors).

        Arguments:
            path: The file.
            made_for: What it is of, as JSON values; :meth:`load_made_for` gives it back.

        Raises:
            ValueError: `made_for` is not what JSON can hold.
        """
        write_atomically(path, encode(vars(self), made_for))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Pilot:
        """Read a pilot written by :meth:`save`.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is damaged, not a pilot, or of another version.
        """
        return cls(**decode(path))

    @classmethod
    def load_made_for(cls, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Read what a pilot is of, empty where the file does not say.

        Raises:
            FileNotFoundError, ValueError: As :meth:`load`.
        """
        return read_origin(path)

    def report(self, path: str | os.PathLike[str], *, title: str = "Pilot report") -> None:
        """Write a self-contained HTML page and the same as JSON; see :mod:`multilevel_sde.pilots.report`."""
        from multilevel_sde.pilots.report.page import write_report

        write_report(self, path, title=title)


def _check_mse(mse: float) -> None:
    if not as_number("mse", mse) >= 0:
        raise ValueError(f'"mse" must be a mean squared error of at least 0, got {mse}')


def _thrifty(plans: Sequence[PilotPlan]) -> PilotPlan:
    """The first plan, or the cheapest that is about as good and much cheaper."""
    best = plans[0].predicted
    about = [
        plan
        for plan in plans
        if plan.predicted.mse <= (1 + _ALIKE) * best.mse and plan.predicted.cost <= _CHEAPER * best.cost
    ]
    return min(about, key=lambda plan: plan.predicted.cost, default=plans[0])
