"""Three of the paper's claims as numbers: the exponents that keep the rate, one evaluation's cost, and sharing draws.

    python -m benchmarks.paper.bench_claims  # three minutes of one core

1. p_k = min(1, C eta 2^-(alpha k)) on `scaling_law` with gamma = 3, noise 0.5, 2048 steps, K = 4 to 8 levels,
   independent draws for every path. C makes the first-order variance of the draws 4^-K, if no p is clipped. Exponent of
   cost against error by regression, beside that of the formula without clipping, cost = (sum_k 2^{(alpha - 2) k})
   (sum_k 2^{(gamma - alpha) k}) 4^K with as many levels, and of infinitely many, 2 + max(alpha - 2, 0) + max(gamma -
   alpha, 0).
2. The cost of such a path over that of one evaluation of the drift that errs as little, (1 / error)^gamma. A bounded
   number is the claim.
3. Seconds of 64 digits by ML-EM on 1000 steps at 30 evaluations of the largest network, with one draw for all of them
   and with one for each.
"""

from __future__ import annotations

import argparse
import time

import torch

import multilevel_sde as mls
from benchmarks.common import table
from multilevel_diffusion import Process, load_ladder, shipped_ladder, uniform
from multilevel_sde.rates.runs import FINE_STEPS, Experiment

GAMMA, STEPS, SAMPLES, LEVELS = 3.0, 2048, 256, range(4, 9)
ALPHAS = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)


def slope(errors: list[float], costs: list[float]) -> float:
    """The exponent E of cost = error^-E by regression."""
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (errors, costs))
    x = x - x.mean()
    return -float((x * y).sum() / x.square().sum())


def of_exponent(experiment: Experiment, alpha: float) -> tuple[list[float], list[float], list[float]]:
    """Errors and costs with as many levels as `LEVELS`, and the costs by the formula."""
    problem, errors, costs, formula = experiment.problem, [], [], []
    times = problem.times(STEPS)
    for count in LEVELS:
        ladder, k = problem.ladder.subset(range(count)), torch.arange(1, count + 1, dtype=torch.float64)
        spread = float((2.0 ** ((alpha - 2) * k)).sum())
        p = (4.0**count * spread / STEPS * 2.0 ** (-alpha * k)).clamp(max=1.0)
        p[0] = 1.0
        generator = torch.Generator().manual_seed(count)
        plan = mls.draw_plan(p.expand(STEPS, -1), mls.independent, generator=generator, samples=SAMPLES)
        y = mls.solve(ladder, experiment.y0, times, plan, diffusion=problem.diffusion, brownian=experiment.brownian).y
        errors.append(float((y - experiment.reference).square().mean().sqrt()))
        costs.append(plan.cost(ladder))
        formula.append(spread * float((2.0 ** ((GAMMA - alpha) * k)).sum()) * 4.0**count)
    return errors, costs, formula


def exponents() -> list[str]:
    """The first two tables."""
    assert STEPS <= FINE_STEPS
    experiment = Experiment(mls.problems.scaling_law(GAMMA, levels=max(LEVELS), diffusion=0.5), GAMMA, SAMPLES, 0)
    rows = []
    for alpha in ALPHAS:
        errors, costs, formula = of_exponent(experiment, alpha)
        limit = 2 + max(alpha - 2, 0.0) + max(GAMMA - alpha, 0.0)
        halves = slope([2.0**-count for count in LEVELS], formula)
        once = [cost * error**GAMMA for cost, error in zip(costs, errors, strict=True)]
        cells = [f"{alpha:g}", f"{slope(errors, costs):.2f}", f"{halves:.2f}", f"{limit:g}"]
        rows.append([*cells, f"{once[0]:.3g}", f"{once[-1]:.3g}"])
    fewest, most = min(LEVELS), max(LEVELS)
    ends = [f"cost over one evaluation, {count} levels" for count in (fewest, most)]
    return table(["alpha", "exponent", "formula", "limit", *ends], rows)


@torch.no_grad()
def shared_draws() -> list[str]:
    """The third table."""
    stored, seeds, budget = load_ladder(shipped_ladder("digits")), range(64), 30.0
    process = Process(stored.schedule, 1.0, uniform(stored.schedule, 1000))
    times, top = process.fine_times, stored.ladder.costs[-1]
    levels = (0, 2, 4)
    ladder = mls.Ladder([stored.ladder.drifts[k] for k in levels], [stored.ladder.costs[k] / top for k in levels])
    p = mls.InverseCostSchedule().probabilities(ladder, times, budget=budget, draw=mls.independent)
    start = process.start(seeds, stored.image_shape)
    found = {}
    for name, samples in (("one draw for all", None), ("a draw for each", len(seeds))):
        plan = mls.draw_plan(p, mls.independent, generator=torch.Generator().manual_seed(0), samples=samples)
        seconds = []
        for _ in range(3):
            known = process.arguments(seeds)
            begin = time.process_time()
            mls.solve(ladder, start, times, plan, **known)
            seconds.append(time.process_time() - begin)
        found[name] = sorted(seconds)[1] / len(seeds)
    least = min(found.values())
    rows = [[name, f"{1e3 * value:.3g}", f"{value / least:.2f}"] for name, value in found.items()]
    return table(["draws", "ms an image", "over the faster"], rows)


def main() -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    print("\n".join(exponents()), "\n")
    print("\n".join(shared_draws()))


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
