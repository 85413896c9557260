r"""The UNet of the ladders: a family of denoising networks of one shape, from thousands to billions of multiply-adds.

Each level halves the side and doubles the channels, so a layer costs about the same at every scale. A residual layer
is a depthwise convolution (per channel), then pointwise ones (across channels). Two depths set the cost: one at the
bottom, one at the shallower scales, on the way down and again on the way up. The paper fixes this much and no more;
kernel size, normalisation, expansion and time embedding are ours.

The network returns the noise it sees in :math:`x_t = \alpha_t x_0 + \sigma_t \epsilon`. How it does, and how it is told
the time, is what all our networks share (:mod:`multilevel_diffusion.networks.modulated`).

References:
    Jacot, "Polynomial Speedup in Diffusion Models with the Multilevel Euler-Maruyama Method", 2026 (arXiv 2603.24594).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multilevel_diffusion.networks.modulated import ModulatedNetwork, NetworkConfig, zeroed

__all__ = ["UNet", "UNetConfig", "dead_leaves_ladder", "digits_ladder", "paper_ladder"]


@dataclass(frozen=True)
class UNetConfig(NetworkConfig):
    r"""The shape of a :class:`UNet`.

    Arguments:
        base_dim: Channels c at the full side; after l halvings there are 2^l c.
        bottom_depth: Residual layers at the bottom, the smallest side.
        mid_depth: Residual layers at each shallower scale, on the way down and again on the way up.
        levels: How many times the side is halved; the bottom side is image_size / 2**levels.
        image_size: Side of the square images.
        channels: Channels of the images.
        expansion: Width of a residual layer's hidden pointwise convolution, in multiples of its channels.
        kernel: Odd side of the depthwise kernels.
        time_dim: Width of the time embedding.
        classes: Number of classes that the network can be told; 0 for a network without labels.

    Raises:
        ValueError: A number is not positive, the kernel is even, or the side cannot be halved that often.
        TypeError: An argument is not an integer.

    Example:
        >>> config = UNetConfig(base_dim=8, bottom_depth=1, mid_depth=1, levels=2, image_size=8, channels=1)
        >>> UNetConfig.from_dict(config.to_dict()) == config
        True
    """

    base_dim: int
    bottom_depth: int
    mid_depth: int
    levels: int
    image_size: int
    channels: int = 3
    expansion: int = 2
    kernel: int = 3
    time_dim: int = 64
    classes: int = 0

    _may_be_zero: ClassVar[tuple[str, ...]] = ("mid_depth", "levels", "classes")

    def __post_init__(self):
        super().__post_init__()
        if self.kernel % 2 == 0:
            raise ValueError(f'"kernel" is {self.kernel}, expected an odd number; use {self.kernel + 1}')
        if self.image_size % 2**self.levels:
            raise ValueError(
                f'"image_size" is {self.image_size}, expected a multiple of 2**levels = {2**self.levels}; '
                'lower "levels" or resize the images'
            )

    @property
    def shape(self) -> str:
        """The numbers that tell one size from another, as `train --levels` reads them."""
        return f"{self.base_dim}:{self.bottom_depth}:{self.mid_depth}"

    def build(self) -> "UNet":
        """Return a new network of this configuration."""
        return UNet(self)


class ResidualLayer(nn.Module):
    """One residual layer: depthwise, norm, time modulation, pointwise up, SiLU, pointwise down, added to its input."""

    def __init__(self, dim: int, config: UNetConfig):
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, config.kernel, padding=config.kernel // 2, groups=dim, bias=False)
        self.expand = nn.Conv2d(dim, config.expansion * dim, 1)
        self.contract = zeroed(nn.Conv2d(config.expansion * dim, dim, 1))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Map x (B, dim, H, W), with modulation (B or 1, 2 dim) = scale and shift, to a tensor of x's shape."""
        return x + self.contract(F.silu(self.expand(_modulate(self.depthwise(x), modulation))))


class Stack(nn.ModuleList):
    """Residual layers of one width, one after the other."""

    def __init__(self, dim: int, depth: int, config: UNetConfig):
        super().__init__(ResidualLayer(dim, config) for _ in range(depth))

    def forward(self, x: Tensor, modulations: Iterator[Tensor]) -> Tensor:
        """Map x (B, dim, H, W) to a tensor of its shape; each layer takes its modulation from the iterator."""
        for layer in self:
            x = layer(x, next(modulations))
        return x


