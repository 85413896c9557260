r"""The protocol of rules that ask for their noise themselves: g at other states, g applied to other vectors, areas.

A plain step and a :class:`StepRule` are given g(y_n, t_n) dW, which is all that Euler-Maruyama needs. A
:class:`NoiseRule` is given a :class:`StepNoise` in its place, or None for an ODE. It holds

    noise.dW           W(s) - W(t), shape (B, m...): m Brownian motions a sample
    noise.H            1/h int_t^s (W(u) - W(t) - (u - t)/h dW) du, the space-time Levy area, if the rule says `area`
    noise(y, time, v)  g(y, time) v, shaped like the state; v is dW where it is left out
    noise.diagonal     whether g multiplies each element of the state's own Brownian motion
    noise.additive     whether g does not depend on y

H is the average distance of the path to its chord, which is normal with variance h/12 and independent of dW. It is the
same whichever way the interval is run through.

Reference:
    Foster, Lyons and Oberhauser, SIAM J. Numer. Anal. 58, 2020 (the area H).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from multilevel_sde.steps.rules import Estimate, StepRule
from multilevel_sde.steps.sums import transformed

__all__ = ["NoiseAdvance", "NoiseRule", "StepNoise", "along", "check_elements", "diagonal_square"]

_MASKS = 8  # that every coupling is looked for with; each finds it with probability 1/2


class StepNoise:
    """What the noise of one step is made of: the increment, and g applied to whatever a rule wants.

    Arguments:
        dW: W(s) - W(t).
        apply: apply(y, time, v) -> g(y, time) v, with the time as a tensor.
        clock: clock(time) -> the time as a tensor on the state's device.
        H: The space-time Levy area, shaped like dW, or None.
        diagonal: g multiplies element by element.
        additive: g does not depend on y.

    Example:
        >>> noise = StepNoise(torch.tensor([0.5]), lambda y, t, v: y * v, torch.tensor, diagonal=True)
        >>> noise(torch.tensor([3.0]), 0.0), noise(torch.tensor([3.0]), 0.0, torch.ones(1))
        (tensor([1.5000]), tensor([3.]))
    """

    __slots__ = ("H", "additive", "apply", "clock", "dW", "diagonal")

    def __init__(
        self,
        dW: Tensor,
        apply: Callable[[Tensor, Tensor, Tensor], Tensor],
        clock: Callable[[float], Tensor],
        *,
        H: Tensor | None = None,
        diagonal: bool = False,
        additive: bool = False,
    ):
        self.dW, self.apply, self.clock, self.H = dW, apply, clock, H
        self.diagonal, self.additive = diagonal, additive

    def __call__(self, y: Tensor, time: float, v: Tensor | None = None) -> Tensor:
        """Return g(y, time) v, or g(y, time) dW."""
        return self.apply(y, self.clock(time), self.dW if v is None else v)


class NoiseAdvance(Protocol):
    """What a :class:`NoiseRule` begins: as of a rule, with the noise in parts."""

    def __call__(self, y: Tensor, F: Estimate, t: float, s: float, noise: StepNoise | None) -> Tensor:
        """Return y at s."""
        ...


class NoiseRule(StepRule):
    """A rule whose advance(y, F, t, s, noise) is given a :class:`StepNoise`, or None for an ODE.

    Attributes:
        area: It needs the space-time Levy area H.
        only_additive: It needs noise that does not depend on the state.
        own_scale: It scales the noise itself, so that a diffusion that is a number must be 1.
        stratonovich: As for a :class:`StepRule`.

    Example:
        >>> import multilevel_sde as mls
        >>> class AtTheEnd(mls.NoiseRule):  # Euler-Maruyama with g at the time at which the step ends
        ...     def evaluations(self, times):
        ...         return [1] * (len(times) - 1)
        ...     def start(self, times):
        ...         return lambda y, F, t, s, noise: y + (s - t) * F(y, t) + noise(y, s)
        >>> ladder, times, path = mls.Ladder([lambda y, t: -y], [1.0]), [0.0, 0.5, 1.0], lambda t, s: torch.ones(1)
        >>> mls.solve(ladder, torch.zeros(1), times, mls.em_plan(ladder, times), step=AtTheEnd(),
        ...           diffusion=lambda t: t, brownian=path).y  # 0.5 / 2 + 1
        tensor([1.2500])
    """

    area: bool = False
    only_additive: bool = False
    own_scale: bool = False

    def noise_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of a sample's Brownian motions, for a sample of the state of this shape: the same."""
        return shape

    @abstractmethod
    def start(self, times: Tensor) -> NoiseAdvance:  # type: ignore[override]
        """Begin a solve on this grid: return advance(y, F, t, s, noise) -> y at s, called once a step, in order."""


