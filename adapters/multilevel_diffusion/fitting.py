"""Plans that are fitted to a ladder of networks, and kept beside it for the budgets that people ask for.

The base level is integrated by SA-Solver, on a grid about uniform in log-SNR; a pilot on that grid proposes levels and
hits, and :func:`multilevel_sde.fit_plan` fits the coefficients to the path of the largest network on the finest grid.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import multilevel_sde as mls
from multilevel_diffusion.multistep import corrected_weights, multistep_weights
from multilevel_diffusion.sampling import Process, batch_for
from multilevel_diffusion.store import DiffusionLadder

__all__ = ["base_coefficients", "fit", "reference", "stored_plan"]

FIRST_SEED = 1_000_000  # far from the seeds that anyone samples
_NEAR = 0.8  # a stored plan is used for budgets up to 1 / _NEAR of its cost


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
        >>> from multilevel_diffusion.store import load_ladder, shipped_ladder
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
    proposed = pilot.plans(budget=budget * images.ladder.costs[-1])
    return mls.fit_plan(images.ladder, start, proposed, target, progress=progress, **process.arguments(seeds))


def stored_plan(images: DiffusionLadder, mode: str, budget: float) -> tuple[mls.Plan, Tensor] | None:
    """Return the dearest fitted plan of a ladder's folder that a budget pays, with its grid, or None.

    Arguments:
        images: The ladder.
        mode: "ddpm" or "ddim".
        budget: Cost of an image in evaluations of the largest network; a plan of less than 0.8 of it is not returned.
    """
    if images.folder is None:
        return None
    found = {}
    for path in Path(images.folder).glob(f"plan_{mode}_*.safetensors"):
        number = re.fullmatch(rf"plan_{mode}_(\d+(?:\.\d+)?)\.safetensors", path.name)
        if number and _NEAR * budget <= float(number[1]) <= budget * (1 + 1e-9):
            found[float(number[1])] = path
    if not found:
        return None
    plan, times = mls.Plan.load_with_times(found[max(found)])
    if times is None:
        raise ValueError(f'"{found[max(found)]}" holds no times; write it again with `multilevel-sde plan --fit`')
    return plan, times


def _device(images: DiffusionLadder) -> torch.device:
    return next(images.networks[0].parameters()).device
