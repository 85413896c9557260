"""Which process from noise to data is solved: the reverse SDE (DDPM), its ODE (DDIM), or one between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import multilevel_sde as mls
from multilevel_diffusion.process.grids import log_snr_uniform, uniform
from multilevel_diffusion.process.noise import coupled_noise
from multilevel_diffusion.process.schedule_base import NoiseSchedule
from multilevel_diffusion.process.steps import ExponentialStep
from multilevel_sde.files import checksum
from multilevel_sde.times import as_times, thinned

__all__ = ["MODES", "Process"]

MODES = {"ddpm": 1.0, "ddim": 0.0}  # the tau of each


@dataclass(frozen=True)
class Process:
    """Which process from noise to data is solved, and the finest grid on which its noise is defined.

    Arguments:
        schedule: The noise schedule.
        tau: 0 for the probability-flow ODE (DDIM), 1 for the reverse SDE (DDPM), anything between.
        fine_times: The finest grid, from noise to data; every grid that is sampled must be part of it, and then sees
            the same noise.

    Raises:
        TypeError: `schedule` is no `NoiseSchedule`, or `tau` no number.
        ValueError: `tau` is negative or not finite; times that do not fall, or are none of the schedule.

    Example:
        >>> from multilevel_diffusion import CosineSchedule, uniform
        >>> process = Process(CosineSchedule(), 1.0, uniform(CosineSchedule(), 1000))
        >>> len(process.grid(50)), process.arguments([1, 2])["diffusion"]
        (51, 1.0)
    """

    schedule: NoiseSchedule
    tau: float
    fine_times: Tensor

    def __post_init__(self) -> None:
        if callable(self.tau):
            raise TypeError('"tau" of a process must be a number; give a function to coupled_noise and the step')
        ExponentialStep(self.schedule, self.tau)  # refuses what is no schedule or tau
        times = as_times(self.fine_times)
        if times[0] < times[-1]:
            raise ValueError(
                f'"fine_times" must fall, from noise to data, got {times[0]:.6g} to {times[-1]:.6g}; flip them'
            )
        for end in (times[0], times[-1]):
            self.schedule.sigma(float(end))  # refuses what lies outside
        object.__setattr__(self, "fine_times", times)

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

    @property
    def mode(self) -> str:
        """Its name in `MODES`, or what its tau is."""
        return next((name for name, tau in MODES.items() if tau == self.tau), f"tau {self.tau:g}")

    @property
    def fine(self) -> int | str:
        """The finest grid: its number of steps where it is uniform in time, else a digest of it."""
        steps = len(self.fine_times) - 1
        times = self.fine_times.detach().cpu().double()
        if torch.equal(times, uniform(self.schedule, steps).double()):
            return steps
        return checksum(["fine"], [times])

    def describe(self) -> dict[str, Any]:
        """Return what is solved, as JSON values.

        Example:
            >>> from multilevel_diffusion import CosineSchedule, uniform
            >>> told = Process(CosineSchedule(), 0.0, uniform(CosineSchedule(), 10)).describe()
            >>> told["mode"], told["fine"]
            ('ddim', 10)
        """
        return {"mode": self.mode, "tau": float(self.tau), "schedule": self.schedule.to_dict(), "fine": self.fine}

    def has(self, times: Tensor) -> bool:
        """Return whether all times are those of the finest grid, in its order from noise to data.

        Example:
            >>> from multilevel_diffusion import CosineSchedule, uniform
            >>> process = Process(CosineSchedule(), 0.0, uniform(CosineSchedule(), 10))
            >>> process.has(process.grid(5)), process.has(uniform(CosineSchedule(), 7))
            (True, False)
        """
        fine, times = self.fine_times.double().cpu(), times.double().cpu()
        return bool(torch.isin(times, fine).all()) and bool((times.diff() < 0).all())

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
