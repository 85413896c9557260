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

__all__ = ["SLOTS", "check_caches", "check_levels", "check_scheduler", "is_affine", "one_step", "slot_of", "uncompiled"]

SLOTS = ("unet", "transformer", "transformer_2", "decoder", "prior")
"""Where pipelines have denoisers; the first that a pipeline has is meant where none is named."""

_PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow_prediction")
_SHARED = (
    "in_channels",
    "out_channels",
    "sample_size",
    "cross_attention_dim",
    "caption_channels",
    "text_dim",
    "text_embed_dim",
    "in_text_dim",
    "image_dim",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "joint_attention_dim",
    "pooled_projection_dim",
    "use_rotary_positional_embeddings",
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
_TEXT_WIDTHS = ("caption_channels", "encoder_hid_dim")
_TRAINED_WITH = {  # what a model was trained with and is saved beside it, in scheduler and VAE
    "scheduler": ("prediction_type", "beta_start", "beta_end", "beta_schedule", "snr_shift_scale"),
    "vae": ("scaling_factor", "shift_factor", "latents_mean", "latents_std"),
}
_CHECKED_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_levels(levels: Sequence[nn.Module], pipe: Any = None) -> None:
    """Refuse levels that cannot stand in for one another.

    Arguments:
        levels: diffusers models, cheapest first (not compiled, or unwrapped).
        pipe: The pipeline of the top level, where there is one.

    Raises:
        TypeError: A level is not a diffusers model, or takes other arguments than the top level.
        ValueError: No levels, the same model twice, configurations that do not fit, other dtypes or
            devices, NaN or infinite weights, unknown or different prediction types, other noise schedules or scales
            of the latents.
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
    settings = [_trained_with(model.config.get("_name_or_path")) for model in levels]  # type: ignore[union-attr]
    _check_predictions([found.get(("scheduler", "prediction_type")) for found in settings])
    settings[top] |= {key: value for key, value in _settings_of(pipe).items() if value is not None}
    for level in range(top):
        _check_training(level, settings[level], settings[top])


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
        if key == "cross_attention_dim" and any(top.get(width) is not None for width in _TEXT_WIDTHS):
            continue  # the width of the model itself (SANA, LTX, PixArt, IF), not that of the text
        if mine != tops:
            raise ValueError(
                f'"levels[{level}]" has {key}={mine}, the top level {tops}; all levels must have the same, so that '
                "they take the same inputs and predict the same thing"
            )


def _plain(value: Any) -> Any:
    """Equal entries of a sequence count as one number."""
    if isinstance(value, list | tuple):
        entries = tuple(map(_plain, value))
        return entries[0] if len(set(entries)) == 1 else entries
    return value


def _check_weights(level: int, model: Any, top: Any) -> None:
    if (model.dtype, model.device) != (top.dtype, top.device):
        raise ValueError(
            f'"levels[{level}]" is {model.dtype} on {model.device}, the top level {top.dtype} on {top.device}; '
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


def _settings_of(pipe: Any) -> dict[tuple[str, str], Any]:
    """What the components of a pipeline say of the training of its model."""
    configs = {part: getattr(getattr(pipe, part, None), "config", {}) for part in _TRAINED_WITH}
    return {(part, key): configs[part].get(key) for part, keys in _TRAINED_WITH.items() for key in keys}


def _trained_with(source: str | os.PathLike[str] | None) -> dict[tuple[str, str], Any]:
    """What is saved beside a model; empty where it does not come from the folder of a pipeline."""
    found = {}
    for pipeline in (Path(source), Path(source).parent) if source else ():
        for part, name in (("scheduler", "scheduler_config.json"), ("vae", "config.json")):
            config = pipeline / part / name
            if config.is_file():
                saved = json.loads(config.read_text(encoding="utf-8"))
                found |= {(part, key): saved[key] for key in _TRAINED_WITH[part] if saved.get(key) is not None}
    return found


def _check_training(level: int, mine: Mapping[tuple[str, str], Any], tops: Mapping[tuple[str, str], Any]) -> None:
    for (part, key), value in mine.items():
        other = tops.get((part, key), value)
        if _plain(other) != _plain(value):
            raise ValueError(
                f'"levels[{level}]" was saved with a {part} that has {key}={value}, the top level\'s has {other}; '
                "levels that were trained on other latents or noise cannot correct one another"
            )


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
    elif not affine and config.get("rescale_betas_zero_snr") and prediction == "epsilon":
        raise ValueError(
            f"{name} has rescale_betas_zero_snr=True, so that no signal is left at the first call, of which "
            "prediction_type='epsilon' says nothing; take the model's own v_prediction, or switch the rescaling off"
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
    shifted = {"mu": 1.0} if trial.config.get("use_dynamic_shifting") else {}  # by the size of the image
    trial.set_timesteps(10, **shifted)
    with torch.random.fork_rng(devices=[]):  # some schedulers draw their noise from the global generator
        torch.manual_seed(1)
        generator = torch.Generator().manual_seed(1)
        return one_step(trial, output, trial.timesteps[0], state, {"generator": generator}).double()


def one_step(scheduler: Any, output: Tensor, time: Tensor, state: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """Return the state after a step, whatever else the step of this scheduler takes.

    Arguments:
        scheduler: Set; it counts the step.
        output: Of the model.
        time: One of the scheduler's timesteps.
        state: Before the step.
        arguments: Those that the step knows are passed on to it.
    """
    names = inspect.signature(scheduler.step).parameters
    known = {name: value for name, value in arguments.items() if name in names}
    if "old_pred_original_sample" in names:  # CogVideoXDPMScheduler: a first step
        known |= {"old_pred_original_sample": None, "timestep_back": None}
    if hasattr(scheduler, "scale_model_input"):
        scheduler.scale_model_input(state, time)
    wuerstchen = "Wuerstchen" in type(scheduler).__name__  # wants a time for each sample
    return scheduler.step(output, timestep=time.expand(len(state)) if wuerstchen else time, sample=state, **known)[0]


def check_caches(levels: Sequence[Any], always: Sequence[bool] | None) -> None:
    """Refuse caches of levels that are called now and then: they would use what far steps left in them.

    Arguments:
        levels: The models.
        always: Which of them a plan calls at every step; None where that is not known.

    Raises:
        ValueError: One of the others has a cache.
    """
    for level, model in enumerate(levels):
        if getattr(uncompiled(model), "is_cache_enabled", False) and not (always and always[level]):
            raise ValueError(
                f'"levels[{level}]" has a cache but is called at few steps, which it would mistake for neighbours; '
                "call its disable_cache() and cache the level that runs at every step: "
                "ladder.levels[0].enable_cache(...)"
            )


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