def along(function: Callable[[Tensor], Tensor], y: Tensor, direction: Tensor) -> Tensor:
    """Return the derivative of a function at y in a direction, on the graph where y or the direction is.

    By two reverse passes, which need nothing that a network lacks and take less time than a forward one for small
    states.

    Example:
        >>> along(lambda y: y**2, torch.tensor([3.0, 1.0]), torch.tensor([1.0, 2.0]))
        tensor([6., 4.])
    """
    if transformed():
        return torch.func.jvp(function, (y,), (direction,))[1]  # type: ignore[return-value]
    keep = torch.is_grad_enabled() and (y.requires_grad or direction.requires_grad)
    with torch.enable_grad():
        x = y if keep and y.requires_grad else y.detach().requires_grad_(True)
        value = function(x)
        if not value.requires_grad:
            return torch.zeros_like(value)
        seed = torch.zeros_like(value, requires_grad=True)
        (back,) = torch.autograd.grad(value, x, seed, create_graph=True, allow_unused=True)
        if back is None:
            return torch.zeros_like(value)
        (forward,) = torch.autograd.grad(back, seed, direction, create_graph=keep, allow_unused=True)
    return torch.zeros_like(value) if forward is None else forward if keep else forward.detach()


def diagonal_square(function: Callable[[Tensor], Tensor], y: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Return g(y) and g'(y) g(y) factor, for g of which element i depends on element i of y, by one reverse pass.

    Example:
        >>> diagonal_square(lambda y: y**2, torch.tensor([3.0, 1.0]), torch.ones(2))
        (tensor([9., 1.]), tensor([54.,  2.]))
    """
    if transformed():
        g = function(y)
        return g, torch.func.jvp(function, (y,), (g * factor,))[1]  # type: ignore[return-value]
    plain = function(y) if torch.is_grad_enabled() else None  # does y or a parameter want a gradient?
    keep = plain is not None and plain.requires_grad
    with torch.enable_grad():
        x = y if keep and y.requires_grad else y.detach().requires_grad_(True)
        g = function(x)
        if not g.requires_grad:
            return g, torch.zeros_like(g)
        (back,) = torch.autograd.grad(g, x, g * factor, create_graph=keep, retain_graph=True, allow_unused=True)
    return g if keep else g.detach(), torch.zeros_like(g) if back is None else back


def check_elements(noise: StepNoise, y: Tensor, t: float, h: float, advice: str) -> None:
    """Refuse diagonal noise of which an element depends on another element of the state, or of another sample.

    Some elements are moved and the others not: each g must then be what it is where all are moved, or none.

    Raises:
        ValueError: It is not; `advice` says what to do.

    Example:
        >>> noise = StepNoise(torch.ones(2, 2), lambda y, t, v: y.flip(1) * v, torch.tensor, diagonal=True)
        >>> check_elements(noise, torch.ones(2, 2), 0.0, 0.1, "take another step")
        Traceback (most recent call last):
        ValueError: ... needs a diffusion g(y, t) of which element i depends on element i of the state only, ...
    """
    if transformed() or y.numel() < 2:
        return
    chance, ones = torch.Generator().manual_seed(0), torch.ones_like(noise.dW)
    with torch.no_grad():
        still = noise(y, t, ones)
        ahead = torch.where(still == 0, y + h**0.5, y + h**0.5 * still)
        moved = noise(ahead, t, ones)
        scale = 1e-3 * (moved - still).abs().nan_to_num().max() + 100 * torch.finfo(y.dtype).eps * still.abs().max()
        for _ in range(-(-_MASKS // len(y))):
            some = (torch.rand(y.shape, generator=chance) < 0.5).to(y.device)
            for mask in (some, ~some):
                off = noise(torch.where(mask, ahead, y), t, ones) - torch.where(mask, moved, still)
                if bool((off.abs() > scale).any()):  # NaN is no such difference
                    raise ValueError(
                        "the step needs a diffusion g(y, t) of which element i depends on element i of the state only, "
                        f"and here it also depends on others; {advice}"
                    )
