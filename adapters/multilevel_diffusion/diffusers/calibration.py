"""A pilot inside a diffusers pipeline: the pipeline is run as it is, and its scheduler's last state is compared.

Every run has the same generators, one for each sample, and the same global seed for schedulers that take none; the
global generators, the scheduler and the progress bar are as before afterwards.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

import multilevel_sde as mls
from multilevel_diffusion.loops.black_box import Answer, Base, black_box_pilot

__all__ = ["pipeline_pilot"]

_COUNTS = ("batch_size", "num_images_per_prompt", "num_videos_per_prompt")


def pipeline_pilot(
    pipe: Any,
    ladder: mls.Ladder,
    answer_with: Callable[[Answer], None],
    *,
    base: Base,
    memory: Callable[[], bool],
    samples: int,
    candidates: int | None,
    seed: int,
    progress: bool,
    arguments: Mapping[str, Any],
) -> mls.Pilot:
    """Run :func:`multilevel_diffusion.loops.black_box.black_box_pilot` with a pipeline.

    Arguments:
        pipe: The pipeline, whose denoiser answers as `answer_with` says.
        ladder: The levels and their costs.
        answer_with: Sets the answer of the denoiser until it is called again.
        base: See :func:`black_box_pilot`.
        memory: Whether values mean the same at every call, known once the pipeline has begun to run.
        samples: Number of samples in a run.
        candidates: See :func:`black_box_pilot`.
        seed: Sample number i has the generator of seed + i.
        progress: Show a progress bar.
        arguments: Of the pipeline's call.

    Raises:
        ValueError: An argument that the pilot sets itself; a number of samples that does not fit the prompts; a
            pipeline that stops before its scheduler's last step; and see :func:`black_box_pilot`.
    """
    given = _call_arguments(pipe, samples, arguments)

    def run(answer: Answer) -> Tensor:
        answer_with(answer)
        generators = [torch.Generator().manual_seed(seed + sample) for sample in range(samples)]
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())), _last_state(pipe.scheduler) as state:
            torch.manual_seed(seed)
            pipe(**given, generator=generators)
        if not state:
            raise ValueError('"pipe" ended without a step of its scheduler; a pilot needs the whole trajectory')
        return state[0][:samples]  # DiT steps both halves of guidance, and returns the first

    with _quiet(pipe):
        return black_box_pilot(run, ladder, base=base, memory=memory, candidates=candidates, progress=progress)


def _call_arguments(pipe: Any, samples: int, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The pipeline's arguments for so many samples, without decoding where the pipeline knows how."""
    names = inspect.signature(type(pipe).__call__).parameters
    for name in ("generator", "return_dict", *_COUNTS):
        if name in arguments:
            raise ValueError(f'"{name}" is set by the pilot, leave it out; "samples" and "seed" say how many and which')
    given: dict[str, Any] = {"output_type": "latent"} if "output_type" in names else {}
    given |= dict(arguments)
    count = next((name for name in _COUNTS if name in names), None)
    if count is not None:
        prompts = 1 if count == "batch_size" else _prompts(arguments)
        if samples % prompts:
            raise ValueError(f'"samples" is {samples}, expected a multiple of the {prompts} prompts')
        given[count] = samples // prompts
    elif "class_labels" in arguments:
        labels = list(torch.as_tensor(arguments["class_labels"]).flatten().tolist())
        given["class_labels"] = [labels[sample % len(labels)] for sample in range(samples)]
    return given


def _prompts(arguments: Mapping[str, Any]) -> int:
    prompt = arguments.get("prompt")
    if prompt is None:
        prompt = arguments.get("prompt_embeds")
    return len(prompt) if isinstance(prompt, list | Tensor) else 1


@contextlib.contextmanager
def _last_state(scheduler: Any) -> Iterator[list[Tensor]]:
    """A list that holds the state after the last step that the scheduler made."""
    step, own = scheduler.step, "step" in vars(scheduler)
    state: list[Tensor] = []

    @functools.wraps(step)  # pipelines ask for the signature
    def watched(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        state[:] = [result[0]]
        return result

    scheduler.step = watched
    try:
        yield state
    finally:
        if own:
            scheduler.step = step
        else:
            del scheduler.step


@contextlib.contextmanager
def _quiet(pipe: Any) -> Iterator[None]:
    """The pipeline without its own progress bar."""
    before = getattr(pipe, "_progress_bar_config", None)
    pipe.set_progress_bar_config(**{**(before or {}), "disable": True})
    try:
        yield
    finally:
        pipe._progress_bar_config = before or {}
