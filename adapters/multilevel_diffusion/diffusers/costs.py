"""What one evaluation of a diffusers model costs, counted without running it.

The model is called once under torch's fake tensors (shapes only, no arithmetic, no memory) with an example input of
batch one made from its configuration, and the FLOP counter reads off matrix products, convolutions and attention. Only
ratios between the levels matter, so text is taken as 77 tokens and images at the configured size.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import multilevel_sde as mls

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


def example_call(model: ModelMixin) -> dict[str, Any] | None:
    """Return keyword arguments of one call of the model, batch one, or None where its class is not known.

    Example:
        >>> from diffusers import UNet2DModel
        >>> example_call(UNet2DModel(sample_size=8, block_out_channels=(32, 32, 32, 32)))["sample"].shape
        torch.Size([1, 3, 8, 8])
    """
    build = _EXAMPLES.get(type(model))
    return None if build is None else build(model.config)


def count_costs(models: Sequence[ModelMixin]) -> mls.GivenCost:
    """Price every model in FLOPs of one call, or, with a warning, in parameters where its call is not known.

    Arguments:
        models: diffusers models.

    Returns:
        The costs with their unit.

    Example:
        >>> from diffusers import UNet2DModel
        >>> models = [UNet2DModel(sample_size=16, block_out_channels=(c, c, c, c)) for c in (32, 64)]
        >>> costs = count_costs(models)
        >>> costs.unit, costs.costs[1] > 3 * costs.costs[0]
        ('FLOPs', True)
    """
    flops = [_flops(model) for model in models]
    if all(count is not None for count in flops):
        return mls.GivenCost([float(count) for count in flops if count is not None], "FLOPs")
    unknown = type(models[flops.index(None)]).__name__
    warnings.warn(
        f"the FLOPs of {unknown} cannot be counted, so levels are priced by their numbers of parameters; give costs= "
        "where these do not reflect the time of a call",
        stacklevel=2,
    )
    return mls.GivenCost([float(model.num_parameters()) for model in models], "parameters")


def _flops(model: ModelMixin) -> int | None:
    parameter = next(model.parameters())
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), torch.device(parameter.device):
        call = example_call(model)
        if call is None:
            return None
        call = {name: _cast(value, parameter.dtype) for name, value in call.items()}
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # sees no fused attention
            model(**call, return_dict=False)
    return counter.get_total_flops()


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, dict):
        return {name: _cast(entry, dtype) for name, entry in value.items()}
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
