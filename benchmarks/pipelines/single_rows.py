"""Rows of `bench_pipelines.py` for the largest network alone.

- single: with a scheduler and a grid of diffusers, at so many steps; best stock: the best of them at that number;
- multistep, fitted: with a plan, as `calibrate` makes it, and with fit=True;
- fine: in many steps, which shows what the distances of distributions are where nothing is lost.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.pipelines.one_table import BUDGETS, FINE, SEED, TRAILING, Bench, Row
from multilevel_diffusion.diffusers import MultilevelUNet

__all__ = ["parts"]

Rows = Iterator[tuple[str, Callable[[], Row]]]

SINGLE = (3, 5, 8, 10, 12, 15, 20, 28, 40)
ONE = (8, 12, 20, 28)
KARRAS = {"use_karras_sigmas": True, **TRAILING}
ODE: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM, trailing": ("DDIMScheduler", {"clip_sample": False, **TRAILING}),
    "DPM++ 2M, trailing": ("DPMSolverMultistepScheduler", TRAILING),
    "DPM++ 2M, lu": ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True, **TRAILING}),
    "DPM++ 2M, karras": ("DPMSolverMultistepScheduler", KARRAS),
    "DPM++ 3M, trailing": ("DPMSolverMultistepScheduler", {"solver_order": 3, **TRAILING}),
    "DPM++ 3M, lu": ("DPMSolverMultistepScheduler", {"solver_order": 3, "use_lu_lambdas": True, **TRAILING}),
    "UniPC, trailing": ("UniPCMultistepScheduler", TRAILING),
    "UniPC, karras": ("UniPCMultistepScheduler", KARRAS),
    "UniPC, linspace": ("UniPCMultistepScheduler", {"timestep_spacing": "linspace"}),
}
SDE: dict[str, tuple[str, dict[str, Any]]] = {
    "DDPM, trailing": ("DDPMScheduler", {"clip_sample": False, **TRAILING}),
    "ancestral Euler, trailing": ("EulerAncestralDiscreteScheduler", TRAILING),
    "sde-DPM++ 2M, trailing": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", **TRAILING}),
    "sde-DPM++ 2M, karras": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", **KARRAS}),
    "SA-Solver, trailing": ("SASolverScheduler", TRAILING),
}
FLOW: dict[str, tuple[str, dict[str, Any]]] = {
    "Euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "Euler, shift 3": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "Euler, karras": ("FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ 3M": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "UniPC, shift 3": ("UniPCMultistepScheduler", {"flow_shift": 3.0}),
}


def parts(bench: Bench) -> list[Rows]:
    """All rows of one network, in this order."""
    return [fine(bench), *([noisy(bench)] if bench.noisy else [singles(bench), best(bench)]), planned(bench)]


def schedulers(bench: Bench) -> dict[str, tuple[str, dict[str, Any]]]:
    """Those of diffusers for this table."""
    return SDE if bench.noisy else FLOW if bench.networks.flow else ODE


def one(bench: Bench, name: str, steps: int, *, whole: bool) -> Row:
    """The largest network under a scheduler, at so many steps."""
    kind, options = schedulers(bench)[name]
    pipe = bench.networks.pipe(kind, **options)
    pipe.scheduler.set_timesteps(steps)
    if len(set(pipe.scheduler.timesteps.tolist())) < steps:  # its own steps would be looked up wrongly
        raise ValueError("repeated timesteps")
    models = bench.networks.models[-1:]
    run = lambda count: bench.run(pipe, steps, count)  # noqa: E731
    return Row(run, lambda: steps, models, whole, not bench.noisy, lambda: {"scheduler": name})


def fine(bench: Bench) -> Rows:
    """What many steps give."""
    calls = bench.stock()[1] if bench.noisy or bench.quick else FINE
    run = lambda count: bench.by_base(calls, count, SEED)  # noqa: E731
    yield f"fine @ {calls}", lambda: Row(run, lambda: calls, bench.networks.models[-1:])


def singles(bench: Bench) -> Rows:
    """Every scheduler without noise, by its error alone."""
    for name, steps in itertools.product(schedulers(bench), SINGLE[:3] if bench.quick else SINGLE):
        yield f"single: {name} @ {steps}", lambda name=name, steps=steps: one(bench, name, steps, whole=False)


def noisy(bench: Bench) -> Rows:
    """Every scheduler with noise, which is another one for every number of steps."""
    for name, steps in itertools.product(SDE, BUDGETS[:2] if bench.quick else BUDGETS):
        yield f"single: {name} @ {steps}", lambda name=name, steps=steps: one(bench, name, steps, whole=True)


def best(bench: Bench) -> Rows:
    """The best of them at a number of steps, as a distribution too."""
    for steps in BUDGETS:
        rows = {key: row for key, row in bench.rows.items() if key.startswith("single") and row["cost"] == steps}
        if rows:
            name = min(rows.values(), key=lambda row: row["mse"])["scheduler"]
            yield f"best stock @ {steps}", lambda name=name, steps=steps: one(bench, name, steps, whole=True)


def planned(bench: Bench) -> Rows:
    """With a multistep method of its own, plain and fitted (without noise)."""
    for steps, fit in itertools.product(ONE, (False, True)):
        if (bench.quick and steps > 8) or (fit and not bench.fits(steps)):
            continue

        def make(steps: int = steps, fit: bool = fit) -> Row:
            pipe, models = bench.first_order(), bench.networks.models[-1:]
            levels = MultilevelUNet(models, budget_fraction=1.0, costs=[1.0]).install(pipe)
            pilot = levels.calibrate(pipe, num_inference_steps=steps, fit=fit, progress=False)
            notes = lambda: {"calibration": pilot.cost}  # noqa: E731
            run = lambda count: bench.run(pipe, steps, count)  # noqa: E731
            return Row(run, lambda: steps, models, True, not bench.noisy, notes)

        yield f"{'fitted' if fit else 'multistep'} @ {steps}", make
