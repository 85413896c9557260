"""What one evaluation of a diffusers model costs, counted without running it.

A model of the same configuration without weights is called on the meta device (shapes only), and the FLOP counter reads
off matrix products, convolutions and attention. For some classes the input is made from the configuration, batch one,
77 tokens of text, images of the configured size: only ratios between the levels matter. Any other is counted at the
pipeline's first call, on what that call gave: its real size, which changes the ratios of video.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

import multilevel_sde as mls
from multilevel_diffusion.diffusers.calls import for_level

__all__ = ["count_costs", "example_call"]

_TOKENS = 77


def _image(config: Mapping[str, Any]) -> Tensor:
    size = config["sample_size"] or 64
    height, width = (size, size) if isinstance(size, int) else size
    return torch.zeros(1, config["in_channels"], height, width)


def _unet_2d(config: Mapping[str, Any]) -> dict[str, Any]:
    call: dict[str, Any] = {"sample": _image(config), "timestep": torch.zeros(())}
    if config["class_embed_type"] is not None or config["num_class_embeds"] is not None:
        call["class_labels"] = torch.zeros(1, dtype=torch.long)
    return call


def _unet_2d_condition(config: Mapping[str, Any]) -> dict[str, Any]:
    width = config["encoder_hid_dim"] or config["cross_attention_dim"]
    call = _unet_2d(config)
    call["encoder_hidden_states"] = torch.zeros(1, _TOKENS, width if isinstance(width, int) else width[0])
    if config["addition_embed_type"] == "text_time":
        times = torch.zeros(1, 6)
        pooled = config["projection_class_embeddings_input_dim"] - times.numel() * config["addition_time_embed_dim"]
        call["added_cond_kwargs"] = {"text_embeds": torch.zeros(1, pooled), "time_ids": times}
    return call


def _dit(config: Mapping[str, Any]) -> dict[str, Any]:
    zero = torch.zeros(1, dtype=torch.long)
    return {"hidden_states": _image(config), "timestep": zero, "class_labels": zero}


def _sd3(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "hidden_states": _image(config),
        "encoder_hidden_states": torch.zeros(1, _TOKENS, config["joint_attention_dim"]),
        "pooled_projections": torch.zeros(1, config["pooled_projection_dim"]),
        "timestep": torch.zeros(1),
    }


def _flux(config: Mapping[str, Any]) -> dict[str, Any]:
    patches = 1024
    return {
        "hidden_states": torch.zeros(1, patches, config["in_channels"]),
        "encoder_hidden_states": torch.zeros(1, _TOKENS, config["joint_attention_dim"]),
        "pooled_projections": torch.zeros(1, config["pooled_projection_dim"]),
        "timestep": torch.zeros(1),
        "img_ids": torch.zeros(patches, 3),
        "txt_ids": torch.zeros(_TOKENS, 3),
        "guidance": torch.zeros(1) if config["guidance_embeds"] else None,
    }


_EXAMPLES: dict[type, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    UNet2DModel: _unet_2d,
    UNet2DConditionModel: _unet_2d_condition,
    DiTTransformer2DModel: _dit,
    SD3Transformer2DModel: _sd3,
    FluxTransformer2DModel: _flux,
}


_CONDITIONS = ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type")
_KNOWN = (None, "text", "text_time", "text_proj", "timestep", "identity")  # those that the examples have


def example_call(model: Any) -> dict[str, Any] | None:
    """Return keyword arguments of one call of the model, batch one, or None where its class is not known.

    Example:
        >>> from diffusers import UNet2DModel
        >>> example_call(UNet2DModel(sample_size=8, block_out_channels=(32, 32, 32, 32)))["sample"].shape
        torch.Size([1, 3, 8, 8])
    """
    build = _EXAMPLES.get(type(model))
    if build is None or any(model.config.get(name) not in _KNOWN for name in _CONDITIONS):
        return None
    return build(model.config)


def count_costs(models: Sequence[Any], call: Mapping[str, Any] | None = None) -> tuple[mls.GivenCost, bool]:
    """Price every model in FLOPs of one call, or in parameters where these cannot be counted.

    Arguments:
        models: diffusers models.
        call: Arguments of a call of the top model; by default such as its configuration says.

    Returns:
        The costs with their unit, and whether the unit is FLOPs. Where a given call could not be counted there is a
        warning.

    Example:
        >>> from diffusers import UNet2DModel
        >>> models = [UNet2DModel(sample_size=16, block_out_channels=(c, c, c, c)) for c in (32, 64)]
        >>> costs, counted = count_costs(models)
        >>> counted, costs.unit, costs.costs[1] > 3 * costs.costs[0]
        (True, 'FLOPs', True)
    """
    flops = []
    for model in models:
        given = example_call(model) if call is None else for_level(call, model.config)
        flops.append(None if given is None else _flops(model, given))
        if flops[-1] is None:
            break
    else:
        return mls.GivenCost([float(count or 0) for count in flops], "FLOPs"), True
    if call is not None:
        warnings.warn(
            f"the FLOPs of {type(models[-1]).__name__} cannot be counted, so levels are priced by their numbers of "
            "parameters, half as much as FLOPs for some; give costs= where these do not reflect the time of a call",
            stacklevel=2,
        )
    return mls.GivenCost([float(model.num_parameters()) for model in models], "parameters"), False


def _flops(model: Any, call: Mapping[str, Any]) -> int | None:
    """FLOPs of one call, None where the model does not run without numbers."""
    try:
        with torch.device("meta"), torch.no_grad():
            bare = type(model).from_config(model.config).eval()
            call = tree_map(_on_meta, dict(call))
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # sees no fused attention
                type(bare).forward(bare, **{**call, "return_dict": False})
        return counter.get_total_flops()
    except Exception:  # whatever a model of another class needs
        return None


def _on_meta(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to("meta", torch.float32 if value.is_floating_point() else value.dtype)
