"""A scheduler of first order in the place of one with a multistep method of its own: plans bring the better one."""

from __future__ import annotations

import copy
from typing import Any

from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

from multilevel_diffusion.diffusers.scheduler_grid import step_lengths

__all__ = ["first_order"]

_TRIED = 10  # steps of the trial


def first_order(scheduler: Any) -> Any:
    """Return a scheduler with the same noise levels and prediction type whose steps are of first order.

    That is the scheduler itself where its steps are (DDIM, DDPM, Euler, flow matching with Euler), else DPM-Solver++ of
    order 1 with its configuration. Under it the base of a calibrated plan gets SA-Solver's method; under UniPC and
    DPM-Solver++ corrections enter the scheduler's own. On the dead leaves the first errs about half as much
    (docs/diffusers).

    Arguments:
        scheduler: Of diffusers; it stays as it is.

    Raises:
        ValueError: No such scheduler can be made of its configuration.

    Example:
        >>> from diffusers import DDIMScheduler, UniPCMultistepScheduler
        >>> euler = first_order(UniPCMultistepScheduler(timestep_spacing="trailing"))
        >>> type(euler).__name__, euler.config.solver_order, euler.config.timestep_spacing
        ('DPMSolverMultistepScheduler', 1, 'trailing')
        >>> ddim = DDIMScheduler(clip_sample=False)
        >>> first_order(ddim) is ddim
        True
    """
    if _is_first_order(scheduler):
        return scheduler
    found = DPMSolverMultistepScheduler.from_config(
        scheduler.config, solver_order=1, algorithm_type="dpmsolver++", final_sigmas_type="zero"
    )
    if not _is_first_order(found):
        raise ValueError(
            f"no scheduler of first order can be made of the configuration of {type(scheduler).__name__}; keep it, or "
            "take DDIMScheduler, EulerDiscreteScheduler or FlowMatchEulerDiscreteScheduler"
        )
    return found


def _is_first_order(scheduler: Any) -> bool:
    trial = copy.deepcopy(scheduler)
    trial.set_timesteps(_TRIED, **({"mu": 1.0} if trial.config.get("use_dynamic_shifting") else {}))
    return step_lengths(trial) is not None
