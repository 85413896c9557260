"""What the temperature of copper is under impulses, held and extrapolated corrections, measured and expected.

    python -m benchmarks.forces.bench_late_forces

Morse potentials of the tests: the cheap one is a third off, the middle one a tenth. Every run has the same start and
noise as the top level's, with which it is compared; four systems, friction 0.005 / fs, steps of 4 fs, 600 K.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

import multilevel_sde as mls
from benchmarks.common import machine, parser_of, table, write_json
from multilevel_forces import Langevin, Walk, impulses, ladder, pilot

sys.path.append(str(Path(__file__).parents[2] / "tests" / "forces"))
from pairs import CHEAP, COPPER, MIDDLE, TOP

DYNAMICS = Langevin(temperature=600, friction=0.005, timestep=4.0)
PERIODS = (2, 3, 4, 6, 8)


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
    found = pilot(copper(0), {"cheap": CHEAP, "middle": MIDDLE, "top": TOP}, DYNAMICS, prices=[1, 10, 100])
    top = temperatures([CHEAP, TOP], impulses([1, 1]), given.steps)
    lines, measured = [], []
    for level, (name, cheap) in enumerate((("cheap", CHEAP), ("middle", MIDDLE))):
        for kind in ("impulses", "held", "extrapolated"):
            cells = []
            for period in PERIODS:
                plan = impulses([1, period])
                if kind != "impulses":
                    plan = mls.hold(plan, torch.arange(period + 1.0)) if kind == "held" else extrapolated(period)
                off = temperatures([cheap, TOP], plan, given.steps) / top - 1
                said = found._expected(plan, (level, 2), (1, period)).temperature - 1
                measured.append([name, kind, period, float(off.mean()), float(off.std(ddof=1) / 2), said])
                cells.append(f"{words(off.mean())} ({words(said)})")
            print(name, kind, cells, flush=True)
            lines.append([f"{kind}, {name} level", *cells])
    write_json(given.out / "late_forces.json", {"machine": machine(), "steps": given.steps, "rows": measured})
    text = table(["correction every", *[f"{period} steps" for period in PERIODS]], lines)
    (given.out / "late_forces.md").write_text("\n".join(text) + "\n")


def words(off):
    """A relative difference as people read it."""
    return "hot" if not np.isfinite(off) or off > 10 else f"{off:+.1%}"


if __name__ == "__main__":
    main()
