"""The runs of a fit: a plan along its own path, and a perturbed copy of that path for each coefficient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from multilevel_sde.conditions import Conditions, repeated_rows, some_rows
from multilevel_sde.ladder import Ladder
from multilevel_sde.noise.brownian import Brownian, BrownianPath, increments
from multilevel_sde.noise.diffusion import Diffusion, as_noise
from multilevel_sde.plans.memory import combined, corrections, evaluated_levels
from multilevel_sde.plans.plan import Plan
from multilevel_sde.solver.integrate import solve
from multilevel_sde.steps.rules import Step
from multilevel_sde.times import device_dtype

__all__ = ["Direction", "FitRun", "OwnPath", "Parts", "mixed", "weighted_products"]

_CHUNK = 1 << 20  # numbers in a batch of perturbed states; larger ones are slower and vary more in shape
_ROUNDING = 1e-12  # of the base's largest coefficient
_LAGS = 2  # how many of its last values a correction is fitted with at a hit

Pair = tuple[int, int]


@dataclass(frozen=True)
class Direction:
    """A coefficient that can move: the base's j-th last value against its present one, or a stored correction.

    Attributes:
        step: n.
        pair: (low, high) of a correction, or None for the base.
        source: The step h of the correction's value; j for the base.
    """

    step: int
    pair: Pair | None
    source: int


@dataclass(frozen=True)
class Parts:
    """A plan taken apart: the base's coefficients (N, order), and a table (N, N) for every correction."""

    base_level: int
    base: Tensor
    tables: dict[Pair, Tensor]
    hits: dict[Pair, list[int]]

    @classmethod
    def of(cls, plan: Plan) -> Parts:
        """Take a plan apart; :meth:`plan` puts it together again."""
        steps, weights = plan.steps, plan.weights
        entries = plan.recall.entries if plan.recall is not None else []
        lowest, hits = evaluated_levels(plan)[0], dict(corrections(plan))
        tables = {}
        for low, high in hits:
            table = torch.diag(weights[:, high])
            for n, level, source, value in entries:
                if level >= high:
                    table[n, source] += value
            tables[low, high] = table
        whole = torch.diag(weights[:, lowest])
        for n, _, source, value in entries:  # all levels: what corrections take from the base they give above it
            whole[n, source] += value
        whole[whole.abs() < _ROUNDING * whole.abs().max()] = 0.0  # what corrections take and give cancels to rounding
        order = 1 + max((n - m for n, m in whole.tril(-1).nonzero().tolist()), default=0)
        base = torch.zeros(steps, order, dtype=torch.float64)
        for lag in range(order):
            base[lag:, lag] = whole.diagonal(-lag)
        return cls(lowest, base, tables, hits)

    def padded(self, order: int) -> Parts:
        """Return the parts with so many columns of the base at least: more values for a fit to use."""
        more = max(0, order - self.base.shape[1])
        return replace(self, base=torch.nn.functional.pad(self.base, (0, more)))

    def plan(self, levels: int, *, truncated: bool = False) -> Plan:
        """Return the plan of these parts, for a ladder of so many levels."""
        return combined(self.base_level, self.base, self.tables, levels, truncated=truncated)

    def moved(self, directions: list[Direction], amounts: Tensor) -> Parts:
        """Return the parts with every coefficient moved by its amount."""
        base, tables = self.base.clone(), {pair: table.clone() for pair, table in self.tables.items()}
        for direction, amount in zip(directions, amounts.tolist(), strict=True):
            if direction.pair is None:
                base[direction.step, direction.source] += amount
                base[direction.step, 0] -= amount
            else:
                tables[direction.pair][direction.step, direction.source] += amount
        return Parts(self.base_level, base, tables, self.hits)


