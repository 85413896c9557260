"""Learned probabilities against formulas at equal cost, and the best of 15 plans, on a shipped ladder of networks.

Prints Markdown tables and, with --out, writes them as JSON together with the learned schedules and plots of the loss.
Everything is measured against the path of the top level on the same grid with the same noise; learning, choosing and
reporting use disjoint seeds. A run is resumed from its folder.

    python benchmarks/learning/bench_learning.py --out learning
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import multilevel_sde as mls
from benchmarks.common import write_json
from multilevel_diffusion import Process, load_ladder, shipped_ladder, uniform

HELD_OUT, CALIBRATION, PRICE = 10**6, 2 * 10**6, 3 * 10**6  # first seeds; learning starts from 0
PROCESSES = {"ddpm": 1.0, "ddim": 0.0}
DRAWS = {"independent": mls.independent, "systematic": mls.systematic}


@dataclass(frozen=True)
class Setting:
    """A process on a ladder, with its paths from seeds."""

    ladder: mls.Ladder
    process: Process
    times: Tensor
    shape: tuple[int, ...]

    def y0(self, seeds):
        """Starting noise."""
        return self.process.start(seeds, self.shape)

    @property
    def arguments(self) -> dict:
        """What `learn` and `best_plan` want to know about the process."""
        noisy = self.process.tau > 0
        return {
            "step": self.process.arguments([0])["step"],
            "diffusion": 1.0 if noisy else None,
            "brownian_source": (lambda seeds: self.process.arguments(seeds)["brownian"]) if noisy else None,
        }

    @property
    def top_cost(self) -> float:
        """Cost of a path on the top level."""
        return (len(self.times) - 1) * self.ladder.costs[-1]


class Judge:
    """Measures mean squared distances to the top level's path on held-out noise, with a draw per sample."""

    def __init__(self, setting: Setting, samples: int, first: int = HELD_OUT):
        self.setting, self.seeds = setting, range(first, first + samples)
        self.start = setting.y0(self.seeds)
        self.target = self.path(setting.ladder.top(), setting.times, mls.em_plan(setting.ladder.top(), setting.times))

    def path(self, ladder: mls.Ladder, times: Tensor, plan: mls.Plan) -> Tensor:
        """Return the images."""
        return mls.solve(ladder, self.start, times, plan, **self.setting.process.arguments(self.seeds)).y

    def __call__(self, table: Tensor, draw: mls.Draw) -> tuple[float, float]:
        """Return the mean squared distance and its standard error, over draws and noise."""
        generator = torch.Generator().manual_seed(1)
        plan = mls.draw_plan(table, draw, generator=generator, samples=len(self.seeds))
        return self._errors(self.path(self.setting.ladder, self.setting.times, plan))

    def single(self, steps: int) -> tuple[float, float]:
        """Return the same for so many steps on the top level alone."""
        times = self.setting.process.grid(steps)
        return self._errors(self.path(self.setting.ladder.top(), times, mls.em_plan(self.setting.ladder.top(), times)))

    def _errors(self, images: Tensor) -> tuple[float, float]:
        errors = (images - self.target).double().flatten(1).square().mean(1)
        return float(errors.mean()), float(errors.std()) / len(errors) ** 0.5


