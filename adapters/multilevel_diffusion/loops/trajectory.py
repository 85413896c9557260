"""What a network that hides a ladder must find out for itself: which call of which trajectory is this?

A foreign sampling loop calls one network, net(x, t), and says nothing about steps. :class:`Trajectory` numbers the
calls from the times and states that it is shown; :class:`Meter` counts the evaluations, per trajectory and in total.
The coefficients of every call are in :mod:`multilevel_diffusion.loops.rows`.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["Meter", "Stats", "Trajectory", "Turns", "Use"]

_SAME = 1e-6  # relative difference of noise levels that are the same
_ANEW = 20.0  # a trajectory starts at a noise level at least so many times that at which the previous one ended


class Trajectory:
    """Number the calls of a sampling loop from the times and states it passes.

    Within a trajectory times run one way. The rules, with t the time of this call and t' that of the previous one:

    1. The same state object at the same time: the same step, asked again (the second half of a guidance pair).
    2. t = t' with another state: the next call (schedulers that repeat times), except at the second call, where no
       sampler repeats a time: that is a new trajectory.
    3. t against the direction of the first two calls by more than the factor `rise`, or back at the first time
       exactly: a new trajectory, whether or not the last one was finished.
    4. Otherwise the next call.

    So a new trajectory goes unnoticed only where it begins beyond the point at which an interrupted one stopped; who
    knows better calls `reset` or `place`.

    Arguments:
        rise: By which factor times may run backwards within a trajectory; 1.001 forgives rounding (needed by KDPM2
            ancestral), EDM's churn needs sqrt(2).

    Attributes:
        position: Position of the last call in its trajectory, -1 before the first.
        number: Trajectories begun so far.

    Raises:
        ValueError: `rise` is below 1.

    Example:
        >>> import torch
        >>> trajectory, x = Trajectory(), [torch.zeros(1) for _ in range(6)]
        >>> [trajectory.visit(t, x[n]) for n, t in enumerate([999, 500, 500, 1])]
        [0, 1, 2, 3]
        >>> trajectory.visit(1, x[3]), trajectory.visit(999, x[4]), trajectory.visit(500, x[5])
        (3, 0, 1)
    """

    def __init__(self, rise: float = 1.001):
        if not rise >= 1:
            raise ValueError(f'"rise" must be a factor of at least 1, got {rise}')
        self.rise = rise
        self.number = 0
        self.reset()

    def reset(self) -> None:
        """Forget the current trajectory: the next call is the first of a new one."""
        self.position = -1
        self._first = self._last = math.nan
        self._direction = 0
        self._state: Callable[[], Tensor | None] = _nothing
        self._version: int | None = None

    def visit(self, time: float, state: Tensor, *, rises: bool = False) -> int:
        """Return the position (0, 1, ...) of a call at this time with this state; rule 3 not for times that rise."""
        if not self._repeats(time, state):
            if self.position < 0 or time == self._first or (not rises and self._turns(time)):
                self.reset()
                self.number += 1
                self._first = time
            elif self._direction == 0 and time != self._last:
                self._direction = 1 if time > self._last else -1
            self.position += 1
        self._last, self._state, self._version = time, weakref.ref(state), _version(state)
        return self.position

    def place(self, position: int) -> int:
        """Take the position from someone who knows it; at one before the last, a trajectory begins."""
        if self.position < 0 or position < self.position:
            self.number += 1
        self.position = position
        return position

    def resume(self, time: float) -> None:
        """Number by times from now on; the last call, the first of its trajectory, was at this one."""
        self._first = self._last = time

    def __getstate__(self) -> dict[str, Any]:
        """Forget which object the last state was, as it is another in another process."""
        return self.__dict__ | {"_state": _nothing, "_version": None}

    def _repeats(self, time: float, state: Tensor) -> bool:
        return time == self._last and self._state() is state and self._version == _version(state)

    def _turns(self, time: float) -> bool:
        if self._direction < 0:
            return time > self._last * self.rise
        return self._direction > 0 and time * self.rise < self._last


def _nothing() -> None:
    return None


def _version(state: Tensor) -> int | None:
    """How often a tensor was changed in place; inference tensors do not count."""
    return None if state.is_inference() else state._version


class Turns:
    """Notice a sampler whose noise levels go back and forth as those of rejected steps do, and warn.

    Churn goes back too, but only to below the call before the last (except once, where it sets in), and a new
    trajectory starts at least `_ANEW` times as far as the last one ended. A way back to the very noise level before the
    last is a rejection, and so are two other ways back.
    """

    def __init__(self) -> None:
        self._begin([])

    def _begin(self, calls: list[float]) -> None:
        self._last_two, self._direction, self._strange, self._warned = calls, 0.0, 0, False

    def note(self, sigma: float) -> None:
        """Look at the noise level of a call."""
        calls = self._last_two
        if not calls:
            self._begin([sigma])
            return
        way = sigma - calls[-1]
        if way == 0:
            return
        self._direction = self._direction or way
        if way * self._direction < 0:
            if max(sigma, calls[-1]) >= _ANEW * min(sigma, calls[-1]):
                self._begin([sigma])
                return
            if abs(way) >= abs(calls[-1] - calls[0]) * (1 - _SAME):
                self._suspect(sure=len(calls) == 2 and math.isclose(sigma, calls[0], rel_tol=_SAME))
        self._last_two = [calls[-1], sigma]

    def _suspect(self, *, sure: bool) -> None:
        self._strange += 1
        if (sure or self._strange == 2) and not self._warned:
            self._warned = True
            warnings.warn(
                "the noise levels go back and forth: if this sampler adapts its steps, use one with fixed steps, as "
                "adaptive steps reject the corrections and return the cheap level's answer; after a deliberate restart "
                "call reset()",
                stacklevel=6,
            )


@dataclass(frozen=True)
class Use:
    """What a number of calls evaluated.

    Attributes:
        calls: Calls of the ladder, each of which plain sampling would have answered with the top level.
        evaluations: Evaluations of each level.
        costs: Cost of one evaluation of each level.
    """

    calls: int
    evaluations: tuple[int, ...]
    costs: tuple[float, ...]

    @property
    def cost(self) -> float:
        """Total cost in the unit of `costs`."""
        return math.fsum(n * cost for n, cost in zip(self.evaluations, self.costs, strict=True))

    @property
    def fraction(self) -> float:
        """Cost relative to the top level at every call; NaN before the first call."""
        return self.cost / (self.calls * self.costs[-1]) if self.calls else math.nan

    def __str__(self) -> str:
        return f"{self.calls} calls, evaluations {list(self.evaluations)}, {self.fraction:.1%} of the top level's cost"


@dataclass(frozen=True)
class Stats:
    """What a ladder did: the current (or last) trajectory, and everything since the counters were reset.

    Example:
        >>> meter = Meter(costs=(1.0, 8.0))
        >>> for levels in ([0], [0, 1]):
        ...     meter.count(levels, number=1)
        >>> print(meter.stats)
        last trajectory: 2 calls, evaluations [2, 1], 62.5% of the top level's cost
        total of 1: 2 calls, evaluations [2, 1], 62.5% of the top level's cost
    """

    trajectory: Use
    total: Use
    trajectories: int

    def __str__(self) -> str:
        return f"last trajectory: {self.trajectory}\ntotal of {self.trajectories}: {self.total}"


class Meter:
    """Count evaluations.

    Arguments:
        costs: Cost of one evaluation of each level; it may be set anew.
    """

    def __init__(self, costs: Sequence[float]):
        self.costs = tuple(costs)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._number: int | None = None
        self._trajectories = self._calls = self._calls_before = 0
        self._total = [0 for _ in self.costs]
        self._before = [0 for _ in self.costs]

    def count(self, levels: Iterable[int], number: int) -> None:
        """Count one call that evaluated these levels, in the trajectory of this number."""
        if number != self._number:
            self._number = number
            self._trajectories += 1
            self._calls_before, self._before = self._calls, list(self._total)
        self._calls += 1
        for level in levels:
            self._total[level] += 1

    @property
    def stats(self) -> Stats:
        """The counts so far."""
        current = tuple(total - before for total, before in zip(self._total, self._before, strict=True))
        return Stats(
            Use(self._calls - self._calls_before, current, self.costs),
            Use(self._calls, tuple(self._total), self.costs),
            self._trajectories,
        )
