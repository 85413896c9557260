r"""A short trial run: how large each level's correction is, how much it matters at the end, and what it costs.

The pilot follows the path x of the top level on a thinned grid of M candidate steps, evaluating every level there, and
measures for each correction D_k(n) = f^k - f^{k-1}

- its mean square V_k(n) and kurtosis,
- its response R_k(n): the change of the final state caused by adding D_k(n) once, with the step's own weight, carried
  to the end on the cheapest level, all perturbations in one batch,

      z_{n+1} = step(x_n + z_n, f^K(x_n) + f^1(x_n + z_n) - f^1(x_n)) - x_{n+1},

and from the responses the Gram matrix G of :mod:`multilevel_sde.allocate`, which predicts the error of any plan to
first order and yields the best one. What the first order leaves out is calibrated: plans made from one half of the
samples are run on the other half, and the ratio of measured to predicted error is kept. The step error is measured by
running the top level on coarser sub-grids, and the cheapest level on the finest grid.

Errors of nonlinear problems have heavy tails (a sample that falls to another mode is far off), which a mean over a few
samples does not show reliably. So the pilot measures typical errors, means over samples with each error cut at 10 times
the median, and one ratio of mean to typical error over all its runs (their geometric mean), the tail.

References:
    Giles, Acta Numerica 24, 2015 (pilot estimates of variance and cost); docs/theory.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from multilevel_sde.allocate import allocate, shrink
from multilevel_sde.brownian import Brownian, BrownianPath
from multilevel_sde.cost import Drift, SecondsCost
from multilevel_sde.curves import SHRINKAGE, adjacent_needs, first_order_error, plan_of
from multilevel_sde.diffusion import Diffusion, as_noise
from multilevel_sde.error_model import Pilot
from multilevel_sde.errors import NonFiniteError
from multilevel_sde.ladder import Ladder
from multilevel_sde.plan import Plan, em_plan
from multilevel_sde.solve import Step, euler_maruyama, increments, solve
from multilevel_sde.times import as_times

__all__ = ["pilot", "typical"]

_CALIBRATED_COSTS = (4.0, 10.0, 25.0)  # evaluations of the top level at which the first order is checked
_TIMED = 4  # calls of every level to time it, one of them to warm up
_CHUNK = 1 << 22  # numbers in a batch of perturbed states


def pilot(
    ladder: Ladder,
    y0: Tensor,
    times: Tensor | Sequence[float],
    *,
    step: Step = euler_maruyama,
    diffusion: Diffusion | None = None,
    brownian: Brownian | BrownianPath | None = None,
    samples: int = 16,
    candidates: int = 100,
    limit: float | None = None,
    progress: bool = False,
) -> Pilot:
    """Measure a ladder along a few trajectories.

    Arguments:
        ladder: At least 2 levels.
        y0: Initial states, at least 2 samples along the first dimension.
        times: The finest grid, whose path of the top level is the target.
        step, diffusion, brownian: As for :func:`solve`.
        samples: How many of the samples of y0 to use.
        candidates: Number M of candidate steps, thinned from the grid; also the largest number of steps of a plan.
        limit: Largest total cost in the ladder's unit; fewer candidates are taken to meet it. The pilot is meant to be
            reused: its cost is `pilot.cost`, and `pilot.share(n, budget)` is its part of a run of n samples.
        progress: Show a progress bar.

    Returns:
        A :class:`Pilot`, which predicts, plans and advises.

    Raises:
        ValueError: Fewer than 2 levels or samples; equal levels; a limit that 8 candidates exceed.
        NonFiniteError: A difference is not finite.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder = mls.Ladder([lambda y, t: -y, lambda y, t: -torch.sin(y)], costs=[1.0, 30.0])
        >>> y0 = torch.linspace(0.2, 2.0, 8)[:, None]
        >>> measured = mls.pilot(ladder, y0, torch.linspace(0.0, 1.0, 201), candidates=50)
        >>> best = measured.plan(budget=300.0)
        >>> solution = mls.solve(ladder, y0, best.times, best.plan)
        >>> exact = 2 * torch.atan(torch.tan(y0 / 2) / torch.e)
        >>> bool((solution.y - exact).abs().max() < 0.05), solution.stats.cost <= 300
        (True, True)
    """
    fine = as_times(times).double()
    y0 = _checked(ladder, y0, samples)
    count = _candidates_within(ladder, len(y0), len(fine) - 1, candidates, limit)
    index = _thinned(len(fine) - 1, count)
    rig = _Rig(ladder, y0, step, diffusion, brownian, progress)
    with torch.no_grad():
        walk = rig.walk(fine[index])
        grams = [_gram(walk.responses[:, :, half]) for half in (slice(0, None, 2), slice(1, None, 2))]
        gram = (grams[0] * len(y0[0::2]) + grams[1] * len(y0[1::2])) / len(y0)
        if not bool(gram.isfinite().all()):
            raise NonFiniteError(0, float(fine[0]), None, [])
        if float(torch.diag(gram).max()) == 0:
            raise ValueError('"ladder" has levels that are equal along the path; there is nothing to correct')
        runs = rig.calibrate(fine[index], walk, grams)
        em_errors = rig.step_errors(fine[index], walk.final)
        fine_error = rig.fine_error(fine, fine[index], em_errors)
    seen = [*[errors for _, errors in runs], *em_errors.values()]
    tails = [float(errors.mean()) / typical(errors) for errors in seen if typical(errors) > 0]
    seconds = SecondsCost(y0, t=float(fine[index[count // 2]]), calls=_TIMED - 1, warmup=1)(ladder.drifts)
    rig.cost += _TIMED * sum(ladder.costs) * len(y0)
    return Pilot(
        costs=ladder.costs,
        unit=ladder.unit,
        seconds=tuple(value / len(y0) for value in seconds),
        times=fine[index],
        coefficients=walk.coefficients,
        gram=gram,
        variances=walk.variances,
        kurtosis=tuple(walk.kurtosis.tolist()),
        consistency=tuple(walk.consistency.tolist()),
        em_errors={steps: typical(errors) for steps, errors in em_errors.items()} | {count: 0.0},
        fine_error=fine_error,
        calibration=tuple((predicted, typical(errors)) for predicted, errors in runs),
        tail=statistics.geometric_mean(tails) if tails else 1.0,
        cost=rig.cost,
        samples=len(y0),
    )


@dataclass(frozen=True)
class _Walk:
    """What the run along the top level's path gave."""

    responses: Tensor  # (M, K - 1, S, dim)
    variances: Tensor  # (M, K - 1)
    kurtosis: Tensor  # (K - 1,)
    consistency: Tensor  # (K - 1,)
    coefficients: Tensor  # (M,)
    final: Tensor


