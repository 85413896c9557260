"""`multilevel-sde forces run`: molecular dynamics by a plan, in a folder that a stopped run goes on in."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multilevel_sde.commands import at_least, folder, number

if TYPE_CHECKING:
    from ase import Atoms

    from multilevel_forces.force_pilot import ForcePilot
    from multilevel_forces.langevin import Langevin

__all__ = ["register"]

# What a run depends on, by which a folder is known again; more --steps go on.
_NAMED = ["structure", "calculators", "temperature", "friction", "timestep", "seed", "every", "periods"]
_NAMED += ["tolerance", "pilot_steps"]


def register(subparsers) -> None:
    """Add the command to an argparse subparsers object.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> register(parser.add_subparsers())
        >>> line = "forces run --structure si.cif --calculators chgnet 7net-l3i5 --temperature 300"
        >>> parser.parse_args(line.split()).steps
        2000
    """
    forces = subparsers.add_parser("forces", help="molecular dynamics with cheap and expensive force fields")
    parser = forces.add_subparsers(dest="what", metavar="WHAT", required=True).add_parser(
        "run", help="a run by the pilot's plan: trajectory, log, report", description=__doc__
    )
    parser.add_argument("--structure", type=Path, required=True, help="any file that ase.io reads; its last frame")
    parser.add_argument(
        "--calculators",
        nargs="+",
        required=True,
        metavar="NAME",
        help="cheapest first: emt, morse(epsilon=..,r0=..,rho0=..), lj(..), chgnet, 7net-0, 7net-l3i5, module:function",
    )
    parser.add_argument("--temperature", type=number(least=0), required=True, help="K")
    parser.add_argument("--steps", type=at_least(1), default=2000, help="in all; more than before go on [%(default)s]")
    parser.add_argument("--timestep", type=number(above=0, most=100), default=1.0, help="fs [%(default)g]")
    parser.add_argument("--friction", type=number(least=0), default=0.01, help="1/fs; 0 is Newton [%(default)g]")
    parser.add_argument("--periods", type=at_least(1), nargs="+", help="steps between forces of each level; no pilot")
    parser.add_argument("--tolerance", type=number(above=0, most=0.5), default=0.01, help="of averages [%(default)g]")
    parser.add_argument("--pilot-steps", type=at_least(32), default=256, help="of the pilot [%(default)s]")
    parser.add_argument("--every", type=at_least(1), default=10, help="steps between frames [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="of momenta and noise [%(default)s]")
    parser.add_argument("--out", type=folder, default=Path("run"), help="folder; a stopped run goes on [%(default)s]")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    import torch

    from multilevel_forces.blocks import impulses
    from multilevel_forces.calculator_names import calculator_named
    from multilevel_forces.force_ladder import ladder
    from multilevel_forces.job import Job
    from multilevel_forces.langevin import Langevin
    from multilevel_forces.report import write_report

    if len(set(arguments.calculators)) < len(arguments.calculators):
        raise ValueError(f'"--calculators" names one twice, got {" ".join(arguments.calculators)}')
    settings = _settings(arguments)
    before = Job.settings(arguments.out)
    _check_same(settings, before, arguments.out)
    if before is not None:
        torch.set_num_threads(before["threads"])  # threads change the last bits
    atoms = _structure(arguments.structure)
    dynamics = Langevin(temperature=arguments.temperature, friction=arguments.friction, timestep=arguments.timestep)
    calculators = {name: calculator_named(name) for name in arguments.calculators}
    if before is None:
        found = None if arguments.periods else _pilot(arguments, atoms, calculators, dynamics)
        before = {**settings, "threads": torch.get_num_threads(), **_chosen(arguments, found)}
        Job.write_settings(arguments.out, before)
    kept = {name: calculators[name] for name in before["levels"]}
    forces = ladder(kept, atoms, prices=range(1, len(kept) + 1))
    job = Job(arguments.out, forces, dynamics, impulses(before["plan"]), arguments.seed, arguments.every)
    seconds = _with_bar(job, arguments.steps)
    write_report(arguments.out, before, seconds)
    print(f"wrote {arguments.out}: trajectory.extxyz, log.csv, report.html")
    return 0


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(arguments, name) for name in _NAMED}
    return {**given, "structure": str(given["structure"])}


def _check_same(settings: dict[str, Any], before: dict[str, Any] | None, place: Path) -> None:
    if before is None:
        if place.is_dir() and any(place.iterdir()):
            raise ValueError(f'"--out" is {str(place)!r}, which holds something else; give an empty or a new folder')
        return
    for name, value in settings.items():
        if before.get(name) != value:
            option = "--" + name.replace("_", "-")
            raise ValueError(
                f'"--out" is {str(place)!r}, begun with {option} {before.get(name)}, not {value}; give the same '
                "options to go on, or another folder"
            )


def _structure(path: Path) -> Atoms:
    import ase.io

    if not path.is_file():
        why = "which is a folder, not a file" if path.is_dir() else "and there is no such file"
        raise FileNotFoundError(f'"--structure" is {str(path)!r}, {why}')
    try:
        found = ase.io.read(path)
    except Exception as error:  # ase's readers raise what they like
        raise ValueError(f'"--structure" is {str(path)!r}, which ase cannot read: {error}') from None
    if not len(found):
        raise ValueError(f'"--structure" is {str(path)!r}, which holds no atoms')
    return found  # type: ignore[return-value]


def _pilot(arguments: argparse.Namespace, atoms: Atoms, calculators: dict[str, Any], dynamics: Langevin) -> ForcePilot:
    from multilevel_forces.run_pilot import pilot

    found = pilot(
        atoms,
        calculators,
        dynamics,
        steps=arguments.pilot_steps,
        tolerance=arguments.tolerance,
        seed=arguments.seed,
        progress=True,
    )
    print(found.text)
    return found


def _chosen(arguments: argparse.Namespace, found: ForcePilot | None) -> dict[str, Any]:
    """Levels and periods to run, and what the pilot said, as JSON has it."""
    from multilevel_forces.blocks import impulses

    if found is None:
        impulses(arguments.periods)
        if len(arguments.periods) != len(arguments.calculators):
            raise ValueError(
                f'"--periods" must be one a calculator, got {len(arguments.periods)} for {len(arguments.calculators)}'
            )
        return {"levels": arguments.calculators, "plan": arguments.periods, "pilot": None}
    return {
        "levels": [found.names[level] for level in found.best.levels],
        "plan": list(found.best.periods),
        "pilot": found.as_json(),
    }


def _with_bar(job: Any, steps: int) -> float:
    """Run the job with a progress bar and return the seconds of a step, NaN where none was made."""
    import math
    import time

    from tqdm.auto import tqdm

    made, begin = 0, time.perf_counter()
    with tqdm(total=steps, unit="step") as bar:

        def tell(walk) -> None:
            nonlocal made
            made += 1
            if made == 1:
                bar.initial = bar.n = walk.n - 1
            bar.update()
            taken = (time.perf_counter() - begin) / made
            day = job.dynamics.timestep * 1e-6 * 86_400 / taken
            bar.set_postfix_str(f"{walk.temperature()[0]:.0f} K, {taken:.2g} s/step, {day:.2g} ns/day", refresh=False)

        job.run(steps, tell)
    return (time.perf_counter() - begin) / made if made else math.nan