class UNet(ModulatedNetwork):
    r"""The denoising network :math:`\hat\epsilon(x, t)` of a :class:`UNetConfig`; see :class:`.ModulatedNetwork`.

    Arguments:
        config: The network's shape.

    Raises:
        TypeError: `config` is not a UNetConfig.
        ValueError: When called: a label for a network without classes, or one that it does not have (seen on the CPU).

    Example:
        >>> net = UNet(UNetConfig(base_dim=4, bottom_depth=1, mid_depth=1, levels=1, image_size=8, channels=1))
        >>> net(torch.zeros(2, 1, 8, 8), torch.tensor(0.5)).shape
        torch.Size([2, 1, 8, 8])
    """

    config: UNetConfig

    def __init__(self, config: UNetConfig):
        if not isinstance(config, UNetConfig):
            raise TypeError(f'"config" is a {type(config).__name__}, expected a UNetConfig; build one first')
        super().__init__(config)
        dims = [config.base_dim * 2**level for level in range(config.levels + 1)]
        self.stem = nn.Conv2d(config.channels, dims[0], 3, padding=1)
        self.down = nn.ModuleList(Stack(dim, config.mid_depth, config) for dim in dims[:-1])
        self.shrink = nn.ModuleList(nn.Conv2d(dim, 2 * dim, 2, stride=2) for dim in dims[:-1])
        self.bottom = Stack(dims[-1], config.bottom_depth, config)
        self.grow = nn.ModuleList(nn.ConvTranspose2d(2 * dim, dim, 2, stride=2) for dim in dims[:-1])
        self.up = nn.ModuleList(Stack(dim, config.mid_depth, config) for dim in dims[:-1])
        self.head = zeroed(nn.Conv2d(dims[0], config.channels, 3, padding=1))
        # In the order of the forward pass; the head is modulated like a layer.
        down = [dim for dim in dims[:-1] for _ in range(config.mid_depth)]
        self._listen([*down, *[dims[-1]] * config.bottom_depth, *reversed(down), dims[0]])

    def _layers(self, x: Tensor, modulations: Iterator[Tensor]) -> Tensor:
        h = self.stem(x)
        skips = []
        for stack, shrink in zip(self.down, self.shrink, strict=True):
            skips.append(stack(h, modulations))
            h = shrink(skips[-1])
        h = self.bottom(h, modulations)
        for stack, grow in zip(reversed(self.up), reversed(self.grow), strict=True):
            h = stack(grow(h) + skips.pop(), modulations)
        return self.head(F.silu(_modulate(h, next(modulations))))


def _modulate(h: Tensor, modulation: Tensor) -> Tensor:
    """Normalise each image of h (B, D, H, W) and apply the scale and shift in modulation (B or 1, 2 D)."""
    scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
    return torch.addcmul(shift, F.group_norm(h, 1), 1 + scale)


def digits_ladder() -> list[UNetConfig]:
    """Return the five configurations of the shipped 8x8x1 ladder, 1.5e4 ... 1e7 multiply-adds, cheapest first.

    Example:
        >>> [config.base_dim for config in digits_ladder()]
        [4, 8, 16, 32, 64]
    """
    shapes = [(4, 1, 0, 32), (8, 1, 1, 32), (16, 2, 1, 32), (32, 3, 2, 64), (64, 4, 2, 64)]
    return [
        UNetConfig(dim, bottom, mid, levels=1, image_size=8, channels=1, time_dim=time_dim)
        for dim, bottom, mid, time_dim in shapes
    ]


def dead_leaves_ladder() -> list[UNetConfig]:
    """Return the four configurations of the shipped 32x32x3 ladder, 4e5 ... 5e7 multiply-adds, cheapest first.

    Example:
        >>> [config.base_dim for config in dead_leaves_ladder()]
        [4, 8, 16, 32]
    """
    shapes = [(4, 1, 0, 32), (8, 1, 1, 32), (16, 1, 1, 32), (32, 2, 1, 64)]
    return [
        UNetConfig(dim, bottom, mid, levels=3, image_size=32, time_dim=time_dim)
        for dim, bottom, mid, time_dim in shapes
    ]


def paper_ladder() -> list[UNetConfig]:
    """Return five configurations for 64x64x3 images with the paper's four levels, cheapest first.

    The paper gives neither its widths nor its depths; these span a factor of about 500 in FLOPs, about equally spaced.

    Example:
        >>> [config.image_shape for config in paper_ladder()][0]
        (3, 64, 64)
    """
    shapes = [(8, 1, 1), (16, 2, 1), (32, 3, 2), (64, 4, 2), (128, 4, 3)]
    return [UNetConfig(dim, bottom, mid, levels=4, image_size=64) for dim, bottom, mid in shapes]
