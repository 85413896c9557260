r"""What the toy problems are made of: counted drifts, ladders with level errors of a known size, the problem object.

A level is the true drift plus a bounded smooth error,

    f^k = f + 2^{-k} e_k,    T_k = 2^{gamma k},    k = 1 ... K,
    e_k(x, t) = sqrt(d) (cos(theta_k) u_k + sin(theta_k) v_k),    theta_k = <a_k, x> + t + b_k,

with orthonormal u_k, v_k. Then ||e_k||^2 / d = 1 for all x and t, and e_j is orthogonal to e_k unless j = k modulo
d / 2, so that both of the theorem's assumptions hold with equality: the error of level k is 2^{-k} in the root mean
square over components, at a cost of error^{-gamma}, and the mean squared level difference is
4^{-k} + 4^{-(k-1)} = 5 4^{-k}.

References:
    Jacot 2026 (Assumptions 1 and 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multilevel_sde.cost import Drift, GivenCost
from multilevel_sde.ladder import Ladder
from multilevel_sde.noise.diffusion import Diffusion

__all__ = ["Counted", "Mixture", "Problem", "check_at_least", "check_positive", "midpoint_rule", "perturbed"]
__all__ += ["perturbed_problem", "sine_flow", "uniform"]

_CHUNK = 1 << 15  # integrand values of the quadrature held at a time; they stay in the cache

Initial = Callable[[int, torch.Generator], Tensor]
Exact = Callable[[Tensor, float, Tensor | None], Tensor]


class Counted:
    """A drift that counts: `calls`, and `rows`, the samples evaluated in all calls.

    Example:
        >>> drift = Counted(lambda x, t: -x)
        >>> _ = drift(torch.zeros(3, 2), torch.tensor(0.0)), drift(torch.zeros(4, 2), torch.tensor(0.0))
        >>> drift.calls, drift.rows
        (2, 7)
    """

    def __init__(self, function: Drift):
        self.function = function
        self.reset()

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Count and return f(x, t)."""
        self.calls += 1
        self.rows += x.shape[0] if x.dim() else 1
        return self.function(x, t)

    def reset(self) -> None:
        """Set both counters to zero."""
        self.calls, self.rows = 0, 0


@dataclass(frozen=True)
class Problem:
    """An initial value problem dx = f(x, t) dt + g dW from t0 to t1 (t1 < t0 runs backwards) with a ladder for f.

    Attributes:
        ladder: f^1 ... f^K, every drift a :class:`Counted`.
        drift: The true drift f that the levels approximate, also a :class:`Counted`.
        initial: initial(samples, generator) -> Tensor of shape (samples, dimension), float64.
        diffusion: As for :func:`multilevel_sde.solve`; None for an ODE.
        t0: Initial time.
        t1: Final time.
        exact: exact(y0, t, w) -> x(t) along the path with W(t) - W(t0) = w (None for an ODE), or None where unknown.
        law: law(y0, t) -> (mean, variance) of every component of x(t), given y0 unless the problem says otherwise.
        log_density: Logarithm of the stationary density up to a constant, (B, dimension) -> (B,).

    Example:
        >>> import multilevel_sde as mls
        >>> problem = mls.problems.ornstein_uhlenbeck()
        >>> mean, variance = problem.law(problem.y0(2), 1.0)
        >>> mean.shape, round(float(variance), 4)
        (torch.Size([2, 4]), 0.1081)
    """

    ladder: Ladder
    drift: Counted
    initial: Initial
    diffusion: Diffusion | None = None
    t0: float = 0.0
    t1: float = 1.0
    exact: Exact | None = None
    law: Callable[[Tensor, float], tuple[Tensor, Tensor]] | None = None
    log_density: Callable[[Tensor], Tensor] | None = None

    @property
    def limit(self) -> Ladder:
        """The one-level ladder of the true drift, at cost 1."""
        return Ladder([self.drift], GivenCost([1.0]))

    def y0(self, samples: int, seed: int = 0) -> Tensor:
        """Return initial states, float64 (samples, dimension).

        Raises:
            ValueError: `samples` is below 1.
        """
        if samples < 1:
            raise ValueError(f'"samples" must be at least 1, got {samples}')
        return self.initial(samples, torch.Generator().manual_seed(seed))

    def times(self, steps: int) -> Tensor:
        """Return the uniform grid of `steps` steps, float64 (steps + 1,).

        Raises:
            ValueError: `steps` is below 1.
        """
        if steps < 1:
            raise ValueError(f'"steps" must be at least 1, got {steps}')
        return torch.linspace(self.t0, self.t1, steps + 1, dtype=torch.float64)


