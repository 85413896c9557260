"""Is it better to spend a correction as it falls due than at once, and does the pilot know?

On the toy problems of `bench_allocation.py`: the error of the pilot's plan that tracks its corrections over that of the
same hits and weights with each correction added at once, at 5, 9, 13, 20 and 35 evaluations of the top level, on 256
samples that the pilot did not see; and the form that it chose.

    python benchmarks/pilots/bench_tracking.py  # half a minute
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import multilevel_sde as mls
from benchmarks.common import table
from benchmarks.pilots.allocation_problems import PROBLEMS, Problem

BUDGETS, SEEDS = (5, 9, 13, 20, 35), range(10**6, 10**6 + 256)
TOYS = [name for name in PROBLEMS if name.startswith(("scaling_law", "quadrature"))]


def ratios(problem: Problem) -> list[float]:
    """Return the error with tracking over that without, at every budget."""
    ladder, pilot = problem.ladder, problem.pilot
    reference = problem.solve(SEEDS, problem.fine, mls.em_plan(ladder, problem.fine))

    def error(times: Tensor, plan: mls.Plan) -> float:
        return float((problem.solve(SEEDS, times, plan) - reference).double().square().mean())

    found = []
    for budget in BUDGETS:
        best = pilot.plan(budget=budget * ladder.costs[-1], memory=False)
        found.append(error(best.times, pilot.track(best.plan)) / error(best.times, best.plan))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=TOYS, default=TOYS, help="[all]")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in options.problems:
        problem = PROBLEMS[name]()
        cells = [f"{ratio:.2f}" for ratio in ratios(problem)]
        best = problem.pilot.plan(budget=BUDGETS[0] * problem.ladder.costs[-1]).plan
        rows.append([name, *cells, "at once" if best.recall is None else "tracking"])
    print("\n".join(table(["problem", *map(str, BUDGETS), "the pilot takes"], rows)))


if __name__ == "__main__":
    main()
