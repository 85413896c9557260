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
    Ho, Jain, Abbeel 2020, Denoising Diffusion Probabilistic Models (arXiv 2006.11239): the linear table.
    Nichol, Dhariwal 2021, Improved DDPM (arXiv 2102.09672): the cosine schedule.
    Karras et al. 2022, Elucidating the Design Space (arXiv 2206.00364): sigma as time.
    Lipman et al. 2022, Flow Matching (arXiv 2210.02747); Liu et al. 2022, Rectified Flow (arXiv 2209.03003).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields
from functools import cached_property, lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

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

Time = TypeVar("Time", float, Tensor)

# How far outside its domain a time may lie and still be taken for rounding.
_SLACK = 1e-9


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
            >>> CosineSchedule().alpha(0.0)
            1.0
        """
        return self._apply(self._alpha, self._inside(t))

    def sigma(self, t: Time) -> Time:
        """Return sigma(t), the share of the noise, shaped like t.

        Example:
            >>> CosineSchedule().sigma(0.0)
            0.0
        """
        return self._apply(self._sigma, self._inside(t))

    def log_snr(self, t: Time) -> Time:
        """Return lambda(t) = log(alpha(t) / sigma(t)), shaped like t; +inf where sigma = 0.

        Example:
            >>> RectifiedFlowSchedule().log_snr(0.5)
            0.0
        """
        return self._apply(self._log_snr, self._inside(t))

    def time(self, log_snr: Time) -> Time:
        """Return the time t at which lambda(t) = log_snr, shaped like log_snr: the inverse of `log_snr`.

        Example:
            >>> schedule = CosineSchedule()
            >>> round(schedule.time(schedule.log_snr(0.3)), 12)
            0.3
        """
        return self._apply(self._time, log_snr)

    def perturb(self, x0: Tensor, noise: Tensor, t: Time) -> Tensor:
        """Return x_t = alpha(t) x_0 + sigma(t) noise in x0's dtype.

        Args:
            x0: data, (B, ...).
            noise: eps, shaped like x0.
            t: one time (a float or a 0-d tensor) or one time per sample, (B,).

        Example:
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
            >>> CosineSchedule().to_dict()
            {'schedule': 'CosineSchedule', 'offset': 0.008, 't_min': 0.001}
        """
        values: dict[str, Any] = asdict(self)  # type: ignore[call-overload]  # every schedule is a dataclass
        return {"schedule": type(self).__name__, **values}

    def _inside(self, t: Any) -> Any:
        """Clamp t to [0, t_max]; a float that is outside by more than rounding is an error."""
        if isinstance(t, Tensor):
            return t.clamp(0.0, self.t_max)
        if not -_SLACK <= t <= self.t_max * (1 + _SLACK):
            raise ValueError(f"'t' is {t}, expected a time in [0, {self.t_max}]: {type(self).__name__} ends there.")
        return min(max(float(t), 0.0), self.t_max)

    @staticmethod
    def _apply(formula: Any, value: Any) -> Any:
        """Evaluate a formula in float64: with `math` on a float, with `torch` on a tensor (dtype kept)."""
        if not isinstance(value, Tensor):
            return formula(float(value), math)
        result = formula(value.to(torch.float64), torch)
        return result.to(value.dtype) if value.is_floating_point() else result


def _log(value: Any, ops: Any) -> Any:
    """Return log(value), with log(0) = -inf for floats too."""
    return -math.inf if ops is math and value == 0 else ops.log(value)


def _positive(schedule: object, *names: str) -> None:
    """Raise ValueError unless every named field is a positive finite number."""
    for name in names:
        value = getattr(schedule, name)
        if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
            raise ValueError(f"'{name}' is {value!r}, expected a positive finite number.")


def _proper_t_min(schedule: NoiseSchedule) -> None:
    """Raise ValueError unless 0 < t_min < t_max."""
    _positive(schedule, "t_min")
    if schedule.t_min >= schedule.t_max:
        raise ValueError(f"'t_min' is {schedule.t_min}, expected a time below {schedule.t_max}, where sampling starts.")


class _VariancePreserving(NoiseSchedule):
    """alpha = 1 / sqrt(1 + e^{-2 lambda}) and sigma = e^{-lambda} alpha, so alpha^2 + sigma^2 = 1."""

    t_max = 1.0

    def _alpha(self, t: Any, ops: Any) -> Any:
        return 1.0 / ops.sqrt(1.0 + ops.exp(-2.0 * self._log_snr(t, ops)))

    def _sigma(self, t: Any, ops: Any) -> Any:
        log_snr = self._log_snr(t, ops)
        return ops.exp(-log_snr) / ops.sqrt(1.0 + ops.exp(-2.0 * log_snr))


@dataclass(frozen=True)
class CosineSchedule(_VariancePreserving):
    r"""alpha^2(t) = cos^2(a(t)) / cos^2(a(0)),   a(t) = (t + offset) / (1 + offset) pi / 2,   t in [0, 1].

    With beta_s = 1 - alpha^2(s/1000) / alpha^2((s-1)/1000) clipped at 0.999, as everybody trains with 1000 steps, the
    last alpha^2 is alpha^2(0.999) / 1000 and not 0: alpha^2 has this floor, reached at about t = 0.99997, so lambda(1)
    is finite (about -9.9) and `time` gives 1 there.

    sigma^2 = sin(a(t) - a(0)) sin(a(t) + a(0)) / cos^2(a(0)) is used instead of 1 - alpha^2: it has no cancellation.

    Args:
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
        _positive(self, "offset")
        _proper_t_min(self)

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
        return ops.log(ops.cos(angle)) - 0.5 * _log(ops.sin(increase) * ops.sin(angle + self._start), ops)

    def _time(self, log_snr: Any, ops: Any) -> Any:
        # cos^2 a = cos^2 a(0) / (1 + e^{-2 lambda}), hence tan a = sqrt(sin^2 a(0) + e^{-2 lambda}) / cos a(0).
        floor = self._log_snr(1.0, math)
        clamped = max(log_snr, floor) if ops is math else log_snr.clamp(min=floor)
        sine = ops.sqrt(math.sin(self._start) ** 2 + ops.exp(-2.0 * clamped))
        t = (ops.atan(sine / math.cos(self._start)) - self._start) * (1 + self.offset) / (math.pi / 2)
        if ops is math:
            return 1.0 if log_snr <= floor + _SLACK else min(max(t, 0.0), 1.0)
        return torch.where(log_snr <= floor + _SLACK, torch.ones_like(t), t.clamp(0.0, 1.0))


