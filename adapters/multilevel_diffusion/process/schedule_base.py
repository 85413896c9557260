"""What every noise schedule is: the abstract base, and what its float and tensor formulas share."""

import math
from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import Any, TypeVar

import torch
from torch import Tensor

from multilevel_sde.times import has_float64

__all__ = ["SLACK", "NoiseSchedule", "VariancePreserving", "check_positive", "check_t_min", "log_or_inf"]

Time = TypeVar("Time", float, Tensor)

# How far outside its domain a time may lie and still be taken for rounding.
SLACK = 1e-9


class NoiseSchedule(ABC):
    """The pair alpha(t), sigma(t) of x_t = alpha(t) x_0 + sigma(t) eps, and its log signal-to-noise ratio.

    A schedule is an immutable value: it can be compared, hashed, written as JSON (`to_dict`) and read back
    (`schedule_from_dict`). A new one writes the four formulas `_alpha`, `_sigma`, `_log_snr` and `_time`, each taking a
    float64 number or tensor and the module (`math` or `torch`) to compute it with.

    Attributes:
        t_min: smallest time at which a network is meant to be evaluated.
        t_max: time of the pure noise from which sampling starts.
    """

    t_min: float
    t_max: float

    @abstractmethod
    def _alpha(self, t: Any, ops: Any) -> Any: ...

    @abstractmethod
    def _sigma(self, t: Any, ops: Any) -> Any: ...

    @abstractmethod
    def _log_snr(self, t: Any, ops: Any) -> Any: ...

    @abstractmethod
    def _time(self, log_snr: Any, ops: Any) -> Any: ...

    def alpha(self, t: Time) -> Time:
        """Return alpha(t), the share of the data, shaped like t.

        Example:
            >>> from multilevel_diffusion import CosineSchedule
            >>> CosineSchedule().alpha(0.0)
            1.0
        """
        return self._apply(self._alpha, self._inside(t))

    def sigma(self, t: Time) -> Time:
        """Return sigma(t), the share of the noise, shaped like t.

        Example:
            >>> from multilevel_diffusion import CosineSchedule
            >>> CosineSchedule().sigma(0.0)
            0.0
        """
        return self._apply(self._sigma, self._inside(t))

    def log_snr(self, t: Time) -> Time:
        """Return lambda(t) = log(alpha(t) / sigma(t)), shaped like t; +inf where sigma = 0.

        Example:
            >>> from multilevel_diffusion import RectifiedFlowSchedule
            >>> RectifiedFlowSchedule().log_snr(0.5)
            0.0
        """
        return self._apply(self._log_snr, self._inside(t))

    def time(self, log_snr: Time) -> Time:
        """Return the time t at which lambda(t) = log_snr, shaped like log_snr: the inverse of `log_snr`.

        Example:
            >>> from multilevel_diffusion import CosineSchedule
            >>> schedule = CosineSchedule()
            >>> round(schedule.time(schedule.log_snr(0.3)), 12)
            0.3
        """
        return self._apply(self._time, log_snr)

    def perturb(self, x0: Tensor, noise: Tensor, t: Time) -> Tensor:
        """Return x_t = alpha(t) x_0 + sigma(t) noise in x0's dtype.

        Arguments:
            x0: data, (B, ...).
            noise: eps, shaped like x0.
            t: one time (a float or a 0-d tensor) or one time per sample, (B,).

        Example:
            >>> from multilevel_diffusion import RectifiedFlowSchedule
            >>> x0, noise = torch.ones(2, 3), torch.zeros(2, 3)
            >>> RectifiedFlowSchedule().perturb(x0, noise, torch.tensor([0.0, 0.5]))[:, 0]
            tensor([1.0000, 0.5000])
        """
        alpha, sigma = self.alpha(t), self.sigma(t)
        if isinstance(alpha, Tensor) and isinstance(sigma, Tensor) and alpha.ndim == 1:
            shape = (-1,) + (1,) * (x0.ndim - 1)
            alpha, sigma = alpha.to(x0.dtype).reshape(shape), sigma.to(x0.dtype).reshape(shape)
        return alpha * x0 + sigma * noise

    def to_dict(self) -> dict[str, Any]:
        """Return the schedule as a dictionary of JSON values, to be read by `schedule_from_dict`.

        Example:
            >>> from multilevel_diffusion import CosineSchedule
            >>> CosineSchedule().to_dict()
            {'schedule': 'CosineSchedule', 'offset': 0.008, 't_min': 0.001}
        """
        values: dict[str, Any] = asdict(self)  # type: ignore[call-overload]  # every schedule is a dataclass
        return {"schedule": type(self).__name__, **values}

    def _inside(self, t: Any) -> Any:
        """Clamp t to [0, t_max]; a float that is outside by more than rounding is an error."""
        if isinstance(t, Tensor):
            return t.clamp(0.0, self.t_max)
        if not -SLACK <= t <= self.t_max * (1 + SLACK):
            raise ValueError(f'"t" is {t}, expected a time in [0, {self.t_max}]: {type(self).__name__} ends there.')
        return min(max(float(t), 0.0), self.t_max)

    @staticmethod
    def _apply(formula: Any, value: Any) -> Any:
        """Evaluate a formula in float64: with `math` on a float, with `torch` on a tensor (dtype kept)."""
        if not isinstance(value, Tensor):
            return formula(float(value), math)
        if not has_float64(value.device.type):  # on the host, which has it
            result = formula(value.cpu().to(torch.float64), torch)
            return result.to(value.dtype if value.is_floating_point() else torch.float32).to(value.device)
        result = formula(value.to(torch.float64), torch)
        return result.to(value.dtype) if value.is_floating_point() else result


def log_or_inf(value: Any, ops: Any) -> Any:
    """Return log(value), with log(0) = -inf for floats too."""
    return -math.inf if ops is math and value == 0 else ops.log(value)


def check_positive(schedule: object, *names: str) -> None:
    """Raise ValueError unless every named field is a positive finite number."""
    for name in names:
        value = getattr(schedule, name)
        if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
            raise ValueError(f'"{name}" is {value!r}, expected a positive finite number.')


def check_t_min(schedule: NoiseSchedule) -> None:
    """Raise ValueError unless 0 < t_min < t_max."""
    check_positive(schedule, "t_min")
    if schedule.t_min >= schedule.t_max:
        raise ValueError(f'"t_min" is {schedule.t_min}, expected a time below {schedule.t_max}, where sampling starts.')


class VariancePreserving(NoiseSchedule):
    """alpha = 1 / sqrt(1 + e^{-2 lambda}) and sigma = e^{-lambda} alpha, so alpha^2 + sigma^2 = 1."""

    t_max = 1.0

    def _alpha(self, t: Any, ops: Any) -> Any:
        return 1.0 / ops.sqrt(1.0 + ops.exp(-2.0 * self._log_snr(t, ops)))

    def _sigma(self, t: Any, ops: Any) -> Any:
        log_snr = self._log_snr(t, ops)
        if ops is math:
            return 1.0 if log_snr == -math.inf else ops.exp(-log_snr) / ops.sqrt(1.0 + ops.exp(-2.0 * log_snr))
        sigma = ops.exp(-log_snr) / ops.sqrt(1.0 + ops.exp(-2.0 * log_snr))
        return ops.where(log_snr == -math.inf, 1.0, sigma)  # inf / inf
