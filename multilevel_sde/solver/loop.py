"""The loops of a solve: over steps that are given one estimate, and over step rules that ask for theirs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from multilevel_sde.cost import Drift
from multilevel_sde.ladder import Ladder
from multilevel_sde.solver.finite import FiniteWatch
from multilevel_sde.steps.rules import Step, StepRule

__all__ = ["Loop", "evaluator"]

_BLOCK = 1024  # steps whose bookkeeping is unpacked at a time, so that memory does not grow with the steps

Noise = Callable[[Tensor, Tensor], Tensor]
Evaluate = Callable[[Tensor, Tensor, Any], dict[int, Tensor]]


@dataclass(frozen=True)
class Loop:
    """What the loops need beside the step.

    Arguments:
        grid: The times, (N + 1,).
        needed: Which networks each evaluation needs, one row of the plan each.
        evaluate: Evaluates them.
        combine: combine(row, values) -> estimate.
        noise: noise(y, t) -> noise of the next step, called once a step; None for an ODE.
        watch: Looks for NaN and infinity, or None.
        progress: Show a progress bar over the steps.
    """

    grid: Tensor
    needed: Tensor
    evaluate: Evaluate
    combine: Callable[[int, dict[int, Tensor]], Tensor]
    noise: Noise | None
    watch: FiniteWatch | None
    progress: bool

    def states(self, step: Step | StepRule, y: Tensor) -> Iterator[Tensor]:
        """Yield the state after each step."""
        return self._by_rule(step, y) if isinstance(step, StepRule) else self._by_step(step, y)

    def _by_step(self, step: Step, y: Tensor) -> Iterator[Tensor]:
        evaluate, combine, noise_of, note = self.evaluate, self.combine, self.noise, self._note()
        for (n, t, s, time_n), needed in zip(self._intervals(y.device), self._rows(), strict=True):
            values = evaluate(y, time_n, needed)
            noise = None if noise_of is None else noise_of(y, time_n)
            y = step(y, combine(n, values), t, s, noise)
            if note is not None:
                note(n, t, values, y)
            values = noise = None  # not alive beside those of the next step: each may be as large as the state
            yield y

    def _by_rule(self, rule: StepRule, y: Tensor) -> Iterator[Tensor]:
        evaluate, combine, noise_of, note = self.evaluate, self.combine, self.noise, self._note()
        counts, rows = rule.evaluations(self.grid), enumerate(self._rows())
        asked, n, t, time_n = 0, 0, 0.0, self.grid[0]

        def estimate(x: Tensor, time: float) -> Tensor:
            nonlocal asked
            asked += 1
            if asked > counts[n]:
                raise _wrong_count(rule, n, counts[n], f"at least {asked}")
            row, needed = next(rows)
            # A fill, not a copy: a copy to a GPU would make the host wait.
            when = time_n if time == t else torch.full((), time, dtype=self.grid.dtype, device=x.device)
            values = evaluate(x, when, needed)
            value = combine(row, values)
            if note is not None:
                note(n, time, values, value)
            return value

        advance = rule.start(self.grid)
        for n, t, s, time_n in self._intervals(y.device):  # `estimate` uses them
            asked = 0
            noise = None if noise_of is None else noise_of(y, time_n)
            y = advance(y, estimate, t, s, noise)
            if asked != counts[n]:
                raise _wrong_count(rule, n, counts[n], str(asked))
            if note is not None:
                note(n, t, {}, y)
            yield y

    def _note(self) -> Callable[[int, float, dict[int, Tensor], Tensor], None] | None:
        return None if self.watch is None else self.watch.note

    def _intervals(self, device: torch.device) -> Iterator[tuple[int, float, float, Tensor]]:
        """Iterate over (n, t, s, t as a 0-d tensor on the device)."""
        steps = self.grid.shape[0] - 1

        def block(first: int) -> Iterator[tuple[int, float, float, Tensor]]:
            times = self.grid[first : first + _BLOCK + 1]
            host, on_device = times.tolist(), times.to(device).unbind()
            return zip(range(first, steps), host, host[1:], on_device, strict=False)

        intervals = itertools.chain.from_iterable(map(block, range(0, steps, _BLOCK)))
        return tqdm(intervals, total=steps, unit="step") if self.progress else intervals  # type: ignore[return-value]

    def _rows(self) -> Iterator[Tensor | list[int]]:
        """Iterate over the levels that each row of the plan evaluates."""
        if self.needed.dim() == 3:
            return iter(self.needed)
        levels, found = range(self.needed.shape[1]), {}

        def level_list(row: tuple[bool, ...]) -> list[int]:
            if row not in found:  # few rows differ
                found[row] = list(itertools.compress(levels, row))
            return found[row]

        def block(first: int) -> Iterable[list[int]]:
            return map(level_list, map(tuple, self.needed[first : first + _BLOCK].tolist()))

        return itertools.chain.from_iterable(map(block, range(0, self.needed.shape[0], _BLOCK)))


def evaluator(ladder: Ladder, *, shared: bool) -> Evaluate:
    """Return evaluate(y, t, needed) -> {level: value}, which calls the drifts that are needed, once each.

    The first value of each drift is checked; of later ones only that they are tensors.

    Arguments:
        ladder: The drifts.
        shared: `needed` lists levels; else it is a bool table (B, K), and values are zero in the samples that do not
            need them.
    """
    drifts = list(ladder.drifts)
    for level, drift in enumerate(ladder.drifts):
        drifts[level] = _checked_once(drifts, level, drift)

    def by_level(y: Tensor, t: Tensor, needed: Iterable[int]) -> dict[int, Tensor]:
        values = {}
        for level in needed:  # a comprehension would cost a call a step
            value = values[level] = drifts[level](y, t)
            if not isinstance(value, Tensor):
                _check_value(level, y, value)
        return values

    def by_sample(y: Tensor, t: Tensor, needed: Tensor) -> dict[int, Tensor]:
        values = {}
        for level, drift in enumerate(drifts):
            rows = needed[:, level].nonzero()[:, 0]
            if not len(rows):
                continue
            chosen = None if len(rows) == len(y) else rows.to(y.device, non_blocking=True)
            value = drift(y if chosen is None else y[chosen], t)
            if not isinstance(value, Tensor):
                _check_value(level, y, value)
            values[level] = value if chosen is None else torch.zeros_like(y).index_copy(0, chosen, value)
        return values

    return by_level if shared else by_sample


def _checked_once(drifts: list[Drift], level: int, drift: Drift) -> Drift:
    """Return the drift with a check of its value, which puts the drift itself into the list after the first call."""

    def first(y: Tensor, t: Tensor) -> Tensor:
        value = drift(y, t)
        _check_value(level, y, value)
        drifts[level] = drift
        return value

    return first


def _check_value(level: int, y: Tensor, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"the drift of level {level + 1} must return a Tensor, got {type(value).__name__}")
    for name in ("shape", "dtype", "device"):
        came, expected = getattr(value, name), getattr(y, name)
        if came != expected:
            raise ValueError(
                f"the drift of level {level + 1} returned {name} {came} for a state of {name} {expected}; "
                f"a drift must return a tensor like its state"
            )


def _wrong_count(rule: StepRule, n: int, stated: int, came: str) -> ValueError:
    return ValueError(
        f"{type(rule).__name__} evaluated the drift {came} times in step {n}, its evaluations() says {stated}; "
        "correct the rule"
    )
