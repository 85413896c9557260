r"""A short trial run: how large each level's correction is, how much it matters at the end, and what it costs.

The pilot follows the path x of the top level on a thinned grid of M candidate steps, evaluating every level there, and
measures for each correction D_k(n) = f^k - f^{k-1}

- its mean square V_k(n) and kurtosis,
- its response R_k(n): the change of the final state caused by adding D_k(n) once, with the step's own weight, carried
  to the end on the cheapest level, as many perturbations in one batch as memory allows,

      z_{n+1} = step(x_n + z_n, f^K(x_n) + f^1(x_n + z_n) - f^1(x_n)) - x_{n+1},

and from the responses the Gram matrix G of :mod:`multilevel_sde.pilots.allocation`, which predicts the error of any
plan to first order and yields the best one. What the first order leaves out is calibrated: plans made from three
quarters of the samples are run on the rest, and the ratio of measured to predicted error is kept. The step error is
measured by running the top level on coarser sub-grids, and the cheapest level on the finest grid.

Errors of nonlinear problems have heavy tails (a sample that falls to another mode is far off), which a mean over a few
samples does not show reliably. So the pilot measures typical errors, means over samples with each error cut at 10 times
the median, and the ratio of the mean to that, the tail (:mod:`multilevel_sde.pilots.isotone`).

References:
    Giles, Acta Numerica 24, 2015 (pilot estimates of variance and cost); docs/theory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from multilevel_sde.arguments import as_integer, as_number
from multilevel_sde.conditions import as_conditions, naming_conditions
from multilevel_sde.cost import SecondsCost
from multilevel_sde.ladder import Ladder
from multilevel_sde.noise.brownian import Brownian, BrownianPath
from multilevel_sde.noise.diffusion import Diffusion
from multilevel_sde.pilots.answers import Calibration
from multilevel_sde.pilots.cautions import OTHER_ROWS, disagreement, warn_of_batches, warn_of_random
from multilevel_sde.pilots.grids import refined
from multilevel_sde.pilots.isotone import tails
from multilevel_sde.pilots.measure_errors import (
    Finals,
    calibration_budgets,
    grids_of_plans,
    kept_out_runs,
    single_runs,
    single_steps,
    target_runs,
)
from multilevel_sde.pilots.measure_responses import chunk_for, copies_cost, walk
from multilevel_sde.pilots.pilot_class import Pilot
from multilevel_sde.pilots.trial import Multistep, Trial, typical
from multilevel_sde.solver.check_arguments import check_problem
from multilevel_sde.steps.rules import Step, StepRule, euler_maruyama, plan_rows
from multilevel_sde.times import as_times, thinned

__all__ = ["pilot"]

_FOLDS = 4  # parts of the samples, each of which judges plans made from the others
_TIMED = 4  # calls of every level to time it, one of them to warm up
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"


def pilot(
    ladder: Ladder,
    y0: Tensor,
    times: Tensor | Sequence[float],
    *,
    step: Step | StepRule = euler_maruyama,
    diffusion: Diffusion | None = None,
    brownian: Brownian | BrownianPath | None = None,
    conditions: Mapping[str, Tensor] | None = None,
    multistep: Multistep | None = None,
    samples: int = 32,
    candidates: int | Tensor | Callable[..., Tensor] = 100,
    other_grid: Callable[[int], Tensor] | None = None,
    limit: float | None = None,
    batch: int | None = None,
    progress: bool | None = None,
) -> Pilot:
    """Measure a ladder along a few trajectories.

    The samples are spread evenly over the batch by index, each with its own noise and conditions.

    Arguments:
        ladder: At least 2 levels.
        y0: Initial states, at least 2 samples along the first dimension.
        times: The finest grid, whose path of the top level is the target.
        step, diffusion, brownian, conditions: As for :func:`solve`. A step rule asks for several estimates in a step;
            the rows of its plans are those of :func:`multilevel_sde.plan_rows`, on the candidates only.
        multistep: A function of a grid (N + 1,) that gives the coefficients (N, order) of a linear multistep method
            with which base levels are integrated, as for :func:`multilevel_sde.multistep`; for Euler steps
            `functools.partial(mls.adams_bashforth_weights, order=2)`. By default each step uses its own value only.
        samples: How many of the samples of y0 to use.
        candidates: Number M of candidate steps, thinned from the grid, or a grid of M + 1 of its times; or a rule
            that chooses one, such as :class:`EqualErrors`. Also the largest number of steps of a plan.
        other_grid: A function of a number of steps that gives another grid of so many steps, made of times of `times`.
            Single levels are run there too, as plans should be compared with the best of them.
        limit: Largest total cost in the ladder's unit; fewer candidates are taken to meet it. The pilot is meant to be
            reused: its cost is `pilot.cost`, and `pilot.share(n, budget)` is its part of a run of n samples.
        batch: Largest number of rows in one call of the cheapest drift on perturbed copies; by default as many as need
            256 MiB, by the measured need of one call.
        progress: Show a progress bar with the expected time; by default where the pilot takes more than two seconds.

    Returns:
        A :class:`Pilot`, which predicts, plans and advises.

    Warns:
        UserWarning: A drift that gives another value when evaluated again, or with other samples beside; two halves of
            the samples that disagree by more than a factor 3.

    Raises:
        ValueError: Fewer than 2 levels or samples; equal levels; a limit that 8 candidates exceed; a `brownian` that
            does not repeat itself.
        NonFiniteError: A level is not finite on the path; it names level, step, time and samples.

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
    given = as_conditions(conditions, check_problem(ladder, y0, diffusion, brownian))
    _check(ladder, y0, as_integer("samples", samples), step, multistep, other_grid)
    limit = None if limit is None else as_number("limit", limit)
    if batch is not None and as_integer("batch", batch) < 1:
        raise ValueError(f'"batch" must be at least 1 row, got {batch}; leave it out to measure what fits')
    trial = Trial(ladder, y0, step, diffusion, brownian, given, samples, multistep)
    with naming_conditions(given, OTHER_ROWS):
        trial.try_once(fine)
    copies = chunk_for(trial, batch)
    grid = _candidate_grid(trial, fine, candidates, limit, copies, other_grid is not None)
    count, expected = len(grid) - 1, _expected_cost(trial, fine, len(grid) - 1, copies, other_grid is not None)
    others = {} if other_grid is None else {n: _other(fine, other_grid, n) for n in range(2, count + 1)}
    delay = 0 if progress else 2
    name = f"pilot, about {expected / ladder.costs[-1]:.3g} evaluations of the top level a sample"
    total, silent = expected / ladder.costs[-1], progress is False
    with (
        tqdm(desc=name, total=total, disable=silent, delay=delay, bar_format=_BAR) as bar,
        naming_conditions(given, OTHER_ROWS),
    ):
        trial.bar = bar
        track = walk(trial, grid, copies)
        warn_of_random(track.random_levels)
        warn_of_batches(trial, float(grid[count // 2]), track.random_levels)
        gram, grams = _grams(track.responses, min(_FOLDS, len(trial)))
        finals = Finals(trial, fine, grid, others)
        finals.known[len(ladder) - 1, count, False, False] = track.final
        target = finals.target()
        singles = list(single_runs(finals, target))
        runs = list(kept_out_runs(trial, grid, track, grams, target))
    timer = SecondsCost(trial.seen, t=float(grid[count // 2]), calls=_TIMED - 1, warmup=1, conditions=trial.conditions)
    seconds = timer(trial.ladder.drifts)
    trial.charge(_TIMED * sum(ladder.costs) * len(trial))
    found = tails([errors for _, errors in singles] + [run[4] for run in runs])
    longer = sorted({one.steps for one, _ in singles if one.multistep and one.steps > count})
    known = [*range(1, count + 1), *longer] if multistep else []
    return Pilot(
        costs=ladder.costs,
        unit=ladder.unit,
        seconds=tuple(value / len(trial) for value in seconds),
        times=grid,
        fine_times=fine,
        coefficients=track.coefficients,
        gram=gram,
        variances=track.variances,
        kurtosis=tuple(track.kurtosis.tolist()),
        random_levels=track.random_levels,
        singles=tuple(
            one._replace(error=typical(errors), tail=tail)
            for (one, errors), tail in zip(singles, found[: len(singles)], strict=True)
        ),
        calibration=tuple(
            Calibration(*run[:4], typical(run[4]), tail) for run, tail in zip(runs, found[len(singles) :], strict=True)
        ),
        cost=trial.cost,
        samples=len(trial),
        multistep={n: trial.base(refined(fine, grid, n)) for n in known},
        other_grids=others,
        other_multistep={n: trial.base(times) for n, times in others.items()} if multistep else {},
        disagreement=disagreement(track.responses),
    )


def _check(
    ladder: Ladder, y0: Tensor, samples: int, step: Step | StepRule, multistep: Multistep | None, other_grid: object
) -> None:
    if len(ladder) < 2:
        raise ValueError('"ladder" has one level; a pilot needs at least 2, one of them cheaper')
    if y0.dim() == 0 or min(len(y0), samples) < 2:
        given = 0 if y0.dim() == 0 else len(y0)
        raise ValueError(
            f'"samples" must be at least 2 (better 32), got samples={samples} and {given} initial states in "y0"'
        )
    if not (multistep is None or callable(multistep)):
        raise TypeError(
            f'"multistep" must be a function of a grid that gives coefficients (N, order), got '
            f"{type(multistep).__name__}; for example functools.partial(mls.adams_bashforth_weights, order=2)"
        )
    if not (other_grid is None or callable(other_grid)):
        raise TypeError(
            f'"other_grid" must be a function of a number of steps that gives a grid, got {type(other_grid).__name__}; '
            "for example lambda n: times[index_of(n)]"
        )
    if isinstance(step, StepRule) and multistep is not None:
        raise ValueError('"multistep" belongs to steps with one estimate, got a StepRule as "step"; leave out one')


def _other(fine: Tensor, other_grid: Callable[[int], Tensor], steps: int) -> Tensor:
    grid = as_times(other_grid(steps)).double()
    if (
        len(grid) != steps + 1
        or not bool(torch.isin(grid, fine).all())
        or not torch.equal(grid[[0, -1]], fine[[0, -1]])
    ):
        raise ValueError(
            f'"other_grid" must give {steps} steps of "times" from its first to its last, got {len(grid) - 1} from '
            f"{float(grid[0]):.6g} to {float(grid[-1]):.6g}; return times[index]"
        )
    return grid


def _candidate_grid(
    trial: Trial,
    fine: Tensor,
    candidates: int | Tensor | Callable[..., Tensor],
    limit: float | None,
    copies: int,
    twice: bool,
) -> Tensor:
    if callable(candidates) and not isinstance(candidates, Tensor):
        candidates = trial.chosen(candidates, fine)
    if not isinstance(candidates, Tensor):
        count = min(as_integer("candidates", candidates), len(fine) - 1)
        if candidates < 1:
            raise ValueError(f'"candidates" must be at least 1, got {candidates}')
        return fine[thinned(len(fine) - 1, _within(trial, fine, count, limit, copies, twice))]
    grid = as_times(candidates).double()
    if not bool(torch.isin(grid, fine).all()) or not torch.equal(grid[[0, -1]], fine[[0, -1]]):
        raise ValueError(
            '"candidates" must be a number, or a grid made of times of "times" with its first and its last; got '
            f"{len(grid) - 1} steps from {float(grid[0]):.6g} to {float(grid[-1]):.6g}"
        )
    if _within(trial, fine, len(grid) - 1, limit, copies, twice) < len(grid) - 1:
        raise ValueError(
            f'"limit" is {limit:g}, too little for the {len(grid) - 1} steps of "candidates"; give a number'
        )
    return grid


def _within(trial: Trial, fine: Tensor, count: int, limit: float | None, copies: int, twice: bool) -> int:
    """The largest number of candidates, at most the given one, whose pilot costs at most the limit."""
    if limit is None:
        return count
    if not limit > 0:
        raise ValueError(f'"limit" must be a positive cost, got {limit}; leave it out for no limit')
    cost = lambda count: len(trial) * _expected_cost(trial, fine, count, copies, twice)  # noqa: E731
    while count > 8 and cost(count) > limit:
        count -= 1
    if cost(count) > limit:
        raise ValueError(
            f'"limit" is {limit:.6g}, a pilot of {len(trial)} samples and {count} candidates costs {cost(count):.6g} '
            f"{trial.ladder.unit}; raise the limit, take fewer samples, or reuse a saved pilot"
        )
    return count


def _expected_cost(trial: Trial, fine: Tensor, count: int, copies: int, twice: bool) -> float:
    """What a pilot costs at most, for one sample in the ladder's unit; `twice`: with single levels elsewhere too."""
    ladder, finest = trial.ladder, len(fine) - 1
    costs, levels = ladder.costs, len(ladder)
    a_step = len(plan_rows(trial.step, fine[thinned(finest, count)])) // count
    walked = (a_step * (count + 1) + _TIMED + 3.5) * sum(costs)
    walked += copies_cost(a_step * count, levels, copies, isinstance(trial.step, StepRule)) * costs[0]
    methods = 1 if trial.coefficients is None else 2
    alone = sum(
        a_step * costs[level] * steps * (2 if twice and 2 <= steps <= count else 1)
        for level in range(levels)
        for steps, _ in single_steps(ladder, level, finest, count, methods > 1)
    )
    others = target_runs(ladder, finest, count) if 2 * count < finest else ()
    target = sum(a_step * (2 * steps + 3 * count) * costs[k] for k, steps in others)
    calibration = sum(
        (methods + 1) * (steps * costs[0] + budget)
        for steps in grids_of_plans(a_step * count, a_step == 1)
        for budget in calibration_budgets(costs, steps, coarse=steps < a_step * count)
    )
    return walked + alone - a_step * count * costs[-1] + target + calibration  # the path itself is one of those alone


def _grams(responses: Tensor, folds: int) -> tuple[Tensor, list[Tensor]]:
    """The Gram matrix of all samples, and those without each fold; fold n is every n-th sample.

    Raises:
        ValueError: Responses that are infinite, or all zero.
    """
    samples = responses.shape[2]
    counts = [len(range(fold, samples, folds)) for fold in range(folds)]
    parts = [_gram(responses[:, :, fold::folds]) * count for fold, count in enumerate(counts)]
    total = torch.stack(parts).sum(0)
    if not bool(total.isfinite().all()):
        raise ValueError(
            '"ladder" has a cheapest level that diverges where it carries small perturbations to the end; leave '
            'level 1 out, or take more "candidates"'
        )
    if float(torch.diag(total).max()) == 0:
        raise ValueError('"ladder" has levels that are equal along the path; there is nothing to correct')
    return total / samples, [(total - part) / (samples - count) for part, count in zip(parts, counts, strict=True)]


def _gram(responses: Tensor) -> Tensor:
    """Mean inner products of the responses, level by level: index k M + n; float64 (n, n)."""
    steps, levels, samples, size = responses.shape
    total = torch.zeros(steps * levels, steps * levels, dtype=torch.float64)
    for sample in range(samples):
        rows = responses[:, :, sample].permute(1, 0, 2).reshape(steps * levels, size).cpu().double()
        total += rows @ rows.T
    return total / (samples * size)
