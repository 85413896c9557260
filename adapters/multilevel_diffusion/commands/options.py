"""The parser lines that commands share, and what they mean when a command runs.

Nothing heavy is imported before a command runs, so that `--help` answers at once: `register` in each room of this wing
imports argparse and this module only, and the functions that run import the rest.
"""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from multilevel_sde.commands import at_least, file, folder, number

if TYPE_CHECKING:
    import torch

    import multilevel_sde as mls
    from multilevel_diffusion.networks.image_ladders import DiffusionLadder, ImageLadder, OwnLadder
    from multilevel_diffusion.process.reverse_process import Process

__all__ = [
    "add_device",
    "add_guidance",
    "add_ladder",
    "add_mode",
    "add_out",
    "add_price",
    "add_seed",
    "add_threads",
    "as_notes",
    "at_least",
    "duration",
    "file",
    "folder",
    "note",
    "number",
    "own_words",
    "prepare",
    "priced",
    "the_ladder",
    "usual_steps",
]


def add_ladder(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Add --ladder, required where it has no default."""
    text = "folder of a ladder, the name of a shipped one, or module:function that returns an OwnLadder"
    text += "" if default is None else " [%(default)s]"
    parser.add_argument("--ladder", required=default is None, default=default, help=text)


def add_mode(parser: argparse.ArgumentParser) -> None:
    """Add --mode: the keys of `multilevel_diffusion.process.reverse_process.MODES`."""
    parser.add_argument("--mode", choices=["ddpm", "ddim"], default="ddpm", help="reverse SDE or its ODE [%(default)s]")


def add_guidance(parser: argparse.ArgumentParser) -> None:
    """Add --guidance, for ladders that know classes."""
    parser.add_argument("--guidance", type=number(), metavar="SCALE", help="classifier-free guidance; 1 is none, try 2")


def the_ladder(arguments: argparse.Namespace, device: torch.device) -> DiffusionLadder | OwnLadder:
    """Return the ladder that --ladder names, with the guidance of --guidance.

    Raises:
        ValueError: There is no such ladder, or it cannot be guided.

    Example:
        >>> the_ladder(argparse.Namespace(ladder="digits", guidance=None), "cpu").image_shape
        (1, 8, 8)
    """
    from multilevel_diffusion.networks.by_name import open_any
    from multilevel_diffusion.networks.image_ladders import DiffusionLadder

    images = open_any(arguments.ladder, device)
    if arguments.guidance is None:
        return images
    if not isinstance(images, DiffusionLadder):
        raise ValueError('"--guidance" guides networks of a folder; wrap your own ones in Guided, and leave it out')
    if not images.classes:
        raise ValueError(f'"--guidance" needs a ladder that knows classes, {arguments.ladder} knows none; leave it out')
    return images.guided(arguments.guidance)


def own_words(arguments: argparse.Namespace) -> str:
    """Return the options by which a person names the ladder and the mode once more.

    Example:
        >>> own_words(argparse.Namespace(ladder="mine", mode="ddim", guidance=None))
        '--ladder mine --mode ddim'
    """
    guided = "" if arguments.guidance is None else f" --guidance {arguments.guidance:g}"
    return f"--ladder {arguments.ladder} --mode {arguments.mode}{guided}"


def add_price(parser: argparse.ArgumentParser) -> None:
    """Add --price, the unit in which an evaluation of the largest network is counted."""
    parser.add_argument(
        "--price",
        choices=["seconds", "flops"],
        default="seconds",
        help="budgets count evaluations of the largest network by seconds on this device, or by FLOPs [%(default)s]",
    )


def priced(arguments: argparse.Namespace, images: ImageLadder, process: Process, batch: int) -> mls.Ladder:
    """Return the ladder at the prices that --price asks for, those of the first process.

    Arguments:
        arguments: Of the command.
        images: The ladder.
        process: What is solved.
        batch: Images that are computed together.

    Example:
        >>> from multilevel_diffusion import Process, load_ladder, shipped_ladder, uniform
        >>> digits = load_ladder(shipped_ladder("digits"))
        >>> process = Process(digits.schedule, 1.0, uniform(digits.schedule, 10))
        >>> priced(argparse.Namespace(price="flops"), digits, process, 4).unit
        'FLOPs'
    """
    import multilevel_sde as mls
    from multilevel_diffusion.sampling.distributed import gather
    from multilevel_diffusion.sampling.prices import in_seconds

    if arguments.price == "flops":
        return images.ladder
    with as_notes():
        found = in_seconds(images, process, batch)
    costs, unit = gather((found.costs, found.unit))[0]
    return mls.Ladder(images.ladder.drifts, mls.GivenCost(costs, unit))


def add_out(parser: argparse.ArgumentParser, default: str, what: str = "folder of the results") -> None:
    """Add --out, a folder."""
    parser.add_argument("--out", type=folder, default=default, help=f"{what} [%(default)s]")


def add_seed(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --seed, 0 by default."""
    parser.add_argument("--seed", type=int, default=0, help=f"{what} [%(default)s]")


def add_threads(parser: argparse.ArgumentParser, why: str = "1 is fastest for small images") -> None:
    """Add --threads."""
    parser.add_argument("--threads", type=at_least(1), help=f"CPU threads; {why} [torch's default]")


def add_device(parser: argparse.ArgumentParser, what: str = "where the networks run") -> None:
    """Add --device, whose default is known when the command runs: see :func:`prepare`."""
    parser.add_argument("--device", help=f"{what} [cuda where there is one, else cpu]")


def prepare(arguments: argparse.Namespace) -> torch.device:
    """Set the threads that a command was given and return its device.

    Raises:
        ValueError: There is no such device on this machine, or the number of threads is below 1.

    Example:
        >>> prepare(argparse.Namespace(device="cpu", threads=None))
        device(type='cpu')
    """
    import torch

    if arguments.threads is not None:
        if arguments.threads < 1:
            raise ValueError(f'"--threads" must be at least 1, got {arguments.threads}')
        torch.set_num_threads(arguments.threads)
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    known = ["cpu", *(["cuda"] if there else []), *(f"cuda:{index}" for index in range(there))]
    name = arguments.device if arguments.device is not None else "cuda" if there else "cpu"
    if name in known:
        return torch.device(name)
    if name.partition(":")[0] == "cuda":
        found = "no CUDA device" if not there else "one" if there == 1 else f"{there} of them"
        raise ValueError(f'"--device" is {name!r}, but torch finds {found} on this machine; use {known[-1]}')
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(f'"--device" is {name!r}, expected a device of this machine, such as {known[-1]}') from None


def usual_steps(budget: float, cheapest: float, most: int) -> int:
    """Return the steps of a drawn plan: at most 200, on half of the budget at the cheapest level.

    They are no fewer than the budget pays of the largest level, and no more than it pays of the cheapest one.

    Arguments:
        budget: In evaluations of the largest level.
        cheapest: Cost of the cheapest one.
        most: Steps at most.

    Example:
        >>> usual_steps(10.0, 0.05, 1000), usual_steps(9.5, 0.9, 1000), usual_steps(9.5, 1.0, 1000)
        (100, 10, 9)
    """
    paid = math.floor(budget / cheapest * (1 + 1e-9))
    return max(1, min(most, paid, max(math.ceil(budget), min(200, int(budget / (2 * cheapest))))))


def note(text: str) -> None:
    """Say something once, however many processes there are."""
    from multilevel_diffusion.sampling.distributed import place

    if place()[0] == 0:
        print(f"note: {text}", file=sys.stderr)


def duration(seconds: float) -> str:
    """Return a time as a person says it.

    Example:
        >>> duration(1.2), duration(80), duration(100), duration(7200)
        ('a second', '80 seconds', '1.7 minutes', '2 hours')
    """
    for size, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {unit}" if seconds < 9.5 * size else f"{seconds / size:.0f} {unit}"
    return "a second" if seconds < 1.5 else f"{seconds:.0f} seconds"


@contextmanager
def as_notes() -> Iterator[None]:
    """Say warnings as a person reads them, without the line of code that they come from.

    Example:
        >>> with as_notes():
        ...     warnings.warn("this is not used")
    """
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        yield
    for one in seen:
        note(str(one.message))
