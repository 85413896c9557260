r"""Weights of multistep steps in the log signal-to-noise ratio: DPM-Solver++ 2M and 3M, SA-Solver's predictor.

Over the step from t to s, with h = lambda_s - lambda_t > 0 and k = 1 + tau^2, the process of `steps` is exactly

    x_s = e^{-tau^2 h} (sigma_s / sigma_t) x_t + alpha_s int_0^h k e^{-k (h - u)} x_0-hat(lambda_t + u) du + noise.

`ExponentialStep` holds x_0-hat fixed. A multistep step puts in its place the polynomial in lambda through the
estimates at the times of this and earlier steps, which gives `ExponentialStep` again with the effective estimate

    sum_j w_{n,j} x_0-hat_{n-j},   w_{n,j} = int_0^1 l_j(v) rho_z(v) dv,   rho_z(v) = z e^{-z (1 - v)} / (1 - e^{-z}),

where v = u / h, z = k h and l_j are the Lagrange polynomials of the nodes v_j = (lambda_{n-j} - lambda_n) / h. Each row
of w sums to one. What is needed of the density rho_z are its moments.

A corrector (Adams-Moulton) repeats the step with the polynomial that also goes through the estimate at the state that
was predicted, from the same state with the same noise. As each estimate is used at most a step later (PEC), predictor
and corrector together are again a multistep method in the predicted states: with A_n the predictor's and C_n the
corrector's estimate for the step from t_n to t_{n+1}, and a_n, b_n the coefficients of state and estimate in that step,

    x_{n+1} = a_n x_n + b_n ( A_n + (a_n b_{n-1} / b_n) (C_{n-1} - A_{n-1}) ) + noise.

References:
    Lu et al. 2022, DPM-Solver++ (arXiv 2211.01095), section 4 (tau = 0: 2M, 3M); Xue et al. 2023, SA-Solver
    (arXiv 2309.05019), section 4 (any tau).
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from multilevel_diffusion.process.schedule_base import NoiseSchedule
from multilevel_diffusion.process.steps import ExponentialStep
from multilevel_sde.steps.adams import check_order, interpolation_weights
from multilevel_sde.times import as_times

__all__ = [
    "REACH",
    "Moments",
    "corrected_table",
    "corrected_weights",
    "exact_moments",
    "midpoint_moments",
    "multistep_weights",
    "predictor_table",
    "rescaled_moments",
]

Moments = Callable[[float, int], list[float]]
Tau = float | Callable[[float], float]

REACH = 3.0
"""Of a base's polynomial, in lengths of the step before, where nobody chose the grid for it."""

_SMALL = 2.0  # below it the recursion of the moments loses digits, and quadrature of 20 points has all of them
_POINTS, _WEIGHTS = (array.tolist() for array in np.polynomial.legendre.leggauss(20))


def exact_moments(z: float, count: int) -> list[float]:
    r"""Return m_q = int_0^1 v^q z e^{-z (1 - v)} dv / (1 - e^{-z}), q = 0 ... count - 1: SA-Solver's coefficients.

    For |z| >= 2 by the recursion m_q = 1 / (1 - e^{-z}) - (q / z) m_{q-1}, which is stable there, for smaller ones by
    Gauss-Legendre quadrature; z = 0 gives 1 / (q + 1), those of Adams-Bashforth.

    Arguments:
        z: k h where the estimate is of the data; -h where it is of the noise, whose density is e^{-h v}.
        count: How many.

    Example:
        >>> exact_moments(0.0, 3)
        [1.0, 0.5, 0.333...]
        >>> round(exact_moments(50.0, 2)[1], 6)
        0.98
    """
    if abs(z) < _SMALL:
        points = [(1 + x) / 2 for x in _POINTS]
        density = [weight * math.exp(-z * (1 - v)) for v, weight in zip(points, _WEIGHTS, strict=True)]
        total = math.fsum(density)
        return [math.fsum(d * v**q for v, d in zip(points, density, strict=True)) / total for q in range(count)]
    edge = -1 / math.expm1(-z)
    moments = [1.0]
    for q in range(1, count):
        moments.append(edge - q / z * moments[-1])
    return moments


