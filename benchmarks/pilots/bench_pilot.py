"""What a pilot's predictions are worth: predicted against measured error and cost, as a Markdown table.

Every row is a plan that a pilot made, run on fresh samples and noise against the top level's path on the finest grid.
The shipped ladders use the pilots stored with them.

    python benchmarks/pilots/bench_pilot.py  # four minutes of one core
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import multilevel_sde as mls
from multilevel_diffusion import Process, load_ladder, sample, shipped_ladder, stored_pilot, uniform
from multilevel_diffusion.process import MODES
from multilevel_diffusion.sampling import run_pilot
from multilevel_sde.pilots.trial import typical
from multilevel_sde.times import thinned

BUDGETS = (5, 13, 35)
IMAGES = {"digits": 64, "deadleaves32": 16}  # fresh samples of each shipped ladder


@dataclass(frozen=True)
class Case:
    """A problem, its pilot, and a function that runs a plan and returns (final states, cost)."""

    name: str
    pilot: mls.Pilot
    ladder: mls.Ladder
    run: Callable[[Tensor, mls.Plan], tuple[Tensor, float]]
    fine: Tensor


def toy(gamma: float, diffusion: float | None, samples: int) -> Case:
    """scaling_law with four levels."""
    problem = mls.problems.scaling_law(gamma, levels=4, diffusion=diffusion)
    fine = problem.times(400)

    def noise(first: int, count: int) -> mls.BrownianPath | None:
        return None if diffusion is None else mls.BrownianPath(range(first, first + count), grid=fine)

    pilot = mls.pilot(
        problem.ladder, problem.y0(16), fine, candidates=100, diffusion=diffusion, brownian=noise(10**6, 16)
    )
    y0 = problem.y0(samples, seed=1)

    def run(times: Tensor, plan: mls.Plan) -> tuple[Tensor, float]:
        solved = mls.solve(problem.ladder, y0, times, plan, diffusion=diffusion, brownian=noise(0, samples))
        return solved.y, solved.stats.cost

    kind = "ODE" if diffusion is None else "SDE"
    return Case(f"scaling_law, γ = {gamma:g}, {kind}", pilot, problem.ladder, run, fine)


def networks(name: str, mode: str, samples: int) -> Case:
    """A shipped ladder."""
    images = load_ladder(shipped_ladder(name))
    process = Process(images.schedule, MODES[mode], uniform(images.schedule, 1000))
    pilot = stored_pilot(images, mode) or run_pilot(images, mode)

    def run(times: Tensor, plan: mls.Plan) -> tuple[Tensor, float]:
        done = sample(images.ladder, process, times, plan, range(samples), images.image_shape)
        return done.images, done.cost

    return Case(f"{name}, {mode.upper()}", pilot, images.ladder, run, process.fine_times)


def rows(case: Case) -> Iterator[tuple[str, list[float]]]:
    """Yield (name, [budget, cost, predicted cost, MSE, predicted, typical error, predicted, EM's MSE at that cost])."""
    top = case.ladder.costs[-1]
    reference, _ = case.run(case.fine, mls.em_plan(case.ladder, case.fine))

    def errors(states: Tensor) -> Tensor:
        return (states - reference).double().square().flatten(1).mean(1)

    for budget in BUDGETS:
        best = case.pilot.plan(budget=budget * top)
        states, cost = case.run(best.times, best.plan)
        index = thinned(len(case.fine) - 1, budget)
        em, _ = case.run(case.fine[index], mls.em_plan(case.ladder, case.fine[index]))
        found = errors(states)
        values = [budget, cost / top, best.predicted.cost / top, float(found.mean()), best.predicted.mse]
        yield case.name, [*values, typical(found), best.predicted.typical, float(errors(em).mean())]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--toy-samples", type=int, default=256, help="of the toy problems [%(default)s]")
    parser.add_argument("--ladders", nargs="*", choices=IMAGES, default=list(IMAGES), help="shipped ladders [both]")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| problem | budget | cost | MSE predicted | measured | ratio | typical: ratio | EM's MSE | over the plan's |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    cases = [lambda g=g, d=d: toy(g, d, arguments.toy_samples) for g in (2.5, 3.0) for d in (None, 0.5)]
    cases += [lambda n=n, m=m: networks(n, m, IMAGES[n]) for n in arguments.ladders for m in MODES]
    for make in cases:
        for name, (budget, cost, told, found, predicted, usual, expected, em) in rows(make()):
            assert abs(cost / told - 1) < 1e-9, "a deterministic plan costs what was predicted"
            print(
                f"| {name} | {budget:g} | {cost:.2f} | {predicted:.2e} | {found:.2e} | {found / predicted:.2f} "
                f"| {usual / expected:.2f} | {em:.2e} | {em / found:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
