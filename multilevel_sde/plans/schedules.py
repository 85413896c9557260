r"""Schedules: the probabilities p_k(n) with which each level is evaluated, from a formula.

Minimising the cost sum_k p_k C_k at a given variance sum_k V_k / p_k gives p_k proportional to sqrt(V_k / C_k)
(Giles 2015). With C_k proportional to c^{gamma k} and V_k = E||f^k - f^{k-1}||^2 proportional to c^{-beta k} this is

    p_k  proportional to  c^{-k (gamma + beta) / 2}  =  T_k^{-(gamma + beta) / (2 gamma)},

the form that needs only the costs T_k. `beta` says in which unit gamma was measured:

- beta = 2: c^{-k} is the RMS (or sup-norm) error of level k, cost = error^{-gamma}. This is the paper's theorem,
  exponent (gamma + 2) / 2; the multilevel method is faster than Euler-Maruyama by one power for gamma > 2.
- beta = 1: c^{-k} is the mean squared difference, exponent (gamma + 1) / 2. The same formula in other units: with
  gamma' = gamma / 2 against the squared error, 4^{-k (gamma' + 1) / 2} = 2^{-k (gamma + 2) / 2}.

Which exponents keep the rate. With p_k = C c^{-a k} the cost at error eps is eps^{-E},

    E = 2 + max(a - beta, 0) + max(gamma - a, 0),

which is optimal exactly for min(beta, gamma) <= a <= max(beta, gamma) (at either end one factor log(1/eps) more). So
1/T (a = gamma) and the squared error (a = beta) are at the ends of the range, and the theorem's midpoint also
minimises the constant.

References:
    Jacot 2026, Theorem 1; Giles, Acta Numerica 24, 2015; derivation in docs/theory.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multilevel_sde.arguments import as_items, as_number, as_tensor
from multilevel_sde.ladder import Ladder
from multilevel_sde.plans.budgets import clip, scale_to_budget
from multilevel_sde.plans.drawing import check_probabilities
from multilevel_sde.plans.draws import Draw, systematic
from multilevel_sde.plans.plan import Plan
from multilevel_sde.times import as_times

__all__ = ["FixedSchedule", "InverseCostSchedule", "Schedule", "SwitchSchedule", "TheoremSchedule"]

_LOG_RANGE = 690.0  # of numbers that a float can hold


class Schedule(ABC):
    """Probabilities known up to one scale: p_k(n) = min(1, scale * shape_k(n)), the lowest level always 1."""

    _complete = False  # whether the shape is a table of probabilities already, for which a scale may be left out

    @abstractmethod
    def shape(self, ladder: Ladder, times: Tensor) -> Tensor:
        """Relative probabilities, positive, float64 (N, K); the lowest level's column is not used."""

    def probabilities(
        self,
        ladder: Ladder,
        times: Tensor | Sequence[float],
        *,
        budget: float | None = None,
        scale: float | None = None,
        draw: Draw = systematic,
    ) -> Tensor:
        """Return p_k(n), float64 (N, K), for a budget or a scale.

        Arguments:
            ladder: K levels.
            times: N + 1 times.
            budget: Expected cost of one trajectory in the ladder's unit, met to rounding.
            scale: The factor C in p = min(1, C shape), instead of a budget. A :class:`LearnedSchedule` multiplies all
                odds p / (1 - p) instead.
            draw: The way of drawing that the budget is meant for.

        A :class:`FixedSchedule` and a :class:`LearnedSchedule` are probabilities already: without a budget and a scale
        they are returned as they are.

        Raises:
            ValueError: Neither or both of budget and scale; a scale that is not positive; a budget below N evaluations
                of the lowest level or above N of the top level (the message has the reachable range).
        """
        if (budget is None) == (scale is None) and not (budget is None and self._complete):
            many = "at most" if self._complete else "exactly"
            raise ValueError(f'give {many} one of "budget" and "scale", got budget={budget} and scale={scale}')
        grid = as_times(times)
        if budget is not None:
            return self._within(ladder, grid, budget, draw)
        if scale is not None:
            return self._scaled(ladder, grid, _positive("scale", scale))
        return self.shape(ladder, grid).clone()

    def _relative(self, ladder: Ladder, grid: Tensor) -> Tensor:
        return self.shape(ladder, grid)

    def _proportions(self, ladder: Ladder, grid: Tensor) -> Tensor:
        """The shape up to a factor, for a budget."""
        return self._relative(ladder, grid)

    def _scaled(self, ladder: Ladder, grid: Tensor, scale: float) -> Tensor:
        return clip(self._relative(ladder, grid), scale)

    def _within(self, ladder: Ladder, grid: Tensor, budget: float, draw: Draw) -> Tensor:
        return scale_to_budget(ladder, self._proportions(ladder, grid), budget, draw)


