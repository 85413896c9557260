"""From torchsde's SDE objects to a ladder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from multilevel_sde.cost import CostModel
from multilevel_sde.ladder import Ladder
from multilevel_sde.noise.diffusion import MatrixProduct, NoiseTerm

__all__ = ["from_torchsde"]

_DRIFTS = ("f", "f_and_g", "f_and_g_prod")
_DIFFUSIONS = ("g_prod", "g", "f_and_g", "f_and_g_prod")
_TYPES = {"noise_type": ("additive", "diagonal", "general", "scalar"), "sde_type": ("ito", "stratonovich")}


def from_torchsde(
    sdes: Sequence[Any], costs: Sequence[float] | CostModel | None = None, *, motions: int | None = None
) -> tuple[Ladder, NoiseTerm]:
    """Turn torchsde SDE objects, cheapest first, into a ladder of their drifts and the diffusion of the last.

    The diffusion is shared by all levels (the method replaces the drift only), so it is taken from the top one.
    Every noise type, Ito and Stratonovich; states have torchsde's shape (B, d).

    Arguments:
        sdes: Objects with noise_type and sde_type, and with f(t, y), g(t, y), g_prod(t, y, v), f_and_g(t, y) or
            f_and_g_prod(t, y, v), as torchsde takes them.
        costs: As for :class:`Ladder`; by default 1, 2, 4, ... which only orders the levels: give real ones.
        motions: Number m of Brownian motions of additive and general noise. A :class:`BrownianPath` without a shape
            then has m; an object that has only f_and_g_prod needs it.

    Returns:
        (ladder, diffusion) for :func:`solve`. The diffusion says which sense is meant, and a step for the other is
        refused: take `step=mls.StratonovichHeun()` for Stratonovich. Without `motions` the path of additive and general
        noise needs its shape, `BrownianPath(seeds, shape=(m,))`.

    Raises:
        ValueError: No SDEs, or types that differ or that torchsde does not know.
        TypeError: An object lacks its drift, its diffusion or its types.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> class OU:
        ...     noise_type, sde_type = "diagonal", "ito"
        ...     def f(self, t, y): return -y
        ...     def g(self, t, y): return 0.5 * torch.ones_like(y)
        >>> ladder, diffusion = mls.from_torchsde([OU()])
        >>> times = torch.linspace(0.0, 1.0, 11)
        >>> mls.solve(ladder, torch.ones(3, 2), times, mls.em_plan(ladder, times), diffusion=diffusion,
        ...           brownian=mls.BrownianPath(seeds=range(3))).y.shape
        torch.Size([3, 2])
    """
    if not sdes:
        raise ValueError('"sdes" is empty; give at least one SDE object')
    for level, sde in enumerate(sdes):
        ways = {name: (name,) for name in _TYPES} | {"f": _DRIFTS, "g": _DIFFUSIONS}
        missing = [name for name, others in ways.items() if not any(hasattr(sde, other) for other in others)]
        if missing:
            raise TypeError(f'"sdes[{level}]" lacks {", ".join(missing)}; give objects that torchsde.sdeint accepts')
        for name, known in _TYPES.items():
            kind, first = getattr(sde, name), getattr(sdes[0], name)
            if kind not in known:
                raise ValueError(f'"sdes[{level}]" has {name} {kind!r}; only {", ".join(known)} are supported')
            if kind != first:
                raise ValueError(
                    f'"sdes[{level}]" has {name} {kind!r} and "sdes[0]" {first!r}; all levels share one diffusion'
                )
    top = sdes[-1]
    of_state = top.noise_type == "diagonal"
    shape = None if of_state else (1,) if top.noise_type == "scalar" else None if motions is None else (motions,)
    drifts = []
    for level, sde in enumerate(sdes):
        if not of_state and shape is None and not (hasattr(sde, "f") or hasattr(sde, "f_and_g")):
            raise ValueError(
                f'"motions" must be the number of Brownian motions, as "sdes[{level}]" has {sde.noise_type} noise and '
                "no drift but that of f_and_g_prod, got None"
            )
        drifts.append(_Drift(sde, shape))
    additive = top.noise_type == "additive"
    sense = None if additive else top.sde_type == "stratonovich"
    ladder = Ladder(drifts, costs if costs is not None else [2.0**k for k in range(len(sdes))])
    return ladder, NoiseTerm(_product(top), shape, sense, additive, of_state)


@dataclass(frozen=True)
class _Drift:
    """f, by itself or of a pair."""

    sde: Any
    shape: tuple[int, ...] | None

    def __call__(self, y: Tensor, t: Tensor) -> Tensor:
        if hasattr(self.sde, "f"):
            return self.sde.f(t, y)
        if hasattr(self.sde, "f_and_g"):
            return self.sde.f_and_g(t, y)[0]
        return self.sde.f_and_g_prod(t, y, y.new_zeros((len(y), *(self.shape or y.shape[1:]))))[0]


@dataclass(frozen=True)
class _Product:
    """g applied to an increment by the object itself."""

    sde: Any

    def __call__(self, y: Tensor, t: Tensor, increment: Tensor) -> Tensor:
        if hasattr(self.sde, "g_prod"):
            return self.sde.g_prod(t, y, increment)
        return self.sde.f_and_g_prod(t, y, increment)[1]


@dataclass(frozen=True)
class _Coefficient:
    """g, by itself or of a pair."""

    sde: Any

    def __call__(self, y: Tensor, t: Tensor) -> Tensor:
        return self.sde.g(t, y) if hasattr(self.sde, "g") else self.sde.f_and_g(t, y)[1]


@dataclass(frozen=True)
class _Diagonal:
    """g times an increment, element by element."""

    g: _Coefficient

    def __call__(self, y: Tensor, t: Tensor, increment: Tensor) -> Tensor:
        return self.g(y, t) * increment


def _product(sde: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    if hasattr(sde, "g_prod") or not (hasattr(sde, "g") or hasattr(sde, "f_and_g")):
        return _Product(sde)
    return _Diagonal(_Coefficient(sde)) if sde.noise_type == "diagonal" else MatrixProduct(_Coefficient(sde))
