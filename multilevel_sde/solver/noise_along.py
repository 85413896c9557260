"""The noise of the steps of a solve: a diffusion applied to one increment after the other, checked the first time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from multilevel_sde.noise.brownian import Brownian, BrownianPath, increments
from multilevel_sde.noise.diffusion import Diffusion, NoiseTerm, as_noise, nature
from multilevel_sde.noise.space_time import increments_and_areas
from multilevel_sde.solver.loop import Noise
from multilevel_sde.steps.rules import Step, StepRule
from multilevel_sde.steps.step_noise import NoiseRule, StepNoise
from multilevel_sde.steps.sums import transformed
from multilevel_sde.times import device_dtype

__all__ = ["check_sense", "increments_along", "noise_along", "noise_maker"]

Apply = Callable[[Tensor, Tensor, Tensor], Tensor]


def check_sense(step: Step | StepRule, diffusion: Diffusion | None) -> None:
    """Refuse a step that solves another SDE than the diffusion says it is of.

    Raises:
        ValueError: Stratonovich noise with an Ito step or the other way round; noise that depends on the state with a
            step for additive noise; another number than 1 with a step that scales its noise itself.
    """
    if diffusion is None:
        return
    term, name = nature(diffusion), _name(step)
    solves, means = bool(getattr(step, "stratonovich", False)), term.stratonovich
    if not term.additive and means is not None and solves != means:
        senses, advice = ("Ito", "Stratonovich"), ("Milstein()", "StratonovichHeun()")
        raise ValueError(
            f'"diffusion" is declared {senses[means]} and the step {name} solves {senses[solves]} SDEs; take one for '
            f"{senses[means]}, such as mls.{advice[means]}"
        )
    if getattr(step, "only_additive", False) and not term.additive:
        raise ValueError(
            f"the step {name} needs noise that does not depend on the state, got a diffusion g(y, t) or a NoiseTerm "
            "without additive=True; give a number, sigma(t) or such a term, or take mls.Milstein()"
        )
    if not getattr(step, "own_scale", False) or callable(diffusion) or isinstance(diffusion, NoiseTerm):
        return
    number = torch.as_tensor(diffusion).detach()
    if not transformed() and float(number) != 1:
        raise ValueError(
            f'"diffusion" of {float(number):g} would change the temperature of {name}, which scales its noise itself; '
            "give diffusion=1.0"
        )


def _name(step: object) -> str:
    return getattr(step, "__name__", type(step).__name__)


def noise_along(
    step: Step | StepRule,
    diffusion: Diffusion,
    brownian: Brownian | BrownianPath,
    grid: Tensor,
    y: Tensor,
    half: torch.dtype | None,
    detached: Callable[[Tensor], Tensor] | None,
) -> Noise:
    """Return noise(y, t), which takes the next increment; the first result is checked.

    Arguments:
        step: A :class:`NoiseRule` is given the noise in parts.
        diffusion: As for :func:`solve`.
        brownian: The same.
        grid: The times of the solve.
        y: The initial state as it is carried.
        half: The dtype of the states that a diffusion sees, where it is of 16 bits.
        detached: Takes noise off its graph, or None.
    """
    source, noise_of = increments_along(step, diffusion, brownian, grid, y), noise_maker(step, diffusion, grid, y, half)
    if detached is None or isinstance(step, NoiseRule):
        return lambda y, t: noise_of(y, t, next(source))
    return lambda y, t: detached(noise_of(y, t, next(source)))


def noise_maker(
    step: Step | StepRule, diffusion: Diffusion, grid: Tensor, y: Tensor, half: torch.dtype | None = None
) -> Callable[[Tensor, Tensor, Any], Any]:
    """Return noise_of(y, t, increment) -> what a step is given, for the increments of :func:`increments_along`."""
    apply = _rounding(_checked_once(as_noise(diffusion), isinstance(diffusion, NoiseTerm)), diffusion, half)
    if not isinstance(step, NoiseRule):
        return apply
    term, device, dtype = nature(diffusion), y.device, device_dtype(grid.dtype, y.device)
    kind: dict[str, Any] = {"diagonal": term.diagonal, "additive": term.additive}

    def clock(time: float) -> Tensor:
        return torch.full((), time, dtype=dtype, device=device)

    if step.area:
        return lambda y, t, parts: StepNoise(parts[0], apply, clock, H=parts[1], **kind)
    return lambda y, t, dW: StepNoise(dW, apply, clock, **kind)


def increments_along(
    step: Step | StepRule, diffusion: Diffusion, brownian: Brownian | BrownianPath, grid: Tensor, y: Tensor
) -> Iterator[Any]:
    """Return the increments of a grid, or (increment, area) for a rule that asks for areas.

    Raises:
        ValueError: The first does not have the shape that the diffusion declares; areas that the path does not have.
    """
    shape = nature(diffusion).shape
    own = step.noise_shape(tuple(y.shape[1:])) if shape is None and isinstance(step, NoiseRule) and y.dim() else shape
    like = y if own is None or not y.dim() else y.new_empty(()).expand(len(y), *own)
    areas = isinstance(step, NoiseRule) and step.area
    source: Iterator[Any] = (increments_and_areas if areas else increments)(brownian, grid, like)
    return source if shape is None else _declared(source, shape)


def _declared(source: Iterator[Any], shape: tuple[int, ...]) -> Iterator[Any]:
    """The increments, the first of which must have the shape that the diffusion declares."""
    first = next(source)
    dW = first[0] if isinstance(first, tuple) else first
    if isinstance(dW, Tensor) and tuple(dW.shape[1:]) != shape:
        raise ValueError(
            f'"diffusion" is declared for Brownian motions of shape {shape} a sample and "brownian" gives '
            f"increments of shape {tuple(dW.shape)}; pass BrownianPath(seeds, shape={shape})"
        )
    yield first
    del first, dW
    yield from source


def _rounding(apply: Apply, diffusion: Diffusion, half: torch.dtype | None) -> Apply:
    """The same for states of 16 bits, which a diffusion sees rounded."""
    own = isinstance(diffusion, NoiseTerm)
    if half is None:
        return apply

    def rounded(y: Tensor, t: Tensor, dW: Tensor) -> Tensor:
        # A matrix of 16 bits is not applied to increments of float32.
        return apply(y.to(half), t, dW.to(half) if own else dW).to(y.dtype)

    return rounded


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