def _positive(name: str, value: float) -> float:
    number = as_number(name, value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f'"{name}" must be a positive finite number, got {number}')
    return number


@dataclass(frozen=True)
class InverseCostSchedule(Schedule):
    """p_k = min(1, C / T_k): equal expected time on every level; the paper's first choice of fixed probabilities.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder = mls.Ladder([torch.sin, torch.cos], costs=[1.0, 8.0])
        >>> mls.InverseCostSchedule().probabilities(ladder, [0.0, 1.0], scale=2.0)
        tensor([[1.0000, 0.2500]], dtype=torch.float64)
    """

    def shape(self, ladder: Ladder, times: Tensor) -> Tensor:
        """1 / T_k at every step."""
        return (1 / torch.tensor(ladder.costs, dtype=torch.float64)).expand(len(times) - 1, -1)


@dataclass(frozen=True)
class TheoremSchedule(Schedule):
    """p_k = min(1, C T_k^{-(gamma + beta) / (2 gamma)}): the theorem's probabilities.

    With beta = 2 gamma is measured against the RMS error (the paper: p_k proportional to c^{-k (gamma + 2) / 2}),
    with beta = 1 against the mean squared one (p_k proportional to c^{-k (gamma + 1) / 2}). The module docstring
    says when each is optimal and which exponents keep the rate.

    Arguments:
        gamma: Cost exponent of the ladder, cost = error^{-gamma}; positive.
        beta: Decay of the mean squared level difference in the same unit; positive.

    Raises:
        ValueError: gamma or beta is not positive and finite.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder = mls.Ladder([torch.sin, torch.cos, torch.tan], costs=[1.0, 16.0, 256.0])  # c = 2, gamma = 4
        >>> mls.TheoremSchedule(gamma=4.0).probabilities(ladder, [0.0, 1.0], scale=1.0)
        tensor([[1.0000, 0.1250, 0.0156]], dtype=torch.float64)
    """

    gamma: float
    beta: float = 2.0

    def __post_init__(self) -> None:
        for name in ("gamma", "beta"):
            _positive(name, getattr(self, name))

    def shape(self, ladder: Ladder, times: Tensor) -> Tensor:
        """T_k^{-(gamma + beta) / (2 gamma)} at every step, within what a float can hold."""
        return self._powers(ladder, relative=False).expand(len(times) - 1, -1)

    def _proportions(self, ladder: Ladder, grid: Tensor) -> Tensor:
        return self._powers(ladder, relative=True).expand(len(grid) - 1, -1)

    def _powers(self, ladder: Ladder, *, relative: bool) -> Tensor:
        costs = torch.tensor(ladder.costs, dtype=torch.float64)
        exponent = 0.5 + 0.5 * min(self.beta / self.gamma, 1e300)
        powers = costs.pow(-exponent)
        if bool((powers > 0).all() and powers.isfinite().all()):
            return powers
        logs = -exponent * costs.log()  # of numbers beyond what a float can hold
        if relative:
            logs = logs - logs[1:].max()
        return logs.clamp(-_LOG_RANGE, _LOG_RANGE).exp()


