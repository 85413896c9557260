"""One short check each of what only a GPU runs: graphs, copies beside computing, one rank of NCCL, no waiting a step.

A check returns "passed" with a figure, or what was wrong; away from a GPU it says that there is none.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor

import multilevel_sde as mls
from multilevel_diffusion import Process, uniform
from multilevel_diffusion.networks.image_ladders import DiffusionLadder

__all__ = ["CHECKS"]

_Check = Callable[[DiffusionLadder, torch.device, int], str]
_STEPS = 20


def _on_gpu(check: _Check) -> _Check:
    @wraps(check)
    def checked(images: DiffusionLadder, device: torch.device, batch: int) -> str:
        return check(images, device, batch) if device.type == "cuda" else "not run: no GPU here"

    return checked


def _state(images: DiffusionLadder, device: torch.device, batch: int) -> tuple[Tensor, Tensor]:
    x = mls.seeded_normal(range(batch), images.image_shape, device=device)
    return x, torch.tensor(0.5, dtype=torch.float64, device=device)


@_on_gpu
@torch.no_grad()
def _graphs(images: DiffusionLadder, device: torch.device, batch: int) -> str:
    """A recorded level gives what the level gives, at other states and times too."""
    for drift in images.denoisers:
        graph = mls.CudaGraph(drift)
        x, t = _state(images, device, batch)
        for shift in (0.0, 0.1):
            expected, found = drift(x + shift, t - shift), graph(x + shift, t - shift)
            if not torch.allclose(expected, found, rtol=1e-4, atol=1e-5):
                return f"differs by {float((expected - found).abs().max()):.2g}"
    return "passed"


@_on_gpu
@torch.no_grad()
def _offload(images: DiffusionLadder, device: torch.device, batch: int) -> str:
    """A solve whose most expensive network waits in host memory gives the same bits."""
    top = len(images.networks) - 1
    process = Process(images.schedule, 0.0, uniform(images.schedule, _STEPS))
    x, _ = _state(images, device, batch)
    plan = mls.em_plan(images.ladder, process.fine_times)
    known = process.arguments(range(batch))
    expected = mls.solve(images.ladder, x, process.fine_times, plan, **known).y
    offload = mls.Offload(images.ladder, {top: images.networks[top].cpu()}, device=device)
    found = mls.solve(offload.ladder(plan), x, process.fine_times, plan, **known).y
    stats = offload.stats
    same = "passed" if torch.equal(expected, found) else f"differs by {float((expected - found).abs().max()):.2g}"
    return f"{same}, {stats.loads} loads, waited {1e3 * stats.waited:.2g} ms"


@_on_gpu
def _nccl(images: DiffusionLadder, device: torch.device, batch: int) -> str:
    """One rank of NCCL starts, and a sum over it is what it was."""
    known = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= {name: value for name, value in known.items() if name not in os.environ}
    torch.distributed.init_process_group("nccl")
    try:
        value = torch.ones(4, device=device)
        torch.distributed.all_reduce(value)
        return "passed" if bool((value == 1).all()) else f"gave {value.tolist()}"
    finally:
        torch.distributed.destroy_process_group()


@_on_gpu
@torch.no_grad()
def _waits(images: DiffusionLadder, device: torch.device, batch: int) -> str:
    """The host waits for the device no more often in twice as many steps."""
    x, _ = _state(images, device, batch)
    counts = []
    for steps in (_STEPS, 2 * _STEPS):
        process = Process(images.schedule, 1.0, uniform(images.schedule, steps))
        plan, known = mls.em_plan(images.ladder, process.fine_times), process.arguments(range(batch))
        mls.solve(images.ladder, x, process.fine_times, plan, **known)
        kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=kinds) as profile:
            mls.solve(images.ladder, x, process.fine_times, plan, **known)
        names = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
        counts.append(sum(event.count for event in profile.key_averages() if event.key in names))
    more = counts[1] - counts[0]
    return f"{'passed' if more <= 1 else f'{more / _STEPS:.2g} a step'}: {counts[0]} waits in {_STEPS} steps"


CHECKS: dict[str, _Check] = {"graphs": _graphs, "offload": _offload, "NCCL": _nccl, "waits": _waits}
"""Name -> check of a ladder on a device at a batch size."""
