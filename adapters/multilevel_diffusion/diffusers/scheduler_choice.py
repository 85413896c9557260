"""Which noise levels suit a number of steps: the scheduler of a pipeline, and the same on the other grids it knows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from tqdm.auto import tqdm

from multilevel_diffusion.diffusers.calibration import PipelineRun, fine_path
from multilevel_diffusion.diffusers.one_step_schedulers import first_order
from multilevel_diffusion.diffusers.scheduler_grid import adds_noise
from multilevel_diffusion.loops.black_box import checked
from multilevel_diffusion.loops.recording import Alone
from multilevel_sde.pilots.trial import squared, typical

__all__ = ["best_scheduler", "on_other_grids"]

_SHIFTS = (1.0, 2.0, 3.0, 5.0)  # of flow matching: t -> s t / (1 + (s - 1) t)
_SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
_SAME_START = 2e-3  # difference of alpha / sigma: flow grids begin at 1 or 0.999
_UNKNOWN = (TypeError, ValueError, RuntimeError, IndexError)  # of grids that do not exist for so many steps


def on_other_grids(scheduler: Any) -> Iterator[Any]:
    """Yield a scheduler of first order with the noise levels of the given one, then others on other grids.

    Flow matching: shifted by 1, 2, 3, 5, of which Euler's grids end with a call at 0.001 and those of DPM-Solver++ of
    order 1 with one at 1 / N; none where the pipeline shifts by the size of the image. Else: uniform in log-SNR, and
    those of Karras, exponential and of a beta distribution, by DPM-Solver++ of order 1.

    Example:
        >>> from diffusers import FlowMatchEulerDiscreteScheduler
        >>> [one.config.get("shift") for one in on_other_grids(FlowMatchEulerDiscreteScheduler(shift=3.0))]
        [3.0, 1.0, 2.0, 5.0, None, None, None, None]
    """
    own = first_order(scheduler)
    yield own
    euler = "FlowMatch" in type(own).__name__
    if euler or own.config.get("use_flow_sigmas"):
        if own.config.get("use_dynamic_shifting"):
            return
        for value in (value for value in _SHIFTS if value != own.config["shift" if euler else "flow_shift"]):
            yield type(own).from_config(own.config, **{"shift" if euler else "flow_shift": value})
        for value in _SHIFTS if euler else ():
            yield DPMSolverMultistepScheduler(
                num_train_timesteps=own.config.num_train_timesteps, use_flow_sigmas=True,
                prediction_type="flow_prediction", flow_shift=value, solver_order=1,
            )  # fmt: skip
        return
    for name in _SIGMAS:
        kind = type(own) if name in own.config else DPMSolverMultistepScheduler
        options = {other: other == name for other in _SIGMAS if other in own.config or kind is not type(own)}
        order = {} if kind is type(own) else {"solver_order": 1, "algorithm_type": "dpmsolver++"}
        yield kind.from_config(own.config, **order, **options)


def best_scheduler(run: PipelineRun, level: int, *, progress: bool) -> Any:
    """Return the scheduler with which the largest network alone ends nearest to its fine path, in equally many steps.

    Each of :func:`on_other_grids` is tried once; those that begin at another noise level are left out.

    Arguments:
        run: The pipeline; its scheduler is as before afterwards.
        level: The largest network, from 0.
        progress: Show a progress bar.

    Raises:
        ValueError: The scheduler adds noise, so that another grid has another noise; the pipeline takes none of first
            order; there is no fine path, see :func:`.calibration.fine_path`.
    """
    pipe, given = run.pipe, run.pipe.scheduler
    first = run(Alone(level, run.base))  # after which it is set
    if adds_noise(given, run.given):
        raise ValueError(
            f"{type(given).__name__} adds noise, which is another one on another grid, so that errors do not compare; "
            "keep it, or take one without"
        )
    tried, ends = list(on_other_grids(given)), []
    best, start = 0, 0.0
    try:
        for place, pipe.scheduler in enumerate(tqdm(tried, desc="grids", unit="run", disable=not progress)):
            try:
                end = checked(first if pipe.scheduler is given else run(Alone(level, run.base)))
                signal = math.exp(-run.noise_level)
                start = start if place else signal
                same = abs(signal - start) < _SAME_START
            except _UNKNOWN as error:
                if not place and tried[0] is given:
                    raise
                if not place:
                    raise ValueError(
                        f"the pipeline runs with no scheduler of first order in the place of its "
                        f"{type(given).__name__}, so there is none to propose; keep it ({error})"
                    ) from error
                same = False
            ends.append(end if same else torch.full_like(ends[0], math.nan))
        for _ in range(2):  # the fine path on the best grid is finer
            pipe.scheduler = tried[best]
            target = checked(fine_path(run, Alone(level, run.base)))
            errors = [typical(squared(end, target)) for end in ends]
            best = min(range(len(tried)), key=lambda place: errors[place] if errors[place] >= 0 else math.inf)
    finally:
        pipe.scheduler = given
    return tried[best]
