"""What does a fit bring to one network alone, and what does a ladder bring beyond it?

On the shipped ladders, at equal evaluations of the largest network by FLOPs, mean squared distance to its path in 1,000
steps on images that no fit saw (of the median image beside it):

- the largest network alone: the best of six methods on two grids as they are; fitted; fitted for the next smaller
  number of evaluations and carried over;
- the ladder fitted as it was before (eight plans of the pilot, no more values than the plans use), then with one change
  at a time: the pilot's best 30, four values of the base, both; then the better of that and of the network alone, which
  is what `fit` returns.

All are fitted on the same samples. Seconds are CPU time of one thread. A stopped run goes on.

    python -m benchmarks.one_network.bench_fitted             # an hour of an idle core; --ladders digits --modes ddim
    python -m benchmarks.one_network.bench_fitted --quick --out /tmp/fitted
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor
from tqdm import tqdm

import multilevel_sde as mls
from benchmarks.common import machine, parser_of, table, write_json
from multilevel_diffusion import Process, load_ladder, shipped_ladder, uniform
from multilevel_diffusion.networks.image_ladders import ImageLadder
from multilevel_diffusion.process import MODES
from multilevel_diffusion.sampling.one_network import alone_plans, base_coefficients, carried, fit_alone
from multilevel_diffusion.sampling.trajectories import FIRST_SEED, Trajectories, reference
from multilevel_sde.files import write_atomically
from multilevel_sde.pilots.trial import typical

EVALUATIONS, STEPS, FITTED = (5, 8, 12, 20), 28, 32
IMAGES = {"digits": 32, "deadleaves32": 16}
ALONE, FIT, CARRIED = "one network, unfitted", "one network, fitted", "one network, carried"
CHANGES = {  # plans of the pilot, values of the base at least
    "ladder, 8 plans": (8, 1),
    "ladder, 30 plans": (30, 1),
    "ladder, 8 plans, 4 values": (8, 4),
    "ladder, 30 plans, 4 values": (30, 4),
}


class Case:
    """One process on one ladder, with its targets on disk."""

    def __init__(self, name: str, mode: str, out: Path, quick: bool):
        self.images: ImageLadder = load_ladder(shipped_ladder(name))
        fine, self.tested, fitted = (100, 8, 8) if quick else (1000, IMAGES[name], FITTED)
        self.process = Process(self.images.schedule, MODES[mode], uniform(self.images.schedule, fine))
        self.scratch = out / f"fitted_{name}_{mode}"
        self.known = Trajectories.of(self.images, self.process, fitted, target=self._target(FIRST_SEED, fitted))
        self.end = self._target(0, self.tested)

    def _target(self, first: int, samples: int) -> Tensor:
        path = self.scratch / f"target_{first}_{samples}.safetensors"
        if not path.is_file():
            end = reference(self.images, self.process, range(first, first + samples), progress=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, to_safetensors({"end": end}))
        return load_file(path)["end"]

    @cached_property
    def pilot(self) -> mls.Pilot:
        """That of a fit, kept in a file."""
        path = self.scratch / "pilot.safetensors"
        if not path.is_file():
            found = mls.pilot(
                self.images.ladder,
                self.known.start,
                self.process.fine_times,
                samples=min(16, len(self.known.start)),
                candidates=self.process.log_snr_grid(STEPS),
                multistep=lambda times: base_coefficients(self.process, times),
                progress=True,
                **self.known.given,
            )
            found.save(path)
        return mls.Pilot.load(path)

    def fit(self, evaluations: int, method: str) -> mls.FittedPlan:
        """The ladder, fitted with one of `CHANGES`."""
        count, order = CHANGES[method]
        plans = self.pilot.plans(budget=evaluations * self.images.ladder.costs[-1], count=count)
        at = self.known
        return mls.fit_plan(self.images.ladder, at.start, plans, at.target, order=order, **at.given)

    def row(self, plan: mls.Plan, times: Tensor) -> dict[str, Any]:
        """What a plan errs on images that no fit saw."""
        start = self.process.start(range(self.tested), self.images.image_shape)
        y = mls.solve(self.images.ladder, start, times, plan, **self.process.arguments(range(self.tested))).y
        squared = (y - self.end).double().square().flatten(1).mean(1)
        cost = plan.cost(self.images.ladder) / self.images.ladder.costs[-1]
        return {"cost": cost, "mse": float(squared.mean()), "median": float(squared.median())}

    def unfitted(self, evaluations: int) -> dict[str, Any]:
        """The best of all methods and grids, chosen on the samples of the fits."""
        ladder, at = self.images.ladder, self.known

        def error(one: mls.PilotPlan) -> float:
            y = mls.solve(ladder, at.start, one.times, one.plan, **at.given).y
            return typical((y - at.target).double().square().flatten(1).mean(1))

        best = min(alone_plans(self.images, self.process, evaluations), key=error)
        return self.row(best.plan, best.times)


def measured(found: mls.FittedPlan, case: Case, seconds: float) -> dict[str, Any]:
    """A row of a fit."""
    about = {"steps": found.plan.steps, "levels": [level + 1 for level in found.levels], "held_out": found.held_out[1]}
    fit = {"fit_seconds": seconds, "fit_evaluations": found.cost / case.images.ladder.costs[-1]}
    return case.row(found.plan, found.times) | about | fit


def methods(case: Case, fewer: int | None, evaluations: int) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield the rows of one number of evaluations: a name, and what measures it."""

    def timed(fit: Callable[[], mls.FittedPlan]) -> dict[str, Any]:
        begin = time.process_time()
        found = fit()
        return measured(found, case, time.process_time() - begin)

    def alone(steps: int) -> mls.FittedPlan:
        return fit_alone(case.images, case.process, steps, known=case.known)

    def over() -> dict[str, Any]:
        begun = alone(fewer or evaluations)
        return case.row(*carried(begun.plan, begun.times, case.process, evaluations))

    yield ALONE, lambda: case.unfitted(evaluations)
    yield FIT, lambda: timed(lambda: alone(evaluations))
    if fewer is not None:
        yield CARRIED, over
    for name in CHANGES:
        yield name, lambda name=name: timed(lambda: case.fit(evaluations, name))


