"""How near to the 1000-step path of the largest network does each method end, for the same cost and the same noise?

On the shipped ladders of networks (digits 8x8, dead leaves 32x32), for the reverse SDE (DDPM) and the ODE (DDIM), at
equal costs in evaluations of the largest network (by FLOPs):

- EM on the top level, on a grid uniform in time and on one uniform in log-SNR;
- DPM-Solver++ 2M on the top level, its SDE variant for DDPM (diffusers' scheduler, given our noise levels, our
  denoiser and our noise), on both grids;
- ML-EM on 100 steps with p = C/T and with the theorem's p, drawn independently and systematically;
- ML-EM with the pilot's schedule (systematic), and with the pilot's plan.

A random plan is drawn anew for each quarter of the images. Seconds are CPU time on one thread, which other processes on
the machine disturb less than wall-clock time. The mean error and that of the median image are given: a few images that
turn into another mode dominate the mean.

    python benchmarks/bench_ladders.py            # about 10 minutes on an idle core
    python benchmarks/bench_ladders.py --quick --out /tmp/ladders
"""

from __future__ import annotations

import argparse
import io
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise, product
from pathlib import Path

import torch
from common import cost_at, machine
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor
from tqdm import tqdm

import multilevel_sde as mls
from multilevel_diffusion.grids import uniform
from multilevel_diffusion.sampling import MODES, Process, stored_pilot
from multilevel_diffusion.store import DiffusionLadder, load_ladder, shipped_ladder
from multilevel_sde.files import write_atomically
from multilevel_sde.pilot_rig import typical

FINE, STEPS, QUARTERS = 1000, 100, 4
BUDGETS = (5, 9, 13, 20, 35)
LARGER = (60,)  # single networks only, so that an error can be looked up that the budgets do not reach
IMAGES = {"digits": 32, "deadleaves32": 16}
EM, PLAN = "EM, uniform", "ML-EM, pilot plan"
SINGLE = (EM, "EM, log-SNR", "DPM++ 2M, uniform", "DPM++ 2M, log-SNR")


@dataclass(frozen=True)
class Row:
    """One method at one budget; costs in top evaluations, seconds of CPU time an image, errors per pixel."""

    method: str
    budget: float
    cost: float
    seconds: float
    mse: float
    standard_error: float
    median: float
    typical: float
    predicted_mse: float | None
    predicted_typical: float | None


@dataclass(frozen=True)
class Bench:
    """A process on a ladder with its pilot and the images' seeds."""

    stored: DiffusionLadder
    process: Process
    pilot: mls.Pilot
    images: int

    @property
    def parts(self) -> list[range]:
        """Seeds of the quarters."""
        size = self.images // QUARTERS
        return [range(first, first + size) for first in range(0, self.images, size)]

    def solve(self, times: Tensor, plans: list[mls.Plan]) -> Tensor:
        """Return the images, one plan a quarter."""
        out = []
        for seeds, plan in zip(self.parts, plans, strict=True):
            start = self.process.start(seeds, self.stored.image_shape)
            out.append(mls.solve(self.stored.ladder, start, times, plan, **self.process.arguments(seeds)).y)
        return torch.cat(out)

    def dpm_solver(self, times: Tensor) -> Tensor:
        """Return the images of DPM-Solver++ 2M on the top level, as an SDE where the process is one."""
        kind = "sde-dpmsolver++" if self.process.tau else "dpmsolver++"
        top, schedule, points = self.stored.ladder.drifts[-1], self.stored.schedule, times.tolist()
        out = []
        for seeds in self.parts:
            x = self.process.start(seeds, self.stored.image_shape)
            scheduler = DPMSolverMultistepScheduler(algorithm_type=kind, prediction_type="sample", solver_order=2)
            scheduler.set_timesteps(len(points) - 1)
            # The table of betas is replaced: our noise levels sigma / alpha, our continuous times for the network.
            scheduler.sigmas = torch.tensor([schedule.sigma(t) / schedule.alpha(t) for t in points])
            scheduler.set_begin_index(0)
            brownian = self.process.arguments(seeds)["brownian"]
            noises = brownian.like(x).increments(times) if brownian is not None else None
            for (t, s), moment in zip(pairwise(points), times, strict=False):
                noise = next(noises) / math.sqrt(t - s) if noises is not None else None
                x = scheduler.step(top(x, moment), t, x, variance_noise=noise, return_dict=False)[0]  # type: ignore[arg-type]
            out.append(x)
        return torch.cat(out)


