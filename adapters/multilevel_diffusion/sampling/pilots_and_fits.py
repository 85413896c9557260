"""Pilots and fitted plans of a ladder of networks.

The base level is integrated by SA-Solver, on a grid about uniform in log-SNR; a pilot on that grid proposes levels and
hits, and :func:`multilevel_sde.fit_plan` fits the coefficients to the path of the largest network on the finest grid.
The largest network alone is fitted too (:mod:`.one_network`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import multilevel_sde as mls
from multilevel_diffusion.networks.image_ladders import ImageLadder, labels_in_turn
from multilevel_diffusion.process.grids import uniform
from multilevel_diffusion.process.reverse_process import MODES, Process
from multilevel_diffusion.sampling.one_network import base_coefficients, fit_alone
from multilevel_diffusion.sampling.trajectories import FIRST_SEED, Trajectories
from multilevel_sde.arguments import as_number
from multilevel_sde.conditions import Conditions, some_rows
from multilevel_sde.pilots.trial import squared, typical

__all__ = ["expected_seconds", "fit", "run_pilot"]

_PLANS, _MANY = 8, 1000  # plans of a pilot that a fit begins with; more than a pilot has
_MEASURED = 16  # trajectories of the pilot of a fit
_TRIED = 8  # trajectories by which the SDE's grid is chosen


def run_pilot(
    images: ImageLadder,
    mode: str | Process,
    *,
    steps: int = 1000,
    samples: int = 32,
    candidates: int | None = None,
    conditions: Conditions | None = None,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> mls.Pilot:
    """Measure a ladder of networks.

    The base level of its plans is integrated by SA-Solver's predictor and corrector of order 2 for the ODE, on a grid
    about uniform in log-SNR, and by its predictor of order 2 for the SDE. The SDE's grid is uniform in time or about
    uniform in log-SNR, whichever brings the cheapest network nearer to its own finest path in an eighth of the
    candidates. Single networks are tried on grids of the other kind too.

    Arguments:
        images: The ladder, one of networks or an `OwnLadder`.
        mode: A key of `MODES`, or a process of your own, whose finest grid it then is.
        steps: Steps of the finest, uniform grid of a mode.
        samples: Trajectories; their seeds start at 1,000,000.
        candidates: Largest number of steps of a plan; by default 100, for the ODE 56.
        conditions: What the denoisers are told about each sample; by default, with classes, every class in turn.
        device: Where the networks are; by default the ladder's.
        progress: Show a progress bar.

    Raises:
        ValueError: Fewer than 2 steps or candidates; as :func:`multilevel_sde.pilot`.

    Example:
        >>> from multilevel_diffusion import load_ladder, shipped_ladder
        >>> digits = load_ladder(shipped_ladder("digits"))
        >>> run_pilot(digits, "ddim", steps=10, samples=2, candidates=8).steps
        8
    """
    if isinstance(mode, Process):
        process, steps = mode, len(mode.fine_times) - 1
    else:
        process = Process(images.schedule, MODES[mode], uniform(images.schedule, steps))
    count = (56 if process.tau == 0 else 100) if candidates is None else candidates
    _check(("steps", steps, 2), ("candidates", count, 2))
    seeds = range(FIRST_SEED, FIRST_SEED + max(0, samples))
    start = process.start(seeds, images.image_shape, dtype=images.dtype, device=device or images.device)
    told = labels_in_turn(images, len(seeds)) if conditions is None else conditions
    grid, other = process.log_snr_grid, None
    if process.tau > 0 and 8 <= count < steps and len(seeds) > 1:
        tried = start[:_TRIED], seeds[:_TRIED], some_rows(told, slice(_TRIED))
        grid, other = sorted(
            (process.grid, process.log_snr_grid), key=lambda kind: _error(images, process, kind, count // 8, *tried)
        )
    return mls.pilot(
        images.ladder,
        start,
        process.fine_times,
        samples=samples,
        candidates=grid(count) if 8 <= count < steps else min(count, steps),
        multistep=lambda times: base_coefficients(process, times),
        other_grid=other if 8 <= count <= steps // 2 else None,
        progress=progress,
        conditions=told or None,
        **process.arguments(seeds),
    )


def _error(
    images: ImageLadder,
    process: Process,
    grid: Callable[[int], Tensor],
    steps: int,
    start: Tensor,
    seeds: range,
    told: Conditions,
) -> float:
    """Typical squared distance of the cheapest network in so many steps to its own finest path."""
    ladder = mls.Ladder(images.ladder.drifts[:1], [1.0])
    known: dict[str, Any] = process.arguments(seeds) | {"conditions": told or None, "gradients": False}
    few, fine = (
        mls.solve(ladder, start, times, mls.em_plan(ladder, times), **known).y
        for times in (grid(max(2, steps)), process.fine_times)
    )
    return typical(squared(few, fine))


def fit(
    images: ImageLadder,
    process: Process,
    budget: float,
    ladder: mls.Ladder | None = None,
    *,
    samples: int = 32,
    steps: int = 28,
    conditions: Conditions | None = None,
    target: Tensor | None = None,
    pilot: mls.Pilot | None = None,
    progress: bool = False,
) -> mls.FittedPlan:
    """Fit a plan for a budget: the ladder's, or that of its largest network alone where this errs less.

    Both are fitted on the same samples, and judged on those kept out. A ladder may have one network only.

    Arguments:
        images: The ladder.
        process: What is solved.
        budget: Cost of an image in evaluations of the largest network.
        ladder: The ladder at the prices by which the budget counts; by default `images.ladder`.
        samples: Trajectories, a quarter of them to judge; their seeds start at 1,000,000.
        steps: Steps of the grid of the ladder's plans; plans with half as many are tried too. In a ladder of several
            the network alone is fitted in at most so many.
        conditions: What the denoisers are told about each sample; by default, with classes, every class in turn.
        target: :func:`.trajectories.reference` of those seeds, where it is known already.
        pilot: Measurements of the ladder, where there are some; its plans of at most so many steps are tried.
        progress: Show progress bars.

    Raises:
        ValueError: Fewer than 8 samples, fewer than 2 steps or more than the finest grid has, a budget that pays no
            plan; as :func:`multilevel_sde.pilot` and :func:`multilevel_sde.fit_plan`.

    Example:
        >>> from multilevel_diffusion import uniform
        >>> from multilevel_diffusion.networks.store import load_ladder, shipped_ladder
        >>> digits = load_ladder(shipped_ladder("digits"))
        >>> process = Process(digits.schedule, 0.0, uniform(digits.schedule, 40))
        >>> fitted = fit(digits, process, 5.0, samples=8, steps=8)
        >>> fitted.plan.cost(digits.ladder) <= 5 * digits.ladder.costs[-1], len(fitted.plan.evaluations)
        (True, 5)
    """
    budget = as_number("budget", budget)
    _check(("samples", samples, 8), ("steps", steps, 2))
    if steps >= len(process.fine_times):
        raise ValueError(f'"steps" must be at most the {len(process.fine_times) - 1} of the finest grid, got {steps}')
    prices = (ladder or images.ladder).in_evaluations("evaluations of the largest network")
    fine, most = len(process.fine_times) - 1, budget * (1 + 1e-9)
    more = f"and at most the {fine} of the finest grid" if len(prices) == 1 else f"or a plan of {steps} steps"
    wanted = f'"budget" must pay an evaluation of the network, {more}, got {budget:g}'
    if not prices.costs[0] <= most < (fine + 1 if len(prices) == 1 else math.inf):
        raise ValueError(wanted)
    known = Trajectories.of(images, process, samples, conditions, target, progress=progress)
    alone, found = math.floor(most), []
    if len(images.ladder) > 1:
        measured = pilot or mls.pilot(
            images.ladder,
            known.start,
            process.fine_times,
            samples=min(_MEASURED, samples),
            candidates=process.log_snr_grid(steps),
            multistep=lambda times: base_coefficients(process, times),
            progress=progress,
            **known.given,
        )
        proposed = [one for one in measured.priced(prices).plans(budget=budget, count=_MANY) if one.plan.steps <= steps]
        if proposed := proposed[:_PLANS]:
            fitted = mls.fit_plan(images.ladder, known.start, proposed, known.target, progress=progress, **known.given)
            found.append(fitted)
    if 1 <= alone <= (steps if found else fine):
        found.append(fit_alone(images, process, alone, known=known, progress=progress))
    if not found:
        raise ValueError(wanted)
    best = min(found, key=lambda one: one.held_out[1])
    return replace(best, cost=sum(one.cost for one in found))


def expected_seconds(
    images: ImageLadder, process: Process, budget: float, *, samples: int = 32, steps: int = 28
) -> float:
    """Return about how long :func:`fit` takes, to a factor of two, by the time of a few calls of each level.

    The targets take the largest network on the finest grid. The fit of that network alone carries its perturbations to
    the end on it: those grow with the square of the steps. The pilot runs every level alone, and carries its own on the
    cheapest level, as the fit of the ladder does.

    Arguments:
        images: The ladder.
        process: What is solved.
        budget: Evaluations of the largest network.
        samples: Trajectories of the fit.
        steps: Steps of the grid of the ladder's plans; one network has as many as the budget pays.

    Example:
        >>> from multilevel_diffusion import load_ladder, shipped_ladder, uniform
        >>> digits = load_ladder(shipped_ladder("digits"))
        >>> process = Process(digits.schedule, 0.0, uniform(digits.schedule, 100))
        >>> few, many = (expected_seconds(digits, process, 5.0, steps=steps) for steps in (10, 90))
        >>> 0 < few < many
        True
    """
    fine, costs = len(process.fine_times) - 1, images.ladder.costs
    x = process.start(range(_MEASURED), images.image_shape, dtype=images.dtype, device=images.device)
    timer = mls.SecondsCost(x, float(process.fine_times[fine // 2]), 3, 1, labels_in_turn(images, _MEASURED) or None)
    seconds = [one / _MEASURED for one in timer(images.ladder.drifts)]
    most = steps if len(costs) > 1 else fine
    expected = (fine + 5 * min(budget, most) ** 2) * samples * seconds[-1]
    if len(costs) > 1:
        alone = sum(3 * min(fine, steps * costs[-1] / cost) * one for cost, one in zip(costs, seconds, strict=True))
        carried = seconds[0] * steps**2
        expected += min(_MEASURED, samples) * (alone + carried * (len(costs) - 1) / 2) + 3 * samples * carried
    return expected


def _check(*numbers: tuple[str, int, int]) -> None:
    """Refuse a number below its least, before anything runs."""
    for name, value, least in numbers:
        if value < least:
            raise ValueError(f'"{name}" must be at least {least}, got {value}')
