"""Figure 1 of the paper: error against cost in its regime, 1000 steps and 15 to 500 evaluations of the top network.

    python -m benchmarks.paper.bench_figure1                        # digits, both modes; an hour of one core
    python -m benchmarks.paper.bench_figure1 --ladder deadleaves32 --images 16
    python -m benchmarks.paper.bench_figure1 --quick --out /tmp/figure1   # a smoke run

Euler-Maruyama with every network and 30 to 750 steps; ML-EM on 1000 steps with three levels (first, middle, last) and
the paper's probabilities: C / T, the theorem's C T^-(1/gamma + 1/2), and learned ones (SGD on sigmoid(alpha log(t +
delta) + beta) on a tenth of the steps, started from C / T). A draw is shared by a quarter of the images, as in the
paper by a batch, and is independent or systematic; "best of 15" is chosen on other images. Then the probabilities of a
pilot, without descent, and its plan, which is not random. The error is the mean squared distance to 1000 steps of the
largest network with the same start and noise. What EM with that network errs at 750 steps is the floor that the paper
ignores errors below.

"Colour" is the mean squared distance of the channels' means over each image. Every measurement is kept; a run that was
stopped goes on. FLOPs are exact; seconds are of this machine.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from scipy.stats import spearmanr
from torch import Tensor
from tqdm import tqdm

import multilevel_sde as mls
from benchmarks.common import cost_at, machine, parser_of, publish, table, write_figure, write_json
from multilevel_diffusion import Process, load_ladder, shipped_ladder, stored_pilot, uniform
from multilevel_diffusion.process import MODES
from multilevel_sde.files import write_atomically

STEPS, QUARTERS, CANDIDATES = 1000, 4, 15
EM_STEPS = (30, 60, 125, 250, 500, 750)
BUDGETS = (15, 30, 60, 120, 250, 500)
BEST = (30, 120)  # budgets at which the best of 15 is chosen
CHOOSING = 4_000_000  # first seed of the images that choose; the pilot and learning have others
DRAWS = {"independent": mls.independent, "systematic": mls.systematic}
EM = "EM, level"


class Figure1:
    """One process on a ladder, with its results on disk.

    Arguments:
        name: A shipped ladder.
        mode: A key of `MODES`.
        images: A multiple of 4.
        learning: (iterations, batch) of learning.
        out: The folder of results.
        quick: Few steps of everything.
    """

    def __init__(self, name: str, mode: str, images: int, learning: tuple[int, int], out: Path, quick: bool):
        self.stored, self.mode, self.images, self.learning = load_ladder(shipped_ladder(name)), mode, images, learning
        self.steps = 40 if quick else STEPS
        self.em_steps, self.budgets, self.best = ((10, 20), (5,), (5,)) if quick else (EM_STEPS, BUDGETS, BEST)
        self.process = Process(self.stored.schedule, MODES[mode], uniform(self.stored.schedule, self.steps))
        self.times = self.process.fine_times
        self.three = self._chosen((0, len(self.stored.ladder) // 2, len(self.stored.ladder) - 1))
        self.path, self.scratch = out / f"figure1_{name}_{mode}.json", out / f"figure1_{name}_{mode}"
        self.known: dict[str, Any] = json.loads(self.path.read_bytes()) if self.path.is_file() else {"rows": []}
        self.known |= {"ladder": name, "mode": mode, "images": images, "steps": self.steps, "learning": list(learning)}

    learning_share = 0.3  # of what the top level costs on the steps of learning

    def _chosen(self, levels: tuple[int, ...]) -> mls.Ladder:
        ladder, top = self.stored.ladder, self.stored.ladder.costs[-1]
        return mls.Ladder([ladder.drifts[k] for k in levels], [ladder.costs[k] / top for k in levels])

    def solve(self, ladder: mls.Ladder, times: Tensor, plans: list[mls.Plan], first: int = 0) -> Tensor:
        """The images, one plan for each quarter of them."""
        size, out = self.images // QUARTERS, []
        for place, plan in enumerate(plans):
            seeds = range(first + place * size, first + (place + 1) * size)
            start = self.process.start(seeds, self.stored.image_shape)
            out.append(mls.solve(ladder, start, times, plan, **self.process.arguments(seeds)).y)
        return torch.cat(out)

    def target(self, first: int = 0) -> Tensor:
        """Where the largest network ends on all steps; kept in a file."""
        path = self.scratch / f"target_{first}.safetensors"
        if not path.is_file():
            top = self.three.top()
            end = self.solve(top, self.times, [mls.em_plan(top, self.times)] * QUARTERS, first)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, to_safetensors({"end": end}))
        return load_file(path)["end"]

    @cached_property
    def pilot(self) -> mls.Pilot:
        """A pilot of the three levels on a tenth of the steps."""
        seeds = range(10**6, 10**6 + 16)
        start = self.process.start(seeds, self.stored.image_shape)
        known: dict[str, Any] = self.process.arguments(seeds)
        return mls.pilot(self.three, start, self.times, samples=16, candidates=max(10, self.steps // 10), **known)

    @cached_property
    def learned(self) -> mls.LearnedSchedule:
        """Probabilities by SGD, from C / T; on a tenth of the steps, as they are functions of time."""
        (iterations, batch), times = self.learning, self.process.grid(max(10, self.steps // 10))
        budget = self.learning_share * (len(times) - 1)
        start = mls.InverseCostSchedule().probabilities(self.three, times, budget=budget, draw=mls.independent)
        noisy = self.process.tau > 0
        spent = budget - (len(times) - 1) * self.three.costs[0]
        return mls.learn(
            self.three,
            lambda seeds: self.process.start(seeds, self.stored.image_shape),
            times,
            delta=0.01,
            regularisation=self._error_at(start, times, batch) / spent,
            start=start,
            steps=iterations,
            batch=batch,
            optimiser=partial(torch.optim.Adam, lr=0.1),
            derivative=mls.central_difference,
            generator=torch.Generator().manual_seed(0),
            folder=self.scratch / "learning",
            progress=True,
            step=self.process.arguments([0])["step"],
            diffusion=1.0 if noisy else None,
            brownian_source=(lambda seeds: self.process.arguments(seeds)["brownian"]) if noisy else None,
        )

    def _error_at(self, table: Tensor, times: Tensor, images: int) -> float:
        """What independent draws with these probabilities err to the top level on the same steps."""
        seeds, generator = range(CHOOSING, CHOOSING + images), torch.Generator().manual_seed(3)
        start = self.process.start(seeds, self.stored.image_shape)
        plan = mls.draw_plan(table, mls.independent, generator=generator, samples=images)
        ends = [
            mls.solve(self.three, start, times, one, **self.process.arguments(seeds)).y
            for one in (plan, mls.em_plan(self.three, times))
        ]
        return float((ends[0] - ends[1]).double().square().mean())

    def table_of(self, kind: str, budget: float, draw: mls.Draw) -> Tensor:
        """The probabilities of one kind that cost so much."""
        gamma = self.known["gamma"]
        if kind == "pilot's p":
            coarse = self.pilot.schedule(budget=budget * self.pilot.steps / self.steps, draw=draw)
            table = coarse.repeat_interleave(self.steps // self.pilot.steps, 0)
            return mls.scale_to_budget(self.three, table, budget, draw=draw)
        schedules = {"C / T": mls.InverseCostSchedule(), "theorem's p": mls.TheoremSchedule(gamma), "learned p": None}
        schedule = schedules[kind] or self.learned
        return schedule.probabilities(self.three, self.times, budget=budget, draw=draw)

    def runs(self) -> Iterator[tuple[str, float, Callable[[], dict]]]:
        """Yield method, budget, and what measures it."""
        for level in range(len(self.stored.ladder)):
            one = self._chosen((level,))
            for n in self.em_steps:
                times = self.process.grid(n)
                plans = [mls.em_plan(one, times)] * QUARTERS
                yield f"{EM} {level + 1}", n, partial(self._measure, one, times, plans)
        least = self.steps * self.three.costs[0]
        for kind in ("C / T", "theorem's p", "pilot's p", "learned p"):
            for budget in (budget for budget in self.budgets if budget > 1.2 * least):
                for name, draw in DRAWS.items():
                    yield f"ML-EM, {kind}, {name}", budget, partial(self._drawn, kind, budget, draw)
        for budget in self.best:
            if budget > 1.2 * least:
                yield "ML-EM, C / T, best of 15", budget, partial(self._best, budget)
        shipped = stored_pilot(self.stored, self.mode)
        if shipped is not None and self.steps == STEPS:
            for budget in (n for n in (5, 8, *self.budgets) if n <= shipped.steps):
                yield "the pilot's plan", budget, partial(self._planned, shipped.in_evaluations(), budget)

    def _measure(self, ladder: mls.Ladder, times: Tensor, plans: list[mls.Plan]) -> dict:
        begin = time.process_time()
        images = self.solve(ladder, times, plans)
        taken = time.process_time() - begin
        apart = (images - self.target()).double()
        errors = apart.square().flatten(1).mean(1)
        prices = torch.tensor(ladder.costs, dtype=torch.float64)
        top = self.stored.ladder.costs[-1]
        prices = prices / top if float(prices[-1]) > 1.0 + 1e-9 else prices
        cost = sum(float(plan.evaluations.double() @ prices) for plan in plans) / len(plans)
        each = errors.reshape(QUARTERS, -1).mean(1)
        return {
            "cost": cost,
            "seconds": taken / self.images,
            "mse": float(errors.mean()),
            "median": float(errors.median()),
            "by_draw": each.tolist(),
            "colour": float(apart.mean((2, 3)).square().mean()),  # of each channel's mean over an image
        }

    def _drawn(self, kind: str, budget: float, draw: mls.Draw) -> dict:
        table = self.table_of(kind, budget, draw)
        generator = torch.Generator().manual_seed(int(budget))
        plans = [mls.draw_plan(table, draw, generator=generator) for _ in range(QUARTERS)]
        return self._measure(self.three, self.times, plans)

    def _planned(self, pilot: mls.Pilot, budget: float) -> dict:
        best = pilot.plan(budget=budget)
        return self._measure(self.stored.ladder, best.times, [best.plan] * QUARTERS)

    def _best(self, budget: float) -> dict:
        """Of 15 shared draws the one that errs least on other images; every draw's error on both sets."""
        table = self.table_of("C / T", budget, mls.independent)
        generator = torch.Generator().manual_seed(7)
        plans = [mls.draw_plan(table, mls.independent, generator=generator) for _ in range(CANDIDATES)]

        def scores(first: int) -> list[float]:
            found = []
            for plan in tqdm(plans, desc="best of 15", leave=False):
                ends = self.solve(self.three, self.times, [plan] * QUARTERS, first)
                found.append(float((ends - self.target(first)).double().square().mean()))
            return found

        choosing, judging = scores(CHOOSING), scores(0)
        place = min(range(CANDIDATES), key=choosing.__getitem__)
        chosen = self._measure(self.three, self.times, [plans[place]] * QUARTERS)
        rank = float(spearmanr(choosing, judging).statistic)
        return chosen | {"choosing": choosing, "judging": judging, "rank_correlation": rank}

    def run(self) -> None:
        """Measure what is missing."""
        slopes = stored_pilot(self.stored, "ddpm")
        self.known["gamma"] = 2.5 if slopes is None else max(1.0, slopes.rates.cost_exponent)
        done = {(row["method"], row["budget"]) for row in self.known["rows"]}
        todo = [run for run in self.runs() if run[:2] not in done]
        self.target()
        for method, budget, measure in tqdm(todo, desc=f"{self.known['ladder']} {self.mode}"):
            self.known["rows"].append({"method": method, "budget": budget, **measure()})
            self.known["machine"] = machine()
            write_json(self.path, self.known)