class _Tabulated(_VariancePreserving):
    """L(t) = -log alpha^2(t), exact at t = s / steps and a monotone cubic (PCHIP) in between, with L(0) = 0.

    lambda = -log(expm1(L)) / 2 is then smooth, strictly decreasing, and +inf at t = 0.
    """

    @abstractmethod
    def _betas(self) -> np.ndarray:
        """Return beta_1, ..., beta_steps, float64."""

    @cached_property
    def _nodes(self) -> np.ndarray:
        """L at s / steps, s = 0 ... steps, (steps + 1,) float64."""
        return np.concatenate([[0.0], np.cumsum(-np.log1p(-self._betas()))])

    @cached_property
    def _cubics(self) -> np.ndarray:
        """Coefficients of the cubics in the offset within their cell, highest power first, (4, steps) float64."""
        nodes = self._nodes
        return PchipInterpolator(np.linspace(0.0, 1.0, len(nodes)), nodes).c

    @cached_property
    def _columns(self) -> list[tuple[float, ...]]:
        """The cubics as tuples of floats, one per cell."""
        return [tuple(column) for column in self._cubics.T.tolist()]

    def _log_snr(self, t: Any, ops: Any) -> Any:
        return -0.5 * _log(ops.expm1(self._minus_log_alpha_squared(t, ops)), ops)

    def _minus_log_alpha_squared(self, t: Any, ops: Any) -> Any:
        steps = len(self._nodes) - 1
        if ops is math:
            cell = min(int(t * steps), steps - 1)
            a, b, c, d = self._columns[cell]
        else:
            cell = (t * steps).long().clamp(0, steps - 1)
            a, b, c, d = _on_device(self, t.device)[:, cell]
            cell = cell.to(torch.float64)
        offset = t - cell / steps
        return ((a * offset + b) * offset + c) * offset + d

    def _time(self, log_snr: Any, ops: Any) -> Any:
        if ops is math:
            return float(self._time(torch.tensor(log_snr, dtype=torch.float64), torch))
        target = torch.nn.functional.softplus(-2.0 * log_snr, threshold=700.0).clamp(max=float(self._nodes[-1]))
        nodes = torch.from_numpy(self._nodes).to(log_snr.device)
        steps = len(nodes) - 1
        cell = (torch.searchsorted(nodes, target.contiguous(), right=True) - 1).clamp(0, steps - 1)
        low, high = cell.to(torch.float64) / steps, (cell + 1).to(torch.float64) / steps
        for _ in range(60):  # bisection: the cubic of the cell is monotone
            middle = (low + high) / 2
            below = self._minus_log_alpha_squared(middle, torch) < target
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return torch.where(target <= 0, torch.zeros_like(high), high)


@lru_cache(maxsize=32)
def _on_device(schedule: _Tabulated, device: torch.device) -> Tensor:
    """Return the cubics of a table as a (4, steps) float64 tensor, copied to a device once."""
    return torch.from_numpy(schedule._cubics).to(device)


def _check_betas(schedule: Any) -> None:
    """Raise ValueError unless beta_start and beta_end lie in (0, 1) and there are at least two steps."""
    for name in ("beta_start", "beta_end"):
        value = getattr(schedule, name)
        if not 0 < value < 1:
            raise ValueError(f"'{name}' is {value!r}, expected a number strictly between 0 and 1.")
    if not (isinstance(schedule.steps, int) and schedule.steps >= 2):
        raise ValueError(f"'steps' is {schedule.steps!r}, expected an integer of at least 2: the length of the table.")
    _proper_t_min(schedule)