def midpoint_moments(z: float, count: int) -> list[float]:
    """Return `exact_moments`, at order 2 with m_1 = 1/2: DPM-Solver++(2M) as published.

    Example:
        >>> midpoint_moments(1.0, 2)
        [1.0, 0.5]
    """
    return [1.0, 0.5] if count == 2 else exact_moments(z, count)


def rescaled_moments(z: float, count: int) -> list[float]:
    r"""Return `exact_moments`, at order 2 with m_1 = z / (2 (1 - e^{-z})): SA-Solver for few steps (its appendix D).

    It replaces int_0^h k e^{-k (h - u)} u du by k h^2 / 2, a difference of order h^3.

    Example:
        >>> [round(moment, 4) for moment in rescaled_moments(1.0, 2)]
        [1.0, 0.791]
    """
    return [1.0, z / (-2 * math.expm1(-z)) if z else 0.5] if count == 2 else exact_moments(z, count)


def multistep_weights(
    schedule: NoiseSchedule,
    tau: Tau,
    times: Tensor | Sequence[float],
    order: int,
    *,
    moments: Moments = exact_moments,
    lower_order_final: bool = False,
    reach: float = math.inf,
) -> Tensor:
    """Return w such that `ExponentialStep(schedule, tau)` with the estimate sum_j w[n, j] F_{n-j} is a multistep step.

    Step n is of order min(order, n + 1). Nodes where lambda is infinite (pure noise at alpha = 0) are left out, and a
    step to the data, where h is infinite, is of order 1: no polynomial in lambda has a value there.

    Arguments:
        schedule: The noise schedule.
        tau: Amount of noise, as in `ExponentialStep`.
        times: N + 1 times from noise to data.
        order: Number of estimates used, at least 1.
        moments: Moments of rho_z; `exact_moments`, `midpoint_moments` or `rescaled_moments`.
        lower_order_final: Limit the order of step n to N - n, which helps where steps are few.
        reach: A step that is more than so many times as long in lambda as the last is of order 1. Flow matching has
            one just before the data, across which estimates do not go on as they did.

    Returns:
        Float64 (N, order), rows sum to 1.

    Raises:
        ValueError: `order` is not a positive integer, or the step is not defined (see `ExponentialStep`).

    Example:
        >>> from multilevel_diffusion.process.schedules import EDMSchedule
        >>> multistep_weights(EDMSchedule(), 0.0, [4.0, 2.0, 1.0, 0.5, 0.0], 2, moments=midpoint_moments)
        tensor([[ 1.0000,  0.0000],
                [ 1.5000, -0.5000],
                [ 1.5000, -0.5000],
                [ 1.0000,  0.0000]], dtype=torch.float64)
    """
    places, lengths, _ = _along(schedule, tau, times)
    return predictor_table(places, lengths, order, moments=moments, lower_order_final=lower_order_final, reach=reach)


def corrected_weights(
    schedule: NoiseSchedule,
    tau: Tau,
    times: Tensor | Sequence[float],
    predictor: int,
    corrector: int,
    *,
    moments: Moments = exact_moments,
    reach: float = math.inf,
) -> Tensor:
    """Return the weights of a multistep step that equals predictor and corrector in turn, one evaluation a step (PEC).

    Arguments:
        schedule, tau, times, moments, reach: As for `multistep_weights`.
        predictor: Number of estimates of the predictor, at least 1.
        corrector: Number of estimates of the corrector, the one at the predicted state included, at least 1.

    Returns:
        Float64 (N, max(predictor + 1, corrector)), rows sum to 1.

    Raises:
        ValueError: An order that is not a positive integer, or a step that is not defined.

    Reference:
        Xue et al. 2023 (arXiv 2309.05019), algorithm 1; the same samples as `SASolver(schedule, tau, predictor,
        corrector)`.

    Example:
        >>> from multilevel_diffusion.process.schedules import EDMSchedule
        >>> corrected_weights(EDMSchedule(), 0.0, [4.0, 2.0, 1.0, 0.5], 1, 2, moments=midpoint_moments)
        tensor([[ 1.0000,  0.0000],
                [ 1.2500, -0.2500],
                [ 1.2500, -0.2500]], dtype=torch.float64)
    """
    places, lengths, coefficients = _along(schedule, tau, times)
    return corrected_table(places, lengths, coefficients, predictor, corrector, moments=moments, reach=reach)