def runs(bench: Bench, budgets: tuple[int, ...]) -> Iterator[tuple[str, float, Callable[[], Tensor], list[mls.Plan]]]:
    """Yield method, budget, the function that samples, and the plans of the quarters (none for DPM-Solver)."""
    ladder, pilot = bench.stored.ladder, bench.pilot
    top = ladder.costs[-1]
    for n in (*budgets, *LARGER):
        for place, grid in (("uniform", bench.process.grid), ("log-SNR", bench.process.log_snr_grid)):
            times = grid(n)
            plans = [mls.em_plan(ladder, times)] * QUARTERS
            yield f"EM, {place}", n, lambda times=times, plans=plans: bench.solve(times, plans), plans
            yield f"DPM++ 2M, {place}", n, lambda times=times: bench.dpm_solver(times), []
    times = bench.process.grid(STEPS)
    schedules = {"p = C/T": mls.InverseCostSchedule(), "theorem": mls.TheoremSchedule(pilot.rates.cost_exponent)}
    draws = {"independent": mls.independent, "systematic": mls.systematic}
    for n in budgets:
        tables = {
            (f"ML-EM, {name}, {kind}", draw): schedule.probabilities(ladder, times, budget=n * top, draw=draw)
            for (name, schedule), (kind, draw) in product(schedules.items(), draws.items())
        }
        tables["ML-EM, pilot schedule, systematic", mls.systematic] = pilot.schedule(budget=n * top)
        for (name, draw), table in tables.items():
            generator = torch.Generator().manual_seed(n)
            plans = [mls.draw_plan(table, draw, generator=generator) for _ in range(QUARTERS)]
            yield name, n, lambda plans=plans: bench.solve(times, plans), plans
        best = pilot.plan(budget=n * top)
        plans = [best.plan] * QUARTERS
        yield PLAN, n, lambda best=best, plans=plans: bench.solve(best.times, plans), plans


def predict(bench: Bench, method: str, budget: float, plans: list[mls.Plan]) -> tuple[float, float] | tuple[None, None]:
    """Return the pilot's mean and typical error, where it has an opinion."""
    if method == EM:
        step = bench.pilot.step_error(int(budget))
        return step, step / bench.pilot.tail
    if method in SINGLE:
        return None, None
    found = [bench.pilot.predict(plan) for plan in plans]
    return sum(p.mse for p in found) / QUARTERS, sum(p.typical for p in found) / QUARTERS


def measure(name: str, mode: str, images: int, budgets: tuple[int, ...]) -> dict:
    """Measure every method on one process of one ladder."""
    stored = load_ladder(shipped_ladder(name))
    pilot = stored_pilot(stored, mode)
    if pilot is None:
        raise ValueError(f"the ladder {name} has no pilot for {mode}; write one with multilevel_sde.pilot and save")
    bench = Bench(stored, Process(stored.schedule, MODES[mode], uniform(stored.schedule, FINE)), pilot, images)
    costs = torch.tensor(stored.ladder.costs, dtype=torch.float64) / stored.ladder.costs[-1]
    todo, rows = list(runs(bench, budgets)), []
    fine = bench.process.grid(FINE)
    with tqdm(total=1 + len(todo), desc=f"{name} {mode}", unit="run") as bar, torch.no_grad():
        begin = time.process_time()
        reference = bench.solve(fine, [mls.em_plan(stored.ladder, fine)] * QUARTERS)
        reference_seconds = (time.process_time() - begin) / images
        bar.update()
        for method, budget, sampled, plans in todo:
            begin = time.process_time()
            squared = (sampled() - reference).double().square().flatten(1).mean(1)
            seconds = (time.process_time() - begin) / images
            cost = sum(float(plan.evaluations.double() @ costs) for plan in plans) / QUARTERS if plans else budget
            error, middle = float(squared.std()) / images**0.5, float(squared.median())
            predicted = predict(bench, method, budget, plans)
            rows.append(
                Row(method, budget, cost, seconds, float(squared.mean()), error, middle, typical(squared), *predicted)
            )
            bar.update()
    return {
        "ladder": name,
        "mode": mode,
        "images": images,
        "gamma": pilot.rates.cost_exponent,
        "reference_seconds": reference_seconds,
        "machine": machine(),
        "rows": [asdict(row) for row in rows],
    }


def ratios(result: dict, unit: str) -> list[str]:
    """Return the costs at equal error against the pilot's plan, in words where it loses."""
    lines = [f"| {unit} | EM, mean | EM, median | best single, mean | best single, median |", "|---|---|---|---|---|"]
    lost: dict[str, list[str]] = {}
    for plan in (row for row in result["rows"] if row["method"] == PLAN):
        cells = []
        for (who, methods), key in product((("EM", (EM,)), ("the best single network", SINGLE)), ("mse", "median")):
            cost, sign = cost_at(result["rows"], methods, unit, key, plan[key])
            cells.append(f"{sign}{cost / plan[unit]:.2f}")
            if cost < plan[unit] and not sign:
                name = f"{who} by the {'mean' if key == 'mse' else key}"
                lost.setdefault(name, []).append(f"{plan['budget']:g}")
        lines.append(f"| {plan[unit]:.3g} | " + " | ".join(cells) + " |")
    verdict = "; ".join(f"to {name} at {', '.join(budgets)}" for name, budgets in lost.items())
    verdict = f"The plan loses {verdict}." if lost else "The plan loses nowhere here."
    return [*lines, "", verdict]


