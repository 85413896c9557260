"""What does it cost to keep a state of several parts in one tensor?

    python benchmarks/overhead/bench_packing.py

A batch of 64 states of an image of 3x16x16 and a vector of 32, by 50 Euler steps, with docs/from_diffrax.md's code: the
drift takes the parts apart, works on each, and puts them together. It is compared with a loop by hand that keeps
the parts apart, with the same drift of each: convolutions, and products of matrices. Solvers take turns, on one thread,
in CPU time; the ratio is the median of those within a turn.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor, nn

import multilevel_sde as mls

SHAPES = {"image": (3, 16, 16), "code": (32,)}
STEPS, BATCH, TURNS = 50, 64, 61


def pack(parts: dict[str, Tensor]) -> Tensor:
    """One row a sample."""
    return torch.cat([parts[name].flatten(1) for name in SHAPES], 1)


def unpack(y: Tensor) -> dict[str, Tensor]:
    """Views of the parts."""
    pieces = y.split([torch.Size(shape).numel() for shape in SHAPES.values()], 1)
    return {name: piece.unflatten(1, shape) for (name, shape), piece in zip(SHAPES.items(), pieces, strict=True)}


def main() -> None:
    """Print the ratio and the time of a step."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    image = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 3, 3, padding=1))
    code = nn.Sequential(nn.Linear(32, 256), nn.SiLU(), nn.Linear(256, 32))
    nets = {"image": image, "code": code}
    times = torch.linspace(0.0, 1.0, STEPS + 1)
    ladder = mls.Ladder([lambda y, t: pack({name: nets[name](part) for name, part in unpack(y).items()})], [1.0])
    plan, start = mls.em_plan(ladder, times), {name: torch.randn(BATCH, *shape) for name, shape in SHAPES.items()}

    def packed() -> dict[str, Tensor]:
        return unpack(mls.solve(ladder, pack(start), times, plan).y)

    def apart() -> dict[str, Tensor]:
        parts = dict(start)
        for _ in range(STEPS):
            parts = {name: torch.add(part, nets[name](part), alpha=1 / STEPS) for name, part in parts.items()}
        return parts

    taken: dict[str, list[float]] = {"packed": [], "apart": []}
    with torch.no_grad():
        for name, part in packed().items():
            torch.testing.assert_close(part, apart()[name], rtol=1e-4, atol=1e-4)
        for _ in range(TURNS):
            for name, run in (("packed", packed), ("apart", apart)):
                begin = time.process_time()
                run()
                taken[name].append(time.process_time() - begin)
    ratio = statistics.median(a / b for a, b in zip(*taken.values(), strict=True))
    a_step = 1e3 * statistics.median(taken["apart"]) / STEPS
    print(f"{ratio:.3f} times the loop by hand, a step of which takes {a_step:.2f} ms")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
