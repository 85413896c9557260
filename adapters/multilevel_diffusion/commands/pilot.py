"""`multilevel-sde pilot`: measure a ladder of networks in a short trial run, and report."""

from __future__ import annotations

import argparse
from pathlib import Path

from multilevel_diffusion.commands.options import (
    add_device,
    add_guidance,
    add_ladder,
    add_mode,
    add_out,
    add_price,
    add_threads,
    at_least,
    prepare,
    priced,
    the_ladder,
)

__all__ = ["register"]

_STEPS = 1000


def register(subparsers) -> None:
    """Add the command to an argparse subparsers object.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> register(parser.add_subparsers())
        >>> parser.parse_args(["pilot", "--ladder", "digits"]).samples
        32
    """
    parser = subparsers.add_parser(
        "pilot", help="measure a ladder in a short trial run and write a report", description=_run.__doc__
    )
    add_ladder(parser)
    add_mode(parser)
    add_guidance(parser)
    add_price(parser)
    parser.add_argument("--steps", type=at_least(2), default=_STEPS, help="finest grid, the reference [%(default)s]")
    parser.add_argument("--samples", type=at_least(2, better=32), default=32, help="trajectories [%(default)s]")
    parser.add_argument(
        "--candidates", type=at_least(2), help="largest number of steps of a plan [100, for the ODE 56]"
    )
    parser.add_argument("--save", action="store_true", help="also keep the pilot beside the ladder, as its default")
    add_out(parser, "pilot")
    add_device(parser)
    add_threads(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    """Measure how large every level's corrections are and what they do to the image; say what plans will cost."""
    from multilevel_diffusion.networks.image_ladders import pilot_name
    from multilevel_diffusion.process.grids import uniform
    from multilevel_diffusion.process.reverse_process import MODES, Process
    from multilevel_diffusion.sampling.origins import made_for
    from multilevel_diffusion.sampling.pilots_and_fits import run_pilot
    from multilevel_diffusion.sampling.samples import batch_for

    if arguments.save and arguments.steps != _STEPS:
        raise ValueError(f'"--save" keeps the default for {_STEPS} steps, got --steps {arguments.steps}; leave one out')
    device = prepare(arguments)
    images = the_ladder(arguments, device)
    if arguments.save and images.folder is None:
        raise ValueError(
            f'"--save" keeps the pilot in the folder of the ladder, and {arguments.ladder} has none; leave it out, and '
            f"give the pilot to `multilevel-sde plan --pilot {arguments.out}/pilot.safetensors`"
        )
    process = Process(images.schedule, MODES[arguments.mode], uniform(images.schedule, arguments.steps))
    found = run_pilot(
        images,
        process,
        samples=arguments.samples,
        candidates=arguments.candidates,
        device=device,
        progress=True,
    )
    told = made_for(images, process)
    found.save(arguments.out / "pilot.safetensors", told)
    ladder = priced(arguments, images, process, batch_for(images.image_shape))
    told_in = found.priced(ladder)
    told_in.report(arguments.out / "report.html", title=f"{Path(arguments.ladder).name}, {arguments.mode.upper()}")
    counted = told_in.in_evaluations(f"evaluations of the largest network by {ladder.unit}")
    for share in (0.05, 0.13, 0.35):
        if (budget := share * counted.steps) >= counted.least_budget:
            print(f"budget {budget:.3g}: {counted.advise(budget=budget).text}")
    print(f"the pilot cost {counted.cost:.0f} {counted.unit}")
    print(f"pilot.safetensors, report.html and report.json written to {arguments.out}/")
    if arguments.save:
        assert images.folder is not None
        path = images.folder / pilot_name(arguments.mode, arguments.guidance)
        found.save(path, told)
        print(f"kept as {path}")
    return 0
