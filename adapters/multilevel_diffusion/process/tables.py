r"""Noise schedules given by a table of betas: x_s = sqrt(1 - beta_s) x_{s-1} + sqrt(beta_s) eps, s = 1 ... steps.

Then alpha^2(s / steps) = prod_{u <= s} (1 - beta_u) with time s / steps in [0, 1], and alpha^2 + sigma^2 = 1.

The last beta may be 1, as in tables rescaled to zero terminal SNR: then alpha(1) = 0 and the state is pure noise.
Within the last step alpha falls to 0 along a straight line.

References:
    Ho, Jain, Abbeel 2020, Denoising Diffusion Probabilistic Models (arXiv 2006.11239): the linear table.
    Fritsch, Carlson 1980, Monotone Piecewise Cubic Interpolation (between the entries).
    Lin et al. 2024, Common Diffusion Noise Schedules and Sample Steps are Flawed (arXiv 2305.08891): zero terminal SNR.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from multilevel_diffusion.process.schedule_base import VariancePreserving, check_t_min, log_or_inf

__all__ = ["LinearSchedule", "ScaledLinearSchedule", "TableSchedule"]


class _Tabulated(VariancePreserving):
    """L(t) = -log alpha^2(t), exact at t = s / steps and a monotone cubic (PCHIP) in between, with L(0) = 0.

    lambda = -log(expm1(L)) / 2 is then smooth, strictly decreasing, and +inf at t = 0.
    """

    @abstractmethod
    def _betas(self) -> np.ndarray:
        """Return beta_1, ..., beta_steps, float64."""

    @cached_property
    def _nodes(self) -> np.ndarray:
        """L at s / steps, s = 0 ... steps, (steps + 1,) float64."""
        with np.errstate(divide="ignore"):  # log 0 where the last beta is 1
            return np.concatenate([[0.0], np.cumsum(-np.log1p(-self._betas()))])

    @cached_property
    def _ends_in_noise(self) -> bool:
        return bool(np.isinf(self._nodes[-1]))

    @cached_property
    def _cubics(self) -> np.ndarray:
        """Coefficients of the cubics in the offset within their cell, highest power first, (4, steps) float64."""
        nodes, times = self._nodes, np.linspace(0.0, 1.0, len(self._nodes))
        if not self._ends_in_noise:
            return PchipInterpolator(times, nodes).c
        if len(nodes) == 3:  # one finite step: a straight line
            return np.array([[0.0, 0.0], [0.0, 0.0], [nodes[1] / times[1], 0.0], [0.0, nodes[1]]])
        cubics = PchipInterpolator(times[:-1], nodes[:-1]).c
        return np.concatenate([cubics, [[0.0], [0.0], [0.0], [nodes[-2]]]], axis=1)

    @cached_property
    def _columns(self) -> list[tuple[float, ...]]:
        """The cubics as tuples of floats, one per cell."""
        return [tuple(column) for column in self._cubics.T.tolist()]

    def _log_snr(self, t: Any, ops: Any) -> Any:
        return -0.5 * log_or_inf(ops.expm1(self._minus_log_alpha_squared(t, ops)), ops)

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
        value = ((a * offset + b) * offset + c) * offset + d
        if not self._ends_in_noise:
            return value
        if ops is math:
            return value - 2.0 * log_or_inf(max(1.0 - offset * steps, 0.0), ops) if cell == steps - 1 else value
        last = value - 2.0 * ops.log((1.0 - offset * steps).clamp(min=0.0))
        return torch.where(torch.as_tensor(cell == steps - 1), last, value)

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
            raise ValueError(f'"{name}" is {value!r}, expected a number strictly between 0 and 1.')
    if not (isinstance(schedule.steps, int) and schedule.steps >= 2):
        raise ValueError(f'"steps" is {schedule.steps!r}, expected an integer of at least 2: the length of the table.')
    check_t_min(schedule)


@dataclass(frozen=True)
class LinearSchedule(_Tabulated):
    """alpha^2(s / steps) = prod_{u <= s} (1 - beta_u) with beta_u growing linearly: the table of the DDPM paper.

    Arguments:
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

    Arguments:
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

    Arguments:
        betas: beta_1, ..., beta_steps, at least two, each in (0, 1); the last may be 1 (zero terminal SNR).
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
        if len(betas) < 2:
            raise ValueError(f'"betas" has {len(betas)} entries, expected at least 2, first the one next to the data.')
        for place, beta in enumerate(betas):
            if not 0 < beta < 1 and not (beta == 1 and place == len(betas) - 1):
                raise ValueError(
                    f'"betas[{place}]" is {beta} of {len(betas)}, expected a number strictly between 0 and 1; only the '
                    "last may be 1, where the state is pure noise."
                )
        object.__setattr__(self, "betas", betas)
        if self.t_min is None:
            object.__setattr__(self, "t_min", 1.0 / len(betas))
        check_t_min(self)

    def _betas(self) -> np.ndarray:
        return np.array(self.betas)