class OwnPath:
    """One pass along a plan's path: remembers base values and corrections, and says what a step adds.

    Arguments:
        parts: The plan.
    """

    def __init__(self, parts: Parts):
        self.parts = parts
        self.history: list[Tensor] = []
        self.stored: dict[Pair, dict[int, Tensor]] = {pair: {} for pair in parts.tables}

    def see(self, n: int, evaluate: Callable[[int], Tensor]) -> None:
        """Evaluate what the plan evaluates at step n; evaluate(k) is the value of level k there."""
        values = {self.parts.base_level: evaluate(self.parts.base_level)}
        for (low, high), hits in self.parts.hits.items():
            if n in hits:
                for level in (low, high):
                    if level not in values:
                        values[level] = evaluate(level)
                self.stored[low, high][n] = values[high] - values[low]
        order = self.parts.base.shape[1]
        self.history = [values[self.parts.base_level], *self.history[: order - 1]]

    def correction(self, n: int) -> Tensor | float:
        """What the corrections add at step n."""
        total: Tensor | float = 0.0
        for pair, kept in self.stored.items():
            row = self.parts.tables[pair][n]
            for source, value in kept.items():
                if row[source] != 0:
                    total = total + value * float(row[source])
        return total

    def directions(self, n: int) -> Iterator[tuple[Direction, Tensor]]:
        """The coefficients of step n that can move, each with what it multiplies."""
        for lag in range(1, len(self.history)):
            yield Direction(n, None, lag), self.history[lag] - self.history[0]
        for pair, kept in self.stored.items():
            if n in kept:
                for source in sorted(kept)[-_LAGS:]:
                    yield Direction(n, pair, source), kept[source]


def mixed(history: Sequence[Tensor], coefficients: Tensor) -> Tensor:
    """Return the sum of the last values, the latest first, with these coefficients.

    Example:
        >>> mixed([torch.tensor(3.0), torch.tensor(1.0)], torch.tensor([1.5, -0.5, 0.0]))
        tensor(4.)
    """
    total = history[0] * float(coefficients[0])
    for value, coefficient in zip(history[1:], coefficients[1:].tolist(), strict=False):
        total = total.add(value, alpha=coefficient)
    return total


