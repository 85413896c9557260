"""Trained ladders in a stock loop of diffusers: plans, single networks under every scheduler, one size a step, caches.

    python benchmarks/pipelines/bench_pipelines.py          # ten to twenty minutes a table; --tables deadleaves32_ode
    python benchmarks/pipelines/bench_pipelines.py --quick --out /tmp/pipelines

Tables: the shipped dead leaves and digits, and three sizes of diffusers' own DiTTransformer2DModel on emoji, which
`train_dit.py` trained for noise (dit_eps) and flow (dit_flow); each by the ODE, those of noise by the SDE too.

ODE: the error is the mean squared distance to where the largest network ends by DDIM (flow: Euler) with 1,000 steps,
from the same noise, and PSNR is of the same pairs. SDE: to the path of the largest network at all 50 calls by the
multistep base, with the scheduler's own noise. Single networks with other numbers of steps have other noise, so they
have no such error. What all have is the Frechet distance (of the features of `multilevel_diffusion.quality`) to images
that the largest network made in many steps from other noise, and how often a classifier tells the two apart.

Costs are in evaluations of the largest network by FLOPs, and in seconds of CPU time an image on one thread. Memory is
the peak of live tensors in a run of four images, weights included. Rows are kept as they are made; a second run goes
on from there.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator

import torch
from tqdm import tqdm

from benchmarks.common import parser_of
from benchmarks.pipelines import plan_rows, single_rows
from benchmarks.pipelines.one_table import DIT, Bench, Row
from benchmarks.pipelines.pipeline_tables import publish

TABLES = (
    "deadleaves32_ode",
    "deadleaves32_sde",
    "digits_ode",
    "digits_sde",
    "dit_eps_ode",
    "dit_eps_sde",
    "dit_flow_ode",
)


def measure(bench: Bench) -> None:
    """Make all rows that are missing."""
    parts: list[Iterator[tuple[str, Callable[[], Row]]]] = [*single_rows.parts(bench), *plan_rows.parts(bench)]
    for part in parts:
        for key, make in tqdm(part, desc=bench.name, unit="row"):
            try:
                bench.add(key, make)
            except (ValueError, IndexError) as error:  # a grid of diffusers that does not exist for so many steps
                tqdm.write(f"{key}: {error}")


if __name__ == "__main__":
    parser = parser_of(__file__, __doc__)
    parser.add_argument("--tables", nargs="*", default=list(TABLES))
    parser.add_argument("--dit", type=type(DIT), default=DIT, help="folder of train_dit.py [dit32 beside this]")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for one in arguments.tables:
        if one.startswith("dit_") and not (arguments.dit / one.split("_")[1]).is_dir():
            print(f"{one}: left out, as there are no networks in {arguments.dit}; train_dit.py makes them", flush=True)
            continue
        measure(Bench(one, arguments.out, arguments.quick, arguments.dit))
        print(f"{one}: {time.process_time():.0f} s of CPU time so far", flush=True)
    publish(arguments.out)
