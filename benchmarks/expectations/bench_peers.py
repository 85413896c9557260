"""What do pymlmc, QMCPy and plain Monte Carlo take for the same error?

pymlmc's own test problem `opre_gbm`: European, Asian, lookback (with its correction of the minimum by sqrt(h)) and
digital calls of geometric Brownian motion, by Euler-Maruyama with grids of 4^l steps, l = 0 ... 6, at root mean squared
errors e. `mls.expectation` is given payoff, finest grid and `tolerance=e`, and chooses its grids itself. Plain Monte
Carlo and QMCPy (digital nets, PCA of the path) run on the grid on which `mls.expectation` ended. Costs are steps of all
paths, coarse ones and trials included. One thread, in turn.

pymlmc and QMCPy are used where they are installed (of pymlmc its function `mlmc`), else their columns say nan.
`python -m benchmarks.expectations.bench_peers` takes ten minutes and writes `results/peers.md`.
"""

from __future__ import annotations

import importlib
import math
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import multilevel_sde as mls
from benchmarks.common import machine, parser_of, table
from benchmarks.expectations.cases import DISCOUNT, RATE, SIGMA, STRIKE, cases, option_ladder
from multilevel_sde.files import write_atomically

FACTOR, FINEST, FIRST, SHIFT = 4, 6, 1000, 0.5826
ERRORS = {
    "European": (0.1, 0.05, 0.02),
    "Asian": (0.1, 0.05, 0.02),
    "Lookback": (0.2, 0.1, 0.05),
    "Digital": (1.0, 0.5, 0.2),
}
TIMES = torch.linspace(0.0, 1.0, FACTOR**FINEST + 1, dtype=torch.float64)


def asian(path: Tensor, times: Tensor) -> Tensor:
    """Discounted payoff of the mean by the trapezoidal rule."""
    return DISCOUNT * (torch.trapezoid(path, times.to(path), dim=0) - STRIKE).clamp_min(0.0)


def lookback(path: Tensor, times: Tensor) -> Tensor:
    """Discounted payoff over the minimum of the states, moved down by what lies between them on average."""
    return DISCOUNT * (path[-1] - path.amin(0) * (1 - SHIFT * SIGMA / math.sqrt(len(times) - 1)))


PAYOFFS: dict[str, tuple[Callable[..., Tensor], bool]] = {
    "European": (lambda s: DISCOUNT * (s - STRIKE).clamp_min(0.0), False),
    "Asian": (asian, True),
    "Lookback": (lookback, True),
    "Digital": (lambda s: DISCOUNT * STRIKE * (s > STRIKE).double(), False),
}


def start(seeds: range) -> Tensor:
    """Return the price at time 0."""
    return torch.full((len(seeds),), STRIKE, dtype=torch.float64)


def ours(name: str, error: float, seed: int) -> mls.Expectation:
    """Return our estimate."""
    phi, path = PAYOFFS[name]
    noise = {"diffusion": lambda s, t: SIGMA * s, "save": path, "seed": seed}
    return mls.expectation(phi, option_ladder(), start, TIMES, tolerance=error, **noise)


def sampler(name: str, generator: np.random.Generator) -> Callable:
    """Return pymlmc's low-level function: sums of the fine and coarse payoffs of N paths on level l, and their cost."""

    def payoff(s: np.ndarray, total: np.ndarray, least: np.ndarray, h: float) -> np.ndarray:
        if name == "European":
            return DISCOUNT * np.maximum(s - STRIKE, 0)
        if name == "Asian":
            return DISCOUNT * np.maximum(total * h - STRIKE, 0)
        if name == "Lookback":
            return DISCOUNT * (s - least * (1 - SHIFT * SIGMA * math.sqrt(h)))
        return DISCOUNT * STRIKE * (s > STRIKE)

    class Path:
        def __init__(self, count: int, h: float):
            self.h, self.s = h, np.full(count, STRIKE)
            self.total, self.least = self.s / 2, self.s.copy()

        def step(self, dw: np.ndarray) -> None:
            self.s = self.s * (1 + RATE * self.h + SIGMA * dw)
            if name == "Asian":
                self.total += self.s
            elif name == "Lookback":
                np.minimum(self.least, self.s, out=self.least)

        def value(self) -> np.ndarray:
            return payoff(self.s, self.total - self.s / 2, self.least, self.h)

    def level(number: int, count: int) -> tuple[np.ndarray, float]:
        fine_steps, sums = FACTOR**number, np.zeros(6)
        h = 1 / fine_steps
        for first in range(0, count, 10000):
            size = min(10000, count - first)
            fine, coarse = Path(size, h), Path(size, FACTOR * h)
            whole = np.zeros(size)
            for n in range(1, fine_steps + 1):
                dw = math.sqrt(h) * generator.standard_normal(size)
                fine.step(dw)
                whole += dw
                if number and n % FACTOR == 0:
                    coarse.step(whole)
                    whole = np.zeros(size)
            p = fine.value()
            y = p - coarse.value() if number else p
            sums += [y.sum(), (y**2).sum(), (y**3).sum(), (y**4).sum(), p.sum(), (p**2).sum()]
        return sums, count * (fine_steps + (fine_steps / FACTOR if number else 0))

    return level