def measure(name: str, mode: str, options: argparse.Namespace) -> None:
    """Measure what is missing of one process, and keep every row."""
    path = options.out / f"fitted_{name}_{mode}.json"
    known = json.loads(path.read_bytes()) if path.is_file() else {"ladder": name, "mode": mode, "rows": []}
    case, counts = Case(name, mode, options.out, options.quick), (4, *options.evaluations)
    todo = [(n, *one) for fewer, n in pairwise(counts) for one in methods(case, fewer if n - fewer <= 8 else None, n)]
    for n, method, run in tqdm(todo, desc=f"{name} {mode}", unit="row"):
        if not any((row["evaluations"], row["method"]) == (n, method) for row in known["rows"]):
            known["rows"].append({"evaluations": n, "method": method, **run()})
            write_json(path, known | {"images": case.tested, "fitted": len(case.known.start), "machine": machine()})


def markdown(result: dict) -> str:
    """The table of one process."""
    rows, counts = result["rows"], sorted({row["evaluations"] for row in result["rows"]})
    body = []
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for n in counts:
            row = next((row for row in rows if (row["evaluations"], row["method"]) == (n, method)), None)
            cells.append("" if row is None else f"{row['mse']:.2g} ({row['median']:.2g}) at {row['cost']:.3g}")
        body.append([method, *cells])
    costs = [row for row in rows if row["method"] == FIT]
    spent = ", ".join(
        f"{row['fit_evaluations'] / result['fitted']:.0f} evaluations a sample and {row['fit_seconds']:.0f} s at "
        f"{row['evaluations']}"
        for row in costs
    )
    head = f"### {result['ladder']}, {result['mode'].upper()}: {result['images']} images, {result['fitted']} fitted"
    lines = [head, "", *table(["", *map(str, counts)], body), "", f"The fit of one network took {spent}.", ""]
    return "\n".join(lines)


def main() -> None:
    """Measure what was asked for and is missing, then print all that lies in the folder."""
    parser = parser_of(__file__, __doc__)
    parser.add_argument("--ladders", nargs="*", choices=IMAGES, default=list(IMAGES), help="none: only print [all]")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="[both]")
    parser.add_argument("--evaluations", nargs="+", type=int, default=list(EVALUATIONS), help="[%(default)s]")
    parser.add_argument("--quick", action="store_true", help="a smoke run: digits, 100 steps, 5 evaluations")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.quick:
        options.ladders, options.evaluations = ["digits"], [5]
    with torch.no_grad():
        for name, mode in product(options.ladders, options.modes):
            measure(name, mode, options)
    parts = [markdown(json.loads(path.read_bytes())) for path in sorted(options.out.glob("fitted_*.json"))]
    write_atomically(options.out / "fitted.md", "\n".join(parts).encode())
    print("\n".join(parts))


if __name__ == "__main__":
    main()
