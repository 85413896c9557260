r"""What the steps still leave of a bias: E[P] - E[P_n] = c n^-alpha for n steps, fitted to measured differences.

A difference of n_j and n_i steps has the expectation c (n_i^-alpha - n_j^-alpha). Each is trusted to its standard
error and, as coarse grids are not asymptotic yet, to a share of itself: a tenth at the finest grid, and more where the
steps are larger, in proportion. Where noise hides alpha it is taken as near 1, the weak order of Euler-Maruyama: as
if it had been measured as 1 with a standard error of 0.3. What is reported is a bound: the largest bias, one standard
error of c included, of all alpha within one standard error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Decay", "Difference", "Slope", "half_width", "slope"]

_ORDERS = torch.arange(0.25, 3.001, 0.05, dtype=torch.float64)
_TRUST = 0.1
_PRIOR, _PRIOR_ERROR = 1.0, 0.3


@dataclass(frozen=True)
class Slope:
    """An exponent and its interval.

    Attributes:
        value: The estimate.
        low: The lower end of its interval.
        high: The upper end.
    """

    value: float
    low: float
    high: float

    def __format__(self, form: str) -> str:
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]"


@dataclass(frozen=True)
class Difference:
    """A measured E[P_j] - E[P_i] of i and j > i steps: mean and variance of the mean, (m,)."""

    i: int
    j: int
    mean: Tensor
    variance: Tensor


@dataclass(frozen=True)
class Decay:
    """The bias c n^-alpha.

    Attributes:
        order: alpha, with its interval of 95%.
        likely: The orders within one standard error, (A,), the best one first.
        constants: c of each output for each of them, (A, m).
        errors: Their standard errors, (A, m).
    """

    order: Slope
    likely: Tensor
    constants: Tensor
    errors: Tensor

    @classmethod
    def fit(cls, differences: Sequence[Difference]) -> Decay | None:
        """Return the fit to some differences, or None where there are none.

        Example:
            >>> zero = torch.zeros(1, dtype=torch.float64)
            >>> measured = [Difference(n, 2 * n, zero + 3.0 / (2 * n), zero + 1e-9) for n in (2, 4, 8)]
            >>> decay = Decay.fit(measured)  # 3 / n is left
            >>> round(decay.order.value, 2), 3 / 16 < float(decay.beyond(16)) < 2.5 * 3 / 16
            (1.0, True)
        """
        if not differences:
            return None
        i, j = (torch.tensor([getattr(d, name) for d in differences], dtype=torch.float64) for name in "ij")
        means = torch.stack([d.mean for d in differences], 1)  # (m, D)
        trust = _TRUST * j.max() / j
        weights = 1 / (torch.stack([d.variance for d in differences], 1) + (trust * means).square()).clamp_min(1e-300)
        shape = i ** -_ORDERS[:, None] - j ** -_ORDERS[:, None]  # (A, D)
        information = (weights * shape[:, None].square()).sum(2)  # (A, m)
        constants = (weights * shape[:, None] * means).sum(2) / information
        misfits = (weights * (means - constants[..., None] * shape[:, None]).square()).sum((1, 2))
        misfits = misfits + ((_ORDERS - _PRIOR) / _PRIOR_ERROR).square()
        near, found = (misfits <= misfits.min() + width for width in (3.84, 1.0))
        order = Slope(float(_ORDERS[misfits.argmin()]), float(_ORDERS[near][0]), float(_ORDERS[near][-1]))
        likely = misfits.argsort()[: int(found.sum())]
        errors = information[likely].rsqrt()
        return cls(order, _ORDERS[likely], constants[likely], torch.where(errors < 1e-100, 0.0, errors))

    def likely_beyond(self, steps: int) -> Tensor:
        """Return how far it is at the best order, one standard error of c included, (m,)."""
        return (self.constants[0].abs() + self.errors[0]) * float(steps) ** -self.order.value

    def beyond(self, steps: int) -> Tensor:
        """Return how far at most the expectation on a grid is likely to be from its limit, (m,)."""
        return ((self.constants.abs() + self.errors) * float(steps) ** -self.likely[:, None]).amax(0)

    def at_least(self, steps: int) -> Tensor:
        """Return how far it is surely, (m,): four standard errors less."""
        surely = (self.constants.abs() - 3 * self.errors).clamp_min(0.0)
        return (surely * float(steps) ** -self.likely[:, None]).amin(0)


def slope(
    x: Sequence[float], y: Sequence[float], errors: Sequence[float], prior: tuple[float, float] | None = None
) -> Slope:
    """Return the slope of y against x, weighted by the errors of y, with its interval of 95%.

    Arguments:
        x: Points.
        y: Values.
        errors: Standard errors of the values.
        prior: A slope and its standard error, taken as one more measurement.

    Example:
        >>> slope([0.0, 1.0, 2.0], [1.0, 3.0, 5.0], [0.1, 0.1, 0.1]).value
        2.0
    """
    if len(x) < 2:
        return Slope(math.nan, math.nan, math.nan)
    points, values = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
    weights = torch.tensor(errors, dtype=torch.float64).clamp_min(1e-12).reciprocal().square()
    centred = points - (weights * points).sum() / weights.sum()
    information, product = float((weights * centred.square()).sum()), float((weights * centred * values).sum())
    if prior is not None:
        information, product = information + prior[1] ** -2, product + prior[0] * prior[1] ** -2
    width = 1.96 / math.sqrt(information)
    return Slope(product / information, product / information - width, product / information + width)


def half_width(error: Tensor, bias: Tensor, confidence: float) -> Tensor:
    """Return w with P(|bias + error Z| <= w) = confidence for a standard normal Z: z error without bias.

    Example:
        >>> half_width(torch.tensor([1.0]), torch.tensor([0.0]), 0.95)
        tensor([1.9600], dtype=torch.float64)
    """
    error, bias = error.double(), bias.double()
    low, high = bias.clone(), bias + 40 * error
    safe = error.clamp_min(1e-300)
    for _ in range(100):
        middle = (low + high) / 2
        inside = torch.special.ndtr((middle - bias) / safe) - torch.special.ndtr((-middle - bias) / safe)
        low, high = torch.where(inside < confidence, middle, low), torch.where(inside < confidence, high, middle)
    return torch.where(error > 0, high, bias)
