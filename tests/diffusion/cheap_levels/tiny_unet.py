"""A small UNet whose every layer does something, images for it, and a time: what the tests of one_model share."""

from __future__ import annotations

import torch
from torch import Tensor

from multilevel_diffusion.networks.unet import UNet, UNetConfig


def unet(seed: int = 0, dtype: torch.dtype = torch.float64, dim: int = 4) -> UNet:
    """A small network with two halvings whose every layer does something."""
    net = UNet(UNetConfig(base_dim=dim, bottom_depth=2, mid_depth=1, levels=2, image_size=8, channels=1, time_dim=8))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return net.to(dtype).eval().requires_grad_(False)


def images(count: int = 3, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)


def at(t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)
