r"""Power laws of the squared error in the cost, and the exponent gamma, from a handful of levels.

.. math:: e^2 = floor + A\, (T / T_0)^{-2/\gamma}

T_0 is the geometric mean of the costs: A is then of the size of the errors however steep the law is.

With a handful of levels the intervals are wide, and that is the truth: they are the regression's, with as many degrees
of freedom as there are levels beyond the parameters.

References:
    Jacot, "Polynomial Speedup in Diffusion Models with the Multilevel Euler-Maruyama Method", 2026, figure 2.
    Kaplan et al., "Scaling Laws for Neural Language Models", 2020 (arXiv 2001.08361): power laws of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares
from scipy.stats import t as student

__all__ = ["PowerFit", "fit_power", "fit_power_with_floor"]


@dataclass(frozen=True)
class PowerFit:
    r"""The law :math:`e^2 = floor + A\, (T / T_0)^{-2/\gamma}` with a 95 % confidence interval of gamma.

    Arguments:
        gamma: The exponent; infinite where the error does not fall.
        low: Lower end of its interval.
        high: Upper end, infinite where the data do not exclude a flat error.
        amplitude: A, the squared error above the floor at the cost T_0.
        reference: T_0.
        floor: The irreducible part.
    """

    gamma: float
    low: float
    high: float
    amplitude: float
    reference: float = 1.0
    floor: float = 0.0

    def __call__(self, cost: np.ndarray) -> np.ndarray:
        """Return the law's squared error at a cost.

        Example:
            >>> float(PowerFit(gamma=2.0, low=2.0, high=2.0, amplitude=3.0)(np.array(3.0)))
            1.0
        """
        return self.floor + self.amplitude * (np.asarray(cost) / self.reference) ** (-2 / self.gamma)


def fit_power(costs: Sequence[float], squared_errors: Sequence[float]) -> PowerFit:
    r"""Fit :math:`e^2 = A\, T^{-2/\gamma}` by least squares on the logarithms.

    The interval is the regression's, from Student's t with n - 2 degrees of freedom; with two points it is unbounded.

    Arguments:
        costs: T, at least two positive numbers.
        squared_errors: e^2, positive, one per cost.

    Raises:
        ValueError: There are fewer than two points, or a number is not positive.

    Example:
        >>> round(fit_power([1.0, 10.0, 100.0], [1.0, 0.1, 0.01]).gamma, 6)
        2.0
    """
    x, y = _logarithms(costs, squared_errors, least=2)
    centre = float(x.mean())
    slope, intercept = (float(value) for value in np.polyfit(x - centre, y, 1))
    freedom = len(x) - 2
    half = math.inf
    if freedom > 0:
        residual = y - slope * (x - centre) - intercept
        error = math.sqrt((residual @ residual) / freedom / ((x - centre) ** 2).sum())
        half = float(student.ppf(0.975, freedom)) * error
    return _power_fit(-slope, half, math.exp(intercept), math.exp(centre))


def fit_power_with_floor(costs: Sequence[float], losses: Sequence[float]) -> PowerFit:
    r"""Fit :math:`L = L_\infty + A\, T^{-2/\gamma}`, with :math:`L_\infty \ge 0`, by least squares on log L.

    The interval comes from the linearised regression with n - 3 degrees of freedom; with three points it is unbounded.

    Arguments:
        costs: T, at least three positive numbers.
        losses: L, positive, one per cost.

    Raises:
        ValueError: There are fewer than three points, or a number is not positive.

    Example:
        >>> costs = [1.0, 4.0, 16.0, 64.0]
        >>> fit = fit_power_with_floor(costs, [0.5 + cost**-0.5 for cost in costs])
        >>> round(fit.gamma, 4), round(fit.floor, 4)
        (4.0, 0.5)
    """
    x, y = _logarithms(costs, losses, least=3)
    centre, lowest = float(x.mean()), math.exp(y.min())

    def model(p: np.ndarray) -> np.ndarray:
        return np.log(p[2] + np.exp(p[0] - p[1] * (x - centre)))

    fits = [
        least_squares(
            lambda p: model(p) - y,
            [math.log(math.exp(y.mean()) - share * lowest), slope, share * lowest],
            bounds=([-np.inf, -5.0, 0.0], [np.inf, 5.0, lowest]),
            x_scale=[1.0, 1.0, lowest],
            xtol=1e-12,
            ftol=1e-12,
        )
        for share in (0.1, 0.5, 0.9)
        for slope in (0.2, 0.8)
    ]
    best = min(fits, key=lambda fit: fit.cost)
    half, freedom = math.inf, len(x) - 3
    if freedom > 0:
        covariance = np.linalg.pinv(best.jac.T @ best.jac) * (2 * best.cost / freedom)
        half = float(student.ppf(0.975, freedom)) * math.sqrt(covariance[1, 1])
    return _power_fit(float(best.x[1]), half, math.exp(best.x[0]), math.exp(centre), float(best.x[2]))


def _logarithms(costs: Sequence[float], errors: Sequence[float], least: int) -> tuple[np.ndarray, np.ndarray]:
    if len(costs) != len(errors) or len(costs) < least:
        raise ValueError(
            f'"costs" has {len(costs)} entries and the errors {len(errors)}, expected {least} or more pairs'
        )
    x, y = np.asarray(costs, dtype=float), np.asarray(errors, dtype=float)
    if not ((x > 0) & (y > 0)).all():
        raise ValueError(f'"costs" {list(costs)} and the errors {list(errors)} must be positive; leave out zeros')
    return np.log(x), np.log(y)


def _power_fit(slope: float, half: float, amplitude: float, reference: float, floor: float = 0.0) -> PowerFit:
    """Turn e^2 ~ T^-slope, slope +- half, into gamma = 2 / slope."""

    def gamma(value: float) -> float:
        return 2 / value if value > 0 else math.inf

    return PowerFit(gamma(slope), gamma(slope + half), gamma(slope - half), amplitude, reference, floor)
