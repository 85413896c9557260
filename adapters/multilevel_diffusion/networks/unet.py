r"""The UNet of the ladders: a family of denoising networks of one shape, from thousands to billions of multiply-adds.

Each level halves the side and doubles the channels, so a layer costs about the same at every scale. A residual layer
is a depthwise convolution (per channel), then pointwise ones (across channels). Two depths set the cost: one at the
bottom, one at the shallower scales, on the way down and again on the way up. The paper fixes this much and no more;
kernel size, normalisation, expansion and time embedding are ours.

The network returns the noise it sees in :math:`x_t = \alpha_t x_0 + \sigma_t \epsilon`. What its layers compute is
:math:`F` in

.. math:: \hat\epsilon(x, t) = \sin(\tfrac{\pi}{2} t)\, x + \cos(\tfrac{\pi}{2} t)\, F(x, t) ,

so that even a tiny network is right at :math:`t = 1`, where :math:`x` is all noise, and its
:math:`\hat x_0 = (x - \sigma_t \hat\epsilon) / \alpha_t` stays of order one there. With
:math:`\alpha_t = \cos(\pi t / 2)` the target of :math:`F` is the velocity of Salimans and Ho.

References:
    Jacot, "Polynomial Speedup in Diffusion Models with the Multilevel Euler-Maruyama Method", 2026 (arXiv 2603.24594).
    Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", 2022 (arXiv 2202.00512).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["UNet", "UNetConfig", "dead_leaves_ladder", "digits_ladder", "paper_ladder"]

TIME_FREQUENCIES = 7  # angles (pi/2) t 2^j, j = 0..6: powers of two are exact in every dtype


@dataclass(frozen=True)
class UNetConfig:
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

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ("mid_depth", "levels", "classes") else 1
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f'"{field.name}" is {value!r}, expected an integer; give a whole number')
            if value < least:
                raise ValueError(f'"{field.name}" is {value}, expected at least {least}; give a larger number')
        if self.kernel % 2 == 0:
            raise ValueError(f'"kernel" is {self.kernel}, expected an odd number; use {self.kernel + 1}')
        if self.image_size % 2**self.levels:
            raise ValueError(
                f'"image_size" is {self.image_size}, expected a multiple of 2**levels = {2**self.levels}; '
                'lower "levels" or resize the images'
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one image."""
        return (self.channels, self.image_size, self.image_size)

    def to_dict(self) -> dict[str, int]:
        """Return the configuration as a dictionary that JSON can hold; without classes it does not speak of them."""
        return {name: value for name, value in asdict(self).items() if name != "classes" or value}

    @classmethod
    def from_dict(cls, values: Mapping[str, int]) -> "UNetConfig":
        """Read what :meth:`to_dict` wrote; raise ValueError where a key is unknown or missing."""
        known = {field.name: field.default is MISSING for field in fields(cls)}
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f'"values" has the unknown key "{unknown[0]}", expected some of {list(known)}; drop it')
        if missing := [name for name, required in known.items() if required and name not in values]:
            raise ValueError(f'"values" has no key "{missing[0]}", expected what UNetConfig.to_dict writes; add it')
        return cls(**values)


class ResidualLayer(nn.Module):
    """One residual layer: depthwise, norm, time modulation, pointwise up, SiLU, pointwise down, added to its input."""

    def __init__(self, dim: int, config: UNetConfig):
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, config.kernel, padding=config.kernel // 2, groups=dim, bias=False)
        self.expand = nn.Conv2d(dim, config.expansion * dim, 1)
        self.contract = nn.Conv2d(config.expansion * dim, dim, 1)
        nn.init.zeros_(self.contract.weight)
        nn.init.zeros_(_bias(self.contract))

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


