r"""Steps: how an estimate of the drift moves the state from one time to the next.

Adams-Bashforth steps keep the estimates of earlier steps. With nodes t_n > t_{n-1} > ... (in the direction of the
solve), the drift over the step from t_n to t_{n+1} is replaced by the polynomial through its last estimates F_{n-j},

    y_{n+1} = y_n + int_{t_n}^{t_{n+1}} sum_j l_j(t) F_{n-j} dt = y_n + (t_{n+1} - t_n) sum_j w_{n,j} F_{n-j},

with l_j the Lagrange polynomials of the nodes. Each row of w sums to one, so a constant drift is integrated exactly.

References:
    Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", 1993, III.5 (variable steps).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from multilevel_sde.times import as_times

__all__ = ["adams_bashforth_weights", "interpolation_weights"]


def interpolation_weights(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    r"""Return the weights w_j with sum_j w_j p(v_j) = int p(v) rho(v) dv for every polynomial p of degree below J.

    Arguments:
        nodes: J distinct numbers v_j.
        moments: At least J numbers, int v^q rho(v) dv for q = 0, 1, ...

    Returns:
        J weights; they sum to the zeroth moment.

    Example:
        >>> interpolation_weights([0.0, -1.0], [1.0, 1 / 2])  # Adams-Bashforth of order 2: rho = 1 on [0, 1]
        [1.5, -0.5]
    """
    weights = []
    for j, node in enumerate(nodes):
        polynomial = [1.0]  # of l_j, lowest power first
        for other in (other for i, other in enumerate(nodes) if i != j):
            raised, lowered = [0.0, *polynomial], [*(-other * c for c in polynomial), 0.0]
            polynomial = [(a + b) / (node - other) for a, b in zip(raised, lowered, strict=True)]
        weights.append(sum(c * moment for c, moment in zip(polynomial, moments, strict=False)))
    return weights


def adams_bashforth_weights(times: Tensor | Sequence[float], order: int) -> Tensor:
    """Return w of y_{n+1} = y_n + (t_{n+1} - t_n) sum_j w_{n,j} F_{n-j} for any monotone grid.

    The first steps have fewer estimates to go by: step n is of order min(order, n + 1).

    Arguments:
        times: N + 1 monotone times.
        order: Number of estimates used, at least 1; 1 is Euler's step.

    Returns:
        Float64 (N, order), rows sum to 1, zero where there is no estimate yet.

    Raises:
        ValueError: `order` is not a positive integer, or `times` are no grid.

    Example:
        >>> adams_bashforth_weights([0.0, 1.0, 2.0, 3.0], order=2)
        tensor([[ 1.0000,  0.0000],
                [ 1.5000, -0.5000],
                [ 1.5000, -0.5000]], dtype=torch.float64)
    """
    check_order(order)
    points = as_times(times).double().tolist()
    weights = torch.zeros(len(points) - 1, order, dtype=torch.float64)
    for n, row in enumerate(weights):
        used = min(order, n + 1)
        row[:used] = torch.tensor(_weights_of_step(points[n - used + 1 : n + 2]), dtype=torch.float64)
    return weights


def check_order(order: object, name: str = "order", least: int = 1) -> None:
    """Raise ValueError unless `order` is an integer of at least `least`."""
    if not isinstance(order, int) or isinstance(order, bool) or order < least:
        raise ValueError(f'"{name}" must be an integer of at least {least}, got {order!r}')


def _weights_of_step(points: Sequence[float]) -> list[float]:
    """Weights, newest estimate first, of the step between the last two points, with estimates at all but the last."""
    *known, s = points
    h = s - known[-1]
    nodes = [(t - known[-1]) / h for t in reversed(known)]
    return interpolation_weights(nodes, [1 / (q + 1) for q in range(len(nodes))])
