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
from multilevel_diffusion.loops.black_box import checked
from multilevel_diffusion.loops.memory import Memory, Streams
from multilevel_diffusion.loops.recording import Answer
from multilevel_sde.fitting.perturbed_runs import Direction, OwnPath, Parts, mixed, weighted_products
from multilevel_sde.pilots.trial import squared

__all__ = ["LoopRun"]


@dataclass(frozen=True)
class _Call:
    """A call along the plan's own path: the answer, the base's value, and what coefficients of this call multiply."""

    index: int
    answer: Tensor
    base: Tensor
    directions: dict[Direction, Tensor]


class _Along:
    """Answers as a plan's parts say, and keeps what its coefficients multiply."""

    def __init__(self, parts: Parts):
        self.parts, self.streams, self.calls = parts, Streams(), []
        self._paths: dict[int, OwnPath] = {}

    def __call__(self, index: int, evaluate: Callable[[int], Tensor]) -> Tensor:
        path = self._paths.setdefault(self.streams.at(index), OwnPath(self.parts))
        path.see(index, evaluate)
        answer = mixed(path.history, self.parts.base[index]) + path.correction(index)
        self.calls.append(_Call(index, answer, path.history[0], dict(path.directions(index))))
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
        return call.answer + mixed(deltas, self.parts.base[index])


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
        """The coefficients that can move, R R' and R (target - y) over the samples of the fit."""
        path, rows = _Along(parts), ~self.held
        end = checked(self.run(path))
        self.cost += parts.plan(len(self.ladder)).cost(self.ladder) * len(self.target)
        directions = list(dict.fromkeys(one for call in path.calls for one in call.directions))
        if not directions:
            return [], torch.zeros(0, 0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
        moved = []
        for direction in directions:
            answer = _Moved(parts, path.calls, direction)
            moved.append((checked(self.run(answer)) - end)[rows].flatten(1)[None])
            self.cost += answer.evaluations * self.ladder.costs[parts.base_level] * len(self.target)
        return directions, *weighted_products((self.target - end)[rows].flatten(1), moved)
