"""Do the intervals hold the truth as often as they say, and what do the estimates cost beside the formula?

For every case of `cases.py`, 400 estimates with the seeds 0 ... 399 and 95% intervals: the share of the intervals that
hold the truth, the root mean squared error over the tolerance, the median of the cost (the trial included) over that of
the optimal allocation, (sum sqrt(V C))^2 / (tolerance^2 - bias^2), the share of the trial, and the median of what plain
Monte Carlo on the top level would cost over what was paid. Then the exponent of the cost over three decades of the
tolerance, for problems of which theory knows it. `python -m benchmarks.expectations.bench_coverage` takes a quarter of
an hour and writes `results/coverage.md` and `results/exponents.md`, which docs/expectations.md shows.

Part of it is printed only, such as `--cases particles --seeds 0`. Every estimate is written to `coverage_runs.jsonl` in
the folder of results when it is made, and not made again: a run that was stopped goes on where it was. Delete that file
after a change of the library.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import multilevel_sde as mls
from benchmarks.common import machine, parser_of, table
from benchmarks.expectations.cases import Case, cases
from multilevel_sde.files import write_atomically

PARTS = (1.0, 0.1, 0.01, 0.001)  # of the largest tolerance
THEORY: dict[str, tuple[str, float, dict[str, Any]]] = {  # what is known, the largest tolerance, other arguments
    "ornstein_uhlenbeck": ("2, as beta = 2", 0.1, {}),
    "call": ("2, times log(e)^2, as beta = 1", 3.0, {}),
    "call, Milstein": ("2, as beta = 2", 3.0, {"step": mls.Milstein()}),
}


def formula(found: mls.Expectation, tolerance: float) -> float:
    """Return what the optimal allocation of an estimate's own terms costs."""
    length = sum(math.sqrt(row.variance * row.cost) for row in found.rows)
    return length**2 / (tolerance**2 - min(found.bias, 0.6 * tolerance) ** 2)


class Runs:
    """Estimates in a file of lines of JSON, each made once.

    Arguments:
        path: The file.
        total: How many there will be, for the bar.
    """

    def __init__(self, path: Path, total: int):
        self.path, self.known, self.bar = path, {}, tqdm(total=total, unit="estimate", smoothing=0)
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            if line.endswith("}"):  # else the run was stopped while it wrote
                found = json.loads(line)
                self.known[tuple(found.pop("key"))] = found

    def get(self, name: str, case: Case, tolerance: float, seed: int, **more: Any) -> dict[str, float]:
        """Return the numbers of an estimate, stored or new."""
        key = (name, tolerance, seed)
        self.bar.update()
        if key not in self.known:
            one = case.run(tolerance=tolerance, seed=seed, **more)
            found = {"value": one.value, "low": one.low, "high": one.high, "cost": one.cost, "trial": one.trial_cost}
            found |= {"formula": formula(one, tolerance), "plain": one.plain[-1].cost, "seconds": one.seconds}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"\n{json.dumps({'key': key, **found})}")
            self.known[key] = found
        return self.known[key]


def covered(name: str, case: Case, runs: int, known: Runs) -> list[str]:
    """Return the row of a case."""
    found = [known.get(name, case, case.tolerance, seed) for seed in range(runs)]
    inside = sum(one["low"] <= case.truth <= one["high"] for one in found)
    error = math.sqrt(statistics.fmean((one["value"] - case.truth) ** 2 for one in found)) / case.tolerance
    over = statistics.median(one["cost"] / one["formula"] for one in found)
    trial = statistics.fmean(one["trial"] / one["cost"] for one in found)
    gain = statistics.median(one["plain"] / one["cost"] for one in found)
    cells = [f"{case.truth:.6g}", f"{case.tolerance:g}", f"{inside / runs:.1%}", f"{error:.2f}", f"{over:.2f}"]
    cells += [f"{trial:.0%}", f"{gain:.2g}x", f"{statistics.median(one['seconds'] for one in found):.2f}"]
    return [name.replace("_", " "), *cells]


def exponents(seeds: int, known: Runs) -> list[list[str]]:
    """Return rows of (problem, theory, costs, exponent) over three decades of the tolerance, trials not counted."""
    rows = []
    for name, (theory, largest, more) in THEORY.items():
        case = replace(cases()[name.split(",")[0]], times=torch.linspace(0.0, 1.0, 4097, dtype=torch.float64))
        costs = []
        for part in PARTS:
            label = f"exponent of {name}"
            found = [known.get(label, case, largest * part, seed, **more) for seed in range(seeds)]
            costs.append(statistics.median(one["cost"] - one["trial"] for one in found))
        x, y = [-math.log(part) for part in PARTS], [math.log(cost) for cost in costs]
        exponent = f"{statistics.linear_regression(x, y).slope:.2f}"
        rows.append([name.replace("_", " "), theory, f"{largest:g}", *(f"{cost:.3g}" for cost in costs), exponent])
    return rows


def main() -> None:
    """Measure, print and write the tables."""
    parser = parser_of(__file__, __doc__)
    parser.add_argument("--runs", type=int, default=400, help="estimates of every case [400]")
    parser.add_argument("--cases", nargs="+", choices=cases(), default=list(cases()), help="which to measure now [all]")
    parser.add_argument("--seeds", type=int, default=5, help="estimates for every cost of an exponent [5]")
    options = parser.parse_args()
    torch.set_num_threads(1)
    total = options.runs * len(options.cases) + options.seeds * len(THEORY) * len(PARTS)
    known = Runs(options.out / "coverage_runs.jsonl", total)
    head = ["case", "truth", "tolerance", "covered", "error / tolerance", "cost / formula", "trial", "gain", "seconds"]
    lines = table(head, [covered(name, cases()[name], options.runs, known) for name in options.cases])
    note = f"{options.runs} estimates each, seeds from 0; {machine()['cpu']}, one thread, other work beside it."
    print("\n".join(lines))
    if options.cases == list(cases()):
        write_atomically(options.out / "coverage.md", "\n".join([*lines, "", note, ""]).encode())
    if options.seeds:
        head = ["problem", "theory", "e", "cost at e", *(f"at {part:g} e" for part in PARTS[1:]), "exponent"]
        lines = [*table(head, exponents(options.seeds, known)), ""]
        write_atomically(options.out / "exponents.md", "\n".join(lines).encode())


if __name__ == "__main__":
    main()
