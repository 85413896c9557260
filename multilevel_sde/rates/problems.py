"""Toy SDEs and ODEs with known answers, each as a ladder with level errors and costs that are known exactly.

Apart from :func:`quadrature`, whose levels err as a quadrature rule does, the levels are f^k = f + 2^{-k} e_k at cost
2^{gamma k} with a bounded smooth e_k of root mean square 1 (see :mod:`multilevel_sde.rates.problem_parts`).

References:
    Kloeden and Platen, "Numerical Solution of Stochastic Differential Equations", 1992 (sections 4.4 and 4.8);
    Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", 2021 (reverse processes);
    Jacot 2026 (Assumption 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from multilevel_sde.cost import GivenCost
from multilevel_sde.ladder import Ladder
from multilevel_sde.rates.problem_parts import (
    Counted,
    Mixture,
    Problem,
    check_at_least,
    check_positive,
    midpoint_rule,
    perturbed_problem,
    sine_flow,
    uniform,
)

__all__ = [
    "Counted",
    "Problem",
    "decaying_noise",
    "double_well",
    "gaussian_mixture",
    "geometric_brownian_motion",
    "ornstein_uhlenbeck",
    "quadrature",
    "scaling_law",
]


def scaling_law(
    gamma: float, levels: int = 8, dimension: int = 8, *, diffusion: float | None = None, seed: int = 0
) -> Problem:
    r"""dx = -sin(x) dt + sigma dW on [0, 1], x_0 uniform in [-2, 2]^d, with a ladder of exponent gamma.

    Without noise x(t) = 2 atan(tan(x_0 / 2) e^{-t}). The drift and all levels are Lipschitz and bounded.

    Arguments:
        gamma: Cost exponent, T_k = 2^{gamma k}; positive.
        levels: Number of levels K.
        dimension: d, even and at least 4.
        diffusion: sigma; None for the ODE.
        seed: Seed of the directions and phases of the level errors.

    Raises:
        ValueError: An argument out of range.

    Example:
        >>> problem = scaling_law(gamma=3.0, levels=3)
        >>> problem.ladder.costs
        (8.0, 64.0, 512.0)
        >>> x, t = problem.y0(1), torch.tensor(0.3)
        >>> error = problem.ladder.drifts[2](x, t) - problem.drift(x, t)
        >>> round(float(error.square().mean().sqrt()), 6)
        0.125
    """
    known = {} if diffusion else {"exact": sine_flow(1.0)}
    sizes = gamma, levels, dimension, seed
    return perturbed_problem(lambda x, t: -torch.sin(x), uniform(dimension, 2.0), diffusion, sizes, **known)


def quadrature(dimension: int, nodes: Sequence[int] = (2, 4, 8), *, components: int = 4) -> Problem:
    r"""dx/dt = -int_{[0,1]^D} sin(x + 2 sum_j (u_j - 1/2)) du on [0, 1], by the midpoint rule with n^D nodes.

    Level k has n_k nodes a side. The rule's error is of order n^{-2} at n^D nodes, hence gamma = D / 2; the nodes are
    really summed, so the run time grows with n^D too (measure it with :class:`multilevel_sde.SecondsCost`; below some
    thousand nodes the overhead of a call hides it). The integral is sin(x) sinc(1)^D with sinc(1) = sin(1), so
    x(t) = 2 atan(tan(x_0 / 2) e^{-A t}), A = sin(1)^D; the rule with n nodes a side has
    A_n = (sin(1) / (n sin(1/n)))^D instead.

    Arguments:
        dimension: D, the dimension of the integral.
        nodes: Nodes a side of each level, strictly increasing.
        components: Dimension of the state.

    Raises:
        ValueError: `dimension` or `components` below 1, or nodes that are not positive and strictly increasing.

    Example:
        >>> problem = quadrature(dimension=5)  # gamma = 2.5
        >>> problem.ladder.costs
        (32.0, 1024.0, 32768.0)
    """
    check_at_least(1, dimension=dimension, components=components)
    if not nodes or any(n < 1 for n in nodes) or list(nodes) != sorted(set(nodes)):
        raise ValueError(f'"nodes" must be positive and strictly increasing, got {list(nodes)}')
    rate = math.sin(1.0) ** dimension
    drifts = [Counted(midpoint_rule(n, dimension)) for n in nodes]
    ladder = Ladder(drifts, GivenCost([float(n) ** dimension for n in nodes], unit="nodes"))
    drift = Counted(lambda x, t: -rate * torch.sin(x))
    return Problem(ladder, drift, uniform(components, 2.0), exact=sine_flow(rate))


def ornstein_uhlenbeck(
    theta: float = 1.0, sigma: float = 0.5, *, gamma: float = 3.0, levels: int = 5, dimension: int = 4, seed: int = 0
) -> Problem:
    r"""dx = -theta x dt + sigma dW on [0, 1].

    Given x_0, x(t) is normal with mean x_0 e^{-theta t} and variance sigma^2 (1 - e^{-2 theta t}) / (2 theta).

    Arguments:
        theta: Rate, positive.
        sigma: Noise.
        gamma, levels, dimension, seed: As for :func:`scaling_law`.

    Raises:
        ValueError: An argument out of range.

    Example:
        >>> ornstein_uhlenbeck(levels=2).ladder
        Ladder(2 levels, costs=[8.0, 64.0] units)
    """
    check_positive(theta=theta)

    def law(y0: Tensor, t: float) -> tuple[Tensor, Tensor]:
        variance = sigma**2 * -math.expm1(-2 * theta * t) / (2 * theta)
        return y0 * math.exp(-theta * t), torch.tensor(variance, dtype=y0.dtype)

    sizes = gamma, levels, dimension, seed
    return perturbed_problem(lambda x, t: -theta * x, uniform(dimension, 2.0), sigma, sizes, law=law)


def geometric_brownian_motion(
    mu: float = 0.5, sigma: float = 0.5, *, gamma: float = 3.0, levels: int = 5, dimension: int = 4, seed: int = 0
) -> Problem:
    r"""dx = mu x dt + sigma x dW on [0, 1], x_0 uniform in [1, 2]^d: multiplicative noise.

    x(t) = x_0 exp((mu - sigma^2 / 2) t + sigma W(t)); the mean is x_0 e^{mu t}, the variance
    x_0^2 e^{2 mu t} (e^{sigma^2 t} - 1).

    Arguments:
        mu: Growth.
        sigma: Relative noise.
        gamma, levels, dimension, seed: As for :func:`scaling_law`.

    Raises:
        ValueError: An argument out of range.

    Example:
        >>> problem = geometric_brownian_motion(mu=0.5, sigma=0.0)
        >>> problem.exact(torch.ones(1, 1), 2.0, torch.zeros(1, 1))
        tensor([[2.7183]])
    """

    def exact(y0: Tensor, t: float, w: Tensor | None) -> Tensor:
        assert w is not None
        return y0 * torch.exp((mu - sigma**2 / 2) * t + sigma * w)

    def law(y0: Tensor, t: float) -> tuple[Tensor, Tensor]:
        mean = y0 * math.exp(mu * t)
        return mean, mean.square() * math.expm1(sigma**2 * t)

    def initial(samples: int, generator: torch.Generator) -> Tensor:
        return 1 + torch.rand(samples, dimension, generator=generator, dtype=torch.float64)

    sizes = gamma, levels, dimension, seed
    return perturbed_problem(lambda x, t: mu * x, initial, lambda y, t: sigma * y, sizes, exact=exact, law=law)


def decaying_noise(
    alpha: float = 0.5, beta: float = 0.5, *, gamma: float = 3.0, levels: int = 5, dimension: int = 4, seed: int = 0
) -> Problem:
    r"""dx = (beta / sqrt(1 + t) - x / (2 (1 + t))) dt + alpha beta / sqrt(1 + t) dW on [0, 1]: additive noise.

    x(t) = (x_0 + beta (t + alpha W(t))) / sqrt(1 + t): the additive noise problem with a pathwise solution.

    Arguments:
        alpha: Noise over drift.
        beta: Size of both.
        gamma, levels, dimension, seed: As for :func:`scaling_law`.

    Raises:
        ValueError: An argument out of range.

    Example:
        >>> decaying_noise(alpha=0.0, beta=1.0).exact(torch.zeros(1, 1), 3.0, torch.zeros(1, 1))
        tensor([[1.5000]])
    """

    def exact(y0: Tensor, t: float, w: Tensor | None) -> Tensor:
        assert w is not None
        return (y0 + beta * (t + alpha * w)) / math.sqrt(1 + t)

    return perturbed_problem(
        lambda x, t: beta / (1 + t).sqrt() - x / (2 * (1 + t)),
        uniform(dimension, 2.0),
        lambda t: alpha * beta / (1 + t).sqrt(),
        (gamma, levels, dimension, seed),
        exact=exact,
    )


def double_well(
    temperature: float = 0.5, *, gamma: float = 3.0, levels: int = 5, dimension: int = 4, seed: int = 0
) -> Problem:
    r"""Overdamped Langevin dx = -V'(x) dt + sqrt(2 tau) dW on [0, 4], V(x) = sum_i (x_i^2 - 1)^2 / 4.

    The stationary density is proportional to exp(-V(x) / tau). The drift x - x^3 is only locally Lipschitz, so take
    steps well below 1 / max x^2.

    Arguments:
        temperature: tau, positive.
        gamma, levels, dimension, seed: As for :func:`scaling_law`.

    Raises:
        ValueError: An argument out of range.

    Example:
        >>> double_well(temperature=0.5).log_density(torch.tensor([[0.0, 1.0, 1.0, 1.0]]))
        tensor([-0.5000])
    """
    check_positive(temperature=temperature)
    return perturbed_problem(
        lambda x, t: x - x**3,
        uniform(dimension, 1.5),
        math.sqrt(2 * temperature),
        (gamma, levels, dimension, seed),
        t1=4.0,
        log_density=lambda x: -(x.square() - 1).square().sum(-1) / (4 * temperature),
    )


def gaussian_mixture(
    means: Tensor | Sequence[Sequence[float]],
    std: float = 0.3,
    *,
    stochastic: bool = False,
    horizon: float = 4.0,
    gamma: float = 3.0,
    levels: int = 5,
    seed: int = 0,
) -> Problem:
    r"""Reverse diffusion of M equal Gaussians N(m_j, s^2 I) with its exact score, from t = horizon down to 0.

    Under dx = -x/2 dt + dW, x_t = alpha x_0 + sigma eps with alpha = e^{-t/2}, sigma^2 = 1 - e^{-t}, so rho_t is the
    mixture of N(alpha m_j, v I), v = alpha^2 s^2 + sigma^2, and grad log rho_t = (sum_j r_j(x) alpha m_j - x) / v with
    the posterior weights r_j. Run from `horizon` down to 0,

        dx = -(x/2 + grad log rho_t / 2) dt            (probability-flow ODE),
        dx = -(x/2 + grad log rho_t) dt + dW           (reverse SDE, `stochastic`),

    both carry rho_horizon, from which x_0 is drawn, to the mixture itself. `law` is that of rho_t, whatever y0. The ODE
    of a single Gaussian has the solution x(t) = alpha_t m + sqrt(v_t / v_T) (x_T - alpha_T m).

    Arguments:
        means: Centres m_j, shape (M, dimension).
        std: s, positive.
        stochastic: The reverse SDE instead of the ODE.
        horizon: T, positive.
        gamma, levels, seed: As for :func:`scaling_law`.

    Raises:
        ValueError: An argument out of range.

    Example:
        >>> problem = gaussian_mixture(torch.eye(4), std=0.5)
        >>> problem.t0, problem.t1, problem.law(problem.y0(1), 0.0)[0]
        (4.0, 0.0, tensor([0.2500, 0.2500, 0.2500, 0.2500], dtype=torch.float64))
    """
    check_positive(std=std, horizon=horizon)
    centres = torch.as_tensor(means, dtype=torch.float64)
    if centres.dim() != 2:
        raise ValueError(f'"means" must have shape (M, dimension), got {tuple(centres.shape)}')

    mixture = Mixture(centres, std, horizon)
    return perturbed_problem(
        mixture.reverse_drift(1.0 if stochastic else 0.5),
        mixture.initial,
        1.0 if stochastic else None,
        (gamma, levels, centres.shape[1], seed),
        t0=horizon,
        t1=0.0,
        exact=mixture.flow if len(centres) == 1 and not stochastic else None,
        law=mixture.law,
    )
