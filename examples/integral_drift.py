"""How many nodes does a path need whose drift is an integral, and does it matter which rule has them?

    python examples/integral_drift.py --out DIR    # prints the tables, writes DIR/integral_drift.png; about a minute

Stocks x_1 ... x_5 of five products that replace one another: a customer who finds product j sold out buys another one
with probability theta. For a demand s uniform in [0, 1]^5

    dx_j = (supply_j - E_s[ sales_j(x, s; theta) ]) dt + sigma dW_j,    sales_j = D_j - missing(D_j - x_j),
    D_j = s_j + theta / 4 sum_{i != j} missing(s_i - x_i),              missing(u) = max(u, 0).

The drift is an integral over five dimensions with kinks where a product sells out; missing(u) = log(1 + e^{6u}) / 6
makes it smooth. A level of the ladder is a rule with its nodes, a cost the number of nodes. A batch sweeps theta, which
is a further component of the state that does not move. `docs/integral_drift.md` has what was measured.

References:
    Netessine, Rudi, "Centralized and competitive inventory models with demand substitution", Oper. Res. 51, 2003;
    Dick, Kuo, Sloan, "High-dimensional integration: the quasi-Monte Carlo way", Acta Numerica 22, 2013.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

import multilevel_sde as mls

PRODUCTS, NOISE, HORIZON = 5, 0.05, 2.0
SUPPLY = torch.linspace(0.2, 0.5, PRODUCTS, dtype=torch.float64)
BLOCK = 1 << 15  # values of the integrand that are held at a time; they stay in the cache

Missing = Callable[[Tensor], Tensor]
kinked: Missing = partial(torch.clamp_min, min=0.0)
smooth: Missing = partial(softplus, beta=6.0)


def gauss(side: int) -> tuple[Tensor, Tensor]:
    """Return nodes (side^5, 5) and weights of the tensor product of the Gauss-Legendre rule on [0, 1]."""
    nodes, weights = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(side))
    return torch.cartesian_prod(*[(nodes + 1) / 2] * PRODUCTS), torch.cartesian_prod(*[weights / 2] * PRODUCTS).prod(1)


def sobol(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return the first `count` scrambled Sobol' points, (count, 5), and equal weights; nested for one seed."""
    nodes = torch.quasirandom.SobolEngine(PRODUCTS, scramble=True, seed=seed).draw(count, dtype=torch.float64)
    return nodes, torch.full((count,), 1 / count, dtype=torch.float64)


