"""Nondecreasing curves of what was measured, in logarithms; and means of few samples, drawn towards such a curve."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.optimize import isotonic_regression
from torch import Tensor

from multilevel_sde.pilots.trial import typical

__all__ = ["calibrated", "tails"]


def calibrated(value: float, pairs: Iterable[tuple[float, float]]) -> float:
    """The value times the ratio of measured to given, interpolated in the logarithm of the given.

    What was measured is made nondecreasing in the given first: a few samples scatter, and a plan that promises less
    must not be expected to err more. Beyond what was given, the nearest ratio counts.

    Arguments:
        value: What is given now.
        pairs: What was given, and what was measured.

    Example:
        >>> round(calibrated(2.0, [(1.0, 3.0), (4.0, 12.0)]), 9)
        6.0
    """
    known = sorted((given, measured) for given, measured in pairs if given > 0 and 0 < measured < math.inf)
    if not known or value <= 0:
        return value
    x, y = np.log(known).T
    return value * math.exp(float(np.interp(math.log(value), x, isotonic_regression(y).x - x)))


def tails(runs: Sequence[Tensor]) -> list[float]:
    r"""The ratio of mean to typical squared error of each run, the less its own the fewer samples decide it.

    The logarithm of a mean over n errors e has about the variance v = sum(e^2) / sum(e)^2 - 1 / n. Where a sample ends
    up somewhere else because its path was disturbed by so much, whoever disturbed it, runs of the same typical error
    have the same mean: a nondecreasing curve through all runs. Around that curve runs scatter by v, and by what they
    differ, of variance

        d = max(0, mean((log mean - log curve)^2 - v)).

    So the mean of a run is taken as mean^s curve^(1 - s) with s = d / (d + v).

    Arguments:
        runs: Squared errors of all samples, of each run.

    References:
        DerSimonian and Laird, Controlled Clinical Trials 7, 1986 (between-trial variance by moments).

    Example:
        >>> import torch
        >>> tails([torch.tensor([1.0, 1.0, 1.0, 1.0]), torch.zeros(4)])
        [1.0, 1.0]
    """
    usual = [typical(errors) for errors in runs]
    means = [float(errors.double().mean()) for errors in runs]
    pairs = list(zip(usual, means, strict=True))
    known = [place for place, (error, mean) in enumerate(pairs) if error > 0 and mean < math.inf]
    found = [1.0] * len(runs)
    if not known:
        return found
    own = np.log([means[place] / usual[place] for place in known])
    shared = np.log([calibrated(usual[place], pairs) / usual[place] for place in known])
    spread = np.array([_spread(runs[place].double() / means[place]) for place in known])
    apart = max(0.0, float(np.mean((own - shared) ** 2 - spread)))
    share = apart / np.maximum(apart + spread, 1e-300)
    for place, tail in zip(known, np.exp(share * own + (1 - share) * shared), strict=True):
        found[place] = float(tail)
    return found


def _spread(shares: Tensor) -> float:
    """The variance v above, of errors over their mean."""
    return max(0.0, (float(shares.square().mean()) - 1) / len(shares))
