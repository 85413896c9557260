r"""Recall: stored values, computed at earlier steps and used again.

A plan with a :class:`Recall` estimates f^K at step n by

    F(n) = sum_k w_k(n) (f^k - f^{k-1})(y_n, t_n) + sum_{m < n} sum_k r_k(n, m) f^k(y_m, t_m).

All use of stored values is of this form: multistep methods (Adams-Bashforth, DPM-Solver++ 2M and 3M), corrections that
are held or extrapolated until the next one is due, stored corrections as control variates, and all of them at once. So
there is one table of who is evaluated and how it is combined, and one loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from multilevel_sde.arguments import as_items, as_number
from multilevel_sde.steps.sums import added

__all__ = ["Recall"]


_MOST = 2**63  # what int64 can hold


class Recall:
    """A sparse table of coefficients on remembered values; immutable.

    Arguments:
        entries: (step n, level k, source m, coefficient r) with m < n: at step n, add r f^k(y_m, t_m). Entries of the
            same place add up; zeros are left out.

    Raises:
        ValueError: A source that is not before its step, a negative number, or a coefficient that is not finite.
        TypeError: A step, level or source that is not an integer; an entry that is not of these four.

    Example:
        >>> import multilevel_sde as mls
        >>> recall = mls.Recall([(1, 0, 0, -0.5), (2, 0, 1, -0.5)])
        >>> len(recall), recall.at(2)
        (2, [(0, 1, -0.5)])
    """

    __slots__ = ("_coefficients", "_places")

    def __init__(self, entries: Iterable[tuple[int, int, int, float]]):
        found: dict[tuple[int, int, int], float] = {}
        for entry in as_items("entries", entries, "(step, level, source, coefficient)"):
            if not isinstance(entry, Sequence) or isinstance(entry, str | bytes) or len(entry) != 4:
                raise TypeError(f'"entries" must be (step, level, source, coefficient), got {type(entry).__name__}')
            n, k, m, value = entry
            if not all(isinstance(place, int) for place in (n, k, m)):
                raise TypeError(f'"entries" must have integers for step, level and source, got {n!r}, {k!r}, {m!r}')
            if not (0 <= m < n < _MOST and 0 <= k < _MOST):
                raise ValueError(
                    f'"entries" must recall a level of an earlier step, got the entry {tuple(entry)}; '
                    "a value of the step itself is a weight of the plan"
                )
            found[n, k, m] = found.get((n, k, m), 0.0) + as_number("entries", value)
        kept = sorted((place, value) for place, value in found.items() if value != 0)
        self._places = torch.tensor([place for place, _ in kept], dtype=torch.int64).reshape(-1, 3)
        self._coefficients = torch.tensor([value for _, value in kept], dtype=torch.float64)
        if not bool(self._coefficients.isfinite().all()):
            raise ValueError('"entries" must have finite coefficients, got NaN or infinity')

    @property
    def places(self) -> Tensor:
        """(step, level, source) of every entry, sorted, int64 (E, 3); a copy."""
        return self._places.clone()

    @property
    def coefficients(self) -> Tensor:
        """Coefficient of every entry, float64 (E,); a copy."""
        return self._coefficients.clone()

    @property
    def entries(self) -> list[tuple[int, int, int, float]]:
        """All entries, sorted by step, level and source."""
        pairs = zip(self._places.tolist(), self._coefficients.tolist(), strict=True)
        return [(n, k, m, value) for (n, k, m), value in pairs]

    def at(self, step: int) -> list[tuple[int, int, float]]:
        """(level, source, coefficient) of the entries of a step."""
        return [(k, m, value) for n, k, m, value in self.entries if n == step]

    def sources(self, steps: int, levels: int) -> Tensor:
        """Which values are remembered: bool (steps, levels)."""
        table = torch.zeros(steps, levels, dtype=torch.bool)
        table[self._places[:, 2], self._places[:, 1]] = True
        return table

    def reader(self) -> Callable[[int, dict[int, Tensor]], Tensor | None]:
        """Begin a solve: return recall(n, values) -> the sum over the stored values that step n uses, or None.

        It keeps the values that a later step uses, and each only until its last use.
        """
        due: dict[int, list[tuple[int, int, float]]] = {}
        last: dict[tuple[int, int], int] = {}
        for n, k, m, value in self.entries:
            due.setdefault(n, []).append((k, m, value))
            last[m, k] = max(n, last.get((m, k), 0))
        expiring: dict[int, list[tuple[int, int]]] = {}
        for place, n in last.items():
            expiring.setdefault(n, []).append(place)
        kept: dict[tuple[int, int], Tensor] = {}

        def recall(n: int, values: dict[int, Tensor]) -> Tensor | None:
            total = None
            for k, m, value in due.get(n, ()):
                total = kept[m, k] * value if total is None else added(total, kept[m, k], value)
            for place in expiring.get(n, ()):
                del kept[place]
            kept.update({(n, k): value for k, value in values.items() if (n, k) in last})
            return total

        return recall

    def __len__(self) -> int:
        return len(self._coefficients)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Recall):
            return NotImplemented
        return torch.equal(self._places, other._places) and torch.equal(self._coefficients, other._coefficients)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Recall({len(self)} entries)"
