"""Relative probabilities scaled until the plans drawn from them cost a budget."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from multilevel_sde.arguments import as_number, as_tensor
from multilevel_sde.ladder import Ladder
from multilevel_sde.plans.drawing import expected_cost
from multilevel_sde.plans.draws import Draw, systematic

__all__ = ["clip", "scale_to_budget"]

_LEAST = 1e-150  # of the largest relative probability: what is below is never drawn, and its square is a number


def clip(shape: Tensor, scale: float) -> Tensor:
    """Return p = min(1, scale shape), float64 (N, K), with 1 on the lowest level and nowhere 0.

    Example:
        >>> clip(torch.tensor([[3.0, 0.2, 0.8]]), 2.0)
        tensor([[1.0000, 0.4000, 1.0000]], dtype=torch.float64)
    """
    table = (scale * shape.double()).clamp(max=1.0)
    table[:, 0] = 1.0
    return table.clamp_min(torch.finfo(torch.float64).tiny)


def scale_to_budget(ladder: Ladder, shape: Tensor, budget: float | None, draw: Draw = systematic) -> Tensor:
    """Scale relative probabilities until the exact expected cost is the budget.

    The cost rises continuously with the scale and only drops where a clipped level makes a cheaper network
    superfluous, so every budget between N evaluations of the lowest and N of the top level is met; of several scales
    the largest one (the smallest variance) is taken.

    Arguments:
        ladder: K levels.
        shape: Relative probabilities, positive, (N, K).
        budget: Expected cost of one trajectory, in the ladder's unit.
        draw: The way of drawing.

    Raises:
        ValueError: The budget is outside the reachable range, which the message names; relative probabilities that are
            not positive, or of another number of levels.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder = mls.Ladder([torch.sin, torch.cos], costs=[1.0, 8.0])
        >>> mls.scale_to_budget(ladder, torch.ones(10, 2), budget=30.0)[0]
        tensor([1.0000, 0.2500], dtype=torch.float64)
    """
    shape = as_tensor("shape", shape).cpu()
    if shape.dim() != 2 or 0 in shape.shape or shape.shape[1] != len(ladder):
        raise ValueError(f'"shape" must be (steps, levels) with {len(ladder)} levels, got {tuple(shape.shape)}')
    steps = len(shape)
    low, high = steps * ladder.costs[0], steps * ladder.costs[-1]
    if budget is not None:
        budget = as_number("budget", budget)
    if budget is None or not low <= budget * (1 + 1e-12) or not budget <= high * (1 + 1e-12):
        raise ValueError(
            f'"budget" must lie between {low:.6g} (every step on the lowest level) and {high:.6g} (every step on the '
            f"top level) {ladder.unit} for {steps} steps, got {budget}; change the budget, the steps or the ladder"
        )
    if len(ladder) == 1 or budget >= high:
        return torch.ones(shape.shape, dtype=torch.float64)
    shape = _relative(shape)
    all_clipped = 1.0 / float(shape[:, 1:].min())
    costs = torch.tensor(ladder.costs, dtype=torch.float64)
    nearly_none = min(1e-6 * low / float((shape[:, 1:] * (costs[1:] + costs[:-1])).sum()), all_clipped)

    def cost(scale: float) -> float:
        return expected_cost(ladder, clip(shape, scale), draw)

    above = all_clipped * (1 + 1e-9)
    ratio = (all_clipped / nearly_none) ** (1 / 200)
    below = above
    while cost(below) > budget and below > nearly_none:
        above, below = below, below / ratio
    for _ in range(80):
        middle = math.sqrt(above) * math.sqrt(below)  # the product alone may overflow
        if cost(middle) > budget:
            above = middle
        else:
            below = middle
    return clip(shape, below)


def _relative(shape: Tensor) -> Tensor:
    """The shape in float64, corrections relative to their largest and none so small that formulas underflow."""
    corrections = shape[:, 1:].double()
    wrong = ~(corrections > 0)
    if bool(wrong.any()):
        step, level = wrong.nonzero()[0].tolist()
        raise ValueError(
            f'"shape" must be positive, got {float(corrections[step, level])} at step {step}, level {level + 2}'
        )
    relative = (corrections / corrections.max()).nan_to_num(1.0).clamp_min(_LEAST)  # NaN: infinity by infinity
    return torch.cat([torch.ones(len(relative), 1, dtype=torch.float64), relative], dim=1)
