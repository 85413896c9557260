r"""Noise schedules: how much data and how much noise a diffusion holds at time t.

    x_t = alpha(t) x_0 + sigma(t) eps,   eps ~ N(0, I),   lambda(t) = log(alpha(t) / sigma(t)).

Everything a sampler needs is in `alpha`, `sigma` and half the log signal-to-noise ratio `lambda`, which falls strictly
with t. Time 0 is the data (sigma = 0, lambda = +inf), `t_max` is the noise from which sampling starts, and `t_min` is
the smallest time at which a network is meant to be evaluated (the last step goes from about `t_min` to 0).

Two families preserve the variance (alpha^2 + sigma^2 = 1): `CosineSchedule` and the tables of betas (`LinearSchedule`,
`ScaledLinearSchedule`, `TableSchedule`), with t in [0, 1]. `EDMSchedule` has alpha = 1 and t = sigma;
`RectifiedFlowSchedule` has alpha = 1 - t and sigma = t.

Each method takes a Python float and returns one, or a tensor and returns one of the same shape, dtype and device; the
arithmetic is float64 in both cases.

References:
    Nichol, Dhariwal 2021, Improved DDPM (arXiv 2102.09672): the cosine schedule.
    Karras et al. 2022, Elucidating the Design Space (arXiv 2206.00364): sigma as time.
    Lipman et al. 2022, Flow Matching (arXiv 2210.02747); Liu et al. 2022, Rectified Flow (arXiv 2209.03003).
"""

import math
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch

from multilevel_diffusion.process.schedule_base import (
    SLACK,
    NoiseSchedule,
    VariancePreserving,
    check_positive,
    check_t_min,
    log_or_inf,
)
from multilevel_diffusion.process.tables import LinearSchedule, ScaledLinearSchedule, TableSchedule

__all__ = [
    "CosineSchedule",
    "EDMSchedule",
    "LinearSchedule",
    "NoiseSchedule",
    "RectifiedFlowSchedule",
    "ScaledLinearSchedule",
    "TableSchedule",
    "schedule_from_dict",
]


@dataclass(frozen=True)
class CosineSchedule(VariancePreserving):
    r"""alpha^2(t) = cos^2(a(t)) / cos^2(a(0)),   a(t) = (t + offset) / (1 + offset) pi / 2,   t in [0, 1].

    With beta_s = 1 - alpha^2(s/1000) / alpha^2((s-1)/1000) clipped at 0.999, as everybody trains with 1000 steps, the
    last alpha^2 is alpha^2(0.999) / 1000 and not 0: alpha^2 has this floor, reached at about t = 0.99997, so lambda(1)
    is finite (about -9.9) and `time` gives 1 there.

    sigma^2 = sin(a(t) - a(0)) sin(a(t) + a(0)) / cos^2(a(0)) is used instead of 1 - alpha^2: it has no cancellation.

    Arguments:
        offset: the paper's 0.008, which keeps sigma from falling too fast near the data.
        t_min: smallest time at which a network is meant to be evaluated.

    Raises:
        ValueError: if an argument is not positive, or `t_min` is not below 1.

    Reference:
        Nichol, Dhariwal 2021, Improved DDPM, equation 17.

    Example:
        >>> schedule = CosineSchedule()
        >>> round(schedule.alpha(0.5) ** 2, 4), round(schedule.sigma(0.5) ** 2, 4)
        (0.4938, 0.5062)
    """

    offset: float = 0.008
    t_min: float = 1e-3

    def __post_init__(self) -> None:
        check_positive(self, "offset")
        check_t_min(self)

    @cached_property
    def _start(self) -> float:
        """a(0)."""
        return self.offset / (1 + self.offset) * math.pi / 2

    @cached_property
    def _end(self) -> float:
        """The angle at which alpha^2 reaches its floor alpha^2(0.999) / 1000."""
        return math.acos(math.cos((0.999 + self.offset) / (1 + self.offset) * math.pi / 2) * math.sqrt(1e-3))

    def _log_snr(self, t: Any, ops: Any) -> Any:
        # The difference a(t) - a(0) comes first: it is exact at small t, where sigma is governed by it.
        increase = t / (1 + self.offset) * (math.pi / 2)
        limit = self._end - self._start
        increase = min(increase, limit) if ops is math else increase.clamp(max=limit)
        angle = increase + self._start
        return ops.log(ops.cos(angle)) - 0.5 * log_or_inf(ops.sin(increase) * ops.sin(angle + self._start), ops)

    def _time(self, log_snr: Any, ops: Any) -> Any:
        # cos^2 a = cos^2 a(0) / (1 + e^{-2 lambda}), hence tan a = sqrt(sin^2 a(0) + e^{-2 lambda}) / cos a(0).
        floor = self._log_snr(1.0, math)
        clamped = max(log_snr, floor) if ops is math else log_snr.clamp(min=floor)
        sine = ops.sqrt(math.sin(self._start) ** 2 + ops.exp(-2.0 * clamped))
        t = (ops.atan(sine / math.cos(self._start)) - self._start) * (1 + self.offset) / (math.pi / 2)
        if ops is math:
            return 1.0 if log_snr <= floor + SLACK else min(max(t, 0.0), 1.0)
        return torch.where(log_snr <= floor + SLACK, torch.ones_like(t), t.clamp(0.0, 1.0))


