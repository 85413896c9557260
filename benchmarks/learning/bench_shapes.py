"""Would probabilities that depend on time more freely than sigmoid(alpha log(t + delta) + beta) be better?

On a shipped ladder with its pilot, at equal expected cost and with independent draws: the best table by the pilot's
second moments, a spline in time fitted to it, the two-parameter family fitted to it, and 1/T. Prints the first-order
error and the measured one, against the top level's path on the same steps, with a draw a sample, on seeds that neither
the pilot nor learning uses. `python benchmarks/learning/bench_shapes.py` takes two minutes of one core.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from scipy.interpolate import BSpline
from scipy.optimize import brentq
from torch import Tensor

import multilevel_sde as mls
from benchmarks.common import table
from benchmarks.learning.bench_learning import PROCESSES, Judge, Setting
from multilevel_diffusion import Process, load_ladder, shipped_ladder, stored_pilot, uniform
from multilevel_sde.learning.learned_schedule import _fit_logits


def spline(best: Tensor, ladder: mls.Ladder, budget: float, functions: int) -> Tensor:
    """Return sigmoid of cubic splines in time, closest to a table, shifted to the budget."""
    steps = len(best)
    knots = np.r_[[0.0] * 3, np.linspace(0, 1, functions - 2), [1.0] * 3]
    basis = torch.tensor(BSpline.design_matrix((np.arange(steps) + 0.5) / steps, knots, 3).toarray())
    features = torch.cat([basis, torch.ones(steps, 1, dtype=torch.float64)], dim=1)
    logits = features @ _fit_logits(features, best[:, 1:])

    def shifted(by: float) -> Tensor:
        return torch.cat([torch.ones(steps, 1, dtype=torch.float64), torch.sigmoid(logits + by)], dim=1)

    def excess(by: float) -> float:
        return mls.expected_cost(ladder, shifted(by), mls.independent) - budget

    return shifted(float(brentq(excess, -20, 20)))  # type: ignore[arg-type]


def main() -> None:
    """Print one table a process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ladder", default="digits", help="a shipped ladder [%(default)s]")
    parser.add_argument("--samples", type=int, default=400, help="[%(default)s]")
    parser.add_argument("--budgets", type=float, nargs="+", default=[9, 20], help="in top evaluations")
    options = parser.parse_args()
    torch.set_num_threads(1)
    stored = load_ladder(shipped_ladder(options.ladder))
    ladder = stored.ladder
    for mode, tau in PROCESSES.items():
        pilot = stored_pilot(stored, mode)
        assert pilot is not None, "the shipped ladders have pilots"
        process = Process(stored.schedule, tau, uniform(stored.schedule, pilot.steps))
        judge = Judge(Setting(ladder, process, process.fine_times, stored.image_shape), options.samples)
        power = pilot.gram.diagonal().reshape(pilot.levels - 1, -1).T
        pairs = torch.tensor([a + b for a, b in zip(ladder.costs, ladder.costs[1:], strict=False)], dtype=torch.float64)
        shape = torch.cat([torch.ones(len(power), 1, dtype=torch.float64), (power / pairs).sqrt()], dim=1)
        rows = []
        for budget in options.budgets:
            cost = budget * ladder.costs[-1]
            best = mls.scale_to_budget(ladder, shape.clamp_min(1e-3 * float(shape[:, 1:].max())), cost, mls.independent)
            tables = {"free": best, "spline": spline(best, ladder, cost, 5)}
            for delta in (0.01, 1.0):
                fitted = mls.LearnedSchedule.fit(best, pilot.times, delta)
                tables[f"δ = {delta:g}"] = fitted.probabilities(ladder, pilot.times, budget=cost, draw=mls.independent)
            schedule = mls.InverseCostSchedule()
            tables["1/T"] = schedule.probabilities(ladder, pilot.times, budget=cost, draw=mls.independent)
            for name, p in tables.items():
                error, spread = judge(p, mls.independent)
                first = float((power * (1 / p[:, 1:] - 1)).sum())
                rows.append([f"{budget:g}", name, f"{first:.4f}", f"{error:.4f} ± {spread:.4f}"])
        print("\n".join([f"{mode.upper()}", "", *table(["budget", "shape", "first order", "measured"], rows), ""]))


if __name__ == "__main__":
    main()
