"""The runs of a pilot: along the top level's path with every perturbation, calibrations, step errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from multilevel_sde.cost import Drift
from multilevel_sde.ladder import Ladder
from multilevel_sde.noise.brownian import Brownian, BrownianPath, increments
from multilevel_sde.noise.diffusion import Diffusion, as_noise
from multilevel_sde.pilots.curves import allocate_levels, plan_of
from multilevel_sde.pilots.responses import SHRINKAGE, Responses
from multilevel_sde.pilots.tracking import total_weights, track
from multilevel_sde.plans.drawing import em_plan
from multilevel_sde.plans.memory import multistep
from multilevel_sde.plans.plan import Plan
from multilevel_sde.solver.estimators import Telescoping
from multilevel_sde.solver.integrate import solve
from multilevel_sde.steps.rules import Step
from multilevel_sde.times import thinned

__all__ = ["CALIBRATED_COSTS", "Multistep", "Rig", "Walk", "typical"]

CALIBRATED_COSTS = (4.0, 10.0, 25.0, 50.0)  # evaluations of the top level at which the first order is checked
_CHUNK = 1 << 20  # numbers in a batch of perturbed states; larger ones are slower and vary more in shape

Multistep = Callable[[Tensor], Tensor]
Runs = list[tuple[float, float, Tensor]]


@dataclass(frozen=True)
class Walk:
    """What the run along the top level's path gave."""

    responses: Tensor  # (M, K - 1, S, dim)
    variances: Tensor  # (M, K - 1)
    kurtosis: Tensor  # (K - 1,)
    consistency: Tensor  # (K - 1,)
    coefficients: Tensor  # (M,)
    final: Tensor


