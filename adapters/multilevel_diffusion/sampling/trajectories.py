"""The samples of a fit: where they start, what they are told, and where they should end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import multilevel_sde as mls
from multilevel_diffusion.networks.image_ladders import ImageLadder, labels_in_turn
from multilevel_diffusion.process.reverse_process import Process
from multilevel_diffusion.sampling.samples import batch_for
from multilevel_sde.conditions import Conditions, some_rows

__all__ = ["FIRST_SEED", "Trajectories", "reference"]

FIRST_SEED = 1_000_000  # far from the seeds that anyone samples


@dataclass(frozen=True)
class Trajectories:
    """The samples of a fit.

    Attributes:
        start: The noise that they start from, (B, C, H, W).
        target: Where the largest network ends on the finest grid, (B, C, H, W).
        given: What `solve`, `pilot` and `fit_plan` are given: step, noise and conditions.
    """

    start: Tensor
    target: Tensor
    given: dict[str, Any]

    @classmethod
    def of(
        cls,
        images: ImageLadder,
        process: Process,
        samples: int,
        conditions: Conditions | None = None,
        target: Tensor | None = None,
        *,
        progress: bool = False,
    ) -> Trajectories:
        """Return so many samples, their seeds from 1,000,000 on."""
        seeds = range(FIRST_SEED, FIRST_SEED + samples)
        told = labels_in_turn(images, samples) if conditions is None else conditions
        if target is None:
            target = reference(images, process, seeds, conditions=told, progress=progress)
        start = process.start(seeds, images.image_shape, dtype=images.dtype, device=images.device)
        return cls(start, target, process.arguments(seeds) | {"conditions": told or None})


def reference(
    images: ImageLadder,
    process: Process,
    seeds: range,
    *,
    conditions: Conditions | None = None,
    progress: bool = False,
) -> Tensor:
    """Return where the largest network ends on the finest grid, (B, C, H, W).

    Arguments:
        images: The ladder.
        process: What is solved.
        seeds: One a sample.
        conditions: What the denoisers are told about each sample.
        progress: Show a progress bar.
    """
    plan = mls.em_plan(images.ladder, process.fine_times)
    size, out = min(8, batch_for(images.image_shape)), []
    for first in tqdm(range(0, len(seeds), size), desc="targets", unit="batch", disable=not progress):
        part = seeds[first : first + size]
        start = process.start(part, images.image_shape, dtype=images.dtype, device=images.device)
        told = some_rows(conditions or {}, slice(first, first + size))
        known: dict[str, Any] = process.arguments(part) | {"conditions": told or None, "gradients": False}
        out.append(mls.solve(images.ladder, start, process.fine_times, plan, **known).y)
    return torch.cat(out)
