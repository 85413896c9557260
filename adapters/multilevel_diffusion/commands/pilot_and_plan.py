"""`multilevel-sde pilot` measures a ladder of networks and reports; `multilevel-sde plan` turns that into a plan file.

A plan file knows the grid that it is for, part of the uniform grid with 1000 steps, and `multilevel-sde sample --plan`
takes it from there. `plan --fit` also fits the coefficients (:mod:`multilevel_diffusion.sampling.pilots_and_fits`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import multilevel_sde as mls
from multilevel_diffusion.commands.train_and_measure import open_ladder
from multilevel_diffusion.networks.store import DiffusionLadder
from multilevel_diffusion.process.grids import uniform
from multilevel_diffusion.process.reverse_process import MODES, Process
from multilevel_diffusion.sampling.pilots_and_fits import fit, run_pilot
from multilevel_diffusion.sampling.stored import stored_pilot

__all__ = ["register"]

_STEPS = 1000


def register(subparsers) -> None:
    """Add the commands `pilot` and `plan` to an argparse subparsers object.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> register(parser.add_subparsers())
        >>> parser.parse_args(["plan", "--ladder", "digits", "--budget", "10", "-o", "plan.safetensors"]).budget
        10.0
    """
    pilot = subparsers.add_parser(
        "pilot", help="measure a ladder in a short trial run and write a report", description=_pilot.__doc__
    )
    _add_common(pilot)
    pilot.add_argument("--steps", type=int, default=_STEPS, help="finest grid, the reference [%(default)s]")
    pilot.add_argument("--samples", type=int, default=32, help="trajectories [%(default)s]")
    pilot.add_argument("--candidates", type=int, help="largest number of steps of a plan [100, for the ODE 56]")
    pilot.add_argument("--out", type=Path, default=Path("pilot"), help="folder of the results [%(default)s]")
    pilot.add_argument("--save", action="store_true", help="also keep the pilot beside the ladder, as its default")
    pilot.set_defaults(run=_pilot)

    plan = subparsers.add_parser(
        "plan", help="write the best plan for a budget, for `sample --plan`", description=_plan.__doc__
    )
    _add_common(plan)
    amount = plan.add_mutually_exclusive_group(required=True)
    amount.add_argument("--budget", type=float, help="cost of an image in evaluations of the largest network")
    amount.add_argument("--target-mse", type=float, help="mean squared error per pixel to reach instead")
    plan.add_argument("--pilot", type=Path, help="a saved pilot; default: the ladder's own, or a new one")
    plan.add_argument("--fit", action="store_true", help="fit its coefficients to the largest network's path (minutes)")
    plan.add_argument("--samples", type=int, default=32, help="trajectories of the fit [%(default)s]")
    plan.add_argument("--steps", type=int, default=28, help="largest number of steps of the fit [%(default)s]")
    plan.add_argument("-o", "--out", type=Path, required=True, help="file of the plan, .safetensors")
    plan.set_defaults(run=_plan)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ladder", required=True, help="folder of a ladder, or the name of a shipped one")
    parser.add_argument("--mode", choices=MODES, default="ddpm", help="reverse SDE or its ODE [%(default)s]")
    parser.add_argument("--device", default="cpu", help="where the networks run [%(default)s]")


def _pilot(arguments: argparse.Namespace) -> int:
    """Measure how large every level's corrections are and what they do to the image; say what plans will cost."""
    if arguments.samples < 2:
        raise ValueError(f'"--samples" must be at least 2 (better 16), got {arguments.samples}')
    if arguments.save and arguments.steps != _STEPS:
        raise ValueError(f'"--save" keeps the default for {_STEPS} steps, got --steps {arguments.steps}; leave one out')
    images = open_ladder(arguments.ladder, arguments.device)
    found = run_pilot(
        images,
        arguments.mode,
        steps=arguments.steps,
        samples=arguments.samples,
        candidates=arguments.candidates,
        device=arguments.device,
        progress=True,
    )
    found.save(arguments.out / "pilot.safetensors")
    found.report(arguments.out / "report.html", title=f"{Path(arguments.ladder).name}, {arguments.mode.upper()}")
    for share in (0.05, 0.13, 0.35):
        budget = share * found.steps
        if budget * images.ladder.costs[-1] >= found.least_budget:
            print(f"budget {budget:.3g}: {found.advise(budget=budget * images.ladder.costs[-1]).text}")
    written = "pilot.safetensors, report.html and report.json"
    print(f"cost {found.cost / images.ladder.costs[-1]:.0f} evaluations of the largest network")
    print(f"{written} written to {arguments.out}/")
    if arguments.save:
        assert images.folder is not None
        path = images.folder / f"pilot_{arguments.mode}.safetensors"
        found.save(path)
        print(f"kept as {path}")
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    """Write the plan that a pilot predicts to be best at a budget, or cheapest at an error."""
    images = open_ladder(arguments.ladder, arguments.device)
    top = images.ladder.costs[-1]
    if arguments.fit:
        return _fit(arguments, images)
    if arguments.pilot is not None:
        found = mls.Pilot.load(arguments.pilot)
        if found.costs != images.ladder.costs:
            raise ValueError(
                f'"--pilot" {arguments.pilot} measured other networks than "--ladder"; run the pilot again'
            )
    else:
        found = stored_pilot(images, arguments.mode)
    if found is None:
        found = run_pilot(images, arguments.mode, device=arguments.device, progress=True)
    budget = None if arguments.budget is None else arguments.budget * top
    best = found.plan(budget=budget, target_mse=arguments.target_mse)
    best.plan.save(arguments.out, best.times)
    levels = ", ".join(str(level + 1) for level in best.levels)
    print(
        f"{best.plan.steps} steps of {_STEPS}, levels {levels}: cost {best.predicted.cost / top:.3g} evaluations of "
        f"the largest network, expected mean squared error {best.predicted.mse:.3g}; written to {arguments.out}"
    )
    print(
        f"use it with: multilevel-sde sample --ladder {arguments.ladder} --mode {arguments.mode} --plan {arguments.out}"
    )
    return 0


def _fit(arguments: argparse.Namespace, images: DiffusionLadder) -> int:
    if arguments.budget is None or arguments.pilot is not None:
        raise ValueError('"--fit" takes a "--budget" and makes its own pilot; leave out --target-mse and --pilot')
    process = Process(images.schedule, MODES[arguments.mode], uniform(images.schedule, _STEPS))
    found = fit(images, process, arguments.budget, samples=arguments.samples, steps=arguments.steps, progress=True)
    found.plan.save(arguments.out, found.times)
    levels = ", ".join(str(level + 1) for level in found.levels)
    top = images.ladder.costs[-1]
    print(
        f"{found.plan.steps} steps, levels {levels}: cost {found.plan.cost(images.ladder) / top:.3g} evaluations of "
        f"the largest network; squared error on samples kept out {found.held_out[0]:.3g} before the fit, "
        f"{found.held_out[1]:.3g} after (typical), {found.mean:.3g} (mean); the fit cost {found.cost / top:.0f} "
        f"evaluations; written to {arguments.out}"
    )
    return 0
