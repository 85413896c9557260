"""What a pilot answers: predictions, plans with their grids, exponents, advice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from scipy import stats
from torch import Tensor

from multilevel_sde.plans.plan import Plan

__all__ = ["Advice", "Calibration", "PilotPlan", "Prediction", "Rate", "Rates", "level_rates", "slope"]


class Calibration(NamedTuple):
    """What plans made from three quarters of the samples came to on the rest.

    Attributes:
        promised: What the allocation promised, by the shrunk Gram matrix.
        first_order: The first-order error, by the Gram matrix of the plan's own samples.
        measured: Typical squared distance to the top level's path.
    """

    promised: float
    first_order: float
    measured: float


@dataclass(frozen=True)
class Prediction:
    """Expected error and cost of one trajectory.

    Attributes:
        mse: Mean squared error per number against the top level's path on the finest grid.
        level_mse: The part that comes from leaving out corrections.
        step_mse: The part that comes from the number of steps.
        typical: Mean squared error with each sample's cut at 10 times the median: what most samples show.
        cost: In the ladder's unit.
        seconds: By the measured time of each level.
    """

    mse: float
    level_mse: float
    step_mse: float
    typical: float
    cost: float
    seconds: float


@dataclass(frozen=True)
class PilotPlan:
    """A plan with the grid it is for.

    Attributes:
        plan: Hits and weights for the whole ladder (a level that is left out is never evaluated).
        times: The grid.
        levels: The levels that are evaluated, 0-based.
        predicted: What to expect.
    """

    plan: Plan
    times: Tensor
    levels: tuple[int, ...]
    predicted: Prediction


@dataclass(frozen=True)
class Rate:
    """A regression slope with its 95% confidence interval (infinite with two points)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Rates:
    """Exponents per level, in powers of two, and what they mean.

    Attributes:
        alpha: Decay of the RMS distance of level k to the top one.
        beta: Decay of V_k = E||f^k - f^{k-1}||^2.
        gamma: Growth of the cost.
        cost_exponent: gamma against the RMS error, 2 gamma / beta: the paper's gamma.
        harder_than_monte_carlo: Whether it is above 2, where the multilevel method gains a power.
    """

    alpha: Rate
    beta: Rate
    gamma: Rate
    cost_exponent: float
    harder_than_monte_carlo: bool


@dataclass(frozen=True)
class Advice:
    """What to use at a budget.

    Attributes:
        pays: Whether the multilevel plan is predicted to need less than 0.9 of the cost of the best single level.
        text: The advice in words.
        best: The multilevel plan at the budget; EM on the top level where the budget is too small for one.
        em_cost: Cost at which EM on the top level reaches the same error.
        single_cost: Cost at which the best single level (the top one included) reaches it.
        em_steps: Steps of EM on the top level for the same budget.
    """

    pays: bool
    text: str
    best: PilotPlan
    em_cost: float
    single_cost: float
    em_steps: int


def slope(x: Sequence[float], y: Sequence[float]) -> Rate:
    """Least-squares slope with its 95% interval by Student's t."""
    if len(x) < 2:
        return Rate(math.nan, -math.inf, math.inf)
    fit: Any = stats.linregress(list(x), list(y))
    if len(x) == 2:
        return Rate(float(fit.slope), -math.inf, math.inf)
    half = float(stats.t.ppf(0.975, len(x) - 2) * fit.stderr)
    return Rate(float(fit.slope), float(fit.slope) - half, float(fit.slope) + half)


def level_rates(variances: Tensor, costs: Sequence[float]) -> Rates:
    """Regressions on the level index; the cheapest level's own size does not enter.

    Arguments:
        variances: V_k = E||f^k - f^{k-1}||^2 for k = 2 ... K, (K - 1,).
        costs: T_1 ... T_K.

    Example:
        >>> import torch
        >>> rates = level_rates(torch.tensor([1.0, 0.25, 0.0625]), [1.0, 8.0, 64.0, 512.0])
        >>> rates.beta.value, rates.gamma.value, rates.cost_exponent
        (2.0, 3.0, 3.0)
    """
    positive = variances.double().clamp_min(1e-300)
    beta = slope(range(1, len(costs)), (-positive.log2()).tolist())
    gamma = slope(range(len(costs)), [math.log2(cost) for cost in costs])
    to_top = positive.flip(0).cumsum(0).flip(0)
    alpha = slope(range(1, len(costs)), (-0.5 * to_top.log2()).tolist())
    exponent = 2 * gamma.value / beta.value if beta.value > 0 else math.inf
    return Rates(alpha, beta, gamma, exponent, exponent > 2)
