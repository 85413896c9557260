"""A pilot inside a diffusers pipeline: the pipeline is run as it is, and its scheduler's last state is compared.

:func:`calibrated` measures where corrections matter, and if asked what the scheduler errs in fewer steps, and fits the
coefficients of plans. Its target is the top level at every call, by a multistep method where the scheduler's steps are
of first order; for comparisons and fits of ODEs, the same on a grid so fine that its own error hardly counts.

Every run has the same generators, one for each sample, and the same global seed for schedulers that take none; the
global generators, the scheduler and the progress bar are as before afterwards.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

import multilevel_sde as mls
from multilevel_diffusion.diffusers.handed_on import watched_step
from multilevel_diffusion.diffusers.scheduler_grid import adds_noise, half_log_snr, signal_levels
from multilevel_diffusion.loops.black_box import black_box_pilot, checked, plans_at
from multilevel_diffusion.loops.black_box_fit import LoopRun
from multilevel_diffusion.loops.recording import Alone, Answer, Base
from multilevel_sde.cost import rising
from multilevel_sde.fitting.gauss_newton import fitted
from multilevel_sde.fitting.perturbed_runs import Parts
from multilevel_sde.pilots.answers import Single
from multilevel_sde.pilots.trial import squared, typical

__all__ = ["Calibrated", "PipelineRun", "calibrated", "fine_path"]

_FINER = 4  # times as many steps has the grid of the target, of a multistep method
_FEWER = (3, 4, 5, 6, 8, 10, 12, 15, 20, 28, 40)  # steps of the top level alone that are measured
_FITTED = 3  # plans of a pilot that a fit begins with
_ORDER = 3  # values of the base that a fit uses at least
_SAME_START = 1e-3  # difference in log-SNR
_COUNTS = ("batch_size", "num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")
_PROMPTS = ("prompt", r"prompt_embeds(?!_llama3|_scale)\w*", "image_embeds")  # the first that is given says how many
_OF_PROMPTS = re.compile(r"(negative_)?(pooled_)?prompt|.*(_embeds|_embeddings|attention_mask)$")  # one for each


class PipelineRun:
    """A pipeline as a function of what its denoiser answers.

    Arguments:
        pipe: The pipeline.
        answer_with: Sets the answer of its denoiser until it is called again.
        base: Coefficients of a multistep base of the run that has begun, see :data:`.loops.recording.Base`.
        memory: Whether estimates of the data are known, asked after a run.
        expected: Calls of a whole trajectory, asked after a run; None where that is not known.
        samples: Number of samples in a run.
        seed: Sample number i has the generator of seed + i.
        arguments: Of the pipeline's call, `num_inference_steps` among them.

    Raises:
        ValueError: An argument that the pilot sets itself; a number of samples that does not fit the prompts.
    """

    def __init__(
        self,
        pipe: Any,
        answer_with: Callable[[Answer], None],
        *,
        base: Base,
        memory: Callable[[], bool],
        expected: Callable[[], int | None],
        samples: int,
        seed: int,
        arguments: Mapping[str, Any],
    ):
        self.pipe, self.answer_with, self.samples, self.seed = pipe, answer_with, samples, seed
        self.base, self.memory, self.expected = base, memory, expected
        self.given = _call_arguments(pipe, samples, arguments)

    def __call__(self, answer: Answer, steps: int | None = None) -> Tensor:
        """Return the states after the scheduler's last step, (samples, ...).

        Raises:
            ValueError: The pipeline stops before its scheduler's last step.
        """
        pipe = self.pipe
        self.answer_with(answer)
        generators = [torch.Generator().manual_seed(self.seed + sample) for sample in range(self.samples)]
        given = self.given | ({} if steps is None else {"num_inference_steps": steps})
        with (
            torch.random.fork_rng(devices=range(torch.cuda.device_count())),
            watched_step(pipe.scheduler) as state,
            _quiet(pipe),
        ):
            torch.manual_seed(self.seed)
            result = pipe(**given, generator=generators)
        if not state and given.get("output_type") == "latent":  # copies of the scheduler made the steps
            state.append(result[0])
        if not state:
            raise ValueError('"pipe" ended without a step of its scheduler; a pilot needs the whole trajectory')
        return state[0][: self.samples]  # DiT steps both halves of guidance, and returns the first

    @property
    def noise_level(self) -> float:
        """log(sigma / alpha) where the scheduler, as it is set now, begins."""
        alphas, sigmas = signal_levels(self.pipe.scheduler)
        return math.log(sigmas[0]) - math.log(alphas[0]) if alphas[0] > 0 else math.inf


@dataclass(frozen=True)
class Calibrated:
    """What a calibration found.

    Attributes:
        pilot: The measurements.
        fitted: The plan for the budget with fitted coefficients, None where none was asked for.
    """

    pilot: mls.Pilot
    fitted: mls.FittedPlan | None
    places: tuple[float, ...]


def calibrated(
    run: PipelineRun,
    ladder: mls.Ladder,
    *,
    budget_fraction: float,
    candidates: int | None,
    compare: bool,
    fit: bool,
    seconds: bool,
    progress: bool,
) -> Calibrated:
    """Measure a ladder, or one network, in a pipeline.

    Arguments:
        run: The pipeline.
        ladder: The levels' costs.
        budget_fraction: Cost of the fitted plan, of the top level at every call.
        candidates: See :func:`.loops.black_box.black_box_pilot`.
        compare: Also measure the top level in fewer steps, against a fine grid.
        fit: Also fit.
        seconds: Price the levels by the time that their calls took, where that allows the budget.
        progress: Show progress bars.

    Raises:
        ValueError: A pipeline that stops early; a scheduler that begins elsewhere with more steps, where a fine grid is
            needed; fewer than 8 samples for a fit; see :func:`.loops.black_box.black_box_pilot`.
    """
    if fit and run.samples < 8:
        raise ValueError(f'"samples" is {run.samples}, expected at least 8 (better 16) for a fit')
    ends = _Ends(run, ladder, fine=compare or fit)
    pilot = black_box_pilot(
        run,
        ladder,
        base=run.base,
        memory=run.memory,
        target=ends,
        candidates=candidates,
        progress=progress,
    )
    if seconds:
        ladder = _timed(ladder, pilot, budget_fraction)
        pilot = pilot.priced(ladder)
    if ends.is_fine:
        pilot = _compared(run, ladder, pilot, ends.target, progress, fewer=compare)
    found = _fitted(run, ladder, pilot, budget_fraction, ends.target, progress) if fit else None
    return Calibrated(pilot, found, ends.places)


def _timed(ladder: mls.Ladder, pilot: mls.Pilot, budget_fraction: float) -> mls.Ladder:
    """The ladder at the measured seconds, or as it is where no plan would keep within the budget."""
    costs = rising(pilot.seconds)
    least = costs[0] / costs[-1]
    if len(ladder) > 1 and budget_fraction < least:
        warnings.warn(
            f"a call of the smallest level takes {least:.2g} of the largest one's seconds here, so no plan takes "
            f'{budget_fraction:.2g} of them; "budget_fraction" counts {ladder.unit}; give a larger one, or larger '
            "batches, for which small levels are faster",
            stacklevel=4,
        )
        return ladder
    return mls.Ladder(ladder.drifts, mls.GivenCost(costs, "seconds"))


class _Ends:
    """Where plans should end: where the pilot's own path does or, if asked for, a fine path without noise."""

    def __init__(self, run: PipelineRun, ladder: mls.Ladder, *, fine: bool):
        self.run, self.ladder, self.is_fine = run, ladder, fine
        self.target, self.places = torch.empty(0), ()

    def __call__(self, final: Tensor, made: int) -> Tensor:
        """Return the target, from where the pilot's path ends after so many calls."""
        run, whole = self.run, self.run.expected()
        if whole is not None and made != whole:
            raise ValueError(
                f'"pipe" made {made} of the {whole} calls of its scheduler; a pilot needs the whole trajectory'
            )
        places = half_log_snr(run.pipe.scheduler)[-(made + 1) :]
        self.places = places if len(places) == made + 1 else ()
        self.is_fine = self.is_fine and not adds_noise(run.pipe.scheduler, run.given)
        self.target = fine_path(run, Alone(len(self.ladder) - 1, run.base)) if self.is_fine else final
        return self.target


