r"""What must hold for the multilevel estimate to be unbiased in a diffusers pipeline, checked before any sampling.

The levels must predict the same thing from the same inputs, so that f^k - f^{k-1} is a small correction. The scheduler
must be affine in the prediction, x_s = a x_t + b F + noise: the estimate F has the right mean, but single draws leave
the usual range (weights are 1/p), and whatever clips, thresholds or exponentiates them turns their spread into bias.
DDIM with its default `clip_sample` was measured 100 to 1000 times worse than without.
"""

from __future__ import annotations

import copy
import inspect
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

__all__ = ["SLOTS", "check_levels", "check_scheduler", "is_affine", "prediction_type", "slot_of", "uncompiled"]

SLOTS = ("unet", "transformer", "transformer_2", "decoder", "prior")
"""Where pipelines have denoisers; the first that a pipeline has is meant where none is named."""

_PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow_prediction")
_SHARED = (
    "in_channels",
    "out_channels",
    "sample_size",
    "cross_attention_dim",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "joint_attention_dim",
    "pooled_projection_dim",
    "addition_embed_type",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
    "class_embed_type",
    "num_class_embeds",
    "num_embeds_ada_norm",
    "time_cond_proj_dim",
    "guidance_embeds",
    "prediction_type",
)
_CHECKED_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_levels(levels: Sequence[nn.Module]) -> None:
    """Refuse levels that cannot stand in for one another.

    Arguments:
        levels: diffusers models, cheapest first (not compiled, or unwrapped).

    Raises:
        TypeError: A level is not a diffusers model, or takes other arguments than the top level.
        ValueError: No levels, the same model twice, configurations that do not fit, other dtypes or
            devices, NaN or infinite weights, unknown or different prediction types.
    """
    if not levels:
        raise ValueError('"levels" is empty, expected models, cheapest first')
    for level, model in enumerate(levels):
        if not isinstance(model, ModelMixin) or not hasattr(model, "config"):
            raise TypeError(f'"levels[{level}]" must be a diffusers model with a config, got {type(model).__name__}')
    if len({id(model) for model in levels}) < len(levels):
        raise ValueError('"levels" has the same model twice; give every size once')
    top = len(levels) - 1
    for level, model in enumerate(levels):
        _check_call(level, model, levels[top])
        _check_config(level, model.config, levels[top].config)  # type: ignore[union-attr]
        _check_weights(level, model, levels[top])
    _check_predictions([prediction_type(model.config.get("_name_or_path")) for model in levels])  # type: ignore[union-attr]


def _check_call(level: int, model: nn.Module, top: nn.Module) -> None:
    mine, tops = (list(inspect.signature(m.forward).parameters) for m in (model, top))
    if mine != tops:
        raise TypeError(
            f'"levels[{level}]" is a {type(model).__name__} and takes other arguments than the top level, a '
            f"{type(top).__name__}; a ladder needs models of one family"
        )


def _check_config(level: int, config: Mapping[str, Any], top: Mapping[str, Any]) -> None:
    for key in _SHARED:
        mine, tops = _plain(config.get(key)), _plain(top.get(key))
        if mine != tops:
            raise ValueError(
                f'"levels[{level}]" has {key}={mine}, the top level {tops}; all levels must have the same, so that '
                "they take the same inputs and predict the same thing"
            )


def _plain(value: Any) -> Any:
    """Equal entries of a sequence count as one number."""
    if isinstance(value, list | tuple):
        return value[0] if len(set(value)) == 1 else tuple(value)
    return value


def _check_weights(level: int, model: nn.Module, top: nn.Module) -> None:
    mine, tops = next(model.parameters()), next(top.parameters())
    if (mine.dtype, mine.device) != (tops.dtype, tops.device):
        raise ValueError(
            f'"levels[{level}]" is {mine.dtype} on {mine.device}, the top level {tops.dtype} on {tops.device}; '
            "load all levels with the same torch_dtype and move them to one device"
        )
    for name, parameter in model.named_parameters():
        known = parameter.dtype in _CHECKED_DTYPES and parameter.device.type != "meta"
        if known and not bool(parameter.isfinite().all()):
            raise ValueError(f'"levels[{level}]" has NaN or infinite weights in {name}; load a healthy checkpoint')


def _check_predictions(predictions: Sequence[str | None]) -> None:
    for level, prediction in enumerate(predictions):
        if prediction is not None and prediction not in _PREDICTIONS:
            raise ValueError(
                f'"levels[{level}]" comes with the unknown prediction type {prediction!r}, expected one of '
                f"{', '.join(_PREDICTIONS)}"
            )
    known = {level: prediction for level, prediction in enumerate(predictions) if prediction is not None}
    if len(set(known.values())) > 1:
        raise ValueError(
            f'"levels" predict different things, {known} by the schedulers saved with them; all levels must share one '
            "prediction type"
        )


