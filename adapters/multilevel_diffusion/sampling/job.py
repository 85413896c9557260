"""Sampling jobs: which images are to be sampled, down to the last bit.

A :class:`Job` holds everything that the images depend on: ladder, plan, times, process, seeds, which seeds are computed
together, the kind of device, threads, versions. Its digest names it. The seeds are cut into shards
(:mod:`multilevel_diffusion.sampling.shards`), a shard into batches, so that the images of a shard are the same whoever
computes it and when. :mod:`multilevel_diffusion.sampling.job_folder` does so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import multilevel_sde as mls
from multilevel_diffusion.networks.fingerprints import as_bytes
from multilevel_diffusion.networks.image_ladders import ImageLadder
from multilevel_diffusion.process.grids import uniform
from multilevel_diffusion.process.reverse_process import Process
from multilevel_diffusion.sampling.samples import sample
from multilevel_diffusion.sampling.shards import Shard, digest
from multilevel_sde.conditions import as_conditions, some_rows

__all__ = ["Job"]

_OF_SEEDS = ("seeds", "conditions", "cuts")  # what a description says of the seeds


@dataclass(frozen=True)
class Job:
    """Which images are to be sampled, and how.

    Arguments:
        images: The ladder, one of networks or an `OwnLadder`; its device and dtype are those of the job.
        times: The grid, part of the fine one.
        plan: Which level runs when; one draw shared by all images.
        seeds: Consecutive seeds, one an image.
        tau: 1 for the reverse SDE (DDPM), 0 for the ODE (DDIM).
        fine: Steps of the uniform grid on which the noise is defined, or the finest grid of a process of yours.
        batch: Images computed together.
        shard: Images in a file.
        threads: CPU threads with which a process computes; torch's results depend on it.
        conditions: What the denoisers are told about each image, one row a seed, such as {"label": labels}.
        cuts: Seeds at which a shard begins beside the usual ones, where an earlier, shorter job ended.

    Raises:
        ValueError: Seeds that are not consecutive, sizes below 1, a plan with its own draw for each sample, conditions
            that have not one row a seed, or a plan that does not fit the times or the ladder.

    Example:
        >>> from multilevel_diffusion.networks.store import load_ladder, shipped_ladder
        >>> digits = load_ladder(shipped_ladder("digits"))
        >>> times = uniform(digits.schedule, 10)
        >>> job = Job(digits, times, mls.em_plan(digits.ladder, times), range(100), fine=10, batch=8, shard=64)
        >>> [(shard.first, shard.last) for shard in job.shards]
        [(0, 64), (64, 100)]
    """

    images: ImageLadder
    times: Tensor
    plan: mls.Plan
    seeds: range
    tau: float = 1.0
    fine: int | Tensor = 1000
    batch: int = 64
    shard: int = 256
    threads: int = field(default_factory=torch.get_num_threads)
    conditions: Mapping[str, Tensor] | None = None
    cuts: tuple[int, ...] = ()

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
        as_conditions(self.conditions, torch.empty(len(self.seeds), 0))

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.images.device

    @cached_property
    def process(self) -> Process:
        """What is solved."""
        schedule, fine = self.images.schedule, self.fine
        return Process(schedule, self.tau, fine if isinstance(fine, Tensor) else uniform(schedule, fine))

    @cached_property
    def description(self) -> dict[str, Any]:
        """Everything that the images depend on, as JSON values; the ladder and the plan by their SHA-256."""
        return {
            "versions": {"multilevel_sde": mls.__version__, "torch": torch.__version__},
            "ladder": self.images.digest,
            "plan": _plan_digest(self.plan, self.times),
            "tau": float(self.tau),
            "fine": self.process.fine,
            "seeds": [self.seeds.start, self.seeds.stop],
            "batch": self.batch,
            "shard": self.shard,
            "dtype": str(self.images.dtype).removeprefix("torch."),
            "device": self.device.type,
            "threads": self.threads if self.device.type == "cpu" else None,
            **({"conditions": _rows_digest(self.conditions)} if self.conditions else {}),
            **({"cuts": list(self.cuts)} if self.cuts else {}),
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the description, the job's name."""
        return digest(self.description)

    @cached_property
    def series(self) -> str:
        """SHA-256 of all that an image depends on but its seed and its conditions."""
        return digest({key: value for key, value in self.description.items() if key not in _OF_SEEDS})

    @property
    def shards(self) -> list[Shard]:
        """The files to be written, in order of the seeds."""
        ends, found = [self.seeds.start, *self.cuts, self.seeds.stop], []
        for begin, stop in pairwise(ends):
            found += [self._shard(first, min(first + self.shard, stop)) for first in range(begin, stop, self.shard)]
        return found

    def _shard(self, first: int, last: int) -> Shard:
        rows = self._rows(range(first, last))
        return Shard(digest([self.series, _rows_digest(rows)]) if rows else self.series, first, last)

    def _rows(self, seeds: range) -> dict[str, Tensor]:
        """The conditions of some of the seeds."""
        start = self.seeds.start
        return some_rows(self.conditions or {}, slice(seeds.start - start, seeds.stop - start))

    def until(self, stop: int, cuts: tuple[int, ...] = ()) -> Job:
        """Return the job of the first seeds alone.

        Arguments:
            stop: The seed after the last one.
            cuts: As for the job.
        """
        seeds = range(self.seeds.start, stop)
        return replace(self, seeds=seeds, conditions=self._rows(seeds) or None, cuts=cuts)

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
                    conditions=self._rows(seeds), batch=self.batch, dtype=self.images.dtype, device=self.device,
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


def _rows_digest(conditions: Mapping[str, Tensor]) -> dict[str, str]:
    """The SHA-256 of each condition's rows."""
    return {
        name: hashlib.sha256(f"{rows.dtype} {tuple(rows.shape)}".encode() + bytes(as_bytes(rows))).hexdigest()
        for name, rows in sorted(conditions.items())
    }


def _plan_digest(plan: mls.Plan, times: Tensor) -> str:
    parts = [plan.hits, plan.weights, times.double()]
    if plan.recall is not None:
        parts += [plan.recall.places, plan.recall.coefficients]
    content = hashlib.sha256(json.dumps([list(part.shape) for part in parts]).encode())
    for part in parts:
        content.update(as_bytes(part))
    return content.hexdigest()
