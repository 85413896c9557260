"""The problem that learning solves: paths from seeds, the features of the logits, and which derivative drifts have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from multilevel_sde.conditions import Conditioned, Conditions, as_conditions, naming_arguments, some_rows
from multilevel_sde.cost import Drift
from multilevel_sde.ladder import Ladder
from multilevel_sde.learning.gradients import Derivative, central_difference, forward_mode
from multilevel_sde.learning.learned_schedule import LearnedSchedule, log_times
from multilevel_sde.noise.brownian import Brownian, BrownianPath
from multilevel_sde.noise.diffusion import Diffusion
from multilevel_sde.solver.evaluate import in_float32
from multilevel_sde.solver.seeds import check_noise_source, check_states
from multilevel_sde.steps.rules import Step
from multilevel_sde.steps.sums import at_least_float32
from multilevel_sde.times import device_dtype

__all__ = ["ConditionsSource", "Problem"]

ConditionsSource = Callable[[Sequence[int]], Conditions]


@dataclass(frozen=True)
class Problem:
    """What is learned on: paths from seeds, and the features of the logits."""

    ladder: Ladder
    y0_source: Callable[[Sequence[int]], Tensor]
    grid: Tensor
    step: Step
    diffusion: Diffusion | None
    brownian_source: Callable[[Sequence[int]], Brownian | BrownianPath] | None
    delta: float
    derivative: Derivative | None
    conditions: Conditions | ConditionsSource | None = None

    def __post_init__(self) -> None:
        if len(self.ladder) < 2:
            raise ValueError('"ladder" has one level, which leaves nothing to learn; give at least two')
        for name in ("y0_source", "step", "derivative"):
            if not callable(getattr(self, name)) and not (name == "derivative" and self.derivative is None):
                raise TypeError(f'"{name}" must be callable, got {type(getattr(self, name)).__name__}')
        if (self.diffusion is None) != (self.brownian_source is None):
            raise ValueError(
                'give both or neither of "diffusion" and "brownian_source"; a step that scales the noise itself takes '
                "diffusion=1.0"
            )
        log_times(self.grid, self.delta)

    @cached_property
    def scaling(self) -> tuple[float, float]:
        """Mean and standard deviation of log(t + delta) over the steps (1 where it does not vary)."""
        logs = log_times(self.grid, self.delta)
        return float(logs.mean()), float(logs.std(correction=0)) or 1.0

    @cached_property
    def features(self) -> Tensor:
        """Scaled log(t + delta) and 1, float64 (N, 2)."""
        mean, deviation = self.scaling
        logs = log_times(self.grid, self.delta)
        return torch.stack([(logs - mean) / deviation, torch.ones_like(logs)], dim=1)

    def from_schedule(self, schedule: LearnedSchedule) -> Tensor:
        """Return the scaled parameters of a schedule, (2, K - 1): the inverse of `to_schedule`.

        Raises:
            ValueError: The schedule has another number of levels or another delta.
        """
        if len(schedule.alphas) != len(self.ladder) - 1 or schedule.delta != self.delta:
            raise ValueError(
                f'"start" is a schedule for {len(schedule.alphas) + 1} levels with delta {schedule.delta}, expected '
                f"{len(self.ladder)} levels and delta {self.delta}; fit one with LearnedSchedule.fit"
            )
        mean, deviation = self.scaling
        alphas, betas = (torch.tensor(row, dtype=torch.float64) for row in (schedule.alphas, schedule.betas))
        return torch.stack([alphas * deviation, betas + alphas * mean])

    def to_schedule(self, theta: Tensor, regularisation: float, history: Sequence[tuple[float, float]]):
        """Return the schedule of scaled parameters."""
        mean, deviation = self.scaling
        alphas = theta[0] / deviation
        betas = theta[1] - alphas * mean
        return LearnedSchedule(
            tuple(alphas.tolist()), tuple(betas.tolist()), self.delta, regularisation, tuple(history)
        )

    def check_levels(self, seed: int) -> Derivative:
        """Return the derivative to use: the one given, else forward mode where all drifts have it, else differences.

        Raises:
            ValueError: Two levels are equal, or a drift hides its derivative from the one given.
        """
        y, drifts, places = self._places(seed)
        values = []
        for level, drift in enumerate(drifts):
            with naming_arguments(level, drift):
                values.append(torch.stack([drift(y, t).detach() for t in places]))
        for level, (below, value) in enumerate(pairwise(values), start=1):
            if torch.equal(below, value):
                raise ValueError(
                    f'levels {level} and {level + 1} of "ladder" are equal; drop the expensive one with ladder.subset'
                )
        if self.derivative is None:
            try:
                exact = self._hidden(y, drifts, places, forward_mode) is None
            except RuntimeError:
                exact = False
            return forward_mode if exact else central_difference
        hidden = self._hidden(y, drifts, places, self.derivative)
        if hidden is not None:
            raise ValueError(
                f'the drift of level {hidden + 1} varies with its state, but "derivative" gives 0 (it detaches '
                "its input?); pass derivative=multilevel_sde.central_difference"
            )
        return self.derivative

    def given(self, seeds: Sequence[int], y0: Tensor) -> dict[str, Tensor]:
        """Return the conditions of some samples, the first of a batch."""
        source = self.conditions
        found = source(seeds) if callable(source) else source
        if isinstance(found, Mapping) and not callable(source) and len(seeds) == 2:
            found = some_rows(found, slice(2))
        return as_conditions(found, y0)

    def _places(self, seed: int) -> tuple[Tensor, list[Drift], tuple[Tensor, ...]]:
        """Two states, the drifts with their conditions, and three times."""
        seeds = [seed, seed + 1]
        y = self.y0_source(seeds).detach()
        check_states("y0_source", self.y0_source, seeds, y)
        if self.brownian_source is not None and self.diffusion is not None:
            check_noise_source(self.brownian_source, self.step, self.diffusion, self.grid[:2], seeds, y)
        given = self.given(seeds, y)
        ladder = in_float32(self.ladder, y.dtype)
        drifts = [Conditioned(drift, given) if given else drift for drift in ladder.drifts]
        times = self.grid[[0, (len(self.grid) - 1) // 2, len(self.grid) - 2]]
        return at_least_float32(y), drifts, times.to(y.device, device_dtype(times.dtype, y.device)).unbind()

    @staticmethod
    def _hidden(y: Tensor, drifts: list[Drift], places: tuple[Tensor, ...], derivative: Derivative) -> int | None:
        """The first level that varies where its derivative is 0, or None."""
        # No direction in which drifts are often constant, such as that of all ones for forces between particles.
        direction = (1 + 0.5 * torch.arange(y.numel(), dtype=torch.float32).cos()).to(y).reshape(y.shape)
        for level, drift in enumerate(drifts):
            slopes = torch.stack([derivative(drift, y, t, direction)[1].detach() for t in places])
            if bool(slopes.any()):
                continue
            value, moved = (torch.stack([drift(x, t).detach() for t in places]) for x in (y, y + 0.01 * direction))
            if not torch.equal(moved, value):
                return level
        return None
