"""What a level costs inside the solver, in seconds: its own time and that of noise, estimator and update."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from multilevel_sde.cost import Drift
from multilevel_sde.ladder import Ladder
from multilevel_sde.plans.drawing import em_plan
from multilevel_sde.solver.integrate import solve
from multilevel_sde.steps.rules import euler_maruyama
from multilevel_sde.times import as_times

__all__ = ["StepSecondsCost"]


@dataclass(frozen=True)
class StepSecondsCost:
    """Seconds of one step of :func:`solve` with a level alone: the median of timed solves after a warm-up.

    A cheap level takes about as long as the noise, the weighted sum and the update beside it, which
    :class:`SecondsCost` does not see. The rounds go through all levels, so that a machine that gets slower slows all of
    them. Seconds depend on the batch and on the machine: measure with the states that will be solved.

    Arguments:
        y0: Initial states, batch included.
        times: A grid of a few steps, such as the first of those that will be solved.
        calls: Number of timed solves of every level.
        arguments: Of :func:`solve`, such as `step`, `diffusion`, `brownian` and `conditions`.

    Raises:
        TypeError: y0 is no tensor.
        ValueError: `calls` is below 1; a bad grid.

    Example:
        >>> layer = torch.nn.Linear(64, 64)
        >>> cost = StepSecondsCost(torch.zeros(4, 64), [0.0, 0.1, 0.2], calls=3)
        >>> 0 < cost([lambda x, t: layer(x)])[0] < 1
        True
    """

    y0: Tensor
    times: Tensor | Sequence[float]
    calls: int = 3
    arguments: Mapping[str, Any] = field(default_factory=dict)

    unit = "seconds"

    def __post_init__(self) -> None:
        if not isinstance(self.y0, Tensor):
            raise TypeError(f'"y0" must be a Tensor, an example of the state, got {type(self.y0).__name__}')
        if self.calls < 1:
            raise ValueError(f'"calls" must be at least 1, got {self.calls}')
        as_times(self.times)

    def __call__(self, drifts: Sequence[Drift]) -> list[float]:
        """Time a step with every drift."""
        seconds: list[list[float]] = [[] for _ in drifts]
        for _ in range(self.calls + 1):
            for drift, mine in zip(drifts, seconds, strict=True):
                mine.append(self._once(drift))
        return [statistics.median(mine[1:]) for mine in seconds]

    def _once(self, drift: Drift) -> float:
        ladder = Ladder([drift], [1.0])
        plan = em_plan(ladder, self.times, step=self.arguments.get("step", euler_maruyama))
        start = time.perf_counter()
        solution = solve(ladder, self.y0, self.times, plan, gradients=False, **self.arguments)
        if solution.y.device.type == "cuda":
            torch.cuda.synchronize(solution.y.device)
        return (time.perf_counter() - start) / (len(self.times) - 1)
