"""Probabilities of random draws that follow from a pilot's measurements: the shapes, scaled to a budget."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from multilevel_sde.ladder import Ladder
from multilevel_sde.pilots.error_model import ErrorModel
from multilevel_sde.plans.draws import Draw, independent
from multilevel_sde.plans.schedules import scale_to_budget

__all__ = ["tables_within"]


def tables_within(measured: ErrorModel, budget: float, draw: Draw) -> list[Tensor]:
    """Return tables of probabilities (M, K), one for each shape that may suit a draw, whose expected cost is a budget.

    Arguments:
        measured: The measurements.
        budget: In the ladder's unit.
        draw: How hits will be drawn.

    Raises:
        ValueError: The budget cannot be met (see :func:`multilevel_sde.scale_to_budget`).
    """
    ladder = Ladder([_no_drift] * measured.levels, measured.costs)
    pairs = torch.tensor([a + b for a, b in pairwise(measured.costs)], dtype=torch.float64)
    blocks = measured.gram.reshape(measured.levels - 1, measured.rows, measured.levels - 1, measured.rows)
    power = torch.stack([blocks[k, :, k].diagonal() for k in range(measured.levels - 1)], dim=1)
    lag = torch.stack([blocks[k, :, k].diagonal(1) for k in range(measured.levels - 1)], dim=1)
    change = (power[1:] + power[:-1] - 2 * lag).clamp_min(0)
    change = torch.cat([change[:1], change])
    floor = 1e-6 * power.max()
    shapes = [((power + floor) / pairs).sqrt()]
    if draw is not independent:
        shapes += [((change + floor) / pairs).pow(1 / 3), (1 / pairs).expand_as(power)]
    base = torch.ones(measured.rows, 1, dtype=torch.float64)
    return [scale_to_budget(ladder, torch.cat([base, shape], 1), budget, draw) for shape in shapes]


def _no_drift(x: Tensor, t: Tensor) -> Tensor:
    return torch.zeros_like(x)