class FixedSchedule(Schedule):
    """Probabilities given as a table, optionally scaled to a budget; without one they stay as they are.

    Arguments:
        table: p_k(n), shape (N, K), or (K,) for the same at every step.
        truncate: Allow zeros, which drop a level and all above it: biased on purpose.

    Raises:
        ValueError: See :func:`multilevel_sde.plans.drawing.check_probabilities`; a table for another number of steps or
            levels.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder = mls.Ladder([torch.sin, torch.cos], costs=[1.0, 8.0])
        >>> mls.FixedSchedule(torch.tensor([1.0, 0.5])).probabilities(ladder, [0.0, 0.5, 1.0])
        tensor([[1.0000, 0.5000],
                [1.0000, 0.5000]], dtype=torch.float64)
    """

    _complete = True

    def __init__(self, table: Tensor, *, truncate: bool = False):
        table = as_tensor("table", table)
        self._table = check_probabilities(table[None] if table.dim() == 1 else table, truncate=truncate)
        self._constant = table.dim() == 1

    def shape(self, ladder: Ladder, times: Tensor) -> Tensor:
        """Return the table."""
        table = self._table.expand(len(times) - 1, -1) if self._constant else self._table
        if table.shape != (len(times) - 1, len(ladder)):
            raise ValueError(
                f'"table" has shape {tuple(self._table.shape)}, {len(times) - 1} steps and {len(ladder)} levels need '
                f"{(len(times) - 1, len(ladder))}"
            )
        return table

    def _relative(self, ladder: Ladder, grid: Tensor) -> Tensor:
        if bool((self._table == 0).any()):
            raise ValueError('"budget" and "scale" do not apply to a table with zeros; use it as it is')
        return self.shape(ladder, grid)


@dataclass(frozen=True)
class SwitchSchedule:
    """One level at a time: the small network first, then the next, each from its boundary on (T-Stitch's rule).

    Deterministic and biased on purpose: p is 1 up to the level in use and 0 above, so that only this level is
    evaluated. A solution with such a plan says so in its status.

    Arguments:
        boundaries: K - 1 times in the order of the grid; from boundaries[k] on level k + 1 takes over from level k.

    Raises:
        ValueError: Boundaries not finite; not K - 1 of them; not in the order of the grid.

    References:
        Pan et al., "T-Stitch", 2024 (arXiv 2402.14167).

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder = mls.Ladder([torch.sin, torch.cos], costs=[1.0, 8.0])
        >>> mls.SwitchSchedule([0.5]).plan(ladder, torch.linspace(1.0, 0.0, 5)).evaluations  # runs from 1 to 0
        tensor([2, 2])
    """

    boundaries: Sequence[float]

    def __post_init__(self) -> None:
        boundaries = as_items("boundaries", self.boundaries, "times")
        if not all(math.isfinite(as_number("boundaries", boundary)) for boundary in boundaries):
            raise ValueError(f'"boundaries" must be finite times, got {list(self.boundaries)}')

    def probabilities(
        self,
        ladder: Ladder,
        times: Tensor | Sequence[float],
        *,
        budget: float | None = None,
        scale: float | None = None,
    ) -> Tensor:
        """Return the table of zeros and ones, float64 (N, K); draw from it with `truncate=True`, or use `plan`.

        Raises:
            ValueError: A budget or a scale is given: the boundaries alone decide the cost. Boundaries that do not fit.
        """
        if budget is not None or scale is not None:
            raise ValueError(
                f'"budget" and "scale" do not apply to a SwitchSchedule, got {budget} and {scale}; move the boundaries'
            )
        grid = as_times(times).double()
        if len(self.boundaries) != len(ladder) - 1:
            raise ValueError(
                f'"boundaries" must have one time for each of the {len(ladder) - 1} upper levels, '
                f"got {len(self.boundaries)}"
            )
        sign = 1.0 if grid[1] > grid[0] else -1.0
        ordered = [sign * boundary for boundary in self.boundaries]
        if ordered != sorted(ordered):
            raise ValueError(
                f'"boundaries" must be in the order of "times", which run from {grid[0].item():.6g} to '
                f"{grid[-1].item():.6g}, got {list(self.boundaries)}"
            )
        reached = sign * grid[:-1, None] >= torch.tensor(ordered, dtype=torch.float64)
        return torch.cat([torch.ones(len(grid) - 1, 1, dtype=torch.float64), reached.double()], dim=1)

    def plan(self, ladder: Ladder, times: Tensor | Sequence[float]) -> Plan:
        """Return the (deterministic) plan."""
        table = self.probabilities(ladder, times)
        return Plan(table > 0, table, truncated=bool((table == 0).any()))
