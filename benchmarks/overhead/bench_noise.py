"""What noise costs against torch.randn.

pytest benchmarks/overhead/bench_noise.py --benchmark-only
python benchmarks/overhead/bench_noise.py                   # a table
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import time

import pytest
import torch

import multilevel_sde as mls
from benchmarks.common import table

torch.set_num_threads(1)

STATE = (64, 3, 32, 32)
GENERATOR = torch.Generator().manual_seed(0)


def times_of(steps):
    return torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64)


def randn(steps, shape=STATE):
    for _ in range(steps):
        torch.randn(shape, generator=GENERATOR)


def noise(steps, on_grid, shape=STATE):
    times = times_of(steps)
    path = mls.BrownianPath(range(shape[0]), grid=times if on_grid else None, shape=shape[1:])
    for _ in path.increments(times):
        pass


@pytest.mark.parametrize("steps", [100, 1000])
@pytest.mark.parametrize("source", ["randn", "stated grid", "grid=times"])
def test_noise_of_images(benchmark, source, steps):
    benchmark.group = f"noise, {steps} steps of 64 x 3 x 32 x 32"
    run = randn if source == "randn" else lambda steps: noise(steps, source == "grid=times")
    benchmark.pedantic(run, args=(steps,), rounds=3 if steps > 100 else 7, warmup_rounds=1)


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
        for steps in (100, 128, 1000):
            runs = {
                "randn": lambda steps=steps, shape=shape: randn(steps, shape),
                "stated": lambda steps=steps, shape=shape: noise(steps, False, shape),
                "given": lambda steps=steps, shape=shape: noise(steps, True, shape),
            }
            seconds = interleaved(runs, rounds=5 if steps * torch.Size(shape).numel() > 1e8 else 15)
            micro = {name: f"{value / steps * 1e6:.1f}" for name, value in seconds.items()}
            ratios = [f"{seconds[name] / seconds['randn']:.2f}" for name in ("stated", "given")]
            rows.append(["x".join(map(str, shape)), str(steps), *micro.values(), *ratios])
    head = ["state", "steps", "randn, us a step", "stated grid", "grid=times", "stated/randn", "grid=times/randn"]
    print("\n".join(table(head, rows)))


if __name__ == "__main__":
    main()
