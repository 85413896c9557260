r"""A short trial run: how large each level's correction is, how much it matters at the end, and what it costs.

The pilot follows the path x of the top level on a thinned grid of M candidate steps, evaluating every level there, and
measures for each correction D_k(n) = f^k - f^{k-1}

- its mean square V_k(n) and kurtosis,
- its response R_k(n): the change of the final state caused by adding D_k(n) once, with the step's own weight, carried
  to the end on the cheapest level, all perturbations in one batch,

      z_{n+1} = step(x_n + z_n, f^K(x_n) + f^1(x_n + z_n) - f^1(x_n)) - x_{n+1},

and from the responses the Gram matrix G of :mod:`multilevel_sde.pilots.allocation`, which predicts the error of any
plan to first order and yields the best one. What the first order leaves out is calibrated: plans made from three
quarters of the samples are run on the rest, and the ratio of measured to predicted error is kept. The step error is
measured by running the top level on coarser sub-grids, and the cheapest level on the finest grid.

Errors of nonlinear problems have heavy tails (a sample that falls to another mode is far off), which a mean over a few
samples does not show reliably. So the pilot measures typical errors, means over samples with each error cut at 10 times
the median, and one ratio of mean to typical error over all its runs (their geometric mean), the tail.

References:
    Giles, Acta Numerica 24, 2015 (pilot estimates of variance and cost); docs/theory.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from multilevel_sde.cost import SecondsCost
from multilevel_sde.errors import NonFiniteError
from multilevel_sde.ladder import Ladder
from multilevel_sde.noise.brownian import Brownian, BrownianPath
from multilevel_sde.noise.diffusion import Diffusion
from multilevel_sde.pilots.answers import Calibration
from multilevel_sde.pilots.measure_responses import CALIBRATED_COSTS, Multistep, Rig, typical
from multilevel_sde.pilots.pilot_class import Pilot
from multilevel_sde.steps.rules import Step, euler_maruyama
from multilevel_sde.times import as_times, thinned

__all__ = ["pilot"]

_FOLDS = 4  # parts of the samples, each of which judges plans made from the others
_TIMED = 4  # calls of every level to time it, one of them to warm up


def pilot(
    ladder: Ladder,
    y0: Tensor,
    times: Tensor | Sequence[float],
    *,
    step: Step = euler_maruyama,
    diffusion: Diffusion | None = None,
    brownian: Brownian | BrownianPath | None = None,
    multistep: Multistep | None = None,
    samples: int = 16,
    candidates: int | Tensor = 100,
    limit: float | None = None,
    progress: bool = False,
) -> Pilot:
    """Measure a ladder along a few trajectories.

    Arguments:
        ladder: At least 2 levels.
        y0: Initial states, at least 2 samples along the first dimension.
        times: The finest grid, whose path of the top level is the target.
        step, diffusion, brownian: As for :func:`solve`.
        multistep: A function of a grid (N + 1,) that gives the coefficients (N, order) of a linear multistep method
            with which base levels are integrated, as for :func:`multilevel_sde.multistep`; for Euler steps
            `functools.partial(mls.adams_bashforth_weights, order=2)`. By default each step uses its own value only.
        samples: How many of the samples of y0 to use.
        candidates: Number M of candidate steps, thinned from the grid, or a grid of M + 1 of its times; also the
            largest number of steps of a plan.
        limit: Largest total cost in the ladder's unit; fewer candidates are taken to meet it. The pilot is meant to be
            reused: its cost is `pilot.cost`, and `pilot.share(n, budget)` is its part of a run of n samples.
        progress: Show a progress bar.

    Returns:
        A :class:`Pilot`, which predicts, plans and advises.

    Raises:
        ValueError: Fewer than 2 levels or samples; equal levels; a limit that 8 candidates exceed.
        NonFiniteError: A difference is not finite.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder = mls.Ladder([lambda y, t: -y, lambda y, t: -torch.sin(y)], costs=[1.0, 30.0])
        >>> y0 = torch.linspace(0.2, 2.0, 8)[:, None]
        >>> measured = mls.pilot(ladder, y0, torch.linspace(0.0, 1.0, 201), candidates=50)
        >>> best = measured.plan(budget=300.0)
        >>> solution = mls.solve(ladder, y0, best.times, best.plan)
        >>> exact = 2 * torch.atan(torch.tan(y0 / 2) / torch.e)
        >>> bool((solution.y - exact).abs().max() < 0.05), solution.stats.cost <= 300
        (True, True)
    """
    fine = as_times(times).double()
    y0 = _checked(ladder, y0, samples)
    grid = _candidate_grid(ladder, len(y0), fine, candidates, limit)
    count = len(grid) - 1
    rig = Rig(ladder, y0, step, diffusion, brownian, multistep, progress)
    with torch.no_grad():
        walk = rig.walk(grid)
        gram, grams = _grams(walk.responses, min(_FOLDS, len(y0)))
        if not bool(gram.isfinite().all()):
            raise NonFiniteError(0, float(fine[0]), None, [])
        if float(torch.diag(gram).max()) == 0:
            raise ValueError('"ladder" has levels that are equal along the path; there is nothing to correct')
        tracked, added = rig.calibrate(grid, walk, grams)
        tracks = _size(tracked) <= _size(added)
        runs = tracked if tracks else added
        em_errors = rig.step_errors(grid, walk.final)
        fine_error = rig.fine_error(fine, grid, walk.final)
    seen = [*[errors for *_, errors in runs], *em_errors.values()]
    tails = [float(errors.mean()) / typical(errors) for errors in seen if typical(errors) > 0]
    seconds = SecondsCost(y0, t=float(grid[count // 2]), calls=_TIMED - 1, warmup=1)(ladder.drifts)
    rig.cost += _TIMED * sum(ladder.costs) * len(y0)
    return Pilot(
        costs=ladder.costs,
        unit=ladder.unit,
        seconds=tuple(value / len(y0) for value in seconds),
        times=grid,
        coefficients=walk.coefficients,
        gram=gram,
        variances=walk.variances,
        kurtosis=tuple(walk.kurtosis.tolist()),
        consistency=tuple(walk.consistency.tolist()),
        em_errors={steps: typical(errors) for steps, errors in em_errors.items()} | {count: 0.0},
        fine_error=fine_error,
        calibration=tuple(Calibration(promised, first, typical(errors)) for promised, first, errors in runs),
        tail=statistics.geometric_mean(tails) if tails else 1.0,
        cost=rig.cost,
        samples=len(y0),
        tracks=tracks,
        multistep={n: rig.base(grid[thinned(count, n)]) for n in range(2, count + 1)} if multistep else {},
    )


def _checked(ladder: Ladder, y0: Tensor, samples: int) -> Tensor:
    if len(ladder) < 2:
        raise ValueError('"ladder" has one level; a pilot needs at least 2, one of them cheaper')
    if y0.dim() == 0 or min(len(y0), samples) < 2:
        given = 0 if y0.dim() == 0 else len(y0)
        raise ValueError(
            f'"samples" must be at least 2 (better 16), got samples={samples} and {given} initial states in "y0"'
        )
    return y0[:samples].detach()


def _size(runs: list[tuple[float, float, Tensor]]) -> float:
    """How large the errors of the runs are, each counting by its ratio."""
    return sum(math.log(max(typical(errors), 1e-300)) for *_, errors in runs)


def _candidate_grid(
    ladder: Ladder, samples: int, fine: Tensor, candidates: int | Tensor, limit: float | None
) -> Tensor:
    if not isinstance(candidates, Tensor):
        return fine[thinned(len(fine) - 1, _candidates_within(ladder, samples, len(fine) - 1, candidates, limit))]
    grid = as_times(candidates).double()
    if len(grid) < 9 or not bool(torch.isin(grid, fine).all()) or not torch.equal(grid[[0, -1]], fine[[0, -1]]):
        raise ValueError(
            '"candidates" must be a number, or a grid of at least 8 steps made of times of "times" with its first and '
            f"its last; got {len(grid) - 1} steps from {float(grid[0]):.6g} to {float(grid[-1]):.6g}"
        )
    if _candidates_within(ladder, samples, len(fine) - 1, len(grid) - 1, limit) < len(grid) - 1:
        raise ValueError(f'"limit" is {limit}, too little for the {len(grid) - 1} steps of "candidates"; give a number')
    return grid


def _candidates_within(ladder: Ladder, samples: int, steps: int, candidates: int, limit: float | None) -> int:
    """The largest number of candidates, at most the given one, whose pilot costs at most the limit."""
    count = min(candidates, steps)
    if count < 2:
        raise ValueError(f'"candidates" must be at least 2 and the grid have as many steps, got {candidates}, {steps}')
    if limit is None:
        return count
    top, base, levels = ladder.costs[-1], ladder.costs[0], len(ladder)

    def cost(count: int) -> float:
        coarse = sum(n for n in (4, 8, 14, count // 2, count // 4) if n < count)
        calibration = 2 * sum(c for c in CALIBRATED_COSTS if c < 0.9 * count)  # in two forms
        walk = (count + _TIMED) * sum(ladder.costs) + count**2 / 2 * (levels - 1) * base
        double = 2 * count if count < steps else 0
        return samples * (walk + (coarse + calibration + double) * top + (steps + 3 * count) * base)

    while count > 8 and cost(count) > limit:
        count -= 1
    if cost(count) > limit:
        raise ValueError(
            f'"limit" is {limit:.6g}, a pilot of {samples} samples and {count} candidates costs {cost(count):.6g} '
            f"{ladder.unit}; raise the limit, take fewer samples, or reuse a saved pilot"
        )
    return count


def _grams(responses: Tensor, folds: int) -> tuple[Tensor, list[Tensor]]:
    """The Gram matrix of all samples, and those without each fold; fold n is every n-th sample."""
    samples = responses.shape[2]
    counts = [len(range(fold, samples, folds)) for fold in range(folds)]
    parts = [_gram(responses[:, :, fold::folds]) * count for fold, count in enumerate(counts)]
    total = torch.stack(parts).sum(0)
    return total / samples, [(total - part) / (samples - count) for part, count in zip(parts, counts, strict=True)]


def _gram(responses: Tensor) -> Tensor:
    """Mean inner products of the responses, level by level: index k M + n; float64 (n, n)."""
    steps, levels, samples, size = responses.shape
    total = torch.zeros(steps * levels, steps * levels, dtype=torch.float64)
    for sample in range(samples):
        rows = responses[:, :, sample].permute(1, 0, 2).reshape(steps * levels, size).double().cpu()
        total += rows @ rows.T
    return total / (samples * size)
