r"""How sure a measured number is: bootstrap intervals, and the noise floor of a distance.

References:
    Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 5.2: the basic interval.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Interval", "bootstrap", "split_halves"]


@dataclass(frozen=True)
class Interval:
    """A number and its confidence interval.

    Attributes:
        estimate: The number.
        low: Lower end.
        high: Upper end.
        raw: The same number before its bias was subtracted, where it was; else the estimate.
    """

    estimate: float
    low: float
    high: float
    raw: float


def bootstrap(
    statistic: Callable[..., float],
    *sets: Tensor,
    generator: torch.Generator,
    resamples: int = 200,
    level: float = 0.95,
) -> Interval:
    r"""Return a statistic of sets with its basic bootstrap interval, less the bias that the resamples show.

    Each set is drawn anew with replacement. With :math:`\theta` the statistic and :math:`\theta^*` its values on the
    resamples, the estimate is :math:`2\theta - \overline{\theta^*}` and the interval
    :math:`[2\theta - q_{(1 + level) / 2}, 2\theta - q_{(1 - level) / 2}]` with the quantiles q of :math:`\theta^*`.
    Distances between samples are too large by their noise, resampled ones by about twice as much: so the estimate and
    the interval are free of most of it, and for equal distributions they lie about zero, on both sides.

    Arguments:
        statistic: From as many tensors as there are sets to a number. What it closes over, such as a reference, is
            not resampled, and the interval then says nothing of its noise.
        sets: Tensors (N, ...).
        generator: Draws the resamples; the same state and sizes give the same indices, so that sets of samples with the
            same seeds are compared on the same resamples.
        resamples: How many.
        level: Of the interval.

    Raises:
        ValueError: Fewer than two resamples, no set, or a level outside (0, 1).

    Example:
        >>> a = torch.randn(400, generator=torch.Generator().manual_seed(0))
        >>> found = bootstrap(lambda x: float(x.mean()), a, generator=torch.Generator().manual_seed(1))
        >>> found.low < found.estimate < found.high, round((found.high - found.low) * 10)
        (True, 2)
    """
    if not sets or resamples < 2 or not 0 < level < 1:
        raise ValueError(
            f'"sets", "resamples" and "level" must be at least one, at least 2 and in (0, 1), got {len(sets)}, '
            f"{resamples} and {level}; the defaults are good ones"
        )
    whole, values = statistic(*sets), []
    for _ in range(resamples):
        drawn = [torch.randint(len(x), (len(x),), generator=generator).to(x.device) for x in sets]
        values.append(statistic(*[x[index] for x, index in zip(sets, drawn, strict=True)]))
    found = torch.tensor(values, dtype=torch.float64)
    tail = (1 - level) / 2
    high, low = found.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(2 * whole - float(found.mean()), 2 * whole - low, 2 * whole - high, whole)


def split_halves(
    statistic: Callable[[Tensor, Tensor], float],
    real: Tensor,
    generator: torch.Generator,
    *,
    splits: int = 50,
    level: float = 0.95,
) -> Interval:
    """Return the noise floor of a distance: its mean over random splits of one set into halves, with its quantiles.

    Arguments:
        statistic: A distance of two sets.
        real: (N, ...).
        generator: Draws the splits.
        splits: How many.
        level: Part of the splits between the ends.

    Raises:
        ValueError: Fewer than four in the set, or fewer than one split.

    Example:
        >>> from multilevel_diffusion.quality.distances import frechet_distance
        >>> real = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
        >>> split_halves(frechet_distance, real, torch.Generator().manual_seed(1)).high < 0.05
        True
    """
    if len(real) < 4 or splits < 1:
        raise ValueError(f'"real" and "splits" must be at least 4 and 1, got {len(real)} and {splits}; take more')
    half, values = len(real) // 2, []
    for _ in range(splits):
        order = torch.randperm(len(real), generator=generator).to(real.device)
        values.append(statistic(real[order[:half]], real[order[half : 2 * half]]))
    found = torch.tensor(values, dtype=torch.float64)
    ends = found.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return Interval(float(found.mean()), ends[0], ends[1], float(found.mean()))