def markdown(result: dict) -> str:
    """The table of one process: error at each cost, and the speed-up over EM at equal error."""
    rows, images = result["rows"], result["images"]
    top = f"{EM} {max(int(row['method'].split()[-1]) for row in rows if row['method'].startswith(EM))}"
    every_em = sorted({row["method"] for row in rows if row["method"].startswith(EM)})
    floor = min(row["mse"] for row in rows if row["method"] == top)
    lines = [f"### {result['ladder']}, {result['mode'].upper()}, {images} images, {result['steps']} steps", ""]
    body = []
    for row in rows:
        if row["method"].startswith(EM) and row["method"] != top:
            continue
        cells = [row["method"], f"{row['cost']:.3g}", f"{row['mse']:.2g}" + (" *" if row["mse"] < floor else "")]
        cells += [f"{row['median']:.2g}", f"{row['colour']:.2g}", f"{1e3 * row['seconds']:.3g}"]
        for unit in ("cost", "seconds"):
            cost, sign = cost_at(rows, every_em, unit, "mse", row["mse"])
            cells.append("" if row["method"] == top else f"{sign}{cost / row[unit]:.2f}")
        body.append(cells)
    head = ["method", "cost", "MSE", "median", "colour", "ms an image", "speed-up over EM, FLOPs", "seconds"]
    lines += [*table(head, body), "", f"\\* below the {floor:.2g} of EM with {max(EM_STEPS)} steps of the largest.", ""]
    for row in (row for row in rows if "judging" in row):
        draws, mean = row["judging"], sum(row["judging"]) / len(row["judging"])
        lines.append(
            f"- best of 15 at {row['budget']:g}: {row['mse']:.2g}, mean of the 15 {mean:.2g}, least {min(draws):.2g}, "
            f"most {max(draws):.2g}; rank correlation of draws over two sets of images {row['rank_correlation']:.2f}"
        )
    return "\n".join([*lines, ""])


