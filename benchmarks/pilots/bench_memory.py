"""How fast the cost grows when corrections are held or extrapolated instead of drawn (docs/theory, docs/rates).

Level k errs by 2^{-k} and costs 2^{gamma k}. Its correction is evaluated n_k = C 2^{-k (1 + gamma) / (1 + q)} times,
evenly spread, and held (q = 1) or extrapolated (q = 2), with C such that the quadrature errs in proportion to 2^{-K}.
The base is integrated by Adams-Bashforth of order q. `python benchmarks/pilots/bench_memory.py` takes a minute.
"""

import argparse
import math
from itertools import pairwise

import torch
from tqdm import tqdm

import multilevel_sde as mls

SHARE = 4.0  # of the quadrature in the error, over the bound 2^{-K}: its constants are small on this problem


def hits_of(gamma: float, q: int, top: int) -> tuple[list[int], float]:
    """Return how often each level 1 ... K is evaluated, and the cost by the formula."""
    a, s = (1 + gamma) / (1 + q), (q * gamma - 1) / (1 + q)
    total = sum(2.0 ** (s * k) for k in range(1, top + 1))
    scale = (total * 2.0**top / SHARE) ** (1 / q)
    return [max(1, round(scale * 2.0 ** (-a * k))) for k in range(1, top + 1)], scale * total


def held_plan(counts: list[int], q: int, times: torch.Tensor) -> mls.Plan:
    """Return the plan with so many evenly spread corrections, and a base of order q."""
    steps = len(times) - 1
    hits = torch.zeros(steps, len(counts), dtype=torch.bool)
    for level, count in enumerate(counts):
        hits[(torch.arange(count) * steps) // count, level] = True
    plan = mls.hold(mls.Plan(hits, hits.double()), times, order=q)
    return mls.multistep(plan, mls.adams_bashforth_weights(times, q))


def run(gamma: float, q: int, tops: range, diffusion: float | None, samples: int) -> tuple[list, list, list]:
    """Return measured errors, measured costs and the formula's costs for ladders of K levels."""
    problem = mls.problems.scaling_law(gamma, max(tops), diffusion=diffusion)
    start, errors, costs, formula = problem.y0(samples).double(), [], [], []
    for top in tops:
        ladder = problem.ladder.subset(list(range(top)))
        counts, cost = hits_of(gamma, q, top)
        times = torch.linspace(0.0, 1.0, counts[0] + 1, dtype=torch.float64)
        if diffusion is None:
            noise, target = {}, 2 * torch.atan(torch.tan(start / 2) * math.exp(-1.0))
        else:
            fine = torch.linspace(0.0, 1.0, 16 * counts[0] + 1, dtype=torch.float64)
            noise = {"diffusion": diffusion, "brownian": mls.BrownianPath(range(samples), grid=fine)}
            true = mls.Ladder([lambda y, t: -torch.sin(y)], costs=[1.0])
            target = mls.solve(true, start, fine, mls.em_plan(true, fine), **noise).y
        solution = mls.solve(ladder, start, times, held_plan(counts, q, times), **noise)
        errors.append(float((solution.y - target).square().mean().sqrt()))
        costs.append(solution.stats.cost)
        formula.append(cost)
    return errors, costs, formula


def exponent(errors: list[float], costs: list[float]) -> float:
    """Least-squares slope of log cost against log(1 / error)."""
    x, y = -torch.tensor(errors).double().log(), torch.tensor(costs).double().log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gammas", type=float, nargs="+", default=[0.5, 1.0, 1.5, 2.0])
    parser.add_argument("--levels", type=int, nargs=2, default=[5, 10], help="smallest and largest K [%(default)s]")
    parser.add_argument("--samples", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tops = range(arguments.levels[0], arguments.levels[1] + 1)
    print(f"K = {tops[0]} ... {tops[-1]}, {arguments.samples} samples\n")
    print(
        "| gamma | problem | order q | measured | finite formula | limit | independent draws, limit | error over 2^-K |"
    )
    print("|---|---|---|---|---|---|---|---|")
    cases = [(g, d, q) for g in arguments.gammas for d, q in ((None, 1), (None, 2), (0.5, 1))]
    for gamma, diffusion, q in tqdm(cases, unit="case"):
        errors, costs, formula = run(gamma, q, tops, diffusion, arguments.samples)
        ratios = [error * 2.0**top for error, top in zip(errors, tops, strict=True)]
        assert all(after < before for before, after in pairwise(errors)), "an exponent needs errors that fall"
        finite = exponent([2.0**-top for top in tops], formula)
        kind = "ODE" if diffusion is None else "SDE"
        print(
            f"| {gamma:g} | {kind} | {q} | {exponent(errors, costs):.2f} | {finite:.2f} | {max(gamma, 1 / q):g} "
            f"| {max(gamma, 2.0):g} | {min(ratios):.2f} to {max(ratios):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