def drift_by(rule: tuple[Tensor, Tensor], missing: Missing) -> mls.Drift:
    """Return f(y, t) for states y = (x_1 ... x_5, theta), (B, 6), with the integral by a rule."""

    def drift(y: Tensor, t: Tensor) -> Tensor:
        x, share = y[:, None, :-1], y[:, None, -1:] / (PRODUCTS - 1)
        sales = torch.zeros_like(y[:, :-1])
        size = max(1, BLOCK // y[:, :-1].numel())
        for nodes, weights in zip(rule[0].split(size), rule[1].split(size), strict=True):
            unserved = missing(nodes - x)
            demand = nodes + share * (unserved.sum(-1, keepdim=True) - unserved)
            sales += weights @ (demand - missing(demand - x))
        return torch.cat([SUPPLY - sales, torch.zeros_like(y[:, -1:])], 1)

    return drift


def ladder_of(rules: Sequence[tuple[Tensor, Tensor]], missing: Missing) -> mls.Ladder:
    """Return the ladder of rules, priced in nodes."""
    costs = mls.GivenCost([float(len(weights)) for _, weights in rules], unit="nodes")
    return mls.Ladder([drift_by(rule, missing) for rule in rules], costs)


def start(thetas: int, seeds: int) -> Tensor:
    """Return stocks of 0.6, with theta from 0 to 1 for every seed, float64 (seeds thetas, 6)."""
    theta = torch.linspace(0.0, 1.0, thetas, dtype=torch.float64).repeat(seeds)[:, None]
    return torch.cat([torch.full((len(theta), PRODUCTS), 0.6, dtype=torch.float64), theta], 1)


def noise_of(thetas: int, seeds: Sequence[int]) -> dict:
    """Return the noise for :func:`multilevel_sde.solve`: in the stocks only, and the same for every theta."""
    amplitude = torch.tensor([NOISE] * PRODUCTS + [0.0], dtype=torch.float64)
    brownian = mls.BrownianPath([seed for seed in seeds for _ in range(thetas)], unit=HORIZON)
    return {"diffusion": lambda y, t: amplitude.expand_as(y), "brownian": brownian}


class Row(NamedTuple):
    """One run against the path of the true integral: nodes for one path, mean squared error of every seed."""

    method: str
    cost: float
    errors: Tensor
    seconds: float


class Sweep:
    """Paths over theta and seeds, and their errors to the true ones with the same noise."""

    def __init__(self, missing: Missing, thetas: int, seeds: int, steps: int, truth: int):
        self.missing, self.steps = missing, steps
        self.y0, self.noise = start(thetas, seeds), noise_of(thetas, range(seeds))
        self.times, self.by_seed = torch.linspace(0.0, HORIZON, 4 * steps + 1, dtype=torch.float64), (seeds, -1)
        ladder = ladder_of([sobol(truth, seed=1)], missing)  # other points than any level's
        self.truth = self.solve(ladder, self.times, mls.em_plan(ladder, self.times)).y

    def solve(self, ladder: mls.Ladder, times: Tensor, plan: mls.Plan) -> mls.Solution:
        """Solve for all theta and seeds."""
        return mls.solve(ladder, self.y0, times, plan, **self.noise)

    def row(self, method: str, ladder: mls.Ladder, times: Tensor, plan: mls.Plan) -> Row:
        """Solve, and compare the stocks with the true ones."""
        found = self.solve(ladder, times, plan)
        errors = (found.y - self.truth)[:, :PRODUCTS].square().reshape(self.by_seed).mean(1)
        return Row(method, found.stats.cost, errors, found.stats.seconds)

    def compare(self, ladder: mls.Ladder, single: mls.Ladder, budgets: Sequence[float]) -> tuple[list[Row], mls.Pilot]:
        """Run single rules on several grids, and the pilot's plans and draws at budgets in top evaluations."""
        times, rows = self.times[::4], []
        pilot = mls.pilot(ladder, start(6, 1), times, **noise_of(1, range(100, 106)), candidates=self.steps)
        for level in range(len(single)):
            alone = single.subset([level])
            for stride in (2, 4, 8, 16):
                grid = self.times[::stride]
                rows.append(self.row(f"rule of {alone.costs[0]:g}", alone, grid, mls.em_plan(alone, grid)))
        for budget in budgets:
            best = pilot.plan(budget=budget * ladder.costs[-1])
            rows.append(self.row("plan", ladder, best.times, best.plan))
            table = mls.TheoremSchedule(min(max(2.0, pilot.rates.cost_exponent), 10.0)).probabilities(
                ladder, times, budget=budget * ladder.costs[-1]
            )
            rows.append(
                self.row("systematic", ladder, times, mls.draw_plan(table, generator=torch.Generator().manual_seed(0)))
            )
        return rows, pilot


def frontier(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """Return (cost, error) of the rules alone that are better by a twentieth than all that are cheaper."""
    found: list[tuple[float, float]] = []
    for cost, error in sorted((row.cost, float(row.errors.mean())) for row in rows if row.method.startswith("rule")):
        if not found or error < 0.95 * found[-1][1]:
            found.append((cost, error))
    return found


def cost_at(points: Sequence[tuple[float, float]], error: float) -> float:
    """Return the cost at an error, log-log interpolated; NaN outside of what was run."""
    costs, errors = np.log(np.array(points)).T
    return math.exp(float(np.interp(-math.log(error), -errors, costs, left=math.nan, right=math.nan)))


def rule_errors(rules: Sequence[tuple[Tensor, Tensor]], missing: Missing, truth: int) -> list[float]:
    """Return the root mean square error of each rule's drift at 64 random stocks and theta."""
    y = 0.1 + 0.8 * torch.rand(64, PRODUCTS + 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = drift_by(sobol(truth, seed=1), missing)(y, torch.tensor(0.0))
    return [float((drift_by(rule, missing)(y, torch.tensor(0.0)) - exact).square().mean().sqrt()) for rule in rules]


def figure(results: dict[str, list[Row]], path: Path) -> None:
    """Draw error against cost for every ladder."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(13, 4.2), layout="constrained")
    axes = fig.subplots(1, len(results), sharey=True)
    for axis, (name, rows) in zip(axes, results.items(), strict=True):
        for method in dict.fromkeys(row.method for row in rows):
            chosen = sorted((row.cost, float(row.errors.mean())) for row in rows if row.method == method)
            style = {"plan": "ko-", "systematic": "C4s:"}.get(method, ".--")
            axis.loglog(*zip(*chosen, strict=True), style, label=method)
        axis.set(title=name, xlabel="nodes for one path")
        axis.legend(fontsize=8)
    axes[0].set(ylabel="mean squared error")
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("integral_drift"), help="folder of the figure [%(default)s]")
    parser.add_argument("--thetas", type=int, default=4, help="values of theta [%(default)s]")
    parser.add_argument("--seeds", type=int, default=3, help="paths for each [%(default)s]")
    parser.add_argument("--steps", type=int, default=64, help="of the finest plans [%(default)s]")
    parser.add_argument("--sides", type=int, nargs="+", default=[1, 2, 4, 8], help="nodes a side of the Gauss rules")
    parser.add_argument("--truth", type=int, default=1 << 13, help="Sobol' points of the true drift [%(default)s]")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    product, points = [gauss(side) for side in args.sides], [sobol(4 * 8**k) for k in range(4)]
    products, numbers = [gauss(side) for side in range(1, max(args.sides) + 1)], [sobol(4 * 2**k) for k in range(10)]
    cases = {
        "Gauss, smooth": (product[:-1], products[: args.sides[-2]], smooth),
        "Gauss, kinked": (product, products, kinked),
        "Sobol', kinked": (points, numbers, kinked),
    }
    sweeps = {missing: Sweep(missing, args.thetas, args.seeds, args.steps, args.truth) for missing in (smooth, kinked)}
    results = {}
    for name, (rules, all_rules, missing) in cases.items():
        ladder, errors = ladder_of(rules, missing), rule_errors(rules, missing, 16 * args.truth)
        rows, pilot = sweeps[missing].compare(ladder, ladder_of(all_rules, missing), budgets=(0.25, 1, 2, 4))
        gammas = [
            math.log(b / a) / math.log(e / d) for (a, e), (b, d) in pairwise(zip(ladder.costs, errors, strict=True))
        ]
        print(f"\n{name}: nodes {[len(weights) for _, weights in rules]}, errors {[float(f'{e:.2g}') for e in errors]}")
        print(f"gamma between them {[round(g, 1) for g in gammas]}, along the path {pilot.rates.cost_exponent:.2f}")
        print(pilot.advise(budget=ladder.costs[-1]).text)
        print("method          nodes   mean squared error    seconds   speed-up over the best rule alone")
        for row in rows:
            error, spread = float(row.errors.mean()), float(row.errors.std()) / len(row.errors) ** 0.5
            needed = "" if row.method.startswith("rule") else f"{cost_at(frontier(rows), error) / row.cost:10.2f}"
            print(f"{row.method:<11}{row.cost:10.0f}{error:13.3g} ± {spread:<8.1g}{row.seconds:9.2f}{needed}")
        results[name] = rows
    figure(results, args.out / "integral_drift.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
