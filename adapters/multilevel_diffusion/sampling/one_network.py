"""One network fitted: a multistep method of its own for few steps, at no cost of a sample.

The coefficients of a multistep method (SA-Solver, DPM-Solver++) are those of a polynomial through the last estimates.
Those that bring this network nearest to its own path are others, and :func:`multilevel_sde.fit_plan` finds them from a
few trajectories. See docs/one_model.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from torch import Tensor

import multilevel_sde as mls
from multilevel_diffusion.networks.image_ladders import ImageLadder
from multilevel_diffusion.process.multistep import REACH, corrected_weights, midpoint_moments, multistep_weights
from multilevel_diffusion.process.reverse_process import Process
from multilevel_diffusion.sampling.trajectories import Trajectories
from multilevel_sde.conditions import Conditions

__all__ = ["alone_plans", "base_coefficients", "fit_alone", "grid_kinds"]

_ORDER = 4  # values that a fitted method uses
_LOWEST = (-5.1, -4.3, -3.5)  # log-SNR of the second time: after a fit, grids that leave the noise sooner err less


def grid_kinds(process: Process) -> list[Callable[[int], Tensor]]:
    """Return the grids that a fit tries, as functions of the steps: one uniform in time, three about so in log-SNR.

    Example:
        >>> from multilevel_diffusion import CosineSchedule, uniform
        >>> process = Process(CosineSchedule(), 0.0, uniform(CosineSchedule(), 100))
        >>> [round(float(kind(5)[1]), 2) for kind in grid_kinds(process)]
        [0.8, 0.97, 0.94, 0.89]
    """
    return [process.grid, *(partial(process.log_snr_grid, lowest=lowest) for lowest in _LOWEST)]


def base_coefficients(process: Process, times: Tensor) -> Tensor:
    """Return the coefficients of the base on a grid, those of SA-Solver.

    The predictor is of order 2, and of order 1 where a step is more than three times as long in log-SNR as the last.
    For the ODE a corrector of order 2 follows (PEC).

    Example:
        >>> from multilevel_diffusion import CosineSchedule, uniform
        >>> process = Process(CosineSchedule(), 0.0, uniform(CosineSchedule(), 10))
        >>> base_coefficients(process, process.grid(5)).sum(1)
        tensor([1.0000, 1.0000, 1.0000, 1.0000, 1.0000], dtype=torch.float64)
    """
    if process.tau == 0:
        return corrected_weights(process.schedule, process.tau, times, 2, 2, reach=REACH)
    return multistep_weights(process.schedule, process.tau, times, 2, reach=REACH)


def alone_plans(images: ImageLadder, process: Process, steps: int) -> list[mls.PilotPlan]:
    """Return plans of the largest network alone in so many steps: six methods on four grids.

    The grids are those of :func:`grid_kinds`. The methods are Euler's (DDIM, DDPM), DPM-Solver++ 2M,
    and SA-Solver's predictors and correctors of orders 2 and 3.

    Example:
        >>> from multilevel_diffusion import load_ladder, shipped_ladder, uniform
        >>> digits = load_ladder(shipped_ladder("digits"))
        >>> plans = alone_plans(digits, Process(digits.schedule, 0.0, uniform(digits.schedule, 100)), 5)
        >>> len(plans), plans[0].levels, plans[0].plan.evaluations.tolist()
        (24, (4,), [0, 0, 0, 0, 5])
    """
    on = process.schedule, process.tau
    methods = [
        lambda times: multistep_weights(*on, times, 1),
        lambda times: multistep_weights(*on, times, 2, moments=midpoint_moments),
        *(partial(lambda times, order: multistep_weights(*on, times, order), order=order) for order in (2, 3)),
        *(partial(lambda times, order: corrected_weights(*on, times, order, order), order=order) for order in (2, 3)),
    ]
    grids = []
    for kind in grid_kinds(process):
        with suppress(ValueError):  # the finest grid has not so many distinct times in log-SNR
            grids.append(kind(steps))
    return mls.single_plans(images.ladder, grids, methods)


def fit_alone(
    images: ImageLadder,
    process: Process,
    steps: int,
    *,
    samples: int = 32,
    conditions: Conditions | None = None,
    target: Tensor | None = None,
    known: Trajectories | None = None,
    progress: bool = False,
) -> mls.FittedPlan:
    """Fit the largest network alone, or the only one, in so many steps.

    Arguments:
        images: The ladder; one network is enough.
        process: What is solved.
        steps: Evaluations of the network.
        samples: Trajectories, a quarter of them to judge; their seeds start at 1,000,000.
        conditions: What the denoiser is told about each sample; by default, with classes, every class in turn.
        target: :func:`.trajectories.reference` of those seeds, where it is known already.
        known: The samples, in place of these three.
        progress: Show progress bars.

    Raises:
        ValueError: Fewer than 8 samples, steps that the finest grid has not; as :func:`multilevel_sde.fit_plan`.

    Example:
        >>> from multilevel_diffusion import load_ladder, shipped_ladder, uniform
        >>> digits = load_ladder(shipped_ladder("digits"))
        >>> process = Process(digits.schedule, 0.0, uniform(digits.schedule, 40))
        >>> fitted = fit_alone(digits, process, 5, samples=16)
        >>> fitted.plan.evaluations.tolist(), fitted.held_out[1] < fitted.held_out[0]
        ([0, 0, 0, 0, 5], True)
    """
    candidates = alone_plans(images, process, steps)
    if samples < 8:
        raise ValueError(f'"samples" must be at least 8 (better 32), got {samples}')
    at = known or Trajectories.of(images, process, samples, conditions, target, progress=progress)
    options: dict[str, Any] = {"order": _ORDER, "tried": len(_LOWEST) + 1, "progress": progress}
    return mls.fit_plan(images.ladder, at.start, candidates, at.target, **options, **at.given)
