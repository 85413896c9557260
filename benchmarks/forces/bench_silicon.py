"""Silicon by SevenNet-l3i5: plans, single levels, and two-level RESPA with periods chosen by hand.

    python -m benchmarks.forces.bench_silicon --work /tmp/silicon --kelvin 300 1200

needs the packages sevenn and chgnet, whose wheels hold the checkpoints. Every row is the same run, with the same start
and the same noise, by another plan; the pilot decides one of them. Rows are stored in --work as they are done, so that
the command can be stopped and goes on. Seconds are those of the processor, one thread.

Averages are compared pairwise: differences to l3i5 alone have their standard errors from blocks of the run, and as
noise and start are shared these are smaller than those of the averages themselves.
"""

from __future__ import annotations

import itertools
import json
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from ase.build import bulk

import multilevel_sde as mls
from benchmarks.common import machine, parser_of, table, write_figure, write_json
from benchmarks.forces.stillinger_weber import stillinger_weber
from multilevel_forces import Langevin, Walk, impulses, ladder, pilot
from multilevel_forces.observables import radial_distribution

NAMES = ["SW", "CHGNet", "SevenNet-0", "SevenNet-l3i5"]
BLOCKS = 8
BURN = 80  # steps that averages leave out
KEPT = 4  # steps between positions that are kept
REACH = 6.0  # of g(r), Angstrom


def silicon(repeat, kelvin):
    """Cubic silicon with momenta of the temperature, the same for the same arguments."""
    atoms = bulk("Si", cubic=True) * (repeat, repeat, repeat)
    atoms.rattle(0.02, seed=0)
    width = np.sqrt(atoms.get_masses() * kelvin * 8.617333e-5)[:, None]
    atoms.set_momenta(np.random.default_rng(0).normal(size=(len(atoms), 3)) * width)
    return atoms


def calculators(atoms):
    """The levels, cheapest first."""
    from chgnet.model.dynamics import CHGNetCalculator
    from sevenn.calculator import SevenNetCalculator

    found = [stillinger_weber(atoms), CHGNetCalculator(use_device="cpu")]
    found += [SevenNetCalculator(name, device="cpu") for name in ("7net-0", "7net-l3i5")]
    return dict(zip(NAMES, found, strict=True))


def rows(best):
    """Name, levels, periods, hold, and the factor of the step."""
    yield "SevenNet-l3i5 alone", [3], [1], False, 1
    yield "the pilot's plan", list(best["levels"]), list(best["periods"]), False, 1
    by_hand = [(f"{words} on CHGNet, {period}", [1, 3], [1, period], words == "held", 1)
               for period, words in itertools.product((4, 8, 2), ("RESPA", "held"))]  # fmt: skip
    yield by_hand[0]
    yield by_hand[2]
    for level in (1, 2, 0):
        yield f"{NAMES[level]} alone", [level], [1], False, 1
    yield from (one for place, one in enumerate(by_hand) if place not in (0, 2))
    yield "SevenNet-l3i5 alone, twice the step", [3], [1], False, 2


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
    found = pilot(atoms, levels, dynamics, steps=steps, prices=processor_seconds(levels, atoms))
    print(found.text, flush=True)
    kept = [NAMES.index(name) for name in found.names]
    by_hand = {}
    for low, period, hold in itertools.product((1, 2), (2, 4, 8), (False, True)):
        if low in kept:
            said = found.expect((1, period), (kept.index(low), len(kept) - 1), hold)
            by_hand[f"{'held' if hold else 'RESPA'} on {NAMES[low]}, {period}"] = [said.temperature, said.spread]
    best = found.best
    return {
        "text": found.text,
        "levels": [kept[level] for level in best.levels],
        "periods": best.periods,
        "expected": {"the pilot's plan": [best.temperature, best.spread], **by_hand},
        "spectrum": {name: value.tolist() for name, value in vars(found.spectrum).items()},
    }


