"""Sampling a ladder of denoisers, one seed an image.

The image of a seed does not depend on the batch it is computed in: the starting noise and the path of the SDE come from
the seed alone, and the plan is shared. (Networks themselves may round differently at another batch size.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import multilevel_sde as mls
from multilevel_diffusion.process.reverse_process import Process
from multilevel_sde.conditions import Conditions, as_conditions, some_rows

__all__ = ["Samples", "batch_for", "sample"]


@dataclass(frozen=True)
class Samples:
    """Images and what they took.

    Attributes:
        images: (B, C, H, W).
        evaluations: How often a trajectory evaluated each level, (K,).
        cost: Cost of one image in the ladder's unit.
        seconds: Wall-clock time of all.
        status: The solver's.
    """

    images: Tensor
    evaluations: Tensor
    cost: float
    seconds: float
    status: str


def sample(
    ladder: mls.Ladder,
    process: Process,
    times: Tensor,
    plan: mls.Plan,
    seeds: Sequence[int],
    shape: Sequence[int],
    *,
    conditions: Conditions | None = None,
    batch: int = 64,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    progress: bool = False,
    label: str = "sampling",
) -> Samples:
    """Sample one image per seed, in batches.

    No graph is kept. Loaded networks make none either; call `requires_grad_(False)` on your own, whose calls else each
    make one and drop it.

    Arguments:
        ladder: Denoisers (x_t, t) -> x_0, or (x_t, t, **conditions) -> x_0.
        process: What is solved.
        times: A grid of the process.
        plan: Which level runs when.
        seeds: One integer per image.
        shape: (C, H, W).
        conditions: What the denoisers are told about each image: tensors by name, one row an image, such as
            {"label": labels}. The image of a seed and its row does not depend on the others.
        batch: Images at a time.
        dtype: Dtype of the state.
        device: Where the networks are.
        progress: Show a progress bar over all images.
        label: Its text.

    Raises:
        ValueError: No seeds, a batch below 1, conditions that have not one row an image, or arguments that do not fit
            (see `multilevel_sde.solve`).

    Example:
        >>> from multilevel_diffusion import CosineSchedule, uniform
        >>> schedule = CosineSchedule()
        >>> process = Process(schedule, 0.0, uniform(schedule, 10))
        >>> ladder = mls.Ladder([lambda x, t: 0 * x], costs=[1.0])
        >>> times = process.grid(5)
        >>> sample(ladder, process, times, mls.em_plan(ladder, times), range(3), (1, 4, 4), batch=2).images.shape
        torch.Size([3, 1, 4, 4])
    """
    seeds = list(seeds)
    if not seeds or batch < 1:
        raise ValueError(f'"seeds" must not be empty and "batch" at least 1, got {len(seeds)} seeds and batch {batch}')
    rows = as_conditions(conditions, torch.empty(len(seeds), 0))
    images, seconds, solution = [], 0.0, None
    with tqdm(total=len(seeds), desc=label, unit="image", disable=not progress) as bar:
        for first in range(0, len(seeds), batch):
            part = seeds[first : first + batch]
            x = process.start(part, shape, dtype=dtype, device=device)
            told = {name: value.to(device) for name, value in some_rows(rows, slice(first, first + batch)).items()}
            known: dict[str, Any] = process.arguments(part) | {"conditions": told or None, "gradients": False}
            solution = mls.solve(ladder, x, times, plan, **known)
            images.append(solution.y)
            seconds += solution.stats.seconds
            bar.update(len(part))
    assert solution is not None
    return Samples(torch.cat(images), solution.stats.evaluations, solution.stats.cost, seconds, solution.status)


def batch_for(shape: Sequence[int], states: int = 1 << 22) -> int:
    """Return how many images to compute at a time, so that a state has about `states` numbers at most."""
    return max(1, min(256, states // math.prod(shape)))
