r"""What a pilot knows: predictions, plans and advice.

The predicted mean squared error of a plan to the path of the top level on the finest grid is

    tail (level error + step error),    level error = q(e) e,  e = (w - 1)' G (w - 1),

with the plan's weights w, the Gram matrix G of the responses (see :mod:`multilevel_sde.pilot`), q the measured ratio of
typical to first-order error, interpolated in the logarithm with q(e) e nondecreasing, the typical step error, and the
tail, the measured ratio of mean to typical error. Plans are made with the off-diagonal of G shrunk by 5%, predicted
without.
"""

from __future__ import annotations

import heapq
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations, pairwise

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from torch import Tensor

from multilevel_sde.arguments import as_number
from multilevel_sde.choice import choose_levels
from multilevel_sde.curves import Curve, TopAlone
from multilevel_sde.draw import Draw, independent, systematic
from multilevel_sde.files import write_atomically
from multilevel_sde.ladder import Ladder
from multilevel_sde.memory import multistep
from multilevel_sde.pilot_file import decode, encode
from multilevel_sde.plan import Plan, draw_plan
from multilevel_sde.responses import SHRINKAGE, Responses
from multilevel_sde.results import Advice, Calibration, PilotPlan, Prediction, Rate, Rates, level_rates
from multilevel_sde.schedule import scale_to_budget
from multilevel_sde.tracking import predictor, total_weights, track

__all__ = ["Advice", "Pilot", "PilotPlan", "Prediction", "Rate", "Rates"]

_DRAWS = 64  # draws over which the error of random plans is averaged
_ALIKE, _CHEAPER = 0.05, 0.8  # predicted errors that differ by less are alike; what saving decides between them
_ROUNDING = 1e-9  # of the sum of all mean squared responses: the Gram matrix is kept in float32