def uniform(dimension: int, bound: float) -> Initial:
    """Return initial(samples, generator): uniform in [-bound, bound]^dimension, float64.

    Example:
        >>> uniform(2, 1.5)(3, torch.Generator().manual_seed(0)).shape
        torch.Size([3, 2])
    """

    def initial(samples: int, generator: torch.Generator) -> Tensor:
        return bound * (2 * torch.rand(samples, dimension, generator=generator, dtype=torch.float64) - 1)

    return initial


def perturbed(drift: Counted, gamma: float, levels: int, dimension: int, seed: int) -> Ladder:
    """Return the ladder f^k = f + 2^{-k} e_k, T_k = 2^{gamma k} of the module docstring.

    Arguments:
        drift: f(x, t) for x of shape (..., dimension).
        gamma: Cost exponent, positive.
        levels: K.
        dimension: d, even and at least 4, so that neighbouring levels err in orthogonal directions.
        seed: Seed of the directions u, v, a and phases b.

    Raises:
        ValueError: An argument out of range.

    Example:
        >>> ladder = perturbed(Counted(lambda x, t: -x), gamma=2.0, levels=2, dimension=4, seed=0)
        >>> x, t = torch.zeros(1, 4), torch.tensor(0.0)
        >>> [round(float(f(x, t).square().mean().sqrt()), 6) for f in ladder.drifts]
        [0.5, 0.25]
    """
    check_positive(gamma=gamma)
    check_at_least(1, levels=levels)
    if dimension < 4 or dimension % 2:
        raise ValueError(f'"dimension" must be even and at least 4, got {dimension}')
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    pairs = torch.linalg.qr(normal(dimension, dimension)).Q.T.reshape(-1, 2, dimension)
    drifts = []
    for k in range(1, levels + 1):
        slope = torch.nn.functional.normalize(normal(dimension), dim=0)
        phase = 2 * math.pi * float(torch.rand((), generator=generator, dtype=torch.float64))
        drifts.append(Counted(_level(drift.function, 2.0**-k, pairs[k % len(pairs)], slope, phase)))
    return Ladder(drifts, GivenCost([2.0 ** (gamma * k) for k in range(1, levels + 1)]))


def _level(drift: Drift, size: float, pair: Tensor, slope: Tensor, phase: float) -> Drift:
    scaled = pair * (size * math.sqrt(len(slope)))

    def level(x: Tensor, t: Tensor) -> Tensor:
        theta = x @ slope.to(x) + (t.to(x) + phase)
        return drift(x, t) + torch.stack([theta.cos(), theta.sin()], dim=-1) @ scaled.to(x)

    return level


def perturbed_problem(
    function: Drift, initial: Initial, diffusion: Diffusion | None, ladder: tuple[float, int, int, int], **known: Any
) -> Problem:
    """Return the problem of a drift on its perturbed ladder of gamma, levels, dimension and seed.

    Example:
        >>> perturbed_problem(lambda x, t: -x, uniform(4, 1.0), None, (3.0, 2, 4, 0)).ladder
        Ladder(2 levels, costs=[8.0, 64.0] units)
    """
    drift = Counted(function)
    return Problem(perturbed(drift, *ladder), drift, initial, diffusion, **known)


