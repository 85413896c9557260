"""Which process from noise to data is solved: the reverse SDE (DDPM), its ODE (DDIM), or one between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import multilevel_sde as mls
from multilevel_diffusion.process.grids import log_snr_uniform
from multilevel_diffusion.process.noise import coupled_noise
from multilevel_diffusion.process.schedule_base import NoiseSchedule
from multilevel_diffusion.process.steps import ExponentialStep
from multilevel_sde.times import thinned

__all__ = ["MODES", "Process"]

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