def fine_path(run: PipelineRun, answer: Answer) -> Tensor:
    """Return where the largest network ends in so many steps that its own error hardly counts.

    Arguments:
        run: The pipeline, which has run already.
        answer: With the largest network at every call.

    Raises:
        ValueError: The scheduler begins at another noise level with more steps.
    """
    scheduler, steps, start = run.pipe.scheduler, len(run.pipe.scheduler.timesteps), run.noise_level
    asked = _FINER * int(run.given["num_inference_steps"])
    end = run(answer, steps=asked)
    if not math.isclose(run.noise_level, start, abs_tol=_SAME_START):
        raise ValueError(
            f"{type(scheduler).__name__} begins with {steps} steps at another noise level than with {asked}, so there "
            'is no fine path to compare with; set timestep_spacing="trailing", or leave out fit and compare'
        )
    return end


def _compared(
    run: PipelineRun,
    ladder: mls.Ladder,
    pilot: mls.Pilot,
    target: Tensor,
    progress: bool,
    *,
    fewer: bool,
) -> mls.Pilot:
    """The pilot with what the top level alone errs against the fine path, at every call and in fewer steps."""
    top, singles, tables, cost = len(ladder) - 1, [], {}, pilot.cost
    numbers = [n for n in _FEWER if n < pilot.steps] if fewer else []
    for n in tqdm([*numbers, pilot.steps], desc="single", unit="run", disable=not progress):
        for method in [None, run.base] if pilot.multistep else [None]:
            answer = Alone(top, method)
            errors = squared(checked(run(answer, steps=n)), checked(target))
            usual = typical(errors)
            tail = float(errors.mean()) / max(usual, 1e-300)
            singles.append(Single(top, answer.count, method is not None, usual, tail))
            if answer.table is not None:
                tables[answer.count] = answer.table
            cost += len(target) * answer.count * ladder.costs[-1]
    cost += len(target) * _FINER * pilot.steps * ladder.costs[-1]
    return replace(pilot, singles=tuple(singles), multistep=tables, cost=cost)