class UNet(nn.Module):
    r"""The denoising network :math:`\hat\epsilon(x, t)` of a :class:`UNetConfig`.

    Call it as ``net(x, t)`` with x (B, C, H, W) and t a 0-d or (B,) float tensor in [0, 1], 0 = data, 1 = noise; it
    returns the noise :math:`\hat\epsilon` in x's shape and dtype. All layers' time modulations come from one matrix
    product, and the layers run channels-last, which is four times faster than the default on a CPU.

    With n classes call it as ``net(x, t, label=label)``, label int64 (B,) of 0 ... n - 1, or n for none (the *null
    class*, for which the network is trained too). Without a label all samples are of the null class. A class is a
    vector that is added to the time embedding.

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

    def __init__(self, config: UNetConfig):
        super().__init__()
        if not isinstance(config, UNetConfig):
            raise TypeError(f'"config" is a {type(config).__name__}, expected a UNetConfig; build one first')
        self.config = config
        dims = [config.base_dim * 2**level for level in range(config.levels + 1)]
        self.stem = nn.Conv2d(config.channels, dims[0], 3, padding=1)
        self.down = nn.ModuleList(Stack(dim, config.mid_depth, config) for dim in dims[:-1])
        self.shrink = nn.ModuleList(nn.Conv2d(dim, 2 * dim, 2, stride=2) for dim in dims[:-1])
        self.bottom = Stack(dims[-1], config.bottom_depth, config)
        self.grow = nn.ModuleList(nn.ConvTranspose2d(2 * dim, dim, 2, stride=2) for dim in dims[:-1])
        self.up = nn.ModuleList(Stack(dim, config.mid_depth, config) for dim in dims[:-1])
        self.head = nn.Conv2d(dims[0], config.channels, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(_bias(self.head))
        # In the order of the forward pass; the head is modulated like a layer.
        down = [dim for dim in dims[:-1] for _ in range(config.mid_depth)]
        widths = [*down, *[dims[-1]] * config.bottom_depth, *reversed(down), dims[0]]
        self._splits = [2 * width for width in widths]
        self.frequencies: Tensor
        self.register_buffer("frequencies", 2.0 ** torch.arange(TIME_FREQUENCIES), persistent=False)
        self.embed = nn.Linear(2 * TIME_FREQUENCIES, config.time_dim)
        self.modulate = nn.Linear(config.time_dim, sum(self._splits))
        if config.classes:
            self.classes = nn.Embedding(config.classes + 1, config.time_dim)
            nn.init.zeros_(self.classes.weight)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (torch's stub lacks this one)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        r"""Return :math:`\hat\epsilon(x, t)`, shaped like x (B, C, H, W); t is 0-d or (B,), in [0, 1]; label (B,)."""
        angle = (math.pi / 2) * torch.as_tensor(t, device=x.device).to(torch.promote_types(x.dtype, torch.float32))
        angle = angle.reshape(-1, 1)
        waves = angle * self.frequencies
        features = torch.cat([waves.sin(), waves.cos()], dim=1).to(x.dtype)
        told = self.embed(features)
        if self.config.classes or label is not None:
            told = told + self._class_vectors(x, label)
        modulations = iter(self.modulate(F.silu(told)).split(self._splits, dim=1))
        h = self.stem(x)
        skips = []
        for stack, shrink in zip(self.down, self.shrink, strict=True):
            skips.append(stack(h, modulations))
            h = shrink(skips[-1])
        h = self.bottom(h, modulations)
        for stack, grow in zip(reversed(self.up), reversed(self.grow), strict=True):
            h = stack(grow(h) + skips.pop(), modulations)
        out = self.head(F.silu(_modulate(h, next(modulations)))).to(x.dtype, memory_format=torch.contiguous_format)
        return _per_image(angle.sin(), x) * x + _per_image(angle.cos(), x) * out

    def _class_vectors(self, x: Tensor, label: Tensor | None) -> Tensor:
        count = self.config.classes
        if label is None:
            return self.classes.weight[-1:]
        if not count:
            raise ValueError(
                '"label" was given to a network without classes; train one with --classes, or leave it out'
            )
        if label.shape != x.shape[:1] or label.is_floating_point():
            raise ValueError(f'"label" must be integers of shape ({len(x)},), got {label.dtype} {tuple(label.shape)}')
        if label.device.type == "cpu" and bool(((label < 0) | (label > count)).any()):
            raise ValueError(
                f'"label" must lie between 0 and {count - 1} (or be {count} for none), got {int(label.min())} to '
                f"{int(label.max())}"
            )
        return self.classes(label.to(x.device))


def _per_image(values: Tensor, x: Tensor) -> Tensor:
    return values.to(x.dtype)[:, :, None, None]


def _modulate(h: Tensor, modulation: Tensor) -> Tensor:
    """Normalise each image of h (B, D, H, W) and apply the scale and shift in modulation (B or 1, 2 D)."""
    scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
    return torch.addcmul(shift, F.group_norm(h, 1), 1 + scale)


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias


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