@dataclass(frozen=True)
class EDMSchedule(NoiseSchedule):
    """alpha = 1 and sigma(t) = t: x_t = x_0 + t eps, with t in [0, sigma_max].

    Arguments:
        sigma_min: smallest noise level at which a network is meant to be evaluated (`t_min`).
        sigma_max: the noise from which sampling starts (`t_max`).

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max.

    Reference:
        Karras et al. 2022, Elucidating the Design Space of Diffusion-Based Generative Models, table 1.

    Example:
        >>> schedule = EDMSchedule()
        >>> schedule.alpha(3.0), schedule.sigma(3.0), schedule.log_snr(1.0) == 0
        (1.0, 3.0, True)
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        check_positive(self, "sigma_min", "sigma_max")
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f'"sigma_min" is {self.sigma_min}, expected less than "sigma_max" = {self.sigma_max}.')

    @property
    def t_min(self) -> float:  # type: ignore[override]
        """The smallest noise level, `sigma_min`."""
        return self.sigma_min

    @property
    def t_max(self) -> float:  # type: ignore[override]
        """The largest noise level, `sigma_max`."""
        return self.sigma_max

    def _alpha(self, t: Any, ops: Any) -> Any:
        return 1.0 if ops is math else torch.ones_like(t)

    def _sigma(self, t: Any, ops: Any) -> Any:
        return t

    def _log_snr(self, t: Any, ops: Any) -> Any:
        return -log_or_inf(t, ops)

    def _time(self, log_snr: Any, ops: Any) -> Any:
        return ops.exp(-log_snr)


@dataclass(frozen=True)
class RectifiedFlowSchedule(NoiseSchedule):
    """alpha(t) = 1 - t and sigma(t) = t: the straight path between data and noise, t in [0, 1].

    Arguments:
        t_min: smallest time at which a network is meant to be evaluated.

    Raises:
        ValueError: if `t_min` is not in (0, 1).

    References:
        Liu et al. 2022, Flow Straight and Fast (arXiv 2209.03003); Lipman et al. 2022 (arXiv 2210.02747).

    Example:
        >>> schedule = RectifiedFlowSchedule()
        >>> schedule.alpha(0.25), schedule.sigma(0.25), schedule.log_snr(1.0)
        (0.75, 0.25, -inf)
    """

    t_min: float = 1e-3
    t_max = 1.0

    def __post_init__(self) -> None:
        check_t_min(self)

    def _alpha(self, t: Any, ops: Any) -> Any:
        return 1.0 - t

    def _sigma(self, t: Any, ops: Any) -> Any:
        return t

    def _log_snr(self, t: Any, ops: Any) -> Any:
        return math.inf if ops is math and t == 0 else log_or_inf((1.0 - t) / t, ops)

    def _time(self, log_snr: Any, ops: Any) -> Any:
        if ops is math:  # math.exp overflows where 1 / (1 + inf) is meant
            return 1.0 / (1.0 + math.exp(log_snr)) if log_snr < 700 else 0.0
        return torch.sigmoid(-log_snr)


_SCHEDULES: dict[str, type[NoiseSchedule]] = {
    kind.__name__: kind
    for kind in (
        CosineSchedule,
        LinearSchedule,
        ScaledLinearSchedule,
        TableSchedule,
        EDMSchedule,
        RectifiedFlowSchedule,
    )
}


def schedule_from_dict(values: dict[str, Any]) -> NoiseSchedule:
    """Return the schedule that `NoiseSchedule.to_dict` wrote.

    Arguments:
        values: the name of the class under "schedule" and its constructor's arguments.

    Raises:
        ValueError: if the name or an argument is unknown, or an argument is out of range.

    Example:
        >>> schedule_from_dict({"schedule": "LinearSchedule", "steps": 500}).steps
        500
    """
    arguments = dict(values)
    name = arguments.pop("schedule", None)
    kind = _SCHEDULES.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ValueError(f'"schedule" is {name!r}, expected one of {", ".join(_SCHEDULES)}.')
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]  # every schedule is a dataclass
    unknown = sorted(set(arguments) - known)
    if unknown:
        raise ValueError(f'"{unknown[0]}" is no argument of {name}, expected some of {", ".join(sorted(known))}.')
    return kind(**arguments)
