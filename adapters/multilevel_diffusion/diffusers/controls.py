"""What a user chooses and asks of a ladder in a pipeline: budgets, calibration, advice, counts.

:class:`Controls` is the part that both ways into a pipeline share, the hook (:mod:`.diffusers.attached`) and the model
that stands in the place of another (:mod:`.diffusers.wrapper`).
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import multilevel_sde as mls
from multilevel_diffusion.diffusers.answering import INVERSE_COST, Answering
from multilevel_diffusion.diffusers.calibration import PipelineRun, calibrated
from multilevel_diffusion.diffusers.checks import uncompiled
from multilevel_diffusion.diffusers.costs import count_costs
from multilevel_diffusion.diffusers.following import Fingerprint, Follower
from multilevel_diffusion.diffusers.handed_on import ChangedOutputError
from multilevel_diffusion.diffusers.scheduler_grid import adds_noise, base_coefficients
from multilevel_diffusion.loops.black_box import plans_at
from multilevel_diffusion.loops.rows import step_probabilities
from multilevel_diffusion.loops.trajectory import Meter, Stats
from multilevel_sde.arguments import as_integer, as_number

__all__ = ["Controls"]

_STALE = (
    "weights have changed since the calibration (a LoRA, another checkpoint), so the plan was made for other networks; "
    "calibrate again"
)


class _Priced(Exception):  # noqa: N818
    """Ends a pipeline's run that is only for the prices of its levels."""


class Controls(Answering):
    """Which level is evaluated when, in a pipeline.

    A class that inherits it gives :meth:`_begin_with` the levels, and :meth:`_respond` each call.
    """

    _pricing = False

    def _begin_with(
        self,
        models: Sequence[nn.Module],
        costs: Sequence[float] | mls.GivenCost | None,
        draw: mls.Draw | None,
        seed: int,
    ) -> None:
        """Take the levels; costs that are not given are counted, at the first call where not before."""
        own = [uncompiled(model) for model in models]
        self._counted = costs is not None
        counted = isinstance(costs, mls.GivenCost) and costs.unit in ("FLOPs", "parameters", "seconds")
        self._given = self._counted and not counted  # by the user, in a unit of theirs
        if costs is None:
            costs, self._counted = count_costs(own)
        elif not isinstance(costs, mls.GivenCost):
            costs = mls.GivenCost(list(costs))
        self._follower, self._stale = Follower(own), False
        self._weights: Fingerprint | None = None
        self._set_up(models, costs, draw, seed)

    def _price(self, call: Mapping[str, Any]) -> None:
        if self._counted:
            return
        self._counted = True
        costs, _ = count_costs([uncompiled(level) for level in self.levels], call)
        self._ladder = mls.Ladder(list(self.levels), costs)
        self._settings, self._meter = replace(self._settings, costs=costs), Meter(costs.costs)
        if self._settings.budget is not None:
            self.allocate(budget_fraction=self._settings.budget, schedule=self._schedule)
        if self._pricing:
            raise _Priced

    def _begin(self) -> None:
        self._follower.follow()
        self._check_weights()
        super()._begin()

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
        if sum(given) != 1:
            raise ValueError(
                'give exactly one of "budget_fraction", "probabilities" and "plan", got '
                f"budget_fraction={budget_fraction}, probabilities={probabilities}, plan={plan}"
            )
        table, held, asked, self._schedule = None, None, budget_fraction, schedule
        if budget_fraction is not None:
            draw = self._settings.draw or mls.systematic
            if not self._counted:  # until the first call prices the levels
                budget_fraction = max(budget_fraction, self._ladder.costs[0] / self._ladder.costs[-1])
            table = step_probabilities(self._ladder, budget_fraction, schedule or INVERSE_COST, draw)
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
        self._follow(replace(self._settings, probabilities=table, plan=plan, held=held, budget=asked))

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

    def calibrate(
        self,
        pipe: Any,
        *,
        num_inference_steps: int,
        samples: int | None = None,
        candidates: int | None = None,
        compare: bool = False,
        fit: bool = False,
        price: str | None = None,
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
            price: "seconds" to count the budget in seconds of this device from now on, by the calls of this pilot,
                which is the default where costs were counted; "given" to leave them, the default where you gave some.
            seed: Of the samples' noise.
            progress: Show progress bars.
            pipeline_arguments: Of the pipeline's call, such as prompt and guidance_scale.

        Returns:
            The pilot: `pilot.plan(budget=...)`, `pilot.cost`.

        Raises:
            ValueError: The ladder is not installed in `pipe`, the pipeline stops early, `price` is none of these, or
                see `check` and
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
        if price is None:
            price = "given" if self._given else "seconds"
        if price not in ("seconds", "given"):
            raise ValueError(f'"price" must be "seconds" or "given", got {price!r}')
        slot = self._clock.slot
        if slot is None or getattr(pipe, slot, None) is not getattr(self, "_top", self):
            raise ValueError(
                '"pipe" is not the pipeline that the ladder is in, nor has it its model; use attach(pipe, ...), or '
                "ladder.install(pipe) of a wrapper"
            )
        if self._clock.pipe is not pipe:
            self._clock.link(pipe, slot)
        samples = (16 if fit else 4) if samples is None else as_integer("samples", samples)
        for name, number in (("num_inference_steps", num_inference_steps), ("samples", samples)):
            if as_integer(name, number) < 1:
                raise ValueError(f'"{name}" must be at least 1, got {number}')
        arguments = {"num_inference_steps": num_inference_steps, **pipeline_arguments}
        run = PipelineRun(
            pipe,
            lambda answer: setattr(self, "_answer", answer),
            base=lambda: self._base(arguments),
            memory=lambda: self._maps is not None,
            expected=lambda: self._expected,
            samples=samples,
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
        measure = functools.partial(
            calibrated,
            run,
            self._ladder,
            budget_fraction=fraction,
            candidates=candidates,
            compare=compare,
            fit=fit,
            seconds=price == "seconds",
            progress=progress,
        )
        try:
            self.check(pipe)
            self._aim = lambda: not adds_noise(pipe.scheduler, arguments)
            try:
                found = measure()
            except ChangedOutputError:  # without memory
                found = measure()
        finally:
            aim, self._aim = self._settings.aimed, None
            self._answer, self._meter = None, meter
            self._follow(settings)
        costs = mls.GivenCost(list(found.pilot.costs), found.pilot.unit)
        self._ladder, self._meter.costs = mls.Ladder(self._ladder.drifts, costs), tuple(costs.costs)
        self._settings = replace(settings, pilot=found.pilot, costs=costs, aimed=aim, places=found.places)
        self._weights, self._stale = self._fingerprint(), False
        if found.fitted is not None:
            self.allocate(plan=found.fitted.plan)
        else:
            self.allocate(budget_fraction=fraction)
        return found.pilot

    def _base(self, arguments: Mapping[str, Any]) -> Tensor | None:
        """Coefficients of a multistep base in the run that has begun, where the scheduler has none of its own."""
        if self._changes_outputs():
            return None
        return base_coefficients(self._clock.scheduler, arguments, self._clock.offset)

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
        fraction = self._fraction() if budget_fraction is None else as_number("budget_fraction", budget_fraction)
        priced = replace(pilot, costs=self._ladder.costs, unit=self._ladder.unit).in_evaluations()
        try:
            advice = priced.advise(budget=fraction * pilot.steps)
        except ValueError as error:
            raise ValueError(f'"budget_fraction" is {fraction:g} of {pilot.steps} calls, but {error}') from None
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
