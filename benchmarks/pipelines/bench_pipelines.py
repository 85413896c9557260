"""Trained ladders in a stock loop of diffusers: plans, single networks under every scheduler, one size a step.

    python benchmarks/pipelines/bench_pipelines.py          # about 20 minutes a ladder; --ladders deadleaves32
    python benchmarks/pipelines/bench_pipelines.py --quick --out /tmp/pipelines

ODE: the error is the mean squared distance to where the largest network ends by DDIM with 1,000 steps, from the same
noise. SDE: that to the path of the largest network at all 50 calls by the multistep base, with the scheduler's own
noise, which other numbers of steps do not share. Costs are in evaluations of the largest network by FLOPs, and in
seconds of CPU time an image on one thread. Rows are kept as they are made; a second run goes on from there.

- single: the largest network alone with a scheduler and a grid of diffusers, at so many steps;
- multistep, fitted: one network with a plan, as `calibrate` makes it, and with fit=True;
- default, calibrated, ladder fitted: the ladder on 28 calls (SDE: 50), calibrated on 4 samples, fitted on 16;
- T-Stitch (small first), SRDiffusion (large first), FlowBlending (large at both ends): one size a step, under the best
  stock scheduler at 28 calls, at the best boundary that the budget allows.
"""

from __future__ import annotations

import itertools
import json
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor
from tqdm import tqdm

import multilevel_sde as mls
from benchmarks.common import machine, parser_of, write_json
from benchmarks.pipelines.models import StatePipeline, schedule_of, shipped_models
from benchmarks.pipelines.pipeline_tables import publish
from multilevel_diffusion import load_ladder, shipped_ladder
from multilevel_diffusion.diffusers import MultilevelUNet

EVALUATIONS = (3, 5, 8, 12, 20)
SINGLE = (3, 5, 8, 10, 12, 15, 20, 28, 40)
CALLS, NOISY_CALLS = 28, 50
SEED = 5000  # of the images that are judged; calibrations use others
SAMPLES = {"digits": 64, "deadleaves32": 16}
TRAILING = {"timestep_spacing": "trailing"}
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM, trailing": ("DDIMScheduler", {"clip_sample": False, **TRAILING}),
    "DPM++ 2M, trailing": ("DPMSolverMultistepScheduler", TRAILING),
    "DPM++ 2M, lu": ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True, **TRAILING}),
    "DPM++ 2M, karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, **TRAILING}),
    "DPM++ 3M, trailing": ("DPMSolverMultistepScheduler", {"solver_order": 3, **TRAILING}),
    "DPM++ 3M, lu": ("DPMSolverMultistepScheduler", {"solver_order": 3, "use_lu_lambdas": True, **TRAILING}),
    "UniPC, trailing": ("UniPCMultistepScheduler", TRAILING),
    "UniPC, karras": ("UniPCMultistepScheduler", {"use_karras_sigmas": True, **TRAILING}),
    "UniPC, linspace": ("UniPCMultistepScheduler", {"timestep_spacing": "linspace"}),
}
FIRST_ORDER = {"trailing": TRAILING, "karras": {"use_karras_sigmas": True, **TRAILING}}
"""Grids of the scheduler on which one network is given its multistep method."""


