r"""Classifier-free guidance: a conditional network and its unconditional half as one network.

.. math:: \hat\epsilon_s(x, t, c) = \hat\epsilon(x, t) + s\, (\hat\epsilon(x, t, c) - \hat\epsilon(x, t)) .

Both halves are evaluated in one doubled batch. For a plan the pair is one network: one draw decides for both, so that
the difference of two levels is that of two guided networks. The formula is affine, so it does not matter whether the
networks predict noise, data or v; wrap the network and let the denoiser clip what comes out.

References:
    Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022 (arXiv 2207.12598).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Guided"]


@dataclass(frozen=True, eq=False)
class Guided:
    """A conditional network or denoiser with classifier-free guidance.

    Call it as it is called: guided(x, t, **conditions), x (B, ...), t 0-d or (B,), conditions (B, ...); it returns what
    the network returns, (B, ...), and costs two evaluations.

    Arguments:
        denoiser: Callable (x, t, **conditions), in rows independent of each other.
        scale: 1 is the conditional network, 0 the unconditional one, above 1 follows the condition more than it.
        null: What the unconditional half is told: a number or a row for each condition that is left out, such as
            {"label": 10} for the network of ten classes. Other conditions are told to both halves.

    Raises:
        TypeError: `denoiser` is not callable.
        ValueError: `scale` is not a finite number; `null` is empty; when called, a condition of `null` is missing.

    Example:
        >>> guided = Guided(lambda x, t, label: x + label, 3.0, {"label": 0})
        >>> guided(torch.zeros(2), torch.tensor(0.5), label=torch.tensor([1.0, 2.0]))
        tensor([3., 6.])
    """

    denoiser: Callable[..., Tensor] = field(repr=False)
    scale: float
    null: Mapping[str, Tensor | float]

    def __post_init__(self) -> None:
        if not callable(self.denoiser):
            raise TypeError(f'"denoiser" must be a callable (x, t, **conditions), got {type(self.denoiser).__name__}')
        if not isinstance(self.scale, int | float) or not abs(self.scale) < float("inf"):
            raise ValueError(f'"scale" must be a finite number, got {self.scale!r}; 1 is no guidance, try 2')
        if not self.null:
            raise ValueError('"null" is empty, expected what the unconditional half is told, such as {"label": 10}')

    def __call__(self, x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        """Return the guided estimate, shaped like x."""
        if missing := [name for name in self.null if name not in conditions]:
            raise ValueError(
                f'"conditions" lacks "{missing[0]}", which guidance compares with its absence; give one row a sample'
            )
        time = torch.as_tensor(t)
        given = {name: torch.cat([value, self._absent(name, value)]) for name, value in conditions.items()}
        both = self.denoiser(torch.cat([x, x]), torch.cat([time, time]) if time.dim() else time, **given)
        told, untold = both.chunk(2)
        return torch.lerp(untold, told, float(self.scale))

    def _absent(self, name: str, value: Tensor) -> Tensor:
        """What the unconditional half is told in the place of a condition."""
        if name not in self.null:
            return value
        return torch.as_tensor(self.null[name], dtype=value.dtype, device=value.device).expand_as(value)