def sine_flow(rate: float) -> Exact:
    """Return the solution of dx/dt = -rate sin(x), x(t) = 2 atan(tan(x_0 / 2) e^{-rate t}).

    Example:
        >>> sine_flow(1.0)(torch.tensor([0.1]), 1.0, None)  # about 0.1 / e
        tensor([0.0368])
    """
    return lambda y0, t, w: 2 * torch.atan(torch.tan(y0 / 2) * math.exp(-rate * t))


@dataclass(frozen=True)
class Mixture:
    """rho_t of :func:`multilevel_sde.rates.problems.gaussian_mixture`, equal Gaussians under dx = -x/2 dt + dW."""

    centres: Tensor
    std: float
    horizon: float

    def moments(self, t: float) -> tuple[Tensor, float]:
        """Scaled centres alpha m_j, (M, dimension), and the variance v."""
        return self.centres * math.exp(-t / 2), math.exp(-t) * self.std**2 - math.expm1(-t)

    def reverse_drift(self, share: float) -> Drift:
        """-(x/2 + share grad log rho_t)."""

        def reverse(x: Tensor, t: Tensor) -> Tensor:
            scaled = self.centres.to(x) * torch.exp(-t / 2).to(x)
            v = (torch.exp(-t) * self.std**2 - torch.expm1(-t)).to(x)
            posterior = torch.softmax(-torch.cdist(x, scaled).square() / (2 * v), dim=-1)
            return -(x / 2 + share * (posterior @ scaled - x) / v)

        return reverse

    def initial(self, samples: int, generator: torch.Generator) -> Tensor:
        """Draw x_horizon."""
        scaled, v = self.moments(self.horizon)
        chosen = torch.randint(len(scaled), (samples,), generator=generator)
        noise = torch.randn(samples, scaled.shape[1], generator=generator, dtype=torch.float64)
        return scaled[chosen] + math.sqrt(v) * noise

    def law(self, y0: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """Mean and variance of every component of x_t, whatever y0."""
        scaled, v = self.moments(t)
        return scaled.mean(0), scaled.var(0, correction=0) + v

    def flow(self, y0: Tensor, t: float, w: Tensor | None) -> Tensor:
        """Solution of the ODE for a single Gaussian."""
        (centre, v), (first, v_first) = self.moments(t), self.moments(self.horizon)
        return centre + math.sqrt(v / v_first) * (y0 - first)


def midpoint_rule(n: int, dimension: int) -> Drift:
    """Return the drift of :func:`multilevel_sde.rates.problems.quadrature`, its integral by n nodes a side.

    Example:
        >>> midpoint_rule(1, dimension=3)(torch.ones(1), torch.tensor(0.0))  # -sin(1)
        tensor([-0.8415])
    """
    side = (torch.arange(n, dtype=torch.float64) + 0.5) / n - 0.5
    shift = torch.zeros(1, dtype=torch.float64)
    for _ in range(dimension):
        shift = (shift[:, None] + 2 * side).reshape(-1)

    def rule(x: Tensor, t: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for part in shift.to(x).split(max(1, _CHUNK // max(1, x.numel()))):
            total -= torch.sin(x[..., None] + part).sum(-1)
        return total / len(shift)

    return rule


def check_positive(**values: float) -> None:
    """Raise ValueError, naming the argument, unless all values are positive and finite.

    Example:
        >>> check_positive(gamma=-1.0)
        Traceback (most recent call last):
        ...
        ValueError: "gamma" must be a positive finite number, got -1.0
    """
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f'"{name}" must be a positive finite number, got {value}')


def check_at_least(least: int, **values: int) -> None:
    """Raise ValueError, naming the argument, unless all values are at least `least`.

    Example:
        >>> check_at_least(1, levels=0)
        Traceback (most recent call last):
        ...
        ValueError: "levels" must be at least 1, got 0
    """
    for name, value in values.items():
        if value < least:
            raise ValueError(f'"{name}" must be at least {least}, got {value}')
