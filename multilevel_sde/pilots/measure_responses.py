r"""The walk of a pilot: along the top level's path, and with every correction added once, to the end.

A step, plain or a rule, asks for one estimate or several, one for each row of a plan. At row r the path has the
estimate F(r) = f^K, and the correction D_k(r) = f^k - f^{k-1}. A perturbed copy is given F(r) + D_k(r) once, and from
then on f^1 at its own state plus the rest, F - f^1, of the path. What is left of it at the end is the response R_k(r).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multilevel_sde.conditions import repeated_rows
from multilevel_sde.errors import NonFiniteError
from multilevel_sde.pilots.peak import peak_bytes
from multilevel_sde.pilots.trial import Trial
from multilevel_sde.solver.estimators import Telescoping
from multilevel_sde.solver.finite import is_finite
from multilevel_sde.steps.rules import Advance, StepRule
from multilevel_sde.times import device_dtype

__all__ = ["Walk", "chunk_for", "copies_cost", "walk"]

_MEMORY = 1 << 28  # bytes that one call of the cheapest drift on perturbed copies may need by default
_NUMBERS = 1 << 20  # numbers in the states of such a call at most: larger ones are slower
_TWICE = 1e-3  # relative difference of two evaluations of a drift above which it is random


@dataclass(frozen=True)
class Walk:
    """What the run along the top level's path gave, for M' rows and S samples."""

    responses: Tensor  # (M', K - 1, S, dim)
    variances: Tensor  # (M', K - 1)
    kurtosis: Tensor  # (K - 1,)
    coefficients: Tensor  # (M',)
    random_levels: tuple[int, ...]
    final: Tensor


@dataclass(frozen=True)
class _Row:
    """What the path was given at one row of the plan."""

    time: Tensor
    state: Tensor  # as the drifts saw it
    estimate: Tensor
    rest: Tensor  # without the cheapest level
    corrections: Tensor  # (K - 1, S, ...)


@dataclass(frozen=True)
class _Stretch:
    """One step of the path: from y to `following`."""

    first: int  # its first row
    t: float
    s: float
    y: Tensor
    increment: Any  # with its area where the rule asks for it; None for ODEs
    following: Tensor


def walk(trial: Trial, grid: Tensor, copies: int) -> Walk:
    """Follow the path of the top level, then carry every perturbation to the end, some rows at a time.

    Arguments:
        trial: The problem.
        grid: The candidates.
        copies: How many perturbed copies of the samples go into one call of the cheapest drift.

    Raises:
        NonFiniteError: A level is not finite on the path.
    """
    rows, stretches, random_levels = _path(trial, grid)
    final = stretches[-1].following
    jobs = list(itertools.product(range(len(rows)), range(len(trial.ladder) - 1)))
    parts = [_carried(trial, grid, rows, stretches, jobs[at : at + copies]) for at in range(0, len(jobs), copies)]
    responses = torch.cat(parts).reshape(len(rows), len(trial.ladder) - 1, len(trial), -1)
    moments = torch.stack([torch.stack([_moments(one) for one in row.corrections]) for row in rows])  # (M', K - 1, 2)
    variance = moments[..., 0].mean(0)
    return Walk(
        responses,
        moments[..., 0],
        moments[..., 1].mean(0) / variance.clamp_min(1e-300).square(),
        _coefficients(trial, rows, stretches),
        random_levels,
        final,
    )


def _path(trial: Trial, grid: Tensor) -> tuple[list[_Row], list[_Stretch], tuple[int, ...]]:
    """The path of the top level with all levels evaluated at every row."""
    ladder, top = trial.ladder, len(trial.ladder) - 1
    drifts = ladder.drifts  # asked for once, as by solve: they may remember the trajectory
    combine = Telescoping().start(trial.alone(grid, top))
    noise = None if trial.diffusion is None else trial.increments(grid)
    rows, stretches, random_levels, make = [], [], (), trial.noise_maker(grid)

    def evaluate(x: Tensor, time: Tensor) -> list[Tensor]:
        trial.charge(sum(ladder.costs) * len(trial))
        return [drift(x, time, **trial.conditions).detach() for drift in drifts]

    def estimate(x: Tensor, time: float) -> Tensor:
        nonlocal random_levels
        when = _time_on(time, grid, x)
        values = evaluate(x, when)
        _check_finite(trial, values, len(stretches), time)
        if not rows:
            random_levels = _differing(values, evaluate(x, when))
        value = combine(len(rows), {top: values[-1]})
        rows.append(
            _Row(when, x, value, value - values[0], torch.stack([b - a for a, b in itertools.pairwise(values)]))
        )
        return value

    advance, y = _advance(trial, grid), trial.y0
    for t, s in itertools.pairwise(grid.tolist()):
        first, increment = len(rows), None if noise is None else next(noise)
        following = advance(y, estimate, t, s, _noise(make, y, t, grid, increment)).detach()
        stretches.append(_Stretch(first, t, s, y, increment, following))
        y = following
    if _remembers(trial):  # then the drift refuses copies if what it remembers is the plan's
        drifts[0](_tiled(trial.seen, 2), rows[-1].time, **repeated_rows(trial.conditions, 2))
        trial.charge(2 * ladder.costs[0] * len(trial))
    return rows, stretches, random_levels


def _remembers(trial: Trial) -> bool:
    """Whether drifts remember a trajectory: such a ladder makes them anew whenever they are asked for."""
    return trial.ladder.drifts[0] is not trial.ladder.drifts[0]


def _carried(
    trial: Trial, grid: Tensor, rows: list[_Row], stretches: list[_Stretch], jobs: Sequence[tuple[int, int]]
) -> Tensor:
    """The responses of some (row, correction) pairs, (copies, S, dim)."""
    copies, cheapest = len(jobs), trial.ladder.drifts[0]
    own = torch.tensor([row for row, _ in jobs])
    shape, make = (copies, *rows[0].estimate.shape), trial.noise_maker(grid)
    beside = int(_remembers(trial))  # the path runs as one more copy, so that both remember the same
    conditions = repeated_rows(trial.conditions, copies + beside)

    def given(r: int, x: Tensor) -> Tensor:
        """The estimates of all copies at a row; those before their own are still on the path."""
        row = rows[r]
        values = row.estimate.expand(shape).clone()
        on_their_own = (own < r).to(x.device)
        if bool((own < r).any()):
            trial.charge(trial.ladder.costs[0] * (len(x) + beside * len(trial)))
            cheap = cheapest(torch.cat([row.state, x]) if beside else x, row.time, **conditions).detach()
            cheap = cheap.reshape(copies + beside, *row.estimate.shape)
            rest = row.estimate - cheap[0] if beside else row.rest
            values[on_their_own] = (cheap[beside:] + rest)[on_their_own]
        for copy in (own == r).nonzero()[:, 0].tolist():
            values[copy] += row.corrections[jobs[copy][1]]
        return values.flatten(0, 1)

    # A rule may remember earlier steps, so its copies start with it; a plain step does not.
    start = 0 if isinstance(trial.step, StepRule) else int(own.min())
    advance, moved = _advance(trial, grid), _tiled(stretches[start].y, copies)
    for stretch in stretches[start:]:
        place = itertools.count(stretch.first)
        increment = _tiled(stretch.increment, copies)
        noise = _noise(make, moved, stretch.t, grid, increment)

        def estimate(x: Tensor, time: float, place: Iterator[int] = place) -> Tensor:
            return given(next(place), x)

        moved = advance(moved, estimate, stretch.t, stretch.s, noise).detach()
    return moved.reshape(copies, len(trial), -1) - stretches[-1].following.reshape(1, len(trial), -1)


def _advance(trial: Trial, grid: Tensor) -> Advance:
    """The step as a rule that asks for its estimates."""
    step = trial.step
    if isinstance(step, StepRule):
        return step.start(grid)
    return lambda y, F, t, s, noise: step(y, F(y, t), t, s, noise)


def _noise(make: Callable[..., Any] | None, y: Tensor, t: float, grid: Tensor, increment: Any) -> Any:
    if make is None:
        return None
    noise = make(y, _time_on(t, grid, y), increment)
    return noise.detach() if isinstance(noise, Tensor) else noise


def _time_on(time: float, grid: Tensor, x: Tensor) -> Tensor:
    return torch.full((), time, dtype=device_dtype(grid.dtype, x.device), device=x.device)


def _coefficients(trial: Trial, rows: list[_Row], stretches: list[_Stretch]) -> Tensor:
    """How much of the estimate enters the state in the step of each row: the step's own, seen on the path."""
    if isinstance(trial.step, StepRule):
        return torch.ones(len(rows), dtype=torch.float64)
    found = []
    for row, stretch in zip(rows, stretches, strict=True):
        direction = row.estimate if bool((row.estimate != 0).any()) else torch.ones_like(row.estimate)
        ends = [trial.step(stretch.y, n * direction, stretch.t, stretch.s, _zeros(trial, stretch)) for n in (1.0, 0.0)]
        change, unit = (ends[0] - ends[1]).detach().cpu().double().flatten(), direction.cpu().double().flatten()
        found.append(float(change @ unit / (unit @ unit)))
    return torch.tensor(found, dtype=torch.float64)


