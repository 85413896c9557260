"""One table of `bench_pipelines.py`: its networks, what images are compared with, its rows so far."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from benchmarks.common import machine, write_json
from benchmarks.growth.bench_growth import LiveBytes
from benchmarks.pipelines.models import StatePipeline, networks
from multilevel_diffusion.diffusers import MultilevelUNet
from multilevel_diffusion.quality import frechet_distance, psnr, two_sample_classifier
from multilevel_diffusion.quality.comparison import features_of
from multilevel_sde.files import write_atomically

__all__ = ["Bench", "Row"]

BUDGETS = (3, 5, 8, 12, 20, 28)
CALLS, NOISY_CALLS, FINE = 28, 50, 56
SEED, OTHERS = 5000, 100_000  # of the images that are judged, and of those in many steps; calibrations use others
PAIRS, IMAGES = {"digits": 64}, {"digits": 256}  # for the error; for distances of distributions
TRAILING = {"timestep_spacing": "trailing"}
SHIFTED = {"flow_shift": 3.0, "solver_order": 1}  # of flow matching, as `ladder.scheduler` proposes
DIT = Path(__file__).parent / "dit32"
FORMAT, MEASURED = 2, 4


@dataclass(frozen=True)
class Row:
    """How the images of a row are made.

    Attributes:
        run: Makes the first so many images.
        cost: Evaluations of the largest network an image, asked after a run.
        models: What has to be in memory.
        whole: Whether its distribution is compared too.
        same: Whether its noise is that of the target.
        notes: Anything else to keep.
    """

    run: Callable[[int], Tensor]
    cost: Callable[[], float]
    models: Sequence[Any]
    whole: bool = True
    same: bool = True
    notes: Callable[[], dict[str, Any]] = field(default=dict)


class Bench:
    """One ladder in one kind of loop: its networks, its target, its rows so far.

    Arguments:
        name: Of the table: a ladder and `_ode` or `_sde`.
        out: Where rows are kept.
        quick: Few steps and images, to see whether it runs.
        dit: Folder of the transformers.
    """

    def __init__(self, name: str, out: Path, quick: bool = False, dit: Path = DIT):
        ladder, _, loop = name.rpartition("_")
        self.name, self.noisy, self.quick, self.path = name, loop == "sde", quick, out / f"{name}.json"
        self.networks = networks(ladder, dit)
        self.paired, self.images = (2, 8) if quick else (PAIRS.get(ladder, 16), IMAGES.get(ladder, 128))
        kept = json.loads(self.path.read_text()) if self.path.is_file() else {}
        same = [kept.get(name) for name in ("format", "pairs", "images")] == [FORMAT, self.paired, self.images]
        self.rows: dict[str, dict[str, Any]] = kept.get("rows", {}) if same else {}

    def run(self, pipe: StatePipeline, steps: int, count: int, seed: int = SEED) -> Tensor:
        """The first images of the seeds that are judged, in batches."""
        parts = []
        for start in range(seed, seed + count, self.paired):
            torch.manual_seed(start)  # of schedulers that take no generator
            generators = [
                torch.Generator().manual_seed(n) for n in range(start, min(start + self.paired, seed + count))
            ]
            parts.append(pipe(len(generators), generators, steps)[0])
        return torch.cat(parts)

    def stock(self) -> tuple[StatePipeline, int]:
        """The loop that plans run in, and its calls."""
        if self.networks.flow:
            return self.networks.pipe("DPMSolverMultistepScheduler", **SHIFTED), 12 if self.quick else CALLS
        kind, calls = ("DDPMScheduler", NOISY_CALLS) if self.noisy else ("DDIMScheduler", CALLS)
        return self.networks.pipe(kind, clip_sample=False, **TRAILING), 12 if self.quick else calls

    def first_order(self) -> StatePipeline:
        """The same loop for any number of steps: those of DDIM need not end where the next call is."""
        if self.noisy or self.networks.flow:
            return self.stock()[0]
        return self.networks.pipe("DPMSolverMultistepScheduler", solver_order=1, **TRAILING)

    def by_base(self, calls: int, count: int, seed: int) -> Tensor:
        """The largest network by the multistep base, in the loop of the plans."""
        pipe, _ = self.stock()
        one = MultilevelUNet(self.networks.models[-1:], budget_fraction=1.0, costs=[1.0]).install(pipe)
        one.calibrate(pipe, num_inference_steps=calls, progress=False)
        return self.run(pipe, calls, count, seed)

    @cached_property
    def target(self) -> Tensor:
        """What images are compared with, one by one."""
        pipe, calls = self.stock()
        if self.noisy:
            return self._kept("target", lambda: self.by_base(calls, self.paired, SEED))
        if self.networks.flow:
            pipe = self.networks.pipe("FlowMatchEulerDiscreteScheduler", shift=3.0)
        return self._kept("target", lambda: self.run(pipe, 50 if self.quick else 1000, self.paired))

    @cached_property
    def reference(self) -> Tensor:
        """What images are compared with as a set."""
        calls = self.stock()[1] if self.noisy or self.quick else FINE
        return self._kept("reference", lambda: self.by_base(calls, self.images, OTHERS))

    def _kept(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """Images that take long, from an earlier run where one made them."""
        path = self.path.with_name(f"{self.name}_{name}_{self.paired}_{self.images}.safetensors")
        if not path.is_file():
            write_atomically(path, save({"images": make()}))
        return load_file(path)["images"]

    def fits(self, budget: float) -> bool:
        """Whether coefficients are fitted at this budget, which takes as long as hundreds of images."""
        most = 8 if self.name.startswith("dit_") else 20
        return not (self.quick or self.noisy) and budget <= most

    def error(self, images: Tensor) -> float:
        """Mean squared distance to the target."""
        return float((images[: self.paired] - self.target).square().mean())

    def add(self, key: str, make: Callable[[], Row]) -> None:
        """Make a row unless it is there; one of before there were distances, which says "earlier", is made anew."""
        if key in self.rows and "earlier" not in self.rows[key]:
            return
        row = make()
        count = self.images if row.whole else self.paired
        start = time.process_time()
        images = row.run(count)
        kept: dict[str, Any] = {"seconds": (time.process_time() - start) / count, "cost": row.cost(), **row.notes()}
        if row.same:
            pairs = images[: self.paired]
            errors = (pairs - self.target).square().flatten(1).mean(1)
            kept |= {"mse": float(errors.mean()), "median": float(errors.median())}
            kept["psnr"] = float(psnr(pairs, self.target).mean())
        if row.whole:
            kept |= self._distances(images) | {"mib": self._memory(row)}
        self.rows[key] = kept
        heading = {"machine": machine(), "format": FORMAT, "pairs": self.paired, "images": self.images}
        write_json(self.path, {**heading, "rows": self.rows})

    def _distances(self, images: Tensor) -> dict[str, float]:
        features, _, _ = features_of(self.networks.shape)
        with torch.no_grad():
            distance = frechet_distance(features(images), features(self.reference))
        told = two_sample_classifier(images, self.reference, torch.Generator().manual_seed(0))
        return {"frechet": distance, "told_apart": told.estimate}

    def _memory(self, row: Row) -> float:
        weights = sum(x.nbytes for model in row.models for x in model.parameters())
        with LiveBytes() as live:
            row.run(MEASURED)
        return (weights + live.peak) / 2**20
