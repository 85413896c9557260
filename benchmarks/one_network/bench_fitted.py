"""What does a fit bring to one network alone, and what does a ladder bring beyond it?

On the shipped ladders, at equal evaluations of the largest network by FLOPs, mean squared distance to its path in 1,000
steps on images that no fit saw (of the median image beside it):

- the largest network alone: the best of six methods on four grids as they are; fitted, on two grids and on four; fitted
  for fewer evaluations and carried over, from 8 to 10 and from 10 to 12;
- the ladder by the pilot's best plan; fitted from eight plans of the pilot, of which the best three are fitted once,
  with no more values of the base than they use; then with one change at a time: the pilot's best 30, four values of the
  base, every candidate fitted once, the last two together; and the best three plans, each on four grids.

All are fitted on the same samples. Seconds are CPU time of one thread. A stopped run goes on.

    python -m benchmarks.one_network.bench_fitted             # an hour of an idle core; --ladders digits --modes ddim
    python -m benchmarks.one_network.bench_fitted --quick --out /tmp/fitted
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor
from torch.nn.functional import pad
from tqdm import tqdm

import multilevel_sde as mls
from benchmarks.common import machine, parser_of, table, write_json
from multilevel_diffusion import Process, load_ladder, shipped_ladder, stored_pilot, uniform
from multilevel_diffusion.networks.image_ladders import ImageLadder
from multilevel_diffusion.process import MODES
from multilevel_diffusion.sampling.one_network import alone_plans, base_coefficients, fit_alone, grid_kinds
from multilevel_diffusion.sampling.pilots_and_fits import run_pilot
from multilevel_diffusion.sampling.trajectories import FIRST_SEED, Trajectories, reference
from multilevel_sde.files import write_atomically
from multilevel_sde.fitting.perturbed_runs import Parts
from multilevel_sde.pilots.trial import typical

EVALUATIONS, FITTED = (5, 8, 10, 12, 20), 32
STEPS = {"ddim": 28, "ddpm": 100}  # of a ladder's plans at most
IMAGES = {"digits": 32, "deadleaves32": 16}
RESULTS = Path(__file__).parent / "results"
ALONE, FIT, CARRIED = "one network, unfitted", "one network, fitted", "one network, carried"
PLAN = "ladder, unfitted"
TWO_GRIDS = "one network, fitted, 2 grids"
CHANGES = {  # plans of the pilot, values of the base at least, plans that are fitted once, whether on other grids too
    "ladder, 8 plans": (8, 1, 3, False),
    "ladder, 30 plans": (30, 1, 3, False),
    "ladder, 8 plans, 4 values": (8, 4, 3, False),
    "ladder, 8 plans, each fitted once": (8, 1, 8, False),
    "ladder, 8 plans, each fitted once, 4 values": (8, 4, 8, False),
    "ladder, 3 plans on 4 grids": (3, 1, 12, True),
}


def carried(plan: mls.Plan, times: Tensor, process: Process, steps: int) -> tuple[mls.Plan, Tensor]:
    """A fitted plan of one network in another number of steps, on the grid of the same kind.

    Its coefficients a differ from SA-Solver's c, and a - c is interpolated in the place n / N of a step.
    """
    parts, kind = Parts.of(plan), next(one for one in grid_kinds(process) if torch.equal(one(plan.steps), times))
    old, new = (base_coefficients(process, grid) for grid in (times, kind(steps)))
    order = max(parts.base.shape[1], old.shape[1])
    fitted, old, new = (pad(table, (0, order - table.shape[1])) for table in (parts.base, old, new))
    at = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps * plan.steps - 0.5
    low = at.floor().clamp(0, plan.steps - 1).long()
    high, part = (low + 1).clamp_max(plan.steps - 1), (at - low).clamp(0, 1)[:, None]
    base = (new + (fitted - old)[low] * (1 - part) + (fitted - old)[high] * part).tril()
    base[:, 0] += 1 - base.sum(1)
    return replace(parts, base=base).plan(plan.levels), kind(steps)


def on_all_grids(process: Process, plans: list[mls.PilotPlan]) -> list[mls.PilotPlan]:
    """The plans on their own grids, and with the same coefficients on those about uniform in log-SNR."""
    return plans + [replace(one, times=kind(one.plan.steps)) for kind in grid_kinds(process)[1:] for one in plans]


class Case:
    """One process on one ladder, with its targets, pilot and fits on disk."""

    def __init__(self, name: str, mode: str, out: Path = RESULTS, *, fine: int = 1000, fitted: int = FITTED):
        self.images: ImageLadder = load_ladder(shipped_ladder(name))
        self.process = Process(self.images.schedule, MODES[mode], uniform(self.images.schedule, fine))
        self.fitted, self.scratch = fitted, out / f"fitted_{name}_{mode}"

    @cached_property
    def known(self) -> Trajectories:
        """The samples of the fits."""
        return Trajectories.of(self.images, self.process, self.fitted, target=self.target(FIRST_SEED, self.fitted))

    def target(self, first: int, samples: int) -> Tensor:
        """Where the largest network ends on the finest grid."""
        path = self.scratch / f"target_{first}_{samples}.safetensors"
        if not path.is_file():
            end = reference(self.images, self.process, range(first, first + samples), progress=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, to_safetensors({"end": end}))
        return load_file(path)["end"]

    @cached_property
    def pilot(self) -> mls.Pilot:
        """That of the ladder's folder, or a small one."""
        stored = stored_pilot(self.images, self.process.mode)
        if stored is not None and len(stored.fine_times) == len(self.process.fine_times):
            return stored
        return run_pilot(self.images, self.process, samples=8, candidates=STEPS[self.process.mode])

    def fit(self, evaluations: int, method: str) -> tuple[mls.Plan, Tensor, dict[str, Any]]:
        """A fit of the network alone (`FIT`) or of the ladder (one of `CHANGES`), and what is known of it."""
        path = self.scratch / f"{method.replace(', ', '_').replace(' ', '_')}_{evaluations}.safetensors"
        if not path.is_file():
            begin, top, at = time.process_time(), self.images.ladder.costs[-1], self.known
            if method == FIT:
                found = fit_alone(self.images, self.process, evaluations, known=at)
            elif method == TWO_GRIDS:
                plans = alone_plans(self.images, self.process, evaluations)[:12]
                found = mls.fit_plan(self.images.ladder, at.start, plans, at.target, order=4, **at.given)
            else:
                count, order, tried, grids = CHANGES[method]
                plans = self.plans(evaluations)[:count]
                plans = on_all_grids(self.process, plans) if grids else plans
                found = mls.fit_plan(
                    self.images.ladder, at.start, plans, at.target, order=order, tried=tried, **at.given
                )
            told = {
                "steps": found.plan.steps,
                "levels": [level + 1 for level in found.levels],
                "held_out": found.held_out[1],
                "fit_seconds": time.process_time() - begin,
                "fit_evaluations": found.cost / top,
            }
            found.plan.save(path, found.times, told)
        plan, times = mls.Plan.load_with_times(path)
        assert times is not None
        return plan, times, dict(mls.Plan.load_made_for(path))

    def plans(self, evaluations: int) -> list[mls.PilotPlan]:
        """Those of the pilot, the best first."""
        found = self.pilot.plans(budget=evaluations * self.images.ladder.costs[-1], count=1000)
        return [plan for plan in found if plan.plan.steps <= STEPS[self.process.mode]]

    def row(self, plan: mls.Plan, times: Tensor, seeds: range) -> dict[str, Any]:
        """What a plan errs on images that no fit saw."""
        start = self.process.start(seeds, self.images.image_shape)
        y = mls.solve(self.images.ladder, start, times, plan, **self.process.arguments(seeds)).y
        squared = (y - self.target(0, len(seeds))).double().square().flatten(1).mean(1)
        cost = plan.cost(self.images.ladder) / self.images.ladder.costs[-1]
        return {"cost": cost, "mse": float(squared.mean()), "median": float(squared.median())}

    def unfitted(self, evaluations: int) -> mls.PilotPlan:
        """The best of all methods and grids, chosen on the samples of the fits."""
        ladder, at = self.images.ladder, self.known

        def error(one: mls.PilotPlan) -> float:
            y = mls.solve(ladder, at.start, one.times, one.plan, **at.given).y
            return typical((y - at.target).double().square().flatten(1).mean(1))

        return min(alone_plans(self.images, self.process, evaluations), key=error)