@dataclass(frozen=True)
class Pilot:
    """The measurements of :func:`multilevel_sde.pilot`, and what follows from them.

    Attributes:
        costs: Cost of each level.
        unit: Its unit.
        seconds: Seconds of each level per sample.
        times: The candidate grid, M + 1.
        coefficients: The step's coefficient of the estimate, (M,).
        gram: Gram matrix of the responses, index k M + n, ((K - 1) M, (K - 1) M).
        variances: V_k(n), (M, K - 1).
        kurtosis: Of each difference; above 100 a few rare states dominate.
        consistency: |E f^k - E f^{k-1} - E D_k| / |E f^k|, zero to rounding.
        em_errors: Steps -> squared distance of the top level with so many steps to M steps, typical.
        fine_error: The same of M steps to the finest grid, estimated from the cheapest level.
        calibration: What the first-order error of plans came to.
        tail: Ratio of the mean to the typical squared error.
        cost: What the pilot cost in all, in the ladder's unit.
        samples: Its samples.
        tracks: Whether plans that track the corrections came out better than those that add each at once.
        multistep: Steps -> coefficients (steps, order) of the base level on so many of the candidates; empty for
            one-step methods.
    """

    costs: tuple[float, ...]
    unit: str
    seconds: tuple[float, ...]
    times: Tensor
    coefficients: Tensor
    gram: Tensor
    variances: Tensor
    kurtosis: tuple[float, ...]
    consistency: tuple[float, ...]
    em_errors: Mapping[int, float]
    fine_error: float
    calibration: tuple[Calibration, ...]
    tail: float
    cost: float
    samples: int
    tracks: bool = True
    multistep: Mapping[int, Tensor] = field(default_factory=dict)

    # -- facts ----------------------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Number of candidate steps M."""
        return len(self.times) - 1

    @property
    def levels(self) -> int:
        """Number of levels K."""
        return len(self.costs)

    @property
    def least_budget(self) -> float:
        """The lowest budget of a plan: the cheapest level on the coarsest of its grids."""
        return min(curve.base_cost for curve in self._curves)

    def share(self, samples: int, budget: float) -> float:
        """The pilot's cost as a part of a run of so many samples at a budget each."""
        return self.cost / (samples * budget)

    @cached_property
    def rates(self) -> Rates:
        """Regressions on the level index; the cheapest level's own size does not enter."""
        return level_rates(self.variances.mean(0), self.costs)

    # -- predictions ----------------------------------------------------------------------------------------------

    def predict(self, what: Plan | PilotPlan | Tensor, draw: Draw = systematic) -> Prediction:
        """Predict error and cost of a plan, or of probabilities (mean over 64 draws).

        Arguments:
            what: A plan, or probabilities (N, K), for N steps that divide M, or N a multiple of M.
            draw: How hits will be drawn from probabilities.

        Raises:
            ValueError: Another number of levels, or of steps.
        """
        if isinstance(what, PilotPlan):
            what = what.plan
        if isinstance(what, Plan):
            if what.samples is not None:
                raise ValueError('"what" is a plan with draws per sample; predict its probabilities instead')
            plans = [what]
        else:
            generator = torch.Generator().manual_seed(0)
            plans = [draw_plan(what, draw, generator=generator, truncate=True) for _ in range(_DRAWS)]
        if plans[0].levels != self.levels:
            raise ValueError(f'"what" has {plans[0].levels} levels, the pilot measured {self.levels}')
        steps = plans[0].steps
        first_order = sum(self.first_order(plan) for plan in plans) / len(plans)
        evaluations = torch.stack([plan.evaluations for plan in plans]).double().mean(0)
        return self.prediction(first_order, steps, evaluations)

    def first_order(self, plan: Plan) -> float:
        """The uncalibrated level error (w - 1)' G (w - 1) of a plan."""
        rounding = _ROUNDING * float(self.gram.diagonal().sum())
        if plan.steps % self.steps == 0 and plan.steps > self.steps:
            if plan.recall is not None:
                raise ValueError(f'"plan" remembers and has {plan.steps} steps, the pilot has {self.steps} candidates')
            shared = plan.weights.reshape(self.steps, -1, self.levels).mean(1)
            return max(rounding, self.responses(self.steps, 0.0).error(shared))
        responses = self.responses(plan.steps, 0.0)
        return max(rounding, responses.error(total_weights(plan, responses)))

    def prediction(self, first_order: float, steps: int, evaluations: Tensor) -> Prediction:
        """Return what to expect of a plan with this first-order level error and these evaluations of each level."""
        pairs = [(one.first_order, one.measured) for one in self.calibration]
        level, step = self.tail * _calibrated(first_order, pairs), self.step_error(steps)
        cost = float(evaluations @ torch.tensor(self.costs, dtype=torch.float64))
        seconds = float(evaluations @ torch.tensor(self.seconds, dtype=torch.float64))
        return Prediction(level + step, level, step, (level + step) / self.tail, cost, seconds)

    def step_error(self, steps: int) -> float:
        """Predicted mean squared step error of so many steps of the top level, against the finest grid."""
        if not steps >= 1:
            raise ValueError(f'"steps" must be at least 1, got {steps}')
        known = sorted((n, e) for n, e in self.em_errors.items() if e > 0)
        if steps >= self.steps or not known:
            return self.tail * self.fine_error
        x, y = np.log([n for n, _ in known]), np.log([e for _, e in known])
        return self.tail * (float(np.exp(np.interp(math.log(steps), x, y))) + self.fine_error)

    def expected(self, promised: float) -> float:
        """Return the typical level error of a plan of which an allocation promises so much."""
        return _calibrated(promised, [(one.promised, one.measured) for one in self.calibration])

    def responses(self, steps: int, shrinkage: float = SHRINKAGE) -> Responses:
        """Return the responses for a plan of so many steps, which must divide the number of candidates.

        Raises:
            ValueError: It does not.
        """
        if (steps, shrinkage) not in self._responses:
            if steps < 1 or self.steps % steps:
                raise ValueError(
                    f'"what" has {steps} steps, the pilot has {self.steps} candidates; one must divide the other'
                )
            stride = self.steps // steps
            base = self.multistep.get(self.steps)
            self._responses[steps, shrinkage] = Responses.measured(
                self.gram, self.coefficients, self.variances, stride, base, shrinkage=shrinkage
            )
        return self._responses[steps, shrinkage]

    @cached_property
    def _responses(self) -> dict[tuple[int, float], Responses]:
        return {}

    # -- plans ----------------------------------------------------------------------------------------------------

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

    def track(self, plan: Plan) -> Plan:
        """Return a plan with the same evaluations that tracks the corrections (:mod:`multilevel_sde.tracking`).

        Its base is integrated by the multistep method that the pilot was made with.

        Raises:
            ValueError: The number of steps does not divide that of the pilot; draws per sample.
        """
        return track(plan, self.responses(plan.steps), self.multistep.get(plan.steps))

    def remembering(self, plan: Plan) -> Plan:
        """Return the plan in the form that came out better: :meth:`track`, or only its base with a multistep method."""
        if self.tracks:
            return self.track(plan)
        base = self.multistep.get(plan.steps)
        return plan if base is None else multistep(plan, base)

    def memory(self, steps: int | None = None) -> Callable[[int, int, int], float]:
        """Return c(level, n, h), the best coefficient of a stored correction, for :func:`multilevel_sde.remember`.

        c = K(n, h) / K(h, h) g(h) / g(n) predicts f^level(n) - f^{level-1}(n) from its value at step h; being the best
        linear prediction it does not depend on the space (x_0, eps, v) in which the correction is stored.
        """
        responses = self.responses(self.steps if steps is None else steps)
        tables = [predictor(responses.merged(k, k + 1)) for k in range(self.levels - 1)]
        return lambda level, n, h: float(tables[level - 1][n, h])

    def choice(self, *, budget: float) -> PilotPlan:
        """Return the best plan that uses one level at each step, biased on purpose (:mod:`multilevel_sde.choice`).

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
                f"This ladder does not pay here: use the best single level, such as f^{self.levels} with {steps} steps."
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
        """Write a self-contained HTML page and the same as JSON; see :func:`multilevel_sde.report.write_report`."""
        from multilevel_sde.report import write_report

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


def _calibrated(value: float, pairs: Iterable[tuple[float, float]]) -> float:
    """The value times the ratio of measured to given, interpolated in the logarithm of the given.

    What was measured is made nondecreasing in the given first: a few samples scatter, and a plan that promises less
    must not be expected to err more.
    """
    known = sorted((given, measured) for given, measured in pairs if given > 0 and measured > 0)
    if not known or value <= 0:
        return value
    x, y = np.log(known).T
    return value * math.exp(float(np.interp(math.log(value), x, isotonic_regression(y).x - x)))


def _no_drift(x: Tensor, t: Tensor) -> Tensor:
    return torch.zeros_like(x)
