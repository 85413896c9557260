r"""Cheap levels in fewer bits: the same network with half-precision weights, or with 8-bit matrix products.

The FLOPs are those of the full network, so such a level has a price in seconds only (`multilevel_sde.SecondsCost`), on
the machine at hand. Its difference from the full network is so small that the correction is hardly ever worth an
evaluation: a ladder of two such levels mostly says "use the cheap one". They are of more use as the network inside
another cheap level, or as the top.

**Half precision** (`half_weights`) runs the whole network in bfloat16 or float16: relative rounding 2^-9 or 2^-12.

**Eight bits** (`int8_weights`) replace the matrix products: linear layers and 1x1 convolutions that are wide enough.
With weight rows w_i and input rows x_j rounded to integers by their own scales,

.. math:: y_{ji} = s_j r_i \sum_k \hat x_{jk} \hat w_{ik} + b_i, \qquad
          s_j = \max_k |x_{jk}| / 127, \quad r_i = \max_k |w_{ik}| / 127,

the sum being exact in 32-bit integers (`torch._int_mm`, which FLOP counters do not see). Narrow layers and all other
convolutions stay as they are: torch has no 8-bit convolution in eager mode, and below some width the rounding costs
more than the product saves. torch's own `quantize_dynamic` is announced for removal, and torchao's eager-mode layers
were slower than float32 on the CPU where this was measured (docs/one_model.md).

References:
    Dettmers et al. 2022, LLM.int8() (arXiv 2208.07339): row-wise scales on both sides.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multilevel_diffusion.cheap_levels.wrapped_networks import AnyDrift, network_of, twin, with_network

__all__ = ["Int8Linear", "half_weights", "int8_weights"]

_FEWEST_ROWS = 17  # torch._int_mm takes no fewer on a GPU
_MULTIPLE = 8  # and only such widths


def half_weights(drift: AnyDrift, dtype: torch.dtype = torch.bfloat16) -> AnyDrift:
    """Return the drift with a copy of its network in half precision; states keep their dtype outside.

    The network must compute in the dtype of its input and embed the time itself, as ours and those of diffusers do.

    Arguments:
        drift: A module called as net(x, t), or a denoiser around one.
        dtype: torch.bfloat16 or torch.float16.

    Raises:
        TypeError: There is no module in the drift.
        ValueError: `dtype` is not a half precision.

    Example:
        >>> from multilevel_diffusion.networks.store import load_ladder, shipped_ladder
        >>> net = load_ladder(shipped_ladder("digits")).networks[0]
        >>> half_weights(net)(torch.zeros(1, 1, 8, 8), torch.tensor(0.5)).dtype
        torch.float32
    """
    if dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f'"dtype" is {dtype}, expected torch.bfloat16 or torch.float16')
    return with_network(drift, _InDtype(copy.deepcopy(network_of(drift)).to(dtype), dtype))


def int8_weights(drift: AnyDrift, *, least: int = 64) -> AnyDrift:
    """Return the drift with 8-bit matrix products in the wide linear layers and 1x1 convolutions of its network.

    Layers that stay as they are share their weights with the network given.

    Arguments:
        drift: A module called as net(x, t), or a denoiser around one.
        least: Fewest inputs of a layer that is replaced; the widths must also be multiples of 8.

    Raises:
        TypeError: There is no module in the drift.
        ValueError: No layer is wide enough.

    Example:
        >>> from multilevel_diffusion.networks.store import load_ladder, shipped_ladder
        >>> net = load_ladder(shipped_ladder("digits")).networks[-1]
        >>> sum(isinstance(module, Int8Linear) for module in int8_weights(net).modules())
        17
    """
    net = twin(network_of(drift))
    replaced = 0
    for parent in list(net.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, (nn.Linear, nn.Conv2d)) and _fits(layer, least):
                setattr(parent, name, Int8Linear(layer))
                replaced += 1
    if not replaced:
        raise ValueError(
            f'"drift" has no linear layer or 1x1 convolution of {least} inputs or more, with widths that are multiples '
            f'of {_MULTIPLE}; lower "least" or use half_weights'
        )
    return with_network(drift, net)


def _fits(layer: nn.Linear | nn.Conv2d, least: int) -> bool:
    """Whether a layer is a matrix product that can be done in 8 bits."""
    if isinstance(layer, nn.Conv2d):
        plain = (layer.kernel_size, layer.stride, layer.groups) == ((1, 1), (1, 1), 1) and layer.padding == (0, 0)
        if not plain:
            return False
    outputs, inputs = layer.weight.shape[:2]
    return inputs >= least and inputs % _MULTIPLE == 0 and outputs % _MULTIPLE == 0


class Int8Linear(nn.Module):
    """A linear layer, or a 1x1 convolution, whose matrix product is done in 8-bit integers.

    Arguments:
        layer: The layer to replace: x (..., I) for `nn.Linear`, x (B, I, H, W) for `nn.Conv2d`.

    Example:
        >>> layer = nn.Linear(8, 8)
        >>> layer.load_state_dict({"weight": torch.eye(8), "bias": torch.zeros(8)})
        <All keys matched successfully>
        >>> Int8Linear(layer)(torch.arange(8.0)).detach()  # rounded to multiples of 7 / 127
        tensor([0.0000, 0.9921, 1.9843, 2.9764, 4.0236, 5.0157, 6.0079, 7.0000])
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d):
        super().__init__()
        weight = layer.weight.detach().flatten(1)
        scale = (weight.abs().amax(1) / 127).clamp_min(torch.finfo(weight.dtype).tiny)
        self.weight: Tensor
        self.scale: Tensor
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = layer.bias
        self._channels_first = isinstance(layer, nn.Conv2d)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output in x's dtype."""
        if self._channels_first:
            return self._product(x.movedim(1, -1)).movedim(-1, 1)
        return self._product(x)

    def _product(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        scale = (rows.abs().amax(1, keepdim=True) / 127).clamp_min(torch.finfo(rows.dtype).tiny)
        integers = (rows / scale).round_().to(torch.int8)
        if len(rows) < _FEWEST_ROWS:
            integers = F.pad(integers, (0, 0, 0, _FEWEST_ROWS - len(rows)))
        product = torch._int_mm(integers, self.weight.t())[: len(rows)]  # pyright: ignore[reportPrivateImportUsage]
        out = product.to(x.dtype).mul_(scale).mul_(self.scale.to(x.dtype))
        if self.bias is not None:
            out += self.bias
        return out.reshape(*x.shape[:-1], -1)


class _InDtype(nn.Module):
    """A network in another dtype inside the state's."""

    def __init__(self, net: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.net, self.dtype = net, dtype

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x.to(self.dtype), t).to(x.dtype)
