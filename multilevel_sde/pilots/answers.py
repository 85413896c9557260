"""What a pilot answers: predictions, plans with their grids, exponents, advice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from scipy import stats
from torch import Tensor

from multilevel_sde.plans.plan import Plan

__all__ = [
    "Advice",
    "Calibration",
    "Form",
    "PilotPlan",
    "Prediction",
    "Rate",
    "Rates",
    "Single",
    "level_rates",
    "slope",
    "words_against",
    "words_for",
]


class Form(Enum):
    """How a plan uses its corrections.

    Attributes:
        TRACKED: Spent as they fall due, from stored values; the base by the pilot's multistep method.
        BASE: Each at once; only the base remembers, by the pilot's multistep method.
        PLAIN: Each at once, and nothing is remembered.
        ALONE: One level at every step, nothing is corrected.
    """

    TRACKED = "tracked"
    BASE = "base"
    PLAIN = "plain"
    ALONE = "alone"


class Single(NamedTuple):
    """What one level alone errs.

    Attributes:
        level: From 0, as an index of the ladder.
        steps: On so many steps.
        multistep: By the pilot's multistep method, else one step at a time.
        error: Typical squared distance to the top level's path on the finest grid.
        tail: Ratio of the mean to it.
        elsewhere: On the pilot's other grid of so many steps.
    """

    level: int
    steps: int
    multistep: bool
    error: float
    tail: float
    elsewhere: bool = False


class Calibration(NamedTuple):
    """What plans made from three quarters of the samples came to on the rest.

    Attributes:
        steps: On so many rows of a plan.
        form: In this form.
        promised: What the allocation promised, by the shrunk Gram matrix.
        first_order: The first-order error, by the Gram matrix of the plan's own samples.
        measured: Typical squared distance to the top level's path on the finest grid.
        tail: Ratio of the mean to it.
    """

    steps: int
    form: Form
    promised: float
    first_order: float
    measured: float
    tail: float


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
        levels: The levels that are evaluated, as indices from 0, as in `ladder.drifts`; texts and reports count from 1.
        predicted: What to expect.
        form: How it uses its corrections.
    """

    plan: Plan
    times: Tensor
    levels: tuple[int, ...]
    predicted: Prediction
    form: Form = Form.PLAIN


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
        text: The advice in words, which count levels from 1.
        best: The best plan at the budget that ends at the top level; the best single level where none is so cheap.
        single: The best single level at the budget: any level, any number of steps, by the pilot's method or one step
            at a time.
        em_cost: Cost at which the top level alone reaches the error of `best`.
        single_cost: Cost at which the best single level reaches it, infinite where none does.
        em_steps: Steps of the top level for the same budget.
    """

    pays: bool
    text: str
    best: PilotPlan
    single: PilotPlan
    em_cost: float
    single_cost: float
    em_steps: int

    @property
    def use(self) -> PilotPlan:
        """What is recommended: `best` where it pays, else `single`."""
        return self.best if self.pays else self.single


def words_for(best: PilotPlan, single: PilotPlan, cost: float, unit: str) -> str:
    """Return the advice to use a plan.

    Arguments:
        best: The plan.
        single: The best single level at the budget.
        cost: At which the best single level errs as little.
        unit: That of costs.
    """
    levels = ", ".join(str(level + 1) for level in best.levels)
    rival = (
        f"no single level reaches that (level {single.levels[0] + 1}: {single.predicted.mse:.3g})"
        if cost == math.inf
        else f"the best single level needs {cost / best.predicted.cost:.2g} times as much"
    )
    return (
        f"Use levels {levels} with {len(best.times) - 1} steps: expected mean squared error "
        f"{best.predicted.mse:.3g} at cost {best.predicted.cost:.3g} {unit}; {rival}."
    )


def words_against(single: PilotPlan, unit: str, elsewhere: bool) -> str:
    """Return the advice to use a single level, maybe the only one, on the candidates' grid or elsewhere."""
    steps = "step" if len(single.times) == 2 else "steps"
    how = (" on the other grid" if elsewhere else "") + (", multistep" if single.plan.recall is not None else "")
    which = f"This ladder does not pay here: use level {single.levels[0] + 1} alone with"
    return (
        f"{which if single.plan.levels > 1 else 'Use'} {len(single.times) - 1} {steps}{how}: "
        f"expected mean squared error {single.predicted.mse:.3g} at cost {single.predicted.cost:.3g} {unit}."
    )


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
