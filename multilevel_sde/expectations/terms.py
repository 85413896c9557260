r"""Terms: differences of neighbouring paths, on the same noise, whose expectations add up to that of the finest path.

An index is a pair (level of the ladder, grid), both from cheap to expensive. A term is a sum of values of phi at some
indices with the signs + and -. Two families are known to add up:

    chain        P(a_1) + (P(a_2) - P(a_1)) + ... + (P(a_L) - P(a_{L-1})),    a_1 <= a_2 <= ... <= a_L componentwise
    rectangle    sum over levels k and grids j of P(k, j) - P(k-1, j) - P(k, j-1) + P(k-1, j-1)

An antithetic term has the mean of two paths in the place of each on its finer grid i: that path, and one whose
increments are turned around inside each step of the coarser grid j, an index (k, i, j). Both have the same law, and
areas of opposite sign.

With optimal numbers of samples, N ~ sqrt(V / C), a mean squared error of e^2 costs (sum sqrt(V C))^2 / e^2 for terms
of variance V and cost C. So the cheapest chain is a shortest path from nothing to a_L, whose arcs have the lengths
sqrt(V C). It may skip grids, which is a refinement by 4 or 8 instead of 2, and levels that do not pay.

References:
    Giles, "Multilevel Monte Carlo methods", Acta Numerica 24, 2015;
    Haji-Ali, Nobile and Tempone, "Multi-index Monte Carlo", Numerische Mathematik 132, 2016 (the rectangle);
    Giles and Szpruch, "Antithetic multilevel Monte Carlo estimation for multi-dimensional SDEs without Levy area
    simulation", Annals of Applied Probability 24, 2014.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

__all__ = ["Index", "Term", "antithetic", "cheapest_chain", "cheapest_rectangle", "difference", "total"]

Index = tuple[int, ...]  # (level, grid), or with the coarser grid of an antithetic term


@dataclass(frozen=True)
class Term:
    """A signed sum of values at indices, the most expensive first.

    Example:
        >>> difference((0, 2), (0, 1)).refines
        (1, 2)
    """

    parts: tuple[tuple[Index, float], ...]

    @property
    def refines(self) -> tuple[int, int] | None:
        """The grids that it goes from and to, or None where all its paths are on one grid."""
        grids = [index[1] for index, _ in self.parts]
        return None if min(grids) == max(grids) else (min(grids), max(grids))

    def cost(self, price: Callable[[Index], float]) -> float:
        """Return the cost of one sample: all its paths are computed."""
        return sum(price(index) for index, _ in self.parts)


def difference(fine: Index, coarse: Index | None = None) -> Term:
    """Return the term P(fine) - P(coarse), or P(fine)."""
    return Term(((fine, 1),) if coarse is None else ((fine, 1), (coarse, -1)))


def antithetic(term: Term) -> Term:
    """Return the term with pairs of paths on its finer grid; the term itself where all its paths are on one grid.

    Example:
        >>> antithetic(difference((0, 2), (0, 1))).parts
        (((0, 2), 0.5), ((0, 2, 1), 0.5), ((0, 1), -1))
    """
    if term.refines is None:
        return term
    coarse, fine = term.refines
    parts: list[tuple[Index, float]] = []
    for index, sign in term.parts:
        parts += [(index, sign / 2), ((*index, coarse), sign / 2)] if index[1] == fine else [(index, sign)]
    return Term(tuple(parts))


def total(terms: Iterable[Term]) -> dict[Index, float]:
    """Return what the terms add up to: the indices whose coefficients do not cancel.

    Example:
        >>> total([difference((0, 0)), difference((0, 2), (0, 0)), difference((1, 2), (0, 2))])
        {(1, 2): 1}
    """
    found: dict[Index, float] = {}
    for term in terms:
        for index, sign in term.parts:
            found[index] = found.get(index, 0) + sign
    return {index: sign for index, sign in found.items() if sign}


def cheapest_chain(
    indices: Iterable[Index], last: Index, length: Callable[[Term], float]
) -> tuple[float, tuple[Term, ...]]:
    """Return the least sum of lengths of a chain that ends at `last`, and its terms.

    Example:
        >>> lengths = {(0, 0): 1.0, (0, 1): 0.5, (0, 2): 0.1}
        >>> plain = lambda term: len(term.parts) == 1 and term.parts[0][0] != (0, 0)
        >>> length = lambda term: 9.0 if plain(term) else lengths[term.parts[0][0]]
        >>> cheapest_chain(lengths, (0, 2), length)[0]  # straight from grid 0 to grid 2
        1.1
    """
    best: dict[Index, tuple[float, tuple[Term, ...]]] = {}
    for fine in sorted(set(indices)):
        options: list[tuple[float, tuple[Term, ...]]] = [(length(difference(fine)), (difference(fine),))]
        for coarse, (before, terms) in best.items():
            if coarse[0] <= fine[0] and coarse[1] <= fine[1]:
                step = difference(fine, coarse)
                options.append((before + length(step), (*terms, step)))
        best[fine] = min(options, key=lambda option: option[0])
    return best[last]


def cheapest_rectangle(
    indices: Iterable[Index], last: Index, length: Callable[[Term], float]
) -> tuple[float, tuple[Term, ...]] | None:
    """Return the least sum of lengths of a rectangle of at least two levels and grids, and its terms; None if none.

    Example:
        >>> cheapest_rectangle([(0, 0), (0, 1), (1, 0), (1, 1)], (1, 1), lambda term: 1.0)[0]
        4.0
    """
    known = set(indices)
    options = []
    for first_level in range(last[0]):
        for first_grid in range(last[1]):
            levels, grids = range(first_level, last[0] + 1), range(first_grid, last[1] + 1)
            if all((level, grid) in known for level in levels for grid in grids):
                terms = tuple(_mixed(level, grid, first_level, first_grid) for grid in grids for level in levels)
                options.append((sum(map(length, terms)), terms))
    return min(options, key=lambda option: option[0]) if options else None


def _mixed(level: int, grid: int, first_level: int, first_grid: int) -> Term:
    corners = [(level, grid, 1), (level - 1, grid, -1), (level, grid - 1, -1), (level - 1, grid - 1, 1)]
    return Term(tuple(((k, j), sign) for k, j, sign in corners if k >= first_level and j >= first_grid))