def theirs(name: str, error: float, seed: int) -> tuple[float, float, float] | None:
    """Return pymlmc's value, cost and seconds."""
    try:
        peer = importlib.import_module("pymlmc")
    except ModuleNotFoundError:
        return None
    begin = time.process_time()
    value, counts, costs = peer.mlmc(2, FINEST, FIRST, error, sampler(name, np.random.default_rng(seed)), 0, 0, 0)
    return value, float(np.dot(counts, costs)), time.process_time() - begin


def nets(name: str, error: float, steps: int, seed: int) -> tuple[float, float, float] | None:
    """Return the value, cost and seconds of QMCPy on one grid, to an absolute error of twice the root mean square."""
    try:
        peer = importlib.import_module("qmcpy")
    except ModuleNotFoundError:
        return None
    phi, path = PAYOFFS[name]
    times = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64)

    def payoff(w: np.ndarray) -> np.ndarray:
        dw = np.diff(w, axis=1, prepend=0.0).T
        s = STRIKE * np.cumprod(np.vstack([np.ones(dw.shape[1]), 1 + RATE / steps + SIGMA * dw]), axis=0)
        states = torch.from_numpy(s)
        return (phi(states, times) if path else phi(states[-1])).numpy()

    begin = time.process_time()
    measure = peer.BrownianMotion(peer.DigitalNetB2(steps, seed=seed))
    value, data = peer.CubQMCNetG(peer.CustomFun(measure, payoff), abs_tol=2 * error, rel_tol=0).integrate()
    return float(np.ravel(value)[0]), float(np.ravel(data.n_total)[0]) * steps, time.process_time() - begin


def truths() -> dict[str, float]:
    """Return the known values."""
    known = cases()
    return {
        "European": known["call"].truth,
        "Digital": 10 * known["digital"].truth,
        "Lookback": known["lookback"].truth,
    }


def compared(name: str, error: float, seeds: range) -> list[str]:
    """Return the row of a problem and an error."""
    mine, peers, others = [], [], []
    for seed in seeds:
        begin = time.process_time()
        found = ours(name, error, seed)
        mine.append((found.value, found.cost, time.process_time() - begin, found.plain[-1].cost, found.plain[-1].steps))
        peers.append(theirs(name, error, seed))
        others.append(nets(name, error, found.plain[-1].steps, seed))

    def mean(rows: list, column: int) -> float:
        return statistics.fmean(row[column] for row in rows) if rows and None not in rows else math.nan

    truth = truths().get(name, mean(mine, 0))
    off = math.sqrt(statistics.fmean((row[0] - truth) ** 2 for row in mine)) / error
    cells = [f"{error:g}", f"{mean(mine, 0):.4g}", f"{mean(peers, 0):.4g}", f"{truth:.4g}" if name in truths() else ""]
    cells += [f"{mean(mine, 1):.3g}", f"{mean(peers, 1):.3g}", f"**{mean(mine, 1) / mean(peers, 1):.2f}**"]
    cells += [f"{mean(mine, 3):.3g}", f"{mean(others, 1):.3g}"]
    cells += [f"{mean(rows, 2):.2f}" for rows in (mine, peers, others)]
    print(name, *cells, f"error {off:.2f}", sep=" | ", flush=True)
    return [name, *cells]


def main() -> None:
    """Measure, print and write the table."""
    parser = parser_of(__file__, __doc__)
    parser.add_argument("--seeds", type=int, default=5, help="estimates of each [5]")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ours("European", 0.5, 0)  # warm
    rows = [compared(name, error, range(options.seeds)) for name, errors in ERRORS.items() for error in errors]
    head = ["call", "e", "value", "pymlmc's", "truth", "cost", "pymlmc's", "ratio", "plain", "QMCPy"]
    head += ["seconds", "pymlmc's", "QMCPy's"]
    lines = [*table(head, rows), "", f"Means of {options.seeds} seeds; {machine()['cpu']}, one thread.", ""]
    write_atomically(options.out / "peers.md", "\n".join(lines).encode())


if __name__ == "__main__":
    main()
