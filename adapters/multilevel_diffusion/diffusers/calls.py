"""One call of a pipeline's denoiser: its arguments by name, and what can be wrong with them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["bind", "check_residuals", "explain", "for_level", "stacked", "time_of", "warn_of_disagreement"]

_RESIDUALS = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
    "block_controlnet_hidden_states",
    "controlnet_block_samples",
    "controlnet_single_block_samples",
)
_TIMES = ("timestep", "timestep_ratio", "timesteps", "time", "t", "sigma")
_WIDTHS = ("block_out_channels", "layers_per_block", "num_attention_heads", "attention_head_dim", "num_layers")


def bind(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name.

    Raises:
        TypeError: Too many arguments, or no timestep.

    Example:
        >>> bind(["sample", "timestep"], [1, 2], {"return_dict": False})
        {'sample': 1, 'timestep': 2, 'return_dict': False}
    """
    if len(args) > len(names):
        raise TypeError(f"the model takes {len(names)} arguments, got {len(args)}")
    call = {**dict(zip(names, args, strict=False)), **kwargs}
    time = next((name for name in _TIMES if name in names), _TIMES[0])
    if names[0] not in call or call.get(time) is None:
        raise TypeError(f'the model needs "{names[0]}" and "{time}", got {", ".join(call) or "nothing"}')
    return call


def time_of(call: Mapping[str, Any]) -> Any:
    """Return the time of a call, whatever its model calls it.

    Example:
        >>> time_of({"sample": 1, "timestep_ratio": 0.5})
        0.5
    """
    return next(call[name] for name in _TIMES if call.get(name) is not None)


def stacked(states: Tensor | Sequence[Tensor]) -> Tensor:
    """Return states as one tensor, where a model takes and returns a list of them (Z-Image).

    Raises:
        TypeError: They differ in shape, or are no tensors.

    Example:
        >>> stacked([torch.zeros(4, 1, 8, 8)] * 2).shape
        torch.Size([2, 4, 1, 8, 8])
    """
    if isinstance(states, Tensor):
        return states
    shapes = [tuple(state.shape) if isinstance(state, Tensor) else type(state).__name__ for state in states]
    if not shapes or isinstance(shapes[0], str) or len(set(shapes)) > 1:
        raise TypeError(
            f"the model is given states {shapes}; a ladder takes a tensor, or a list of tensors of one shape"
        )
    return torch.stack(list(states))


def for_level(call: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments for one level: lists and dictionaries copied, as some models pop entries off them.

    A scale for each VACE layer of the top level becomes one for each of this level.

    Raises:
        ValueError: The scales differ and the level has another number of VACE layers.

    Example:
        >>> call = {"residuals": [1, 2]}
        >>> for_level(call, {})["residuals"].pop(), call
        (2, {'residuals': [1, 2]})
        >>> for_level({"control_hidden_states_scale": torch.ones(3)}, {"vace_layers": (0, 2)})
        {'control_hidden_states_scale': tensor([1., 1.])}
    """
    own: dict[str, Any] = {
        name: value.copy() if isinstance(value, list | dict) else value for name, value in call.items()
    }
    scales, layers = own.get("control_hidden_states_scale"), config.get("vace_layers")
    if scales is not None and layers is not None and len(scales) != len(layers):
        if bool((scales != scales[0]).any()):
            raise ValueError(
                f'"conditioning_scale" differs between the {len(scales)} VACE layers of the top level, and a level has '
                f"{len(layers)} of them; give one number"
            )
        own["control_hidden_states_scale"] = scales[:1].expand(len(layers))
    return own


def check_residuals(call: Mapping[str, Any], levels: Sequence[Any]) -> None:
    """Refuse residuals of a ControlNet or adapter that were made for a top level of another shape than the others.

    Raises:
        ValueError: A level has other widths or depths than the top level.
    """
    given = [name for name in _RESIDUALS if call.get(name) is not None]
    if not given:
        return
    for key in _WIDTHS:
        values = [level.config.get(key) for level in levels]
        if any(value != values[-1] for value in values):
            raise ValueError(
                f'"{given[0]}" has the shapes of the top level, but the levels have {key}={values}; a ControlNet or '
                "adapter needs levels of the same widths and depths"
            )


def explain(level: int, model: Any, state: Tensor, error: RuntimeError) -> str | None:
    """Say in a sentence why a level failed on this state, None where that is not certain.

    Channels are on axis 1, but of packed states (batch, tokens, channels) on the last. What a level computes in is its
    `dtype`, also where its weights are stored in another.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return None
    said, shape, expected = str(error).lower(), tuple(state.shape), model.config.get("in_channels")
    if state.is_floating_point() and state.dtype != model.dtype and "type" in said:
        return f'the input is {state.dtype}, "levels[{level}]" {model.dtype}; convert one of them'
    channels = shape[1:] if len(shape) == 3 else shape[1:2]
    if isinstance(expected, int) and expected not in channels and str(expected) in said:
        return f'the input of shape {shape} has {channels[-1]} channels, "levels[{level}]" takes {expected}'
    factor = 2 ** (len(model.config.get("down_block_types") or [0]) - 1)
    if len(shape) == 4 and any(size % factor for size in shape[2:]) and "sizes of tensors" in said:
        return f"the input of shape {shape} must have a height and width that are multiples of {factor}"
    return None


def warn_of_disagreement(lower: Tensor, upper: Tensor, levels: tuple[int, int]) -> None:
    """Warn where two levels differ by more than the size of the better one: they hardly predict the same thing.

    Example:
        >>> import pytest
        >>> with pytest.warns(UserWarning, match="levels 1 and 2 differ by 200% of its output"):
        ...     warn_of_disagreement(torch.ones(1), -torch.ones(1), (0, 1))
    """
    with torch.no_grad():
        ratio = float((upper - lower).float().norm() / upper.float().norm())
    if ratio > 1:
        warnings.warn(
            f"levels {levels[0] + 1} and {levels[1] + 1} differ by {ratio:.0%} of its output; a ladder gains nothing "
            "from levels that predict different things: do they share the prediction type, scaling and training data?",
            stacklevel=2,
        )
