"""The problem of a pilot on its own samples: their states, noise and conditions, runs of plans, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from multilevel_sde.arguments import as_tensor
from multilevel_sde.conditions import some_rows
from multilevel_sde.ladder import Ladder
from multilevel_sde.noise.brownian import Brownian, BrownianPath
from multilevel_sde.noise.diffusion import Diffusion
from multilevel_sde.plans.drawing import em_plan
from multilevel_sde.plans.memory import multistep
from multilevel_sde.plans.plan import Plan
from multilevel_sde.solver.evaluate import in_float32
from multilevel_sde.solver.integrate import solve
from multilevel_sde.solver.noise_along import increments_along, noise_maker
from multilevel_sde.solver.seeds import check_noise
from multilevel_sde.steps.rules import Step, StepRule, plan_rows
from multilevel_sde.steps.step_noise import NoiseRule
from multilevel_sde.steps.sums import at_least_float32
from multilevel_sde.times import thinned

__all__ = ["Multistep", "Trial", "squared", "typical"]

Multistep = Callable[[Tensor], Tensor]


class Trial:
    """A problem, and some of its samples, spread evenly over the batch by index.

    Arguments:
        ladder, step, diffusion, brownian, conditions: As for :func:`multilevel_sde.pilot`.
        y0: The initial states of all samples.
        samples: How many of them to use.
        coefficients: The pilot's `multistep`.
    """

    def __init__(
        self,
        ladder: Ladder,
        y0: Tensor,
        step: Step | StepRule,
        diffusion: Diffusion | None,
        brownian: Brownian | BrownianPath | None,
        conditions: Mapping[str, Tensor] | None,
        samples: int,
        coefficients: Multistep | None,
    ):
        self.ladder, self.step, self.diffusion, self.coefficients = (
            in_float32(ladder, y0.dtype),
            step,
            diffusion,
            coefficients,
        )
        rows = thinned(len(y0) - 1, min(samples, len(y0)) - 1)
        self.rows, self._place = rows.tolist(), rows.to(y0.device)
        self.y0 = at_least_float32(y0.detach()[self._place])  # as in solve, which carries 16 bits so
        self.conditions = some_rows(conditions or {}, rows)
        if isinstance(brownian, BrownianPath) and len(brownian.seeds) >= len(y0):
            self.brownian: Brownian | None = brownian.subset(self.rows)
            self._everyone = self.y0
        else:
            self.brownian, self._everyone = brownian, at_least_float32(y0.detach())
        self.seen, self.cost = self.y0, 0.0  # `seen`: a state as the drifts see it
        self.bar = tqdm(disable=True)

    def __len__(self) -> int:
        return len(self.y0)

    def charge(self, cost: float) -> None:
        """Note what was spent, in the ladder's unit over all samples."""
        self.cost += cost
        self.bar.update(cost / (len(self) * self.ladder.costs[-1]))

    def noise_maker(self, grid: Tensor) -> Callable[[Tensor, Tensor, Any], Any] | None:
        """Return noise_of(y, t, increment) for a step, or None for ODEs."""
        return None if self.diffusion is None else noise_maker(self.step, self.diffusion, grid, self.y0)

    def increments(self, grid: Tensor) -> Iterator[Any]:
        """The increments of the noise along a grid for the pilot's samples, with areas where the step asks for them."""
        assert self.diffusion is not None
        assert self.brownian is not None
        source = increments_along(self.step, self.diffusion, self.brownian, grid, self._everyone)
        return source if self._everyone is self.y0 else (_rows(value, self._place) for value in source)

    def run(self, grid: Tensor, plan: Plan, part: slice = slice(None)) -> Tensor:
        """Solve with a plan for some of the pilot's samples; return their final states."""
        noise = None if self.diffusion is None else _InOrder(self.increments(grid), part)
        given: dict[str, Any] = {"step": self.step, "diffusion": self.diffusion, "brownian": noise}
        if self.conditions:
            given["conditions"] = {name: value[part] for name, value in self.conditions.items()}
        solution = solve(self.ladder, self.y0[part], grid, plan, gradients=False, **given)
        self.charge(solution.stats.cost * len(self.y0[part]))
        return solution.y

    def try_once(self, fine: Tensor) -> None:
        """Let every level make one step, so that :func:`solve` says what is wrong with drifts, noise or conditions."""
        if self.diffusion is not None:
            check_noise(lambda: self.increments(fine[:2]))
        for level in range(len(self.ladder)):
            self.run(fine[:2], self.alone(fine[:2], level, one_step=True))
        if isinstance(self.step, NoiseRule):
            self.seen = self._asked(self.step, fine[:2])

    def _asked(self, rule: NoiseRule, grid: Tensor) -> Tensor:
        """The first state at which a rule asks for its drift: for Langevin rules the positions."""
        asked: list[Tensor] = []

        def estimate(x: Tensor, time: float) -> Tensor:
            asked.append(x)
            return torch.zeros_like(x)

        make, (t, s) = self.noise_maker(grid), grid.tolist()
        noise = None if make is None else make(self.y0, grid[0], next(self.increments(grid)))
        rule.start(grid)(self.y0, estimate, t, s, noise)
        return asked[0] if asked else self.y0

    def chosen(self, rule: Callable[..., Tensor], fine: Tensor) -> Tensor:
        """The candidate grid that a rule chooses, which may run the top level once on the finest grid."""
        self.charge(len(plan_rows(self.step, fine)) * self.ladder.costs[-1] * len(self))
        noise = self.brownian
        if noise is not None and self._everyone is not self.y0:
            noise = _InOrder(self.increments(fine))
        given = {"diffusion": self.diffusion, "brownian": noise, "conditions": self.conditions or None}
        return as_tensor("candidates", rule(self.ladder, self.y0, fine, step=self.step, **given))

    def base(self, grid: Tensor) -> Tensor:
        """Coefficients of the pilot's multistep method on a grid, (N, order); ones for one-step methods."""
        if self.coefficients is None:
            return torch.ones(len(plan_rows(self.step, grid)), 1, dtype=torch.float64)
        return as_tensor("multistep", self.coefficients(grid)).double()

    def alone(self, grid: Tensor, level: int, *, one_step: bool = False) -> Plan:
        """The plan of one level at every step, by the pilot's method or one step at a time."""
        if level == len(self.ladder) - 1:
            plan = em_plan(self.ladder, grid, step=self.step)
        else:
            weights = torch.zeros(len(plan_rows(self.step, grid)), len(self.ladder), dtype=torch.float64)
            weights[:, : level + 1] = 1.0
            plan = Plan(weights > 0, weights, truncated=True)
        return plan if one_step else multistep(plan, self.base(grid))


class _InOrder:
    """Increments that are known, as a callable of an interval that is asked in order.

    Arguments:
        source: The increments, with areas where a step asks for them.
        part: Which samples.
    """

    def __init__(self, source: Iterator[Any], part: slice = slice(None)):
        self.source, self.part = source, part

    def __call__(self, t: float, s: float) -> Any:
        """Return the next increment; with_area, the next pair."""
        return _rows(next(self.source), self.part)

    with_area = __call__


def _rows(value: Any, rows: Tensor | slice) -> Any:
    """Some samples of an increment, or of an increment and its area."""
    return tuple(one[rows] for one in value) if isinstance(value, tuple) else value[rows]


def typical(errors: Tensor) -> float:
    """Mean of the errors, each cut at 10 times the median.

    Example:
        >>> typical(torch.tensor([1.0, 1.0, 1.0, 1.0, 100.0]))
        2.8
    """
    return float(errors.double().clamp(max=10 * float(errors.median())).mean())


def squared(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared distance of every sample, (B,)."""
    return (a - b).cpu().double().square().reshape(len(a), -1).mean(1)
