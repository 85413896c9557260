"""A warning where a plan heats: force errors that are drawn anew in each step are noise that no friction belongs to."""

from __future__ import annotations

import math
import warnings

from torch import Tensor

from multilevel_sde.plans.plan import Plan
from multilevel_sde.steps.rules import Step, StepRule

__all__ = ["at_random", "warn_of_heat"]

_RUN, _RUNS = 8, 2  # corrections in a row whose weights are compared with their steps; how many runs are enough
_SHARE = 0.3  # of the variance that independent draws have, above which a plan counts as one of them
_ROUNDING = 0.5  # squared steps, which even spacing may differ by
_LOOKED_AT = 8  # samples, where each has its own draw


def warn_of_heat(step: Step | StepRule, plan: Plan, grid: Tensor) -> None:
    """Warn of corrections at random steps in a rule for Langevin dynamics.

    Plans that remember corrections are not warned of: what is held changes slowly.

    Warns:
        UserWarning: With the level, its probability p, and what a correction of mean square c^2 adds to the
            temperature, (1/p - 1) c^2 times :meth:`StepRule.heating`.
    """
    h = float(grid[-1] - grid[0]) / (len(grid) - 1)
    rate = step.heating(h) if isinstance(step, StepRule) else 0.0
    if rate == 0 or plan.recall is not None:
        return
    for level in range(1, plan.levels):
        weights = plan.weights[..., level].reshape(plan.steps, -1)[:, :_LOOKED_AT]
        if not any(map(at_random, weights.unbind(1))):
            continue
        p = float((weights != 0).double().mean())
        much = f"about {rate * (1 / p - 1):.2g} c^2 to the temperature, h (1/p - 1) / (2 m gamma)"
        if math.isinf(rate):
            much = "heat without end, as there is no friction"
        warnings.warn(
            f"the plan evaluates level {level + 1} at random steps (p = {p:.2g}), which heats: a correction of mean "
            f"square c^2 adds {much}; take evenly spaced corrections, such as mls.systematic draws or a pilot's plan",
            stacklevel=3,
        )
        return


def at_random(weights: Tensor) -> bool:
    """Whether a level's weights, (N,), do not add up to the steps that they stand for, as those of random draws.

    Runs of 8 corrections are compared. Independent draws have the weight 1/p each, and the steps that a run of m takes
    have the variance m (1 - p) / p^2; systematic draws differ from them by less than a step.

    Example:
        >>> import torch
        >>> even = torch.zeros(400)
        >>> even[::4] = 4.0
        >>> drawn = 4.0 * (torch.rand(400, generator=torch.Generator().manual_seed(0)) < 0.25)
        >>> at_random(even), at_random(drawn)
        (False, True)
    """
    places = weights.nonzero()[:, 0]
    if len(places) < _RUN * _RUNS:
        return False
    sums = weights[places].cumsum(0)
    off = (sums[_RUN:] - sums[:-_RUN]) - (places[_RUN:] - places[:-_RUN])
    p = len(places) / len(weights)
    return float(off.square().mean()) > max(_ROUNDING, _SHARE * _RUN * (1 - p) / p**2)
