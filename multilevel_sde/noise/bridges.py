r"""What a path did between its saved states, drawn from the Brownian bridge: running maxima and exit times.

Between two states y_n and y_{n+1} of Euler-Maruyama, with g held over the step, the path is a Brownian bridge of
variance v = sigma^2 h, and

    maximum     (y_n + y_{n+1} + sqrt((y_{n+1} - y_n)^2 - 2 v log U)) / 2,   U uniform
    crossing    of b above both ends with probability exp(-2 (b - y_n)(b - y_{n+1}) / v), surely if b lies between
    its time    t_n + h z / (1 + z),  z inverse Gaussian with mean a / c and shape a^2 / v,
    where       a = b - y_n,  c = |b - y_{n+1}|

so that a functional of the path has no error of order sqrt(h) from what happened between the states.

References:
    Glasserman, "Monte Carlo Methods in Financial Engineering", 2004, section 6.4;
    Michael, Schucany and Haas, The American Statistician 30, 1976 (inverse Gaussian numbers).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from multilevel_sde.arguments import as_integer, as_items, as_tensor, multiplies
from multilevel_sde.noise.space_time import other_seeds
from multilevel_sde.noise.start import seeded_normal
from multilevel_sde.steps.sums import HALF
from multilevel_sde.times import as_times

__all__ = ["exit_times", "running_maximum"]


def running_maximum(ys: Tensor, times: Tensor | Sequence[float], sigma: float | Tensor, seeds: Iterable[int]) -> Tensor:
    """Return the maximum of the path up to each saved state, drawn between them from the Brownian bridge.

    The minimum is that of -ys with its sign turned. With sigma = 0 it is the maximum of the states.

    Arguments:
        ys: Saved states (S, B, ...), all of a solve (`save=True`), or those of a grid fine enough for sigma.
        times: Their times (S,), such as `solution.times`.
        sigma: The diffusion: a number, or a tensor that multiplies one step of states (S - 1, B, ...).
        seeds: One integer a sample, which may be those of the path: these numbers are independent of it.

    Returns:
        Shape (S, B, ...); the first is the first state.

    Raises:
        TypeError: `ys` is no tensor of floating-point numbers; seeds that are no integers.
        ValueError: `ys`, `times`, `sigma` and `seeds` do not fit; a sigma that is not finite.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder, times = mls.Ladder([lambda y, t: -y], costs=[1.0]), torch.linspace(0.0, 1.0, 9)
        >>> solution = mls.solve(ladder, torch.zeros(4), times, mls.em_plan(ladder, times), diffusion=0.5,
        ...                      brownian=mls.BrownianPath(seeds=range(4)), save=True)
        >>> maximum = mls.running_maximum(solution.ys, solution.times, 0.5, seeds=range(4))
        >>> maximum.shape, bool((maximum >= solution.ys).all())
        (torch.Size([9, 4]), True)
    """
    if isinstance(ys, Tensor) and ys.dtype in HALF:
        return running_maximum(ys.float(), times, sigma, seeds).to(ys.dtype)
    variance, numbers = _parts(ys, times, sigma, seeds, family=2)
    log_u = _log_uniform(numbers[..., 0])
    first, second = ys[:-1], ys[1:]
    inside = (first + second + ((second - first).square() - 2 * variance * log_u).sqrt()) / 2
    return torch.cat([ys[:1], inside]).cummax(0).values


def exit_times(
    ys: Tensor,
    times: Tensor | Sequence[float],
    sigma: float | Tensor,
    barrier: float | Tensor,
    seeds: Iterable[int],
) -> Tensor:
    """Return when the path first crossed a barrier from below, drawn between its states; inf where it did not.

    A barrier below the states is that of -ys at -barrier.

    Arguments:
        ys: Saved states (S, B, ...), as for :func:`running_maximum`.
        times: Their times (S,), increasing.
        sigma: The diffusion, as there, above 0.
        barrier: The level, a number or a tensor that fits a state (B, ...).
        seeds: One integer a sample.

    Returns:
        Shape (B, ...), of the dtype of `ys`; the first time where the path starts at or above the barrier.

    Raises:
        TypeError, ValueError: As for :func:`running_maximum`; times that decrease; a barrier that is NaN.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ys = torch.tensor([[0.0, 0.0], [0.2, 2.0]])
        >>> out = mls.exit_times(ys, [0.0, 1.0], sigma=0.1, barrier=1.0, seeds=[0, 1])
        >>> float(out[0]), 0.3 < float(out[1]) < 0.7
        (inf, True)
    """
    if isinstance(ys, Tensor) and ys.dtype in HALF:
        return exit_times(ys.float(), times, sigma, barrier, seeds).to(ys.dtype)
    variance, numbers = _parts(ys, times, sigma, seeds, family=3)
    if bool(as_tensor("barrier", barrier).isnan().any()):
        raise ValueError('"barrier" must be a number, got NaN')
    points = as_times(times).to(ys)
    if not points[1] > points[0]:
        raise ValueError('"times" must increase for exit times, got decreasing ones')
    a, end = barrier - ys[:-1], barrier - ys[1:]
    crossed = (end <= 0) | (_log_uniform(numbers[..., 0]) < -2 * a * end / variance)
    h = points.diff().reshape(-1, *[1] * (ys.dim() - 1))
    z = _inverse_gaussian(a, end.abs(), variance, numbers[..., 1:])
    when = points[:-1].reshape(h.shape) + h * torch.where(z.isinf(), 1.0, z / (1 + z))
    when = torch.where(crossed, when, math.inf).amin(0)  # later crossings are later
    return torch.where(ys[0] >= barrier, points[0], when)


def _inverse_gaussian(a: Tensor, c: Tensor, variance: Tensor, numbers: Tensor) -> Tensor:
    """z of mean a / c and shape a^2 / variance from a normal and a uniform number; where a <= 0 it is not used."""
    a = a.clamp_min(torch.finfo(a.dtype).tiny)
    chi, u = numbers[..., 0].square(), _log_uniform(numbers[..., 1]).exp()
    # The roots of c^2 z^2 - (2 a c + variance chi) z + a^2 = 0; the smaller one without cancellation.
    half = a * c + variance * chi / 2
    small = a.square() / (half + (half.square() - (a * c).square()).clamp_min(0).sqrt())
    mean = a / c
    return torch.where(u * (mean + small) <= mean, small, mean.square() / small).where(c > 0, small)


def _log_uniform(normal: Tensor) -> Tensor:
    return torch.special.log_ndtr(normal)


def _parts(
    ys: Tensor, times: Tensor | Sequence[float], sigma: float | Tensor, seeds: Iterable[int], family: int
) -> tuple[Tensor, Tensor]:
    """The variance of each bridge, and three normals for each, (S - 1, B, ..., 3), independent of the path's."""
    if not isinstance(ys, Tensor) or not ys.is_floating_point():
        got = ys.dtype if isinstance(ys, Tensor) else type(ys).__name__
        raise TypeError(f'"ys" must be a floating-point Tensor of saved states, got {got}')
    grid = as_times(times)
    if ys.dim() < 2 or len(ys) != len(grid):
        raise ValueError(
            f'"ys" must hold a state (samples, ...) for each of the {len(grid)} times, got shape {tuple(ys.shape)}; '
            "save them with save=True"
        )
    given = [as_integer("seeds", seed) for seed in as_items("seeds", seeds, "integers")]
    if len(given) != ys.shape[1]:
        raise ValueError(f'"seeds" must be one for each of the {ys.shape[1]} samples, got {len(given)}')
    h = grid.diff().abs().to(ys).reshape(-1, *[1] * (ys.dim() - 1))
    scale = as_tensor("sigma", sigma).to(ys)
    steps = ys[1:].shape
    if not multiplies(scale, steps):
        raise ValueError(
            f'"sigma" must be a number or fit the starts of the steps, (S - 1, B, ...) = {tuple(steps)}, got shape '
            f"{tuple(scale.shape)}; for example 0.2 * ys[:-1]"
        )
    if not bool(scale.isfinite().all()):
        raise ValueError('"sigma" must be finite, got NaN or infinity')
    variance = scale.square() * h
    numbers = seeded_normal(
        other_seeds(given, family), (len(grid) - 1, *ys.shape[2:], 3), dtype=ys.dtype, device=ys.device
    )
    return variance, numbers.transpose(0, 1)
