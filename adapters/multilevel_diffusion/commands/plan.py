"""`multilevel-sde plan`: turn the measurements of a pilot into a plan file.

The file knows the grid that it is for, part of the uniform grid with 1000 steps, and `multilevel-sde sample --plan`
takes it from there. `plan --fit` also fits the coefficients, of a ladder's plan or of one network alone
(:mod:`multilevel_diffusion.sampling.pilots_and_fits`), and `--save` keeps the plan for `sample --budget`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from multilevel_diffusion.commands.options import (
    add_device,
    add_guidance,
    add_ladder,
    add_mode,
    add_price,
    add_threads,
    as_notes,
    at_least,
    duration,
    file,
    number,
    own_words,
    prepare,
    priced,
    the_ladder,
)

if TYPE_CHECKING:
    import torch

    import multilevel_sde as mls
    from multilevel_diffusion.networks.image_ladders import ImageLadder

__all__ = ["register"]

_STEPS = 1000
_SAMPLES, _FITTED = 32, 28  # trajectories and steps of a fit


def register(subparsers) -> None:
    """Add the command to an argparse subparsers object.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> register(parser.add_subparsers())
        >>> parser.parse_args(["plan", "--ladder", "digits", "--budget", "10", "-o", "plan.safetensors"]).budget
        10.0
    """
    parser = subparsers.add_parser(
        "plan", help="write the best plan for a budget, for `sample --plan`", description=_run.__doc__
    )
    add_ladder(parser)
    add_mode(parser)
    add_guidance(parser)
    amount = parser.add_mutually_exclusive_group(required=True)
    amount.add_argument("--budget", type=number(above=0), help="cost of an image in evaluations of the largest network")
    amount.add_argument("--target-mse", type=number(above=0), help="mean squared error per pixel to reach instead")
    add_price(parser)
    parser.add_argument("--pilot", type=Path, help="a saved pilot; default: the ladder's own, or a new one")
    parser.add_argument(
        "--fit", action="store_true", help="fit its coefficients to the largest network's path (minutes)"
    )
    parser.add_argument("--samples", type=at_least(8, better=_SAMPLES), help=f"trajectories of the fit [{_SAMPLES}]")
    parser.add_argument("--steps", type=at_least(2), help=f"largest number of steps of the fit [{_FITTED}]")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("-o", "--out", type=file, help="file of the plan, .safetensors")
    place.add_argument(
        "--save", action="store_true", help="with --fit: keep it beside the ladder, where `sample` finds it"
    )
    add_device(parser)
    add_threads(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    """Write the plan that a pilot predicts to be best at a budget, or cheapest at an error."""
    from multilevel_diffusion.process.reverse_process import MODES, Process
    from multilevel_diffusion.sampling.origins import made_for
    from multilevel_diffusion.sampling.samples import batch_for

    _check(arguments)
    device = prepare(arguments)
    images = the_ladder(arguments, device)
    if arguments.fit:
        return _fit(arguments, images)
    if len(images.ladder) == 1:
        raise ValueError(f'"--ladder" {arguments.ladder} is one network, of which there is no pilot; give --fit')
    found = _pilot(arguments, images, device)
    process = Process(images.schedule, MODES[arguments.mode], found.fine_times)
    ladder = priced(arguments, images, process, batch_for(images.image_shape))
    found = found.priced(ladder).in_evaluations(f"evaluations of the largest network by {ladder.unit}")
    best = found.plan(budget=arguments.budget, target_mse=arguments.target_mse)
    best.plan.save(arguments.out, best.times, made_for(images, process))
    fine = len(found.fine_times) - 1
    print(
        f"{best.plan.steps} steps of {fine}, levels {_numbers(best.levels)}: cost {best.predicted.cost:.3g} "
        f"{found.unit}, expected mean squared error {best.predicted.mse:.3g}; written to {arguments.out}"
    )
    own = own_words(arguments) + (f" --fine {fine}" if fine != _STEPS else "")
    print(f"use it with: multilevel-sde sample {own} --plan {arguments.out}")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    if arguments.fit:
        if arguments.budget is None or arguments.pilot is not None:
            raise ValueError('"--fit" takes a "--budget" and makes its own pilot; leave out --target-mse and --pilot')
        if (arguments.steps or _FITTED) > _STEPS:
            raise ValueError(f'"--steps" must be at most {_STEPS}, the finest grid, got {arguments.steps}; give fewer')
        return
    for name in ("samples", "steps", "save"):
        if (value := getattr(arguments, name)) not in (None, False):
            raise ValueError(
                f'"--{name}" is {value}, but belongs to --fit, which is not given; add it, or leave it out'
            )


def _pilot(arguments: argparse.Namespace, images: ImageLadder, device: torch.device) -> mls.Pilot:
    """The pilot that was named, or the stored one, or a new one."""
    from multilevel_diffusion.sampling.origins import load_pilot
    from multilevel_diffusion.sampling.pilots_and_fits import run_pilot
    from multilevel_diffusion.sampling.stored import stored_pilot

    if arguments.pilot is not None:
        return load_pilot(arguments.pilot, images, arguments.mode)
    with as_notes():
        found = stored_pilot(images, arguments.mode)
    return found or run_pilot(images, arguments.mode, device=device, progress=True)


def _fit(arguments: argparse.Namespace, images: ImageLadder) -> int:
    from multilevel_diffusion.networks.image_ladders import plan_name
    from multilevel_diffusion.process.grids import uniform
    from multilevel_diffusion.process.reverse_process import MODES, Process
    from multilevel_diffusion.sampling.origins import made_for
    from multilevel_diffusion.sampling.pilots_and_fits import expected_seconds, fit
    from multilevel_diffusion.sampling.samples import batch_for

    if arguments.save and images.folder is None:
        raise ValueError(f'"--save" needs a ladder with a folder, and {arguments.ladder} has none; give "--out" a file')
    process = Process(images.schedule, MODES[arguments.mode], uniform(images.schedule, _STEPS))
    samples, steps, one = arguments.samples or _SAMPLES, arguments.steps or _FITTED, len(images.ladder) == 1
    if one and arguments.steps:
        raise ValueError(f'"--steps" is {steps}, but one network takes as many as "--budget" pays; leave it out')
    ladder = priced(arguments, images, process, batch_for(images.image_shape))
    expected = duration(expected_seconds(images, process, arguments.budget, samples=samples, steps=steps))
    taken = int(arguments.budget) if one else steps
    print(f"a fit with {samples} trajectories and {taken} steps takes about {expected}; fewer of both take less")
    found = fit(images, process, arguments.budget, ladder, samples=samples, steps=steps, progress=True)
    name = plan_name(arguments.mode, arguments.guidance, arguments.budget)
    out = arguments.out if images.folder is None or not arguments.save else images.folder / name
    found.plan.save(out, found.times, made_for(images, process))
    top = images.ladder.costs[-1]
    cost = found.plan.cost(ladder.in_evaluations())
    print(
        f"{found.plan.steps} steps, levels {_numbers(found.levels)}: cost {cost:.3g} "
        f"evaluations of the largest network by {ladder.unit}; squared error on the {samples // 4} samples "
        f"kept out {found.held_out[0]:.3g} before the fit, {found.held_out[1]:.3g} after (typical), "
        f"{found.mean:.3g} (mean); the fit cost {found.cost / top:.0f} evaluations; written to {out}"
    )
    return 0


def _numbers(levels: Iterable[int]) -> str:
    """Levels as a person counts them, from 1."""
    return ", ".join(str(level + 1) for level in levels)
