"""Does learning find the best probabilities where they are known, and how much better could they be on images?

First a correction that grows like t^2.

dx = f(t) dt with f^2 - f^1 = t^2 in one direction, on 100 steps of [0, 1]. Levels cost 1 and 100. With independent
draws the squared error is, exactly, sum_n eta^2 t_n^4 (1 / p_n - 1). At equal cost it is least for p_n in proportion to
t_n^2, which sigmoid(alpha log(t + delta) + beta) with alpha = 2 comes near. Learning starts from a constant p, as the
paper's 1/T. Prints the exact error of the start, of what 50 steps of SGD found, of the best member of the family, and
of the best table, at the cost of the start.

Then the ceiling on the shipped ladders, of all levels and independent draws: the pilot's first-order error of 1/T over
that of the best member of the family, every alpha_k and beta_k free, and over that of the best table of any shape.

    python -m benchmarks.learning.bench_known_optimum  # two minutes
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor

import multilevel_sde as mls
from benchmarks.common import table
from multilevel_diffusion import load_ladder, shipped_ladder, stored_pilot
from multilevel_diffusion.networks.store import shipped_ladders
from multilevel_diffusion.process import MODES

STEPS, BUDGET, DELTA = 100, 600.0, 0.01  # five corrections on average
TIMES = torch.linspace(0.0, 1.0, STEPS + 1, dtype=torch.float64)
LADDER = mls.Ladder(
    [lambda x, t: torch.zeros_like(x), lambda x, t: t.to(x).square() + torch.zeros_like(x)], [1.0, 100.0]
)


def error(table_of_p: Tensor) -> float:
    """The exact mean squared error of independent draws."""
    p, t = table_of_p[:, 1], TIMES[:-1]
    return float((t.pow(4) * (1 / p - 1)).sum()) / STEPS**2


def at_budget(shape: Tensor) -> Tensor:
    """Probabilities in proportion to a shape that cost the budget."""
    whole = torch.stack([torch.ones(STEPS, dtype=torch.float64), shape.clamp_min(1e-9)], dim=1)
    return mls.scale_to_budget(LADDER, whole, BUDGET, draw=mls.independent)


def best_member() -> Tensor:
    """The best of the family sigmoid(alpha log(t + delta) + beta) at the budget."""

    def member(alpha: float) -> Tensor:
        schedule = mls.LearnedSchedule((float(alpha),), (0.0,), delta=DELTA)
        return schedule.probabilities(LADDER, TIMES, budget=BUDGET, draw=mls.independent)

    found = minimize_scalar(lambda alpha: error(member(alpha)), bounds=(0.0, 6.0), method="bounded")
    return member(float(found.x))  # type: ignore[attr-defined]


def learned(batch: int, rate: float, iterations: int, seed: int) -> Tensor:
    """What SGD finds from a constant p, at the budget."""
    start = mls.InverseCostSchedule().probabilities(LADDER, TIMES, budget=BUDGET, draw=mls.independent)
    corrections = BUDGET - STEPS * LADDER.costs[0]
    schedule = mls.learn(
        LADDER,
        lambda seeds: torch.zeros(len(seeds), 1, dtype=torch.float64),
        TIMES,
        delta=DELTA,
        regularisation=error(start) / corrections,
        start=start,
        steps=iterations,
        batch=batch,
        optimiser=partial(torch.optim.Adam, lr=rate),
        generator=torch.Generator().manual_seed(seed),
    )
    return schedule.probabilities(LADDER, TIMES, budget=BUDGET, draw=mls.independent)


def ceiling(pilot: mls.Pilot, budget: float) -> tuple[float, float]:
    """By how much the best member, and the best table, are better than 1/T by a pilot's first order."""
    pilot = pilot.in_evaluations()
    power = pilot.gram.diagonal().reshape(pilot.levels - 1, -1).T  # (M, K - 1)
    ladder = mls.Ladder([lambda x, t: x] * pilot.levels, list(pilot.costs))
    pairs = torch.tensor([a + b for a, b in pairwise(pilot.costs)], dtype=torch.float64)
    ones = torch.ones(len(power), 1, dtype=torch.float64)

    def scaled(shape: Tensor) -> Tensor:
        return mls.scale_to_budget(ladder, torch.cat([ones, shape.clamp_min(1e-9)], 1), budget, draw=mls.independent)

    def first_order(table_of_p: Tensor) -> float:
        return float((power * (1 / table_of_p[:, 1:] - 1)).sum())

    count = pilot.levels - 1
    logs = torch.log(pilot.times[:-1].double() + DELTA)[:, None]

    def member(values: np.ndarray) -> float:
        alphas, betas = (torch.from_numpy(part) for part in values.reshape(2, count))
        return math.log(first_order(scaled(torch.sigmoid(alphas * logs + betas))))

    flat = first_order(scaled((1 / pairs).expand_as(power)))
    starts = [np.r_[np.full(count, alpha), np.log(1e-2 / pairs.numpy())] for alpha in (0.0, 1.0)]
    best = min(minimize(member, start, method="Powell", options={"maxiter": 30}).fun for start in starts)
    return flat / math.exp(best), flat / first_order(scaled((power / pairs).sqrt()))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=50, help="SGD steps [%(default)s]")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each [%(default)s]")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = error(at_budget(torch.ones(STEPS, dtype=torch.float64)))
    rows = [["1/T, where learning starts", f"{start:.3e}", "1.00"]]
    for batch, rate in ((100, 0.05), (100, 0.2), (300, 0.05), (300, 0.2)):
        found = [error(learned(batch, rate, options.iterations, seed)) for seed in range(options.seeds)]
        middle = sorted(found)[len(found) // 2]
        gains = f"{start / middle:.2f} ({start / max(found):.2f} to {start / min(found):.2f})"
        rows.append([f"learned, batch {batch}, rate {rate:g}, {options.iterations} steps", f"{middle:.3e}", gains])
    best: list[tuple[str, Callable[[], Tensor]]] = [
        ("best of the family", best_member),
        ("best table, p as t^2", lambda: at_budget(TIMES[:-1].square())),
    ]
    rows += [[name, f"{error(make()):.3e}", f"{start / error(make()):.2f}"] for name, make in best]
    print("\n".join(table(["probabilities", "exact MSE", "1/T over it"], rows)), "\n")
    rows = []
    for name in shipped_ladders():
        stored = load_ladder(shipped_ladder(name))
        for mode in MODES:
            pilot = stored_pilot(stored, mode)
            for budget in (9.0, 20.0) if pilot is not None else ():
                member, free = ceiling(pilot, budget)
                rows.append([f"{name}, {mode.upper()}", f"{budget:g}", f"{member:.2f}", f"{free:.2f}"])
    print("\n".join(table(["ladder", "evaluations", "1/T over the best member", "over the best table"], rows)))


if __name__ == "__main__":
    main()