class Bench:
    """One ladder in one kind of loop: its networks, its target, its rows so far.

    Arguments:
        ladder: A shipped ladder's name.
        noisy: SDE in the place of the ODE.
        samples: Images to judge.
        out: Where rows and references are kept.
        quick: Few steps, to see whether it runs.
    """

    def __init__(self, ladder: str, noisy: bool, samples: int, out: Path, quick: bool):
        self.name, self.noisy, self.samples, self.quick = f"{ladder}_{'sde' if noisy else 'ode'}", noisy, samples, quick
        self.models, self.costs = shipped_models(ladder)
        self.table, self.shape = schedule_of(ladder), load_ladder(shipped_ladder(ladder)).image_shape
        self.relative = [cost / self.costs.costs[-1] for cost in self.costs.costs]
        self.path = out / f"{self.name}.json"
        kept = json.loads(self.path.read_text()) if self.path.is_file() else {}
        self.rows: dict[str, dict[str, Any]] = kept.get("rows", {}) if kept.get("samples") == samples else {}

    def pipe(self, kind: str, **options: Any) -> StatePipeline:
        """The largest network under a scheduler."""
        return StatePipeline(self.models[-1], getattr(diffusers, kind)(trained_betas=self.table, **options), self.shape)

    def run(self, pipe: StatePipeline, steps: int, seed: int = SEED) -> Tensor:
        """The images of the seeds that are judged."""
        torch.manual_seed(seed)  # of schedulers that take no generator
        generators = [torch.Generator().manual_seed(seed + n) for n in range(self.samples)]
        return pipe(self.samples, generators, steps)[0]

    def stock(self) -> tuple[StatePipeline, int]:
        """The loop that plans run in, and its calls."""
        if self.noisy:
            return self.pipe("DDPMScheduler", clip_sample=False, **TRAILING), 12 if self.quick else NOISY_CALLS
        return self.pipe("DDIMScheduler", clip_sample=False, **TRAILING), 12 if self.quick else CALLS

    @cached_property
    def target(self) -> Tensor:
        """What rows are compared with."""
        pipe, calls = self.stock()
        if not self.noisy:
            return self.run(pipe, 50 if self.quick else 1000)
        one = MultilevelUNet(self.models[-1:], budget_fraction=1.0, costs=[1.0]).install(pipe)
        one.calibrate(pipe, num_inference_steps=calls, progress=False)
        return self.run(pipe, calls)

    def add(self, key: str, make: Callable[[], tuple[Tensor, float, dict[str, Any]]]) -> None:
        """Make a row unless it is there: images, cost in evaluations, anything else to note."""
        if key in self.rows:
            return
        start = time.process_time()
        images, cost, notes = make()
        seconds = notes.pop("seconds", time.process_time() - start) / self.samples
        errors = (images - self.target).square().flatten(1).mean(1)
        kept = {"cost": cost, "seconds": seconds, "mse": float(errors.mean()), "median": float(errors.median())}
        self.rows[key] = kept | notes
        write_json(self.path, {"machine": machine(), "samples": self.samples, "rows": self.rows})


def singles(bench: Bench) -> Iterator[tuple[str, Callable[[], tuple[Tensor, float, dict]]]]:
    """The largest network alone, under every scheduler."""
    for (name, (kind, options)), steps in itertools.product(SCHEDULERS.items(), SINGLE[:3] if bench.quick else SINGLE):

        def make(kind: str = kind, options: dict[str, Any] = options, steps: int = steps) -> tuple[Tensor, float, dict]:
            pipe = bench.pipe(kind, **options)
            pipe.scheduler.set_timesteps(steps)
            if len(set(pipe.scheduler.timesteps.tolist())) < steps:  # its own steps would be looked up wrongly
                raise ValueError("repeated timesteps")
            return bench.run(pipe, steps), steps, {}

        yield f"single: {name} @ {steps}", make


def fitted_singles(bench: Bench) -> Iterator[tuple[str, Callable[[], tuple[Tensor, float, dict]]]]:
    """The largest network alone with a multistep method of its own, plain and fitted."""
    for (grid, options), steps, fit in itertools.product(FIRST_ORDER.items(), (8, 10, 12, 15, 20), (False, True)):
        if bench.quick and (steps > 8 or fit):
            continue

        def make(
            options: dict[str, Any] = options, steps: int = steps, fit: bool = fit
        ) -> tuple[Tensor, float, dict[str, Any]]:
            pipe = bench.pipe("DPMSolverMultistepScheduler", solver_order=1, **options)
            one = MultilevelUNet(bench.models[-1:], budget_fraction=1.0, costs=[1.0]).install(pipe)
            pilot = one.calibrate(pipe, num_inference_steps=steps, fit=fit, progress=False)
            start = time.process_time()
            images = bench.run(pipe, steps)
            return images, steps, {"seconds": time.process_time() - start, "calibration": pilot.cost}

        yield f"{'fitted' if fit else 'multistep'}: {grid} @ {steps}", make


