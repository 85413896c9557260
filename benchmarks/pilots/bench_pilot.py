"""What a pilot's predictions are worth: predicted against measured error, on every grid of a plan, as Markdown tables.

Every row is the best plan of a pilot on one grid at one budget, run on fresh samples and noise against the top level's
path on the finest grid. The shipped ladders use the pilots stored with them. No constant of the library was chosen by
the problems marked with a star.

    python benchmarks/pilots/bench_pilot.py  # ten minutes of one core
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import multilevel_sde as mls
from multilevel_diffusion import Process, load_ladder, sample, shipped_ladder, stored_pilot, uniform
from multilevel_diffusion.process import MODES
from multilevel_diffusion.sampling import run_pilot
from multilevel_sde.pilots.trial import typical

BUDGETS = (5, 13, 35)
IMAGES = {"digits": 256, "deadleaves32": 64}  # fresh samples of each shipped ladder
SAMPLES, PILOT = 256, 64  # of the other problems, and of their pilots; as many as those stored with the ladders


@dataclass(frozen=True)
class Case:
    """A problem, its pilot, and a function that runs a plan and returns the final states."""

    name: str
    pilot: mls.Pilot
    ladder: mls.Ladder
    run: Callable[[Tensor, mls.Plan], Tensor]
    fine: Tensor


def solved(name: str, ladder: mls.Ladder, y0: Tensor, fine: Tensor, diffusion: mls.Diffusion | None) -> Case:
    """A problem whose states are the first of `y0`, with other noise in the pilot than in the runs."""

    def noise(first: int) -> dict:
        if diffusion is None:
            return {}
        return {"diffusion": diffusion, "brownian": mls.BrownianPath(range(first, first + len(y0)), grid=fine)}

    pilot = mls.pilot(ladder, y0, fine, samples=PILOT, progress=False, **noise(10**6))

    def run(times: Tensor, plan: mls.Plan) -> Tensor:
        return mls.solve(ladder, y0, times, plan, **noise(0)).y

    return Case(name, pilot, ladder, run, fine)


def toy(name: str, problem: mls.problems.Problem) -> Case:
    """One of the toy problems of the library."""
    return solved(name, problem.ladder, problem.y0(SAMPLES), problem.times(400), problem.diffusion)


def shuffled(low: float, high: float) -> Tensor:
    """States between two numbers, in random order."""
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(0))
    return torch.linspace(low, high, SAMPLES, dtype=torch.float64)[order][:, None]


def steep(diffusion: mls.Diffusion | None) -> Case:
    """-3 tanh(2 y) with two cheaper levels."""

    def level(error: float) -> mls.Drift:
        return lambda y, t: -3 * torch.tanh(2 * y) + error * torch.cos(3 * y)

    ladder = mls.Ladder([level(0.3), level(0.05), level(0.0)], [1.0, 8.0, 64.0])
    kind = "ODE" if diffusion is None else "SDE"
    times = torch.linspace(0, 1, 401, dtype=torch.float64)
    return solved(f"steep drift, {kind} *", ladder, shuffled(-2, 2), times, diffusion)


def pendulum() -> Case:
    """Multiplicative noise, and a difference that grows with the cube of the state."""
    ladder = mls.Ladder([lambda y, t: -y, lambda y, t: -torch.sin(y)], [1.0, 30.0])
    times = torch.linspace(0, 1, 401, dtype=torch.float64)
    return solved("sine, general noise *", ladder, shuffled(-2, 2), times, lambda y, t: 0.2 * torch.cos(y))


def particles() -> Case:
    """Pair forces with cutoffs."""

    def force(cutoff: float | None) -> mls.Drift:
        def drift(y: Tensor, t: Tensor) -> Tensor:
            apart = y[:, None] - y[:, :, None]
            weight = torch.exp(-apart.square())
            if cutoff is not None:
                weight = torch.where(apart.abs() < cutoff, weight - math.exp(-(cutoff**2)), 0.0)
            return -(apart * weight).mean(1)

        return drift

    start = torch.randn(SAMPLES, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ladder = mls.Ladder([force(1.0), force(2.0), force(None)], [1.0, 3.0, 30.0])
    return solved("pair forces with cutoffs *", ladder, start, torch.linspace(0, 2, 401, dtype=torch.float64), 0.2)


def networks(name: str, mode: str) -> Case:
    """A shipped ladder."""
    images = load_ladder(shipped_ladder(name))
    process = Process(images.schedule, MODES[mode], uniform(images.schedule, 1000))
    pilot = stored_pilot(images, mode) or run_pilot(images, mode)

    def run(times: Tensor, plan: mls.Plan) -> Tensor:
        return sample(images.ladder, process, times, plan, range(IMAGES[name]), images.image_shape).images

    return Case(f"{name}, {mode.upper()}", pilot, images.ladder, run, process.fine_times)


def rows(case: Case) -> Iterator[list[float]]:
    """Yield [budget, steps, predicted MSE, measured, predicted typical error, measured] for every budget and grid."""
    top = case.ladder.costs[-1]
    reference = case.run(case.fine, mls.em_plan(case.ladder, case.fine))
    for budget in BUDGETS:
        best: dict[int, mls.PilotPlan] = {}
        for one in case.pilot.plans(budget=budget * top, count=100):
            if len(one.levels) > 1:
                best.setdefault(one.plan.steps, one)
        for steps, one in sorted(best.items()):
            errors = (case.run(one.times, one.plan) - reference).double().square().flatten(1).mean(1)
            yield [budget, steps, one.predicted.mse, float(errors.mean()), one.predicted.typical, typical(errors)]


def table(name: str, found: list[list[float]]) -> str:
    """The rows of a problem."""
    return "\n".join(
        f"| {name} | {budget:g} | {steps:g} | {told:.2e} | {mean:.2e} | {mean / told:.2f} | {usual / expected:.2f} |"
        for budget, steps, told, mean, expected, usual in found
    )


def summary(found: list[list[float]]) -> str:
    """How many predictions hold."""
    lines = ["| | within 1.5x | within 2x | of |", "|---|---|---|---|"]
    for name, measured, told in (("mean", 3, 2), ("typical error", 5, 4)):
        apart = [max(row[measured] / row[told], row[told] / row[measured]) for row in found]
        within = [f"{sum(ratio <= most for ratio in apart) / len(apart):.0%}" for most in (1.5, 2)]
        lines.append(f"| {name} | {within[0]} | {within[1]} | {len(apart)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ladders", nargs="*", choices=IMAGES, default=list(IMAGES), help="shipped ladders [both]")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases: list[Callable[[], Case]] = [
        lambda g=g, d=d: toy(
            f"scaling law {g:g}, {'SDE' if d else 'ODE'}", mls.problems.scaling_law(g, levels=4, diffusion=d)
        )
        for g in (2.5, 3.0)
        for d in (None, 0.5)
    ]
    cases += [lambda: toy("quadrature", mls.problems.quadrature(5, (1, 2, 4)))]
    cases += [lambda: steep(None), lambda: steep(0.3), pendulum, particles]
    cases += [lambda: toy("double well *", mls.problems.double_well())]
    cases += [lambda n=n, m=m: networks(n, m) for n in arguments.ladders for m in MODES]
    print("| problem | budget | steps | MSE predicted | measured | ratio | typical: ratio |")
    print("|---|---|---|---|---|---|---|")
    everything = []
    for make in cases:
        case = make()
        found = list(rows(case))
        print(table(case.name, found), flush=True)
        everything += found
    print(f"\n{summary(everything)}")


if __name__ == "__main__":
    main()