def _fitted(
    run: PipelineRun, ladder: mls.Ladder, pilot: mls.Pilot, budget_fraction: float, target: Tensor, progress: bool
) -> mls.FittedPlan:
    """The best of the pilot's plans at a budget, with its coefficients fitted to the target."""
    runs = LoopRun(run, ladder, target)
    found = []
    for plan in plans_at(pilot, ladder, budget_fraction)[:_FITTED]:
        found.append((plan, Parts.of(plan.plan).padded(_ORDER), runs))
    return fitted(found, progress=progress)


def _call_arguments(pipe: Any, samples: int, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The pipeline's arguments for so many samples, without decoding where the pipeline knows how."""
    names = inspect.signature(type(pipe).__call__).parameters
    for name in ("generator", "return_dict", *_COUNTS):
        if name in arguments:
            raise ValueError(f'"{name}" is set by the pilot, leave it out; "samples" and "seed" say how many and which')
    given: dict[str, Any] = {"output_type": "latent"} if "output_type" in names else {}
    given |= dict(arguments)
    given_names = [name for name, value in arguments.items() if value is not None]
    counted = (name for kind in _PROMPTS for name in given_names if re.fullmatch(kind, name))
    prompts = next((_length(arguments[name]) for name in counted), None)
    if prompts is not None:
        if samples % prompts:
            raise ValueError(f'"samples" is {samples}, expected a multiple of the {prompts} prompts')
        return {name: _repeated(name, value, prompts, samples // prompts) for name, value in given.items()}
    if "batch_size" in names:
        given["batch_size"] = samples
    elif "class_labels" in arguments:
        labels = list(torch.as_tensor(arguments["class_labels"]).flatten().tolist())
        given["class_labels"] = [labels[sample % len(labels)] for sample in range(samples)]
    return given


def _length(prompt: Any) -> int:
    return len(prompt) if isinstance(prompt, list | Tensor) else 1


def _repeated(name: str, value: Any, prompts: int, times: int) -> Any:
    """A prompt, its embeddings and masks for every sample: not all pipelines multiply what they are given."""
    if not _OF_PROMPTS.match(name):
        return value
    if isinstance(value, str):
        return [value] * (prompts * times)
    if isinstance(value, Tensor) and name.endswith("cu_seqlens"):  # Kandinsky 5: where the prompts begin and end
        lengths = value.diff().repeat_interleave(times)
        return torch.cat([value[:1], lengths.cumsum(0).to(value.dtype)])
    axis = int(name.endswith("llama3"))  # HiDream: of each layer of its encoder
    if isinstance(value, Tensor) and value.shape[axis] == prompts:
        return value.repeat_interleave(times, dim=axis)
    if isinstance(value, list) and len(value) == prompts and isinstance(value[0], str | Tensor):
        return [entry for entry in value for _ in range(times)]
    return value


@contextlib.contextmanager
def _quiet(pipe: Any) -> Iterator[None]:
    """The pipeline without its own progress bar."""
    before = getattr(pipe, "_progress_bar_config", None)
    pipe.set_progress_bar_config(**{**(before or {}), "disable": True})
    try:
        yield
    finally:
        pipe._progress_bar_config = before or {}
