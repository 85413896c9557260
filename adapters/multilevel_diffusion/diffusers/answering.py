"""What a ladder answers at the calls of a pipeline's denoiser: the plan of a run, its scheduler, one call."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import multilevel_sde as mls
from multilevel_diffusion.diffusers.calls import (
    bind,
    check_residuals,
    explain,
    for_level,
    stacked,
    time_of,
    warn_of_disagreement,
)
from multilevel_diffusion.diffusers.checks import check_caches, check_scheduler, uncompiled
from multilevel_diffusion.diffusers.clock import PipelineClock
from multilevel_diffusion.diffusers.handed_on import HandedOn
from multilevel_diffusion.diffusers.scheduler_grid import aimed, base_coefficients, data_maps, half_log_snr, is_cosmos
from multilevel_diffusion.diffusers.store import Settings
from multilevel_diffusion.loops.black_box import plans_at
from multilevel_diffusion.loops.carried import carried
from multilevel_diffusion.loops.held import held_plan
from multilevel_diffusion.loops.memory import DataMap, Memory, in_data
from multilevel_diffusion.loops.recording import Answer
from multilevel_diffusion.loops.rows import DrawnRows, PlannedRows, combine, step_probabilities
from multilevel_diffusion.loops.trajectory import Meter
from multilevel_sde.pilots.answers import Form

__all__ = ["INVERSE_COST", "Answering"]

INVERSE_COST = mls.InverseCostSchedule()


class Answering:
    """The part of a ladder in a pipeline that answers its calls.

    A class that inherits it gives :meth:`_set_up` the levels, calls :meth:`_respond` at each call, and says how a level
    is called (:meth:`_run`).
    """

    config: Any
    levels: Any  # a sequence of modules
    _checked: object = None
    _warned = _compared = _told = _told_of_other = False

    def _set_up(self, models: Sequence[nn.Module], costs: mls.GivenCost, draw: mls.Draw | None, seed: int) -> None:
        self._names = list(inspect.signature(type(uncompiled(models[-1])).forward).parameters)[1:]
        self._output: Any = tuple
        self._ladder = mls.Ladder(list(models), costs)
        self._settings = Settings(costs, draw=draw, seed=seed)
        self._meter = Meter(self._ladder.costs)
        self._clock = PipelineClock()
        self._answer: Answer | None = None
        self._memory: Memory | None = None
        self._maps: list[DataMap] | None = None
        self._shift = 0
        self._expected: int | None = None
        self._aim: Callable[[], bool] | None = None
        self._handed: HandedOn | None = None
        self._other: tuple[Settings, tuple[float, ...], Tensor | None, mls.Plan | None] | None = None  # of the last run
        self._grid: tuple[tuple[Any, list[float], int, Any], Tensor | None] | None = None

    def _follow(self, settings: Settings) -> None:
        if settings.plan is not None:
            self._rows: DrawnRows | PlannedRows = PlannedRows(settings.plan)
        else:
            assert settings.probabilities is not None
            self._rows = DrawnRows(settings.probabilities, settings.draw or mls.systematic, settings.seed)
        self._settings = settings
        self.reset()

    def reset(self) -> None:
        """Make the next call the first of a trajectory; needed only by loops that :class:`Trajectory` cannot follow."""
        self._clock.reset()
        self._memory = None

    def check(self, pipe: Any) -> None:
        """Refuse a pipeline whose scheduler would bias the estimates, with what to do about it.

        With all probabilities 1 there is no spread that a scheduler could turn into bias, and nothing is refused.

        Raises:
            ValueError: See :func:`multilevel_diffusion.diffusers.checks.check_scheduler`; a plan for another number of
                calls than the scheduler makes is refused when the pipeline runs.
        """
        scheduler = getattr(pipe, "scheduler", None)
        if scheduler is None or scheduler.config is self._checked or self._deterministic():
            return
        inputs = self.config.get("in_channels") or 4
        check_scheduler(scheduler, min(inputs, self.config.get("out_channels") or inputs))
        self._checked = scheduler.config

    def _deterministic(self) -> bool:
        plan = self._settings.plan
        if plan is not None:
            return plan.recall is None and bool((plan.coefficients[:, :-1] == 0).all())
        return bool((self._settings.probabilities == 1).all())

    def _begin(self) -> None:
        """Check what can be checked at the first call of a trajectory, and forget what the last one stored."""
        self._memory, self._shift, self._expected = None, self._clock.offset, self._clock.calls_of_slot
        scheduler, plan = self._clock.scheduler, self._settings.plan
        if scheduler is not None:
            self.check(self._clock)
            plan = self._plan_of_run(scheduler)
            self._shift = self._first_row()
        elif not self._warned and not self._deterministic():
            self._warned = True
            warnings.warn(
                "the ladder does not know its pipeline, so a scheduler that clips (clip_sample, thresholding) goes "
                "unnoticed and biases the result; put it in with ladder.install(pipe)",
                stacklevel=2,
            )
        table = self._settings.probabilities if plan is None else plan.hits
        always = None if table is None else (table == 1).reshape(-1, len(self._ladder)).all(0).tolist()
        check_caches(self.levels, always)
        remembers = plan is not None and plan.recall is not None
        if remembers or self._answer is not None:
            self._maps = self._data_maps(scheduler, needed=remembers and self._answer is None)
            if self._handed is None and self._maps is not None and not is_cosmos(scheduler):
                self._handed = HandedOn(scheduler)
            elif self._handed is not None:
                self._handed.end()
        if remembers:
            assert plan is not None
            self._memory = Memory(plan)

    def _plan_of_run(self, scheduler: Any) -> mls.Plan | None:
        """The plan of this run, whose rows are set; None where rows are drawn.

        A budget is of the calls that happen: the pilot's plan of whole trajectories is none for a part of them.
        """
        plan, budget = self._settings.plan, self._settings.held
        part = self._clock.offset > 0 and plan is not None and plan.steps == self._clock.calls != self._expected
        by_pilot = self._settings.budget is not None
        if plan is not None and by_pilot and self._expected is not None:
            plan = self._carried(scheduler) or plan
            part = part and plan.steps != self._expected
        if part and self._settings.pilot is not None:
            budget = self._settings.budget
        if budget is not None and self._answer is None:
            self._tell_of_calibrate()
            plan = self._unmeasured(scheduler, budget)
        elif part and plan is not None and plan.recall is not None:
            raise ValueError(
                f'"plan" remembers earlier calls and has {plan.steps} steps, of which this run makes the last '
                f"{self._expected}; make a plan for these, by calibrate with the arguments of this run"
            )
        settings = self._settings
        if plan is None:
            table = settings.probabilities
            if table is None:
                assert budget is not None
                table = step_probabilities(self._ladder, budget, INVERSE_COST)
            self._rows = DrawnRows(table, settings.draw or mls.systematic, settings.seed)
        else:
            self._rows = PlannedRows(plan)
        return plan

    def _tell_of_calibrate(self) -> None:
        if self._told or len(self._ladder) == 1 or self._settings.pilot is not None:
            return
        self._told = True
        warnings.warn(
            "the ladder has not been measured in this pipeline, so the large model is called at evenly spread steps, "
            "which may err more than that model alone in as many seconds; measure it with ladder.calibrate(pipe, "
            "num_inference_steps=...)",
            stacklevel=2,
        )

    def _unmeasured(self, scheduler: Any, fraction: float) -> mls.Plan | None:
        """The plan of a ladder that has not been measured for this run; None where a draw must do."""
        if self._expected is None or self._data_maps(scheduler, needed=False) is None:
            return None
        base = self._base_of_run(scheduler, None)
        base = None if base is None else base[: self._expected]
        if len(self._ladder) > 1:
            return held_plan(self._ladder, self._expected, fraction, base)
        plan = mls.Plan(torch.ones(self._expected, 1, dtype=torch.bool), torch.ones(self._expected, 1))
        return plan if base is None else mls.multistep(plan, base)

    def _carried(self, scheduler: Any) -> mls.Plan | None:
        """The pilot's plan for other noise levels or another scheduler than it measured; None where it is for these.

        Also None where noise levels are not known. It is made once for the same calls in a row.
        """
        settings, places = self._settings, half_log_snr(scheduler, self._clock.offset)
        pilot = settings.pilot
        if pilot is None or not settings.places or len(places) - 1 != self._expected:
            return None
        forms = [one.form for one in pilot.calibration]
        remembers = Form.PLAIN not in forms if forms else bool(pilot.multistep)
        base = self._base_of_run(scheduler, settings.given) if remembers else None
        last = self._other
        if last is None or last[0] is not settings or last[1] != places or last[2] is not base:
            measured = next(iter(pilot.multistep.values()), None)
            same = _near(measured, base) and _near(torch.tensor(settings.places), torch.tensor(places))
            plan = None
            if not same:
                self._tell_of_other(measured, base)
                assert settings.budget is not None
                plan = plans_at(carried(pilot, settings.places, places, base), self._ladder, settings.budget)[0].plan
            self._other = last = settings, places, base, plan
        return last[3]

    def _tell_of_other(self, measured: Tensor | None, base: Tensor | None) -> None:
        """Say once that a plan is for another scheduler, or no longer fitted; other noise levels alone are no news."""
        kind = [None if table is None else table.shape[1] for table in (measured, base)]
        other, fitted = kind[0] != kind[1], self._settings.fitted is not None
        if (other or fitted) and self._answer is None and not self._told_of_other:
            self._told_of_other = True
            what = "of another kind" if other else "at other noise levels"
            lost = ", without the fit" if fitted else ""
            warnings.warn(
                f"the scheduler is {what} than in the calibration, so the plan is carried over{lost}; calibrate again",
                stacklevel=2,
            )

    def _base_of_run(self, scheduler: Any, arguments: Mapping[str, Any] | None) -> Tensor | None:
        """The base's coefficients, found by trial steps once for a grid: they take as long as a call of a model.

        Where the arguments of steps are not known there may be noise, so that there is no corrector.
        """
        grid = (scheduler.config, scheduler.timesteps.tolist(), self._clock.offset, arguments)
        if self._grid is None or self._grid[0][0] is not grid[0] or self._grid[0][1:] != grid[1:]:
            known = arguments is not None
            found = base_coefficients(scheduler, arguments, self._clock.offset, corrected=known)
            self._grid = grid, found
        return self._grid[1]

    def _first_row(self) -> int:
        """The row of the first call: the plan is for all timesteps, or for those from where this run begins."""
        steps, calls, offset = self._rows.steps, self._clock.calls, self._clock.offset
        if steps is None or calls is None:
            return 0
        if steps == calls:
            return offset
        if steps == self._expected:
            return 0
        raise ValueError(
            f'"plan" has {steps} steps, the scheduler makes {calls} calls; run the pipeline with the '
            "num_inference_steps that the plan was made for, or make a plan for this number"
        )

    def _data_maps(self, scheduler: Any, *, needed: bool) -> list[DataMap] | None:
        """How outputs and estimates of the data go together at the scheduler's calls, None where that is not known."""
        try:
            if scheduler is None:
                raise ValueError("the ladder does not know its pipeline; put it in with ladder.install(pipe)")
            if self._changes_outputs():
                raise ValueError("its pipeline makes something else of its model's output")
            maps = data_maps(scheduler)
            if self._aim is not None:  # a calibration finds out
                self._settings, self._aim = replace(self._settings, aimed=self._aim()), None
            return aimed(scheduler, maps) if self._settings.aimed else maps
        except ValueError as error:
            if not needed:
                return None
            raise ValueError(
                f"the plan remembers earlier calls, which needs the scheduler's noise levels, but {error}; or take a "
                "plan without memory, such as pilot.plan(..., memory=False)"
            ) from error

    def _changes_outputs(self) -> bool:
        return self._handed is not None and self._handed.changed

    # -- one call --------------------------------------------------------------------------------------------------

    def _run(self, level: int, call: dict[str, Any]) -> Any:
        """Call a level."""
        raise NotImplementedError

    def _step(self) -> int | None:
        """The step that the pipeline announced in `cache_context`."""
        raise NotImplementedError

    def _price(self, call: Mapping[str, Any]) -> None:
        """Look at a call before it is answered: levels may be priced by the first."""

    def _respond(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return what the top model is said to return at a call of the pipeline."""
        call = bind(self._names, args, kwargs)
        given = call[self._names[0]]
        state = stacked(given)
        self._price(call)
        check_residuals(call, list(self.levels))
        outputs: dict[int, Any] = {}
        whole = call.get("return_dict", True)

        def evaluate(level: int) -> Tensor:
            model = uncompiled(self.levels[level])
            try:
                outputs[level] = self._run(level, for_level(call, model.config))
            except RuntimeError as error:
                reason = explain(level, model, state, error)
                if reason is not None:
                    error.add_note(reason)
                raise
            return stacked(outputs[level][0])

        estimate = self._estimate(time_of(call), state, evaluate)
        if self._handed is not None:
            self._handed.note(estimate)
        if outputs:
            self._output = type(outputs[max(outputs)])
        answer: Any = estimate if isinstance(given, Tensor) else list(estimate.unbind())
        return self._output(answer) if whole else (answer,)

    def _estimate(self, time: Any, state: Tensor, evaluate: Callable[[int], Tensor]) -> Tensor:
        """Return the estimate of the top level's output at a call; evaluate(k) is the output of level k."""
        number = self._clock.number
        position = self._clock.visit(time, state, self._step())
        if self._clock.number != number:
            self._begin()
        row = position + self._shift
        values: dict[int, Tensor] = {}

        def kept(level: int) -> Tensor:
            values[level] = evaluate(level)
            return values[level]

        if self._answer is not None:
            answer = self._answer
            estimate = in_data(self._map(position), state, kept, lambda as_data: answer(position, as_data))
        elif self._memory is not None:
            memory = self._memory
            estimate = in_data(self._map(position), state, kept, lambda as_data: memory.estimate(row, as_data))
        else:
            estimate = combine(self._rows[row], kept)
        self._meter.count(values, self._clock.number)
        if len(values) > 1 and not self._compared:
            self._compared = True
            lower, upper = list(values)[-2:]
            warn_of_disagreement(values[lower], values[upper], (lower, upper))
        return estimate

    def _map(self, position: int) -> DataMap | None:
        return None if self._maps is None else self._maps[position + self._clock.offset]


def _near(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return first.shape == second.shape and torch.allclose(first, second, rtol=1e-3, atol=1e-3)
