"""Pilots and plans that lie in a ladder's folder, for the budgets that people ask for."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

import multilevel_sde as mls
from multilevel_diffusion.networks.store import DiffusionLadder

__all__ = ["stored_pilot", "stored_plan"]

_NEAR = 0.8  # a stored plan is used for budgets up to 1 / _NEAR of its cost


def stored_pilot(ladder: DiffusionLadder, mode: str) -> mls.Pilot | None:
    """Return the pilot that lies in a ladder's folder for a mode ("ddpm" or "ddim"), or None.

    Example:
        >>> from multilevel_diffusion.networks.store import load_ladder, shipped_ladder
        >>> stored_pilot(load_ladder(shipped_ladder("digits")), "ddpm").steps
        100
    """
    if ladder.folder is None or not (ladder.folder / f"pilot_{mode}.safetensors").is_file():
        return None
    return mls.Pilot.load(ladder.folder / f"pilot_{mode}.safetensors")


def stored_plan(images: DiffusionLadder, mode: str, budget: float) -> tuple[mls.Plan, Tensor] | None:
    """Return the dearest fitted plan of a ladder's folder that a budget pays, with its grid, or None.

    Arguments:
        images: The ladder.
        mode: "ddpm" or "ddim".
        budget: Cost of an image in evaluations of the largest network; a plan of less than 0.8 of it is not returned.
    """
    if images.folder is None:
        return None
    found = {}
    for path in Path(images.folder).glob(f"plan_{mode}_*.safetensors"):
        number = re.fullmatch(rf"plan_{mode}_(\d+(?:\.\d+)?)\.safetensors", path.name)
        if number and _NEAR * budget <= float(number[1]) <= budget * (1 + 1e-9):
            found[float(number[1])] = path
    if not found:
        return None
    plan, times = mls.Plan.load_with_times(found[max(found)])
    if times is None:
        raise ValueError(f'"{found[max(found)]}" holds no times; write it again with `multilevel-sde plan --fit`')
    return plan, times
