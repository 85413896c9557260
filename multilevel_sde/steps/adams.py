r"""Adams-Bashforth: steps that use the estimates of earlier steps again.

With h = t_{n+1} - t_n and F_{n-j} the estimates of the last steps,

    y_{n+1} = y_n + h sum_j w_{n,j} F_{n-j} + noise,   w_{n,j} = int_{t_n}^{t_{n+1}} l_j(t) dt / h,

where l_j are the Lagrange polynomials of the times t_n, t_{n-1}, ...: the drift over the step is replaced by the
polynomial through its last estimates. The weights of a step sum to one. Steps may be of any length.

Each estimate of a drawn plan is used in several steps, with weights that sum to one on a uniform grid (3/2 and -1/2 at
order 2). So a random correction overshoots for a step and is then partly taken back: what it leaves in the end is what
Euler-Maruyama would have made of it.

Reference:
    Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", 1993, III.5 (variable steps).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multilevel_sde.steps.rules import Advance, Estimate, StepRule, euler_maruyama
from multilevel_sde.times import as_times

__all__ = ["AdamsBashforth", "adams_bashforth_weights", "interpolation_weights"]


@dataclass(frozen=True)
class AdamsBashforth(StepRule):
    r"""y_{n+1} = y_n + h sum_j w_j F_{n-j} + noise from the last `order` estimates, one evaluation a step.

    For any monotone grid. The first steps have fewer estimates to go by and are of lower order, which costs nothing at
    order 2; at order 3 the first step is Heun's, with one evaluation more.

    Arguments:
        order: 1 (Euler-Maruyama), 2 or 3.

    Raises:
        ValueError: Another order.

    Reference:
        Hairer, Norsett, Wanner 1993, III.5.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder, times = mls.Ladder([lambda y, t: -y], costs=[1.0]), torch.linspace(0.0, 1.0, 11)
        >>> step = mls.AdamsBashforth(order=3)
        >>> plan = mls.em_plan(ladder, times, step=step)
        >>> solution = mls.solve(ladder, torch.ones(1, dtype=torch.float64), times, plan, step=step)
        >>> solution.y, solution.stats.evaluations  # exp(-1) = 0.3679
        (tensor([0.3680], dtype=torch.float64), tensor([11]))
    """

    order: int = 2

    def __post_init__(self) -> None:
        check_order(self.order)
        if self.order > 3:
            raise ValueError(f'"order" must be 1, 2 or 3, got {self.order}; its start is not accurate enough for more')

    def evaluations(self, times: Tensor) -> list[int]:
        """One in every step; two in the first at order 3."""
        steps = len(times) - 1
        return [2 if self.order == 3 else 1, *[1] * (steps - 1)]

    def start(self, times: Tensor) -> Advance:
        """Return the step, with an empty memory."""
        known: deque[tuple[float, Tensor]] = deque(maxlen=self.order)  # (time, estimate), newest last

        def advance(y: Tensor, F: Estimate, t: float, s: float, noise: Tensor | None) -> Tensor:
            known.append((t, F(y, t)))
            if self.order == 3 and len(known) == 1:
                following = euler_maruyama(y, known[0][1], t, s, noise)
                return euler_maruyama(y, 0.5 * (known[0][1] + F(following, s)), t, s, noise)
            weights = _weights_of_step([*(time for time, _ in known), s])
            estimates = [estimate for _, estimate in reversed(known)]
            return euler_maruyama(y, mixture(weights, estimates), t, s, noise)

        return advance


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


def mixture(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """Return sum_j weights[j] values[j]; the value itself where its weight is 1 and it is the only one.

    Example:
        >>> mixture([1.5, -0.5], [torch.ones(1), 2 * torch.ones(1)])
        tensor([0.5000])
    """
    total = values[0] if weights[0] == 1.0 else values[0] * weights[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = torch.add(total, value, alpha=weight)
    return total


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
