r"""Denoisers: one signature, (x_t, t) -> estimate of x_0, for every convention in which networks are trained.

With x_t = alpha x_0 + sigma eps, a network that predicts the noise, v, the data or a velocity predicts an affine
function of x_0 at fixed (x_t, t). Each wrapper here inverts its convention's relation; all of them wrapping the same
exact model return the same x_0. As the coefficients are those of the schedule, the same for all levels, the telescoping
sum over levels may be formed on x_0 whatever the networks predict, and levels of different conventions can share a
ladder.

**Clipping belongs to a level.** `clip=(low, high)` clamps what this level predicts; the multilevel sum of levels is
never clamped, since its weights 1 / p rightly make it leave the box and cutting it there makes a bias.

A network is any callable `net(x, t)`. It gets t as a tensor (B,) in its own convention: `time=` maps our t to it, for
instance `TableIndex(1000)` for networks trained on the indices 0 ... 999. What is told about each sample (labels,
embedded prompts) is handed on by name, `net(x, t, **conditions)`, as `multilevel_sde.solve(conditions=...)` gives it to
drifts. What all samples share may be bound beforehand, as in `lambda x, t: unet(x, t, prompt.expand(len(x), -1))`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from multilevel_diffusion.process.schedule_base import NoiseSchedule
from multilevel_diffusion.process.schedules import RectifiedFlowSchedule

__all__ = ["DataDenoiser", "EDMDenoiser", "EpsilonDenoiser", "FlowDenoiser", "TableIndex", "VDenoiser"]

Net = Callable[..., Tensor]  # net(x, t, **conditions)


@dataclass(frozen=True)
class TableIndex:
    """Map t in [0, 1] to the index t steps - 1 of a table of betas: the time of most discrete networks.

    Arguments:
        steps: length of the table the network was trained with.
        rounded: return integers (nearest index, int64), for networks that look their times up.

    Raises:
        ValueError: if `steps` is not a positive integer.

    Example:
        >>> TableIndex(1000)(torch.tensor([1.0, 0.001], dtype=torch.float64))
        tensor([999.,   0.], dtype=torch.float64)
    """

    steps: int = 1000
    rounded: bool = False

    def __post_init__(self) -> None:
        if not (isinstance(self.steps, int) and self.steps >= 1):
            raise ValueError(f'"steps" is {self.steps!r}, expected a positive integer: the length of the table.')

    def __call__(self, t: Tensor) -> Tensor:
        """Return the index of each time, shaped like t, not below 0."""
        index = (t * self.steps - 1).clamp(min=0)
        return index.round().long() if self.rounded else index


def _identity(t: Tensor) -> Tensor:
    return t


@dataclass(frozen=True, eq=False)
class _Denoiser(ABC):
    """What the wrappers share: the network, its schedule, the clip of this level, the network's own time."""

    net: Net = field(repr=False)
    schedule: NoiseSchedule
    clip: tuple[float, float] | None = None
    time: Callable[[Tensor], Tensor] = _identity

    def __post_init__(self) -> None:
        if not callable(self.net):
            raise TypeError(f'"net" is a {type(self.net).__name__}, expected a callable net(x, t).')
        if not isinstance(self.schedule, NoiseSchedule):
            raise TypeError(f'"schedule" is a {type(self.schedule).__name__}, expected a NoiseSchedule.')
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise ValueError(f'"clip" is {self.clip}, expected (low, high) with low < high, or None.')

    @abstractmethod
    def _data(self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, **conditions: Tensor) -> Tensor:
        """Return the estimate of x_0 before clipping."""

    def __call__(self, x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        """Return the estimate of x_0, shaped and typed like x.

        Arguments:
            x: state x_t, (B, ...).
            t: its time, 0-d, or (B,) for one per sample.
            conditions: what the network is told about each sample, (B, ...).
        """
        alpha, sigma = _coefficients(self.schedule, t, x)
        x0 = self._data(x, t, alpha, sigma, **conditions)
        if self.clip is not None:
            x0 = x0.clamp(*self.clip)
        return x0.to(x.dtype)

    def _evaluate(self, x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        """Evaluate the network on x with its own time (B,): integers as they are, else float32 or x's own float64."""
        t = self.time(t.expand(x.shape[0]))
        if t.is_floating_point():
            t = t.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        return self.net(x, t, **conditions)


def _coefficients(schedule: NoiseSchedule, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha and sigma shaped to multiply x: 0-d, which leaves x's dtype as it is, or (B, 1, ...)."""
    if t.ndim == 0 and t.device.type == "cpu":  # a dozen tiny tensor operations would cost more than a small network
        alpha, sigma = schedule.alpha(float(t)), schedule.sigma(float(t))
        return torch.tensor(alpha, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if t.ndim == 0:
        return alpha, sigma
    shape, dtype = (-1,) + (1,) * (x.ndim - 1), torch.promote_types(x.dtype, torch.float32)
    return alpha.to(dtype).reshape(shape), sigma.to(dtype).reshape(shape)


@dataclass(frozen=True, eq=False)
class EpsilonDenoiser(_Denoiser):
    """x_0 = (x_t - sigma eps) / alpha from a network that predicts the noise eps(x_t, t).

    Arguments:
        net: callable (x, t) -> eps, shaped like x.
        schedule: the schedule of x_t, with alpha > 0 at every time used.
        clip: (low, high) to which this level's x_0 is clamped, or None.
        time: maps our t, (B,) float64, to the network's own time.

    Raises:
        TypeError, ValueError: if an argument is not what is described here.

    Reference:
        Ho, Jain, Abbeel 2020 (arXiv 2006.11239), equation 15.

    Example:
        >>> from multilevel_diffusion.process.schedules import CosineSchedule
        >>> denoise = EpsilonDenoiser(lambda x, t: torch.zeros_like(x), CosineSchedule(), clip=(-1, 1))
        >>> denoise(torch.tensor([[0.1, 2.0]]), torch.tensor(0.5))
        tensor([[0.1423, 1.0000]])
    """

    def _data(self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, **conditions: Tensor) -> Tensor:
        return (x - sigma * self._evaluate(x, t, **conditions)) / alpha


@dataclass(frozen=True, eq=False)
class VDenoiser(_Denoiser):
    """x_0 = (alpha x_t - sigma v) / (alpha^2 + sigma^2) from a network that predicts v = alpha eps - sigma x_0.

    Arguments:
        net: callable (x, t) -> v, shaped like x.
        schedule: the schedule of x_t.
        clip: (low, high) to which this level's x_0 is clamped, or None.
        time: maps our t, (B,) float64, to the network's own time.

    Raises:
        TypeError, ValueError: if an argument is not what is described here.

    Reference:
        Salimans, Ho 2022, Progressive Distillation (arXiv 2202.00512), appendix D.

    Example:
        >>> from multilevel_diffusion.process.schedules import RectifiedFlowSchedule
        >>> denoise = VDenoiser(lambda x, t: torch.zeros_like(x), RectifiedFlowSchedule())
        >>> denoise(torch.ones(1, 1), torch.tensor(0.5))
        tensor([[1.]])
    """

    def _data(self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, **conditions: Tensor) -> Tensor:
        return (alpha * x - sigma * self._evaluate(x, t, **conditions)) / (alpha**2 + sigma**2)


@dataclass(frozen=True, eq=False)
class DataDenoiser(_Denoiser):
    """x_0 as a network predicts it, in our signature.

    Arguments:
        net: callable (x, t) -> x_0, shaped like x.
        schedule: the schedule of x_t.
        clip: (low, high) to which this level's x_0 is clamped, or None.
        time: maps our t, (B,) float64, to the network's own time.

    Raises:
        TypeError, ValueError: if an argument is not what is described here.

    Example:
        >>> from multilevel_diffusion.process.schedules import CosineSchedule
        >>> denoise = DataDenoiser(lambda x, t: 3 * x, CosineSchedule(), clip=(-1, 1))
        >>> denoise(torch.tensor([[0.1, 0.5]]), torch.tensor(0.5))
        tensor([[0.3000, 1.0000]])
    """

    def _data(self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, **conditions: Tensor) -> Tensor:
        return self._evaluate(x, t, **conditions)


@dataclass(frozen=True, eq=False)
class EDMDenoiser(_Denoiser):
    """x_0 = D(x_t / alpha, sigma / alpha) from a network in the convention of EDM and k-diffusion, at any schedule.

    A noise level outside [sigma_min, sigma_max] is moved to the nearest one inside and the state is scaled with it, by
    sqrt(1 + sigma'^2) / sqrt(alpha^2 + sigma^2); so a finite `sigma_max` makes alpha = 0 (pure noise) legal.

    Arguments:
        net: callable (x, sigma) -> x_0, shaped like x.
        schedule: the schedule of x_t, which need not be an `EDMSchedule`.
        clip: (low, high) to which this level's x_0 is clamped, or None.
        time: maps sigma / alpha, (B,) float64, to the network's own time.
        sigma_min: smallest noise level the network was trained for.
        sigma_max: largest noise level the network was trained for.

    Raises:
        TypeError, ValueError: if an argument is not what is described here.

    Reference:
        Karras et al. 2022 (arXiv 2206.00364), equations 3 and 7.

    Example:
        >>> from multilevel_diffusion.process.schedules import RectifiedFlowSchedule
        >>> denoise = EDMDenoiser(lambda x, sigma: x / (1 + sigma**2), RectifiedFlowSchedule())
        >>> denoise(torch.ones(1), torch.tensor(0.5))
        tensor([1.])
    """

    sigma_min: float = 0.0
    sigma_max: float = math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.sigma_min < self.sigma_max:
            raise ValueError(f'"sigma_min" is {self.sigma_min}, expected at least 0 and below {self.sigma_max}.')

    def _data(self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, **conditions: Tensor) -> Tensor:
        level = (sigma / alpha).clamp(self.sigma_min, self.sigma_max)
        scale = torch.sqrt((1 + level**2) / (alpha**2 + sigma**2))
        return self._evaluate((scale * x).to(x.dtype), level.reshape(t.shape), **conditions)


@dataclass(frozen=True, eq=False)
class FlowDenoiser(_Denoiser):
    """x_0 = x' - t' v(x', t') from a velocity network of rectified flow, at any schedule.

    The network knows x' = (1 - t') x_0 + t' eps and predicts v = eps - x_0. At another schedule the same
    signal-to-noise ratio is met at t' = sigma / (alpha + sigma), with x' = x_t / (alpha + sigma).

    Arguments:
        net: callable (x, t) -> v = eps - x_0, shaped like x, with t = 0 at the data.
        schedule: the schedule of x_t; the network's own by default.
        clip: (low, high) to which this level's x_0 is clamped, or None.
        time: maps t', (B,) float64, to the network's own time, such as 1000 t'.

    Raises:
        TypeError, ValueError: if an argument is not what is described here.

    Reference:
        Liu et al. 2022, Flow Straight and Fast (arXiv 2209.03003); Lipman et al. 2022 (arXiv 2210.02747).

    Example:
        >>> denoise = FlowDenoiser(lambda x, t: torch.ones_like(x))
        >>> denoise(torch.ones(1), torch.tensor(0.25))
        tensor([0.7500])
    """

    schedule: NoiseSchedule = field(default_factory=RectifiedFlowSchedule)

    def _data(self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, **conditions: Tensor) -> Tensor:
        total = alpha + sigma
        x, level = (x / total).to(x.dtype), sigma / total
        return x - level * self._evaluate(x, level.reshape(t.shape), **conditions)
