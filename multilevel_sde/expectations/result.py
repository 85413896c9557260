"""The result of an expectation: an interval, the table of its terms, a plot, and what would have been cheaper."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from io import BytesIO

import torch
from torch import Tensor

from multilevel_sde.expectations.decay import Slope, half_width, slope
from multilevel_sde.expectations.sampling import Run
from multilevel_sde.expectations.terms import Index, Term
from multilevel_sde.files import write_atomically

__all__ = ["Expectation", "Facts", "Plain", "Row", "expectation_of"]

Number = float | Tensor


@dataclass(frozen=True)
class Facts:
    """What a result is told beside its samples."""

    confidence: float
    tolerance: float | None
    seconds: float


@dataclass(frozen=True)
class Row:
    """One term.

    Attributes:
        paths: Its paths: (sign, level from 0, steps), the most expensive first.
        samples: How many.
        mean: Of the samples; a float, or (m,) for a phi of m outputs, as are the next two.
        variance: The same.
        kurtosis: The same; 3 for normal numbers. Where it is large, few samples make most of the variance.
        cost: Of one sample.
        antithetic: Whether paths on its finer grid are pairs.
    """

    paths: tuple[tuple[int, int, int], ...]
    samples: int
    mean: Number
    variance: Number
    kurtosis: Number
    cost: float
    antithetic: bool = False

    @property
    def name(self) -> str:
        """Its paths in words: + for those that are added, level and steps, x2 for pairs."""
        pairs = max(steps for _, _, steps in self.paths) if self.antithetic else None
        return " ".join(
            f"{'+' if sign > 0 else '-'}{level + 1}:{steps}{'x2' if steps == pairs else ''}"
            for sign, level, steps in self.paths
        )


@dataclass(frozen=True)
class Plain:
    """What plain Monte Carlo on one level would take for the same standard error.

    Attributes:
        level: From 0.
        steps: Of its grid, that on which the estimate ends.
        cost: In the ladder's unit.
        gap: How far its expectation may be from the top level's, by the trial: two standard errors above the estimate.
    """

    level: int
    steps: int
    cost: float
    gap: float


@dataclass(frozen=True)
class Expectation:
    """An estimate of E[phi], with everything in it that was measured.

    Numbers that belong to phi are floats, or tensors (m,) where phi has m outputs.

    Attributes:
        value: The estimate.
        low: Lower end of the interval.
        high: Upper end: the interval is value +- w, where w holds a normal error of this standard error around a shift
            by the bias with the given confidence.
        standard_error: Of the value.
        bias: What the steps of the finest grid used still leave, by the differences of the grids.
        cost: Of all paths, in the ladder's unit, trial included.
        trial_cost: Of the trial.
        rows: The terms, from cheap to expensive; their means add up to the value.
        alpha: The bias falls like steps^-alpha.
        beta: The variance of the differences falls like steps^-beta.
        gamma: The cost of a path rises like steps^gamma.
        plain: Plain Monte Carlo at every level.
        confidence: Of the interval.
        tolerance: What was asked for, or None.
        seconds: Wall-clock time.
        unit: Of costs.
        noisy: Whether there was a diffusion.
        unstable: Steps of the grids on which paths became infinite or huge, and which were left out.
    """

    value: Number
    low: Number
    high: Number
    standard_error: Number
    bias: Number
    cost: float
    trial_cost: float
    rows: tuple[Row, ...]
    alpha: Slope
    beta: Slope
    gamma: Slope
    plain: tuple[Plain, ...]
    confidence: float
    tolerance: float | None
    seconds: float
    unit: str
    noisy: bool
    unstable: tuple[int, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"E[phi] = {_shown(self.value)}, {100 * self.confidence:g}% in [{_shown(self.low)}, {_shown(self.high)}]",
            f"standard error {_shown(self.standard_error, 2)}, bias about {_shown(self.bias, 2)}, cost {self.cost:.4g} "
            f"{self.unit}, of which the trial {self.trial_cost:.4g}",
            "",
            f"{'paths':<26}{'samples':>9}{'mean':>12}{'variance':>12}{'kurtosis':>10}{'cost':>10}",
        ]
        for row in self.rows:
            numbers = [_first(row.mean), _first(row.variance), _first(row.kurtosis)]
            mean, variance, kurtosis = numbers
            lines.append(
                f"{row.name:<26}{row.samples:>9}{mean:>12.4g}{variance:>12.4g}{kurtosis:>10.3g}{row.cost:>10.4g}"
            )
        if isinstance(self.value, Tensor) and len(self.value) > 1:
            lines.append(f"(means, variances and kurtoses of the first of {len(self.value)} outputs)")
        lines += [
            "",
            f"alpha = {self.alpha:.2f}  (bias ~ steps^-alpha)",
            f"beta  = {self.beta:.2f}  (variance of differences)",
            f"gamma = {self.gamma:.2f}  (cost)",
            "",
            self.advise(),
        ]
        return "\n".join(lines)

    def advise(self) -> str:
        """Return in plain sentences whether it paid, and what would be better.

        Example:
            >>> import torch, multilevel_sde as mls
            >>> ladder = mls.Ladder([lambda y, t: -y], costs=[1.0])
            >>> result = mls.expectation(lambda y: y[:, 0], ladder, lambda seeds: torch.ones(len(seeds), 1),
            ...     torch.linspace(0.0, 1.0, 129), diffusion=0.5, tolerance=0.01)
            >>> result.advise().splitlines()[0]
            'plain Monte Carlo on the top level with ... steps would cost ... times as much'
        """
        top, error = self.plain[-1], self._goal()
        ratio, where = top.cost / self.cost, f"on the top level with {top.steps} steps"
        if ratio >= 1:
            found = [f"plain Monte Carlo {where} would cost {ratio:.2g} times as much"]
        else:
            found = [f"plain Monte Carlo {where} is cheaper: {ratio:.0%} of the cost, as the trial is not made up for"]
        for plain in self.plain[:-1]:
            if plain.gap <= 0.5 * error and plain.cost < self.cost:
                found.append(
                    f"plain Monte Carlo with level {plain.level + 1} is cheaper: {plain.cost / self.cost:.0%} of the "
                    f"cost, and within {plain.gap:.2g} of the top level"
                )
        used = {level for row in self.rows for _, level, _ in row.paths}
        idle = [level + 1 for level in range(len(self.plain)) if level not in used]
        if idle:
            found.append(f"{'level' if len(idle) == 1 else 'levels'} {', '.join(map(str, idle))} did not pay: not used")
        if math.isnan(self.alpha.value):
            found.append(f"there is one grid: the interval is that of {top.steps} steps, and their bias is not known")
        if self.noisy and all(_first(row.variance) == 0 for row in self.rows):
            found.append("phi had one value on all paths: if it is for a rare event, take a larger trial")
        if self.unstable:
            found.append(
                f"paths became infinite or huge with {', '.join(map(str, self.unstable))} steps, which were left out"
            )
        if self.tolerance is not None and float(torch.as_tensor(self.bias).max()) > 0.7 * self.tolerance:
            found.append(
                f"the bias of {top.steps} steps takes most of the tolerance: give finer times, or a larger tolerance"
            )
        tails = [row.name for row in self.rows if _first(row.kurtosis) > 100 and row.samples < 1000]
        if tails:
            found.append(f"the variance of {tails[0]} is made by few samples, and known roughly: take a larger trial")
        return "\n".join(found)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Write a PNG of variances, means, samples and the work of every term.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9.6, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        names, x = [row.name.replace(" ", "\n") for row in self.rows], range(len(self.rows))
        left.semilogy(x, [_first(row.variance) for row in self.rows], "o-", color="C0", label="variance")
        left.semilogy(x, [abs(_first(row.mean)) for row in self.rows], "s--", color="C1", label="|mean|")
        right.semilogy(x, [row.samples for row in self.rows], "o-", color="C2", label="samples")
        work = [row.samples * row.cost for row in self.rows]
        right.semilogy(x, work, "s--", color="C3", label=f"cost of all samples, {self.unit}")
        for axes in (left, right):
            axes.set_xticks(list(x), names, fontsize=8)
            axes.set_xlabel("paths of the term: level:steps")
            axes.grid(which="major", alpha=0.3)
            axes.legend(frameon=False)
        buffer = BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        write_atomically(path, buffer.getvalue())

    def _goal(self) -> float:
        error = torch.as_tensor(self.standard_error).square() + torch.as_tensor(self.bias).square()
        return float(error.sqrt().max()) if self.tolerance is None else self.tolerance


def expectation_of(run: Run, facts: Facts) -> Expectation:
    """Return the result of a run."""
    value, error = run.estimate()
    bias, decay, trial, grids = run.bias(), run.decay(), run.trial, run.paths.grids
    width = half_width(error, bias, facts.confidence)
    nothing = Slope(math.nan, math.nan, math.nan)
    own = _owned(run)
    return Expectation(
        own(value),
        own(value - width),
        own(value + width),
        own(error),
        own(bias),
        run.cost + trial.cost,
        trial.cost,
        tuple(_row(run, number) for number in range(len(run.terms))),
        nothing if decay is None else decay.order,
        trial.variance_order(),
        _cost_order(run),
        tuple(_plain(run, level, float(error.max())) for level in range(trial.levels)),
        facts.confidence,
        facts.tolerance,
        facts.seconds,
        run.paths.ladder.unit,
        run.paths.diffusion is not None,
        tuple(sorted(map(grids.steps, trial.unstable))),
    )


def _owned(run: Run):
    """What makes numbers of phi floats where phi has one output."""
    return lambda x: float(x[0]) if run.paths.scalar else x


def _row(run: Run, number: int) -> Row:
    moments, own, term = run.moments[number], _owned(run), run.terms[number]
    steps = run.paths.grids.steps
    paths = tuple((1 if sign > 0 else -1, i[0], steps(i[1])) for i, sign in term.parts if len(i) == 2)
    numbers = (own(moments.mean), own(moments.variance), own(moments.kurtosis), run.costs[number])
    return Row(paths, moments.count, *numbers, antithetic=len(paths) < len(term.parts))


def _plain(run: Run, level: int, error: float) -> Plain:
    trial, top = run.trial, run.trial.levels - 1
    grid = max(grid for grid in trial.top_grids if grid <= run.grid)
    here: Index = (level, grid)
    variance = trial.variance(Term(((here, 1),)))
    gaps = trial.samples_of(Term((((top, grid), 1), (here, -1)))) if level < top else torch.zeros(2, 1)
    gap = float((gaps.mean(0).abs() + 2 * gaps.std(0) / math.sqrt(len(gaps))).max())
    cost = variance / error**2 * run.paths.cost((level, run.grid)) if error > 0 else run.paths.cost((level, run.grid))
    return Plain(level, run.paths.grids.steps(run.grid), cost, gap)


def _cost_order(run: Run) -> Slope:
    grids, top = run.paths.grids, run.trial.levels - 1
    used = sorted({index[1] for term in run.terms for index, _ in term.parts})
    x = [math.log(grids.steps(grid)) for grid in used]
    return slope(x, [math.log(run.paths.cost((top, grid))) for grid in used], [1e-12] * len(used))


def _first(number: Number) -> float:
    return float(torch.as_tensor(number).reshape(-1)[0])


def _shown(number: Number, digits: int = 6) -> str:
    values = torch.as_tensor(number, dtype=torch.float64).reshape(-1).tolist()
    shown = [f"{value:.{digits}g}" for value in values[:4]]
    return shown[0] if len(values) == 1 else f"({', '.join(shown)}{', ...' if len(values) > 4 else ''})"
