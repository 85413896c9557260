"""The diffusion term: how an increment of the Brownian path becomes the noise of a step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from multilevel_sde.arguments import as_number
from multilevel_sde.steps.sums import transformed

__all__ = ["Diffusion", "NoiseTerm", "as_noise"]


@dataclass(frozen=True)
class NoiseTerm:
    """A diffusion that is not diagonal: a callable that applies it to an increment.

    Arguments:
        apply: apply(y, t, dW) -> noise shaped like y; dW may have another shape than y.

    Example:
        >>> import torch
        >>> g = torch.tensor([[1.0, 0.5]])  # two Brownian motions drive one state
        >>> NoiseTerm(lambda y, t, dW: dW @ g.T).apply(torch.zeros(3, 1), torch.tensor(0.0), torch.ones(3, 2))
        tensor([[1.5000],
                [1.5000],
                [1.5000]])
    """

    apply: Callable[[Tensor, Tensor, Tensor], Tensor]


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
    arguments = _required_arguments(diffusion)
    if arguments == 1:
        return lambda y, t, dW: dW * diffusion(t)  # type: ignore[operator]
    if arguments == 2:
        return lambda y, t, dW: dW * diffusion(y, t)  # type: ignore[operator]
    raise TypeError(
        f'"diffusion" must be None, a number, sigma(t), g(y, t) or a NoiseTerm, got {type(diffusion).__name__}; '
        "write it as a function with one or two positional arguments"
    )


def _by_tensor(scale: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    if not transformed() and not math.isfinite(float(scale.detach())):
        raise ValueError(f'"diffusion" must be finite, got {float(scale.detach())}')
    return lambda y, t, dW: dW * scale


def _is_single(value: object) -> bool:
    """Whether it is an array or tensor of one real number."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex() and value.dtype is not torch.bool
    return isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "fiu"


def _required_arguments(function: object) -> int | None:
    if not callable(function):
        return None
    try:  # a module's own signature says nothing, that of its forward does
        called = function.forward if isinstance(function, torch.nn.Module) else function
        parameters = inspect.signature(called).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return sum(p.default is p.empty for p in positional)
