"""What the GPU benchmark trains and how large it is: the settings, the images, and training in pieces.

The default is a ladder of five UNets for 64x64x3 dead leaves, 12 million to 5.2 thousand million FLOPs an image, meant
for about 25 minutes of one large GPU. `TINY` is the same benchmark at 8x8 with steps by the dozen, for the tests.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor
from tqdm import tqdm

import multilevel_sde as mls
from multilevel_diffusion import CosineSchedule, NoiseSchedule, load_ladder
from multilevel_diffusion.networks import TrainSettings, UNetConfig
from multilevel_diffusion.networks.data import DeadLeaves
from multilevel_diffusion.networks.training_state import Run
from multilevel_diffusion.process import MODES
from multilevel_diffusion.sampling import run_pilot
from multilevel_sde.files import write_atomically

__all__ = ["DEFAULT", "TINY", "Deadline", "Leaves", "Settings", "measure_pilot", "train_level"]


@dataclass(frozen=True)
class Settings:
    """The sizes of everything.

    Arguments:
        configs: The networks, cheapest first.
        training: How each is trained.
        pool: Training images that are rendered; each is seen in eight orientations.
        held_out: Images on which gamma is measured.
        fine: Steps of the reference path.
        pilot_samples: Trajectories of a pilot.
        candidates: Largest number of steps of a pilot's plans for DDPM and for DDIM.
        fits: Budgets of the fitted plans, in evaluations of the largest network.
        fit_samples: Trajectories of a fit.
        fit_steps: Steps of a fit.
        budgets: Budgets of the table of samplers.
        images: Images in it, a multiple of 4.
        strip: Budget of the image strips.
        batches: Batch sizes at which levels are timed; the middle one is also compiled.
        calls: Timed calls of each.
        compiler: Backend of torch.compile.
        schedule: Noise levels.
    """

    configs: Sequence[UNetConfig]
    training: Sequence[TrainSettings]
    pool: int = 4096
    held_out: int = 500
    fine: int = 1000
    pilot_samples: int = 32
    candidates: tuple[int, int] = (100, 56)
    fits: tuple[int, ...] = (5, 8, 12, 20, 35)
    fit_samples: int = 32
    fit_steps: int = 28
    budgets: tuple[int, ...] = (5, 8, 12, 20, 35, 60)
    images: int = 64
    strip: int = 12
    batches: tuple[int, ...] = (1, 16, 64)
    calls: int = 20
    compiler: str = "inductor"
    schedule: NoiseSchedule = field(default_factory=CosineSchedule)

    def to_dict(self) -> dict:
        """Return everything as JSON values."""
        values = {**asdict(self), "schedule": self.schedule.to_dict()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def trained_for(self, share: float) -> Settings:
        """Return the settings with a share of the training steps, at least one checkpoint's."""
        steps = [max(s.checkpoint_every, round(share * s.steps)) for s in self.training]
        return replace(self, training=[replace(s, steps=n) for s, n in zip(self.training, steps, strict=True)])


def _training(steps: int, rate: float) -> TrainSettings:
    return TrainSettings(steps, batch_size=128, learning_rate=rate, log_every=50, checkpoint_every=250)


DEFAULT = Settings(
    configs=[
        UNetConfig(dim, bottom, mid, levels=3, image_size=64)
        for dim, bottom, mid in [(8, 1, 0), (16, 1, 0), (24, 1, 1), (48, 2, 1), (96, 2, 2)]
    ],
    training=[_training(6_000, 2e-3)] * 3 + [_training(5_000, 1e-3), _training(4_000, 7e-4)],
)
TINY = Settings(
    configs=[
        UNetConfig(dim, bottom, mid, levels=1, image_size=8, time_dim=8)
        for dim, bottom, mid in [(4, 1, 0), (8, 1, 0), (8, 1, 1), (16, 1, 1), (24, 1, 1)]
    ],
    training=[TrainSettings(12, batch_size=8, warmup=2, log_every=3, checkpoint_every=3)] * 5,
    pool=16,
    held_out=8,
    fine=24,
    pilot_samples=4,
    candidates=(12, 12),
    fits=(4,),
    fit_samples=8,
    fit_steps=8,
    budgets=(4,),
    images=4,
    strip=4,
    batches=(2,),
    calls=2,
    compiler="eager",
)


class Deadline:
    """When to stop: after so many minutes."""

    def __init__(self, minutes: float):
        self._end = time.monotonic() + 60 * minutes

    def passed(self) -> bool:
        """Whether it is over."""
        return time.monotonic() >= self._end


class Leaves(DeadLeaves):
    """Dead leaves whose pool is kept in a file and, as bytes, on the device that trains.

    The batches are those of `DeadLeaves`, number for number; only where they are put together differs.

    Arguments:
        size: Side of the images.
        pool: Images in the pool.
        file: Where they are kept; rendered if it is missing.
        device: Where batches are made.
    """

    def __init__(self, size: int, pool: int, file: Path, device: torch.device):
        super().__init__(size, pool=pool)
        self._file, self._device = file, device

    @cached_property
    def _pool(self) -> Tensor:
        if not self._file.is_file():
            pool = DeadLeaves(self.image_shape[1], pool=self._count)._pool
            write_atomically(self._file, to_safetensors({"pool": pool}))
        return load_file(self._file)["pool"].to(self._device)

    def render(self) -> None:
        """Have the pool in its file."""
        len(self._pool)

    def batch(self, n: int, generator: torch.Generator) -> Tensor:
        """Return n training images, on the device."""
        chosen = torch.randint(self._count, (n,), generator=generator).to(self._device)
        flips = torch.randint(2, (3, n, 1, 1, 1), generator=generator).bool().to(self._device)
        images = self._pool[chosen].float() / 127.5 - 1
        images = torch.where(flips[0], images.transpose(2, 3), images)
        images = torch.where(flips[1], images.flip(2), images)
        return torch.where(flips[2], images.flip(3), images)


def train_level(
    settings: Settings, level: int, source: Leaves, folder: Path, device: torch.device, deadline: Deadline
) -> bool:
    """Train one network from its last checkpoint on, until it is done or the time is over; return whether it is done.

    On a GPU it trains in bfloat16. A checkpoint is written before the deadline is looked at, so each call gets further.
    """
    config, setting = settings.configs[level], settings.training[level]
    run = Run(config, source, settings.schedule, setting, device)
    checkpoint = folder / "training" / f"level_{level}" / "checkpoint.safetensors"
    if checkpoint.is_file():
        run.restore(checkpoint)
    with tqdm(total=setting.steps, initial=run.step, unit="step", desc=f"train level {level + 1}") as bar:
        while run.step < setting.steps:
            run.advance()
            bar.update()
            if run.step % setting.checkpoint_every == 0 or run.step == setting.steps:
                run.save(checkpoint)
                if deadline.passed():
                    break
    return run.step == setting.steps


def measure_pilot(folder: Path, mode: str, settings: Any, device: torch.device) -> mls.Pilot:
    """Make the pilot of the ladder in a folder, keep it there, and return it.

    `settings` has the sizes `fine`, `pilot_samples` and `candidates`, those of DDPM and of DDIM.
    """
    found = run_pilot(
        load_ladder(folder, device=device),
        mode,
        steps=settings.fine,
        samples=settings.pilot_samples,
        candidates=settings.candidates[MODES[mode] == 0],
        device=str(device),
        progress=True,
    )
    found.save(folder / f"pilot_{mode}.safetensors")
    return found
