"""Cheap levels made from one network: what they cost, how far off they are, and whether a plan on them pays.

The top network of each shipped ladder (digits 8x8, dead leaves 32x32) is taken as if it were the only one, for the
reverse SDE (DDPM) and the ODE (DDIM). For every cheap level of `multilevel_diffusion.cheap_levels`:

- its cost in FLOPs and in CPU seconds (one thread, a batch of 8), over the top network's;
- V = mean |f^1 - f^2|^2 / mean |f^2|^2 along the top network's path of 100 steps (but for t = 1);
- what a pilot on the two levels says, by FLOPs and by seconds;
- the error of its plan, of the top network alone and of the cheap level alone at equal cost, against 1000 steps of the
  top network with the same noise. All take the same first-order step.

Kept features are also run with features renewed at hits only, drawn independently and systematically.

    python benchmarks/one_network/bench_one_model.py          # measures what is not yet in the folder, then prints
    python benchmarks/one_network/bench_one_model.py --cases  # prints what is there
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor
from tqdm import tqdm

import multilevel_sde as mls
from benchmarks.common import parser_of, write_json
from multilevel_diffusion import Process, load_ladder, shipped_ladder, uniform
from multilevel_diffusion.cheap_levels import (
    LowResolution,
    MemoryLadder,
    cached_ladder,
    choose_blocks,
    deep_modules,
    detail_variance,
    level_menu,
    survey,
)
from multilevel_diffusion.networks import DiffusionLadder
from multilevel_diffusion.networks.data import DeadLeaves, Digits
from multilevel_diffusion.process import MODES
from multilevel_sde.files import write_atomically

FINE, PATH_STEPS, CANDIDATES, PILOT_SAMPLES = 1000, 100, 60, 8
PILOT_SEED = 1_000_000
BUDGETS = (5, 10, 20)
EVERY, SKIPPED, DRAWS = (4, 8), 0.3, 4
BASE_SHARE = 0.7  # of the budget that goes to the cheap level where the number of steps is chosen beforehand
IMAGES = {"digits": 16, "deadleaves32": 16}
FACTORS = {"digits": (2,), "deadleaves32": (2, 4)}


@dataclass(frozen=True)
class CpuSeconds:
    """CPU time of one call, the median of many: other processes on the machine disturb it less than the clock."""

    x: Tensor
    t: float = 0.5
    calls: int = 25
    unit = "CPU seconds"

    def __call__(self, drifts: Sequence[mls.Drift]) -> list[float]:
        """Time every drift."""
        return [self._median(drift) for drift in drifts]

    @torch.no_grad()
    def _median(self, drift: mls.Drift) -> float:
        t, seconds = torch.tensor(self.t, dtype=torch.float64), []
        for _ in range(self.calls):
            begin = time.process_time()
            drift(self.x, t)
            seconds.append(time.process_time() - begin)
        return statistics.median(seconds[3:])


@dataclass(frozen=True)
class Bench:
    """The top network of a ladder, a process on it, and the reference."""

    name: str
    images: DiffusionLadder
    process: Process

    def start(self, seeds: range) -> Tensor:
        """Return the noise of these seeds."""
        return self.process.start(seeds, self.images.image_shape)

    def solve(self, ladder: mls.Ladder, times: Tensor, plan: mls.Plan, seeds: range, **save: bool) -> mls.Solution:
        """Solve from these seeds' noise."""
        return mls.solve(ladder, self.start(seeds), times, plan, **save, **self.process.arguments(seeds))

    def pilot(self, ladder: mls.Ladder, candidates: int) -> mls.Pilot:
        """Measure a ladder on samples of its own."""
        seeds = range(PILOT_SEED, PILOT_SEED + PILOT_SAMPLES)
        arguments = self.process.arguments(seeds)
        return mls.pilot(ladder, self.start(seeds), self.process.fine_times, candidates=candidates, **arguments)

    def alone(self, drift_ladder: mls.Ladder, steps: int, seeds: range) -> Tensor:
        """Return the images of a one-level ladder."""
        times = self.process.grid(steps)
        return self.solve(drift_ladder, times, mls.em_plan(drift_ladder, times), seeds).y

    def menus(self) -> tuple[dict[str, mls.Ladder], dict[str, mls.Ladder], list[mls.Ladder], list[str]]:
        """Return the ladders priced in FLOPs and in seconds, more to run a pilot on, and the skipped blocks."""
        top, schedule, seeds = self.images.denoisers[-1], self.images.schedule, range(PILOT_SEED, PILOT_SEED + 4)
        source = Digits() if self.name == "digits" else DeadLeaves(self.images.image_shape[-1])
        factors = FACTORS[self.name]
        missed = {factor: detail_variance(source.held_out(64), factor) for factor in factors}
        times = self.process.grid(PATH_STEPS)
        one = self.images.ladder.top()
        ys = self.solve(one, times, mls.em_plan(one, times), seeds, save=True).ys
        skip = choose_blocks(top, ys[10:-1:40], times[10:-1:40], saving=SKIPPED)
        given = {
            "skip": skip,
            "keep": deep_modules(self.images.networks[-1]),
            "every": EVERY,
            "factors": factors,
            "detail_variance": missed,
        }
        batch = torch.randn(8, *self.images.image_shape, generator=torch.Generator().manual_seed(0))
        flops = level_menu(top, schedule, batch[:1], costs=mls.FlopCost, **given)
        seconds = level_menu(top, schedule, batch, costs=CpuSeconds, **given)
        for factor in factors:
            level = LowResolution(top, schedule, factor)
            seconds[f"resolution / {factor}, no detail"] = mls.Ladder([level, top], CpuSeconds(batch))
        levels = [LowResolution(top, schedule, f, missed[f]) for f in sorted(factors, reverse=True)]
        several = [mls.Ladder([*levels, top], mls.FlopCost(batch[:1]))] if len(levels) > 1 else []
        return flops, seconds, several, skip