def methods(case: Case, fewer: int, evaluations: int, seeds: range) -> Iterator[tuple[str, Callable[[], dict]]]:
    """Yield the rows of one number of evaluations: a name, and what measures it."""

    def unfitted() -> dict[str, Any]:
        best = case.unfitted(evaluations)
        return case.row(best.plan, best.times, seeds)

    def plan() -> dict[str, Any]:
        best = case.plans(evaluations)[0]
        return case.row(best.plan, best.times, seeds) | {"steps": best.plan.steps}

    def fitted(method: str) -> dict[str, Any]:
        plan, times, told = case.fit(evaluations, method)
        return case.row(plan, times, seeds) | told

    def over() -> dict[str, Any]:
        plan, times, _ = case.fit(fewer, FIT)
        return case.row(*carried(plan, times, case.process, evaluations), seeds)

    yield ALONE, unfitted
    yield TWO_GRIDS, lambda: fitted(TWO_GRIDS)
    yield FIT, lambda: fitted(FIT)
    if evaluations <= 1.25 * fewer:
        yield CARRIED, over
    yield PLAN, plan
    for name in CHANGES:
        yield name, lambda name=name: fitted(name)


def measure(name: str, mode: str, options: argparse.Namespace) -> None:
    """Measure what is missing of one process, and keep every row."""
    path = options.out / f"fitted_{name}_{mode}.json"
    known = json.loads(path.read_bytes()) if path.is_file() else {"ladder": name, "mode": mode, "rows": []}
    case = Case(name, mode, options.out, **({"fine": 100, "fitted": 8} if options.quick else {}))
    seeds, counts = range(8 if options.quick else IMAGES[name]), options.evaluations
    todo = [(n, *one) for fewer, n in zip([0, *counts], counts, strict=False) for one in methods(case, fewer, n, seeds)]
    for n, method, run in tqdm(todo, desc=f"{name} {mode}", unit="row"):
        if method in options.methods and not any(
            (row["evaluations"], row["method"]) == (n, method) for row in known["rows"]
        ):
            known["rows"].append({"evaluations": n, "method": method, **run()})
            write_json(path, known | {"images": len(seeds), "fitted": case.fitted, "machine": machine()})


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
    parser.add_argument(
        "--methods", nargs="+", default=[ALONE, TWO_GRIDS, FIT, CARRIED, PLAN, *CHANGES], help="rows to measure [all]"
    )
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
