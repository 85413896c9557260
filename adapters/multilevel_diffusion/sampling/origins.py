"""What files of plans and pilots say they are of, ladder, process and guidance; those of another one are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

import multilevel_sde as mls
from multilevel_diffusion.networks.image_ladders import ImageLadder
from multilevel_diffusion.process.reverse_process import MODES, Process

__all__ = ["load_pilot", "load_plan", "made_for"]

_AGAIN = {
    "plan": "make one for this ladder with `multilevel-sde plan`",
    "pilot": "measure this ladder with `multilevel-sde pilot`",
}


def made_for(images: ImageLadder, process: Process) -> dict[str, Any]:
    """Return what `save` of a plan or a pilot is to keep with it: ladder, process and guidance.

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
        _check(path, told, made_for(images, process), "plan")
    times = process.grid(plan.steps) if times is None else times
    if process.tau != 0 and not process.has(times):  # an ODE has no noise, and may be solved on any grid
        raise ValueError(
            f'"{path}" has times that are not on the finest grid of {len(process.fine_times) - 1} steps; give the '
            "--fine that it was made with"
        )
    return plan, times


def load_pilot(path: str | Path, images: ImageLadder, mode: str | Process) -> mls.Pilot:
    """Return a pilot from its file, after a check that it measured this ladder and process.

    A file that does not say what it measured is accepted where its costs are those of the ladder.

    Arguments:
        path: The file.
        images: The ladder.
        mode: A key of `MODES`, on whatever finest grid the pilot took; or a process.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or measured another ladder, mode, guidance or grid.

    Example:
        >>> from multilevel_diffusion import load_ladder, shipped_ladder
        >>> digits = load_ladder(shipped_ladder("digits"))
        >>> load_pilot(digits.folder / "pilot_ddim.safetensors", digits, "ddpm")
        Traceback (most recent call last):
        ...
        ValueError: ... holds a pilot for mode ddim, this run has mode ddpm; give --mode ddim or another pilot
    """
    pilot, told = mls.Pilot.load(path), mls.Pilot.load_made_for(path)
    process = mode if isinstance(mode, Process) else Process(images.schedule, MODES[mode], pilot.fine_times)
    if told:
        _check(path, told, made_for(images, process), "pilot")
    if pilot.unit == images.ladder.unit == "seconds" and pilot.levels == len(images.ladder):
        return pilot.priced(images.ladder)  # measured again, so never the same
    if pilot.costs != images.ladder.costs:
        raise ValueError(f'"{path}" measured networks of other costs; {_AGAIN["pilot"]}')
    return pilot


def _check(path: str | Path, told: Mapping[str, Any], mine: Mapping[str, Any], kind: str) -> None:
    words = {
        "mode": ("mode {}", f"give --mode {{}} or another {kind}"),
        "schedule": ("the schedule {}", _AGAIN[kind]),
        "fine": ("a finest grid of {} steps", f"give --fine {{}} or another {kind}"),
        "guidance": ("guidance {}", f"give --guidance {{}} or another {kind}"),
    }
    for key, (what, advice) in words.items():
        if key in told and told[key] != mine[key]:
            old, new = (what.format("none" if value is None else value) for value in (told[key], mine[key]))
            help_ = f"leave --guidance out, or give another {kind}" if told[key] is None else advice.format(told[key])
            raise ValueError(f'"{path}" holds a {kind} for {old}, this run has {new}; {help_}')
    if "ladder" in told and told["ladder"] != mine["ladder"]:
        raise ValueError(
            f'"{path}" holds a {kind} for another ladder, or for this one before its weights changed; {_AGAIN[kind]}'
        )
