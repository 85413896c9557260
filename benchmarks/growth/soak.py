"""Does sampling go on for hours in the same memory?

    python benchmarks/growth/soak.py --minutes 60

Runs the command `sample` again and again in this process, each time with other seeds and into a new folder: it loads
the shipped digits and a plan, solves, and writes shards, pages, manifest and record. After each round it measures the
memory that the process holds (RSS). The first fifth of the time is for warming up. Memory is flat if the least of the
last fifth is at most 4 MiB above the least of the second fifth, however many rounds lie between: the least, because an
allocator gives memory back late, while what leaks never comes back. The exit status is 1 where it is not flat.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import torch

from benchmarks.common import machine, write_json
from multilevel_sde import cli

BOUND = 4.0  # MiB
RESULT = Path(__file__).parent / "results" / "soak.json"


def command(*words: str) -> None:
    """Run a command quietly."""
    silence = io.StringIO()
    with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        if cli.main(words) != 0:
            raise RuntimeError(f"{words} failed: {silence.getvalue()}")


def one_round(number: int, plan: str, *, images: int = 32) -> None:
    """Sample images of seeds of their own, and delete what was written."""
    seeds = ["--seed", str(number * images), "--count", str(images), "--batch", "16", "--shard", "16"]
    with tempfile.TemporaryDirectory() as out:
        command("sample", "--ladder", "digits", "--plan", plan, "--threads", "1", *seeds, "--out", out)


def held(seconds: float, work: Callable[[int], None]) -> list[float]:
    """Do work(0), work(1), ... for some seconds, at least ten times, and return the RSS in MiB after each."""
    process, start, sizes = psutil.Process(), time.monotonic(), []
    while len(sizes) < 10 or time.monotonic() - start < seconds:
        work(len(sizes))
        sizes.append(process.memory_info().rss / 2**20)
    return sizes


def growth(sizes: Sequence[float]) -> float:
    """Return by how much the least of the last fifth lies above the least of the second fifth."""
    fifth = len(sizes) // 5
    return min(sizes[-fifth:]) - min(sizes[fifth : 2 * fifth])


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="[%(default)g]")
    parser.add_argument("--save", action="store_true", help=f"write results/{RESULT.name} beside this")
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        plan = f"{folder}/plan.safetensors"
        command("plan", "--ladder", "digits", "--budget", "5", "-o", plan)
        sizes = held(60 * arguments.minutes, lambda number: one_round(number, plan))
    places = [round(part * (len(sizes) - 1) / 10) for part in range(11)]
    print("round  MiB")
    for place in places:
        print(f"{place:5d}  {sizes[place]:.1f}")
    grown = growth(sizes)
    print(f"{len(sizes)} rounds of 32 images in {arguments.minutes:g} minutes; grown by {grown:+.2f} MiB of {BOUND:g}")
    if arguments.save:
        result = {
            "minutes": arguments.minutes,
            "rounds": len(sizes),
            "MiB after round": {str(place): round(sizes[place], 1) for place in places},
            "grown": round(grown, 2),
            "bound": BOUND,
            "machine": machine(),
        }
        write_json(RESULT, result)
    return 0 if grown <= BOUND else 1


if __name__ == "__main__":
    raise SystemExit(main())
