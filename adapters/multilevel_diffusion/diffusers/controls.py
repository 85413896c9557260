"""What a ladder in a pipeline does at every call: plans, budgets, calibration, the scheduler, counts.

:class:`Controls` is the part that both ways into a pipeline share, the hook (:mod:`.diffusers.attached`) and the model
that stands in the place of another (:mod:`.diffusers.wrapper`).
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import multilevel_sde as mls
from multilevel_diffusion.diffusers.calibration import PipelineRun, calibrated
from multilevel_diffusion.diffusers.calls import (
    bind,
    check_residuals,
    explain,
    for_level,
    time_of,
    warn_of_disagreement,
)
from multilevel_diffusion.diffusers.checks import check_scheduler, uncompiled
from multilevel_diffusion.diffusers.clock import PipelineClock
from multilevel_diffusion.diffusers.costs import count_costs
from multilevel_diffusion.diffusers.following import Fingerprint, Follower
from multilevel_diffusion.diffusers.handed_on import ChangedOutputError, HandedOn
from multilevel_diffusion.diffusers.scheduler_grid import adds_noise, aimed, base_coefficients, data_maps, is_cosmos
from multilevel_diffusion.diffusers.store import Settings
from multilevel_diffusion.loops.black_box import Answer, plans_at
from multilevel_diffusion.loops.held import held_plan
from multilevel_diffusion.loops.memory import DataMap, Memory
from multilevel_diffusion.loops.rows import DrawnRows, PlannedRows, combine, step_probabilities
from multilevel_diffusion.loops.trajectory import Meter, Stats

__all__ = ["Controls"]

_INVERSE_COST = mls.InverseCostSchedule()
_STALE = (
    "weights have changed since the calibration (a LoRA, another checkpoint), so the plan was made for other networks; "
    "calibrate again"
)


class _Priced(Exception):  # noqa: N818
    """Ends a pipeline's run that is only for the prices of its levels."""


