"""Commands of the core package, and the types of options that all commands share.

`register` adds the commands to the parser of :mod:`multilevel_sde.cli`. A type checks the value of an option while the
command line is read, so that argparse refuses it by the option's name, with status 2, before anything runs.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["at_least", "file", "folder", "number", "register"]


def at_least(least: int, better: int | None = None) -> Callable[[str], int]:
    """Return the type of whole numbers from a least one.

    Arguments:
        least: The least one.
        better: What the message advises.

    Example:
        >>> at_least(1)("12")
        12
        >>> at_least(2, better=32)("0")
        Traceback (most recent call last):
        ...
        argparse.ArgumentTypeError: must be a whole number of at least 2 (better 32), got '0'
    """
    advice = "" if better is None else f" (better {better})"

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}{advice}, got {text!r}")
        return value

    return read


def number(*, above: float = -math.inf, least: float = -math.inf, most: float = math.inf) -> Callable[[str], float]:
    """Return the type of finite numbers within bounds.

    Arguments:
        above: They are larger than this.
        least: They are at least this.
        most: They are at most this.

    Example:
        >>> number(above=0, most=0.5)("0.05")
        0.05
        >>> number(above=0)("inf")
        Traceback (most recent call last):
        ...
        argparse.ArgumentTypeError: must be a finite number above 0, got 'inf'
    """
    bounds = [f"above {above:g}"] if above > -math.inf else []
    bounds += [f"of at least {least:g}"] if least > -math.inf else []
    bounds += [f"at most {most:g}"] if most < math.inf else []

    wanted = " ".join(["a finite number", *([" and ".join(bounds)] if bounds else [])])

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and above < value and least <= value <= most):
            raise argparse.ArgumentTypeError(f"must be {wanted}, got {text!r}")
        return value

    return read


def folder(text: str) -> Path:
    """Return the path of a folder to be written, which need not be there yet; the type of --out.

    Example:
        >>> folder("new/results")
        PosixPath('new/results')
        >>> folder(__file__)
        Traceback (most recent call last):
        ...
        argparse.ArgumentTypeError: must be a folder, but '...' is a file; give another
    """
    path = Path(text)
    there = next((place for place in (path, *path.parents) if os.path.exists(place)), None)
    if there is not None and not there.is_dir():
        raise argparse.ArgumentTypeError(f"must be a folder, but {str(there)!r} is a file; give another")
    return path


def file(text: str) -> Path:
    """Return the path of a file to be written, whose folder need not be there yet.

    Example:
        >>> file("new/plan.safetensors")
        PosixPath('new/plan.safetensors')
        >>> file("/")
        Traceback (most recent call last):
        ...
        argparse.ArgumentTypeError: must be a file, but '/' is a folder; add a name to it
    """
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"must be a file, but {str(path)!r} is a folder; add a name to it")
    folder(str(path.parent))
    return path


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the command `rates`.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> register(parser.add_subparsers())
        >>> parser.parse_args(["rates", "--gamma", "2.5"]).gamma
        2.5
    """
    rates = subparsers.add_parser(
        "rates",
        help="measure and predict the cost exponents of EM and ML-EM on a problem with known answers",
        description=(
            "Run Euler-Maruyama and multilevel Euler-Maruyama on a ladder whose level k errs by 2^-k at cost "
            "2^(gamma k), and print cost against error: measured, predicted, and the limit of many levels."
        ),
    )
    rates.add_argument(
        "--gamma", type=number(above=0, most=20), default=3.0, help="cost exponent of the ladder (default: 3)"
    )
    rates.add_argument(
        "--levels",
        type=at_least(2),
        nargs=2,
        default=(3, 9),
        metavar=("LOW", "HIGH"),
        help="the ladders to run (default: 3 9)",
    )
    rates.add_argument(
        "--diffusion", type=number(least=0), default=0.5, help="noise of the SDE, 0 for the ODE (default: 0.5)"
    )
    rates.add_argument("--samples", type=at_least(2), default=256, help="paths to average over (default: 256)")
    rates.add_argument("--seed", type=int, default=0, help="seed of states, noise and draws (default: 0)")
    rates.add_argument("--out", type=folder, metavar="DIR", help="also write rates.png and rates.json into this folder")
    rates.set_defaults(run=_rates)


def _rates(arguments: argparse.Namespace) -> int:
    from multilevel_sde.rates.study import measure_rates

    low, high = arguments.levels
    if not low < high <= 9:
        raise ValueError(f'"--levels" must be LOW and HIGH with 2 <= LOW < HIGH <= 9, got {low} {high}; try 3 9')
    result = measure_rates(
        arguments.gamma,
        levels=range(low, high + 1),
        samples=arguments.samples,
        diffusion=arguments.diffusion,
        seed=arguments.seed,
        progress=True,
    )
    print(result.table())
    if arguments.out is not None:
        result.save(arguments.out / "rates.json")
        result.plot(arguments.out / "rates.png")
        print(f"\nwrote {arguments.out / 'rates.json'} and {arguments.out / 'rates.png'}")
    return 0
