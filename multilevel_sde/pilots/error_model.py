r"""The measurements of a pilot, and the error that they predict for a plan.

The predicted mean squared error of a plan to the path of the top level on the finest grid is

    tail (level error + step error),    level error = q(e) e,  e = (w - 1)' G (w - 1),

with the plan's weights w, the Gram matrix G of the responses (see :mod:`multilevel_sde.pilots.run_pilot`), q the
measured ratio of typical to first-order error, interpolated in the logarithm with q(e) e nondecreasing, the typical
step error, and the tail, the measured ratio of mean to typical error. Plans are made with the off-diagonal of G shrunk
by 5%, predicted without.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from torch import Tensor

from multilevel_sde.pilots.answers import Calibration, PilotPlan, Prediction, Rates, level_rates
from multilevel_sde.pilots.responses import SHRINKAGE, Responses
from multilevel_sde.pilots.tracking import total_weights, track
from multilevel_sde.plans.drawing import draw_plan
from multilevel_sde.plans.draws import Draw, systematic
from multilevel_sde.plans.memory import multistep
from multilevel_sde.plans.plan import Plan

__all__ = ["ErrorModel"]

_DRAWS = 64  # draws over which the error of random plans is averaged
_ROUNDING = 1e-9  # of the sum of all mean squared responses: the Gram matrix is kept in float32


@dataclass(frozen=True)
class ErrorModel:
    """The measurements of :func:`multilevel_sde.pilot`, and the first-order error that follows from them.

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

    @property
    def steps(self) -> int:
        """Number of candidate steps M."""
        return len(self.times) - 1

    @property
    def levels(self) -> int:
        """Number of levels K."""
        return len(self.costs)

    def in_evaluations(self, unit: str = "evaluations of the top level") -> Self:
        """Return the same measurements with costs in evaluations of the top level: budgets, plans and texts speak so.

        Arguments:
            unit: What messages call this unit.
        """
        top = self.costs[-1]
        return replace(self, costs=tuple(cost / top for cost in self.costs), cost=self.cost / top, unit=unit)

    def share(self, samples: int, budget: float) -> float:
        """The pilot's cost as a part of a run of so many samples at a budget each."""
        return self.cost / (samples * budget)

    @cached_property
    def rates(self) -> Rates:
        """Regressions on the level index; the cheapest level's own size does not enter."""
        return level_rates(self.variances.mean(0), self.costs)

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

    # -- plans that remember ------------------------------------------------------------------------------------------

    def track(self, plan: Plan) -> Plan:
        """Return a plan with the same evaluations that tracks the corrections (:mod:`multilevel_sde.pilots.tracking`).

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