def measure(name: str, mode: str) -> Iterator[tuple[str, dict]]:
    """Yield the parts of one process's record, the expensive ones ladder by ladder."""
    images = load_ladder(shipped_ladder(name))
    bench = Bench(name, images, Process(images.schedule, MODES[mode], uniform(images.schedule, FINE)))
    flops, seconds, several, skip = bench.menus()
    seeds, one = range(IMAGES[name]), images.ladder.top()
    times = bench.process.grid(PATH_STEPS)
    path = bench.solve(one, times, mls.em_plan(one, times), range(PILOT_SEED, PILOT_SEED + 8), save=True).ys
    price = {level: ladder.costs[0] / ladder.costs[-1] for level, ladder in flops.items()}
    yield (
        "levels",
        {
            level.name: {"flops": price.get(level.name), "seconds": level.cost, "difference": level.difference}
            for level in survey(seconds, path[1:-1], times[1:-1])
        },
    )
    yield "skipped", {"blocks": skip}
    reference = bench.alone(one, FINE, seeds)
    ladders = flops | ({"resolution / 4, / 2": several[0]} if several else {})
    if "float16" in seconds:
        ladders["float16"] = seconds["float16"]
    for level, ladder in ladders.items():
        clock = seconds[level].costs if level in seconds else None
        yield level, judge(bench, ladder, clock, reference, seeds)
    yield "renewed at hits", at_hits(bench, reference, seeds)


def errors(states: Tensor, reference: Tensor) -> dict[str, float]:
    """Return the mean squared error, that of the median image, and the standard error of the mean."""
    each = (states - reference).double().square().flatten(1).mean(1)
    return {"mse": float(each.mean()), "median": float(each.median()), "error": float(each.std()) / len(each) ** 0.5}


def judge(
    bench: Bench, ladder: mls.Ladder, clock: tuple[float, ...] | None, reference: Tensor, seeds: range
) -> dict[str, object]:
    """Return what the pilot says of a ladder and what its plans and its levels alone do at equal cost."""
    top, rows = ladder.costs[-1], []
    pilot = None if isinstance(ladder, MemoryLadder) else bench.pilot(ladder, CANDIDATES)
    for budget in BUDGETS:
        if isinstance(ladder, MemoryLadder):
            # Its clock counts steps, so a plan holds for the steps of its pilot, not for half of them: an odd number.
            pilot = bench.pilot(ladder, max(9, 2 * round(BASE_SHARE * budget * top / ladder.costs[0] / 2) + 1))
        assert pilot is not None
        if budget * top < pilot.least_budget:
            continue
        by_clock = None if clock is None else replace(pilot, costs=clock, unit="CPU seconds")
        advice = pilot.advise(budget=budget * top)
        best = pilot.plan(budget=budget * top)
        solved = bench.solve(ladder, best.times, best.plan, seeds)
        singles = {}
        for level in range(len(ladder)):
            steps = int(solved.stats.cost / ladder.costs[level] * (1 + 1e-9))
            if 1 <= steps <= FINE:
                alone = bench.alone(ladder.subset([level]), steps, seeds)
                singles[f"f{level + 1}"] = {"steps": steps, **errors(alone, reference)}
        told = None
        if by_clock is not None and budget * by_clock.costs[-1] >= by_clock.least_budget:
            told = by_clock.advise(budget=budget * by_clock.costs[-1]).pays
        rows.append(
            {
                "budget": budget,
                "cost": solved.stats.cost / top,
                "steps": best.plan.steps,
                "evaluations": best.plan.evaluations.tolist(),
                "pays": advice.pays,
                "pays_by_seconds": told,
                "predicted": best.predicted.mse,
                "plan": errors(solved.y, reference),
                "singles": singles,
            }
        )
    return {"unit": ladder.unit, "costs": [cost / top for cost in ladder.costs], "rows": rows}


