"""The state of a run of learning, its checkpoint, and one step of descent.

A checkpoint is one safetensors file, written atomically: parameters, the optimiser's moments, the state of the
generator and the losses as tensors, everything else as JSON in its header. Nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multilevel_sde.files import briefly, write_atomically
from multilevel_sde.learning.descent_problem import Problem
from multilevel_sde.learning.gradients import (
    cost_gradient,
    forward_mode,
    path_gradient,
)
from multilevel_sde.learning.learned_schedule import LearnedSchedule
from multilevel_sde.plans.drawing import expected_cost
from multilevel_sde.plans.draws import independent

__all__ = ["DivergedError", "Run"]

FORMAT = 1


class DivergedError(ArithmeticError):
    """Learning met a loss or parameters that are not finite.

    Attributes:
        iteration: The step of learning at which it happened, counted from 0.
        schedule: The last schedule whose loss was finite, also saved in the folder; None if there was none.
    """

    def __init__(self, iteration: int, schedule: LearnedSchedule | None):
        self.iteration, self.schedule = iteration, schedule
        kept = "the start itself is not usable" if schedule is None else "the last good schedule was kept"
        super().__init__(
            f"learning diverged at step {iteration}: the loss or its gradient is not finite; {kept}; take a smaller "
            "learning rate, a larger batch, or a start with larger probabilities"
        )

    def __reduce__(self) -> tuple[type[DivergedError], tuple[int, LearnedSchedule | None]]:
        """Keep what it was made of, on the way from one process to another too."""
        return type(self), (self.iteration, self.schedule)


@dataclass
class Run:
    """The mutable state of learning; `save` and `restore` know all of it."""

    problem: Problem
    theta: Tensor
    regularisation: float
    batch: int
    first_seed: int
    generator: torch.Generator
    make_optimiser: Callable[[Sequence[Tensor]], torch.optim.Optimizer]
    iteration: int = 0
    history: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.theta = self.theta.clone().requires_grad_()
        self.visited: list[Tensor] = []  # parameters whose loss was finite, in order
        self.optimiser = self.make_optimiser([self.theta])

    def schedule(self) -> LearnedSchedule:
        """Return the schedule of the mean of the parameters over the second half of the run.

        The gradient of one batch is about as noisy as it is large, so the mean is closer to the minimum than the last
        parameters are (Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992).
        """
        thetas = [*self.visited, self.theta.detach()]
        mean = torch.stack(thetas[len(thetas) // 2 :]).mean(0)
        return self.problem.to_schedule(mean, self.regularisation, self.history)

    def advance(self) -> None:
        """Do one step of descent, or raise DivergedError."""
        problem, theta = self.problem, self.theta.detach()
        table = self._table(theta)
        first = self.first_seed + self.iteration * self.batch
        seeds = range(first, first + self.batch)
        directions = torch.randn(self.batch, *theta.shape, generator=self.generator, dtype=torch.float64)
        y0 = problem.y0_source(seeds)
        found = path_gradient(
            problem.ladder,
            y0,
            problem.grid,
            self._hits(table),
            theta,
            problem.features,
            directions,
            step=problem.step,
            diffusion=problem.diffusion,
            brownian=None if problem.brownian_source is None else problem.brownian_source(seeds),
            conditions=problem.given(seeds, y0),
            derivative=problem.derivative or forward_mode,
        )
        gradient = found.samples().mean(0)
        gradient += self.regularisation * cost_gradient(problem.ladder, theta, problem.features)
        if not bool(found.errors.isfinite().all() and gradient.isfinite().all()):
            raise self._diverged()
        self.visited.append(theta.clone())
        self.history.append((float(found.errors.mean()), expected_cost(problem.ladder, table, independent)))
        self.theta.grad = gradient
        self.optimiser.step()
        if not bool(self.theta.isfinite().all()):
            raise self._diverged()
        self.iteration += 1

    def _table(self, theta: Tensor) -> Tensor:
        p = torch.sigmoid(self.problem.features @ theta)
        table = torch.cat([torch.ones(len(p), 1, dtype=torch.float64), p], dim=1)
        return table.clamp_min(torch.finfo(torch.float64).tiny)

    def _hits(self, table: Tensor) -> Iterator[Tensor]:
        """Draw the hits (B, K) of one step after the other."""
        for row in table:
            yield independent(row[None], self.generator, self.batch)[0]

    def _diverged(self) -> DivergedError:
        kept = None
        if self.visited:
            kept = self.problem.to_schedule(self.visited[-1], self.regularisation, self.history)
        return DivergedError(self.iteration, kept)

    def _identity(self) -> dict[str, Any]:
        """What a resumed run must share with the one that was stopped."""
        plain = {key: value for key, value in self.optimiser.defaults.items() if isinstance(value, int | float | tuple)}
        return {
            "format": FORMAT,
            "levels": len(self.problem.ladder),
            "costs": list(self.problem.ladder.costs),
            "times": self.problem.grid.tolist(),
            "delta": self.problem.delta,
            "regularisation": self.regularisation,
            "batch": self.batch,
            "first_seed": self.first_seed,
            "generator": self.generator.initial_seed(),
            "optimiser": [type(self.optimiser).__name__, plain],
        }

    def save(self, path: Path) -> None:
        """Write everything to one file, atomically."""
        from safetensors.torch import save

        state = self.optimiser.state_dict()["state"].get(0, {})
        tensors = {"theta": self.theta.detach(), "generator": self.generator.get_state()}
        tensors |= {"visited": torch.stack(self.visited), "history": torch.tensor(self.history, dtype=torch.float64)}
        tensors |= {f"optimiser.{name}": value for name, value in state.items() if isinstance(value, Tensor)}
        header = {
            **self._identity(),
            "iteration": self.iteration,
            "state": {name: value for name, value in state.items() if not isinstance(value, Tensor)},
        }
        write_atomically(path, save({k: v.contiguous() for k, v in tensors.items()}, {"run": json.dumps(header)}))

    def restore(self, path: Path) -> None:
        """Read what `save` wrote; refuse another run's file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("run", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f'"{path}" is damaged ({briefly(error)}); remove it to start again') from None
        for key, value in json.loads(json.dumps(self._identity())).items():
            if header.get(key) != value:
                raise ValueError(
                    f'"folder" holds a run of learning with another "{key}"; choose an empty folder, or the arguments '
                    "of that run"
                )
        prefix = "optimiser."
        state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        state |= header["state"]
        with torch.no_grad():
            self.theta.copy_(tensors["theta"])
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": {0: state} if state else {}})
        self.generator.set_state(tensors["generator"])
        self.history = [(error, cost) for error, cost in tensors["history"].tolist()]
        self.iteration, self.visited = header["iteration"], list(tensors["visited"].unbind())
