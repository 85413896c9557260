r"""How many samples each term gets: N ~ sqrt(V / C), until the error is what was asked for.

A tolerance e is a root mean squared error, as in pymlmc: bias^2 + sum V / N <= e^2. The bias is to be at most 0.6 e;
what it leaves of e^2 is spent on the variance. Half of the samples that the trial predicts come first, then variances
and bias are those of the samples so far, a finer grid is added where the bias is too large, and so on until nothing is
missing. A finer grid comes before the samples that a large bias would ask for, so that none are wasted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from multilevel_sde.expectations.decay import Decay, Difference
from multilevel_sde.expectations.moments import Moments
from multilevel_sde.expectations.paths import Paths, seeds_of
from multilevel_sde.expectations.terms import Term
from multilevel_sde.expectations.trial import EXPECTED, Scheme, Trial

__all__ = ["BIAS_SHARE", "LEAST", "Run", "check_bias", "optimal_samples"]

BIAS_SHARE = 0.5  # of the tolerance that the trial plans for the bias
_MOST_BIAS = 0.6  # of the tolerance, beyond which a finer grid is added
_LAST_BIAS = 0.85  # of the tolerance, that samples make up for where there is no finer grid
_PORTION = 1 << 18  # samples in memory, a multiple of the blocks of Moments
_STAGE, _LONGER = 16.0, 4.0  # times the trial's cost, after which the bias is looked at, and each later stage's length
LEAST = 5  # samples of a term, at the least


def optimal_samples(variances: Sequence[float], costs: Sequence[float], target: float) -> list[int]:
    """Return the numbers of samples of least cost for which the variance of the sum is `target`.

    Example:
        >>> optimal_samples([4.0, 0.01], [1.0, 4.0], 0.01)  # sqrt(V / C) (sum of sqrt(V C)) / target
        [440, 11]
    """
    length = sum(math.sqrt(v * c) for v, c in zip(variances, costs, strict=True))
    return [math.ceil(math.sqrt(v / c) * length / target - 1e-9) for v, c in zip(variances, costs, strict=True)]


def check_bias(decay: Decay | None, steps: int, tolerance: float) -> None:
    """Refuse a tolerance that is surely below the bias of the finest grid, which has so many steps.

    Raises:
        ValueError: It is.
    """
    if decay is not None and float(decay.at_least(steps).max()) > tolerance:
        left = float(decay.beyond(steps).max())
        needed = math.ceil(steps * (left / (BIAS_SHARE * tolerance)) ** (1 / decay.order.value))
        raise ValueError(
            f'"tolerance" of {tolerance:.3g} is below the bias of the finest grid: its {steps} steps leave about '
            f"{left:.2g}, of order {decay.order.value:.1f}; give times with about {needed} steps, or a tolerance above "
            f"{2 * left:.1g}"
        )


class Run:
    """The samples of a scheme.

    Arguments:
        paths: What samples are made of.
        trial: What was measured before; its samples are not used again.
        scheme: The terms.
        grid: The grid at which they end.
        seed: Of the whole estimate; term l has the stream l + 1.
    """

    def __init__(self, paths: Paths, trial: Trial, scheme: Scheme, grid: int, seed: int):
        self.paths, self.trial, self.grid, self.seed = paths, trial, grid, seed
        self.terms, self.costs = list(scheme.terms), list(scheme.costs)
        self.prior, self.kurtoses = list(scheme.variances), list(scheme.kurtoses)
        self.moments = [Moments(self._shift(term)) for term in self.terms]

    @property
    def cost(self) -> float:
        """What the samples so far took."""
        return sum(m.count * cost for m, cost in zip(self.moments, self.costs, strict=True))

    def variances(self) -> list[float]:
        """Return the variance of each term, of its worst output: measured, and as in the trial as long as few are."""
        found = []
        for prior, kurtosis, moments in zip(self.prior, self.kurtoses, self.moments, strict=True):
            measured, weight = 0.0, 0.0
            if moments.count > 1:
                measured = float(moments.variance.max())
                own = float(moments.kurtosis.nan_to_num(1.0).max())
                weight = (moments.count - 1) / max(1.0, kurtosis - 1, own - 1)
            found.append((EXPECTED * prior + weight * measured) / (EXPECTED + weight))
        return found

    def estimate(self) -> tuple[Tensor, Tensor]:
        """Return the value and its standard error, (m,)."""
        value = torch.stack([moments.mean for moments in self.moments]).sum(0)
        return value, torch.stack(self._mean_variances()).sum(0).sqrt()

    def _mean_variances(self) -> list[Tensor]:
        """Return the variance of each term's mean, (m,): measured, with what the trial adds to few samples."""
        found = []
        for moments, likely in zip(self.moments, self.variances(), strict=True):
            rest = max(0.0, likely - float(moments.variance.max()))
            found.append((moments.variance + rest) / moments.count)
        return found

    def decay(self) -> Decay | None:
        """Return what the samples so far, and those of the trial, say of the bias."""
        if any(moments.count < 2 for moments in self.moments):
            return self.trial.decay()
        groups: dict[tuple[int, int], list[int]] = {}
        for number, term in enumerate(self.terms):
            if term.refines is not None:
                groups.setdefault(term.refines, []).append(number)
        found, steps, variances = [], self.paths.grids.steps, self._mean_variances()
        for (i, j), numbers in groups.items():
            mean = torch.stack([self.moments[n].mean for n in numbers]).sum(0)
            variance = torch.stack([variances[n] for n in numbers]).sum(0)
            rest = self.trial.add_up([self.terms[n] for n in numbers])
            if rest is not None:
                mean, variance = mean + rest.mean(0), variance + rest.var(0) / len(rest)
            found.append(Difference(steps(i), steps(j), mean, variance))
        return Decay.fit(found if len(found) > 1 else [*found, *self.trial.differences()])

    def bias(self) -> Tensor:
        """Return what the steps of the last grid leave, (m,); 0 where there is one grid only."""
        decay = self.decay()
        return torch.zeros(self.paths.outputs, dtype=torch.float64) if decay is None else decay.beyond(self._steps())

    def until(self, tolerance: float) -> None:
        """Sample until bias and variance are within a tolerance."""
        self._sample_half(tolerance)
        bias = 0.0
        while True:
            counts = [moments.count for moments in self.moments]
            wanted = self.wanted(tolerance**2 - bias**2)
            missing = [max(LEAST, n) - have for n, have in zip(wanted, counts, strict=True)]
            if any(more > 0.01 * have for more, have in zip(missing, counts, strict=True)):
                self.sample(missing)
                continue
            finest, found = self.grid == len(self.paths.grids) - 1, float(self.bias().max())
            most = (_LAST_BIAS if finest else _MOST_BIAS) * tolerance
            if not finest and (found > (1.1 if bias else 1.0) * most or self._refining_pays(tolerance, bias, found)):
                self.refine()
                bias = 0.0
            elif found <= 1.01 * bias or bias == most:
                return
            else:
                bias = min(found, most)

    def _sample_half(self, tolerance: float) -> None:
        """Take half of the samples that are wanted; in stages where they are many, lest a bias is found after days.

        Raises:
            ValueError: The tolerance is below the bias of the finest grid, which the trial did not see for noise.
        """
        stage = _STAGE * self.trial.cost
        while True:
            half = [max(LEAST, n // 2) for n in self.wanted(tolerance**2)]
            missing = [max(0, n - moments.count) for n, moments in zip(half, self.moments, strict=True)]
            price = sum(n * cost for n, cost in zip(missing, self.costs, strict=True))
            if price <= stage:
                return self.sample(missing)
            floor = [max(0, LEAST - moments.count) for moments in self.moments]
            self.sample([max(least, int(n * stage / price)) for least, n in zip(floor, missing, strict=True)])
            if self.grid == len(self.paths.grids) - 1:
                check_bias(self.decay(), self._steps(), tolerance)
            stage *= _LONGER

    def _refining_pays(self, tolerance: float, paid: float, bias: float) -> bool:
        """Whether the samples that make up for a bias would cost more than twice a term that makes it smaller.

        Arguments:
            tolerance: Of bias and error together.
            paid: The bias that was made up for already.
            bias: As it is known now.
        """
        work = sum(math.sqrt(v * c) for v, c in zip(self.variances(), self.costs, strict=True)) ** 2
        square = tolerance**2
        samples = work / (square - min(bias, _MOST_BIAS * tolerance) ** 2) - work / (square - paid**2)
        finer = self.trial.further(self.terms, self.grid)
        return samples > 2 * max(LEAST * finer.costs[0], math.sqrt(finer.variances[0] * finer.costs[0] * work) / square)

    def within(self, budget: float) -> None:
        """Spend a budget, half of it before the variances are known from more than the trial."""
        for part in (0.5 * budget, budget):
            variances = self.variances()
            length = sum(math.sqrt(v * c) for v, c in zip(variances, self.costs, strict=True))
            if length == 0:
                return self.sample([max(0, LEAST - moments.count) for moments in self.moments])
            share = [part * math.sqrt(v / c) / length for v, c in zip(variances, self.costs, strict=True)]
            missing = [max(LEAST, n) - m.count for n, m in zip(share, self.moments, strict=True)]
            price = sum(max(0.0, n) * cost for n, cost in zip(missing, self.costs, strict=True))
            scale = min(1.0, (part - self.cost) / price) if price > 0 else 0.0
            first = self.moments[0].count == 0
            self.sample([int(n) if first else math.floor(n * scale) for n in missing])
        return None

    def wanted(self, variance: float) -> list[int]:
        """Return the numbers of samples that a variance takes, for what is known; the progress bar learns it too."""
        counts = optimal_samples(self.variances(), self.costs, variance)
        if self.paths.bar is not None:
            known = [max(n, moments.count) for n, moments in zip(counts, self.moments, strict=True)]
            self.paths.bar.total = self.trial.cost + sum(n * cost for n, cost in zip(known, self.costs, strict=True))
        return counts

    def sample(self, more: Sequence[int]) -> None:
        """Take so many more samples of each term."""
        for number, count in enumerate(more):
            moments = self.moments[number]
            begin = moments.count
            for first in range(0, count, _PORTION):
                seeds = seeds_of(self.seed, number + 1, begin + first, min(_PORTION, count - first))
                moments.add(self.paths.of_term(self.terms[number], seeds))

    def refine(self) -> None:
        """Add a term to the next grid."""
        finer = self.trial.further(self.terms, self.grid)
        term = finer.terms[0]
        assert term.refines is not None
        self.grid = term.refines[1]
        self.terms.append(term)
        self.costs.append(finer.costs[0])
        self.prior.append(finer.variances[0])
        self.kurtoses.append(self.kurtoses[-1])
        self.moments.append(Moments(self._shift(term)))
        self.sample([0] * (len(self.terms) - 1) + [LEAST])

    def _steps(self) -> int:
        return self.paths.grids.steps(self.grid)

    def _shift(self, term: Term) -> Tensor:
        if any(index not in self.trial.values for index, _ in term.parts):
            return torch.zeros(self.paths.outputs, dtype=torch.float64)
        return self.trial.samples_of(term).mean(0)
