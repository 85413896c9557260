r"""One problem for each kind of noise, Ito and Stratonovich, on which the strong order of a rule is measured.

    additive     dx = -sin(2 x) dt + (1 + t) C dW            C constant, 2 Brownian motions for 4 components
    solved       dx = (b / sqrt(1 + t) - x / (2 + 2 t)) dt + b / sqrt(1 + t) dW            additive, solution known
    scalar       dx_i = mu x_i dt + sigma x_i dW             one Brownian motion for all components, solution known
    diagonal     dx = -a (1 - x^2) dt + b (1 - x^2) o dW     solution known, x = tanh(artanh x_0 - a t + b W)
    commutative  dx = mu x dt + x sum_j sigma_j dW_j         a matrix whose noise commutes, solution known
    general      dx_1 = -x_1 dt + dW_1, dx_2 = -x_2 dt + x_1 dW_2       it does not commute

Where the senses differ, the Ito form has the drift that gives it the same kind of solution.

Reference:
    Kloeden and Platen, "Numerical Solution of Stochastic Differential Equations", 1992, section 4.4 (solutions).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from multilevel_sde.cost import Drift
from multilevel_sde.ladder import Ladder
from multilevel_sde.noise.diffusion import Diffusion, NoiseTerm
from multilevel_sde.rates.problem_parts import Counted, Problem
from multilevel_sde.rates.problems import decaying_noise

__all__ = ["noise_problems"]

_Exact = Callable[[Tensor, float, Tensor], Tensor]

_MU, _SIGMA, _A, _B = 0.5, 0.5, 0.5, 0.6


def noise_problems(*, stratonovich: bool = False) -> dict[str, Problem]:
    """Return the problems by the name of their noise, with noise terms that declare their sense.

    Example:
        >>> list(noise_problems())
        ['additive', 'solved', 'scalar', 'diagonal', 'commutative', 'general']
    """
    half, share = (0.0, 0.0) if stratonovich else (0.5, 1.0)
    columns = torch.tensor([[0.6, 0.2], [-0.3, 0.5], [0.4, -0.6], [0.1, 0.7]], dtype=torch.float64)
    sigmas = torch.tensor([0.5, -0.3], dtype=torch.float64)

    def term(g: Drift, motions: int, *, additive: bool = False) -> NoiseTerm:
        return NoiseTerm.of_matrix(g, motions, stratonovich=None if additive else stratonovich, additive=additive)

    def grown(w: Tensor, t: float, variance: float) -> Tensor:
        return torch.exp((_MU - half * variance) * t + w)

    def general(x: Tensor, t: Tensor) -> Tensor:
        one, zero = torch.ones_like(x[:, 0]), torch.zeros_like(x[:, 0])
        return torch.stack([torch.stack([one, zero], 1), torch.stack([zero, x[:, 0]], 1)], 1)

    bump = NoiseTerm(lambda x, t, dW: _B * (1 - x**2) * dW, stratonovich=stratonovich, diagonal=True)
    both = float(sigmas.square().sum())
    return {
        "additive": _problem(
            lambda x, t: -torch.sin(2 * x), term(lambda x, t: (1 + t) * columns.expand(len(x), 4, 2), 2, additive=True)
        ),
        "solved": decaying_noise(alpha=1.0, beta=1.0),
        "scalar": _problem(
            lambda x, t: _MU * x,
            term(lambda x, t: _SIGMA * x[:, :, None], 1),
            lambda y0, t, w: y0 * grown(_SIGMA * w, t, _SIGMA**2),
        ),
        "diagonal": _problem(
            lambda x, t: -(_A + share * _B**2 * x) * (1 - x**2),
            bump,
            lambda y0, t, w: torch.tanh(torch.atanh(y0) - _A * t + _B * w),
        ),
        "commutative": _problem(
            lambda x, t: _MU * x,
            term(lambda x, t: x[:, :, None] * sigmas, 2),
            lambda y0, t, w: y0 * grown(w @ sigmas[:, None], t, both),
        ),
        "general": _problem(lambda x, t: -x, term(general, 2), dimension=2),
    }


def _problem(drift: Drift, diffusion: Diffusion, exact: _Exact | None = None, dimension: int = 4) -> Problem:
    """A problem on [0, 1] with initial states in [-1/2, 1/2]."""

    def initial(samples: int, generator: torch.Generator) -> Tensor:
        return torch.rand(samples, dimension, generator=generator, dtype=torch.float64) - 0.5

    counted = Counted(drift)
    known = None if exact is None else lambda y0, t, w: y0 if w is None else exact(y0, t, w)
    return Problem(Ladder([counted], [1.0]), counted, initial, diffusion, exact=known)
