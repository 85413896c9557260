"""The noise of the steps of a solve: a diffusion applied to one increment after the other, checked the first time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from multilevel_sde.noise.diffusion import Diffusion, NoiseTerm, as_noise
from multilevel_sde.solver.loop import Noise

__all__ = ["noise_along"]

Apply = Callable[[Tensor, Tensor, Tensor], Tensor]


def noise_along(
    diffusion: Diffusion,
    increments: Iterator[Tensor],
    half: torch.dtype | None,
    detached: Callable[[Tensor], Tensor] | None,
) -> Noise:
    """Return noise(y, t), which takes the next increment; the first result is checked.

    Arguments:
        diffusion: As for :func:`solve`.
        increments: Of the Brownian path.
        half: The dtype of the states that a diffusion sees, where it is of 16 bits.
        detached: Takes noise off its graph, or None.
    """
    apply = _checked_once(as_noise(diffusion), isinstance(diffusion, NoiseTerm))

    def noise(y: Tensor, t: Tensor) -> Tensor:
        return apply(y, t, next(increments))

    def rounded(y: Tensor, t: Tensor) -> Tensor:
        increment = next(increments)
        # A matrix of 16 bits is not applied to increments of float32.
        return apply(y.to(half), t, increment.to(half) if isinstance(diffusion, NoiseTerm) else increment).to(y.dtype)

    of_state = noise if half is None else rounded
    return of_state if detached is None else lambda y, t: detached(of_state(y, t))


def _checked_once(apply: Apply, own: bool) -> Apply:
    """Return a noise term whose first result is checked.

    Arguments:
        apply: apply(y, t, dW).
        own: It is the user's function, whose errors are its own; else it multiplies what that returned.
    """
    checked = False

    def checking(y: Tensor, t: Tensor, dW: Tensor) -> Tensor:
        nonlocal checked
        if checked:
            return apply(y, t, dW)
        try:
            result = apply(y, t, dW)
        except (TypeError, RuntimeError) as error:
            inside = error.__traceback__ and error.__traceback__.tb_next
            if own or type(error) not in (TypeError, RuntimeError) or inside is None or inside.tb_next is not None:
                raise  # from inside the user's function, or for want of memory
            raise (TypeError if isinstance(error, TypeError) else ValueError)(
                f'"diffusion" must return a number or a tensor that multiplies increments of shape {tuple(dW.shape)}, '
                f"and what it returned does not ({error}); a diffusion that is not diagonal goes into a NoiseTerm"
            ) from None
        _check_noise(result, y)
        checked = True
        return result

    return checking


def _check_noise(noise: Tensor, y: Tensor) -> None:
    if not isinstance(noise, Tensor):
        raise TypeError(f'"diffusion" and "brownian" must give noise as a Tensor, got {type(noise).__name__}')
    if noise.shape != y.shape:
        raise ValueError(
            f'"diffusion" and "brownian" give noise of shape {tuple(noise.shape)} for a state of shape '
            f"{tuple(y.shape)}; a diffusion that is not diagonal goes into a NoiseTerm"
        )
