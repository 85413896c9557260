"""What noise costs against torch.randn of the same increments, on sub-grids of a finest grid of 1000 steps.

pytest benchmarks/overhead/bench_noise.py --benchmark-only
python benchmarks/overhead/bench_noise.py                   # a table
"""

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import time

import pytest
import torch

import multilevel_sde as mls
from benchmarks.common import table
from multilevel_diffusion import CosineSchedule, coupled_noise, uniform

torch.set_num_threads(1)

STATE = (64, 3, 32, 32)
STEPS = (5, 20, 100, 128, 1000)
FINEST = 1000
SCHEDULE = CosineSchedule()
GENERATOR = torch.Generator().manual_seed(0)


def steps_of(fine, steps):
    """About even steps of a finest grid, as `Process.grid` takes them."""
    return fine[torch.linspace(0, FINEST, steps + 1, dtype=torch.float64).round().long()]


def randn(steps, shape):
    for _ in range(steps):
        torch.randn(shape, generator=GENERATOR)


def stated(steps, shape):
    path = mls.BrownianPath(range(shape[0]), shape=shape[1:])
    for _ in path.increments(torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64)):
        pass


def given(steps, shape):
    fine = torch.linspace(0.0, 1.0, FINEST + 1, dtype=torch.float64)
    for _ in mls.BrownianPath(range(shape[0]), grid=fine, shape=shape[1:]).increments(steps_of(fine, steps)):
        pass


def coupled(steps, shape):
    fine = uniform(SCHEDULE, FINEST)
    for _ in coupled_noise(SCHEDULE, range(shape[0]), fine).like(torch.empty(shape)).increments(steps_of(fine, steps)):
        pass


SOURCES = {"randn": randn, "stated grid": stated, "grid=": given, "coupled_noise": coupled}


@pytest.mark.parametrize("steps", [100, 1000])
@pytest.mark.parametrize("source", SOURCES)
def test_noise_of_images(benchmark, source, steps):
    benchmark.group = f"noise, {steps} steps of 64 x 3 x 32 x 32"
    benchmark.pedantic(SOURCES[source], args=(steps, STATE), rounds=3 if steps > 100 else 7, warmup_rounds=1)


def interleaved(runs, rounds):
    """Least seconds of each of the runs, taking turns, after one turn to warm up."""
    least = dict.fromkeys(runs, float("inf"))
    for turn in range(rounds + 1):
        for name, run in runs.items():
            start = time.thread_time()
            run()
            if turn:
                least[name] = min(least[name], time.thread_time() - start)
    return least


def main():
    torch.empty(4 << 20).fill_(1)  # as any network does: from then on malloc keeps the memory that it gets back
    rows = []
    for shape in (STATE, (1, 3, 32, 32), (128, 5)):
        for steps in STEPS:
            runs = {name: lambda run=run: run(steps, shape) for name, run in SOURCES.items()}  # noqa: B023
            seconds = interleaved(runs, rounds=5 if steps * torch.Size(shape).numel() > 1e8 else 25)
            ratios = [f"{seconds[name] / seconds['randn']:.2f}" for name in SOURCES if name != "randn"]
            rows.append(["x".join(map(str, shape)), str(steps), f"{seconds['randn'] / steps * 1e6:.1f}", *ratios])
    head = ["state", "steps", "randn, us a step", *(f"{name}/randn" for name in SOURCES if name != "randn")]
    print("\n".join(table(head, rows)))


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
