"""Crystals by SevenNet-l3i5: plans, single levels, and two-level RESPA with periods chosen by hand.

    python -m benchmarks.forces.bench_crystals --work /tmp/crystals --systems silicon nacl --kelvin 300 1200

needs the packages sevenn and chgnet, whose wheels hold the checkpoints. Every row is the same run, with the same start
and the same noise, by another plan; the pilot decides one of them. A row is a job in a folder of --work, so that the
command can be killed at any time and goes on to the same bits. Seconds are those of the processor, one thread, with
what the job writes.

Averages are compared pairwise: differences to l3i5 alone have their standard errors from blocks of the run, and as
noise and start are shared these are smaller than those of the averages themselves. "In an hour" is the error that an
hour of one core leaves, the root of the squared difference and of the top level's variance after as many steps.
"""

from __future__ import annotations

import itertools
import json
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase.build import bulk

import multilevel_sde as mls
from benchmarks.common import machine, parser_of, write_json
from benchmarks.forces.classical import fumi_tosi, stillinger_weber
from benchmarks.forces.crystal_tables import CHEAP, PLAN, REACH, TOP, draw, report
from multilevel_forces import ForceError, Langevin, impulses, ladder, pilot
from multilevel_forces.job import LOG, TRAJECTORY, Job
from multilevel_forces.observables import radial_distribution

BLOCKS = 8
BURN = 80  # steps that averages leave out
KEPT = 4  # steps between frames
HOT = 10.0  # times the bath's temperature, where a run is stopped


class TooHotError(RuntimeError):
    """A run that is of no use any more."""


def crystal(system, repeat, kelvin):
    """A cubic crystal with momenta of the temperature, the same for the same arguments."""
    cell = bulk("Si", cubic=True) if system == "silicon" else bulk("NaCl", "rocksalt", a=5.69, cubic=True)
    atoms = cell * (repeat, repeat, repeat)
    atoms.rattle(0.02, seed=0)
    width = np.sqrt(atoms.get_masses() * kelvin * 8.617333e-5)[:, None]
    atoms.set_momenta(np.random.default_rng(0).normal(size=(len(atoms), 3)) * width)
    return atoms


def calculators(system, atoms):
    """The levels, cheapest first."""
    from chgnet.model.dynamics import CHGNetCalculator
    from sevenn.calculator import SevenNetCalculator

    return {
        CHEAP[system]: (stillinger_weber if system == "silicon" else fumi_tosi)(atoms),
        "CHGNet": CHGNetCalculator(use_device="cpu", verbose=False),
        "SevenNet-0": SevenNetCalculator("7net-0", device="cpu"),
        "SevenNet-l3i5": SevenNetCalculator("7net-l3i5", device="cpu"),
    }


@dataclass(frozen=True)
class Row:
    """A run: which levels, how often, whether corrections are held, and how much longer its steps are."""

    name: str
    levels: list[int]
    periods: list[int]
    hold: bool = False
    factor: int = 1


def rows(best, cheap):
    """What is measured, in the order of its worth."""
    yield Row(TOP, [3], [1])
    yield Row(PLAN, list(best["levels"]), list(best["periods"]))

    def by_hand(words, low, period):
        name = f"{words} on {(cheap, 'CHGNet')[low]}, {period}"
        return Row(name, [low, 3], [1, period], words == "held")

    yield by_hand("RESPA", 1, 4)
    yield by_hand("RESPA", 0, 4)
    for level, name in ((2, "SevenNet-0"), (1, "CHGNet"), (0, cheap)):
        yield Row(f"{name} alone", [level], [1])
    for words, low, period in (("RESPA", 1, 8), ("RESPA", 0, 8), ("held", 1, 4), ("RESPA", 1, 2), ("RESPA", 0, 2)):
        yield by_hand(words, low, period)
    yield by_hand("held", 1, 2)
    yield by_hand("held", 1, 8)
    yield Row(f"{TOP}, twice the step", [3], [1], factor=2)


def done(path, make):
    """Make a result once, as JSON."""
    if not path.exists():
        print(time.strftime("%H:%M:%S"), path.name, flush=True)
        write_json(path, make())
    return json.loads(path.read_text())


def processor_seconds(levels, atoms):
    """The median seconds of the processor for a force of each level."""
    found = []
    for level in ladder(levels, atoms, prices=range(1, len(levels) + 1)).drifts:
        q, taken = level.systems.positions(), []
        for shift in 1e-3 * torch.randn(12, *q.shape, generator=torch.Generator().manual_seed(0), dtype=q.dtype):
            begin = time.process_time()
            level(q + shift)
            taken.append(time.process_time() - begin)
        found.append(float(np.median(taken[4:])))
    return found


def measured_pilot(levels, atoms, dynamics, steps):
    """What the pilot says, also about the plans by hand."""
    found, names = pilot(atoms, levels, dynamics, steps=steps, prices=processor_seconds(levels, atoms)), list(levels)
    print(found.text, flush=True)
    kept = [names.index(name) for name in found.names]
    by_hand = {}
    for low, period, hold in itertools.product((0, 1), (2, 4, 8), (False, True)):
        if low in kept:
            said = found.expect((1, period), (kept.index(low), len(kept) - 1), hold)
            by_hand[f"{'held' if hold else 'RESPA'} on {names[low]}, {period}"] = [said.temperature, said.spread]
    best = found.best
    return {
        "text": found.text,
        "levels": [kept[level] for level in best.levels],
        "periods": best.periods,
        "expected": {PLAN: [best.temperature, best.spread], **by_hand},
        "spectrum": {name: value.tolist() for name, value in vars(found.spectrum).items()},
    }


