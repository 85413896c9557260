"""How fast each level runs in lower precision, compiled and as a CUDA graph, and a solve with that or offloaded levels.

Seconds are of GPU events, warmed up; on a CPU wall-clock time. What is measured is written down after each measurement,
so a run that is stopped goes on where it was.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import multilevel_sde as mls
from benchmarks.common import write_json
from benchmarks.devices.gpu_setup import Deadline, Settings
from multilevel_diffusion import Process, load_ladder, stored_pilot, uniform
from multilevel_diffusion.cheap_levels import half_weights
from multilevel_diffusion.networks import DiffusionLadder
from multilevel_diffusion.process import MODES

__all__ = ["Rows", "measure_levels", "measure_solves", "timed", "variants"]

_ROUNDS = 5  # timed solves of each kind


class Rows:
    """Measurements in a JSON file, each with a name; what is there is not measured again."""

    def __init__(self, path: Path):
        self.path = path
        self.found: list[dict] = json.loads(path.read_bytes()) if path.is_file() else []

    def run(self, todo: Iterator[tuple[dict, Callable[[], dict]]], deadline: Deadline) -> bool:
        """Measure what is missing until the time is over; return whether all is there."""
        names = [row["name"] for row in self.found]
        for name, measure in todo:
            if name in names:
                continue
            if deadline.passed() and len(self.found) > len(names):  # each call gets further
                return False
            self.found.append({"name": name, **measure()})
            write_json(self.path, self.found)
        return True


def timed(
    run: Callable[[], Tensor],
    device: torch.device,
    clock: Callable[[], float] = time.process_time,
    *,
    warm: bool = False,
) -> tuple[Tensor, float]:
    """Return what a run gives and its seconds: on a GPU of events, after a run to warm up unless it is warm already.

    On a CPU seconds are those of the clock, without a warm-up.
    """
    if device.type != "cuda":
        begin = clock()
        value = run()
        return value, clock() - begin
    if not warm:
        run()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    start.record()
    value = run()
    end.record()
    end.synchronize()
    return value, start.elapsed_time(end) / 1000


def _tf32(drift: mls.Drift) -> mls.Drift:
    """Return the drift with its convolutions in TF32, which the rest of the benchmark switches off."""

    def call(x: Tensor, t: Tensor) -> Tensor:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
            return drift(x, t)

    return call


def variants(drift: Any, compiler: str | None, device: torch.device) -> dict[str, Callable[[], mls.Drift]]:
    """Return how a level is evaluated in each way, compiled too with that backend: name -> what makes the drift."""
    ways: dict[str, Callable[[], mls.Drift]] = {
        "float32": lambda: drift,
        "bfloat16 autocast": lambda: mls.Autocast(drift),
        "bfloat16 weights": lambda: half_weights(drift),
    }
    if compiler is not None:
        ways["compiled"] = lambda: replace(drift, net=mls.compiled(drift.net, backend=compiler))
    if device.type == "cuda":
        ways["TF32"] = lambda: _tf32(drift)
        ways["CUDA graph"] = lambda: mls.CudaGraph(drift)
        ways["CUDA graph, bfloat16 weights"] = lambda: mls.CudaGraph(half_weights(drift))
        if compiler is not None:
            half = half_weights(drift)
            ways["CUDA graph, compiled, bfloat16 weights"] = lambda: mls.CudaGraph(
                replace(half, net=mls.compiled(half.net, backend=compiler))
            )
    return ways


@torch.no_grad()
def measure_levels(
    images: DiffusionLadder, settings: Settings, out: Path, device: torch.device, deadline: Deadline
) -> bool:
    """Time every level in every way at every batch size; errors are relative to float32, root mean square."""
    t = torch.tensor(0.5, dtype=torch.float64, device=device)

    def todo() -> Iterator[tuple[dict, Callable[[], dict]]]:
        for level, drift in enumerate(images.denoisers):
            for batch in settings.batches:
                x = mls.seeded_normal(range(batch), images.image_shape, device=device)
                compiler = settings.compiler if batch == settings.batches[len(settings.batches) // 2] else None
                for way, make in variants(drift, compiler, device).items():

                    def measure(drift=drift, x=x, make=make) -> dict:
                        other = make()
                        seconds = mls.SecondsCost(x, calls=settings.calls, warmup=5)([other])[0]
                        exact = drift(x, t)
                        error = float((other(x, t) - exact).double().norm() / exact.double().norm())
                        return {"seconds": seconds, "error": error}

                    yield {"level": level, "batch": batch, "way": way}, measure

    return Rows(out).run(todo(), deadline)


def _solves(folder: Path, settings: Settings, device: torch.device) -> Iterator[tuple[str, Callable[[mls.Plan], Any]]]:
    """Yield ways to run a plan: name, what makes (ladder, offload or None) for the plan.

    Each gets networks of its own from the folder, as offloading takes theirs.
    """

    def every(wrap: Callable[[Any], mls.Drift]) -> Callable[[mls.Plan], Any]:
        def make(plan: mls.Plan) -> Any:
            images = load_ladder(folder, device=device)
            costs = mls.GivenCost(images.ladder.costs, images.ladder.unit)
            return mls.Ladder([wrap(drift) for drift in images.denoisers], costs), None

        return make

    def offloaded(ahead: bool, from_files: bool) -> Callable[[mls.Plan], Any]:
        def make(plan: mls.Plan) -> Any:
            images = load_ladder(folder)
            expensive = range(len(images.networks) - 2, len(images.networks))
            for network in images.networks[: expensive[0]]:
                network.to(device)
            places = {level: folder / images.record["levels"][level]["folder"] for level in expensive}
            files = {level: place / "model.safetensors" for level, place in places.items()} if from_files else None
            networks = {level: images.networks[level] for level in expensive}
            offload = mls.Offload(images.ladder, networks, device=device, files=files)
            return offload.ladder(plan if ahead else None), offload

        return make

    yield "all levels on the device", every(lambda drift: drift)
    yield "bfloat16 weights", every(half_weights)
    if device.type == "cuda":
        yield "CUDA graphs", every(mls.CudaGraph)
        yield "CUDA graphs, bfloat16 weights", every(lambda drift: mls.CudaGraph(half_weights(drift)))
    for place, from_files in (("host memory", False), ("files", True)):
        for when, ahead in (("loaded ahead", True), ("on demand", False)):
            yield f"two most expensive levels in {place}, {when}", offloaded(ahead, from_files)


@torch.no_grad()
def measure_solves(folder: Path, settings: Settings, out: Path, device: torch.device, deadline: Deadline) -> bool:
    """Time the pilot's DDPM plan on one batch in every way, the median of some solves, against the first way."""
    stored = load_ladder(folder)
    pilot = stored_pilot(stored, "ddpm")
    assert pilot is not None
    best = pilot.plan(budget=settings.strip * stored.ladder.costs[-1])
    process = Process(stored.schedule, MODES["ddpm"], uniform(stored.schedule, settings.fine))
    seeds = range(settings.batches[-1])
    start = process.start(seeds, stored.image_shape, device=device)
    reference: list[Tensor] = []

    def solve(ladder: mls.Ladder) -> Tensor:
        return mls.solve(ladder, start, best.times, best.plan, **process.arguments(seeds)).y

    def todo() -> Iterator[tuple[dict, Callable[[], dict]]]:
        for way, make in _solves(folder, settings, device):

            def measure(make=make) -> dict:
                if not reference:
                    reference.append(solve(load_ladder(folder, device=device).ladder))
                ladder, offload = make(best.plan)
                found = [timed(lambda: solve(ladder), device, time.perf_counter) for _ in range(_ROUNDS)]
                row = {
                    "seconds": statistics.median(seconds for _, seconds in found),
                    "error": float((found[-1][0] - reference[0]).double().square().mean()),
                }
                if offload is not None:
                    stats = offload.stats
                    row |= {"loads": stats.loads, "prefetched": stats.prefetched, "waited": stats.waited}
                    row |= {"slot_bytes": offload.slot_bytes, "solves": _ROUNDS * (1 + (device.type == "cuda"))}
                return row

            yield {"way": way, "steps": best.plan.steps, "batch": len(start)}, measure

    return Rows(out).run(todo(), deadline)
