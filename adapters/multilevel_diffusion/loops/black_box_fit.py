r"""Fitting the coefficients of a plan inside a sampler that cannot be looked into (:mod:`.loops.black_box`).

As :mod:`multilevel_sde.fitting`, with runs of the sampler in place of steps: one along the plan's own path, then one
for each coefficient that can move, in which the answer at its call is changed by what the coefficient multiplies, and
the base level follows around the recorded path,

    F'(m) = F(m) + sum_j a_j(m) (f^b(x'_{m-j}) - f^b(x_{m-j})).

For a ladder these are runs of the cheap base. For one network they are runs of that network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import multilevel_sde as mls
from multilevel_diffusion.loops.black_box import Answer, checked, mixed
from multilevel_diffusion.loops.memory import Memory, Streams
from multilevel_sde.fitting.perturbed_runs import LAGS, Direction, Pair, Parts
from multilevel_sde.pilots.trial import squared

__all__ = ["LoopRun"]


@dataclass(frozen=True)
class _Call:
    """A call along the plan's own path: the answer, the base's value, and what coefficients of this call multiply."""

    index: int
    answer: Tensor
    base: Tensor
    directions: dict[Direction, Tensor]


class _Path:
    """Answers as a plan's parts say, and keeps what its coefficients multiply."""

    def __init__(self, parts: Parts):
        self.parts, self.streams, self.calls = parts, Streams(), []
        self._history: dict[int, list[Tensor]] = {}
        self._stored: dict[int, dict[Pair, dict[int, Tensor]]] = {}

    def __call__(self, index: int, evaluate: Callable[[int], Tensor]) -> Tensor:
        parts, stream = self.parts, self.streams.at(index)
        history = self._history.setdefault(stream, [])
        stored = self._stored.setdefault(stream, {pair: {} for pair in parts.tables})
        values = {parts.base_level: evaluate(parts.base_level)}
        for pair, hits in parts.hits.items():
            if index in hits:
                for level in pair:
                    if level not in values:
                        values[level] = evaluate(level)
                stored[pair][index] = values[pair[1]] - values[pair[0]]
        history[:] = [values[parts.base_level], *history[: parts.base.shape[1] - 1]]
        answer = mixed(history, parts.base[index].tolist())
        directions = {Direction(index, None, lag): history[lag] - history[0] for lag in range(1, len(history))}
        for pair, kept in stored.items():
            for source, value in kept.items():
                if float(parts.tables[pair][index, source]) != 0:
                    answer = answer + value * float(parts.tables[pair][index, source])
            if index in kept:
                directions |= {Direction(index, pair, source): kept[source] for source in sorted(kept)[-LAGS:]}
        self.calls.append(_Call(index, answer, history[0], directions))
        return answer


class _Moved:
    """Answers as along the path, with one coefficient moved by one; the base level follows."""

    def __init__(self, parts: Parts, calls: Sequence[_Call], direction: Direction):
        self.parts, self.calls, self.direction = parts, iter(calls), direction
        self.streams, self.evaluations = Streams(), 0
        self._deltas: dict[int, list[Tensor]] = {}

    def __call__(self, index: int, evaluate: Callable[[int], Tensor]) -> Tensor:
        call, stream = next(self.calls, None), self.streams.at(index)
        if call is None or call.index != index:
            raise ValueError(
                "the sampler did not make the same calls in two runs; give it a fixed number of steps and seeds"
            )
        if index < self.direction.step:
            return call.answer
        if index == self.direction.step:
            self._deltas[stream] = [torch.zeros_like(call.base)]
            return call.answer + call.directions[self.direction]
        self.evaluations += stream == 0
        deltas = self._deltas[stream]
        deltas[:] = [evaluate(self.parts.base_level) - call.base, *deltas[: self.parts.base.shape[1] - 1]]
        return call.answer + mixed(deltas, self.parts.base[index].tolist())


class LoopRun:
    """The runs of a fit inside a sampler; counts what they cost.

    Arguments:
        run: Runs the sampler, as for :func:`.loops.black_box.black_box_pilot`.
        ladder: The costs of the levels.
        target: Final states to be near, one for each sample; every fourth is kept out of the fit.
    """

    def __init__(self, run: Callable[[Answer], Tensor], ladder: mls.Ladder, target: Tensor):
        self.run, self.ladder, self.target = run, ladder, checked(target)
        self.held = torch.arange(len(target)) % 4 == 3
        self.cost = 0.0

    def errors(self, parts: Parts) -> Tensor:
        """Mean squared distance of every sample to its target, (B,)."""
        plan = parts.plan(len(self.ladder))
        self.cost += plan.cost(self.ladder) * len(self.target)
        return squared(self.run(Memory(plan).estimate).detach().cpu().double(), self.target)

    def normal_equations(self, parts: Parts) -> tuple[list[Direction], Tensor, Tensor]:
        """The coefficients that can move, R R' and R (target - y) over the samples of the fit.

        Samples count with 1 / (error + median error), as in :mod:`multilevel_sde.fitting`.
        """
        path, rows = _Path(parts), ~self.held
        end = checked(self.run(path))
        self.cost += parts.plan(len(self.ladder)).cost(self.ladder) * len(self.target)
        directions = list(dict.fromkeys(one for call in path.calls for one in call.directions))
        if not directions:
            return [], torch.zeros(0, 0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
        left = (self.target - end)[rows].flatten(1)
        size = left.square().mean(1)
        weight = (1 / (size + size.median()).clamp_min(1e-300)).sqrt()[:, None]
        moved = []
        for direction in directions:
            answer = _Moved(parts, path.calls, direction)
            moved.append((((checked(self.run(answer)) - end)[rows]).flatten(1) * weight).flatten())
            self.cost += answer.evaluations * self.ladder.costs[parts.base_level] * len(self.target)
        flat = torch.stack(moved)
        return directions, flat @ flat.T, flat @ (left * weight).flatten()
