"""What answers the calls of a sampler that cannot be looked into: the top level, recorded; one level; a perturbed run.

A pilot (:mod:`.loops.black_box`) makes its runs with these.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from multilevel_diffusion.loops.memory import Streams
from multilevel_sde.fitting.perturbed_runs import mixed

__all__ = ["Alone", "Answer", "Base", "Call", "Recorded", "Replay"]

Answer = Callable[[int, Callable[[int], Tensor]], Tensor]
"""answer(n, evaluate) -> what the network is said to return at call n; evaluate(k) is the value of level k there."""
Base = Callable[[], Tensor | None]
"""base() -> coefficients a_j(n) of the calls of a run that has begun, (N, order), or None for one step at a time."""


@dataclass(frozen=True)
class Call:
    """A call of the network in a recorded run; tensors on the CPU, in float32 or more."""

    index: int
    answer: Tensor
    cheapest: Tensor
    differences: Tensor  # (K - 1, ...)
    device: torch.device
    dtype: torch.dtype


class Recorded:
    """Answers with the top level, by a multistep method where there is one, and keeps what every level said.

    Arguments:
        levels: K.
        base: See :func:`.loops.black_box.black_box_pilot`.
    """

    def __init__(self, levels: int, base: Base | None = None):
        self.calls: list[Call] = []
        self._times: list[list[float]] = [[] for _ in range(levels)]
        self._method = _Method(base)

    def __call__(self, index: int, evaluate: Callable[[int], Tensor]) -> Tensor:
        """Answer a call; see :data:`Answer`."""
        values, output = [], torch.empty(0)
        for level, times in enumerate(self._times):
            start = time.perf_counter()
            output = evaluate(level).detach()
            values.append(output.cpu().to(torch.promote_types(output.dtype, torch.float32)))
            times.append(time.perf_counter() - start)
        stacked, answer = torch.stack(values), self._method.value(index, values[-1])
        self.calls.append(Call(index, answer, values[0], stacked[1:] - stacked[:-1], output.device, output.dtype))
        return answer.to(output.device, output.dtype)

    @property
    def table(self) -> Tensor | None:
        """The coefficients of its calls, None where it is the sampler's own method."""
        return self._method.table

    @property
    def seconds(self) -> tuple[float, ...]:
        """Seconds of each level at one step: the median of its calls, for all calls of a step."""
        return tuple(statistics.median(times) * len(times) / self.count for times in self._times)

    @property
    def count(self) -> int:
        """Calls of a trajectory; several at one step count once."""
        return 1 + max((call.index for call in self.calls), default=-1)

    def moments(self) -> tuple[Tensor, tuple[float, ...]]:
        """V_k(n), (N, K - 1), and the kurtosis of every difference."""
        sums = torch.zeros(2, self.count, len(self._times) - 1, dtype=torch.float64)
        counts = torch.zeros(self.count, dtype=torch.float64)
        for call in self.calls:
            values = call.differences.double().flatten(1)
            sums[:, call.index] += torch.stack([values.pow(power).mean(1) for power in (2, 4)])
            counts[call.index] += 1
        variance, fourth = sums / counts.clamp_min(1)[:, None]
        kurtosis = fourth.mean(0) / variance.mean(0).clamp_min(1e-300).square()
        return variance, tuple(kurtosis.tolist())


class Alone:
    """Answers with one level at every call, by a multistep method where there is one.

    Arguments:
        level: From 0.
        base: See :func:`.loops.black_box.black_box_pilot`.
    """

    def __init__(self, level: int, base: Base | None = None):
        self.count = 0
        self._level, self._method = level, _Method(base)

    def __call__(self, index: int, evaluate: Callable[[int], Tensor]) -> Tensor:
        """Answer a call; see :data:`Answer`."""
        self.count = index + 1
        return self._method.value(index, evaluate(self._level))

    @property
    def table(self) -> Tensor | None:
        """The coefficients of its calls, None where it is the sampler's own method."""
        return self._method.table


class _Method:
    """A multistep method whose coefficients are asked for at the first call; without any it is the sampler's own."""

    def __init__(self, base: Base | None):
        self.table: Tensor | None = None
        self._base, self._streams = base, Streams()
        self._past: dict[int, list[Tensor]] = {}

    def value(self, index: int, value: Tensor) -> Tensor:
        """The effective value of a call, from those of its last steps."""
        if self._base is not None:
            self.table, self._base = self._base(), None
        if self.table is None:
            return value
        own = self._past.setdefault(self._streams.at(index), [])
        own[:] = [value, *own[: self.table.shape[1] - 1]]
        return mixed(own, self.table[index])


class Replay:
    """Answers with the cheapest level around the recorded path, with one correction added once."""

    def __init__(self, calls: list[Call], perturbed: int, level: int):
        self._calls, self._perturbed, self._level = iter(calls), perturbed, level
        self.evaluated: set[int] = set()

    def __call__(self, index: int, evaluate: Callable[[int], Tensor]) -> Tensor:
        """Answer a call; see :data:`Answer`.

        Raises:
            ValueError: It is not the call of the recorded run.
        """
        call = next(self._calls, None)
        if call is None or call.index != index:
            raise ValueError(
                "the sampler did not make the same calls in two runs; give it a fixed number of steps and seeds"
            )
        value = call.answer
        if index == self._perturbed:
            value = value + call.differences[self._level]
        value = value.to(call.device)
        if index > self._perturbed:
            self.evaluated.add(index)
            value = value + (evaluate(0) - call.cheapest.to(call.device))
        return value.to(call.dtype)