def _along(
    schedule: NoiseSchedule, tau: Tau, times: Tensor | Sequence[float]
) -> tuple[list[float], list[float], list[tuple[float, float]]]:
    """lambda at the N + 1 times, k h and the coefficients of state and estimate of the N steps."""
    points = as_times(times).double().tolist()
    places, step = [schedule.log_snr(t) for t in points], ExponentialStep(schedule, tau)
    lengths = [
        (1 + step.tau_at(t) ** 2) * (after - before)
        for t, (before, after) in zip(points, pairwise(places), strict=False)
    ]
    steps = [step.coefficients(t, s) for t, s in pairwise(points)]
    return places, lengths, [(one.state, one.data) for one in steps]


def predictor_table(
    places: Sequence[float],
    lengths: Sequence[float],
    order: int,
    *,
    moments: Moments = exact_moments,
    lower_order_final: bool = False,
    reach: float = math.inf,
) -> Tensor:
    """As :func:`multistep_weights`, from lambda at the N + 1 times and z = k h of the N steps.

    Example:
        >>> predictor_table([-1.0, 0.0, 1.0], [1.0, 1.0], 2, moments=midpoint_moments)
        tensor([[ 1.0000,  0.0000],
                [ 1.5000, -0.5000]], dtype=torch.float64)
    """
    check_order(order)
    weights = torch.zeros(len(lengths), order, dtype=torch.float64)
    for n, row in enumerate(weights):
        used = min(order, n + 1, len(weights) - n if lower_order_final else order)
        if n > 0 and places[n + 1] - places[n] > reach * (places[n] - places[n - 1]):
            used = 1
        found = polynomial_weights(places[n], places[n + 1], places[n::-1][:used], lengths[n], moments)
        row[: len(found)] = torch.tensor(found, dtype=torch.float64)
    return weights


def corrected_table(
    places: Sequence[float],
    lengths: Sequence[float],
    coefficients: Sequence[tuple[float, float]],
    predictor: int,
    corrector: int,
    *,
    moments: Moments = exact_moments,
    reach: float = math.inf,
) -> Tensor:
    """As :func:`corrected_weights`, from lambda at the N + 1 times, z = k h and (a_n, b_n) of the N steps.

    Example:
        >>> places, half = [-1.0, 0.0, 1.0], 1 - 1 / math.e
        >>> corrected_table(places, [1.0, 1.0], [(0.5, half), (0.5, half)], 1, 2, moments=midpoint_moments)
        tensor([[ 1.0000,  0.0000],
                [ 1.2500, -0.2500]], dtype=torch.float64)
    """
    check_order(corrector, "corrector")
    ahead = predictor_table(places, lengths, predictor, moments=moments, reach=reach)
    weights = torch.zeros(len(ahead), max(predictor + 1, corrector), dtype=torch.float64)
    weights[:, :predictor] = ahead
    for n in range(1, len(weights)):
        if not math.isfinite(lengths[n - 1]):
            continue
        found = polynomial_weights(places[n - 1], places[n], places[n::-1][:corrector], lengths[n - 1], moments)
        (now_state, now_data), (_, before_data) = coefficients[n], coefficients[n - 1]
        ratio = now_state * before_data / now_data
        weights[n, : len(found)] += ratio * torch.tensor(found, dtype=torch.float64)
        weights[n, 1 : predictor + 1] -= ratio * ahead[n - 1]
    return weights


def polynomial_weights(start: float, end: float, nodes: Sequence[float], z: float, moments: Moments) -> list[float]:
    """Return the weights of the estimates at lambda = nodes for the step from lambda = start to end.

    Only the nodes before the first that is infinite or equal to an earlier one are used, and a step of infinite or no
    length uses the first; there may so be fewer weights than nodes.

    Example:
        >>> polynomial_weights(0.0, 1.0, [0.0, -1.0], 1.0, midpoint_moments)
        [1.5, -0.5]
    """
    h = end - start
    if h == 0 or not math.isfinite(h):
        return [1.0]
    used: list[float] = []
    for node in nodes:
        if not math.isfinite(node) or node in used:
            break
        used.append(node)
    return interpolation_weights([(node - start) / h for node in used], moments(z, len(used)))
