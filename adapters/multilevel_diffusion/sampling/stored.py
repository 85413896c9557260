"""Pilots and plans that lie in a ladder's folder, for the budgets that people ask for."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

import multilevel_sde as mls
from multilevel_diffusion.networks.image_ladders import DiffusionLadder, ImageLadder, pilot_name, plan_name
from multilevel_diffusion.process.grids import uniform
from multilevel_diffusion.process.reverse_process import MODES, Process
from multilevel_diffusion.sampling.origins import load_pilot, load_plan

__all__ = ["stored_pilot", "stored_plan"]

_NEAR = 0.8  # a stored plan is used for budgets up to 1 / _NEAR of its cost


def stored_pilot(ladder: ImageLadder, mode: str) -> mls.Pilot | None:
    """Return the pilot that lies in a ladder's folder for a mode ("ddpm" or "ddim") and its guidance, or None.

    Warns:
        UserWarning: It measured the ladder before its networks changed, as by training on, so that it is None.

    Raises:
        ValueError: The file is damaged, or does not say what it measured and has other costs.

    Example:
        >>> from multilevel_diffusion.networks.store import load_ladder, shipped_ladder
        >>> stored_pilot(load_ladder(shipped_ladder("digits")), "ddpm").steps
        100
    """
    name = pilot_name(mode, ladder.guidance)
    if ladder.folder is None or not (ladder.folder / name).is_file():
        return None
    path = ladder.folder / name
    again = f"multilevel-sde pilot --ladder {_named(ladder)} --mode {mode}{_words(ladder.guidance)} --save"
    if _is_stale(path, mls.Pilot.load_made_for(path), ladder, again):
        return None
    return load_pilot(path, ladder, _process(ladder, mode))


def stored_plan(
    images: ImageLadder, mode: str, budget: float, ladder: mls.Ladder | None = None
) -> tuple[mls.Plan, Tensor] | None:
    """Return the most expensive fitted plan of a ladder's folder that a budget pays, with its grid, or None.

    Arguments:
        images: The ladder.
        mode: "ddpm" or "ddim".
        budget: Cost of an image in evaluations of the largest network; a plan of less than 0.8 of it is not returned.
        ladder: The ladder at the prices by which the budget counts; by default `images.ladder`.

    Of several that cost as much, it is the one that was fitted for the largest budget.

    Warns:
        UserWarning: One was made before the networks changed, as by training on, so that it is passed over.

    Raises:
        ValueError: A file is damaged, or holds no times.
    """
    if images.folder is None:
        return None
    prices, found = (ladder or images.ladder).in_evaluations(), []
    name = plan_name(mode, images.guidance, r"(\d+(?:\.\d+)?)").removesuffix(".safetensors")
    for path in Path(images.folder).glob(plan_name(mode, images.guidance, "*")):
        if path.match(plan_name(mode, None, "guidance_*")) and images.guidance is None:
            continue
        plan = mls.Plan.load(path)
        if plan.levels == len(prices) and _NEAR * budget <= (cost := plan.cost(prices)) <= budget * (1 + 1e-9):
            named = re.fullmatch(name, path.stem)
            found.append((cost, float(named[1]) if named else 0.0, path))
    for _, wanted, path in sorted(found, reverse=True):
        if mls.Plan.load_with_times(path)[1] is None:
            raise ValueError(f'"{path}" holds no times; write it again with `multilevel-sde plan --fit`')
        words = f"--ladder {_named(images)} --mode {mode}{_words(images.guidance)} --budget {wanted or budget:g}"
        if not _is_stale(path, mls.Plan.load_made_for(path), images, f"multilevel-sde plan {words} --fit --out {path}"):
            return load_plan(path, images, _process(images, mode))
    return None


def _named(images: ImageLadder) -> str:
    """What --ladder is to be given: a folder holds networks of this package, not those of others."""
    return str(images.folder) if isinstance(images, DiffusionLadder) else "MODULE:FUNCTION"


def _words(guidance: float | None) -> str:
    return "" if guidance is None else f" --guidance {guidance:g}"


def _process(images: ImageLadder, mode: str) -> Process:
    return Process(images.schedule, MODES[mode], uniform(images.schedule, 1000))


def _is_stale(path: Path, told: Mapping[str, Any], images: ImageLadder, again: str) -> bool:
    """Whether a file says that it was made before the networks changed; then warn."""
    if told.get("ladder", images.digest) == images.digest:
        return False
    warnings.warn(
        f'"{path}" was made before the networks of this ladder changed, and is not used; make it again with: {again}',
        stacklevel=3,
    )
    return True
