"""The diffusion term: how an increment of the Brownian path becomes the noise of a step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from multilevel_sde.arguments import as_integer, as_items, as_number, required_arguments
from multilevel_sde.steps.sums import transformed

__all__ = ["Diffusion", "MatrixProduct", "NoiseTerm", "as_noise", "nature"]


@dataclass(frozen=True)
class NoiseTerm:
    """A diffusion that is not diagonal: a callable that applies it to an increment.

    Arguments:
        apply: apply(y, t, dW) -> noise shaped like y, linear in dW, which may have another shape than y.
        shape: Shape of the Brownian motions of one sample, such as (m,), which a :class:`BrownianPath` without a shape
            then has; None: shaped like the state, unless the path says otherwise.
        stratonovich: Whether the SDE is meant in the sense of Stratonovich; a step for another sense is refused. None:
            the step decides.
        additive: g does not depend on y, and the two senses are one.
        diagonal: g multiplies element by element, and its element i depends on element i of the state only.

    Raises:
        TypeError: `apply` is not callable, or `shape` no integers.

    Example:
        >>> import torch
        >>> g = torch.tensor([[1.0, 0.5]])  # two Brownian motions drive one state
        >>> noise = NoiseTerm(lambda y, t, dW: dW @ g.T, shape=(2,), additive=True)
        >>> noise.apply(torch.zeros(3, 1), torch.tensor(0.0), torch.ones(3, 2))
        tensor([[1.5000],
                [1.5000],
                [1.5000]])
    """

    apply: Callable[[Tensor, Tensor, Tensor], Tensor]
    shape: tuple[int, ...] | None = None
    stratonovich: bool | None = None
    additive: bool = False
    diagonal: bool = False

    def __post_init__(self) -> None:
        if not callable(self.apply):
            raise TypeError(f'"apply" must be a function apply(y, t, dW) -> noise, got {type(self.apply).__name__}')
        if self.shape is not None:
            sides = tuple(as_integer("shape", side) for side in as_items("shape", self.shape, "integers"))
            object.__setattr__(self, "shape", sides)

    @staticmethod
    def of_matrix(
        g: Callable[[Tensor, Tensor], Tensor],
        motions: int,
        *,
        stratonovich: bool | None = None,
        additive: bool = False,
    ) -> NoiseTerm:
        """Return the term of a matrix g(y, t) of shape (B, d, m), for states (B, d) and m Brownian motions.

        Example:
            >>> import torch, multilevel_sde as mls
            >>> noise = mls.NoiseTerm.of_matrix(lambda y, t: 0.2 * y[:, :, None] * torch.ones(1, 1, 3), motions=3)
            >>> ladder, times = mls.Ladder([lambda y, t: -y], [1.0]), torch.linspace(0.0, 1.0, 11)
            >>> mls.solve(ladder, torch.ones(4, 2), times, mls.em_plan(ladder, times), diffusion=noise,
            ...           brownian=mls.BrownianPath(seeds=range(4))).y.shape
            torch.Size([4, 2])
        """
        return NoiseTerm(MatrixProduct(g), (motions,), stratonovich, additive)


@dataclass(frozen=True)
class MatrixProduct:
    """g(y, t) dW of a matrix.

    Example:
        >>> MatrixProduct(lambda y, t: torch.ones(1, 2, 3))(torch.zeros(1, 2), torch.tensor(0.0), torch.ones(1, 3))
        tensor([[3., 3.]])
    """

    g: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, y: Tensor, t: Tensor, dW: Tensor) -> Tensor:
        """Return g(y, t) dW, (B, d).

        Raises:
            ValueError: g(y, t) is no tensor (B, d, m) for this state and increment.
        """
        matrix = self.g(y, t)
        if not isinstance(matrix, Tensor) or dW.dim() != 2 or matrix.shape != (*y.shape, dW.shape[1]):
            got = tuple(matrix.shape) if isinstance(matrix, Tensor) else type(matrix).__name__
            raise ValueError(
                f"the matrix of the diffusion must have the shape (samples, state, Brownian motions), got {got} for a "
                f"state of shape {tuple(y.shape)} and increments of shape {tuple(dW.shape)}; give the path the shape "
                "of the Brownian motions, such as BrownianPath(seeds, shape=(m,))"
            )
        return torch.bmm(matrix, dW[:, :, None])[:, :, 0]


Diffusion = float | Tensor | Callable[..., Tensor | float] | NoiseTerm


def as_noise(diffusion: Diffusion) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return apply(y, t, dW) -> noise for a number, sigma(t), g(y, t) or a :class:`NoiseTerm`.

    A number may be of Python, NumPy or torch; a 0-d tensor may require a gradient. Functions may be modules.

    Raises:
        TypeError: Neither a number nor a callable of one or two arguments.
        ValueError: A number that is not finite.
    """
    if isinstance(diffusion, NoiseTerm):
        return diffusion.apply
    if isinstance(diffusion, Tensor) and diffusion.numel() == 1 and diffusion.is_floating_point():
        return _by_tensor(diffusion.reshape(()))
    if (isinstance(diffusion, Real) and not isinstance(diffusion, bool)) or _is_single(diffusion):
        number = as_number("diffusion", diffusion)
        if not math.isfinite(number):
            raise ValueError(f'"diffusion" must be finite, got {number}')
        if number == 1:
            return lambda y, t, dW: dW
        # A tensor takes two thirds of the time of a number for small states, one of the state's own dtype one third.
        scale = torch.tensor(number, dtype=torch.float64)
        single = scale.float()
        return lambda y, t, dW: dW * (single if dW.dtype is torch.float32 else scale)
    arguments = required_arguments(diffusion)
    if arguments == 1:
        return lambda y, t, dW: dW * diffusion(t)  # type: ignore[operator]
    if arguments == 2:
        return lambda y, t, dW: dW * diffusion(y, t)  # type: ignore[operator]
    raise TypeError(
        f'"diffusion" must be None, a number, sigma(t), g(y, t) or a NoiseTerm, got {type(diffusion).__name__}; '
        "write it as a function with one or two positional arguments"
    )


def nature(diffusion: Diffusion) -> NoiseTerm:
    """Return what is known of a diffusion, as a :class:`NoiseTerm`: a number and sigma(t) are additive and diagonal.

    Example:
        >>> nature(lambda t: t).additive, nature(lambda y, t: y).additive
        (True, False)
    """
    if isinstance(diffusion, NoiseTerm):
        return diffusion
    return NoiseTerm(as_noise(diffusion), additive=required_arguments(diffusion) != 2, diagonal=True)


def _by_tensor(scale: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    if not transformed() and not math.isfinite(float(scale.detach())):
        raise ValueError(f'"diffusion" must be finite, got {float(scale.detach())}')
    return lambda y, t, dW: dW * scale


def _is_single(value: object) -> bool:
    """Whether it is an array or tensor of one real number."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex() and value.dtype is not torch.bool
    return isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "fiu"
