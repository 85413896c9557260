"""The command line: `multilevel-sde COMMAND`, also `python -m multilevel_sde COMMAND`.

Commands come from this package and from every installed package that names a `register(subparsers)` function in the
entry-point group "multilevel_sde.commands"; the diffusion adapter adds its own that way. A command sets
`parser.set_defaults(run=function)`, where function(arguments) returns the exit status.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points

from multilevel_sde import __version__, commands

__all__ = ["build_parser", "main"]

_EPILOG = """examples:
  multilevel-sde demo                                   digits from a shipped ladder, next to Euler-Maruyama
  multilevel-sde rates --gamma 3                        the cost exponents of EM and ML-EM, measured and predicted
  multilevel-sde sample --ladder digits --budget 20     sample a ladder
  multilevel-sde COMMAND --help                         the options of a command
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all registered commands."""
    parser = argparse.ArgumentParser(
        prog="multilevel-sde",
        description="Multilevel solvers for SDEs and ODEs with an expensive drift and cheaper approximations of it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"multilevel-sde {__version__}")
    parser.add_argument("--debug", action="store_true", help="show where an error comes from, for a bug report")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for entry in sorted(entry_points(group="multilevel_sde.commands"), key=lambda entry: entry.name):
        entry.load()(subparsers)
    commands.register(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; an error is one sentence on stderr and status 2, with --debug a traceback.

    Example:
        >>> main(["rates", "--levels", "9", "3"])  # doctest: +SKIP
        2
    """
    arguments = build_parser().parse_args(argv)
    try:
        return int(arguments.run(arguments) or 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, RuntimeError, ArithmeticError, ModuleNotFoundError) as error:
        if arguments.debug:
            raise
        print(f"multilevel-sde {arguments.command}: {_sentence(error)}", file=sys.stderr)
        return 2


def _sentence(error: Exception) -> str:
    """What a person reads: torch's errors go on for many lines after the first."""
    if isinstance(error, ModuleNotFoundError):
        return f"needs the package {error.name!r}; install multilevel-sde[plot,diffusion,forces]"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
