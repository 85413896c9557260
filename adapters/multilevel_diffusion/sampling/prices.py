"""What the levels of a ladder cost on this device, in seconds of one image, measured once and kept beside the ladder.

Plans are made for a price. FLOPs are the same everywhere; seconds are what people pay, and the small networks of a
ladder take more of them than their FLOPs say. They depend on the device, on how many images are computed together and
on the version of torch, by which `prices.json` in the folder of the ladder tells its entries apart. Images depend on a
plan alone, whatever it was made by: kept in a file, it gives the same ones anywhere.
"""

from __future__ import annotations

import json
import platform
import warnings
from pathlib import Path
from typing import Any

import torch

import multilevel_sde as mls
from multilevel_diffusion.networks.image_ladders import ImageLadder, labels_in_turn
from multilevel_diffusion.process.reverse_process import Process
from multilevel_sde.cost import rising
from multilevel_sde.files import write_atomically

__all__ = ["PRICES", "in_seconds"]

PRICES = "prices.json"
_STEPS, _OF = 2, 50  # steps that are timed, of a grid of so many
_SCATTER = 1.5  # ratio of a level's two fastest measurements from which on the clock is not trusted
_TRIES = 4  # measurements at most
_KEPT = 64  # entries of a file
_LEAST = 1e-12  # seconds of an image that a clock can say


def in_seconds(images: ImageLadder, process: Process, batch: int) -> mls.Ladder:
    """Return the ladder with the seconds of one image on this device as costs.

    They are those of :class:`multilevel_sde.StepSecondsCost`: of a step with one level alone, with noise and update. A
    level that is slower than a more accurate one makes that one as expensive as itself, so that no plan uses it.

    Arguments:
        images: The ladder, one of networks or an `OwnLadder`.
        process: What is solved.
        batch: Images that are computed together.

    Warns:
        UserWarning: The two fastest of four measurements of a level differ by half or more; costs are then those of
            `images.ladder`.

    Example:
        >>> from multilevel_diffusion import CosineSchedule, DataDenoiser, OwnLadder, uniform
        >>> schedule, layers = CosineSchedule(), [torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)]
        >>> levels = [DataDenoiser(lambda x, t, layer=layer: layer(x), schedule) for layer in layers]
        >>> own = OwnLadder(mls.Ladder(levels, [1.0, 2.0]), schedule, (1, 8, 8))
        >>> with warnings.catch_warnings(action="ignore"):
        ...     len(in_seconds(own, Process(schedule, 0.0, uniform(schedule, 10)), 4))
        2
    """
    about = {
        "ladder": images.digest,
        "tau": process.tau,
        "device": _name(images.device),
        "threads": torch.get_num_threads() if images.device.type == "cpu" else None,
        "dtype": str(images.dtype).removeprefix("torch."),
        "batch": batch,
        "torch": torch.__version__,
    }
    path = None if images.folder is None else images.folder / PRICES
    known = _read(path)
    mine = [one for one in known if {**one, "seconds": None} == {**about, "seconds": None}]
    seconds = next((one["seconds"] for one in mine if _are_prices(one["seconds"], len(images.ladder))), None)
    if seconds is None:
        seconds = _measured(images, process, batch)
        if seconds is None:
            return images.ladder
        _write(path, [*(one for one in known if one not in mine), {**about, "seconds": seconds}][-_KEPT:])
    return mls.Ladder(images.ladder.drifts, mls.GivenCost(rising(seconds), "seconds"))


def _measured(images: ImageLadder, process: Process, batch: int) -> list[float] | None:
    seeds = range(batch)
    steps = min(_OF, len(process.fine_times) - 1)
    times = process.grid(steps)[: 1 + min(_STEPS, steps)]
    start = process.start(seeds, images.image_shape, dtype=images.dtype, device=images.device)
    arguments = process.arguments(seeds) | {"conditions": labels_in_turn(images, batch) or None}
    cost = mls.StepSecondsCost(start, times, calls=2, arguments=arguments)
    found: list[list[float]] = []
    for most in range(2, _TRIES + 1):
        while len(found) < most:
            found.append(cost(images.ladder.drifts))
        pairs = [sorted(seconds)[:2] for seconds in zip(*found, strict=True)]
        if all(slower <= _SCATTER * faster for faster, slower in pairs):
            return [faster / batch for faster, _ in pairs]
    level, (faster, slower) = max(enumerate(pairs, start=1), key=lambda one: one[1][1] / one[1][0])
    warnings.warn(
        f"a step of level {level} took {1e3 * faster:.3g} ms and then {1e3 * slower:.3g} ms, so seconds are not to be "
        f"trusted now, and costs are {images.ladder.unit}; run it again when the machine is quiet",
        stacklevel=3,
    )
    return None


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {platform.machine()} {platform.node()}"


def _read(path: Path | None) -> list[dict[str, Any]]:
    """The entries of a file; none where there is no such file, or it is not what this module writes."""
    try:
        entries = [] if path is None else json.loads(path.read_bytes())
        return [dict(one) for one in entries if "seconds" in one]
    except (OSError, ValueError, TypeError, RecursionError):
        return []


def _are_prices(seconds: Any, levels: int) -> bool:
    """Whether they are what was measured of so many levels, and not what a damaged file says."""
    numbers = isinstance(seconds, list) and all(isinstance(one, float) and _LEAST < one < 1 / _LEAST for one in seconds)
    return numbers and len(seconds) == levels


def _write(path: Path | None, entries: list[dict[str, Any]]) -> None:
    if path is None:
        return
    try:
        write_atomically(path, (json.dumps(entries, indent=1) + "\n").encode())
    except OSError:
        return  # a folder that cannot be written: measured again the next time
