"""What the temperature of copper is under impulses, held and extrapolated corrections, measured and expected.

    python -m benchmarks.forces.bench_late_forces

Morse potentials of the tests: the cheap one is a third off, the middle one a tenth. Every run has the same start and
noise as the top level's, with which it is compared; four systems, friction 0.005 / fs, steps of 4 fs, 600 K. Rows are
stored as they are done, and a stopped command goes on.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import torch

import multilevel_sde as mls
from benchmarks.common import machine, parser_of, table, write_json
from multilevel_forces import Langevin, Walk, impulses, ladder, pilot
from multilevel_sde.files import write_atomically

sys.path.append(str(Path(__file__).parents[2] / "tests" / "forces"))
from pairs import CHEAP, COPPER, MIDDLE, TOP

DYNAMICS = Langevin(temperature=600, friction=0.005, timestep=4.0)
PERIODS, KINDS, LEVELS = (2, 3, 4, 6, 8), ("impulses", "held", "extrapolated"), {"cheap": CHEAP, "middle": MIDDLE}


def copper(seed):
    """Copper with every atom moved a little."""
    atoms = COPPER.copy()
    atoms.rattle(0.05, seed=seed)
    return atoms


def extrapolated(period):
    """Eight periods, in all but the first of which the last two corrections are extrapolated."""
    hits = impulses([1, period]).hits.repeat(8, 1)
    return mls.hold(mls.Plan(hits, hits.double()), torch.arange(len(hits) + 1.0), order=2)


def temperatures(levels, plan, steps):
    """The mean temperature of each system, infinite where the run blew up."""
    walk = Walk(ladder(levels, [copper(seed) for seed in range(4)], prices=[1, 2]), DYNAMICS, plan, range(4))
    walk.thermalize(0)
    total = np.zeros(4)
    for n in range(steps):
        walk.step()
        if float(walk.temperature().max()) > 1e5:
            return np.full(4, np.inf)
        total += walk.temperature() * (n >= steps // 4)
    return total / (steps - steps // 4)


def main():
    parser = parser_of(__file__, __doc__)
    parser.add_argument("--steps", type=int, default=4000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    path = given.out / "late_forces.json"
    result = json.loads(path.read_text()) if path.is_file() else {}
    if result.get("steps") != given.steps:
        result = {"machine": machine(), "steps": given.steps, "rows": {}}
    found = pilot(copper(0), {"cheap": CHEAP, "middle": MIDDLE, "top": TOP}, DYNAMICS, prices=[1, 10, 100])
    for name, kind in itertools.product(LEVELS, KINDS):
        row = f"{kind}, {name} level"
        if row not in result["rows"]:
            result["rows"][row] = [measured(found, result, name, kind, period, given.steps) for period in PERIODS]
            write_json(path, result)
            print(row, result["rows"][row], flush=True)
    write_atomically(given.out / "late_forces.md", markdown(result).encode())


def measured(found, result, name, kind, period, steps):
    """The mean difference of the temperature to the top level's, its standard error, and what was expected."""
    if "top" not in result:
        result["top"] = temperatures([CHEAP, TOP], impulses([1, 1]), steps).tolist()
    plan = impulses([1, period])
    if kind != "impulses":
        plan = mls.hold(plan, torch.arange(period + 1.0)) if kind == "held" else extrapolated(period)
    off = temperatures([LEVELS[name], TOP], plan, steps) / np.array(result["top"]) - 1
    said = found._expected(plan, (list(LEVELS).index(name), 2), (1, period)).temperature - 1
    error = float(off.std(ddof=1) / 2) if np.isfinite(off).all() else 0.0
    return {
        "plan": f"{kind}, {name} level",
        "period": period,
        "off": float(off.mean()),
        "error": error,
        "expected": said,
    }


def markdown(result):
    """The table."""
    head = ["correction every", *[f"{period} steps" for period in PERIODS]]
    lines = [
        [row, *(f"{words(cell['off'], cell['error'])} ({words(cell['expected'])})" for cell in cells)]
        for row, cells in result["rows"].items()
    ]
    note = (
        f"{result['steps']} steps of 4 fs, four systems, with standard errors; {result['machine']['cpu']}, one thread."
    )
    return "\n".join([*table(head, lines), "", note, ""])


def words(off, error=None):
    """A relative difference as people read it."""
    if not np.isfinite(off) or off > 10:
        return "hot"
    return f"{off:+.1%}" if error is None else f"{off:+.1%} ± {error:.1%}"


if __name__ == "__main__":
    main()