def one_run(levels, atoms, dynamics, steps, chosen, periods, hold, factor):
    """A run of one row."""
    ours = replace(dynamics, timestep=factor * dynamics.timestep)
    forces = ladder({NAMES[k]: levels[NAMES[k]] for k in chosen}, atoms, prices=range(1, len(chosen) + 1))
    block = impulses(periods)
    if hold:
        block = mls.hold(block, torch.arange(block.steps + 1.0))
    walk = Walk(forces, ours, block, seeds=[0])
    temperatures, places, taken = [], [], 0.0
    for n in range(steps // factor):
        begin = time.process_time()
        walk.step()
        taken += time.process_time() - begin
        temperatures.append(float(walk.temperature()[0]))
        if temperatures[-1] > 1e5:
            return {"blew_up": n, "seconds": taken / (n + 1)}
        if n % KEPT == KEPT - 1:
            places.append(walk.q[0].numpy().round(5).tolist())
    return {"seconds": taken / (steps // factor), "temperatures": temperatures, "positions": places, "factor": factor}


def averages(run, atoms, burn, last):
    """Temperatures, squared displacements in blocks, and g(r), between two steps of the finest run."""
    first, last = burn // run["factor"], last // run["factor"]
    temperature = np.array(run["temperatures"][first:last])
    places = np.array(run["positions"][first // KEPT : last // KEPT])
    moved = places - places.mean(1, keepdims=True)
    squares = np.square(moved - moved.mean(0)).sum(2).mean(1)
    g = [radial_distribution(atoms, part, REACH, 60)[1] for part in np.array_split(places, BLOCKS)]
    means = [np.array([part.mean() for part in np.array_split(one, BLOCKS)]) for one in (temperature, squares)]
    return means, np.array(g)


def mean_and_error(blocks):
    """Their mean and its standard error."""
    return [float(blocks.mean()), float(blocks.std(ddof=1) * len(blocks) ** -0.5)]


def compared(run, top, atoms, burn):
    """Averages of a run with their differences to the top level's over the same steps."""
    if "blew_up" in run:
        return None
    last = run["factor"] * len(run["temperatures"])
    (temperature, square), g = averages(run, atoms, burn, last)
    (temperature_top, square_top), g_top = averages(top, atoms, burn, last)
    off = np.abs((g - g_top).mean(0))
    worst = int(off.argmax())
    return {
        "seconds": run["seconds"] / run["factor"],
        "steps": last,
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
    parser.add_argument("--kelvin", type=int, nargs="+", default=[300, 1200])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rows", nargs="+", help="only these rows, beside the top level; default: all")
    parser.add_argument("--pilot-steps", type=int, default=160)
    parser.add_argument("--repeat", type=int, default=1, help="cubic cells a side: 1 is 8 atoms, 2 is 64")
    parser.add_argument("--timestep", type=float, default=2.0, help="fs")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    levels = {} if given.work is None else calculators(silicon(given.repeat, 300))
    for kelvin in given.kelvin if levels else ():
        measure(levels, silicon(given.repeat, kelvin), kelvin, given)
    report(given.out)
    draw(given.out)


def measure(levels, atoms, kelvin, given):
    """All rows of one temperature, written as they are done."""
    dynamics = Langevin(temperature=kelvin, friction=0.01, timestep=given.timestep)
    place, runs = f"{len(atoms)}-{kelvin}", {}
    best = done(given.work / f"{place}-pilot.json", lambda: measured_pilot(levels, atoms, dynamics, given.pilot_steps))
    for name, *row in rows(best):
        if given.rows and name not in ("SevenNet-l3i5 alone", *given.rows):
            continue
        path = given.work / f"{place}-{name.replace(' ', '-')}.json"
        runs[name] = done(path, partial(one_run, levels, atoms, dynamics, given.steps, *row))
        top = runs["SevenNet-l3i5 alone"]
        found = {key: compared(run, top, atoms, BURN) for key, run in runs.items()}
        write_json(given.out / f"silicon-{place}.json", {"machine": machine(), "pilot": best, "rows": found})


def report(out):
    """The tables of all results."""
    head = ["run", "steps", "CPU s a step", "speed-up", "temperature", "expected", "squared displacement", "expected"]
    head += ["greatest error of g"]
    text = []
    for path in sorted(out.glob("silicon-*.json")):
        found = json.loads(path.read_text())
        top, lines = found["rows"]["SevenNet-l3i5 alone"], []
        said = found["pilot"]["expected"]
        for name, row in found["rows"].items():
            if row is None:
                lines.append([name, "blew up", *[""] * 7])
                continue
            own = row["temperature"][0] - row["temperature_off"][0]  # of the top level over the same steps
            square = row["square"][0] - row["square_off"][0]
            lines.append([
                name, str(row["steps"]), f"{row['seconds']:.3f}", f"{top['seconds'] / row['seconds']:.1f}x",
                "{:+.1%} ± {:.1%}".format(*(one / own for one in row["temperature_off"])),
                f"{said[name][0] - 1:+.1%}".replace("+inf%", "hot") if name in said else "",
                "{:+.1%} ± {:.1%}".format(*(one / square for one in row["square_off"])),
                f"{said[name][1] - 1:+.1%}".replace("+inf%", "hot") if name in said else "",
                "{:.2f} ± {:.2f}".format(*row["g_off"]),
            ])  # fmt: skip
        text += [f"## {path.stem}", ""]
        text += ["SevenNet-l3i5 alone: {:.0f} ± {:.0f} K, ".format(*top["temperature"])]
        text += ["mean squared displacement {:.5f} ± {:.5f} square Angstrom.".format(*top["square"]), ""]
        text += [*table(head, lines), "", "```text", found["pilot"]["text"], "```", ""]
    (out / "silicon.md").write_text("\n".join(text))


def draw(out):
    """The figure: g(r) of the top level and of the plan, differences to the top's, and seconds."""
    from matplotlib.figure import Figure

    shown = {"SevenNet-l3i5 alone": "#222222", "the pilot's plan": "#1b6ca8", "CHGNet alone": "#e07a1f"}
    paths = sorted(out.glob("silicon-*.json"), key=lambda path: int(path.stem.split("-")[-1]))
    figure = Figure(figsize=(10.5, 3.2 * len(paths)), layout="constrained")
    for axes, path in zip(figure.subplots(len(paths), 3, squeeze=False), paths, strict=True):
        found = json.loads(path.read_text())["rows"]
        rows = {name: found[name] for name in shown if found.get(name)}
        for place, (name, row) in enumerate(rows.items()):
            r = (np.arange(len(row["g"])) + 0.5) * REACH / len(row["g"])
            if name != "CHGNet alone":
                axes[0].plot(r, row["g"], "--" if place else "-", color=shown[name], label=name)
            axes[1].plot(r, row["g_difference"], color=shown[name], label=name, linewidth=1.2)
            axes[2].barh(-place, row["seconds"], 0.45, color=shown[name])
            axes[2].text(0.0, -place + 0.34, name, fontsize=8, va="center")
        axes[0].legend(frameon=False, fontsize=8)
        axes[0].set(title=f"silicon, {path.stem.split('-')[-1]} K", xlabel="r, Angstrom", ylabel="g(r)")
        axes[1].set(title="g(r) less the top level's, same steps", xlabel="r, Angstrom")
        axes[1].legend(frameon=False, fontsize=8)
        axes[2].set(title="CPU seconds a step", yticks=[], ylim=(-len(rows) + 0.6, 0.6))
        for one in axes:
            one.spines[["top", "right"]].set_visible(False)
    write_figure(out / "silicon.png", figure, 110)


if __name__ == "__main__":
    main()
