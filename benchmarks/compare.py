"""What moved between two result files of the same benchmark, beyond noise?

Reads the JSON that the scripts here write and that of pytest-benchmark (`--benchmark-save`, `--benchmark-json`). Rows
are paired by what names them (texts, truths, and settings such as `steps` or `budget`); every other number is compared.
Smaller is better for all of them: times, errors, costs, memory.

A number has moved where the two intervals do not overlap *and* the ratio is beyond the threshold. The interval is from
`x_low` to `x_high` (or the quartiles, for pytest-benchmark) where they are recorded; an `mse` has twice its
`standard_error` on both sides; any other number has no interval, and the threshold decides alone.

    python benchmarks/compare.py OLD.json NEW.json
    python benchmarks/compare.py OLD.json NEW.json --threshold 0.2 --only ratio

The exit code is 1 where something got worse, 2 where the files cannot be compared.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import table

SETTINGS = frozenset(
    {"batch", "budget", "budget_fraction", "elements", "evaluations", "images", "levels", "period", "scale", "steps"}
)
NOT_RESULTS = frozenset({"gamma", "machine", "rounds", "samples", "settings", "turns"})
SPREADS = ("_low", "_high")
STANDARD_ERROR = "standard_error"  # of the row's "mse"
Name = tuple[str, ...]


@dataclass(frozen=True)
class Value:
    """A result with the interval that its noise explains; low = high where none is recorded."""

    middle: float
    low: float
    high: float


@dataclass(frozen=True)
class Change:
    """A number in both files.

    Attributes:
        name: What it is, then what names its row.
        old: Before.
        new: After.
        moved: 1 where it got worse beyond noise and threshold, -1 where better, else 0.
    """

    name: Name
    old: Value
    new: Value
    moved: int

    @property
    def size(self) -> float:
        """Relative change."""
        return abs(self.new.middle - self.old.middle) / abs(self.old.middle or 1e-300)


def is_number(value: object) -> bool:
    """Whether it is a number and not a truth."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def results(value: object, names: Name = ()) -> Iterator[tuple[Name, Value]]:
    """Yield all results inside, with the texts, truths, settings and keys above them."""
    if isinstance(value, list):
        for part in value:
            if isinstance(part, dict | list):
                yield from results(part, names)
    if not isinstance(value, Mapping):
        return
    named = {k: v for k, v in value.items() if isinstance(v, str | bool) or (k in SETTINGS and is_number(v))}
    here = (*names, *(v if isinstance(v, str) else f"{k} {v}" for k, v in named.items() if k not in NOT_RESULTS))
    for key, part in value.items():
        if key in NOT_RESULTS:
            continue
        if isinstance(part, Mapping):
            yield from results(part, (*here, key))
        elif isinstance(part, list):
            yield from results(part, here)
        elif is_number(part) and key not in named and key != STANDARD_ERROR and not key.endswith(SPREADS):
            yield (key, *here), interval(key, value)


def interval(key: str, row: Mapping) -> Value:
    """Return a number of a row with its interval."""
    middle = row[key]
    if f"{key}_low" in row and f"{key}_high" in row:
        return Value(middle, row[f"{key}_low"], row[f"{key}_high"])
    error = 2 * row.get(STANDARD_ERROR, 0.0) if key == "mse" else 0.0
    return Value(middle, middle - error, middle + error)


def pytest_results(content: Mapping) -> Iterator[tuple[Name, Value]]:
    """Yield the medians of pytest-benchmark's file, with their quartiles."""
    for found in content["benchmarks"]:
        stats = found["stats"]
        yield ("seconds", found["fullname"]), Value(stats["median"], stats["q1"], stats["q3"])


def read(path: Path) -> dict[Name, Value]:
    """Return the results of a file by name.

    Raises:
        ValueError: The file is not JSON, has no results, or two of one name.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from None
    foreign = isinstance(content, Mapping) and "benchmarks" in content
    found: dict[Name, Value] = {}
    for name, value in pytest_results(content) if foreign else results(content):
        if name in found:
            raise ValueError(f"{path} has two results named {', '.join(name)}; its rows cannot be told apart")
        found[name] = value
    if not found:
        raise ValueError(f"{path} has no results; give a file that a benchmark wrote")
    return found


def compare(old: Mapping[Name, Value], new: Mapping[Name, Value], threshold: float) -> list[Change]:
    """Return what is in both, the largest change first."""
    changes = []
    for name in old.keys() & new.keys():
        a, b, moved = old[name], new[name], 0
        if b.low > a.high and b.middle - a.middle > threshold * abs(a.middle):
            moved = 1
        elif b.high < a.low and a.middle - b.middle > threshold * abs(b.middle):
            moved = -1
        elif math.isnan(b.middle) and not math.isnan(a.middle):
            moved = 1
        changes.append(Change(name, a, b, moved))
    return sorted(changes, key=lambda change: (-change.moved, -change.size, change.name))


def report(changes: list[Change], gone: int, added: int) -> str:
    """Return the table of what moved, and how much did not."""
    moved = [change for change in changes if change.moved]
    body = []
    for change in moved:
        values = [f"{v.middle:.4g} ({v.low:.4g} to {v.high:.4g})" for v in (change.old, change.new)]
        ratio = change.new.middle / (change.old.middle or math.nan)
        body.append(["worse" if change.moved > 0 else "better", ", ".join(change.name), *values, f"{ratio:.2f}"])
    lines = [*table(["", "what", "old", "new", "new/old"], body), ""] if body else []
    worse = sum(change.moved > 0 for change in moved)
    lines.append(
        f"{worse} worse, {len(moved) - worse} better, {len(changes) - len(moved)} within noise or threshold; "
        f"{gone} only in the old file, {added} only in the new one"
    )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Compare, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--threshold", type=float, default=0.1, help="least relative change that counts [0.1]")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these numbers, such as ratio or mse [all]")
    options = parser.parse_args(arguments)
    if not options.threshold >= 0:
        parser.error(f'"--threshold" must be at least 0, got {options.threshold}')
    try:
        old, new = read(options.old), read(options.new)
    except ValueError as error:
        parser.error(str(error))
    if options.only:
        old, new = ({n: v for n, v in side.items() if n[0] in options.only} for side in (old, new))
    if not old.keys() & new.keys():
        parser.error(f"{options.old} and {options.new} have no result in common; give two files of one benchmark")
    changes = compare(old, new, options.threshold)
    print(report(changes, len(old.keys() - new.keys()), len(new.keys() - old.keys())))
    return int(any(change.moved > 0 for change in changes))


if __name__ == "__main__":
    sys.exit(main())
