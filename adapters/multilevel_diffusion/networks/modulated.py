r"""What our networks share: what they are told of time and class, and the noise that they return.

What the layers of a network compute is :math:`F` in

.. math:: \hat\epsilon(x, t) = \sin(\tfrac{\pi}{2} t)\, x + \cos(\tfrac{\pi}{2} t)\, F(x, t) ,

so that even a tiny network is right at :math:`t = 1`, where :math:`x` is all noise, and its
:math:`\hat x_0 = (x - \sigma_t \hat\epsilon) / \alpha_t` stays of order one there. With
:math:`\alpha_t = \cos(\pi t / 2)` the target of :math:`F` is the velocity of Salimans and Ho.

References:
    Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", 2022 (arXiv 2202.00512).
"""

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ModulatedNetwork", "NetworkConfig"]

TIME_FREQUENCIES = 7  # angles (pi/2) t 2^j, j = 0..6: powers of two are exact in every dtype


class NetworkConfig:
    """What every family's configuration has; each is a frozen dataclass of integers with these among its fields."""

    image_size: int
    channels: int
    time_dim: int
    classes: int

    family: ClassVar[str | None] = None  # its name in files; the UNets of before have none
    _may_be_zero: ClassVar[tuple[str, ...]] = ("classes",)

    def __post_init__(self):
        for field in fields(self):  # pyright: ignore[reportArgumentType] (every family is a dataclass)
            value = getattr(self, field.name)
            least = 0 if field.name in self._may_be_zero else 1
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f'"{field.name}" is {value!r}, expected an integer; give a whole number')
            if value < least:
                raise ValueError(f'"{field.name}" is {value}, expected at least {least}; give a larger number')

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one image."""
        return (self.channels, self.image_size, self.image_size)

    @property
    @abstractmethod
    def shape(self) -> str:
        """The numbers that tell one size from another, as a person reads them."""

    @abstractmethod
    def build(self) -> "ModulatedNetwork":
        """Return a new network of this configuration."""

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as a dictionary that JSON can hold; without classes it does not speak of them."""
        named = {} if self.family is None else {"family": self.family}
        return named | {name: value for name, value in asdict(self).items() if name != "classes" or value}  # type: ignore

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_dict` wrote; raise ValueError where a key is unknown or missing."""
        values = {name: value for name, value in values.items() if name != "family"}
        known = {field.name: field.default is MISSING for field in fields(cls)}  # pyright: ignore[reportArgumentType]
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f'"values" has the unknown key "{unknown[0]}", expected some of {list(known)}; drop it')
        if missing := [name for name, required in known.items() if required and name not in values]:
            raise ValueError(f'"values" has no key "{missing[0]}", expected what {cls.__name__}.to_dict writes; add it')
        return cls(**values)


class ModulatedNetwork(nn.Module):
    r"""A network :math:`\hat\epsilon(x, t)` whose layers are modulated by the time, and by the class if it has some.

    Call it as ``net(x, t)`` with x (B, C, H, W) and t a 0-d or (B,) float tensor in [0, 1], 0 = data, 1 = noise; it
    returns the noise :math:`\hat\epsilon` in x's shape and dtype. All layers' time modulations come from one matrix
    product, and the layers run channels-last, which is several times faster than the default on a CPU.

    With n classes call it as ``net(x, t, label=label)``, label int64 (B,) of 0 ... n - 1, or n for none (the *null
    class*, for which the network is trained too). Without a label all samples are of the null class. A class is a
    vector that is added to the time embedding.

    Raises:
        ValueError: When called: a label for a network without classes, or one that it does not have (seen on the CPU).
    """

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.config = config

    def _listen(self, widths: Sequence[int]) -> None:
        """Make what modulates layers of these widths, in the order of the forward pass."""
        self._splits = [2 * width for width in widths]
        self.frequencies: Tensor
        self.register_buffer("frequencies", 2.0 ** torch.arange(TIME_FREQUENCIES), persistent=False)
        self.embed = nn.Linear(2 * TIME_FREQUENCIES, self.config.time_dim)
        self.modulate = nn.Linear(self.config.time_dim, sum(self._splits))
        if self.config.classes:
            self.classes = nn.Embedding(self.config.classes + 1, self.config.time_dim)
            nn.init.zeros_(self.classes.weight)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (torch's stub lacks this one)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        r"""Return :math:`\hat\epsilon(x, t)`, shaped like x (B, C, H, W); t is 0-d or (B,), in [0, 1]; label (B,)."""
        angle = (math.pi / 2) * torch.as_tensor(t, device=x.device).to(torch.promote_types(x.dtype, torch.float32))
        angle = angle.reshape(-1, 1)
        waves = angle * self.frequencies
        told = self.embed(torch.cat([waves.sin(), waves.cos()], dim=1).to(x.dtype))
        if self.config.classes or label is not None:
            told = told + self._class_vectors(x, label)
        modulations = iter(self.modulate(F.silu(told)).split(self._splits, dim=1))
        out = self._layers(x, modulations).to(x.dtype, memory_format=torch.contiguous_format)
        return _per_image(angle.sin(), x) * x + _per_image(angle.cos(), x) * out

    @abstractmethod
    def _layers(self, x: Tensor, modulations: Iterator[Tensor]) -> Tensor:
        """Return F(x, t), shaped like x; every layer takes its modulation from the iterator."""

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


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """Return a convolution with weights and bias set to zero: it adds nothing before training."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def _per_image(values: Tensor, x: Tensor) -> Tensor:
    return values.to(x.dtype)[:, :, None, None]
