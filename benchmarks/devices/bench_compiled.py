"""What does torch.compile gain on a CPU, level by level?

CPU milliseconds of a call of each network of the shipped ladders on one thread, as it is and compiled (`mls.compiled`),
called in turns; medians. Beside them the cost over the largest network's, which is what decides whether a plan pays by
seconds. `python benchmarks/devices/bench_compiled.py` takes about three minutes, most of it in the compiler.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import argparse
import statistics
import time
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

import multilevel_sde as mls
from benchmarks.common import table
from multilevel_diffusion import load_ladder, shipped_ladder

BATCHES = {"digits": (8, 64), "deadleaves32": (4, 16)}
CALLS = 25


def milliseconds(drifts: list[mls.Drift], x: Tensor, t: Tensor, calls: int) -> list[float]:
    """Return the median CPU time of a call of each drift, called in turns."""
    spent: list[list[float]] = [[] for _ in drifts]
    for turn, (times, drift) in product(range(calls + 2), zip(spent, drifts, strict=True)):
        begin = time.process_time()
        drift(x, t)
        if turn >= 2:  # the first compiles, the second warms up
            times.append((time.process_time() - begin) * 1e3)
    return [statistics.median(times) for times in spent]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=CALLS, help=f"[{CALLS}]")
    options = parser.parse_args()
    torch.set_num_threads(1)
    t, rows = torch.tensor(0.5, dtype=torch.float64), []
    with torch.no_grad():
        for name, batches in BATCHES.items():
            stored = load_ladder(shipped_ladder(name))
            fast = [replace(denoiser, net=mls.compiled(denoiser.net)) for denoiser in stored.denoisers]
            for batch in batches:
                x = torch.randn(batch, *stored.image_shape, generator=torch.Generator().manual_seed(0))
                found = milliseconds([*stored.denoisers, *fast], x, t, options.calls)
                plain, quick = found[: len(fast)], found[len(fast) :]
                for level, (a, b) in enumerate(zip(plain, quick, strict=True), 1):
                    shares = [f"{a / plain[-1]:.3f}", f"{b / quick[-1]:.3f}"]
                    flops = stored.ladder.costs[level - 1] / stored.ladder.costs[-1]
                    cells = [f"{name}, {batch}", str(level), f"{a:.2f}", f"{b:.2f}", f"{a / b:.2f}"]
                    rows.append([*cells, f"{flops:.3f}", *shares])
    head = ["ladder, batch", "level", "ms", "ms compiled", "gain", "cost, FLOPs", "cost, seconds", "compiled"]
    print("\n".join(table(head, rows)))


if __name__ == "__main__":
    main()
