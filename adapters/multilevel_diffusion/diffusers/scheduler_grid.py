r"""The noise levels of a scheduler's calls, and the coefficients of a multistep base on them.

Every scheduler of diffusers shows its model a state alpha x_0 + sigma eps (those that work on x_0 + sigma eps scale it
first). Its attributes say alpha and sigma at every call. A first-order step is

    x_s = A x + B x_0 + noise,    A = e^{-tau^2 h} sigma_s / sigma_t,    h = lambda_s - lambda_t,

so that A, read off trial steps of copies, tells tau^2 h, hence how much x_0 counts along the step, (1 + tau^2) h. That
is all that multistep coefficients need (:mod:`multilevel_diffusion.process.multistep`). A step that depends on earlier
outputs is not of first order: such a scheduler has a multistep method of its own.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multilevel_diffusion.diffusers.checks import one_step
from multilevel_diffusion.loops.memory import DataMap
from multilevel_diffusion.process.multistep import REACH, corrected_table, predictor_table

__all__ = [
    "adds_noise",
    "aimed",
    "base_coefficients",
    "data_maps",
    "half_log_snr",
    "is_cosmos",
    "signal_levels",
    "step_arguments",
    "step_lengths",
]

_BENT = 1e-3  # relative residual of a step that is not x_s = A x + B F + noise
_TINY = 1e-12
_UNTRIED = (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError)  # of steps that need more
_SCALED = {
    "DPMSolverSDEScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
}


def signal_levels(scheduler: Any) -> tuple[list[float], list[float]]:
    """Return alpha and sigma of the state that the model sees at each call of a set scheduler, and at the end.

    Raises:
        ValueError: The scheduler has neither `sigmas` nor `alphas_cumprod`, or its timesteps are not set.

    Example:
        >>> from diffusers import FlowMatchEulerDiscreteScheduler
        >>> scheduler = FlowMatchEulerDiscreteScheduler()
        >>> scheduler.set_timesteps(2)
        >>> signal_levels(scheduler)[1]
        [1.0, 0.0010000000474974513, 0.0]
    """
    calls = getattr(scheduler, "timesteps", None)
    if calls is None:
        raise ValueError(f"{type(scheduler).__name__} has no timesteps yet; call its set_timesteps first")
    sigmas = getattr(scheduler, "sigmas", None)
    if isinstance(sigmas, Tensor) and len(sigmas) >= len(calls):
        places = sigmas.detach().double().cpu().tolist()[: len(calls) + 1]
        places += [0.0] * (len(calls) + 1 - len(places))
        if is_cosmos(scheduler):
            places = [place / (1 + place) for place in places]
        if _is_flow(scheduler):
            return [1 - place for place in places], places
        data = float(scheduler.config["sigma_data"]) if _is_edm(scheduler) else 1.0
        scale = [1 / math.sqrt(data**2 + place**2) for place in places]
        return scale, [a * place for a, place in zip(scale, places, strict=True)]
    table = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(table, Tensor):
        raise ValueError(
            f"{type(scheduler).__name__} says neither sigmas nor alphas_cumprod, so its noise levels are not known"
        )
    table = table.detach().double().cpu()
    kept = table[calls.detach().cpu().long().clamp(0, len(table) - 1)].tolist()
    kept.append(float(getattr(scheduler, "final_alpha_cumprod", 1.0)))
    return [math.sqrt(a) for a in kept], [math.sqrt(max(0.0, 1 - a)) for a in kept]


def half_log_snr(scheduler: Any, first: int = 0) -> tuple[float, ...]:
    """Return log(alpha / sigma) at the calls of a set scheduler and at its end; empty where it is not known.

    Arguments:
        scheduler: Set, for example by `scheduler.set_timesteps(28)`.
        first: The call with which the trajectory begins (image to image).

    Example:
        >>> from diffusers import DDIMScheduler
        >>> scheduler = DDIMScheduler()
        >>> scheduler.set_timesteps(2)
        >>> [round(place, 2) for place in half_log_snr(scheduler)]
        [-1.24, 4.61, inf]
    """
    try:
        alphas, sigmas = signal_levels(scheduler)
    except (ValueError, IndexError, KeyError, TypeError):
        return ()
    places = tuple(_log(alpha) - _log(sigma) for alpha, sigma in zip(alphas, sigmas, strict=True))[first:]
    rising = all(a < b for a, b in pairwise(places))
    return places if rising and all(math.isfinite(place) for place in places[1:-1]) else ()


def data_maps(scheduler: Any) -> list[DataMap]:
    """Return x_0 as a function of state and output, at each call of a set scheduler.

    Raises:
        ValueError: See :func:`signal_levels`; or the scheduler says neither what its model predicts.
    """
    if hasattr(scheduler, "undo_step"):
        raise ValueError(f"{type(scheduler).__name__} goes back in time, where stored values are of another state")
    alphas, sigmas = signal_levels(scheduler)
    calls = len(scheduler.timesteps)
    if _is_edm(scheduler):
        return [_preconditioned(scheduler, float(sigma)) for sigma in scheduler.sigmas[:calls]]
    prediction = scheduler.config.get("prediction_type") or ("flow_prediction" if _is_flow(scheduler) else None)
    if prediction is None:
        raise ValueError(
            f"{type(scheduler).__name__} does not say what its model predicts, so nothing can be remembered"
        )
    return [DataMap.of(prediction, alphas[n], sigmas[n]) for n in range(calls)]


def aimed(scheduler: Any, maps: list[DataMap]) -> list[DataMap]:
    """Return the maps under which every step of a set DDIM scheduler ends at the noise level of its next call.

    A step of DDIM takes T // N of its T train timesteps, also where N calls lie further apart: with 28 of 1000 it ends
    35 below a call and the next one is 36 below. One output decides where a step without noise ends, so that x_s = A x
    + B x_0 at the next call's noise level takes x_0' = ((A - A') x + B x_0) / B', with A' and B' of DDIM's step.
    """
    if not (hasattr(scheduler, "final_alpha_cumprod") and getattr(scheduler, "num_inference_steps", None)):
        return maps
    if isinstance(getattr(scheduler, "sigmas", None), Tensor) or hasattr(scheduler, "step_index"):
        return maps
    alphas, sigmas = signal_levels(scheduler)
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    found = []
    for n, here in enumerate(maps):
        end = int(scheduler.timesteps[n]) - stride
        if end < 0 or sigmas[n] == 0:
            found.append(here)
            continue
        square = float(scheduler.alphas_cumprod[end])
        theirs = (math.sqrt(1 - square) / sigmas[n], math.sqrt(square) - alphas[n] * math.sqrt(1 - square) / sigmas[n])
        wanted = (sigmas[n + 1] / sigmas[n], alphas[n + 1] - alphas[n] * sigmas[n + 1] / sigmas[n])
        found.append(replace(here, aim=((wanted[0] - theirs[0]) / theirs[1], wanted[1] / theirs[1])))
    return found


def is_cosmos(scheduler: Any) -> bool:
    """Whether a flow is run at EDM's noise levels, by a pipeline that shows its model x / (1 + sigma): Cosmos 2.

    Example:
        >>> from diffusers import FlowMatchEulerDiscreteScheduler
        >>> is_cosmos(FlowMatchEulerDiscreteScheduler())
        False
    """
    return _is_flow(scheduler) and float(scheduler.sigmas.max()) > 1 + _BENT


def _is_edm(scheduler: Any) -> bool:
    return hasattr(scheduler, "precondition_outputs")


def _is_flow(scheduler: Any) -> bool:
    config = scheduler.config
    by_name = "FlowMatch" in type(scheduler).__name__
    return by_name or bool(config.get("use_flow_sigmas")) or config.get("prediction_type") == "flow_prediction"


def _preconditioned(scheduler: Any, sigma: float) -> DataMap:
    """EDM's networks: x_0 = c_skip x + c_out F, where the model sees c_in x."""
    data = float(scheduler.config["sigma_data"])
    total = sigma**2 + data**2
    skip, out, seen = data**2 / total, sigma * data / math.sqrt(total), 1 / math.sqrt(total)
    if scheduler.config.get("prediction_type") == "v_prediction":
        out = -out
    return DataMap(skip / seen, out)


def step_lengths(scheduler: Any, arguments: Mapping[str, Any] | None = None) -> list[float] | None:
    """Return (1 + tau^2) h of every step of a set scheduler of first order, None for one that is not.

    Arguments:
        scheduler: Copies of it make trial steps; it stays as it is.
        arguments: Of its steps, such as eta.

    Example:
        >>> from diffusers import DDIMScheduler, DDPMScheduler, UniPCMultistepScheduler
        >>> lengths = []
        >>> for scheduler in (DDIMScheduler(clip_sample=False), DDPMScheduler(clip_sample=False)):
        ...     scheduler.set_timesteps(4)
        ...     lengths.append(step_lengths(scheduler)[1])
        >>> round(lengths[1] / lengths[0], 3)
        2.0
    """
    if is_cosmos(scheduler):
        return None  # what it gives the scheduler is no output of its model
    try:
        return _lengths(scheduler, arguments or {})
    except _UNTRIED:
        return None


def _lengths(scheduler: Any, arguments: Mapping[str, Any]) -> list[float] | None:
    alphas, sigmas = signal_levels(scheduler)
    maps, found = data_maps(scheduler), []
    for n, (states, outputs, ends) in enumerate(_trial_steps(scheduler, arguments)):
        columns = torch.stack([(states[1:] - states[:1]).flatten(), (outputs[1:] - outputs[:1]).flatten()], 1)
        moved = (ends[1:] - ends[:1]).flatten()
        fit = torch.linalg.lstsq(columns, moved[:, None]).solution[:, 0]
        if float((columns @ fit - moved).abs().max()) > _BENT * float(moved.abs().max()):
            return None
        # The state of step() is the model's divided by the scale with which the scheduler shows it.
        scale = alphas[n] if _is_scaled(scheduler) else 1.0
        following = alphas[n + 1] if _is_scaled(scheduler) else 1.0
        kept = float(fit[0]) - float(fit[1]) * maps[n].state * scale / maps[n].output
        found.append(_length(kept * following / scale, alphas[n : n + 2], sigmas[n : n + 2]))
    return found


def adds_noise(scheduler: Any, arguments: Mapping[str, Any] | None = None) -> bool:
    """Whether steps of a set scheduler depend on random numbers of their own, or cannot be tried.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> scheduler = DDIMScheduler(clip_sample=False)
        >>> scheduler.set_timesteps(4)
        >>> adds_noise(scheduler), adds_noise(scheduler, {"eta": 1.0})
        (False, True)
    """
    first, second = (_trial_steps(scheduler, arguments or {}, seed) for seed in (0, 1))
    try:
        return any(not torch.equal(a, b) for (_, _, a), (_, _, b) in zip(first, second, strict=True))
    except _UNTRIED:
        return True


def step_arguments(scheduler: Any, arguments: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers among a pipeline's arguments that the steps of its scheduler take.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> step_arguments(DDIMScheduler(), {"eta": 1.0, "num_inference_steps": 8})
        {'eta': 1.0}
    """
    names = inspect.signature(scheduler.step).parameters
    numbers = {name: value for name, value in arguments.items() if isinstance(value, int | float)}
    return {name: value for name, value in numbers.items() if name in names and name != "return_dict"}


def _length(kept: float, alphas: list[float], sigmas: list[float]) -> float:
    """(1 + tau^2) h from the coefficient of the state."""
    if min(sigmas[1], kept, alphas[0]) <= _TINY:
        return math.inf
    h = math.log(alphas[1] / sigmas[1]) - math.log(alphas[0] / sigmas[0])
    return h + max(0.0, -math.log(kept * sigmas[0] / sigmas[1]))


def _is_scaled(scheduler: Any) -> bool:
    """Whether step() works on x_0 + sigma eps, which its model sees multiplied by alpha."""
    return _is_edm(scheduler) or (type(scheduler).__name__ in _SCALED and not _is_flow(scheduler))


def _unused(scheduler: Any) -> Any:
    """A scheduler on the same timesteps that has made no step yet: without the outputs that multistep ones keep."""
    fresh = type(scheduler).from_config(scheduler.config)
    for name, value in vars(scheduler).items():
        grid = isinstance(value, Tensor) and value.dim() <= 1
        if grid or isinstance(value, np.ndarray) or name == "num_inference_steps":
            setattr(fresh, name, copy.deepcopy(value))
    return fresh


def _trial_steps(
    scheduler: Any, arguments: Mapping[str, Any], seed: int = 0
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Steps of four copies with random states and outputs and the same noise: (states, outputs, ends) of each."""
    trials = [_unused(scheduler) for _ in range(4)]
    random = torch.Generator().manual_seed(0)
    for n, time in enumerate(scheduler.timesteps):
        states = torch.randn((4, 1, 4, 2, 2), generator=random)
        outputs = torch.randn((4, 1, 4, 2, 2), generator=random)
        ends = []
        with torch.random.fork_rng(devices=[]):
            for trial, state, output in zip(trials, states, outputs, strict=True):
                torch.manual_seed(2 * n + seed)
                known = {**arguments, "generator": torch.Generator().manual_seed(2 * n + seed)}
                if hasattr(trial, "_step_index"):
                    trial._step_index = n
                ends.append(one_step(trial, output, time, state, known))
        yield states.double(), outputs.double(), torch.stack(ends).double()


def base_coefficients(
    scheduler: Any, arguments: Mapping[str, Any] | None = None, first: int = 0, *, corrected: bool = True
) -> Tensor | None:
    """Return the coefficients of a multistep base on a set scheduler's calls, (N, order); None where it has its own.

    Those of SA-Solver of order 2, with its corrector for the ODE; of order 1 where a step is more than three times as
    long as the last.

    Arguments:
        scheduler: Set, for example by `scheduler.set_timesteps(28)`.
        arguments: Of its steps, such as eta.
        first: The call with which the trajectory begins (image to image).
        corrected: Whether the corrector may be used, which is for steps without noise.

    Example:
        >>> from diffusers import DDIMScheduler, UniPCMultistepScheduler
        >>> tables = []
        >>> for scheduler in (DDIMScheduler(clip_sample=False), UniPCMultistepScheduler()):
        ...     scheduler.set_timesteps(8)
        ...     tables.append(base_coefficients(scheduler))
        >>> tables[0].shape, tables[1] is None
        (torch.Size([8, 3]), True)
    """
    lengths = step_lengths(scheduler, arguments)
    if lengths is None:
        return None
    lengths = lengths[first:]
    alphas, sigmas = (levels[first:] for levels in signal_levels(scheduler))
    places = [_log(alpha) - _log(sigma) for alpha, sigma in zip(alphas, sigmas, strict=True)]
    h = [after - before for before, after in pairwise(places)]
    if not corrected or any(math.isfinite(z) and z > (1 + _BENT) * one for z, one in zip(lengths, h, strict=True)):
        return predictor_table(places, lengths, 2, reach=REACH)
    coefficients = [
        (sigmas[n + 1] / sigmas[n], -alphas[n + 1] * math.expm1(-one)) for n, one in enumerate(h)
    ]  # without noise
    return corrected_table(places, h, coefficients, 2, 2, reach=REACH)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf
