"""Sampling jobs: which images are to be sampled, down to the last bit.

A :class:`Job` holds everything that the images depend on: ladder, plan, times, process, seeds, which seeds are computed
together, the kind of device, threads, versions. Its digest names it. The seeds are cut into shards
(:mod:`multilevel_diffusion.sampling.shards`), a shard into batches, so that the images of a shard are the same whoever
computes it and when. :mod:`multilevel_diffusion.sampling.job_folder` does so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import multilevel_sde as mls
from multilevel_diffusion.networks.store import DiffusionLadder
from multilevel_diffusion.process.grids import uniform
from multilevel_diffusion.process.reverse_process import Process
from multilevel_diffusion.sampling.samples import sample
from multilevel_diffusion.sampling.shards import Shard, as_bytes, digest

__all__ = ["Job"]


@dataclass(frozen=True)
class Job:
    """Which images are to be sampled, and how.

    Arguments:
        images: The ladder; its weights' device and dtype are those of the job.
        times: The grid, part of the fine one.
        plan: Which level runs when; one draw shared by all images.
        seeds: Consecutive seeds, one an image.
        tau: 1 for the reverse SDE (DDPM), 0 for the ODE (DDIM).
        fine: Steps of the uniform grid on which the noise is defined.
        batch: Images computed together.
        shard: Images in a file.
        threads: CPU threads with which a process computes; torch's results depend on it.

    Raises:
        ValueError: Seeds that are not consecutive, sizes below 1, a plan with its own draw for each sample, or a plan
            that does not fit the times or the ladder.

    Example:
        >>> from multilevel_diffusion.networks.store import load_ladder, shipped_ladder
        >>> digits = load_ladder(shipped_ladder("digits"))
        >>> times = uniform(digits.schedule, 10)
        >>> job = Job(digits, times, mls.em_plan(digits.ladder, times), range(100), fine=10, batch=8, shard=64)
        >>> [(shard.first, shard.last) for shard in job.shards]
        [(0, 64), (64, 100)]
    """

    images: DiffusionLadder
    times: Tensor
    plan: mls.Plan
    seeds: range
    tau: float = 1.0
    fine: int = 1000
    batch: int = 64
    shard: int = 256
    threads: int = field(default_factory=torch.get_num_threads)

    def __post_init__(self):
        if not isinstance(self.seeds, range) or self.seeds.step != 1 or not self.seeds:
            raise ValueError(f'"seeds" must be a range of at least one consecutive seed, got {self.seeds}')
        for name in ("batch", "shard", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f'"{name}" must be at least 1, got {getattr(self, name)}')
        if self.plan.samples is not None:
            raise ValueError('"plan" has a draw of its own for each sample, a job needs one that all images share')
        if len(self.times) != self.plan.steps + 1:
            raise ValueError(f'"times" must be the {self.plan.steps + 1} times of the plan, got {len(self.times)}')
        self.plan.check_ladder(self.images.ladder)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self._weight.device

    @property
    def _weight(self) -> Tensor:
        return next(self.images.networks[0].parameters())

    @cached_property
    def process(self) -> Process:
        """What is solved."""
        return Process(self.images.schedule, self.tau, uniform(self.images.schedule, self.fine))

    @cached_property
    def description(self) -> dict[str, Any]:
        """Everything that the images depend on, as JSON values; the ladder and the plan by their SHA-256."""
        return {
            "versions": {"multilevel_sde": mls.__version__, "torch": torch.__version__},
            "ladder": _ladder_digest(self.images),
            "plan": _plan_digest(self.plan, self.times),
            "tau": float(self.tau),
            "fine": self.fine,
            "seeds": [self.seeds.start, self.seeds.stop],
            "batch": self.batch,
            "shard": self.shard,
            "dtype": str(self._weight.dtype).removeprefix("torch."),
            "device": self.device.type,
            "threads": self.threads if self.device.type == "cpu" else None,
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the description, the job's name."""
        return digest(self.description)

    @property
    def shards(self) -> list[Shard]:
        """The files to be written, in order of the seeds."""
        stop = self.seeds.stop
        return [Shard(self.digest, first, min(first + self.shard, stop)) for first in self.seeds[:: self.shard]]

    def sample(self, shard: Shard, bar: tqdm | None = None) -> tuple[Tensor, float, str]:
        """Return the images (B, C, H, W) of a shard, the seconds that they took, and the solver's status.

        Arguments:
            shard: One of `shards`.
            bar: A progress bar over images.
        """
        images, seconds, status = [], 0.0, ""
        with _threads(self.threads):
            for first in shard.seeds[:: self.batch]:
                seeds = range(first, min(first + self.batch, shard.last))
                result = sample(
                    self.images.ladder, self.process, self.times, self.plan, seeds, self.images.image_shape,
                    batch=self.batch, dtype=self._weight.dtype, device=self.device,
                )  # fmt: skip
                images.append(result.images)
                seconds, status = seconds + result.seconds, result.status
                if bar is not None:
                    bar.update(len(seeds))
        return torch.cat(images), seconds, status


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _ladder_digest(images: DiffusionLadder) -> str:
    """SHA-256 of what a ladder computes: schedule, clipping, and the networks' shapes and weights."""
    content = hashlib.sha256(json.dumps([images.schedule.to_dict(), images.clip]).encode())
    for network in images.networks:
        content.update(json.dumps(network.config.to_dict()).encode())
        for name, weight in network.state_dict().items():
            content.update(name.encode())
            content.update(as_bytes(weight))
    return content.hexdigest()


def _plan_digest(plan: mls.Plan, times: Tensor) -> str:
    parts = [plan.hits, plan.weights, times.double()]
    if plan.recall is not None:
        parts += [plan.recall.places, plan.recall.coefficients]
    content = hashlib.sha256(json.dumps([list(part.shape) for part in parts]).encode())
    for part in parts:
        content.update(as_bytes(part))
    return content.hexdigest()