def prediction_type(source: str | os.PathLike[str] | None, subfolder: str | None = None) -> str | None:
    """Return the prediction type in the scheduler saved with a model, None where there is no such scheduler.

    Arguments:
        source: Folder of a pipeline, or of a model inside one.
        subfolder: Folder of the model inside `source`.

    Example:
        >>> prediction_type("no/such/folder") is None
        True
    """
    if not source:
        return None
    folder = Path(source)
    pipelines = [folder] if subfolder else [folder, folder.parent]
    for pipeline in pipelines:
        config = pipeline / "scheduler" / "scheduler_config.json"
        if config.is_file():
            return json.loads(config.read_text(encoding="utf-8")).get("prediction_type")
    return None


def check_scheduler(scheduler: Any, channels: int) -> None:
    """Refuse a scheduler under which multilevel estimates are biased.

    Arguments:
        scheduler: A diffusers scheduler.
        channels: Channels of the state, for a trial step.

    Raises:
        ValueError: It clips, thresholds, reads a learned variance off the prediction, has an unknown prediction type,
            or a trial step is not affine in the prediction.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> check_scheduler(DDIMScheduler(clip_sample=False), channels=3)
        >>> check_scheduler(DDIMScheduler(), channels=3)
        Traceback (most recent call last):
        ...
        ValueError: DDIMScheduler has clip_sample=True, which turns the spread of multilevel estimates into bias...
    """
    name, config = type(scheduler).__name__, scheduler.config
    for key in ("clip_sample", "thresholding"):
        if config.get(key):
            raise ValueError(
                f"{name} has {key}=True, which turns the spread of multilevel estimates into bias (100 to 1000 times "
                f"the error was measured); switch it off with pipe.scheduler.register_to_config({key}=False)"
            )
    prediction = config.get("prediction_type")
    if prediction is not None and prediction not in _PREDICTIONS:
        raise ValueError(
            f"{name} has the unknown prediction_type {prediction!r}, expected one of {', '.join(_PREDICTIONS)}"
        )
    if str(config.get("variance_type")).startswith("learned") and hasattr(scheduler, "_get_variance"):
        raise ValueError(
            f"{name} has variance_type={config['variance_type']}, so the model's output enters through an exponential "
            "and multilevel estimates would be biased; use a scheduler that leaves the learned variance aside, such as "
            "DDIMScheduler with clip_sample=False"
        )
    affine = is_affine(scheduler, channels)
    if affine is None:
        warnings.warn(
            f"{name} could not be tried for steps that are not affine in the model's output, under which multilevel "
            "estimates are biased; compare with budget_fraction=1 before relying on it",
            stacklevel=2,
        )
    elif not affine:
        raise ValueError(
            f"a step of {name} is not affine in the model's output (it clips, rescales or exponentiates it), so "
            "multilevel estimates would be biased; use a scheduler with a fixed rule, such as DDIMScheduler with "
            "clip_sample=False or EulerDiscreteScheduler"
        )


def is_affine(scheduler: Any, channels: int) -> bool | None:
    """Whether a first step of a copy of the scheduler is affine in the prediction, with the same noise.

    Tried between a tiny and a large prediction from a tiny state, so that a clip lets the one pass and stops the other.
    None where a step with the usual arguments fails.

    Arguments:
        scheduler: A diffusers scheduler.
        channels: Channels of the state.

    Example:
        >>> from diffusers import DDPMScheduler
        >>> is_affine(DDPMScheduler(clip_sample=False), channels=3)
        True
        >>> is_affine(DDPMScheduler(clip_sample=True), channels=3)
        False
    """
    generator = torch.Generator().manual_seed(0)
    state = 0.01 * torch.randn((1, channels, 8, 8), generator=generator)
    low, high = (scale * torch.randn((1, channels, 8, 8), generator=generator) for scale in (0.001, 3.0))
    try:
        steps = [_trial_step(scheduler, output, state) for output in (low, (low + high) / 2, high)]
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError):
        return None
    bend = (steps[0] + steps[2] - 2 * steps[1]).abs().max()
    return bool(bend <= 1e-4 * (steps[2] - steps[0]).abs().max())


def _trial_step(scheduler: Any, output: Tensor, state: Tensor) -> Tensor:
    trial = copy.deepcopy(scheduler)
    trial.set_timesteps(10)
    time = trial.timesteps[0]
    arguments = {}
    if "generator" in inspect.signature(trial.step).parameters:
        arguments["generator"] = torch.Generator().manual_seed(1)
    with torch.random.fork_rng(devices=[]):  # some schedulers draw their noise from the global generator
        torch.manual_seed(1)
        if hasattr(trial, "scale_model_input"):
            trial.scale_model_input(state, time)
        return trial.step(output, time, state, **arguments).prev_sample.double()


def slot_of(pipe: Any) -> str:
    """Return the name of a pipeline's denoiser.

    Raises:
        ValueError: It has none of the usual ones.
    """
    for slot in SLOTS:
        if getattr(pipe, slot, None) is not None:
            return slot
    raise ValueError(f"{type(pipe).__name__} has none of {', '.join(SLOTS)}; name the denoiser's slot")


def uncompiled(level: Any) -> Any:
    """Return the diffusers model inside a compiled one."""
    return getattr(level, "_orig_mod", level)
