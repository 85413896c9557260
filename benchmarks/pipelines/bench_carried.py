"""What is lost where a pipeline is run with other numbers of steps than it was calibrated with, as a Markdown table.

    python benchmarks/pipelines/bench_carried.py  # five minutes of one core

The dead leaves in DDIM's loop with trailing timesteps. The error is the mean squared distance to where the largest
network ends with 1,000 steps, from noise that took no part in calibrations. Every plan costs 5 evaluations of the
largest network at most, by FLOPs. "measured" is calibrated at the row's number of calls, "carried" at 28, "default" not
at all.
"""

from __future__ import annotations

import argparse
import warnings

import torch
from torch import Tensor

from benchmarks.pipelines.models import StatePipeline, schedule_of, shipped_models
from benchmarks.pipelines.one_table import SEED
from benchmarks.pipelines.single_rows import ODE
from multilevel_diffusion import load_ladder, shipped_ladder
from multilevel_diffusion.diffusers import MultilevelUNet

LADDER, BUDGET, CALLS, IMAGES = "deadleaves32", 5.0, 28, 16


def main() -> None:
    """Print the table."""
    import diffusers

    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, nargs="+", default=[14, 20, 40, 56], help="numbers of steps [%(default)s]")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    models, costs = shipped_models(LADDER)
    name, options = ODE["DDIM, trailing"]
    scheduler = getattr(diffusers, name)(trained_betas=schedule_of(LADDER), **options)
    pipe = StatePipeline(models[-1], scheduler, load_ladder(shipped_ladder(LADDER)).image_shape)

    def images(steps: int) -> Tensor:
        generators = [torch.Generator().manual_seed(SEED + n) for n in range(IMAGES)]
        return pipe(batch_size=IMAGES, generator=generators, num_inference_steps=steps)[0]

    fine = images(1000)

    def error(steps: int) -> float:
        return float((images(steps) - fine).square().mean())

    ladder = MultilevelUNet(models, budget_fraction=1.0, costs=costs).install(pipe)
    print("| calls | default | carried | measured |\n|---|---|---|---|")
    for steps in arguments.calls:
        fraction, cells = BUDGET / steps, []
        for calibrated_at in (None, CALLS, steps):
            ladder = MultilevelUNet(models, budget_fraction=fraction, costs=costs).install(pipe)
            if calibrated_at is not None:
                ladder.calibrate(pipe, num_inference_steps=calibrated_at, price="given", progress=False)
            cells.append(f"{error(steps):.2g}")
        print(f"| {steps} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
