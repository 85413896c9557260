"""Pilots and fitted plans of a ladder of networks.

The base level is integrated by SA-Solver, on a grid about uniform in log-SNR; a pilot on that grid proposes levels and
hits, and :func:`multilevel_sde.fit_plan` fits the coefficients to the path of the largest network on the finest grid.
"""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

import multilevel_sde as mls
from multilevel_diffusion.networks.store import DiffusionLadder
from multilevel_diffusion.process.grids import uniform
from multilevel_diffusion.process.multistep import corrected_weights, multistep_weights
from multilevel_diffusion.process.reverse_process import MODES, Process
from multilevel_diffusion.sampling.samples import batch_for

__all__ = ["base_coefficients", "fit", "reference", "run_pilot"]

FIRST_SEED = 1_000_000  # far from the seeds that anyone samples


def base_coefficients(process: Process, times: Tensor) -> Tensor:
    """Return the coefficients of the base on a grid, those of SA-Solver.

    The predictor is of order 2; for the ODE a corrector of order 2 follows (PEC).

    Example:
        >>> from multilevel_diffusion import CosineSchedule, uniform
        >>> process = Process(CosineSchedule(), 0.0, uniform(CosineSchedule(), 10))
        >>> base_coefficients(process, process.grid(5)).sum(1)
        tensor([1.0000, 1.0000, 1.0000, 1.0000, 1.0000], dtype=torch.float64)
    """
    if process.tau == 0:
        return corrected_weights(process.schedule, process.tau, times, 2, 2)
    return multistep_weights(process.schedule, process.tau, times, 2)


def run_pilot(
    images: DiffusionLadder,
    mode: str,
    *,
    steps: int = 1000,
    samples: int = 32,
    candidates: int | None = None,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> mls.Pilot:
    """Measure a ladder of networks.

    The base level of its plans is integrated by SA-Solver's predictor and corrector of order 2 for the ODE, on a grid
    about uniform in log-SNR, and by its predictor of order 2 for the SDE, on one uniform in time.

    Arguments:
        images: The ladder.
        mode: A key of `MODES`.
        steps: Steps of the finest, uniform grid.
        samples: Trajectories; their seeds start at 1,000,000.
        candidates: Largest number of steps of a plan; by default 100, for the ODE 56.
        device: Where the networks are.
        progress: Show a progress bar.

    Raises:
        ValueError: As :func:`multilevel_sde.pilot`.

    Example:
        >>> from multilevel_diffusion import load_ladder, shipped_ladder
        >>> digits = load_ladder(shipped_ladder("digits"))
        >>> run_pilot(digits, "ddim", steps=10, samples=2, candidates=8).steps
        8
    """
    process = Process(images.schedule, MODES[mode], uniform(images.schedule, steps))
    seeds = range(FIRST_SEED, FIRST_SEED + max(0, samples))
    start = process.start(seeds, images.image_shape, device=device)
    count = candidates or (56 if process.tau == 0 else 100)
    return mls.pilot(
        images.ladder,
        start,
        process.fine_times,
        samples=samples,
        candidates=process.log_snr_grid(count) if process.tau == 0 and 8 <= count < steps else min(count, steps),
        multistep=lambda times: base_coefficients(process, times),
        progress=progress,
        **process.arguments(seeds),
    )


def reference(images: DiffusionLadder, process: Process, seeds: range, *, progress: bool = False) -> Tensor:
    """Return where the largest network ends on the finest grid, (B, C, H, W)."""
    plan = mls.em_plan(images.ladder, process.fine_times)
    size, out = min(8, batch_for(images.image_shape)), []
    for first in tqdm(range(0, len(seeds), size), desc="targets", unit="batch", disable=not progress):
        part = seeds[first : first + size]
        start = process.start(part, images.image_shape, device=_device(images))
        out.append(
            mls.solve(images.ladder, start, process.fine_times, plan, gradients=False, **process.arguments(part)).y
        )
    return torch.cat(out)


def fit(
    images: DiffusionLadder,
    process: Process,
    budget: float,
    *,
    samples: int = 32,
    steps: int = 28,
    target: Tensor | None = None,
    progress: bool = False,
) -> mls.FittedPlan:
    """Fit a plan for a budget.

    Arguments:
        images: The ladder.
        process: What is solved.
        budget: Cost of an image in evaluations of the largest network.
        samples: Trajectories, a quarter of them to judge; their seeds start at 1,000,000.
        steps: Steps of the grid; plans with half as many are tried too.
        target: :func:`reference` of those seeds, where it is known already.
        progress: Show progress bars.

    Raises:
        ValueError: As :func:`multilevel_sde.pilot` and :func:`multilevel_sde.fit_plan`.

    Example:
        >>> from multilevel_diffusion import uniform
        >>> from multilevel_diffusion.networks.store import load_ladder, shipped_ladder
        >>> digits = load_ladder(shipped_ladder("digits"))
        >>> process = Process(digits.schedule, 0.0, uniform(digits.schedule, 40))
        >>> fitted = fit(digits, process, 5.0, samples=8, steps=8)
        >>> fitted.plan.cost(digits.ladder) <= 5 * digits.ladder.costs[-1], fitted.plan.steps
        (True, 8)
    """
    seeds = range(FIRST_SEED, FIRST_SEED + samples)
    start = process.start(seeds, images.image_shape, device=_device(images))
    target = reference(images, process, seeds, progress=progress) if target is None else target
    pilot = mls.pilot(
        images.ladder,
        start,
        process.fine_times,
        samples=min(16, samples),
        candidates=process.log_snr_grid(steps),
        multistep=lambda times: base_coefficients(process, times),
        progress=progress,
        **process.arguments(seeds),
    )
    proposed = pilot.in_evaluations("evaluations of the largest network").plans(budget=budget)
    return mls.fit_plan(images.ladder, start, proposed, target, progress=progress, **process.arguments(seeds))


def _device(images: DiffusionLadder) -> torch.device:
    return next(images.networks[0].parameters()).device