def ladders(bench: Bench) -> Iterator[tuple[str, Callable[[], tuple[Tensor, float, dict]]]]:
    """Plans of the ladder in the stock loop: without a measurement, calibrated, fitted."""
    pipe, calls = bench.stock()
    ladder = MultilevelUNet(bench.models, budget_fraction=0.5, costs=bench.costs).install(pipe)
    budgets = [b for b in EVALUATIONS if b < calls]

    def run(
        budget: float, loop: StatePipeline = pipe, levels: MultilevelUNet = ladder
    ) -> tuple[Tensor, float, dict[str, Any]]:
        start = time.process_time()
        images = bench.run(loop, calls)
        used = levels.stats.trajectory
        return images, used.fraction * used.calls, {
            "seconds": time.process_time() - start, "evaluations": list(used.evaluations), "budget": budget,
        }  # fmt: skip

    for budget in budgets:

        def default(budget: float = budget) -> tuple[Tensor, float, dict[str, Any]]:
            plain, _ = bench.stock()
            fresh = MultilevelUNet(bench.models, budget_fraction=budget / calls, costs=bench.costs).install(plain)
            return run(budget, plain, fresh)

        yield f"default @ {budget}", default
    pilots: list[mls.Pilot] = []

    def pilot() -> mls.Pilot:
        if not pilots:
            pilots.append(ladder.calibrate(pipe, num_inference_steps=calls, progress=False))
        return pilots[0]

    for budget in budgets:

        def calibrated(budget: float = budget) -> tuple[Tensor, float, dict[str, Any]]:
            cost = pilot().cost / bench.costs.costs[-1] / calls
            ladder.allocate(budget_fraction=budget / calls)
            predicted = ladder.advise().best.predicted.mse
            images, spent, notes = run(budget)
            return images, spent, notes | {"calibration in plain images": cost, "predicted": predicted}

        yield f"calibrated @ {budget}", calibrated
    for budget in budgets if not bench.quick else []:

        def fitted(budget: float = budget) -> tuple[Tensor, float, dict[str, Any]]:
            pilot()
            ladder.allocate(budget_fraction=budget / calls)
            ladder.calibrate(pipe, num_inference_steps=calls, samples=16, fit=True, progress=False)
            return run(budget)

        yield f"ladder fitted @ {budget}", fitted


def choices(bench: Bench) -> Iterator[tuple[str, Callable[[], tuple[Tensor, float, dict]]]]:
    """One size a step: the smallest and the largest network, at the best boundary."""
    calls = 12 if bench.quick else CALLS
    small, levels = bench.relative[0], len(bench.models)
    stock = bench.pipe("UniPCMultistepScheduler", **TRAILING) if not bench.noisy else bench.stock()[0]
    calls = calls if not bench.noisy else bench.stock()[1]
    for name, budget in itertools.product(("T-Stitch", "SRDiffusion", "FlowBlending"), EVALUATIONS):
        count = min(calls, int((budget - calls * small) / (1 - small)))
        ends = {"T-Stitch": [0], "SRDiffusion": [count], "FlowBlending": range(1, count)}[name]
        if count < 1 or not len(ends):
            continue

        def make(ends: Any = ends, count: int = count) -> tuple[Tensor, float, dict[str, Any]]:
            best = None
            for first in ends:
                weights = torch.ones(calls, levels, dtype=torch.float64)
                weights[first : calls - (count - first), 1:] = 0.0
                MultilevelUNet(bench.models, plan=mls.Plan(weights > 0, weights), costs=bench.costs).install(stock)
                images = bench.run(stock, calls)
                error = float((images - bench.target).square().mean())
                if best is None or error < best[0]:
                    best = (error, first, images)
            assert best is not None
            cost = count + (calls - count) * small
            return best[2], cost, {"large first": best[1], "large last": count - best[1]}

        yield f"{name} @ {budget}", make


def measure(bench: Bench) -> None:
    """Make all rows that are missing."""
    parts = [ladders(bench), choices(bench)] if bench.noisy else [
        singles(bench), ladders(bench), fitted_singles(bench), choices(bench),
    ]  # fmt: skip
    for key, make in tqdm([job for part in parts for job in part], desc=bench.name, unit="row"):
        try:
            bench.add(key, make)
        except (ValueError, IndexError) as error:  # a grid of diffusers that does not exist for so many steps
            tqdm.write(f"{key}: {error}")


if __name__ == "__main__":
    parser = parser_of(__file__, __doc__)
    parser.add_argument("--ladders", nargs="*", default=["deadleaves32", "digits"])
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for one, noisy in itertools.product(arguments.ladders, (False, True)):
        measure(Bench(one, noisy, 2 if arguments.quick else SAMPLES[one], arguments.out, arguments.quick))
    publish(arguments.out)
