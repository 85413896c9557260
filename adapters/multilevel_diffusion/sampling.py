"""Sampling a ladder of denoisers, one seed an image.

The image of a seed does not depend on the batch it is computed in: the starting noise and the path of the SDE come from
the seed alone, and the plan is shared. (Networks themselves may round differently at another batch size.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

import multilevel_sde as mls
from multilevel_diffusion.grids import log_snr_uniform
from multilevel_diffusion.noise import coupled_noise
from multilevel_diffusion.schedules import NoiseSchedule
from multilevel_diffusion.steps import ExponentialStep
from multilevel_diffusion.store import DiffusionLadder
from multilevel_sde.times import thinned

__all__ = ["MODES", "Process", "Samples", "batch_for", "sample", "stored_pilot"]

MODES = {"ddpm": 1.0, "ddim": 0.0}  # the tau of each


@dataclass(frozen=True)
class Process:
    """Which process from noise to data is solved, and the finest grid on which its noise is defined.

    Arguments:
        schedule: The noise schedule.
        tau: 0 for the probability-flow ODE (DDIM), 1 for the reverse SDE (DDPM), anything between.
        fine_times: The finest grid; every grid that is sampled must be part of it, and then sees the same noise.

    Example:
        >>> from multilevel_diffusion import CosineSchedule, uniform
        >>> process = Process(CosineSchedule(), 1.0, uniform(CosineSchedule(), 1000))
        >>> len(process.grid(50)), process.arguments([1, 2])["diffusion"]
        (51, 1.0)
    """

    schedule: NoiseSchedule
    tau: float
    fine_times: Tensor

    def grid(self, steps: int) -> Tensor:
        """Return about equally spaced steps of the finest grid, float64 (steps + 1,).

        Raises:
            ValueError: More steps than the finest grid has, or fewer than one.
        """
        finest = len(self.fine_times) - 1
        if not 1 <= steps <= finest:
            raise ValueError(f'"steps" must lie between 1 and {finest} (the finest grid), got {steps}')
        return self.fine_times[thinned(finest, steps)]

    def log_snr_grid(self, steps: int, *, lowest: float = -5.1) -> Tensor:
        """Return steps of the finest grid about uniform in log-SNR, float64 (steps + 1,).

        Arguments:
            steps: How many.
            lowest: Log-SNR of the second time; what diffusers advises for the cosine schedule, below which steps would
                be spent on pure noise.

        Raises:
            ValueError: The finest grid has not so many distinct times in log-SNR.
        """
        for asked in range(max(2, steps), 100 * steps):
            wanted = log_snr_uniform(self.schedule, asked, start=float(self.schedule.time(lowest)))
            wanted[0] = self.fine_times[0]
            index = (self.fine_times[None] - wanted[:, None]).abs().argmin(1).unique()
            if len(index) > steps:
                return torch.cat([self.fine_times[index[:steps]], self.fine_times[-1:]])
        raise ValueError(f'"steps" is {steps}: the finest grid has not so many distinct times in log-SNR')

    def start(self, seeds: Sequence[int], shape: Sequence[int], **kind: torch.dtype | torch.device | str) -> Tensor:
        """Return the noise that the images of these seeds start from, (B, *shape)."""
        return mls.seeded_normal(seeds, shape, **kind) * self.schedule.sigma(float(self.fine_times[0]))  # type: ignore[arg-type]

    def arguments(self, seeds: Sequence[int]) -> dict:
        """Return the arguments `step`, `diffusion` and `brownian` of `multilevel_sde.solve` for these seeds."""
        step = ExponentialStep(self.schedule, self.tau)
        if self.tau == 0:
            return {"step": step, "diffusion": None, "brownian": None}
        noise = coupled_noise(self.schedule, seeds, self.fine_times, self.tau)
        return {"step": step, "diffusion": 1.0, "brownian": noise}


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
    batch: int = 64,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    progress: bool = False,
    label: str = "sampling",
) -> Samples:
    """Sample one image per seed, in batches.

    Arguments:
        ladder: Denoisers (x_t, t) -> x_0.
        process: What is solved.
        times: A grid of the process.
        plan: Which level runs when.
        seeds: One integer per image.
        shape: (C, H, W).
        batch: Images at a time.
        dtype: Dtype of the state.
        device: Where the networks are.
        progress: Show a progress bar over all images.
        label: Its text.

    Raises:
        ValueError: No seeds, a batch below 1, or arguments that do not fit (see `multilevel_sde.solve`).

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
    images, seconds, solution = [], 0.0, None
    with tqdm(total=len(seeds), desc=label, unit="image", disable=not progress) as bar:
        for first in range(0, len(seeds), batch):
            part = seeds[first : first + batch]
            x = process.start(part, shape, dtype=dtype, device=device)
            solution = mls.solve(ladder, x, times, plan, gradients=False, **process.arguments(part))
            images.append(solution.y)
            seconds += solution.stats.seconds
            bar.update(len(part))
    assert solution is not None
    return Samples(torch.cat(images), solution.stats.evaluations, solution.stats.cost, seconds, solution.status)


def batch_for(shape: Sequence[int], states: int = 1 << 22) -> int:
    """Return how many images to compute at a time, so that a state has about `states` numbers at most."""
    return max(1, min(256, states // math.prod(shape)))


def stored_pilot(ladder: DiffusionLadder, mode: str) -> mls.Pilot | None:
    """Return the pilot that lies in a ladder's folder for a mode ("ddpm" or "ddim"), or None.

    Example:
        >>> from multilevel_diffusion.store import load_ladder, shipped_ladder
        >>> stored_pilot(load_ladder(shipped_ladder("digits")), "ddpm").steps
        100
    """
    if ladder.folder is None or not (ladder.folder / f"pilot_{mode}.safetensors").is_file():
        return None
    return mls.Pilot.load(ladder.folder / f"pilot_{mode}.safetensors")