def at_hits(bench: Bench, reference: Tensor, seeds: range) -> dict[str, object]:
    """Return the errors with features renewed at hits of f^2 only, for both ways of drawing, over several plans."""
    images = bench.images
    ladder = cached_ladder(images.denoisers[-1], deep_modules(images.networks[-1]), torch.zeros(1, *images.image_shape))
    rows = []
    for budget, (kind, draw) in product(
        BUDGETS[1:], (("independent", mls.independent), ("systematic", mls.systematic))
    ):
        times, generator = bench.process.grid(2 * budget), torch.Generator().manual_seed(0)
        table = torch.ones(2 * budget, 2, dtype=torch.float64)
        rest = budget - 1 - (2 * budget - 1) * ladder.costs[0] / ladder.costs[1]
        table[1:, 1] = rest / (2 * budget - 1)
        plans = [mls.draw_plan(table, draw, generator=generator) for _ in range(DRAWS)]
        found = [bench.solve(ladder, times, plan, seeds) for plan in plans]
        runs = [errors(solved.y, reference)["mse"] for solved in found]
        cost = statistics.fmean(solved.stats.cost for solved in found) / ladder.costs[1]
        rows.append({"budget": budget, "draw": kind, "cost": cost, "mse": statistics.fmean(runs), "runs": runs})
    return {"unit": ladder.unit, "costs": [cost / ladder.costs[1] for cost in ladder.costs], "rows": rows}


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def both(found: dict[str, float]) -> str:
    return f"{found['mse']:.2g} / {found['median']:.2g}"


def markdown(case: str, record: dict) -> str:
    """Return the tables of one process."""
    lines = [f"### {case}", "", "| cheap level | FLOPs | CPU seconds | V |", "|---|---|---|---|"]
    for level, row in record["levels"].items():
        cells = [level, number(row["flops"]), number(row["seconds"]), number(row["difference"])]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"Skipped blocks: {', '.join(record['skipped']['blocks'])}. Errors: mean / of the median image.", ""]
    lines.append(
        "| ladder | cost | steps, evaluations | pilot: pays? (seconds) | plan: predicted | plan | f^2 alone | "
        "cheaper levels alone | best single / plan |"
    )
    lines.append("|---" * 9 + "|")
    for level, part in record.items():
        if level in ("levels", "skipped", "renewed at hits"):
            continue
        for row in part["rows"]:
            top, told = f"f{len(part['costs'])}", {True: "yes", False: "no", None: "-"}
            cheaper = [both(single) for name, single in row["singles"].items() if name != top]
            ratios = [
                min(single[key] for single in row["singles"].values()) / row["plan"][key] for key in ("mse", "median")
            ]
            cells = [
                level + (" (by seconds)" if part["unit"] != mls.FlopCost.unit else ""),
                f"{row['cost']:.3g}",
                f"{row['steps']}, {row['evaluations']}",
                f"{told[row['pays']]} ({told[row['pays_by_seconds']]})",
                f"{row['predicted']:.2g}",
                both(row["plan"]),
                both(row["singles"][top]) if top in row["singles"] else "",
                ", ".join(cheaper),
                f"{ratios[0]:.2f} / {ratios[1]:.2f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Features renewed at hits only, mean of 4 plans:", "", "| draw | cost | MSE |", "|---|---|---|"]
    for row in record["renewed at hits"]["rows"]:
        lines.append(f"| {row['draw']} | {row['cost']:.3g} | {row['mse']:.2g} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure what is asked for and not there, then print all that lies in the folder."""
    cases = [f"{name}_{mode}" for name, mode in product(IMAGES, MODES)]
    parser = parser_of(__file__, __doc__)
    parser.add_argument("--cases", nargs="*", choices=cases, default=cases, help="[all]")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for case in arguments.cases:
        path = arguments.out / f"one_model_{case}.json"
        if path.exists():
            continue
        record = dict(tqdm(measure(*case.rsplit("_", 1)), desc=case, unit="part"))
        write_json(path, record)
    found = {case: arguments.out / f"one_model_{case}.json" for case in cases}
    tables = [markdown(case, json.loads(path.read_text())) for case, path in found.items() if path.exists()]
    write_atomically(arguments.out / "one_model.md", "\n".join(tables).encode())
    print("\n".join(tables))


if __name__ == "__main__":
    main()
