r"""Cost and error of EM and ML-EM to first order, on a ladder whose level k errs by 2^{-k} at cost 2^{gamma k}.

An error of order 2^{-K} takes EM the step length T 2^{-K} and level K, so cost = error^{-(gamma + 1)}; ML-EM keeps that
error with levels 1 ... K, the theorem's probabilities p_k = min(1, C eta 2^{-(1 + gamma/2) k}) and any fine step length
eta, at cost = error^{-max(2, gamma)} in the limit of many levels. To first order in the level errors, with the response
J(t) of the final state to a change of the state at time t,

    MSE = (c_level 2^{-K})^2 + (c_step eta)^2 + eta T G sum_{k=2}^K V_k (1/p_k - 1),

    c_level^2 = E |int_0^T J e_k dt|^2 / d,    G = (1/T) int_0^T E |J|^2 dt,    V_k = 4^{-k} + 4^{-(k-1)} = 5 4^{-k},

with c_step the error of EM on f per step length. The cost is the exact expectation with clipping and with every network
counted once a step (:func:`multilevel_sde.expected_cost`). C is chosen such that the last term, the variance, is
(c_level 2^{-K})^2.

References:
    Jacot 2026, Theorem 1 (probabilities and rates); Giles, Acta Numerica 24, 2015.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from multilevel_sde.plans.drawing import expected_cost
from multilevel_sde.plans.draws import independent
from multilevel_sde.plans.schedules import TheoremSchedule
from multilevel_sde.rates.problem_parts import check_at_least
from multilevel_sde.rates.problems import scaling_law

__all__ = ["Constants", "Point", "exponent", "limits", "predict_em", "predict_multilevel", "theorem_steps"]


@dataclass(frozen=True)
class Constants:
    """What the prediction has to know of a problem.

    Attributes:
        level: c_level, RMS change of the final state by level errors e_k, times 2^{-k} for level k.
        step: c_step, RMS error of EM on the true drift per step length.
        gain: G, the mean squared response of the final state, averaged over time.
        duration: T.
    """

    level: float
    step: float
    gain: float
    duration: float


@dataclass(frozen=True)
class Point:
    """One point of a cost-error curve.

    Attributes:
        levels: K.
        steps: N.
        cost: Expected cost of one trajectory; of a simulation, the mean over its samples.
        error: RMS error of a component of the final state.
    """

    levels: int
    steps: float
    cost: float
    error: float


def predict_em(gamma: float, constants: Constants, levels: int, steps: float, *, reference_step: float = 0.0) -> Point:
    """Predict EM with level K alone: cost N 2^{gamma K}, error as in the module docstring without variance.

    Arguments:
        gamma: Cost exponent.
        constants: The problem's.
        levels: K.
        steps: N.
        reference_step: Step length of the path that counts as exact.

    Example:
        >>> predict_em(2.0, Constants(level=3.0, step=4.0, gain=1.0, duration=1.0), levels=1, steps=2)
        Point(levels=1, steps=2, cost=8.0, error=2.5)
    """
    step = constants.duration / steps - reference_step
    error = math.hypot(constants.level * 2.0**-levels, constants.step * step)
    return Point(levels, steps, steps * 2.0 ** (gamma * levels), error)


def predict_multilevel(
    gamma: float, constants: Constants, levels: int, steps: float, *, reference_step: float = 0.0
) -> tuple[Point, float]:
    r"""Predict ML-EM with the theorem's probabilities, C such that the variance is (c_level 2^{-K})^2.

    Arguments:
        gamma: Cost exponent.
        constants: The problem's.
        levels: K, at least 2.
        steps: N, not necessarily whole.
        reference_step: Step length of the path that counts as exact.

    Returns:
        The point and the scale C eta of `TheoremSchedule(gamma).probabilities(..., scale=scale)`.

    Raises:
        ValueError: `levels` below 2, where nothing is random.

    Example:
        >>> point, scale = predict_multilevel(3.0, Constants(0.5, 0.3, 0.5, 1.0), levels=6, steps=4096)
        >>> 0.5 * 2**-6 < point.error < 1.5 * 0.5 * 2**-6, scale < 2.0 ** (2.5 * 6)
        (True, True)
    """
    check_at_least(2, levels=levels)
    ladder = scaling_law(gamma, levels).ladder
    shape = TheoremSchedule(gamma)
    eta = constants.duration / steps
    difference = 5 * 4.0 ** -torch.arange(2, levels + 1, dtype=torch.float64)
    target = (constants.level * 2.0**-levels) ** 2

    def variance(scale: float) -> float:
        p = shape.probabilities(ladder, [0.0, 1.0], scale=scale)[0, 1:]
        return eta * constants.duration * constants.gain * float((difference * (1 / p - 1)).sum())

    low, high = 2.0**-40, 2.0 ** ((1 + gamma / 2) * levels)  # at `high` all probabilities are 1
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if variance(middle) > target else (low, middle)
    p = shape.probabilities(ladder, [0.0, 1.0], scale=high)
    bias = predict_em(gamma, constants, levels, steps, reference_step=reference_step).error
    cost = steps * expected_cost(ladder, p, independent)
    return Point(levels, steps, cost, math.hypot(bias, math.sqrt(variance(high)))), high


def theorem_steps(gamma: float, constants: Constants, levels: int) -> float:
    """Return the fewest steps N at which the theorem's probabilities are not clipped: p_1 = 1, all others below.

    Not rounded. Without clipping C = 5 T G sum_k 2^{(gamma/2 - 1) k} / variance, and p_1 = C eta 2^{-(1 + gamma/2)}.

    Example:
        >>> theorem_steps(2.0, Constants(level=1.0, step=1.0, gain=1.0, duration=1.0), levels=3)
        160.0
    """
    total = sum(2.0 ** ((gamma / 2 - 1) * k) for k in range(2, levels + 1))
    scale = 5 * constants.duration * constants.gain * total / (constants.level * 2.0**-levels) ** 2
    return scale * constants.duration * 2.0 ** -(1 + gamma / 2)


def exponent(points: Sequence[Point]) -> float:
    """Return the exponent E of cost = error^{-E}: the least-squares slope of log cost against -log error.

    Raises:
        ValueError: Fewer than two points.

    Example:
        >>> exponent([Point(1, 1, cost=1.0, error=1.0), Point(2, 1, cost=8.0, error=0.5)])
        3.0
    """
    check_at_least(2, points=len(points))
    x = torch.tensor([-math.log2(point.error) for point in points], dtype=torch.float64)
    y = torch.tensor([math.log2(point.cost) for point in points], dtype=torch.float64)
    x = x - x.mean()
    return float((x @ y) / x.square().sum())


def limits(
    gamma: float, constants: Constants, at: Sequence[int] = (5, 10, 20, 40)
) -> tuple[tuple[int, float, float], ...]:
    """Predict the exponents of EM and ML-EM between K - 1 and K levels for each K, without simulation.

    EM takes 2^K steps, ML-EM those of :func:`theorem_steps` but at least 4 2^K.

    Example:
        >>> K, em, multilevel = limits(3.0, Constants(0.5, 0.3, 0.5, 1.0))[-1]
        >>> K, round(em, 2), round(multilevel, 2)
        (40, 4.0, 3.0)
    """

    def multilevel(K: int) -> Point:
        steps = max(theorem_steps(gamma, constants, K), 4 * 2.0**K)
        return predict_multilevel(gamma, constants, K, steps)[0]

    def em(K: int) -> Point:
        return predict_em(gamma, constants, K, 2.0**K)

    return tuple((K, exponent([em(K - 1), em(K)]), exponent([multilevel(K - 1), multilevel(K)])) for K in at)