class Rig:
    """The problem with its noise; counts what the pilot spends."""

    def __init__(
        self,
        ladder: Ladder,
        y0: Tensor,
        step: Step,
        diffusion: Diffusion | None,
        brownian: Brownian | BrownianPath | None,
        multistep: Multistep | None,
        progress: bool,
    ):
        self.ladder, self.y0, self.step, self.diffusion, self.progress = ladder, y0, step, diffusion, progress
        self.multistep = multistep
        self.brownian = brownian
        self.noise_of = None if diffusion is None else as_noise(diffusion)
        self.cost = 0.0

    def increments(self, grid: Tensor) -> Iterator[Tensor]:
        """Increments along a grid for the pilot's samples, also where the path has more samples."""
        if isinstance(self.brownian, BrownianPath) and len(self.brownian.seeds) > len(self.y0):
            padded = self.y0[:1].expand(len(self.brownian.seeds), *self.y0.shape[1:])
            source = increments(self.brownian, grid, padded)
        else:
            source = increments(self.brownian, grid, self.y0)
        return (value[: len(self.y0)] for value in source)

    def run(self, grid: Tensor, plan: Plan, rows: slice = slice(None)) -> Tensor:
        """Solve with a plan for some of the samples."""
        noise = None
        if self.noise_of is not None:
            source = self.increments(grid)
            noise = lambda t, s: next(source)[rows]  # noqa: E731 - a callable of an interval, asked in order
        solution = solve(
            self.ladder, self.y0[rows], grid, plan, step=self.step, diffusion=self.diffusion, brownian=noise
        )
        self.cost += solution.stats.cost * len(self.y0[rows])
        return solution.y

    def base(self, grid: Tensor) -> Tensor:
        """Coefficients of the base level on a grid, (N, order)."""
        if self.multistep is None:
            return torch.ones(len(grid) - 1, 1, dtype=torch.float64)
        return torch.as_tensor(self.multistep(grid), dtype=torch.float64)

    def top(self, grid: Tensor) -> Plan:
        """The top level alone."""
        return multistep(em_plan(self.ladder, grid), self.base(grid))

    def walk(self, grid: Tensor) -> Walk:
        """Follow the path of the top level, and carry every perturbation to the end."""
        points = grid.tolist()
        steps, levels = len(points) - 1, len(self.ladder)
        drifts = self.ladder.drifts  # asked for once, as by solve: they may remember the trajectory
        noise, y, combine = self.increments(grid), self.y0, Telescoping().start(self.top(grid))
        live: Tensor | None = None
        moments = torch.zeros(4, steps, levels - 1, dtype=torch.float64)
        coefficients = torch.zeros(steps, dtype=torch.float64)
        gaps = torch.zeros(3, levels - 1, dtype=torch.float64)
        for n in tqdm(range(steps), desc="pilot", unit="step", disable=not self.progress):
            t, s = points[n], points[n + 1]
            time = grid[n].to(y.device)
            values = [drift(y, time) for drift in drifts]
            self.cost += sum(self.ladder.costs) * len(y)
            increment = next(noise) if self.noise_of is not None else None
            estimate = combine(n, {levels - 1: values[-1]})
            following = self._step(y, estimate, t, s, time, increment)
            if live is not None:
                live = self._carry(live, y, estimate - values[0], drifts[0], following, t, s, time, increment)
            fresh = []
            for k in range(levels - 1):
                difference = values[k + 1] - values[k]
                fresh.append(self._step(y, estimate + difference, t, s, time, increment) - following)
                moments[:, n, k] = _moments(difference)
                gaps[:, k] += _means(values[k + 1], values[k], difference)
            coefficients[n] = _coefficient(self.step, t, s)
            batch = torch.stack(fresh)
            live = batch if live is None else torch.cat([live, batch])
            y = following
        assert live is not None
        variance = moments[1].mean(0)
        return Walk(
            live.reshape(steps, levels - 1, len(y), -1),
            moments[1],
            moments[3].mean(0) / variance.clamp_min(1e-300).square(),
            (gaps[0] - gaps[1] - gaps[2]).abs() / gaps[0].abs().clamp_min(1e-300),
            coefficients,
            y,
        )

    def _step(self, y: Tensor, estimate: Tensor, t: float, s: float, time: Tensor, increment: Tensor | None) -> Tensor:
        if self.noise_of is None or increment is None:
            return self.step(y, estimate, t, s, None)
        return self.step(y, estimate, t, s, self.noise_of(y, time, increment))

    def _carry(
        self,
        live: Tensor,
        y: Tensor,
        rest: Tensor,
        cheapest: Drift,
        following: Tensor,
        t: float,
        s: float,
        time: Tensor,
        increment: Tensor | None,
    ) -> Tensor:
        """One step of all perturbed copies on the cheapest level plus the rest, as differences to the path."""
        copies = max(1, _CHUNK // max(1, y.numel()))
        out = []
        for part in live.split(copies):
            moved = (y + part).flatten(0, 1)
            cheap = cheapest(moved, time)
            estimate = _tiled(rest, len(part)) + cheap
            noise = None if increment is None else _tiled(increment, len(part))
            after = self._step(moved, estimate, t, s, time, noise)
            out.append(after.reshape(part.shape) - following)
            self.cost += self.ladder.costs[0] * len(moved)
        return torch.cat(out)

    def calibrate(self, grid: Tensor, walk: Walk, grams: list[Tensor]) -> tuple[Runs, Runs]:
        """Run plans on samples that they were not made from, tracking and adding each correction at once.

        Arguments:
            grid: The candidates.
            walk: Along them.
            grams: Without each fold of the samples, of which the n-th is every n-th sample.

        Returns:
            For both forms: (promised, first-order error, squared errors of all samples) at every cost.
        """
        steps, levels, costs = len(grid) - 1, len(self.ladder), self.ladder.costs
        base = self.base(grid)
        tracked, added = [], []
        for cost in CALIBRATED_COSTS:
            budget = cost * costs[-1] - steps * costs[0]
            if budget <= costs[1] or cost >= 0.9 * steps:
                continue
            promised, predicted, errors = 0.0, 0.0, ([], [])
            for fold, gram in enumerate(grams):
                responses, raw = (
                    Responses.measured(gram, walk.coefficients, walk.variances, multistep=base, shrinkage=amount)
                    for amount in (SHRINKAGE, 0.0)
                )
                parts = [responses.merged(k, k + 1) for k in range(levels - 1)]
                allocation = allocate_levels(parts, list(costs), budget)
                plan = plan_of(allocation.weights(len(allocation.picks)), steps, levels)
                promised += allocation.errors[-1] / len(grams)
                others = slice(fold, None, len(grams))
                forms = track(plan, responses, base), multistep(plan, base)
                predicted += raw.error(total_weights(forms[0], raw)) / len(grams)
                for form, found in zip(forms, errors, strict=True):
                    found.append(squared(self.run(grid, form, others), walk.final[others]))
            tracked.append((promised, predicted, torch.cat(errors[0])))
            added.append((promised, predicted, torch.cat(errors[1])))
        return tracked, added

    def step_errors(self, grid: Tensor, final: Tensor) -> dict[int, Tensor]:
        """Squared distances of the top level on sub-grids to its path on the candidate grid."""
        count = len(grid) - 1
        errors = {}
        for steps in sorted({*[count // j for j in (2, 4) if count % j == 0], 4, 8, 14}):
            if 2 <= steps < count:
                coarse = grid[thinned(count, steps)]
                errors[steps] = squared(self.run(coarse, self.top(coarse)), final)
        return errors

    def fine_error(self, fine: Tensor, grid: Tensor, final: Tensor) -> float:
        """Typical squared distance between the candidate grid and the finest one.

        The top level is run on a grid of twice as many steps; how much more the finest grid changes is measured on the
        cheapest level.
        """
        if len(fine) == len(grid):
            return 0.0
        index = torch.searchsorted(fine * _sign(fine), grid * _sign(fine))
        between = (index[1:] + index[:-1]) // 2
        double = fine[torch.cat([index, between]).unique()]
        top = typical(squared(self.run(double, self.top(double)), final))
        if len(double) == len(fine):
            return top
        start = self.run(grid, self._cheapest(grid))
        near = typical(squared(self.run(double, self._cheapest(double)), start))
        far = typical(squared(self.run(fine, self._cheapest(fine)), start))
        return top * far / near if near > 0 else top

    def _cheapest(self, grid: Tensor) -> Plan:
        weights = torch.zeros(len(grid) - 1, len(self.ladder), dtype=torch.float64)
        weights[:, 0] = 1.0
        return multistep(Plan(weights > 0, weights, truncated=True), self.base(grid))


def _sign(grid: Tensor) -> float:
    return 1.0 if bool(grid[-1] > grid[0]) else -1.0


def _tiled(value: Tensor, copies: int) -> Tensor:
    """The samples of a batch, repeated for every copy."""
    return value.repeat(copies, *[1] * (value.dim() - 1))


def _coefficient(step: Step, t: float, s: float) -> float:
    """How much of the estimate enters the state in one step."""
    zero = torch.zeros(1, dtype=torch.float64)
    return float(step(zero, zero + 1, t, s, zero) - step(zero, zero, t, s, zero))


def typical(errors: Tensor) -> float:
    """Mean of the errors, each cut at 10 times the median.

    Example:
        >>> typical(torch.tensor([1.0, 1.0, 1.0, 1.0, 100.0]))
        2.8
    """
    return float(errors.double().clamp(max=10 * float(errors.median())).mean())


def squared(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared distance of every sample, (B,)."""
    return (a - b).double().square().reshape(len(a), -1).mean(1).cpu()


def _moments(difference: Tensor) -> Tensor:
    values = difference.double()
    return torch.stack([values.mean(), *[values.pow(power).mean() for power in (2, 3, 4)]]).cpu()


def _means(above: Tensor, below: Tensor, difference: Tensor) -> Tensor:
    return torch.stack([above.double().mean(), below.double().mean(), difference.double().mean()]).cpu()