def prediction_line(result: dict) -> str:
    """Return how many predictions are within a factor of two."""
    rows = [row for row in result["rows"] if row["predicted_mse"] is not None]
    groups = {"pilot's plans": [r for r in rows if r["method"] == PLAN], "all": rows}
    parts = []
    for name, chosen in groups.items():
        for what, key in (("mean", "mse"), ("typical", "typical")):
            near = sum(0.5 <= row[f"predicted_{key}"] / row[key] <= 2 for row in chosen)
            parts.append(f"{name}, {what} {near} of {len(chosen)}")
    return "Predictions within a factor 2: " + "; ".join(parts) + "."


def markdown(result: dict) -> str:
    """Return the tables of one process."""
    rows = result["rows"]
    budgets = sorted({row["budget"] for row in rows if row["method"] == PLAN})
    lines = [f"### {result['ladder']}, {result['mode'].upper()}, {result['images']} images", ""]
    lines += ["Mean squared error / of the median image / CPU seconds an image at a cost of about:", ""]
    lines += ["| method | " + " | ".join(f"{b:g}" for b in budgets) + " |", "|---|" + "---|" * len(budgets)]
    for method in dict.fromkeys(row["method"] for row in rows):
        by = {row["budget"]: row for row in rows if row["method"] == method}
        cells = [f"{by[b]['mse']:.2g} / {by[b]['median']:.2g} / {by[b]['seconds']:.2g}" for b in budgets]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    plans = [row for row in rows if row["method"] == PLAN]
    cells = [f"{row['predicted_mse']:.2g} (typical {row['predicted_typical']:.2g})" for row in plans]
    lines.append("| pilot plan, predicted mean | " + " | ".join(cells) + " |")
    cells = [f"{row['mse']:.2g} (typical {row['typical']:.2g})" for row in plans]
    lines += ["| pilot plan, measured mean | " + " | ".join(cells) + " |", ""]
    lines += ["Cost of a method at the error of the pilot's plan, divided by the plan's cost, by FLOPs:", ""]
    lines += [*ratios(result, "cost"), "", "The same by CPU seconds an image:", "", *ratios(result, "seconds"), ""]
    return "\n".join([*lines, prediction_line(result), ""])


def plot(path: Path, results: list[dict]) -> None:
    """Write the median image's error against cost, one panel a process."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(results), 5), layout="constrained")
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for axes, result in zip(panels, results, strict=True):
        for place, method in enumerate(dict.fromkeys(row["method"] for row in result["rows"])):
            points = [(row["cost"], row["median"]) for row in result["rows"] if row["method"] == method]
            style = "-o" if method == PLAN else "--s" if method in SINGLE else ":^"
            width = 2.5 if method == PLAN else 1.2
            axes.loglog(*zip(*points, strict=True), style, color=f"C{place}", label=method, linewidth=width, ms=4)
        axes.set_title(f"{result['ladder']}, {result['mode'].upper()}, {result['images']} images")
        axes.set_xlabel("cost in evaluations of the largest network (FLOPs)")
        axes.set_xticks([5, 10, 20, 50, 100], ["5", "10", "20", "50", "100"])
    panels[0].set_ylabel("squared distance to the reference, median image")
    handles, labels = panels[0].get_legend_handles_labels()
    columns = min(5, 2 * len(results))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    write_atomically(path, content.getvalue())


def main() -> None:
    """Measure what was asked for, then print and draw all that lies in the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ladders", nargs="*", choices=IMAGES, default=list(IMAGES), help="none: only redraw [all]")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="[both]")
    parser.add_argument("--images", type=int, help="a multiple of 4 [32 digits, 16 dead leaves]")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="[results beside this]")
    parser.add_argument("--quick", action="store_true", help="a smoke run: digits, 8 images, two budgets")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, mode in product(["digits"] if options.quick else options.ladders, options.modes):
        images = 8 if options.quick else options.images or IMAGES[name]
        if images < 8 or images % QUARTERS:
            parser.error(f'"--images" must be a multiple of {QUARTERS}, at least 8, got {images}')
        result = measure(name, mode, images, BUDGETS[:2] if options.quick else BUDGETS)
        write_atomically(options.out / f"ladders_{name}_{mode}.json", (json.dumps(result, indent=1) + "\n").encode())
    stored = [options.out / f"ladders_{name}_{mode}.json" for name, mode in product(IMAGES, MODES)]
    results = [json.loads(path.read_bytes()) for path in stored if path.is_file()]
    table = "\n".join(markdown(result) for result in results)
    write_atomically(options.out / "ladders.md", table.encode())
    plot(options.out / "ladders.png", results)
    print(table)


if __name__ == "__main__":
    main()
