"""What a plan file says about where its plan comes from: ladder, process and guidance; another one is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

import multilevel_sde as mls
from multilevel_diffusion.networks.image_ladders import ImageLadder
from multilevel_diffusion.process.reverse_process import Process

__all__ = ["load_plan", "made_for", "write_origin"]


def made_for(images: ImageLadder, process: Process) -> dict[str, Any]:
    """Return what :meth:`multilevel_sde.Plan.save` is to keep with a plan: ladder, process and guidance.

    Example:
        >>> from multilevel_diffusion import load_ladder, shipped_ladder, uniform
        >>> digits = load_ladder(shipped_ladder("digits"))
        >>> told = made_for(digits, Process(digits.schedule, 0.0, uniform(digits.schedule, 10)))
        >>> told["mode"], told["fine"], len(told["ladder"])
        ('ddim', 10, 64)
    """
    return {**process.describe(), "guidance": images.guidance, "ladder": images.digest}


def load_plan(path: str | Path, images: ImageLadder, process: Process) -> tuple[mls.Plan, Tensor]:
    """Return a plan from its file, and its times, after a check that it was made for this ladder and process.

    A file that does not say what it was made for is accepted where its levels and times fit.

    Arguments:
        path: The file.
        images: The ladder.
        process: What is to be solved.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or the plan was made for another ladder, mode, guidance or grid.
    """
    plan, times = mls.Plan.load_with_times(path)
    plan.check_ladder(images.ladder)
    told = mls.Plan.load_made_for(path)
    if told:
        _check(path, told, made_for(images, process))
    times = process.grid(plan.steps) if times is None else times
    if process.tau != 0 and not process.has(times):  # an ODE has no noise, and may be solved on any grid
        raise ValueError(
            f'"{path}" has times that are not on the finest grid of {len(process.fine_times) - 1} steps; give the '
            "--fine that it was made with"
        )
    return plan, times


def write_origin(path: str | Path, images: ImageLadder, process: Process) -> None:
    """Write into a plan file that does not say it what its plan was made for; plan and times stay as they are.

    Arguments:
        path: The file, rewritten whole or not at all.
        images: The ladder that the plan was made for.
        process: What it was made to solve.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or the plan does not fit, or was made for another ladder or process.

    Example:
        >>> import tempfile
        >>> from multilevel_diffusion import load_ladder, shipped_ladder, uniform
        >>> digits = load_ladder(shipped_ladder("digits"))
        >>> process = Process(digits.schedule, 0.0, uniform(digits.schedule, 10))
        >>> path = tempfile.mkdtemp() + "/plan.safetensors"
        >>> mls.em_plan(digits.ladder, process.grid(5)).save(path, process.grid(5))
        >>> write_origin(path, digits, process)
        >>> mls.Plan.load_made_for(path)["mode"]
        'ddim'
    """
    plan, times = load_plan(path, images, process)
    plan.save(path, times, made_for(images, process))


def _check(path: str | Path, told: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    words = {
        "mode": ("mode {}", "give --mode {} or another plan"),
        "schedule": ("the schedule {}", "make a plan for this ladder with `multilevel-sde plan`"),
        "fine": ("a finest grid of {} steps", "give --fine {} or another plan"),
        "guidance": ("guidance {}", "give --guidance {} or another plan"),
    }
    for key, (what, advice) in words.items():
        if key in told and told[key] != mine[key]:
            old, new = (what.format("none" if value is None else value) for value in (told[key], mine[key]))
            help_ = "leave --guidance out, or give another plan" if told[key] is None else advice.format(told[key])
            raise ValueError(f'"{path}" holds a plan for {old}, this run has {new}; {help_}')
    if "ladder" in told and told["ladder"] != mine["ladder"]:
        raise ValueError(
            f'"{path}" holds a plan for another ladder, or for this one before its weights changed; make one for this '
            "ladder with `multilevel-sde plan`"
        )
