r"""Checks of a ladder and of how a plan estimates its top level.

The laws, for a state y and a time t:

- a level is a function: f^k(y, t) is finite, like y in shape, dtype and device, the same at every call, leaves y as it
  is, and does not mix samples;
- a ladder pays: measured costs T_k increase, the differences d_k = RMS(f^k - f^{k-1}) shrink;
- rates: T_k grows like 2^{gamma' k}, V_k = d_k^2 falls like 2^{-beta k}, so that cost = error^{-gamma} with
  gamma = 2 gamma' / beta, the theorem's exponent;
- a random plan is unbiased: E[F] = f^K(y, t).

References:
    Jacot 2026 (Assumptions 1 and 2, Theorem 1); Giles, "Multilevel Monte Carlo methods", Acta Numerica 24, 2015.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from multilevel_sde.cost import CostModel, FlopCost
from multilevel_sde.ladder import Ladder
from multilevel_sde.pilots.answers import Rates, level_rates
from multilevel_sde.plans.drawing import check_probabilities, draw_plan
from multilevel_sde.plans.draws import Draw, systematic
from multilevel_sde.solver.estimators import Estimator, Telescoping

__all__ = ["LadderCheck", "Unbiasedness", "check_ladder", "check_rates", "check_unbiased"]

_TELESCOPING = Telescoping()
_HITS = 100  # expected hits of every level and step, so that a mean over draws is about normal


@dataclass(frozen=True)
class LadderCheck:
    """What :func:`check_ladder` measured.

    Attributes:
        costs: Measured cost of each level, (K,).
        unit: Its unit.
        differences: RMS of f^k - f^{k-1} over samples, components and times, (K - 1,).
    """

    costs: tuple[float, ...]
    unit: str
    differences: tuple[float, ...]


@dataclass(frozen=True)
class Unbiasedness:
    """What :func:`check_unbiased` measured.

    Attributes:
        worst: Largest distance of a mean over draws to f^K, in standard errors.
        allowed: The bound that it was held against.
        draws: Number of draws.
    """

    worst: float
    allowed: float
    draws: int


def check_ladder(
    ladder: Ladder,
    y: Tensor,
    t: float | Sequence[float],
    *,
    cost: CostModel | None = None,
    tolerance: float | None = None,
) -> LadderCheck:
    """Check that drifts are functions of their arguments, that measured costs increase and that differences shrink.

    Arguments:
        ladder: K levels.
        y: States (B, ...), where the drifts are to be used.
        t: A time, or several; differences are averaged over them.
        cost: A cost model that measures, such as `SecondsCost(y)`; by default FLOPs on one sample. `GivenCost` with
            the ladder's own costs measures nothing.
        tolerance: Largest difference between a sample in a batch and alone, relative to the largest absolute value of
            the drift; by default 100 roundings of the dtype, as sums are taken in another order.

    Raises:
        AssertionError: A law of the module docstring does not hold; the first one that does not.
        ValueError: `y` has no samples, there is no time, or a drift has no FLOPs that the counter sees.

    Example:
        >>> import multilevel_sde as mls
        >>> w = torch.eye(4)
        >>> ladder = mls.Ladder([lambda x, t: x @ w, lambda x, t: torch.sin(x @ w)], costs=[1.0, 2.0])
        >>> check_ladder(ladder, torch.ones(3, 4), 0.5)
        Traceback (most recent call last):
        ...
        AssertionError: measured costs must increase with the level, got 32 for level 1 and 32 for level 2 (FLOPs)
    """
    times = _as_times(t, y)
    if y.dim() == 0 or y.numel() == 0:
        raise ValueError(f'"y" must have samples along its first dimension, got shape {tuple(y.shape)}')
    if tolerance is None:
        tolerance = 100 * torch.finfo(y.dtype).eps
    totals = [0.0] * (len(ladder) - 1)
    for time in times:
        values = [_value(ladder, level, y, time, tolerance) for level in range(len(ladder))]
        for k, (low, high) in enumerate(itertools.pairwise(values)):
            totals[k] += float((high - low).double().square().mean()) / len(times)
    model = FlopCost(y[:1], t=float(times[0])) if cost is None else cost
    costs = tuple(model(ladder.drifts))
    for level, (a, b) in enumerate(itertools.pairwise(costs)):
        if not a < b:
            raise AssertionError(
                f"measured costs must increase with the level, got {a:.6g} for level {level + 1} and {b:.6g} for level "
                f"{level + 2} ({model.unit})"
            )
    differences = tuple(math.sqrt(total) for total in totals)
    for level, (a, b) in enumerate(itertools.pairwise(differences), start=1):
        if not b < a:
            raise AssertionError(
                f"differences must shrink with the level, measured {a:.3g} from level {level} to {level + 1} and "
                f"{b:.3g} from level {level + 1} to {level + 2} (RMS)"
            )
    return LadderCheck(costs, model.unit, differences)


def _as_times(t: float | Sequence[float], y: Tensor) -> list[Tensor]:
    times = [t] if isinstance(t, int | float) else list(t)
    if not times:
        raise ValueError('"t" is empty; give a time, or several')
    return [torch.tensor(float(time), dtype=torch.float64, device=y.device) for time in times]


def _value(ladder: Ladder, level: int, y: Tensor, t: Tensor, tolerance: float) -> Tensor:
    """Return f^level(y, t) after all checks of one level."""
    drift, given = ladder.drifts[level], y.detach().clone()
    value = drift(given, t)
    where = f"the drift of level {level + 1} at time {float(t):.6g}"
    if not isinstance(value, Tensor) or (value.shape, value.dtype, value.device) != (y.shape, y.dtype, y.device):
        came = (
            f"{tuple(value.shape)}, {value.dtype}, {value.device}"
            if isinstance(value, Tensor)
            else type(value).__name__
        )
        raise AssertionError(
            f"{where} must return a tensor like its state, {tuple(y.shape)}, {y.dtype}, {y.device}, got {came}"
        )
    if not torch.equal(given, y):
        raise AssertionError(f"{where} must leave its state as it is, but changed it in place")
    kept = value.detach().clone()
    if not bool(kept.isfinite().all()):
        raise AssertionError(f"{where} must be finite, got NaN or infinity")
    again = drift(given, t).detach()
    if not torch.equal(again, kept):
        difference = float((again - kept).abs().max())
        raise AssertionError(f"{where} must be the same at every call, two calls differ by {difference:.3g}")
    scale = float(kept.abs().max()) or 1.0
    alone = torch.cat([drift(sample.clone(), t).detach() for sample in y.detach().split(1)])
    difference = float((alone - kept).abs().max()) / scale
    if not difference <= tolerance:
        raise AssertionError(
            f"{where} must not mix samples: alone and in the batch they differ by {difference:.3g} of its largest "
            f"value, expected at most {tolerance:.3g}"
        )
    return kept


def check_rates(
    ladder: Ladder, y: Tensor, t: float | Sequence[float], *, gamma: float, tolerance: float = 0.2
) -> Rates:
    """Check the theorem's exponent of a ladder, cost = error^{-gamma}, by regression of costs and differences.

    Arguments:
        ladder: At least 3 levels.
        y: States (B, ...).
        t: A time, or several.
        gamma: The expected exponent.
        tolerance: Largest distance of the measured exponent to it. Both regressions are on K and K - 1 points, so it
            should cover how far the ladder is from a power law.

    Returns:
        The exponents; `cost_exponent` is the one that is checked.

    Raises:
        AssertionError: The measured exponent is further away than `tolerance`.
        ValueError: Fewer than 3 levels, or two levels that are equal.

    Example:
        >>> import multilevel_sde as mls
        >>> problem = mls.problems.scaling_law(gamma=3.0, levels=4)
        >>> round(check_rates(problem.ladder, problem.y0(8), 0.5, gamma=3.0).cost_exponent, 6)
        3.0
    """
    if len(ladder) < 3:
        raise ValueError(f'"ladder" must have at least 3 levels for a regression, got {len(ladder)}')
    times = _as_times(t, y)
    variances = torch.zeros(len(ladder) - 1, dtype=torch.float64)
    for time in times:
        values = [drift(y.detach().clone(), time).detach().double() for drift in ladder.drifts]
        squares = [(high - low).square().mean() for low, high in itertools.pairwise(values)]
        variances += torch.stack(squares).cpu() / len(times)
    if not bool((variances > 0).all()):
        level = int(variances.argmin()) + 1
        raise ValueError(f'"ladder" has equal levels {level} and {level + 1}')
    rates = level_rates(variances, ladder.costs)
    if not abs(rates.cost_exponent - gamma) <= tolerance:
        raise AssertionError(
            f"measured cost exponent {rates.cost_exponent:.3f} (costs grow by {rates.gamma.value:.3f} and squared "
            f"differences fall by {rates.beta.value:.3f} powers of two a level), expected {gamma:g} within "
            f"{tolerance:g}"
        )
    return rates


def check_unbiased(
    ladder: Ladder,
    y: Tensor,
    t: float,
    probabilities: Tensor,
    *,
    draw: Draw = systematic,
    estimator: Estimator = _TELESCOPING,
    draws: int = 4000,
    level: float = 1e-6,
    seed: int = 0,
) -> Unbiasedness:
    """Check that the mean of the estimate over draws of a plan is f^K, at every step of the plan.

    Each of the M means (a component of a step) is held against z standard errors, with z such that all M normal means
    together exceed it with probability `level` at most (Bonferroni).

    Arguments:
        ladder: K levels.
        y: The state of one sample, (1, ...).
        t: A time.
        probabilities: p_k(n), (N, K), at least 100 / draws each.
        draw: How hits are drawn.
        estimator: How hits become an estimate.
        draws: Number of draws.
        level: Probability of a false alarm.
        seed: Of the draws.

    Raises:
        AssertionError: A mean is further from f^K than z standard errors (and rounding).
        ValueError: `y` is not one sample, `level` is outside (0, 1), or draws are too few for the probabilities.

    Example:
        >>> import multilevel_sde as mls
        >>> problem = mls.problems.scaling_law(gamma=3.0, levels=3)
        >>> p = torch.tensor([[1.0, 0.5, 0.25]])
        >>> result = check_unbiased(problem.ladder, problem.y0(1), 0.5, p, draw=mls.independent)
        >>> result.worst < result.allowed
        True
    """
    if y.dim() == 0 or len(y) != 1:
        raise ValueError(f'"y" must be the state of one sample, (1, ...), got shape {tuple(y.shape)}')
    if not 0 < level < 1:
        raise ValueError(f'"level" must lie in (0, 1), got {level}')
    table = check_probabilities(probabilities)
    if draws * float(table.min()) < _HITS:
        raise ValueError(
            f'"draws" must be at least {math.ceil(_HITS / float(table.min()))} for probabilities down to '
            f"{float(table.min()):.3g}, got {draws}"
        )
    plan = draw_plan(table, draw, generator=torch.Generator().manual_seed(seed), samples=draws)
    time = torch.tensor(t, dtype=torch.float64, device=y.device)
    values = [drift(y.detach().clone(), time).detach() for drift in ladder.drifts]
    needed, combine = estimator.needed(plan), estimator.start(plan)
    allowed = float(stats.norm.isf(level / (2 * y.numel() * len(table))))
    worst = 0.0
    for n in range(len(table)):
        masks = needed[n].to(y.device)
        shared = {
            k: torch.where(masks[:, k].reshape(-1, *[1] * (y.dim() - 1)), value, 0.0)
            for k, value in enumerate(values)
            if masks[:, k].any()
        }
        estimates = combine(n, shared).double()
        error = estimates.std(0) / math.sqrt(draws)
        rounding = 10 * len(values) * torch.finfo(y.dtype).eps * max(float(value.abs().max()) for value in values)
        distance = (estimates.mean(0) - values[-1][0].double()).abs()
        far = float(((distance - rounding).clamp_min(0) / error.clamp_min(torch.finfo(torch.float64).tiny)).max())
        if not far <= allowed:
            raise AssertionError(
                f"the mean of {draws} draws at step {n} is {far:.2f} standard errors from the top level, expected at "
                f"most {allowed:.2f} (false alarm probability {level:g})"
            )
        worst = max(worst, far)
    return Unbiasedness(worst, allowed, draws)
