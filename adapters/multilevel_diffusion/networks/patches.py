r"""Networks of dense layers on patches: levels that are far apart in seconds, not in FLOPs only.

The image is cut into patches of p x p pixels, which become the channels of a grid of side S / p: nothing is lost, and
every layer after it is a dense convolution, a matrix product that is large enough to run at a processor's full speed.
With outer layers the inner ones work on a grid of half the side and twice the width; without, on the grid of patches.

The cheapest levels of a ladder take patches of 4 and have inner layers only.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multilevel_diffusion.networks.modulated import ModulatedNetwork, NetworkConfig, zeroed

__all__ = ["PatchConfig", "PatchNet", "emoji_ladder"]


@dataclass(frozen=True)
class PatchConfig(NetworkConfig):
    """The shape of a :class:`PatchNet`.

    Arguments:
        patch: Side of a patch, in pixels.
        width: Channels on the grid of patches; twice as many on the inner grid, where there are outer layers.
        inner: Layers on the inner grid.
        outer: Layers on the grid of patches before the inner ones, and again after them; 0 makes it the inner grid.
        image_size: Side of the square images.
        channels: Channels of the images.
        time_dim: Width of the time embedding.
        classes: Number of classes that the network can be told; 0 for a network without labels.

    Raises:
        ValueError: A number is not positive, or the image cannot be cut or the grid not halved.
        TypeError: An argument is not an integer.

    Example:
        >>> config = PatchConfig(patch=4, width=16, inner=1, outer=0, image_size=8)
        >>> PatchConfig.from_dict(config.to_dict()) == config
        True
    """

    patch: int
    width: int
    inner: int
    outer: int
    image_size: int
    channels: int = 3
    time_dim: int = 64
    classes: int = 0

    family: ClassVar[str | None] = "patches"
    _may_be_zero: ClassVar[tuple[str, ...]] = ("outer", "classes")

    def __post_init__(self):
        super().__post_init__()
        unit = self.patch * (2 if self.outer else 1)
        if self.image_size % unit:
            raise ValueError(
                f'"image_size" is {self.image_size}, expected a multiple of {unit} for patches of {self.patch}; '
                'lower "patch" or resize the images'
            )

    @property
    def shape(self) -> str:
        """The numbers that tell one size from another, as `train --levels` reads them."""
        return f"{self.patch}:{self.width}:{self.inner}:{self.outer}"

    def build(self) -> "PatchNet":
        """Return a new network of this configuration."""
        return PatchNet(self)


class Layer(nn.Module):
    """x + contract(silu(near(y))), where y is x, normalised at each position and modulated."""

    def __init__(self, width: int):
        super().__init__()
        self.near = nn.Conv2d(width, width, 3, padding=1)
        self.contract = zeroed(nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Map x (B, width, H, W), with modulation (B or 1, 2 width) = scale and shift, to a tensor of x's shape."""
        return x + self.contract(F.silu(self.near(_modulate(x, modulation))))


class PatchNet(ModulatedNetwork):
    r"""The denoising network :math:`\hat\epsilon(x, t)` of a :class:`PatchConfig`; see :class:`ModulatedNetwork`.

    Arguments:
        config: The network's shape.

    Raises:
        TypeError: `config` is not a PatchConfig.
        ValueError: When called: a label for a network without classes, or one that it does not have.

    Example:
        >>> net = PatchNet(PatchConfig(patch=2, width=8, inner=1, outer=1, image_size=8, channels=1))
        >>> net(torch.zeros(2, 1, 8, 8), torch.tensor(0.5)).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(self, config: PatchConfig):
        if not isinstance(config, PatchConfig):
            raise TypeError(f'"config" is a {type(config).__name__}, expected a PatchConfig; build one first')
        super().__init__(config)
        self.patch = config.patch
        pixels, width = config.channels * config.patch**2, config.width
        inner = 2 * width if config.outer else width
        edge = 3 if config.outer else 1  # kernels of the first and last layer; the cheapest levels do without overlap
        self.stem = nn.Conv2d(pixels, width, edge, padding=edge // 2)
        self.down = nn.ModuleList(Layer(width) for _ in range(config.outer))
        self.inner = nn.ModuleList(Layer(inner) for _ in range(config.inner))
        self.up = nn.ModuleList(Layer(width) for _ in range(config.outer))
        if config.outer:
            self.shrink = nn.Conv2d(width, inner, 2, stride=2)
            self.grow = nn.ConvTranspose2d(inner, width, 2, stride=2)
        self.head = zeroed(nn.Conv2d(width, pixels, edge, padding=edge // 2))
        self._listen([width] * config.outer + [inner] * config.inner + [width] * (config.outer + 1))

    def _layers(self, x: Tensor, modulations: Iterator[Tensor]) -> Tensor:
        x = F.pixel_unshuffle(x, self.patch).contiguous(memory_format=torch.channels_last)
        h = skip = self.stem(x)
        for layer in self.down:
            h = skip = layer(h, next(modulations))
        if len(self.down):
            h = self.shrink(h)
        for layer in self.inner:
            h = layer(h, next(modulations))
        if len(self.up):
            h = self.grow(h) + skip
        for layer in self.up:
            h = layer(h, next(modulations))
        return F.pixel_shuffle(self.head(F.silu(_modulate(h, next(modulations)))), self.patch)


def _modulate(h: Tensor, modulation: Tensor) -> Tensor:
    """Normalise h (B, D, H, W) over the channels of each position and apply the scale and shift in modulation."""
    scale, shift = modulation[:, None, None].chunk(2, dim=-1)
    normal = F.layer_norm(h.permute(0, 2, 3, 1), h.shape[1:2])
    return torch.addcmul(shift, normal, 1 + scale).permute(0, 3, 1, 2)


def emoji_ladder() -> list[PatchConfig]:
    """Return the four configurations of the shipped 32x32x3 ladder of emoji, cheapest first.

    Example:
        >>> [config.width for config in emoji_ladder()]
        [48, 96, 64, 128]
    """
    shapes = [(4, 48, 1, 0), (4, 96, 2, 0), (2, 64, 2, 1), (2, 128, 5, 1)]
    return [PatchConfig(*shape, image_size=32) for shape in shapes]