def one_run(folder, levels, atoms, dynamics, steps, row):
    """Make a row's run as far as it was not made, and return the seconds of a step, or where it became too hot."""
    names = list(levels)
    forces = ladder({names[k]: levels[names[k]] for k in row.levels}, atoms, prices=range(1, len(row.levels) + 1))
    block = impulses(row.periods)
    if row.hold:
        block = mls.hold(block, torch.arange(block.steps + 1.0))
    ours, taken = replace(dynamics, timestep=row.factor * dynamics.timestep), []

    def tell(walk):
        taken.append(time.process_time())
        if walk.temperature()[0] > HOT * dynamics.temperature:
            raise TooHotError(f"{walk.n}")

    job = Job(folder, forces, ours, block, seed=0, every=KEPT // row.factor)
    try:
        job.run(steps // row.factor, tell)
        if len(taken) < 2:  # it was stopped just before its seconds were written
            job.run(steps // row.factor + 40, tell)
    except (TooHotError, ForceError) as error:
        return {"blew_up": str(error)}
    return {"seconds": (taken[-1] - taken[0]) / (len(taken) - 1), "factor": row.factor}


def averages(folder, last):
    """Temperatures, squared displacements in blocks, and g(r), from the burn-in to a frame."""
    frames = ase.io.read(folder / TRAJECTORY, f"{BURN // KEPT}:{last}")
    temperature = np.genfromtxt(folder / LOG, delimiter=",", names=True)["temperature_K"][BURN // KEPT : last]
    places = np.stack([one.positions for one in frames])
    moved = places - places.mean(1, keepdims=True)
    squares = np.square(moved - moved.mean(0)).sum(2).mean(1)
    g = [radial_distribution(frames[0], part, REACH, 60)[1] for part in np.array_split(places, BLOCKS)]
    means = [np.array([part.mean() for part in np.array_split(one, BLOCKS)]) for one in (temperature, squares)]
    return means, np.array(g)


def mean_and_error(blocks):
    """Their mean and its standard error."""
    return [float(blocks.mean()), float(blocks.std(ddof=1) * len(blocks) ** -0.5)]


def compared(folder, run, top):
    """Averages of a run with their differences to the top level's over the same steps."""
    if "blew_up" in run:
        return None
    last = min(len((one / LOG).read_text().splitlines()) - 1 for one in (folder, top))
    (temperature, square), g = averages(folder, last)
    (temperature_top, square_top), g_top = averages(top, last)
    off = np.abs((g - g_top).mean(0))
    worst = int(off.argmax())
    return {
        "seconds": run["seconds"] / run["factor"],
        "steps": (last - 1) * KEPT,
        "temperature": mean_and_error(temperature),
        "temperature_off": mean_and_error(temperature - temperature_top),
        "square": mean_and_error(square),
        "square_off": mean_and_error(square - square_top),
        "g_off": [float(off[worst]), mean_and_error((g - g_top)[:, worst])[1]],
        "g": g.mean(0).round(4).tolist(),
        "g_difference": (g - g_top).mean(0).round(4).tolist(),
    }


def main():
    parser = parser_of(__file__, __doc__)
    parser.add_argument(
        "--work", type=Path, help="folder of runs, which a stopped command goes on from; none: tables only"
    )
    parser.add_argument("--systems", nargs="+", choices=CHEAP, default=list(CHEAP))
    parser.add_argument("--kelvin", type=int, nargs="+", default=[300, 1200])
    parser.add_argument("--steps", type=int, default=600, help="of the top level and of the plan")
    parser.add_argument("--other-steps", type=int, default=200, help="of all other rows")
    parser.add_argument("--pilot-steps", type=int, default=160)
    parser.add_argument("--repeat", type=int, default=1, help="cubic cells a side: 1 is 8 atoms, 2 is 64")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if given.work is not None:
        for system, kelvin in itertools.product(given.systems, given.kelvin):
            measure(system, kelvin, given)
    report(given.out)
    draw(given.out)


def measure(system, kelvin, given):
    """All rows of one system and temperature, written as they are done."""
    atoms, dynamics = crystal(system, given.repeat, kelvin), Langevin(temperature=kelvin, friction=0.01, timestep=2.0)
    levels, place, found = calculators(system, atoms), f"{system}-{len(atoms)}-{kelvin}", {}
    work = given.work / place
    best = done(work / "pilot.json", lambda: measured_pilot(levels, atoms, dynamics, given.pilot_steps))
    for row in rows(best, CHEAP[system]):
        folder, steps = work / row.name.replace(" ", "-"), given.steps if row.name in (TOP, PLAN) else given.other_steps
        run = done(
            folder.with_suffix(f".{steps}.json"),
            lambda: one_run(folder, levels, atoms, dynamics, steps, row),  # noqa: B023
        )
        found[row.name] = compared(folder, run, work / TOP.replace(" ", "-"))
        write_json(given.out / f"{place}.json", {"machine": machine(), "pilot": best, "rows": found})


if __name__ == "__main__":
    main()