def weighted_products(left: Tensor, moved: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return R R' and R left, with samples that count 1 / (error + median error): a few that end elsewhere do not rule.

    Arguments:
        left: What is left to the target, (B, dim).
        moved: How far each coefficient moves the ends, chunks (P, B, dim).
    """
    squared = left.square().mean(1)
    weight = (1 / (squared + squared.median()).clamp_min(1e-300)).sqrt()
    flat = torch.cat([part * weight[:, None] for part in moved]).flatten(1).cpu().double()
    return flat @ flat.T, flat @ (left * weight[:, None]).flatten().cpu().double()


class FitRun:
    """The trajectories of a fit on one grid; counts what they cost."""

    def __init__(
        self,
        ladder: Ladder,
        y0: Tensor,
        grid: Tensor,
        target: Tensor,
        held: Tensor,
        step: Step,
        diffusion: Diffusion | None,
        brownian: Brownian | BrownianPath | None,
        conditions: Conditions | None = None,
    ):
        self.ladder, self.y0, self.grid, self.held, self.step = ladder, y0.detach(), grid, held, step
        self.target, self.conditions = target.detach(), conditions or {}
        self.noise_of = None if diffusion is None else as_noise(diffusion)
        self.diffusion, self.brownian = diffusion, brownian
        self.cost = 0.0

    def errors(self, parts: Parts) -> Tensor:
        """Mean squared distance of every sample to its target, (B,)."""
        solution = solve(
            self.ladder,
            self.y0,
            self.grid,
            parts.plan(len(self.ladder)),
            step=self.step,
            diffusion=self.diffusion,
            brownian=self.brownian,
            conditions=self.conditions,
            gradients=False,
            check_finite=False,  # a candidate that diverges is only passed over
        )
        self.cost += solution.stats.cost * len(self.y0)
        return _wide(solution.y - self.target).square().unsqueeze(-1).flatten(1).mean(1).cpu().double()

    def normal_equations(self, parts: Parts) -> tuple[list[Direction], Tensor, Tensor]:
        """Return the coefficients that can move, R R' and R (target - y) over the samples of the fit."""
        rows = (~self.held).nonzero()[:, 0].to(self.y0.device)
        conditions = some_rows(self.conditions, rows)
        path, directions, drifts = OwnPath(parts), [], self.ladder.drifts
        copies = _Copies(self, parts.base_level, parts.base, conditions)
        y = self.y0[rows]
        for n, time, (t, s), noise in self._steps():
            path.see(n, lambda level, y=y, time=time: drifts[level](y, time, **conditions).detach())
            value, correction = mixed(path.history, parts.base[n]), path.correction(n)
            moment = self._noise(y, time, None if noise is None else noise[rows])
            new = list(path.directions(n))
            starts = [self.step(y, value + correction + more, t, s, moment).detach() for _, more in new]
            copies.advance(n, time, (t, s), correction, moment)
            copies.start(starts, path.history)
            directions += [direction for direction, _ in new]
            y = self.step(y, value + correction, t, s, moment).detach()
        self.cost += len(rows) * parts.plan(len(self.ladder)).cost(self.ladder)
        if not directions:
            return [], torch.zeros(0, 0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
        moved = (_wide(part - y).unsqueeze(-1).flatten(2) for part in copies.states)
        return directions, *weighted_products(_wide(self.target[rows] - y).unsqueeze(-1).flatten(1), moved)

    def _steps(self) -> Iterator[tuple[int, Tensor, tuple[float, float], Tensor | None]]:
        noises = increments(self.brownian, self.grid, self.y0)
        for n, interval in enumerate(pairwise(self.grid.tolist())):
            noise = None if self.noise_of is None else next(noises)
            dtype = device_dtype(self.grid.dtype, self.y0.device)
            yield n, self.grid[n].to(self.y0.device, dtype), interval, noise

    def _noise(self, y: Tensor, time: Tensor, increment: Tensor | None) -> Tensor | None:
        return None if self.noise_of is None or increment is None else self.noise_of(y, time, increment).detach()


def _wide(states: Tensor) -> Tensor:
    """The states in float64, where their device has it."""
    return states.to(device_dtype(torch.float64, states.device))


class _Copies:
    """Perturbed copies of a path, carried on by the base level with the corrections of the path itself."""

    def __init__(self, run: FitRun, level: int, base: Tensor, conditions: Conditions):
        self.run, self.level, self.base, self.conditions = run, level, base, conditions
        self.states: list[Tensor] = []  # chunks (P, B, ...)
        self.histories: list[list[Tensor]] = []

    def start(self, starts: list[Tensor], history: list[Tensor]) -> None:
        """Take in copies that leave the path at the end of this step."""
        if not starts:
            return
        states = torch.stack(starts)
        self.states.append(states)
        self.histories.append([value.expand_as(states) for value in history])
        if len(self.states) > 1 and self.states[-2].numel() + states.numel() <= _CHUNK:
            late, old = self.states.pop(), self.histories.pop()
            self.states[-1] = torch.cat([self.states[-1], late])
            self.histories[-1] = [torch.cat(pair) for pair in zip(self.histories[-1], old, strict=False)]

    def advance(
        self, n: int, time: Tensor, interval: tuple[float, float], correction: Tensor | float, noise: Tensor | None
    ) -> None:
        """Take one step with all copies."""
        drift, order = self.run.ladder.drifts[self.level], self.base.shape[1]
        for place, states in enumerate(self.states):
            given = repeated_rows(self.conditions, len(states))
            value = drift(states.flatten(0, 1), time, **given).detach().reshape(states.shape)
            self.histories[place] = [value, *self.histories[place][: order - 1]]
            estimate = mixed(self.histories[place], self.base[n]) + correction
            tiled = None if noise is None else noise.expand_as(states)
            self.states[place] = self.run.step(states, estimate, *interval, tiled).detach()
            self.run.cost += self.run.ladder.costs[self.level] * states.shape[0] * states.shape[1]
