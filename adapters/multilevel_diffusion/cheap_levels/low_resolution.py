r"""A cheap level at a lower resolution: the same network on the pooled state, at the noise level that pooling leaves.

Average pooling P over blocks of f x f pixels keeps the data and averages the noise. For
:math:`x_t = \alpha x_0 + \sigma \epsilon`,

.. math:: P x_t = \alpha\, P x_0 + \frac{\sigma}{f}\, \epsilon', \qquad \epsilon' \sim N(0, I),

whose log signal-to-noise ratio is that of x_t plus log f. So the network must be asked at the time t' with
lambda(t') = lambda(t) + log f, on the state scaled to that time; at the time t it would see an image with too little
noise, and wipe out what is there. It answers with z, an estimate of P x_0.

What is left is the detail, the part of x_0 that every block averages to zero. Its noise is independent of that of
P x_t. With U the repetition of pixels, B an interpolation and Q = I - U P the projection on details,

.. math:: \hat x_0 = U z + d + c\, (Q x_t - \alpha d), \qquad d = Q B z, \qquad
          c = \frac{\alpha s}{\alpha^2 s + \sigma^2},

which is the linear (Wiener) estimate of a detail with mean d and variance s per degree of freedom; s = 0 leaves what
interpolation gives. Block means are those of z whatever B.

A convolutional network costs 1 / f^2 of itself at that size, attention less; whether it is any good there depends on
what it has seen. Images whose statistics do not depend on scale are the favourable case.

References:
    Wiener, "Extrapolation, Interpolation, and Smoothing of Stationary Time Series", 1949: the gain c.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from multilevel_diffusion.process.schedule_base import NoiseSchedule
from multilevel_sde.cost import Drift

__all__ = ["LowResolution", "bilinear", "detail_variance", "repeat"]

Upsample = Callable[[Tensor, int], Tensor]


def repeat(z: Tensor, factor: int) -> Tensor:
    """Return z (B, C, H, W) with every pixel repeated in a block: (B, C, factor H, factor W).

    Example:
        >>> repeat(torch.tensor([[[[1.0, 2.0]]]]), 2)[0, 0]
        tensor([[1., 1., 2., 2.],
                [1., 1., 2., 2.]])
    """
    return F.interpolate(z, scale_factor=factor, mode="nearest")


def bilinear(z: Tensor, factor: int) -> Tensor:
    """Return z (B, C, H, W) interpolated bilinearly between pixel centres: (B, C, factor H, factor W).

    Example:
        >>> bilinear(torch.tensor([[[[0.0, 4.0]]]]), 2)[0, 0]
        tensor([[0., 1., 3., 4.],
                [0., 1., 3., 4.]])
    """
    return F.interpolate(z, scale_factor=factor, mode="bilinear", align_corners=False)


def detail_variance(images: Tensor, factor: int = 2, upsample: Upsample = bilinear) -> float:
    """Return the variance s of the detail that interpolating the pooled images misses, per degree of freedom.

    A few images will do, real or generated: s = mean (Q x - Q B P x)^2 / (1 - 1 / f^2).

    Arguments:
        images: (B, C, H, W), H and W multiples of the factor.
        factor: Side of the blocks.
        upsample: B, as for `LowResolution`.

    Raises:
        ValueError: If the sides are no multiples of the factor.

    Example:
        >>> round(detail_variance(torch.tensor([[[[1.0, -1.0], [-1.0, 1.0]]]])), 4)
        1.3333
    """
    _check_side(images, factor)
    missed = _detail(images - upsample(F.avg_pool2d(images, factor), factor), factor)
    return float(missed.double().square().mean()) / (1 - factor**-2)


@dataclass(frozen=True, eq=False)
class LowResolution:
    """A denoiser evaluated on the state pooled by a factor, at the right noise level, and interpolated back.

    Arguments:
        denoise: Callable (x_t, t) -> x_0 that takes images (B, C, H / factor, W / factor) too.
        schedule: The noise schedule of x_t.
        factor: Side of the blocks that are averaged, at least 2.
        detail_variance: s, the variance of what interpolation misses (see `detail_variance`); 0 gives the state's own
            detail no weight.
        upsample: B, callable (z, factor) -> image.

    Raises:
        TypeError, ValueError: If an argument is not what is described here; at a call, if the sides of the state are no
            multiples of the factor.

    Example:
        >>> from multilevel_diffusion.process.schedules import CosineSchedule
        >>> level = LowResolution(lambda x, t: x, CosineSchedule())
        >>> level(torch.ones(1, 1, 4, 4), torch.tensor(0.5)).shape
        torch.Size([1, 1, 4, 4])
    """

    denoise: Drift = field(repr=False)
    schedule: NoiseSchedule
    factor: int = 2
    detail_variance: float = 0.0
    upsample: Upsample = bilinear

    def __post_init__(self) -> None:
        if not callable(self.denoise):
            raise TypeError(f'"denoise" is a {type(self.denoise).__name__}, expected a callable (x, t) -> x_0.')
        if not isinstance(self.schedule, NoiseSchedule):
            raise TypeError(f'"schedule" is a {type(self.schedule).__name__}, expected a NoiseSchedule.')
        if not (isinstance(self.factor, int) and self.factor >= 2):
            raise ValueError(f'"factor" is {self.factor!r}, expected an integer of at least 2: the side of a block.')
        if not (math.isfinite(self.detail_variance) and self.detail_variance >= 0):
            raise ValueError(f'"detail_variance" is {self.detail_variance!r}, expected a finite number of at least 0.')

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the estimate of x_0, shaped and typed like x.

        Arguments:
            x: State x_t, (B, C, H, W).
            t: Its time, 0-d, or (B,) for one per sample.
        """
        _check_side(x, self.factor)
        on_host = t.ndim == 0 and t.device.type == "cpu"
        alpha, sigma, scale, cleaner = self._coefficients(float(t) if on_host else t, math if on_host else torch)
        pooled = (_wide(scale, x) * F.avg_pool2d(x, self.factor)).to(x.dtype)
        z = self.denoise(pooled, torch.as_tensor(cleaner, dtype=t.dtype, device=t.device))
        smooth = self.upsample(z, self.factor)
        estimate = smooth + repeat(z - F.avg_pool2d(smooth, self.factor), self.factor)
        if self.detail_variance == 0:
            return estimate
        gain = alpha * self.detail_variance / (alpha**2 * self.detail_variance + sigma**2)
        return estimate + (_wide(gain, x) * _detail(x - _wide(alpha, x) * smooth, self.factor)).to(x.dtype)

    def _coefficients(self, t: Any, ops: Any) -> tuple[Any, Any, Any, Any]:
        """Return alpha, sigma, what the pooled state is multiplied with, and t' with lambda(t') = lambda(t) + log f."""
        schedule = self.schedule
        cleaner = schedule.time(schedule.log_snr(t) + math.log(self.factor))
        # Not below the times that the network is meant for, unless t is.
        cleaner = max(cleaner, min(t, schedule.t_min)) if ops is math else cleaner.maximum(t.clamp(max=schedule.t_min))
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        # alpha' / alpha where the ratios agree; finite where alpha = 0.
        scale = ops.hypot(schedule.alpha(cleaner), schedule.sigma(cleaner)) / ops.hypot(alpha, sigma / self.factor)
        return alpha, sigma, scale, cleaner


def _wide(coefficient: Any, x: Tensor) -> Any:
    """Return a number, or numbers (B,), shaped to multiply x (B, C, H, W)."""
    if isinstance(coefficient, Tensor) and coefficient.ndim == 1:
        return coefficient.reshape(-1, *[1] * (x.ndim - 1))
    return coefficient


def _detail(x: Tensor, factor: int) -> Tensor:
    """Return Q x = x - U P x."""
    return x - repeat(F.avg_pool2d(x, factor), factor)


def _check_side(x: Tensor, factor: int) -> None:
    if x.ndim != 4 or x.shape[-1] % factor or x.shape[-2] % factor:
        raise ValueError(
            f'"x" has shape {tuple(x.shape)}, expected images (B, C, H, W) with H and W multiples of the factor '
            f"{factor}; choose a factor that divides them"
        )
