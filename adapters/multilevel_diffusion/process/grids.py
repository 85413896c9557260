"""Time grids from noise to data: where a sampler evaluates the networks.

A grid of N steps is t_0 > t_1 > ... > t_N, a float64 tensor of N + 1 times on the CPU, with t_0 = `start` (by default
the schedule's `t_max`) and t_N = 0, the data. The networks are evaluated at t_0 ... t_{N-1}; the last of these is `end`
(by default the schedule's `t_min`) on the grids that are spaced in a quantity which is infinite at the data.

Any monotone tensor of times is a grid too; these are the usual ones. Where alpha(start) = 0 (rectified flow), the grids
spaced by noise level go to a time near `start` in their first step and are spaced from there.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from multilevel_diffusion.process.schedule_base import NoiseSchedule

__all__ = ["karras", "log_snr_uniform", "uniform"]


def uniform(schedule: NoiseSchedule, steps: int, *, start: float | None = None) -> Tensor:
    """Return the grid t_n = start (1 - n / N), equal steps in time.

    Arguments:
        schedule: gives the default of `start`.
        steps: N, the number of steps.
        start: first time; None is the schedule's `t_max`.

    Returns:
        Float64 tensor (steps + 1,), falling from `start` to 0.

    Raises:
        ValueError: if `steps` is not a positive integer or `start` is not in (0, t_max].

    Example:
        >>> from multilevel_diffusion.process.schedules import CosineSchedule
        >>> uniform(CosineSchedule(), 4)
        tensor([1.0000, 0.7500, 0.5000, 0.2500, 0.0000], dtype=torch.float64)
    """
    start, _ = _bounds(schedule, steps, start, None)
    # Integers divided once: the grid of N steps is then contained in that of 2 N to the last bit.
    return start * (torch.arange(steps, -1, -1, dtype=torch.float64) / steps)


def log_snr_uniform(
    schedule: NoiseSchedule, steps: int, *, start: float | None = None, end: float | None = None
) -> Tensor:
    """Return the grid with equal steps in lambda = log(alpha / sigma) from `start` to `end`, and a last step to 0.

    Arguments:
        schedule: the noise schedule, and the defaults of `start` and `end`.
        steps: N, the number of steps, at least 2.
        start: first time; None is the schedule's `t_max`.
        end: last time before 0; None is the schedule's `t_min`.

    Returns:
        Float64 tensor (steps + 1,), falling from `start` to 0.

    Raises:
        ValueError: if `steps` is not an integer of at least 2, or not 0 < end < start <= t_max.

    Reference:
        Lu et al. 2022, DPM-Solver (arXiv 2206.00927).

    Example:
        >>> from multilevel_diffusion.process.schedules import EDMSchedule
        >>> log_snr_uniform(EDMSchedule(sigma_min=0.01, sigma_max=100.0), 5)
        tensor([1.0000e+02, 1.0000e+01, 1.0000e+00, 1.0000e-01, 1.0000e-02, 0.0000e+00], dtype=torch.float64)
    """
    return _spaced(schedule, steps, start, end, lambda log_snr: log_snr, lambda value: value)


def karras(
    schedule: NoiseSchedule, steps: int, *, rho: float = 7.0, start: float | None = None, end: float | None = None
) -> Tensor:
    """Return the grid with equal steps in (sigma / alpha)^{1 / rho} from `start` to `end`, and a last step to 0.

    Arguments:
        schedule: the noise schedule, and the defaults of `start` and `end`.
        steps: N, the number of steps, at least 2.
        rho: 7 in the paper; larger values put more times near the data.
        start: first time; None is the schedule's `t_max`.
        end: last time before 0; None is the schedule's `t_min`.

    Returns:
        Float64 tensor (steps + 1,), falling from `start` to 0.

    Raises:
        ValueError: if `steps` is not an integer of at least 2, `rho` is not positive, or not 0 < end < start <= t_max.

    Reference:
        Karras et al. 2022, Elucidating the Design Space (arXiv 2206.00364), equation 5.

    Example:
        >>> from multilevel_diffusion.process.schedules import EDMSchedule
        >>> karras(EDMSchedule(), 4)
        tensor([8.0000e+01, 9.7232e+00, 4.6998e-01, 2.0000e-03, 0.0000e+00],
               dtype=torch.float64)
    """
    if not rho > 0:
        raise ValueError(f'"rho" is {rho!r}, expected a positive number.')
    return _spaced(
        schedule,
        steps,
        start,
        end,
        lambda log_snr: torch.exp(-log_snr / rho),
        lambda value: -rho * torch.log(value),
    )


def _bounds(schedule: NoiseSchedule, steps: int, start: float | None, end: float | None) -> tuple[float, float]:
    """Return the checked first time and the last one before 0."""
    if not (isinstance(steps, int) and steps >= 1):
        raise ValueError(f'"steps" is {steps!r}, expected a positive integer.')
    start = schedule.t_max if start is None else float(start)
    if not 0 < start <= schedule.t_max:
        raise ValueError(f'"start" is {start}, expected a time in (0, {schedule.t_max}].')
    end = schedule.t_min if end is None else float(end)
    return start, end


def _spaced(
    schedule: NoiseSchedule,
    steps: int,
    start: float | None,
    end: float | None,
    forward: Callable[[Tensor], Tensor],
    back: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return the grid with equal steps in forward(lambda), from `start` to `end`, and a last step to 0."""
    start, end = _bounds(schedule, steps, start, end)
    if steps < 2:
        raise ValueError('"steps" is 1, expected at least 2 on a grid that has a time of its own before 0.')
    if not 0 < end < start:
        raise ValueError(f'"end" is {end}, expected a time in (0, {start}): it is the last time before 0.')
    # lambda is -inf where alpha = 0: begin as far from the pure noise as `end` is from the data.
    first = start if schedule.alpha(start) > 0 else start - end
    ends = forward(schedule.log_snr(torch.tensor([first, end], dtype=torch.float64)))
    count = steps if first == start else steps - 1
    fractions = torch.linspace(0.0, 1.0, count, dtype=torch.float64)
    inner = schedule.time(back(torch.lerp(ends[0], ends[1], fractions)))
    inner[-1] = end
    inner[0] = first
    head = inner.new_tensor([] if first == start else [start])
    times = torch.cat([head, inner, inner.new_zeros(1)])
    if not (times.diff() < 0).all():
        raise ValueError(f'"steps" is {steps}: so many times between {start} and {end} are not distinct in float64.')
    return times
