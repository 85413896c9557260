"""Where to spend a budget: every way of choosing the probabilities, at equal cost, on toy problems and on networks.

Error: mean squared distance per number to the path of the top level on the finest grid with the same noise, on samples
that no method saw before. Costs in evaluations of the top level, by the ladder's unit (FLOPs for networks). Methods:

- EM on the top level, uniform in time;
- ML-EM on the pilot's candidate steps (100 uniform ones; for DDIM 56, about uniform in log-SNR) with p = C/T, the
  theorem's p, learned p and the pilot's schedule, each with independent and with systematic draws, one draw a sample
  (so the error is a mean over draws too);
- the pilot's plan, and its random-phase variant (one phase a sample);
- the best of 15 shared draws of the learned p (independent, the paper's way) and of the pilot's schedule (systematic),
  chosen on calibration samples.

Learning starts from the pilot's schedule at the middle budget and is shifted to the others; lambda is the pilot's
prediction of (error) / (cost of the corrections) there. Every result is stored as it comes: a run that is stopped goes
on where it was. Figures from other sizes or another pilot are thrown away; after a change of the code of plans, measure
those again with `--again "pilot plan"`.

    python benchmarks/pilots/bench_allocation.py            # hours on one core; the paper's sizes of learning
    python benchmarks/pilots/bench_allocation.py --busy     # about 20 minutes of an idle core
    python benchmarks/pilots/bench_allocation.py --quick --out /tmp/allocation
    python benchmarks/pilots/bench_allocation.py --problems # none: only print and draw what is stored
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import multilevel_sde as mls
from benchmarks.common import machine, parser_of, write_json
from benchmarks.pilots.allocation_problems import PROBLEMS, Problem
from benchmarks.pilots.allocation_tables import draw_figure, markdown
from multilevel_sde.files import write_atomically

CANDIDATES, DELTA = 15, 0.01
BUDGETS, OTHERS = (5, 9, 13, 20, 35), (2, 3, 60, 120)  # the others for EM only, to look up what methods reach
EVALUATED, CALIBRATED = 10**6, 2 * 10**6  # first seeds; pilots start from 3 million, learning from 0
DRAWS = {"independent": mls.independent, "systematic": mls.systematic}


@dataclass(frozen=True)
class Sizes:
    """How much is measured; the default learns as the paper does."""

    samples: int = 256
    calibration: int = 32
    iterations: int = 50
    batch: int = 300
    budgets: tuple[int, ...] = BUDGETS


BUSY = {"digits": Sizes(32, 8, 12, 24), "deadleaves32": Sizes(8, 4, 4, 6)}  # what a shared core does in 25 minutes


class Bench:
    """The methods on one problem; reference paths and learning are done when they are first needed."""

    def __init__(self, problem: Problem, sizes: Sizes, folder: Path):
        self.problem, self.sizes, self.folder = problem, sizes, folder
        self.seeds = range(EVALUATED, EVALUATED + sizes.samples)
        self.times, self.top = problem.pilot.times, problem.ladder.costs[-1]
        self._references: dict[range, Tensor] = {}

    def reference(self, seeds: range) -> Tensor:
        """Return the top level's path on the finest grid."""
        if seeds not in self._references:
            fine = self.problem.fine
            self._references[seeds] = self.problem.solve(seeds, fine, mls.em_plan(self.problem.ladder, fine))
        return self._references[seeds]

    @cached_property
    def learned(self) -> mls.LearnedSchedule:
        """Learn from the pilot's schedule at the middle budget."""
        ladder, pilot = self.problem.ladder, self.problem.pilot
        budget = self.sizes.budgets[len(self.sizes.budgets) // 2] * self.top
        table = pilot.schedule(budget=budget, draw=mls.independent)
        price = pilot.predict(table, mls.independent).level_mse / (budget - pilot.steps * ladder.costs[0])
        return mls.learn(
            ladder,
            self.problem.start,
            self.times,
            delta=DELTA,
            regularisation=price,
            start=mls.LearnedSchedule.fit(table, pilot.times, DELTA),
            steps=self.sizes.iterations,
            batch=self.sizes.batch,
            derivative=self.problem.derivative,
            generator=torch.Generator().manual_seed(0),
            folder=self.folder / f"{price:.9g}",  # another price is another run
            progress=True,
            **self.problem.arguments,
        )

    def table(self, name: str, budget: float, draw: mls.Draw) -> Tensor:
        """Return the probabilities of a method at a budget."""
        if name == "pilot schedule":
            return self.problem.pilot.schedule(budget=budget * self.top, draw=draw)
        schedule = {
            "p = C/T": lambda: mls.InverseCostSchedule(),
            "theorem": lambda: mls.TheoremSchedule(self.problem.gamma),
            "learned": lambda: self.learned,
        }[name]()
        return schedule.probabilities(self.problem.ladder, self.times, budget=budget * self.top, draw=draw)

    def methods(self) -> Iterator[tuple[str, float, Callable[[], tuple[Tensor, mls.Plan, dict]]]]:
        """Yield method, budget, and what makes its grid, its plan and further facts for the record."""
        for budget in (*self.sizes.budgets, *OTHERS):
            yield "EM", budget, partial(self.euler_maruyama, budget)
        for budget in self.sizes.budgets:
            for name, kind in product(("p = C/T", "theorem", "learned", "pilot schedule"), DRAWS):
                yield f"{name}, {kind}", budget, partial(self.drawn, name, kind, budget)
            yield "pilot plan", budget, partial(self.planned, budget)
            yield "pilot plan, random phase", budget, partial(self.phased, budget)
        for budget in self.sizes.budgets:
            for name, kind in (("learned", "independent"), ("pilot schedule", "systematic")):
                yield f"best of {CANDIDATES}: {name}, {kind}", budget, partial(self.best, name, kind, budget)

    def euler_maruyama(self, budget: float) -> tuple[Tensor, mls.Plan, dict]:
        """EM on the top level."""
        times = self.problem.grid(int(budget))
        return times, mls.em_plan(self.problem.ladder, times), {}

    def drawn(self, name: str, kind: str, budget: float) -> tuple[Tensor, mls.Plan, dict]:
        """A draw for every sample."""
        table = self.table(name, budget, DRAWS[kind])
        generator = torch.Generator().manual_seed(int(budget))
        facts = {"alphas": self.learned.alphas, "betas": self.learned.betas} if name == "learned" else {}
        return self.times, mls.draw_plan(table, DRAWS[kind], generator=generator, samples=self.sizes.samples), facts

    def planned(self, budget: float) -> tuple[Tensor, mls.Plan, dict]:
        """The pilot's plan, what it predicts, and whether the pilot advises it."""
        advice = self.problem.pilot.advise(budget=budget * self.top)
        best = advice.best
        return best.times, best.plan, {"predicted": best.predicted.mse, "pays": advice.pays}

    def phased(self, budget: float) -> tuple[Tensor, mls.Plan, dict]:
        """The plan's random-phase variant, a phase for every sample."""
        best = self.problem.pilot.plan(budget=budget * self.top)
        family, generator = mls.phase_plans(best), torch.Generator().manual_seed(int(budget))
        plans = [family.draw(generator) for _ in self.seeds]
        weights = torch.stack([plan.weights for plan in plans], dim=1)
        return best.times, mls.Plan(weights != 0, weights), {}

    def best(self, name: str, kind: str, budget: float) -> tuple[Tensor, mls.Plan, dict]:
        """The best of 15 shared draws on calibration samples."""
        found = mls.best_plan(
            self.problem.ladder,
            self.table(name, budget, DRAWS[kind]),
            self.problem.start,
            self.times,
            calibration=range(CALIBRATED, CALIBRATED + self.sizes.calibration),
            held_out=self.seeds,
            generator=torch.Generator().manual_seed(int(budget)),
            candidates=CANDIDATES,
            draw=DRAWS[kind],
            target_source=self.reference,
            **self.problem.arguments,
        )
        return self.times, found.plan, {"calibration": min(found.calibration_errors)}

    def measure(self, make: Callable[[], tuple[Tensor, mls.Plan, dict]]) -> dict:
        """Return the row of one method at one budget."""
        reference = self.reference(self.seeds)
        times, plan, facts = make()
        begin = time.process_time()
        states = self.problem.solve(self.seeds, times, plan)
        seconds = (time.process_time() - begin) / len(self.seeds)
        squared = (states - reference).double().square().flatten(1).mean(1)
        return {
            "cost": plan.cost(self.problem.ladder) / self.top,
            "seconds": seconds,
            "mse": float(squared.mean()),
            "standard_error": float(squared.std()) / len(squared) ** 0.5,
            "median": float(squared.median()),
            **facts,
        }


def run(name: str, sizes: Sizes, out: Path, *, best: bool, again: Sequence[str]) -> None:
    """Measure what is missing of one problem, or asked for again, and store every row as it comes."""
    problem = PROBLEMS[name]()
    content = repr((problem.pilot.times.tolist(), problem.pilot.gram.tolist(), problem.ladder.costs))
    settings = {**asdict(sizes), "pilot": hashlib.sha256(content.encode()).hexdigest()[:16]}
    settings = json.loads(json.dumps(settings))
    path, rows = out / f"allocation_{name}.json", []
    if path.is_file():
        stored = json.loads(path.read_bytes())
        rows = stored["rows"] if stored["settings"] == settings else []
        rows = [row for row in rows if not row["method"].startswith(tuple(again))]
    kind = f"{name}_{settings['pilot']}_{sizes.iterations}x{sizes.batch}"
    bench = Bench(problem, sizes, Path(tempfile.gettempdir()) / "multilevel_sde_allocation" / kind)
    done = {(row["method"], row["budget"]) for row in rows}
    todo = [row for row in bench.methods() if row[:2] not in done and (best or not row[0].startswith("best of"))]
    for method, budget, make in tqdm(todo, desc=name, unit="row"):
        rows.append({"method": method, "budget": budget, **bench.measure(make)})
        result = {"problem": name, "gamma": problem.gamma, "settings": settings, "machine": machine(), "rows": rows}
        write_json(path, result)


def main() -> None:
    """Measure what was asked for, then print and draw all that lies in the folder."""
    parser = parser_of(__file__, __doc__)
    parser.add_argument("--problems", nargs="*", choices=PROBLEMS, default=list(PROBLEMS), help="[all]")
    parser.add_argument("--samples", type=int, help="samples that errors are reported on [256]")
    parser.add_argument("--calibration", type=int, help="samples that choose the best of 15 [32]")
    parser.add_argument("--iterations", type=int, help="steps of learning [50]")
    parser.add_argument("--batch", type=int, help="samples per step of learning [300]")
    parser.add_argument("--no-best", action="store_true", help="leave the best of 15 to a later run")
    parser.add_argument("--again", nargs="+", default=[], help="beginnings of methods to measure again, if stored")
    parser.add_argument("--busy", action="store_true", help="networks at sizes for a busy core")
    parser.add_argument("--quick", action="store_true", help="a smoke run: two problems, two budgets, few samples")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = ["scaling_law_3", "digits_ddim"] if options.quick else options.problems
    given = {key: getattr(options, key) for key in ("samples", "calibration", "iterations", "batch")}
    given = {key: value for key, value in given.items() if value is not None}
    for name in chosen:
        sizes = BUSY.get(name.rpartition("_")[0], Sizes()) if options.busy else Sizes()
        if options.quick:
            sizes = Sizes(8, 4, 2, 4, BUDGETS[:2])
        run(name, replace(sizes, **given), options.out, best=not options.no_best, again=options.again)
    paths = [options.out / f"allocation_{name}.json" for name in PROBLEMS]
    results = [json.loads(path.read_bytes()) for path in paths if path.is_file()]
    text = markdown(results)
    write_atomically(options.out / "allocation.md", text.encode())
    draw_figure(options.out / "allocation.png", results)
    print(text)


if __name__ == "__main__":
    main()
