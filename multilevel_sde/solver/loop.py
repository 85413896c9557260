"""The loops of a solve: over steps that are given one estimate, and over step rules that ask for theirs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from multilevel_sde.solver.evaluate import Evaluate
from multilevel_sde.solver.finite import FiniteWatch
from multilevel_sde.steps.rules import Step, StepRule

__all__ = ["Loop"]

_BLOCK = 1024  # steps whose bookkeeping is unpacked at a time, so that memory does not grow with the steps

Noise = Callable[[Tensor, Tensor], Any]  # noise, or the parts of it for a rule that asks for them


@dataclass(frozen=True)
class Loop:
    """What the loops need beside the step.

    Arguments:
        grid: The times, (N + 1,); where they require a gradient, steps are given tensors.
        needed: Which networks each evaluation needs, one row of the plan each.
        evaluate: Evaluates them.
        combine: combine(row, values) -> estimate.
        noise: noise(y, t) -> noise of the next step, called once a step; None for an ODE.
        watch: Looks for NaN and infinity, or None.
        progress: Show a progress bar over the steps.
        detached: Takes each state off its graph; None leaves it.
        exact: Give steps the times as tensors of the grid, for their gradient.
        dtype: Of the times that drifts see; None is that of the grid.
    """

    grid: Tensor
    needed: Tensor
    evaluate: Evaluate
    combine: Callable[[int, dict[int, Tensor]], Tensor]
    noise: Noise | None
    watch: FiniteWatch | None
    progress: bool
    detached: Callable[[Tensor], Tensor] | None = None
    exact: bool = False
    dtype: torch.dtype | None = None

    def states(self, step: Step | StepRule, y: Tensor) -> Iterator[Tensor]:
        """Yield the state after each step."""
        return self._by_rule(step, y) if isinstance(step, StepRule) else self._by_step(step, y)

    def _by_step(self, step: Step, y: Tensor) -> Iterator[Tensor]:
        evaluate, combine, noise_of, note = self.evaluate, self.combine, self.noise, self._note()
        detached = self.detached
        for (n, t, s, time_n), needed in zip(self._intervals(y.device), self._rows(), strict=True):
            values = evaluate(y, time_n, needed)
            noise = None if noise_of is None else noise_of(y, time_n)
            y = step(y, combine(n, values), t, s, noise)
            if detached is not None:
                y = detached(y)
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
            when = time_n if time == t else self._time(time, x.device)
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
            if self.detached is not None:
                y = self.detached(y)
            if asked != counts[n]:
                raise _wrong_count(rule, n, counts[n], str(asked))
            if note is not None:
                note(n, t, {}, y)
            yield y

    def _note(self) -> Callable[[int, float, dict[int, Tensor], Tensor], None] | None:
        return None if self.watch is None else self.watch.note

    def _time(self, time: float | Tensor, device: torch.device) -> Tensor:
        if isinstance(time, Tensor):
            return time
        # A fill, not a copy: a copy to a GPU would make the host wait.
        return torch.full((), time, dtype=self.dtype or self.grid.dtype, device=device)

    def _intervals(self, device: torch.device) -> Iterator[tuple[int, float, float, Tensor]]:
        """Iterate over (n, t, s, t as a 0-d tensor on the device)."""
        steps = self.grid.shape[0] - 1

        def block(first: int) -> Iterator[tuple[int, float, float, Tensor]]:
            times = self.grid[first : first + _BLOCK + 1]
            on_device = times.to(device, self.dtype or times.dtype).unbind()
            host = on_device if self.exact else times.tolist()
            return zip(range(first, steps), host, host[1:], on_device, strict=False)  # type: ignore[return-value]

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


def _wrong_count(rule: StepRule, n: int, stated: int, came: str) -> ValueError:
    return ValueError(
        f"{type(rule).__name__} evaluated the drift {came} times in step {n}, its evaluations() says {stated}; "
        "correct the rule"
    )
