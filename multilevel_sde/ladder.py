r"""A ladder of drifts f^1 ... f^K, cheap and rough to expensive and accurate, and what each costs.

The telescoping sum

    f^K = f^1 + (f^2 - f^1) + ... + (f^K - f^{K-1})

is what makes a ladder useful: keep the first, cheap term at every step, and take the corrections D_k = f^k - f^{k-1}
only now and then with a larger weight. A correction that is small compared to its cost needs few evaluations. With
hits B_k ~ Bernoulli(p_k),

    F = f^1 + sum_{k>1} (B_k / p_k) (f^k - f^{k-1}),        E[F] = f^K,

and with w_k = B_k / p_k the same sum reads F = sum_k (w_k - w_{k+1}) f^k with w_{K+1} = 0: a network is needed at a
step exactly when its own coefficient w_k - w_{k+1} is not zero. Where all p = 1 only f^K is left, which is plain
Euler-Maruyama on the top level.

Levels are numbered k = 1 ... K in formulas and 0 ... K-1 in code.

References:
    Jacot, "Polynomial Speedup in Diffusion Models with the Multilevel Euler-Maruyama Method", 2026.
    Giles, "Multilevel Monte Carlo methods", Acta Numerica 24, 2015.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

from multilevel_sde.arguments import as_items
from multilevel_sde.cost import CostModel, Drift, GivenCost

__all__ = ["Ladder"]

_LEAST, _MOST = 1e-75, 1e75  # of a cost


class Ladder:
    """Drifts from cheap and rough to expensive and accurate, with the cost of one evaluation of each.

    A ladder is immutable.

    Arguments:
        drifts: Callables f(x, t) -> Tensor shaped like x, cheapest first; t is a 0-d tensor on the device of x.
        costs: One positive number per drift, strictly increasing, or a cost model such as
            :class:`FlopCost` that measures them.

    Raises:
        TypeError: A drift is not callable, or `costs` is neither a sequence nor a cost model.
        ValueError: The ladder is empty, or the costs are not positive, strictly increasing numbers between 1e-75 and
            1e75, one per drift.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder = mls.Ladder([lambda x, t: -x, lambda x, t: -torch.sin(x)], costs=[1.0, 8.0])
        >>> len(ladder), ladder.costs
        (2, (1.0, 8.0))
        >>> ladder.top().costs
        (8.0,)
    """

    __slots__ = ("_costs", "_drifts", "_unit")

    def __init__(self, drifts: Iterable[Drift], costs: Sequence[float] | CostModel):
        self._drifts = tuple(as_items("drifts", drifts, "callables"))
        if not self._drifts:
            raise ValueError('"drifts" is empty; a ladder needs at least one drift')
        for level, drift in enumerate(self._drifts):
            if not callable(drift):
                raise TypeError(
                    f'"drifts[{level}]" must be a callable f(x, t) -> Tensor, got {type(drift).__name__}; '
                    "wrap it in a function"
                )
        if isinstance(costs, type):
            raise TypeError(
                f'"costs" must be one number per drift or a cost model, got the class {costs.__name__}; make an object '
                f"of it, such as {costs.__name__}(x)"
            )
        is_model = callable(costs) and isinstance(getattr(costs, "unit", None), str)
        if not is_model and (not isinstance(costs, Iterable) or isinstance(costs, str | bytes)):
            raise TypeError(
                f'"costs" must be one number per drift or a cost model, got {type(costs).__name__}; '
                "for example [1.0, 8.0]"
            )
        model = costs if callable(costs) else GivenCost(tuple(costs))
        self._unit = model.unit
        self._costs = tuple(model(self._drifts))
        _check_costs(self._costs, len(self._drifts))

    @property
    def drifts(self) -> tuple[Drift, ...]:
        """The drifts, cheapest first."""
        return self._drifts

    @property
    def costs(self) -> tuple[float, ...]:
        """Cost T_k of one evaluation of each drift, strictly increasing."""
        return self._costs

    @property
    def unit(self) -> str:
        """Name of the unit of the costs."""
        return self._unit

    def __len__(self) -> int:
        return len(self._drifts)

    def __repr__(self) -> str:
        return f"Ladder({len(self)} levels, costs={[float(f'{c:.4g}') for c in self._costs]} {self._unit})"

    def in_evaluations(self, unit: str = "evaluations of the top level") -> Ladder:
        """Return the ladder with costs in evaluations of its top level, which then costs 1.

        Arguments:
            unit: What messages call this unit.

        Example:
            >>> import torch, multilevel_sde as mls
            >>> mls.Ladder([torch.sin, torch.cos], costs=[3.0, 12.0]).in_evaluations()
            Ladder(2 levels, costs=[0.25, 1.0] evaluations of the top level)
        """
        return Ladder(self._drifts, GivenCost([cost / self._costs[-1] for cost in self._costs], unit))

    def top(self) -> Ladder:
        """Return the one-level ladder of f^K."""
        return self.subset([len(self) - 1])

    def subset(self, levels: Sequence[int]) -> Ladder:
        """Return the ladder of the given levels (0-based, increasing), with their costs as they are.

        Raises:
            ValueError: `levels` is empty, not strictly increasing, or outside the ladder.
        """
        chosen = list(levels)
        inside = all(isinstance(k, int) and 0 <= k < len(self) for k in chosen)
        if not chosen or not inside or any(a >= b for a, b in itertools.pairwise(chosen)):
            raise ValueError(
                f'"levels" must be strictly increasing indices within 0..{len(self) - 1}, got {chosen}; '
                "for example ladder.subset([0, 2])"
            )
        return Ladder([self._drifts[k] for k in chosen], GivenCost([self._costs[k] for k in chosen], self._unit))


def _check_costs(costs: tuple[float, ...], levels: int) -> None:
    if len(costs) != levels:
        raise ValueError(f'"costs" has {len(costs)} entries for {levels} drifts; give exactly one cost per drift')
    for level, cost in enumerate(costs):
        if not (math.isfinite(cost) and cost > 0):
            raise ValueError(f'"costs[{level}]" must be a positive finite number, got {cost}')
        if not _LEAST <= cost <= _MOST:
            raise ValueError(
                f'"costs[{level}]" must lie between {_LEAST:g} and {_MOST:g}, so that their products are numbers, got '
                f"{cost}; choose another unit"
            )
    for level in range(1, levels):
        if costs[level] <= costs[level - 1]:
            raise ValueError(
                f'"costs" must strictly increase with the level, got {costs[level - 1]:.6g} for level {level} and '
                f"{costs[level]:.6g} for level {level + 1}; reorder the drifts or drop the one that does not pay"
            )
