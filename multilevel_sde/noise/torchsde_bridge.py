"""From torchsde's SDE objects to a ladder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multilevel_sde.cost import CostModel
from multilevel_sde.ladder import Ladder
from multilevel_sde.noise.diffusion import NoiseTerm

__all__ = ["from_torchsde"]

_DIFFUSIONS = ("g", "f_and_g", "g_prod")
_SUPPORTED = ("additive", "diagonal", "general", "scalar")


def from_torchsde(sdes: Sequence[Any], costs: Sequence[float] | CostModel | None = None) -> tuple[Ladder, NoiseTerm]:
    """Turn torchsde SDE objects, cheapest first, into a ladder of their drifts and the diffusion of the last.

    The diffusion is shared by all levels (the method replaces the drift only), so it is taken from the top one.
    Ito SDEs of every noise type; states have torchsde's shape (B, d).

    Arguments:
        sdes: Objects with noise_type and sde_type, and with f(t, y) and g(t, y), or both as f_and_g(t, y), or the top
            one with g_prod(t, y, dW), as torchsde takes them.
        costs: As for :class:`Ladder`; by default 1, 2, 4, ... which only orders the levels: give real ones.

    Returns:
        (ladder, diffusion) for :func:`solve`. But for diagonal noise the Brownian path has torchsde's shape (B, m):
        pass `BrownianPath(seeds, shape=(m,))`.

    Raises:
        ValueError: No SDEs, Stratonovich noise, or noise types that differ.
        TypeError: An object lacks its drift, its diffusion or its types.

    Example:
        >>> class OU:
        ...     noise_type, sde_type = "diagonal", "ito"
        ...     def f(self, t, y): return -y
        ...     def g(self, t, y): return 0.5 * torch.ones_like(y)
        >>> import multilevel_sde as mls
        >>> ladder, diffusion = mls.from_torchsde([OU()])
        >>> times = torch.linspace(0.0, 1.0, 11)
        >>> mls.solve(ladder, torch.ones(3, 2), times, mls.em_plan(ladder, times), diffusion=diffusion,
        ...           brownian=mls.BrownianPath(seeds=range(3))).y.shape
        torch.Size([3, 2])
    """
    if not sdes:
        raise ValueError('"sdes" is empty; give at least one SDE object')
    for level, sde in enumerate(sdes):
        ways = {"noise_type": ("noise_type",), "sde_type": ("sde_type",), "f": ("f", "f_and_g"), "g": _DIFFUSIONS}
        missing = [name for name, others in ways.items() if not any(hasattr(sde, other) for other in others)]
        if missing:
            raise TypeError(f'"sdes[{level}]" lacks {", ".join(missing)}; give objects that torchsde.sdeint accepts')
        if sde.sde_type != "ito":
            raise ValueError(
                f'"sdes[{level}]" has sde_type {sde.sde_type!r}; only "ito" is supported; '
                "convert the drift, or use torchsde"
            )
        if sde.noise_type not in _SUPPORTED:
            raise ValueError(
                f'"sdes[{level}]" has noise_type {sde.noise_type!r}; only {", ".join(_SUPPORTED)} are supported'
            )
        if sde.noise_type != sdes[0].noise_type:
            raise ValueError(
                f'"sdes[{level}]" has noise_type {sde.noise_type!r} and "sdes[0]" {sdes[0].noise_type!r}; '
                "all levels share one diffusion"
            )
    top = sdes[-1]
    ladder = Ladder([_Drift(sde) for sde in sdes], costs if costs is not None else [2.0**k for k in range(len(sdes))])
    return ladder, NoiseTerm(_Noise(top))


@dataclass(frozen=True)
class _Drift:
    """f, by itself or of a pair."""

    sde: Any

    def __call__(self, y: Tensor, t: Tensor) -> Tensor:
        return self.sde.f(t, y) if hasattr(self.sde, "f") else self.sde.f_and_g(t, y)[0]


@dataclass(frozen=True)
class _Noise:
    """g applied to an increment: element by element, or as a matrix (B, d, m)."""

    sde: Any

    def __call__(self, y: Tensor, t: Tensor, increment: Tensor) -> Tensor:
        if not hasattr(self.sde, "g") and hasattr(self.sde, "g_prod"):
            return self.sde.g_prod(t, y, increment)
        g = self.sde.g(t, y) if hasattr(self.sde, "g") else self.sde.f_and_g(t, y)[1]
        return g * increment if self.sde.noise_type == "diagonal" else torch.einsum("bdm,bm->bd", g, increment)
