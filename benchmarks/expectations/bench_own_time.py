"""Whose time is it: of the drifts, of the loops that `expectation` calls, or of `expectation` itself?

    python -m benchmarks.expectations.bench_own_time

A ladder of two networks whose calls on a batch take about a millisecond, additive noise, 128 steps at the finest. CPU
time on one thread; what a call of a drift and a call of `solve` take is added up, and the rest is `expectation`'s own:
trials, terms, samples, seeds, sums.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise
from unittest import mock

import torch
from torch import Tensor

import multilevel_sde as mls
from benchmarks.common import table

TOLERANCES = (0.002, 0.001, 0.0005)
WIDTH = 256  # of the networks


class Timed:
    """A function and the CPU time that its calls took."""

    def __init__(self, function):
        self.function, self.seconds, self.calls = function, 0.0, 0

    def __call__(self, *args, **kwargs):
        """Call it and add up."""
        begin = time.process_time()
        try:
            return self.function(*args, **kwargs)
        finally:
            self.seconds += time.process_time() - begin
            self.calls += 1


def network(depth: int, seed: int) -> Timed:
    """A fixed network on states of eight numbers."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [8, *[WIDTH] * depth, 8]
    layers = [torch.randn(a, b, generator=generator) / a**0.5 for a, b in pairwise(sizes)]

    def drift(y: Tensor, t: Tensor) -> Tensor:
        x = y
        for layer in layers:
            x = torch.tanh(x @ layer)
        return 0.2 * x - y

    return Timed(drift)


def main() -> None:
    """Print the shares at some tolerances."""
    torch.set_num_threads(1)
    times = torch.linspace(0.0, 1.0, 129)
    rows = []
    for tolerance in TOLERANCES:
        drifts = [network(2, 0), network(8, 0)]
        ladder = mls.Ladder(drifts, [1.0, 4.0])
        solve = Timed(mls.solve)
        with mock.patch("multilevel_sde.expectations.paths.solve", solve):
            begin = time.process_time()
            mls.expectation(
                lambda y: y.square().mean(1),
                ladder,
                lambda seeds: torch.zeros(len(seeds), 8),
                times,
                diffusion=0.5,
                tolerance=tolerance,
            )
            whole = time.process_time() - begin
        own = sum(drift.seconds for drift in drifts)
        calls = sum(drift.calls for drift in drifts)
        shares = [
            f"{1e3 * own / calls:.2f}",
            f"{(solve.seconds - own) / own:.0%}",
            f"{(whole - solve.seconds) / own:.1%}",
        ]
        rows.append([f"{tolerance:g}", f"{whole:.1f}", *shares])
    print("\n".join(table(["tolerance", "s", "ms a call", "loops / drifts", "expectation itself / drifts"], rows)))


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