def _zeros(trial: Trial, stretch: _Stretch) -> Tensor | None:
    return None if trial.diffusion is None else torch.zeros_like(stretch.y)


def _check_finite(trial: Trial, values: list[Tensor], step: int, time: float) -> None:
    for level, value in enumerate(values):
        if not is_finite(value):
            finite = value.isfinite().reshape(len(value), -1).all(1)
            wrong = (~finite).nonzero()[:, 0].tolist()
            raise NonFiniteError(step, time, level, [trial.rows[place] for place in wrong])


def _differing(values: list[Tensor], again: list[Tensor]) -> tuple[int, ...]:
    """The levels that do not give the same value twice."""
    return tuple(
        level
        for level, (a, b) in enumerate(zip(values, again, strict=True))
        if float((a - b).abs().max()) > _TWICE * float(a.abs().max())
    )


def chunk_for(trial: Trial, batch: int | None) -> int:
    """How many perturbed copies of the samples go into one call of the cheapest drift."""
    samples = len(trial)
    if batch is not None:
        return max(1, batch // samples)
    time = _time_on(0.0, torch.zeros((), dtype=torch.float64), trial.seen)
    need = peak_bytes(lambda: trial.ladder.drifts[0](trial.seen, time, **trial.conditions))
    trial.charge(trial.ladder.costs[0] * samples)
    return max(1, min(_NUMBERS // max(1, trial.seen.numel()), _MEMORY // max(1, need)))


def copies_cost(rows: int, levels: int, copies: int, rule: bool) -> int:
    """How many evaluations of the cheapest level a sample takes to carry all perturbations, at most."""
    jobs = rows * (levels - 1)
    total = 0
    for at in range(0, jobs, copies):
        part = min(copies, jobs - at)
        total += part * (rows if rule else rows - at // (levels - 1))
    return total


def _tiled(value: Any, copies: int) -> Any:
    """The samples of a batch, repeated for every copy; each of a pair; nothing of None."""
    if isinstance(value, tuple):
        return tuple(_tiled(one, copies) for one in value)
    return None if value is None else value.repeat(copies, *[1] * (value.dim() - 1))


def _moments(difference: Tensor) -> Tensor:
    values = difference.to(device_dtype(torch.float64, difference.device))
    return torch.stack([values.square().mean(), values.pow(4).mean()]).cpu().double()
