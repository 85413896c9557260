"""Corrections at random times against draws on a grid: error and cost as the grid of the cheapest level is refined.

scaling_law with gamma = 3, four levels and noise 0.5. Rates in inverse proportion to the costs, so that all corrections
together cost eight evaluations of the top level whatever the grid. Error: mean squared distance per component to the
top level's path on 1600 steps with the same noise, over samples and draws; in brackets the evaluations of the top
level. `python benchmarks/pilots/bench_poisson.py` takes a quarter of a minute.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

import multilevel_sde as mls
from benchmarks.common import table

FINE, SAMPLES, SPENT = 1600, 64, 8.0
Drawn = tuple[Tensor, mls.Plan]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=32, help="plans for every entry [32]")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 25, 100, 400], help="of the base grid")
    options = parser.parse_args()
    torch.set_num_threads(1)
    problem = mls.problems.scaling_law(3.0, levels=4, diffusion=0.5)
    ladder, fine, y0 = problem.ladder, problem.times(FINE), problem.y0(SAMPLES)
    noise = mls.BrownianPath(range(SAMPLES), grid=fine)
    pairs = [above + below for below, above in zip(ladder.costs, ladder.costs[1:], strict=False)]
    rates = [SPENT * ladder.costs[-1] / len(pairs) / pair for pair in pairs]

    def run(times: Tensor, plan: mls.Plan) -> Tensor:
        return mls.solve(ladder, y0, times, plan, diffusion=problem.diffusion, brownian=noise).y

    def on_grid(draw: mls.Draw) -> Callable[[Tensor, torch.Generator], Drawn]:
        def drawn(times: Tensor, generator: torch.Generator) -> Drawn:
            p = torch.tensor([1.0, *[min(1.0, rate / (len(times) - 1)) for rate in rates]])
            return times, mls.draw_plan(p.expand(len(times) - 1, -1), draw, generator=generator)

        return drawn

    def in_time(arrivals: Callable) -> Callable[[Tensor, torch.Generator], Drawn]:
        def drawn(times: Tensor, generator: torch.Generator) -> Drawn:
            found = mls.poisson_plan(rates, times, generator=generator, arrivals=arrivals, finest=fine)
            return found.times, found.plan

        return drawn

    ways = {
        "independent": on_grid(mls.independent),
        "Poisson": in_time(mls.poisson_arrivals),
        "systematic": on_grid(mls.systematic),
        "evenly spread": in_time(mls.even_arrivals),
    }
    target, rows = run(fine, mls.em_plan(ladder, fine)), []
    for steps in tqdm(options.steps, unit="grid"):
        times, cells = problem.times(steps), []
        for way in ways.values():
            errors, costs = [], []
            for seed in range(options.draws):
                grid, plan = way(times, torch.Generator().manual_seed(seed))
                errors.append(float((run(grid, plan) - target).square().mean()))
                costs.append(float(plan.evaluations[-1]))
            spread = torch.tensor(errors).std() / len(errors) ** 0.5
            cells.append(f"{sum(errors) / len(errors):.2g} ± {spread:.1g} ({sum(costs) / len(costs):.1f})")
        em = float((run(times, mls.em_plan(ladder, times)) - target).square().mean())
        rows.append([str(steps), f"{em:.2g}", *cells])
    print("\n".join(table(["base steps", "EM on the top level", *ways], rows)))


if __name__ == "__main__":
    main()