@dataclass(frozen=True)
class LinearSchedule(_Tabulated):
    """alpha^2(s / steps) = prod_{u <= s} (1 - beta_u) with beta_u growing linearly: the table of the DDPM paper.

    Args:
        beta_start: beta of the first step, next to the data.
        beta_end: beta of the last step.
        steps: length of the table; time is s / steps, so a network trained on indices 0 ... steps - 1 was trained at
            the times 1 / steps ... 1.
        t_min: smallest time at which a network is meant to be evaluated.

    Raises:
        ValueError: if a beta is not in (0, 1), or `steps` or `t_min` is out of range.

    Example:
        >>> round(LinearSchedule().alpha(1.0) ** 2, 6)
        4e-05
    """

    beta_start: float = 1e-4
    beta_end: float = 0.02
    steps: int = 1000
    t_min: float = 1e-3

    def __post_init__(self) -> None:
        _check_betas(self)

    def _betas(self) -> np.ndarray:
        return np.linspace(self.beta_start, self.beta_end, self.steps)


@dataclass(frozen=True)
class ScaledLinearSchedule(_Tabulated):
    """As `LinearSchedule` with sqrt(beta_u) growing linearly: the table of latent diffusion.

    Args:
        beta_start: beta of the first step, next to the data.
        beta_end: beta of the last step.
        steps: length of the table; time is s / steps.
        t_min: smallest time at which a network is meant to be evaluated.

    Raises:
        ValueError: if a beta is not in (0, 1), or `steps` or `t_min` is out of range.

    Reference:
        Rombach et al. 2022, High-Resolution Image Synthesis with Latent Diffusion Models (arXiv 2112.10752), its code.

    Example:
        >>> round(ScaledLinearSchedule().alpha(1.0) ** 2, 6)
        0.00466
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    steps: int = 1000
    t_min: float = 1e-3

    def __post_init__(self) -> None:
        _check_betas(self)

    def _betas(self) -> np.ndarray:
        return np.linspace(math.sqrt(self.beta_start), math.sqrt(self.beta_end), self.steps) ** 2


@dataclass(frozen=True)
class TableSchedule(_Tabulated):
    """As `LinearSchedule` with any table of betas, such as the one a checkpoint was trained with.

    Args:
        betas: beta_1, ..., beta_steps, at least two, each in (0, 1).
        t_min: smallest time at which a network is meant to be evaluated; None is 1 / steps, the table's first time.

    Raises:
        ValueError: if a beta is not in (0, 1), or there are fewer than two, or `t_min` is out of range.

    Example:
        >>> schedule = TableSchedule([0.1, 0.2, 0.5])
        >>> round(schedule.alpha(2 / 3) ** 2, 12)
        0.72
    """

    betas: tuple[float, ...]
    t_min: float | None = None  # type: ignore[assignment]  # None is replaced at construction

    def __post_init__(self) -> None:
        betas = tuple(float(beta) for beta in self.betas)
        if len(betas) < 2 or not all(0 < beta < 1 for beta in betas):
            raise ValueError(
                "'betas' must be at least two numbers strictly between 0 and 1, first the one of the data."
            )
        object.__setattr__(self, "betas", betas)
        if self.t_min is None:
            object.__setattr__(self, "t_min", 1.0 / len(betas))
        _proper_t_min(self)

    def _betas(self) -> np.ndarray:
        return np.array(self.betas)


@dataclass(frozen=True)
class EDMSchedule(NoiseSchedule):
    """alpha = 1 and sigma(t) = t: x_t = x_0 + t eps, with t in [0, sigma_max].

    Args:
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
        _positive(self, "sigma_min", "sigma_max")
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"'sigma_min' is {self.sigma_min}, expected less than 'sigma_max' = {self.sigma_max}.")

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
        return -_log(t, ops)

    def _time(self, log_snr: Any, ops: Any) -> Any:
        return ops.exp(-log_snr)


@dataclass(frozen=True)
class RectifiedFlowSchedule(NoiseSchedule):
    """alpha(t) = 1 - t and sigma(t) = t: the straight path between data and noise, t in [0, 1].

    Args:
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
        _proper_t_min(self)

    def _alpha(self, t: Any, ops: Any) -> Any:
        return 1.0 - t

    def _sigma(self, t: Any, ops: Any) -> Any:
        return t

    def _log_snr(self, t: Any, ops: Any) -> Any:
        return math.inf if ops is math and t == 0 else _log((1.0 - t) / t, ops)

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

    Args:
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
        raise ValueError(f"'schedule' is {name!r}, expected one of {', '.join(_SCHEDULES)}.")
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]  # every schedule is a dataclass
    unknown = sorted(set(arguments) - known)
    if unknown:
        raise ValueError(f"'{unknown[0]}' is no argument of {name}, expected some of {', '.join(sorted(known))}.")
    return kind(**arguments)