def learn(setting: Setting, options: argparse.Namespace, folder: Path | None) -> mls.LearnedSchedule:
    """Learn from 1/T at the middle budget, with lambda = (error) / (cost of the corrections) there."""
    budget = options.budgets[len(options.budgets) // 2] * setting.top_cost
    start = mls.InverseCostSchedule().probabilities(setting.ladder, setting.times, budget=budget, draw=mls.independent)
    corrections = budget - (len(setting.times) - 1) * setting.ladder.costs[0]
    price = options.price
    if price is None:
        price = Judge(setting, options.batch, PRICE)(start, mls.independent)[0] / corrections
    return mls.learn(
        setting.ladder,
        setting.y0,
        setting.times,
        delta=options.delta,
        regularisation=price,
        start=start,
        steps=options.iterations,
        batch=options.batch,
        optimiser=partial(torch.optim.Adam, lr=options.learning_rate),
        derivative=mls.central_difference,  # torch has no forward derivative of channels-last group norms
        generator=torch.Generator().manual_seed(0),
        folder=folder,
        progress=True,
        **setting.arguments,
    )


def compare(name: str, setting: Setting, options: argparse.Namespace) -> dict:
    """Measure one process."""
    judge = Judge(setting, options.held_out)
    folder = None if options.out is None else options.out / name
    learned = learn(setting, options, folder)
    result: dict = {"process": name, "alphas": learned.alphas, "betas": learned.betas, "history": learned.history}
    result |= {"regularisation": learned.regularisation, "rows": []}
    schedules = {
        "1/T": mls.InverseCostSchedule(),
        f"theorem, gamma {options.gamma:g}": mls.TheoremSchedule(options.gamma),
        "learned": learned,
    }
    for fraction in options.budgets:
        budget = fraction * setting.top_cost
        single = judge.single(round(fraction * (len(setting.times) - 1)))
        result["rows"].append({"budget": fraction, "schedule": "top level alone", "draw": "-", "mse": single})
        for label, schedule in schedules.items():
            for kind, draw in DRAWS.items():
                table = schedule.probabilities(setting.ladder, setting.times, budget=budget, draw=draw)
                row = {"budget": fraction, "schedule": label, "draw": kind, "mse": judge(table, draw)}
                result["rows"].append(row)
    result["best"] = [pick(setting, learned, kind, options) for kind in DRAWS]
    return result


def pick(setting: Setting, learned: mls.LearnedSchedule, kind: str, options: argparse.Namespace) -> dict:
    """Choose the best of 15 plans at the middle budget."""
    fraction = options.budgets[len(options.budgets) // 2]
    table = learned.probabilities(setting.ladder, setting.times, budget=fraction * setting.top_cost, draw=DRAWS[kind])
    best = mls.best_plan(
        setting.ladder,
        table,
        setting.y0,
        setting.times,
        calibration=range(CALIBRATION, CALIBRATION + options.calibration),
        held_out=range(HELD_OUT, HELD_OUT + options.held_out),
        generator=torch.Generator().manual_seed(2),
        draw=DRAWS[kind],
        run_all=True,
        progress=True,
        **setting.arguments,
    )
    return {
        "draw": kind,
        "budget": fraction,
        "cost": best.cost / setting.top_cost,
        "calibration": best.calibration_errors[best.index],
        "held_out": best.error,
        "standard_error": best.standard_error,
        "optimism": best.optimism,
        "mean_of_candidates": sum(best.held_out_errors) / len(best.held_out_errors),
        "best_in_hindsight": min(best.held_out_errors),
    }


def markdown(results: list[dict]) -> str:
    """Return the tables."""
    lines = []
    for result in results:
        budgets = sorted({row["budget"] for row in result["rows"]})
        lines += [f"{result['process'].upper()}, MSE at equal cost (share of the top level's)", ""]
        lines += ["| probabilities | draw | " + " | ".join(f"{b:g}" for b in budgets) + " |"]
        lines += ["|---|---|" + "---|" * len(budgets)]
        for key in dict.fromkeys((row["schedule"], row["draw"]) for row in result["rows"]):
            found = [row["mse"] for row in result["rows"] if (row["schedule"], row["draw"]) == key]
            lines.append(f"| {key[0]} | {key[1]} | " + " | ".join(f"{m:.5f} ± {e:.5f}" for m, e in found) + " |")
        head = (
            "| best of 15, draw | cost | on the noise that chose it | on held-out noise | optimism | mean of the 15 |"
        )
        lines += ["", head + " best in hindsight |", "|---|---|---|---|---|---|---|"]
        for b in result["best"]:
            lines.append(
                f"| {b['draw']} | {b['cost']:.3f} | {b['calibration']:.5f} | {b['held_out']:.5f} ± "
                f"{b['standard_error']:.5f} | {b['optimism']:+.5f} | {b['mean_of_candidates']:.5f} | "
                f"{b['best_in_hindsight']:.5f} |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Read the options, run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ladder", default="digits", help="a shipped ladder [digits]")
    parser.add_argument("--levels", type=int, nargs="+", default=[0, 2, 3], help="levels used [0 2 3]")
    parser.add_argument("--processes", nargs="+", choices=PROCESSES, default=list(PROCESSES), help="[both]")
    parser.add_argument("--steps", type=int, default=100, help="steps of the process [100]")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.1, 0.2, 0.4], help="shares of the top's cost")
    parser.add_argument("--gamma", type=float, default=8.0, help="of the theorem's probabilities; measured [8]")
    parser.add_argument("--delta", type=float, default=0.01, help="[0.01]")
    parser.add_argument("--price", type=float, help="lambda [error / cost of the corrections at the start]")
    parser.add_argument("--iterations", type=int, default=50, help="steps of learning [50]")
    parser.add_argument("--batch", type=int, default=100, help="samples per step of learning [100]")
    parser.add_argument("--learning-rate", type=float, default=0.1, help="Adam's [0.1]")
    parser.add_argument("--held-out", type=int, default=1200, help="samples that errors are reported on [1200]")
    parser.add_argument("--calibration", type=int, default=64, help="samples that choose a plan [64]")
    parser.add_argument("--out", type=Path, help="folder for learning.json, schedules and plots")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads [1]")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    stored = load_ladder(shipped_ladder(options.ladder))
    ladder, results = stored.ladder.subset(options.levels), []
    for name in options.processes:
        process = Process(stored.schedule, PROCESSES[name], uniform(stored.schedule, options.steps))
        setting = Setting(ladder, process, process.grid(options.steps), stored.image_shape)
        results.append(compare(name, setting, options))
    print(markdown(results))
    if options.out is not None:
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        content = {"settings": settings, "results": results}
        write_json(options.out / "learning.json", content)


if __name__ == "__main__":
    main()
