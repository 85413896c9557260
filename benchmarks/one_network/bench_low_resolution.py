"""What does each part of a level at lower resolution buy: the time it is asked at, interpolation, the Wiener gain?

V = mean |f^1 - f^2|^2 / mean |f^2|^2 along the path of the top network of a shipped ladder (100 steps of the ODE, 8
images), f^1 being the same network at half the resolution:

- asked at the time t itself, pixels repeated;
- asked at the time t' with lambda(t') = lambda(t) + log 2: pixels repeated or interpolated bilinearly, without and with
  the Wiener estimate of the detail (:mod:`multilevel_diffusion.cheap_levels.low_resolution`).

`python benchmarks/one_network/bench_low_resolution.py` prints the tables; a minute.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor

import multilevel_sde as mls
from benchmarks.common import table
from multilevel_diffusion import Process, load_ladder, shipped_ladder, uniform
from multilevel_diffusion.cheap_levels import LowResolution, bilinear, detail_variance, repeat
from multilevel_diffusion.networks import DiffusionLadder
from multilevel_diffusion.networks.data import DeadLeaves, Digits

STEPS, IMAGES, FACTOR = 100, 8, 2
TIMES = (0.7, 0.5, 0.2, 0.05)


def variants(stored: DiffusionLadder, real: Tensor) -> dict[str, mls.Drift]:
    """Return the estimates of x_0 to compare."""
    top, schedule, found = stored.denoisers[-1], stored.schedule, {}

    def at_t(x: Tensor, t: Tensor) -> Tensor:
        return repeat(top(F.avg_pool2d(x, FACTOR), t), FACTOR)

    found["asked at t, repeated"] = at_t
    for name, upsample in (("repeated", repeat), ("bilinear", bilinear)):
        missed = detail_variance(real, FACTOR, upsample)
        found[name] = LowResolution(top, schedule, FACTOR, upsample=upsample)
        found[f"{name}, Wiener"] = LowResolution(top, schedule, FACTOR, missed, upsample)
    return found


def measure(name: str, images: int) -> list[str]:
    """Return the lines of the table of one ladder."""
    stored = load_ladder(shipped_ladder(name))
    process = Process(stored.schedule, 0.0, times := uniform(stored.schedule, STEPS))
    one, seeds = stored.ladder.top(), range(images)
    y0, plan = process.start(seeds, stored.image_shape), mls.em_plan(one, times)
    path = mls.solve(one, y0, times, plan, save=True, **process.arguments(seeds)).ys
    source = Digits() if name == "digits" else DeadLeaves(stored.image_shape[-1])
    rows = []
    for variant, estimate in variants(stored, source.held_out(64)).items():
        cells = [variant]
        for t in TIMES:
            nearest = int((times - t).abs().argmin())
            x, exact = path[nearest], stored.denoisers[-1](path[nearest], times[nearest])
            cells.append(f"{float((estimate(x, times[nearest]) - exact).square().mean() / exact.square().mean()):.3f}")
        rows.append(cells)
    return table([name, *(f"t = {t}" for t in TIMES)], rows)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ladders", nargs="+", default=["deadleaves32", "digits"], help="[both]")
    parser.add_argument("--images", type=int, default=IMAGES, help=f"[{IMAGES}]")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        for name in options.ladders:
            print("\n".join(measure(name, options.images)), "\n")


if __name__ == "__main__":
    main()
