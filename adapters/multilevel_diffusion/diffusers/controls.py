"""What a user measures and asks of a ladder in a pipeline: calibration, a scheduler, advice.

:class:`Controls` is the part that both ways into a pipeline share, the hook (:mod:`.diffusers.attached`) and the model
that stands in the place of another (:mod:`.diffusers.wrapper`).
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import multilevel_sde as mls
from multilevel_diffusion.diffusers.allocating import Allocating, Priced
from multilevel_diffusion.diffusers.calibration import PipelineRun, calibrated
from multilevel_diffusion.diffusers.checks import uncompiled
from multilevel_diffusion.diffusers.following import Fingerprint, Follower
from multilevel_diffusion.diffusers.handed_on import ChangedOutputError
from multilevel_diffusion.diffusers.scheduler_choice import best_scheduler
from multilevel_diffusion.diffusers.scheduler_grid import adds_noise, base_coefficients, step_arguments
from multilevel_diffusion.loops.trajectory import Meter
from multilevel_sde.arguments import as_integer, as_number

__all__ = ["Controls"]

_STALE = (
    "weights have changed since the calibration (a LoRA, another checkpoint), so the plan was made for other networks; "
    "calibrate again"
)


class Controls(Allocating):
    """What is measured of a ladder in a pipeline, and what follows from it.

    A class that inherits it gives :meth:`_begin_with` the levels, and :meth:`_respond` each call.
    """

    def _begin_with(self, models: Sequence[nn.Module], *chosen: Any) -> None:
        super()._begin_with(models, *chosen)
        self._follower, self._stale = Follower([uncompiled(model) for model in models]), False
        self._weights: Fingerprint | None = None

    def _begin(self) -> None:
        self._follower.follow()
        self._check_weights()
        super()._begin()

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
        samples = (16 if fit else 4) if samples is None else as_integer("samples", samples)
        arguments = {"num_inference_steps": num_inference_steps, **pipeline_arguments}
        with self._measuring(pipe, samples, seed, arguments) as run:
            fraction = self._fraction()
            some = torch.tensor([1.0] + [0.5] * (len(self._ladder) - 1))
            self._follow(replace(self._settings, probabilities=some, plan=None))
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
            self.check(pipe)
            self._aim = lambda: not adds_noise(pipe.scheduler, arguments)
            try:
                found = measure()
            except ChangedOutputError:  # without memory
                found = measure()
            aim = self._settings.aimed
        costs = mls.GivenCost(list(found.pilot.costs), found.pilot.unit)
        self._ladder, self._meter.costs = mls.Ladder(self._ladder.drifts, costs), tuple(costs.costs)
        measured = {"pilot": found.pilot, "costs": costs, "aimed": aim, "places": found.places}
        self._settings = replace(self._settings, **measured, given=step_arguments(pipe.scheduler, arguments))
        self._weights, self._stale, self._told_of_other = self._fingerprint(), False, False
        self.allocate(budget_fraction=fraction)
        if found.fitted is not None:
            self._follow(replace(self._settings, plan=found.fitted.plan, fitted=found.fitted.mean))
        return found.pilot

    def scheduler(
        self,
        pipe: Any,
        *,
        num_inference_steps: int,
        samples: int = 4,
        seed: int = 0,
        progress: bool = True,
        **pipeline_arguments: Any,
    ) -> Any:
        """Return the scheduler of first order whose noise levels suit this number of steps; before `calibrate`.

        The largest network alone runs once on each grid that the pipeline's scheduler has (shifts of flow matching;
        uniform in log-SNR, Karras, exponential, beta), by the multistep method of plans, and once on a fine grid, to
        which the others are compared. That takes about as long as ten plain images a sample. The pipeline keeps its
        scheduler until you give it the new one.

        Arguments:
            pipe: The pipeline that the ladder is installed in, without noise in its steps.
            num_inference_steps: Of the runs that are to come.
            samples: Samples to measure on, at least 2.
            seed: Of their noise.
            progress: Show a progress bar.
            pipeline_arguments: Of the pipeline's call, such as prompt and guidance_scale.

        Raises:
            ValueError: The ladder is not installed in `pipe`; the scheduler adds noise, or begins at another noise
                level with more steps.

        Example:
            >>> from diffusers import DDIMPipeline, FlowMatchEulerDiscreteScheduler, UNet2DModel
            >>> from multilevel_diffusion.diffusers import attach
            >>> net = UNet2DModel(sample_size=8, block_out_channels=(8,), norm_num_groups=8,
            ...                   down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)).eval()
            >>> class Pipe(DDIMPipeline):
            ...     def __init__(self, unet, scheduler):
            ...         super(DDIMPipeline, self).__init__()
            ...         self.register_modules(unet=unet, scheduler=scheduler)
            ...     def __call__(self, batch_size=1, generator=None, num_inference_steps=8):
            ...         self.scheduler.set_timesteps(num_inference_steps)
            ...         x = torch.stack([torch.randn(3, 8, 8, generator=one) for one in generator])
            ...         for t in self.scheduler.timesteps:
            ...             x = self.scheduler.step(self.unet(x, t).sample, t, x).prev_sample
            ...         return x
            >>> pipe = Pipe(net, FlowMatchEulerDiscreteScheduler())
            >>> ladder = attach(pipe)
            >>> pipe.scheduler = ladder.scheduler(pipe, num_inference_steps=6, samples=2, progress=False)
            >>> pipe.scheduler.config.num_train_timesteps
            1000
        """
        arguments = {"num_inference_steps": num_inference_steps, **pipeline_arguments}
        with self._measuring(pipe, as_integer("samples", samples), seed, arguments) as run:
            choose = functools.partial(best_scheduler, run, len(self._ladder) - 1, progress=progress)
            try:
                return choose()
            except ChangedOutputError:  # without memory
                return choose()

    @contextlib.contextmanager
    def _measuring(self, pipe: Any, samples: int, seed: int, arguments: Mapping[str, Any]) -> Iterator[PipelineRun]:
        """The pipeline, which answers as is wished; settings and counts are as before afterwards.

        Raises:
            ValueError: The ladder is not in this pipeline; numbers below 1.
        """
        slot = self._clock.slot
        if slot is None or getattr(pipe, slot, None) is not getattr(self, "_top", self):
            raise ValueError(
                '"pipe" is not the pipeline that the ladder is in, nor has it its model; use attach(pipe, ...), or '
                "ladder.install(pipe) of a wrapper"
            )
        if self._clock.pipe is not pipe:
            self._clock.link(pipe, slot)
        for name, number in (("num_inference_steps", arguments["num_inference_steps"]), ("samples", samples)):
            if as_integer(name, number) < 1:
                raise ValueError(f'"{name}" must be at least 1, got {number}')
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
            with contextlib.suppress(Priced):
                run(lambda number, evaluate: evaluate(0))
            self._pricing, self._answer = False, None
        settings, meter = self._settings, self._meter
        self._meter = Meter(self._ladder.costs)
        try:
            yield run
        finally:
            self._aim = self._answer = None
            self._meter = meter
            self._follow(settings)

    def _base(self, arguments: Mapping[str, Any]) -> Tensor | None:
        """Coefficients of a multistep base in the run that has begun, where the scheduler has none of its own."""
        if self._changes_outputs():
            return None
        return base_coefficients(self._clock.scheduler, arguments, self._clock.offset)

    def advise(self, budget_fraction: float | None = None) -> mls.Advice:
        """Say whether the ladder pays in its pipeline, or which number of steps of the top level alone is better.

        Costs are in evaluations of the top level. The comparison is with what was measured: every call of the top
        level, and after `calibrate(compare=True)` fewer steps of it, by the scheduler as it is and by the multistep
        base. Of a fitted plan, the present one, the error is that on the samples kept out of its fit.

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
        text, error = advice.text, self._settings.fitted
        if error is not None and budget_fraction is None:
            better = error < advice.use.predicted.mse
            text = (
                f"{'Keep' if better else 'Leave'} the fitted plan: mean squared error {error:.3g} on samples kept out, "
                f"at cost {fraction * pilot.steps:.3g} evaluations of the top level. Without a fit: {text}"
            )
        return replace(advice, text=f"{text} But {_STALE}." if self._stale else text)

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

    def compile_repeated_blocks(self, *args: Any, **kwargs: Any) -> None:
        """Compile the repeated blocks of every level; arguments are those of `torch.compile`."""
        model: Any
        for model in self.levels:
            model.compile_repeated_blocks(*args, **kwargs)
