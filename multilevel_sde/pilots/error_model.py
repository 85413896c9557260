r"""The measurements of a pilot, and the error that they predict for a plan.

The predicted mean squared error of a plan to the path of the top level on the finest grid is

    level error + step error,    level error = q(e) e,  e = (w - 1)' G (w - 1),

with the plan's weights w, the Gram matrix G of the responses (see :mod:`multilevel_sde.pilots.run_pilot`), and the step
error of the top level on the plan's grid. q is the measured ratio to the first-order error, on this grid and in this
form of plans, interpolated in the logarithm with q(e) e nondecreasing. These are typical errors. Their sum is
multiplied by the tail (:func:`multilevel_sde.pilots.isotone.tails`), interpolated with the mean nondecreasing in the
typical error. Plans are made with the off-diagonal of G shrunk by 5%, predicted without.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor

from multilevel_sde.arguments import as_integer, as_number, as_tensor
from multilevel_sde.ladder import Ladder
from multilevel_sde.pilots.answers import Calibration, Form, PilotPlan, Prediction, Rates, Single, level_rates
from multilevel_sde.pilots.isotone import calibrated
from multilevel_sde.pilots.responses import SHRINKAGE, Responses
from multilevel_sde.pilots.tracking import total_weights, track
from multilevel_sde.plans.drawing import draw_plan
from multilevel_sde.plans.draws import Draw, systematic
from multilevel_sde.plans.plan import Plan, as_plan

__all__ = ["ErrorModel"]

_DRAWS = 64  # draws over which the error of random plans is averaged
_LEAST = 0.05  # of a measured error at least is the levels': its steps' share is known from other runs only
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
        random_levels: Levels, from 0, that gave another value when evaluated twice at the same states.
        fine_times: The finest grid.
        singles: What single levels err, by level, steps and method.
        calibration: What the first-order error of plans came to, by grid and form.
        cost: What the pilot cost in all, in the ladder's unit.
        samples: Its samples.
        multistep: Steps -> coefficients (steps, order) of the base level on so many steps; empty for one-step methods.
        disagreement: Ratio of what two halves of the samples say of the size of all responses, at least 1.
        other_grids: Steps -> another grid, on which single levels were run too.
        other_multistep: As `multistep`, on those grids.
    """

    costs: tuple[float, ...]
    unit: str
    seconds: tuple[float, ...]
    times: Tensor
    coefficients: Tensor
    gram: Tensor
    variances: Tensor
    kurtosis: tuple[float, ...]
    random_levels: tuple[int, ...]
    fine_times: Tensor
    singles: tuple[Single, ...]
    calibration: tuple[Calibration, ...]
    cost: float
    samples: int
    multistep: Mapping[int, Tensor] = field(default_factory=dict)
    disagreement: float = 1.0
    other_grids: Mapping[int, Tensor] = field(default_factory=dict)
    other_multistep: Mapping[int, Tensor] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Number of candidate steps M."""
        return len(self.times) - 1

    @property
    def rows(self) -> int:
        """Number of rows of a plan on the candidates: M, times the evaluations of a step for a step rule."""
        return len(self.coefficients)

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

    def priced(self, ladder: Ladder) -> Self:
        """Return the same measurements at the costs of a ladder: in seconds, say, or those of another device.

        Errors do not depend on what levels cost, so that a pilot on disk serves on every machine. What the pilot cost
        itself stays as it is in evaluations of the top level.

        Arguments:
            ladder: The same levels; budgets, plans and texts will be in its unit.

        Raises:
            TypeError: It is no ladder.
            ValueError: Another number of levels.

        Example:
            >>> import multilevel_sde as mls
            >>> drifts, y0 = [lambda y, t: -y, lambda y, t: -torch.sin(y)], torch.linspace(0.2, 2.0, 8)[:, None]
            >>> pilot = mls.pilot(mls.Ladder(drifts, [1.0, 30.0]), y0, torch.linspace(0.0, 1.0, 51), candidates=10)
            >>> told = pilot.priced(mls.Ladder(drifts, mls.GivenCost([2e-6, 9e-6], "seconds")))
            >>> told.plan(budget=6e-5).predicted.cost <= 6e-5, told.unit
            (True, 'seconds')
        """
        if not isinstance(ladder, Ladder):
            raise TypeError(f'"ladder" must be a Ladder with the new costs, got {type(ladder).__name__}')
        if len(ladder) != self.levels:
            raise ValueError(f'"ladder" has {len(ladder)} levels, the pilot measured {self.levels}')
        cost = self.cost / self.costs[-1] * ladder.costs[-1]
        seconds = ladder.costs if ladder.unit == "seconds" else self.seconds
        return replace(self, costs=ladder.costs, unit=ladder.unit, cost=cost, seconds=seconds)

    @cached_property
    def tail(self) -> float:
        """Ratio of the mean to the typical squared error of plans: the median over all calibrations."""
        return statistics.median([one.tail for one in self.calibration] or [1.0])

    def share(self, samples: int, budget: float) -> float:
        """The pilot's cost as a part of a run of so many samples at a budget each.

        Raises:
            ValueError: Fewer than one sample; a budget that is not positive.
        """
        if as_integer("samples", samples) < 1 or not as_number("budget", budget) > 0:
            raise ValueError(f'"samples" must be at least 1 and "budget" positive, got {samples} and {budget}')
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
            TypeError: Neither a plan nor probabilities; `draw` is no way of drawing.
            ValueError: Another number of levels, or of steps.
        """
        if isinstance(what, PilotPlan):
            what = what.plan
        if isinstance(what, Plan):
            if what.samples is not None:
                raise ValueError('"what" is a plan with draws per sample; predict its probabilities instead')
            plans = [what]
        else:
            generator, what = torch.Generator().manual_seed(0), as_tensor("what", what)
            plans = [draw_plan(what, draw, generator=generator, truncate=True) for _ in range(_DRAWS)]
        if plans[0].levels != self.levels:
            raise ValueError(f'"what" has {plans[0].levels} levels, the pilot measured {self.levels}')
        steps = plans[0].steps
        first_order = sum(self.first_order(plan) for plan in plans) / len(plans)
        evaluations = torch.stack([plan.evaluations for plan in plans]).double().mean(0)
        return self.prediction(first_order, steps, evaluations, self._form(plans[0]))

    def first_order(self, plan: Plan) -> float:
        """The uncalibrated level error (w - 1)' G (w - 1) of a plan."""
        plan = as_plan(plan)
        rounding = _ROUNDING * float(self.gram.diagonal().sum())
        if plan.steps % self.rows == 0 and plan.steps > self.rows:
            if plan.recall is not None:
                raise ValueError(f'"plan" remembers and has {plan.steps} steps, the pilot has {self.rows} candidates')
            shared = plan.weights.reshape(self.rows, -1, self.levels).mean(1)
            return max(rounding, self.responses(self.rows, 0.0).error(shared))
        responses = self.responses(plan.steps, 0.0)
        return max(rounding, responses.error(total_weights(plan, responses)))

    def prediction(self, first_order: float, steps: int, evaluations: Tensor, form: Form) -> Prediction:
        """Return what to expect of a plan with this first-order level error and these evaluations of each level.

        Arguments:
            first_order: Its first-order level error, zero for the top level alone.
            steps: Its rows.
            evaluations: Of each level, (K,).
            form: How it uses its corrections.
        """
        return self._expected(first_order, steps, evaluations, form, "first_order")

    def _expected(self, value: float, steps: int, evaluations: Tensor, form: Form, what: str) -> Prediction:
        """As :meth:`prediction`, from the first-order error or from what an allocation promised, as `what` says."""
        step, runs = self.step_error_of(steps, form), self._runs(steps, form)
        known = [getattr(one, what) for one in runs]
        # However many corrections, plans on coarser grids do not become the top level: no less than was measured.
        least = min((x for x in known if x > 0), default=0.0) if runs and runs[0].steps < self.rows else 0.0
        typical = step + calibrated(max(value, least), zip(known, self._beside(runs), strict=True))
        mse = calibrated(typical, [(one.measured, one.measured * one.tail) for one in runs])
        multistep = bool(self.multistep) and form is not Form.PLAIN
        step_mse = self.single_mean(step, self.levels - 1, multistep)
        return self.expectation(max(0.0, mse - step_mse), step_mse, typical, evaluations)

    def common_typical(self, value: float, steps: int, form: Form, what: str = "first_order") -> float:
        """The typical error of a plan by the runs in its form on all grids together; arguments as :meth:`_expected`."""
        runs = [one for one in self.calibration if one.form is form] or list(self.calibration)
        known = [getattr(one, what) for one in runs]
        level = calibrated(value, zip(known, self._beside(runs), strict=True))
        return self.step_error_of(steps, form) + level

    def _beside(self, runs: Sequence[Calibration]) -> list[float]:
        """What runs erred beside their steps."""
        return [one.measured - self.step_error_of(one.steps, one.form) for one in runs]

    def expectation(self, level_mse: float, step_mse: float, typical: float, evaluations: Tensor) -> Prediction:
        """Return a prediction with what these evaluations of each level cost."""
        cost = float(evaluations @ torch.tensor(self.costs, dtype=torch.float64))
        seconds = float(evaluations @ torch.tensor(self.seconds, dtype=torch.float64))
        return Prediction(level_mse + step_mse, level_mse, step_mse, typical, cost, seconds)

    def expected(self, promised: float, steps: int, form: Form) -> float:
        """Return the mean squared error of a plan of which an allocation promises so much."""
        return self._expected(promised, steps, torch.zeros(self.levels, dtype=torch.float64), form, "promised").mse

    def step_error(self, steps: int) -> float:
        """Predicted mean squared error of so many steps of the top level, to the finest grid, by the pilot's method.

        Raises:
            ValueError: Fewer than one step.
        """
        if as_integer("steps", steps) < 1:
            raise ValueError(f'"steps" must be at least 1, got {steps}')
        top, multistep = self.levels - 1, bool(self.multistep)
        return self.single_mean(self.single_error(top, steps, multistep), top, multistep)

    def single_error(self, level: int, steps: float, multistep: bool, elsewhere: bool = False) -> float:
        """Typical squared error of a level alone, interpolated in the logarithm of the number of steps.

        Between the last number that errs and the finest grid, whose path is the target, it falls as (1/n - 1/F)^2.
        """
        known = {n: error for n, error in self.measured_alone(level, multistep, elsewhere).items() if error > 0}
        if not known:
            return 0.0
        last, finest = max(known), len(self.fine_times) - 1
        if steps > last and finest in self.measured_alone(level, multistep):  # the target itself has no error
            return known[last] * ((1 / steps - 1 / finest) / (1 / last - 1 / finest)) ** 2
        return float(np.exp(np.interp(math.log(steps), np.log(list(known)), np.log(list(known.values())))))

    def single_mean(self, error: float, level: int, multistep: bool, elsewhere: bool = False) -> float:
        """The mean squared error of a level alone whose typical one is this."""
        runs = self._runs_alone(level, multistep, elsewhere)
        return calibrated(error, [(one.error, one.error * one.tail) for one in runs])

    def measured_alone(self, level: int, multistep: bool, elsewhere: bool = False) -> dict[int, float]:
        """Steps -> typical squared error of a level alone, as it was measured, in the order of steps."""
        found = {one.steps: one.error for one in self._runs_alone(level, multistep, elsewhere)}
        return dict(sorted(found.items()))

    def _runs_alone(self, level: int, multistep: bool, elsewhere: bool) -> list[Single]:
        wanted = (level, multistep, elsewhere)
        return [one for one in self.singles if (one.level, one.multistep, one.elsewhere) == wanted]

    def step_error_of(self, rows: int, form: Form) -> float:
        """Typical step error on the grid of a plan: that of the top level by the method of the plan's base.

        Where plans on this grid erred less, as steps and corrections may cancel, it is no more than most of that.
        """
        multistep = bool(self.multistep) and form is not Form.PLAIN
        top = self.single_error(self.levels - 1, rows * self.steps / self.rows, multistep)
        erred = [one.measured for one in self.calibration if (one.steps, one.form) == (rows, form)]
        return min([top, *((1 - _LEAST) * error for error in erred)])

    def preferred(self, steps: int, forms: Sequence[Form]) -> Form:
        """The form that erred least in the runs on the nearest grid, every run counting by its ratio."""

        def size(form: Form) -> float:
            return sum(math.log(max(one.measured, 1e-300)) for one in self._runs(steps, form))

        return min(forms, key=size)

    def _runs(self, steps: int, form: Form) -> list[Calibration]:
        """The runs of plans in this form, or any, on the grid that is nearest to one of so many rows."""
        same = [one for one in self.calibration if one.form is form] or list(self.calibration)
        near = min((abs(math.log(one.steps / steps)) for one in same), default=0.0)
        return [one for one in same if abs(math.log(one.steps / steps)) <= near + 1e-12]

    def _form(self, plan: Plan) -> Form:
        """In which form a plan is: by how far back it remembers."""
        if plan.recall is None:
            return Form.PLAIN
        places = plan.recall.places
        lag = int((places[:, 0] - places[:, 2]).max())
        order = next((table.shape[1] for table in self.multistep.values()), 1)
        return Form.BASE if lag < order else Form.TRACKED

    def responses(self, steps: int, shrinkage: float = SHRINKAGE) -> Responses:
        """Return the responses for a plan of so many steps, which must divide the number of candidates.

        Raises:
            ValueError: It does not.
        """
        if (steps, shrinkage) not in self._responses:
            if steps < 1 or self.rows % steps:
                raise ValueError(
                    f'"what" has {steps} steps, the pilot has {self.rows} candidates; one must divide the other'
                )
            stride = self.rows // steps
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
        return track(as_plan(plan), self.responses(plan.steps), self.multistep.get(plan.steps))