def draw(path: Path, results: list[dict]) -> None:
    """Error against FLOPs and against seconds, as in the paper."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2 * len(results)), layout="constrained")
    axes = figure.subplots(len(results), 2, squeeze=False)
    styles = {"C / T": "C1", "theorem's p": "C2", "learned p": "C3", "pilot's p": "C4"}
    for pair, result in zip(axes, results, strict=True):
        for axis, unit in zip(pair, ("cost", "seconds"), strict=True):
            for method in dict.fromkeys(row["method"] for row in result["rows"]):
                points = sorted(
                    (row["budget"], row[unit], row["mse"]) for row in result["rows"] if row["method"] == method
                )
                _, x, y = zip(*points, strict=True)
                if method.startswith(EM):
                    axis.plot(x, y, ":", color="0.6", marker=f"${method.split()[-1]}$")
                elif "best of" in method:
                    axis.plot(x, y, "*", color="k", label=method)
                else:
                    colour = next((styles[kind] for kind in styles if f"{kind}," in method), "C0")
                    axis.plot(x, y, "--" if "independent" in method else "-", color=colour, marker=".", label=method)
            name = "evaluations of the largest network, FLOPs" if unit == "cost" else "seconds an image"
            axis.set(xscale="log", yscale="log", xlabel=name, ylabel="MSE to 1000 steps")
            axis.set_title(f"{result['ladder']}, {result['mode'].upper()}; dotted: EM with network 1, 2, ...")
        pair[0].legend(fontsize=7)
    write_figure(path, figure, 110)


def main() -> None:
    """Measure what was asked for, and write and print the tables of all that lies in the folder."""
    parser: argparse.ArgumentParser = parser_of(__file__, __doc__)
    parser.add_argument("--ladder", default="digits", help="a shipped ladder [%(default)s]")
    parser.add_argument("--modes", nargs="*", choices=MODES, default=list(MODES), help="none: only the tables [both]")
    parser.add_argument("--images", type=int, default=64, help="a multiple of 4 [%(default)s]")
    parser.add_argument("--learning", type=int, nargs=2, default=(50, 60), help="SGD steps and batch [%(default)s]")
    parser.add_argument("--quick", action="store_true", help="a smoke run: 40 steps, one budget")
    options = parser.parse_args()
    if options.images < QUARTERS or options.images % QUARTERS:
        parser.error(f'"--images" must be a multiple of {QUARTERS}, got {options.images}; try 64')
    torch.set_num_threads(1)
    for mode in options.modes:
        images, learning = (8, (2, 4)) if options.quick else (options.images, tuple(options.learning))
        with torch.no_grad():
            Figure1(options.ladder, mode, images, learning, options.out, options.quick).run()
    names = [f"{ladder}_{mode}" for ladder in ("digits", "deadleaves32", "emoji32") for mode in MODES]
    publish(options.out, "figure1", names, markdown, draw)


if __name__ == "__main__":
    main()
