"""What is measured first: phi at every level on some grids, on the same paths, and what that says of all terms.

Few paths show a variance badly where few of them make it, as with payoffs that jump: of n samples of kurtosis k it has
a relative variance of (k - 1) / n. So a variance is the mean of the measured one and of what the coarser grids let
expect, which counts like a measurement with a relative variance of 1/4; expected ones only ever raise it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from multilevel_sde.errors import NonFiniteError
from multilevel_sde.expectations.decay import Decay, Difference, Slope, slope
from multilevel_sde.expectations.paths import Paths, seeds_of
from multilevel_sde.expectations.terms import Index, Term, antithetic, cheapest_chain, cheapest_rectangle, difference

__all__ = ["EXPECTED", "Scheme", "Trial", "kurtosis_of"]

_FULL, _LEAST = 3, 32  # grids with all samples; samples of the finest ones
_HUGE = 20.0  # times the largest phi of a finer grid on the same paths: coarse steps are unstable
_MOST = 8.0  # times the measured variance that is expected at most
EXPECTED = 4.0  # what an expected variance counts, over its relative variance


@dataclass(frozen=True)
class Scheme:
    """Terms that add up to the expectation at one index, with the variance, the kurtosis and the cost of each."""

    terms: tuple[Term, ...]
    variances: tuple[float, ...]
    kurtoses: tuple[float, ...]
    costs: tuple[float, ...]

    @property
    def work(self) -> float:
        """(sum sqrt(V C))^2, the least cost at a variance of 1."""
        return sum(math.sqrt(v * c) for v, c in zip(self.variances, self.costs, strict=True)) ** 2


@dataclass
class Trial:
    """Values of phi on the paths of one set of seeds, (n, m) at each index; finer grids have fewer.

    Attributes:
        paths: What samples are made of.
        seed: Of the whole estimate; the trial has its stream 0.
        samples: How many paths the coarse grids have.
        values: By index.
        cost: What it took.
        unstable: Grids whose paths became infinite or huge, and which are not used.
    """

    paths: Paths
    seed: int
    samples: int
    values: dict[Index, Tensor] = field(default_factory=dict)
    cost: float = 0.0
    unstable: list[int] = field(default_factory=list)
    _variances: dict[Term, float] = field(default_factory=dict)
    _steps: dict[int, tuple[float, float]] = field(default_factory=dict)

    @property
    def levels(self) -> int:
        """K."""
        return len(self.paths.ladder)

    @property
    def top_grids(self) -> list[int]:
        """The grids on which the top level was measured."""
        return sorted({index[1] for index in self.values if index[0] == self.levels - 1})

    def size(self, grid: int) -> int:
        """Return how many paths a grid will get: all on coarse ones, fewer where a path is expensive."""
        done = len(self.top_grids)
        return min(self.samples, max(_LEAST, self.samples >> max(0, done - _FULL)))

    def price(self, grid: int) -> float:
        """Return what measuring a grid costs."""
        return self.size(grid) * sum(self.paths.cost((level, grid)) for level in range(self.levels))

    def measure(self, grid: int) -> None:
        """Measure all levels on a grid.

        Raises:
            NonFiniteError: The finest grid is unstable too.
        """
        seeds, indices = seeds_of(self.seed, 0, 0, self.size(grid)), [(level, grid) for level in range(self.levels)]
        self.cost += self.price(grid)
        try:
            found = self.paths.at(indices, seeds)
        except NonFiniteError:
            if grid == len(self.paths.grids) - 1:
                raise
            self.unstable.append(grid)
            return
        self.values.update(zip(indices, found, strict=True))
        self._drop(float(torch.stack([values.abs().max() for values in found]).max()))
        self._forget()

    def _drop(self, largest: float) -> None:
        """Leave out coarser grids on which phi is out of all proportion to its largest value on the newest one."""
        for grid in self.top_grids[:-1]:
            indices = [(level, grid) for level in range(self.levels)]
            if max(float(self.values[index].abs().max()) for index in indices) > _HUGE * largest > 0:
                self.unstable.append(grid)
                for index in [index for index in self.values if grid in index[1:]]:
                    del self.values[index]

    def enlarge(self, factor: int) -> None:
        """Measure so many times as many paths on every grid."""
        for grid in self.top_grids:
            indices = [index for index in self.values if index[1] == grid]
            have = len(self.values[indices[0]])
            self.cost += (factor - 1) * have * sum(map(self.paths.cost, indices))
            more = self.paths.at(indices, seeds_of(self.seed, 0, have, (factor - 1) * have))
            for index, values in zip(indices, more, strict=True):
                self.values[index] = torch.cat([self.values[index], values])
        self._forget()

    def _forget(self) -> None:
        self._variances.clear()
        self._steps = self._neighbours()

    def samples_of(self, term: Term) -> Tensor:
        """Return the trial's samples of a term, (n, m)."""
        for index in [index for index, _ in term.parts if index not in self.values]:  # turned paths
            count = len(self.values[index[:2]])
            self.cost += count * self.paths.cost(index)
            self.values[index] = self.paths.at([index], seeds_of(self.seed, 0, 0, count))[0]
        n = min(len(self.values[index]) for index, _ in term.parts)
        return sum(sign * self.values[index][:n] for index, sign in term.parts)  # type: ignore[return-value]

    def variance(self, term: Term) -> float:
        """Return the variance of a term, the largest of its outputs, raised where the coarser grids let expect more."""
        if term not in self._variances:
            values = self.samples_of(term)
            found = float(values.var(0).max())
            if term.refines is not None and len(term.parts) < 4:
                i, j = term.refines
                passed = [step for grid, step in self._steps.items() if i < grid <= j]
                expected, tails = (max(numbers, default=1.0) for numbers in zip(*passed, strict=True))
                found = max(found, _likely(found, expected, len(values), max(tails, kurtosis_of(values))))
            self._variances[term] = found
        return self._variances[term]

    def _neighbours(self) -> dict[int, tuple[float, float]]:
        """Variance and kurtosis of the top level's step to each grid from the one before, as they are likely."""
        found, before, tails = {}, None, 1.0
        order, steps = self.variance_order().value, self.paths.grids.steps
        order = 1.0 if math.isnan(order) else min(max(order, 0.25), 4.0)
        for i, j in pairwise(self.top_grids):
            values = self.samples_of(self._top(j, i))
            variance, own = float(values.var(0).max()), kurtosis_of(values)
            tails = own if variance > 0 else tails  # zeros say nothing of what they miss
            if before is not None:
                expected = before[0] * (steps(before[1]) / steps(j)) ** order
                variance = max(variance, _likely(variance, expected, len(values), tails))
            found[j], before = (variance, tails), (variance, j)
        return found

    def term_cost(self, term: Term) -> float:
        """Return the cost of a sample of a term."""
        return term.cost(self.paths.cost)

    def differences(self) -> list[Difference]:
        """Return what refining the grid does at the top level, between neighbouring grids."""
        found = []
        for i, j in pairwise(self.top_grids):
            values = self.samples_of(self._top(j, i))
            steps = self.paths.grids.steps
            more = max(0.0, self._steps[j][0] - float(values.var(0).max()))
            variance = (values.var(0) + more) / len(values)
            found.append(Difference(steps(i), steps(j), values.mean(0), variance))
        return found

    def decay(self) -> Decay | None:
        """Return what the trial says of the bias."""
        return Decay.fit(self.differences())

    def variance_order(self) -> Slope:
        """Return beta: differences of neighbouring grids have a variance of order steps^-beta.

        Near 1 where few samples tell little: as if it had been measured as 1 with a standard error of a half. Coarse
        grids count less, as they are not asymptotic yet.
        """
        x, y, errors, steps = [], [], [], self.paths.grids.steps
        for i, j in pairwise(self.top_grids):
            values, rough = self.samples_of(self._top(j, i)), 0.1 * steps(self.top_grids[-1]) / steps(j)
            v = float(values.var(0).max())
            if v > 0:
                x.append(-math.log(steps(j)))
                y.append(math.log(v))
                errors.append(math.hypot(rough, math.sqrt(max(1.0, kurtosis_of(values) - 1) / len(values))))
        return slope(x, y, errors, prior=(1.0, 0.5))

    def scheme(self, grid: int) -> Scheme:
        """Return the cheapest terms that end at the top level on a grid, measured or finer.

        Beyond the measured grids terms go on as the last one does, with variances that fall as measured.
        """
        last = max(g for g in self.top_grids if g <= grid)
        end, known = (self.levels - 1, last), [i for i in self.values if len(i) == 2 and i[1] <= last]
        pairs = set(pairwise(self.top_grids))

        def length(term: Term) -> float:
            if self.paths.antithetic and not {term.refines} <= {None, *pairs}:
                return math.inf  # turned paths are known beside neighbouring grids only
            term = self._paired(term)
            return math.sqrt(self.variance(term) * self.term_cost(term))

        work, terms = cheapest_chain(known, end, length)
        mixed = cheapest_rectangle(known, end, length)
        if mixed is not None and mixed[0] < work:
            terms = mixed[1]
        terms = tuple(map(self._paired, terms))
        found, variances = list(terms), [self.variance(term) for term in terms]
        kurtoses = [kurtosis_of(self.samples_of(term)) for term in terms]
        for number in range(2, len(terms)):  # jumps are rarer on finer grids, and few samples do not show it
            kurtoses[number] = max(kurtoses[number - 1 : number + 1])
        while last < grid:
            more = self.further(found, last, grid)
            found += more.terms
            variances += more.variances
            kurtoses.append(kurtoses[-1])
            last = found[-1].refines[1]  # type: ignore[index]
        return Scheme(tuple(found), tuple(variances), tuple(kurtoses), tuple(map(self.term_cost, found)))

    def further(self, terms: Sequence[Term], grid: int, most: int | None = None) -> Scheme:
        """Return one more term at the top level, from a grid on to the next as far as the last refinement went."""
        end = min(grid + self._stride(terms), len(self.paths.grids) - 1 if most is None else most)
        term = self._top(end, grid)
        return Scheme((term,), (self.beyond(grid, end),), (1.0,), (self.term_cost(term),))

    def _stride(self, terms: Sequence[Term]) -> int:
        """How many grids the last refinement of some terms goes on, but no more than two."""
        refined = [term.refines for term in terms if term.refines is not None]
        return min(2, refined[-1][1] - refined[-1][0]) if refined else 1

    def beyond(self, i: int, j: int) -> float:
        """Extrapolate the variance of the top level's difference of two grids."""
        steps = self.paths.grids.steps
        pairs = list(pairwise(self.top_grids))
        if not pairs:
            return self.variance(difference((self.levels - 1, self.top_grids[-1])))
        a, b = pairs[-1]
        beta = self.variance_order().value
        beta = 1.0 if math.isnan(beta) else min(max(beta, 0.25), 4.0)
        measured, wanted = (steps(p) ** -beta - steps(q) ** -beta for p, q in ((a, b), (i, j)))
        return self.variance(self._top(b, a)) * wanted / measured

    def _top(self, j: int, i: int) -> Term:
        return self._paired(difference((self.levels - 1, j), (self.levels - 1, i)))

    def _paired(self, term: Term) -> Term:
        return antithetic(term) if self.paths.antithetic else term

    def add_up(self, terms: Sequence[Term]) -> Tensor | None:
        """Return what refining does at the top level less what some terms of that refinement do, samples (n, m).

        None where it is nothing by construction, or was not measured.
        """
        refined = terms[0].refines
        assert refined is not None
        rest = self._top(refined[1], refined[0])
        parts = [*rest.parts, *((index, -sign) for term in terms for index, sign in term.parts)]
        left: dict[Index, float] = {}
        for index, sign in parts:
            left[index] = left.get(index, 0) + sign
        term = Term(tuple((index, sign) for index, sign in left.items() if sign))
        if not term.parts or any(index not in self.values for index, _ in term.parts):
            return None
        return self.samples_of(term)


def kurtosis_of(values: Tensor) -> float:
    """Return the largest kurtosis of the outputs of some samples (n, m); 1 where they do not vary.

    Example:
        >>> kurtosis_of(torch.tensor([[0.0], [0.0], [0.0], [4.0]]))
        2.333...
    """
    square = (values - values.mean(0)).square()
    return float((square.square().mean(0) / square.mean(0).square()).nan_to_num(1.0).max())


def _likely(measured: float, expected: float, samples: int, kurtosis: float) -> float:
    weight = samples / max(1.0, kurtosis - 1)
    if measured > 0:  # what was seen is not far below the truth, whatever coarse grids do
        expected = min(expected, _MOST * measured)
    return (weight * measured + EXPECTED * expected) / (weight + EXPECTED)
