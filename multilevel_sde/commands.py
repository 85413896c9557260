"""Commands of the core package; `register` adds them to the parser of :mod:`multilevel_sde.cli`."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["register"]


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
    rates.add_argument("--gamma", type=float, default=3.0, help="cost exponent of the ladder (default: 3)")
    rates.add_argument(
        "--levels", type=int, nargs=2, default=(3, 9), metavar=("LOW", "HIGH"), help="the ladders to run (default: 3 9)"
    )
    rates.add_argument("--diffusion", type=float, default=0.5, help="noise of the SDE, 0 for the ODE (default: 0.5)")
    rates.add_argument("--samples", type=int, default=256, help="paths to average over (default: 256)")
    rates.add_argument("--seed", type=int, default=0, help="seed of states, noise and draws (default: 0)")
    rates.add_argument("--out", type=Path, metavar="DIR", help="also write rates.png and rates.json into this folder")
    rates.set_defaults(run=_rates)


def _rates(arguments: argparse.Namespace) -> int:
    from multilevel_sde.rates.study import measure_rates

    result = measure_rates(
        arguments.gamma,
        levels=range(arguments.levels[0], arguments.levels[1] + 1),
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
