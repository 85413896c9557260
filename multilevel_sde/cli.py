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
from multilevel_sde.errors import NonFiniteError

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
    parser.add_argument("--traceback", action="store_true", help="show the traceback of an error, for a bug report")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.register(subparsers)
    for entry in sorted(entry_points(group="multilevel_sde.commands"), key=lambda entry: entry.name):
        entry.load()(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; a user's error is one sentence on stderr and status 2.

    Example:
        >>> main(["rates", "--gamma", "-1"])  # doctest: +SKIP
        2
    """
    arguments = build_parser().parse_args(argv)
    try:
        return int(arguments.run(arguments) or 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        if arguments.traceback:
            raise
        print(
            f"multilevel-sde {arguments.command}: needs the package {error.name!r}; "
            "install multilevel-sde[plot,diffusion]",
            file=sys.stderr,
        )
        return 2
    except (ValueError, TypeError, OSError, NonFiniteError) as error:
        if arguments.traceback:
            raise
        print(f"multilevel-sde {arguments.command}: {error}", file=sys.stderr)
        return 2
