r"""Rules for drifts that limit the step of Euler-Maruyama: a stiff linear part, or one that grows faster than linearly.

    ExponentialEuler   dy = (A y + f) dt + g dW:  y + phi(h A) (h (A y + F) + g dW),   phi(z) = (e^z - 1) / z
    TamedEuler         y + h F / (1 + h |F|) + g dW,   |F| the norm of a sample's estimate

With A known, e^{hA} is exact however stiff it is, and the ladder holds f alone. phi(h A) dW is the mean, given dW, of
the noise that the exact step would add. Both have Euler-Maruyama's strong orders, 1 with additive noise and 1/2 with
g(y, t), where that would need small steps or has none.

Ladders. ExponentialEuler is affine in the estimate and takes every plan. TamedEuler is not: a correction of weight 1/p
is tamed more than p times as often as one of weight 1, so with random weights it is biased to first order in h; take
plans whose corrections are held (:func:`hold`). With weights 1 both are the rule of the top level alone.

References:
    Hochbruck and Ostermann, Acta Numerica 19, 2010; Lord, Powell and Shardlow 2014, section 10.7 (exponential rules);
    Hutzenthaler, Jentzen and Kloeden, Ann. Appl. Probab. 22, 2012 (taming).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from multilevel_sde.arguments import as_tensor, multiplies
from multilevel_sde.steps.rules import Advance, Estimate, StepRule, euler_maruyama

__all__ = ["ExponentialEuler", "TamedEuler"]


@dataclass(frozen=True, eq=False)
class ExponentialEuler(StepRule):
    """y + phi(h A) (h (A y + F) + noise) for dy = (A y + f) dt + g dW: exact where f and g vanish, for any stiffness.

    The ladder is one of f, without A y. With g(y, t) it solves the Ito SDE.

    Arguments:
        A: A square matrix (d, d), which acts on the last dimension of the state; or a number or tensor of another
            number of dimensions, which multiplies a sample element by element (a diagonal A; Fourier modes).

    Raises:
        TypeError: A is no number or tensor of real numbers.
        ValueError: A is not finite, or two-dimensional and not square; on a step, of another size than the state.

    Reference:
        Hochbruck and Ostermann 2010, section 2 (exponential Euler).

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder, times = mls.Ladder([lambda y, t: torch.ones_like(y)], [1.0]), torch.linspace(0.0, 1.0, 3)
        >>> step = mls.ExponentialEuler(-100.0)  # Euler-Maruyama would need steps below 0.02
        >>> mls.solve(ladder, torch.ones(1), times, mls.em_plan(ladder, times), step=step).y
        tensor([0.0100])
    """

    A: float | Tensor

    def __post_init__(self) -> None:
        A = as_tensor("A", self.A)
        if not A.isfinite().all():
            raise ValueError('"A" must be finite, got NaN or infinity')
        if A.dim() == 2 and A.shape[0] != A.shape[1]:
            raise ValueError(f'"A" must be a square matrix (d, d) or have another number of axes, got {tuple(A.shape)}')
        object.__setattr__(self, "A", A)

    def evaluations(self, times: Tensor) -> list[int]:
        """One in every step."""
        return [1] * (len(times) - 1)

    def start(self, times: Tensor) -> Advance:
        """Return the step, which remembers phi(h A) of the last step size."""
        A, known = as_tensor("A", self.A), (math.nan, torch.empty(0), torch.empty(0))

        def factors(h: float, y: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal known
            if not abs(h - known[0]) <= 1e-12 * abs(h):  # steps of a uniform grid differ by rounding
                _check_size(A, y)
                phi = _phi_of_matrix(h * A.double()) if A.dim() == 2 else _phi(h * A.double())
                known = (h, A.to(y), phi.to(y))
            return known[1], known[2]

        def advance(y: Tensor, F: Estimate, t: float, s: float, noise: Tensor | None) -> Tensor:
            h = s - t
            matrix, phi = factors(h, y)
            times = (lambda m, x: x @ m.mT) if A.dim() == 2 else torch.mul
            change = h * (times(matrix, y) + F(y, t))
            return y + times(phi, change if noise is None else change + noise)

        return advance


def _check_size(A: Tensor, y: Tensor) -> None:
    if not (y.shape[-1:] == A.shape[-1:] if A.dim() == 2 else multiplies(A, y.shape)):
        raise ValueError(
            f'"A" of shape {tuple(A.shape)} does not fit a state of shape {tuple(y.shape)}; give a matrix (d, d) for '
            "its last dimension, or what multiplies it element by element"
        )


@dataclass(frozen=True)
class TamedEuler(StepRule):
    """y + h F / (1 + h |F|) + noise: for drifts that grow faster than linearly, where Euler-Maruyama explodes.

    |F| is the Euclidean norm over a sample; a state of one dimension has one element a sample.

    Reference:
        Hutzenthaler, Jentzen and Kloeden 2012, (4).

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder, times = mls.Ladder([lambda y, t: -(y**3)], [1.0]), torch.linspace(0.0, 1.0, 11)
        >>> plan, y0 = mls.em_plan(ladder, times), torch.full((1, 1), 10.0)
        >>> mls.solve(ladder, y0, times, plan, step=mls.TamedEuler()).y.abs() < 10
        tensor([[True]])
    """

    def evaluations(self, times: Tensor) -> list[int]:
        """One in every step."""
        return [1] * (len(times) - 1)

    def start(self, times: Tensor) -> Advance:
        """Return the step, which remembers nothing."""
        return _tamed


def _tamed(y: Tensor, F: Estimate, t: float, s: float, noise: Tensor | None) -> Tensor:
    estimate, h = F(y, t), s - t
    over = tuple(range(1, y.dim()))
    norm = torch.linalg.vector_norm(estimate, dim=over, keepdim=True) if over else estimate.abs()
    return euler_maruyama(y, estimate / (1 + abs(h) * norm), t, s, noise)


def _phi(z: Tensor) -> Tensor:
    """(e^z - 1) / z element by element, 1 at 0."""
    return torch.where(z == 0, 1.0, torch.expm1(z) / torch.where(z == 0, 1.0, z))


def _phi_of_matrix(z: Tensor) -> Tensor:
    """The same of a matrix, from the corner of exp([[z, 1], [0, 0]])."""
    d = len(z)
    whole = torch.zeros(2 * d, 2 * d, dtype=z.dtype, device=z.device)
    whole[:d, :d], whole[:d, d:] = z, torch.eye(d, dtype=z.dtype, device=z.device)
    return torch.matrix_exp(whole)[:d, d:]
