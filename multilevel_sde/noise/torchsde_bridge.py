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

_SUPPORTED = ("additive", "diagonal", "scalar")


def from_torchsde(sdes: Sequence[Any], costs: Sequence[float] | CostModel | None = None) -> tuple[Ladder, NoiseTerm]:
    """Turn torchsde SDE objects, cheapest first, into a ladder of their drifts and the diffusion of the last.

    The diffusion is shared by all levels (the method replaces the drift only), so it is taken from the top one.
    Ito SDEs with additive, diagonal or scalar noise; states have torchsde's shape (B, d).

    Arguments:
        sdes: Objects with f(t, y), g(t, y), noise_type and sde_type.
        costs: As for :class:`Ladder`; by default 1, 2, 4, ... which only orders the levels: give real ones.

    Returns:
        (ladder, diffusion) for :func:`solve`. For additive and scalar noise the Brownian path has torchsde's shape
        (B, m): pass `BrownianPath(seeds, shape=(m,))`.

    Raises:
        ValueError: No SDEs, Stratonovich or general noise, or noise types that differ.
        TypeError: An object lacks one of the four attributes.

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
        missing = [name for name in ("f", "g", "noise_type", "sde_type") if not hasattr(sde, name)]
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
    if top.noise_type == "diagonal":
        return ladder, NoiseTerm(_Diagonal(top))
    return ladder, NoiseTerm(_Matrix(top))


@dataclass(frozen=True)
class _Drift:
    sde: Any

    def __call__(self, y: Tensor, t: Tensor) -> Tensor:
        return self.sde.f(t, y)


@dataclass(frozen=True)
class _Diagonal:
    sde: Any

    def __call__(self, y: Tensor, t: Tensor, increment: Tensor) -> Tensor:
        return self.sde.g(t, y) * increment


@dataclass(frozen=True)
class _Matrix:
    sde: Any

    def __call__(self, y: Tensor, t: Tensor, increment: Tensor) -> Tensor:
        return torch.einsum("bdm,bm->bd", self.sde.g(t, y), increment)