class _Rig:
    """The problem with its noise; counts what the pilot spends."""

    def __init__(
        self,
        ladder: Ladder,
        y0: Tensor,
        step: Step,
        diffusion: Diffusion | None,
        brownian: Brownian | BrownianPath | None,
        progress: bool,
    ):
        self.ladder, self.y0, self.step, self.diffusion, self.progress = ladder, y0, step, diffusion, progress
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

    def walk(self, grid: Tensor) -> _Walk:
        """Follow the path of the top level, and carry every perturbation to the end."""
        points = grid.tolist()
        steps, levels = len(points) - 1, len(self.ladder)
        drifts = self.ladder.drifts  # asked for once, as by solve: they may remember the trajectory
        noise, y = self.increments(grid), self.y0
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
            following = self._step(y, values[-1], t, s, time, increment)
            if live is not None:
                live = self._carry(live, y, values, drifts[0], following, t, s, time, increment)
            fresh = []
            for k in range(levels - 1):
                difference = values[k + 1] - values[k]
                fresh.append(self._step(y, values[-1] + difference, t, s, time, increment) - following)
                moments[:, n, k] = _moments(difference)
                gaps[:, k] += _means(values[k + 1], values[k], difference)
            coefficients[n] = _coefficient(self.step, t, s)
            batch = torch.stack(fresh)
            live = batch if live is None else torch.cat([live, batch])
            y = following
        assert live is not None
        variance = moments[1].mean(0)
        return _Walk(
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
        values: list[Tensor],
        cheapest: Drift,
        following: Tensor,
        t: float,
        s: float,
        time: Tensor,
        increment: Tensor | None,
    ) -> Tensor:
        """One step of all perturbed copies on the cheapest level, as differences to the path."""
        copies = max(1, _CHUNK // max(1, y.numel()))
        out = []
        for part in live.split(copies):
            moved = (y + part).flatten(0, 1)
            cheap = cheapest(moved, time)
            estimate = _tiled(values[-1] - values[0], len(part)) + cheap
            noise = None if increment is None else _tiled(increment, len(part))
            after = self._step(moved, estimate, t, s, time, noise)
            out.append(after.reshape(part.shape) - following)
            self.cost += self.ladder.costs[0] * len(moved)
        return torch.cat(out)

    def calibrate(self, grid: Tensor, walk: _Walk, grams: list[Tensor]) -> list[tuple[float, Tensor]]:
        """Run plans made from one half of the samples on the other: (predicted, squared errors of all samples)."""
        steps, levels = len(grid) - 1, len(self.ladder)
        needs, prices = adjacent_needs(self.ladder.costs, steps)
        runs = []
        for cost in _CALIBRATED_COSTS:
            budget = cost * self.ladder.costs[-1] - steps * self.ladder.costs[0]
            if budget <= self.ladder.costs[1] or cost >= 0.6 * steps:
                continue
            predicted, errors = 0.0, []
            for half, gram in enumerate(grams):
                allocation = allocate(shrink(_level_blocks(gram, levels - 1), SHRINKAGE), needs, prices, budget)
                plan = plan_of(allocation.weights(len(allocation.picks)), steps, levels)
                predicted += first_order_error(shrink(gram, SHRINKAGE), plan) / 2
                others = slice(1 - half, None, 2)
                errors.append(_squared(self.run(grid, plan, others), walk.final[others]))
            runs.append((predicted, torch.cat(errors)))
        return runs

    def step_errors(self, grid: Tensor, final: Tensor) -> dict[int, Tensor]:
        """Squared distances of the top level on sub-grids to its path on the candidate grid."""
        count = len(grid) - 1
        errors = {}
        for steps in sorted({*[count // j for j in (2, 4) if count % j == 0], 4, 8, 14}):
            if 2 <= steps < count:
                coarse = grid[_thinned(count, steps)]
                errors[steps] = _squared(self.run(coarse, em_plan(self.ladder, coarse)), final)
        return errors

    def fine_error(self, fine: Tensor, grid: Tensor, em_errors: dict[int, Tensor]) -> float:
        """Typical squared distance between the candidate grid and the finest one.

        It is measured on the cheapest level, times the ratio of the top level's step error to the cheapest one's on the
        next coarser grid.
        """
        if len(fine) == len(grid):
            return 0.0
        middle = self.run(grid, self._cheapest(grid))
        found = typical(_squared(self.run(fine, self._cheapest(fine)), middle))
        if not em_errors:
            return found
        steps = max(em_errors)
        coarse = grid[_thinned(len(grid) - 1, steps)]
        cheap = typical(_squared(self.run(coarse, self._cheapest(coarse)), middle))
        return found * typical(em_errors[steps]) / cheap if cheap > 0 else found

    def _cheapest(self, grid: Tensor) -> Plan:
        weights = torch.zeros(len(grid) - 1, len(self.ladder), dtype=torch.float64)
        weights[:, 0] = 1.0
        return Plan(weights > 0, weights, truncated=True)


def _thinned(count: int, steps: int) -> Tensor:
    """Indices of about equally spaced steps."""
    return torch.linspace(0, count, steps + 1, dtype=torch.float64).round().long()


def _checked(ladder: Ladder, y0: Tensor, samples: int) -> Tensor:
    if len(ladder) < 2:
        raise ValueError('"ladder" has one level; a pilot needs at least 2, one of them cheaper')
    if y0.dim() == 0 or min(len(y0), samples) < 2:
        given = 0 if y0.dim() == 0 else len(y0)
        raise ValueError(
            f'"samples" must be at least 2 (better 16), got samples={samples} and {given} initial states in "y0"'
        )
    return y0[:samples].detach()


def _candidates_within(ladder: Ladder, samples: int, steps: int, candidates: int, limit: float | None) -> int:
    """The largest number of candidates, at most the given one, whose pilot costs at most the limit."""
    count = min(candidates, steps)
    if count < 2:
        raise ValueError(f'"candidates" must be at least 2 and the grid have as many steps, got {candidates}, {steps}')
    if limit is None:
        return count
    top, base, levels = ladder.costs[-1], ladder.costs[0], len(ladder)

    def cost(count: int) -> float:
        coarse = sum(n for n in (4, 8, 14, count // 2, count // 4) if n < count)
        calibration = sum(c for c in _CALIBRATED_COSTS if c < 0.6 * count) / 2
        walk = (count + _TIMED) * sum(ladder.costs) + count**2 / 2 * (levels - 1) * base
        return samples * (walk + (coarse + calibration) * top + (steps + 2 * count) * base)

    while count > 8 and cost(count) > limit:
        count -= 1
    if cost(count) > limit:
        raise ValueError(
            f'"limit" is {limit:.6g}, a pilot of {samples} samples and {count} candidates costs {cost(count):.6g} '
            f"{ladder.unit}; raise the limit, take fewer samples, or reuse a saved pilot"
        )
    return count


def _tiled(value: Tensor, copies: int) -> Tensor:
    """The samples of a batch, repeated for every copy."""
    return value.repeat(copies, *[1] * (value.dim() - 1))


def _coefficient(step: Step, t: float, s: float) -> float:
    """How much of the estimate enters the state in one step."""
    zero = torch.zeros(1, dtype=torch.float64)
    return float(step(zero, zero + 1, t, s, zero) - step(zero, zero, t, s, zero))


def _gram(responses: Tensor) -> Tensor:
    """Mean inner products of the responses, level by level: index k M + n; float64 (n, n)."""
    steps, levels, samples, size = responses.shape
    total = torch.zeros(steps * levels, steps * levels, dtype=torch.float64)
    for sample in range(samples):
        rows = responses[:, :, sample].permute(1, 0, 2).reshape(steps * levels, size).double().cpu()
        total += rows @ rows.T
    return total / (samples * size)


def _level_blocks(gram: Tensor, levels: int) -> Tensor:
    steps = len(gram) // levels
    return gram * torch.block_diag(*[torch.ones(steps, steps, dtype=torch.float64)] * levels)


def typical(errors: Tensor) -> float:
    """Mean of the errors, each cut at 10 times the median.

    Example:
        >>> typical(torch.tensor([1.0, 1.0, 1.0, 1.0, 100.0]))
        2.8
    """
    return float(errors.double().clamp(max=10 * float(errors.median())).mean())


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared distance of every sample, (B,)."""
    return (a - b).double().square().reshape(len(a), -1).mean(1).cpu()


def _moments(difference: Tensor) -> Tensor:
    values = difference.double()
    return torch.stack([values.mean(), *[values.pow(power).mean() for power in (2, 3, 4)]]).cpu()


def _means(above: Tensor, below: Tensor, difference: Tensor) -> Tensor:
    return torch.stack([above.double().mean(), below.double().mean(), difference.double().mean()]).cpu()