class Controls:
    """Which level is evaluated when, in a pipeline.

    A class that inherits it gives :meth:`_set_up` the levels, and :meth:`_estimate` each call.
    """

    config: Any
    _weights: Fingerprint | None
    _checked: object = None
    _warned = _compared = _pricing = False

    levels: Any  # a sequence of modules

    def _set_up(
        self,
        models: Sequence[nn.Module],
        costs: Sequence[float] | mls.GivenCost | None,
        draw: mls.Draw | None,
        seed: int,
    ) -> None:
        """Begin; costs that are not given are counted, at the first call where not before."""
        own = [uncompiled(model) for model in models]
        self._counted = costs is not None
        if costs is None:
            costs, self._counted = count_costs(own)
        elif not isinstance(costs, mls.GivenCost):
            costs = mls.GivenCost(list(costs))
        names = list(inspect.signature(type(own[-1]).forward).parameters)[1:]
        self._follower, self._weights, self._stale = Follower(own), None, False
        self._ladder = mls.Ladder(list(models), costs)
        self._settings = Settings(costs, draw=draw, seed=seed)
        self._names, self._output = names, tuple
        self._meter = Meter(self._ladder.costs)
        self._clock = PipelineClock()
        self._answer: Answer | None = None
        self._memory: Memory | None = None
        self._maps: list[DataMap] | None = None
        self._shift = 0
        self._expected: int | None = None
        self._aim: Callable[[], bool] | None = None
        self._handed: HandedOn | None = None

    # -- what is evaluated when -----------------------------------------------------------------------------------

    def allocate(
        self,
        *,
        budget_fraction: float | None = None,
        probabilities: Tensor | Sequence[float] | None = None,
        plan: mls.Plan | None = None,
        schedule: mls.Schedule | None = None,
    ) -> None:
        """Choose anew which level is evaluated when; the arguments are those of the class.

        After `calibrate`, `budget_fraction` without `schedule` means the pilot's plan.
        """
        given = [value is not None for value in (budget_fraction, probabilities, plan)]
        self._asked = (budget_fraction, schedule)
        if sum(given) != 1:
            raise ValueError(
                'give exactly one of "budget_fraction", "probabilities" and "plan", got '
                f"budget_fraction={budget_fraction}, probabilities={probabilities}, plan={plan}"
            )
        table = held = None
        if budget_fraction is not None:
            draw = self._settings.draw or mls.systematic
            if not self._counted:  # until the first call prices the levels
                budget_fraction = max(budget_fraction, self._ladder.costs[0] / self._ladder.costs[-1])
            table = step_probabilities(self._ladder, budget_fraction, schedule or _INVERSE_COST, draw)
            if schedule is None and self._settings.draw is None and budget_fraction < 1:
                held = budget_fraction
            pilot = self._settings.pilot
            if pilot is not None and schedule is None and (budget_fraction < 1 or len(self._ladder) == 1):
                table, held, plan = None, None, plans_at(pilot, self._ladder, budget_fraction)[0].plan
        elif probabilities is not None:
            table = torch.as_tensor(probabilities, dtype=torch.float64)
            if table.shape[-1:] != (len(self._ladder),):
                raise ValueError(
                    f'"probabilities" has shape {tuple(table.shape)}, expected {(len(self._ladder),)} or one such row '
                    f"for each call: one number for each of the {len(self._ladder)} levels"
                )
        elif plan is not None:
            plan.check_ladder(self._ladder)
        self._follow(replace(self._settings, probabilities=table, plan=plan, held=held))

    def _follow(self, settings: Settings) -> None:
        if settings.plan is not None:
            self._rows: DrawnRows | PlannedRows = PlannedRows(settings.plan)
        else:
            assert settings.probabilities is not None
            self._rows = DrawnRows(settings.probabilities, settings.draw or mls.systematic, settings.seed)
        self._settings = settings
        self.reset()

    @property
    def probabilities(self) -> Tensor | None:
        """p_k, shape (K,), or p_k(n), shape (N, K); None where a plan was given."""
        table = self._settings.probabilities
        return None if table is None else table.clone()

    @property
    def plan(self) -> mls.Plan | None:
        """The plan, None where probabilities were given."""
        return self._settings.plan

    @property
    def costs(self) -> mls.GivenCost:
        """Cost of one call of each level, and its unit."""
        return self._settings.costs

    @property
    def seed(self) -> int:
        """Seed of the draw; every trajectory has the same draw until it is changed."""
        return self._settings.seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self._follow(replace(self._settings, seed=int(seed)))

    @property
    def stats(self) -> Stats:
        """Evaluations of each level and their cost relative to the top model, in the last trajectory and in total."""
        return self._meter.stats

    def reset_stats(self) -> None:
        """Begin counting anew."""
        self._meter.reset()

    def reset(self) -> None:
        """Make the next call the first of a trajectory; needed only by loops that :class:`Trajectory` cannot follow."""
        self._clock.reset()
        self._memory = None

    def calibrate(
        self,
        pipe: Any,
        *,
        num_inference_steps: int,
        samples: int | None = None,
        candidates: int | None = None,
        compare: bool = False,
        fit: bool = False,
        seed: int = 0,
        progress: bool = True,
        **pipeline_arguments: Any,
    ) -> mls.Pilot:
        r"""Measure in the pipeline itself where corrections matter, and plan the evaluations at the same budget.

        The plan is for this number of steps and replaces the draw; later budgets, `allocate(budget_fraction=0.2)`, are
        planned from the same pilot, which is saved with the ladder. It runs the pipeline once with all levels, then
        once for each call and each level but the lowest with the lowest level from there on, about M^2 (K - 1) / 2
        evaluations of it in all; see :mod:`multilevel_diffusion.loops.black_box`. Images made later do not depend on
        it.

        Where the scheduler's steps are of first order (DDIM, DDPM, Euler, flow matching with Euler, DPM-Solver++ with
        solver_order=1) the lowest level is integrated by SA-Solver's multistep method in its place; in all, corrections
        are stored and used until the next ones.

        Arguments:
            pipe: The pipeline that the ladder is installed in.
            num_inference_steps: Of the runs that the plan is for.
            samples: Samples to measure on, by default 4, for a fit 16; memory holds their final states for every call
                and level.
            candidates: Perturb so many calls only, to save time; by default all.
            compare: Also measure the top level in fewer steps, by the scheduler as it is and by the multistep method,
                so that `advise` knows the alternatives. Takes a fine path: the top level at four times as many steps.
            fit: Also fit the plan's coefficients to the end of that fine path (:mod:`.loops.black_box_fit`). A ladder
                of one network is only fitted. The fitted plan is for the present budget.
            seed: Of the samples' noise.
            progress: Show progress bars.
            pipeline_arguments: Of the pipeline's call, such as prompt and guidance_scale.

        Returns:
            The pilot: `pilot.plan(budget=...)`, `pilot.cost`.

        Raises:
            ValueError: The ladder is not installed in `pipe`, the pipeline stops early, or see `check` and
                :func:`multilevel_diffusion.diffusers.calibration.calibrated`.

        Example:
            >>> from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
            >>> from multilevel_diffusion.diffusers import MultilevelUNet
            >>> def unet(width):
            ...     return UNet2DModel(sample_size=8, block_out_channels=(width, width), norm_num_groups=8,
            ...                        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2).eval()
            >>> pipe = DDIMPipeline(unet(16), DDIMScheduler(clip_sample=False))
            >>> ladder = MultilevelUNet([unet(8), unet(16)], budget_fraction=0.6).install(pipe)
            >>> pilot = ladder.calibrate(pipe, num_inference_steps=8, samples=2, progress=False)
            >>> ladder.plan.steps, ladder.plan.evaluations[0].item()
            (8, 8)
        """
        if self._clock.pipe is not pipe:
            slot = self._clock.slot
            if slot is None or getattr(pipe, slot, None) is not getattr(self, "_top", self):
                raise ValueError(
                    '"pipe" is not the pipeline that the ladder is in, nor has it its model; use attach(pipe, ...), or '
                    "ladder.install(pipe) of a wrapper"
                )
            self._clock.link(pipe, slot)
        arguments = {"num_inference_steps": num_inference_steps, **pipeline_arguments}
        run = PipelineRun(
            pipe,
            lambda answer: setattr(self, "_answer", answer),
            samples=(16 if fit else 4) if samples is None else samples,
            seed=seed,
            arguments=arguments,
        )
        if not self._counted:
            self._pricing = True
            with contextlib.suppress(_Priced):
                run(lambda number, evaluate: evaluate(0))
            self._pricing, self._answer = False, None
        settings, meter, fraction = self._settings, self._meter, self._fraction()
        some = torch.tensor([1.0] + [0.5] * (len(self._ladder) - 1))
        self._follow(replace(settings, probabilities=some, plan=None))
        self._meter = Meter(self._ladder.costs)
        try:
            self.check(pipe)
            self._aim = lambda: not adds_noise(pipe.scheduler, arguments)
            measure = functools.partial(
                calibrated,
                run,
                self._ladder,
                base=lambda: (
                    None
                    if self._changes_outputs()
                    else base_coefficients(pipe.scheduler, arguments, self._clock.offset)
                ),
                memory=lambda: self._maps is not None,
                expected=lambda: self._expected,
                budget_fraction=fraction,
                candidates=candidates,
                compare=compare,
                fit=fit,
                progress=progress,
            )
            try:
                found = measure()
            except ChangedOutputError:  # without memory
                found = measure()
        finally:
            aim, self._aim = self._settings.aimed, None
            self._answer, self._meter = None, meter
            self._follow(settings)
        self._settings = replace(settings, pilot=found.pilot, aimed=aim)
        self._weights, self._stale = self._fingerprint(), False
        if found.fitted is not None:
            self.allocate(plan=found.fitted.plan)
        else:
            self.allocate(budget_fraction=fraction)
        return found.pilot

    def advise(self, budget_fraction: float | None = None) -> mls.Advice:
        """Say whether the ladder pays in its pipeline, or which number of steps of the top level alone is better.

        Costs are in evaluations of the top level. The comparison is with what was measured: every call of the top
        level, and after `calibrate(compare=True)` fewer steps of it, by the scheduler as it is and by the multistep
        base.

        Arguments:
            budget_fraction: Cost relative to the top level at every call; by default the present plan's.

        Raises:
            ValueError: The ladder was not calibrated; a budget below the cheapest plan.
        """
        pilot = self._settings.pilot
        if pilot is None:
            raise ValueError(
                "the ladder has measured nothing yet; call ladder.calibrate(pipe, num_inference_steps=...)"
            )
        fraction = self._fraction() if budget_fraction is None else budget_fraction
        priced = replace(pilot, costs=self._ladder.costs, unit=self._ladder.unit).in_evaluations()
        advice = priced.advise(budget=fraction * pilot.steps)
        self._check_weights()
        return replace(advice, text=f"{advice.text} But {_STALE}.") if self._stale else advice

    def _fingerprint(self) -> Fingerprint:
        return Fingerprint([uncompiled(level) for level in self.levels])

    def _check_weights(self) -> None:
        """Warn once where weights are not those that a pilot measured."""
        if self._settings.pilot is None or self._stale:
            return
        now = self._fingerprint()
        self._stale = self._weights is not None and self._weights != now
        self._weights = now
        if self._stale:
            warnings.warn(_STALE, stacklevel=2)

    def _fraction(self) -> float:
        """Expected cost of a call relative to the top model's."""
        plan, table = self._settings.plan, self._settings.probabilities
        if plan is not None:
            cost = plan.cost(self._ladder) / plan.steps
        else:
            assert table is not None
            rows = table.reshape(-1, len(self._ladder))
            cost = mls.expected_cost(self._ladder, rows, self._settings.draw or mls.systematic) / len(rows)
        return min(1.0, max(cost, self._ladder.costs[0]) / self._ladder.costs[-1])

    def compile_repeated_blocks(self, *args: Any, **kwargs: Any) -> None:
        """Compile the repeated blocks of every level; arguments are those of `torch.compile`."""
        model: Any
        for model in self.levels:
            model.compile_repeated_blocks(*args, **kwargs)

    # -- the pipeline around ---------------------------------------------------------------------------------------

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
        self._follower.follow()
        self._check_weights()
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
        self._check_caches(plan)
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

    def _check_caches(self, plan: mls.Plan | None) -> None:
        """Refuse caches of levels that are called now and then: they would use what far steps left in them."""
        table = self._settings.probabilities if plan is None else plan.hits
        for level, model in enumerate(self.levels):
            always = table is not None and bool((table[..., level] == 1).all())
            if getattr(uncompiled(model), "is_cache_enabled", False) and not always:
                raise ValueError(
                    f'"levels[{level}]" has a cache but is called at few steps, which it would mistake for neighbours; '
                    "call its disable_cache() and cache the level that runs at every step: "
                    "ladder.levels[0].enable_cache(...)"
                )

    def _count(self, call: Mapping[str, Any]) -> None:
        """Price the levels by the first call, where that was not possible before it."""
        self._counted = True
        costs, _ = count_costs([uncompiled(level) for level in self.levels], call)
        self._ladder = mls.Ladder(list(self.levels), costs)
        self._settings, self._meter = replace(self._settings, costs=costs), Meter(costs.costs)
        fraction, schedule = self._asked
        if fraction is not None:
            self.allocate(budget_fraction=fraction, schedule=schedule)

    def _plan_of_run(self, scheduler: Any) -> mls.Plan | None:
        """The plan of this run, whose rows are set; None where rows are drawn.

        A budget is of the calls that happen: the pilot's plan of whole trajectories is none for a part of them.
        """
        plan, budget = self._settings.plan, self._settings.held
        part = self._clock.offset > 0 and plan is not None and plan.steps == self._clock.calls != self._expected
        if part and self._settings.pilot is not None:
            budget = self._asked[0]
        if budget is not None and self._answer is None:
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
                table = step_probabilities(self._ladder, budget, _INVERSE_COST)
            self._rows = DrawnRows(table, settings.draw or mls.systematic, settings.seed)
        else:
            self._rows = PlannedRows(plan)
        return plan

    def _unmeasured(self, scheduler: Any, fraction: float) -> mls.Plan | None:
        """The plan of a ladder that has not been measured for this run; None where a draw must do."""
        if self._expected is None or self._data_maps(scheduler, needed=False) is None:
            return None
        base = base_coefficients(scheduler, first=self._clock.offset, corrected=False)
        base = None if base is None else base[: self._expected]
        if len(self._ladder) > 1:
            return held_plan(self._ladder, self._expected, fraction, base)
        plan = mls.Plan(torch.ones(self._expected, 1, dtype=torch.bool), torch.ones(self._expected, 1))
        return plan if base is None else mls.multistep(plan, base)

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

    def _respond(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return what the top model is said to return at a call of the pipeline."""
        call = bind(self._names, args, kwargs)
        state = call[self._names[0]]
        if not isinstance(state, Tensor):
            raise TypeError(f"the model is given a {type(state).__name__} of states; ladders take one tensor")
        if not self._counted:
            self._count(call)
            if self._pricing:
                raise _Priced
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
            return outputs[level][0]

        estimate = self._estimate(time_of(call), state, evaluate)
        if self._handed is not None:
            self._handed.note(estimate)
        if outputs:
            self._output: Any = type(outputs[max(outputs)])
        return self._output(estimate) if whole else (estimate,)

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
            estimate = self._in_data(position, state, kept, lambda as_data: answer(position, as_data))
        elif self._memory is not None:
            memory = self._memory
            estimate = self._in_data(position, state, kept, lambda as_data: memory.estimate(row, as_data))
        else:
            estimate = combine(self._rows[row], kept)
        self._meter.count(values, self._clock.number)
        if len(values) > 1 and not self._compared:
            self._compared = True
            lower, upper = list(values)[-2:]
            warn_of_disagreement(values[lower], values[upper], (lower, upper))
        return estimate

    def _in_data(
        self,
        position: int,
        state: Tensor,
        evaluate: Callable[[int], Tensor],
        answer: Callable[[Callable[[int], Tensor]], Tensor],
    ) -> Tensor:
        """Let `answer` work with estimates of the data, where these are known, and return the output that it means."""
        if self._maps is None:
            return answer(evaluate)
        here, dtype = self._maps[position + self._clock.offset], state.dtype

        def as_data(level: int) -> Tensor:
            nonlocal dtype
            output = evaluate(level)
            dtype = output.dtype
            return here.data(state, output)

        return here.prediction(state, answer(as_data)).to(dtype)
