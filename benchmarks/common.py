"""What the benchmarks share: the options, the machine's description, speed-ups at equal error, tables, files."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from multilevel_sde.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["cost_at", "machine", "parser_of", "publish", "table", "write_figure", "write_json"]


def parser_of(script: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser whose `--out` is the folder of results beside the script."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(script).parent / "results", help="[results beside this]")
    return parser


def write_json(path: Path, values: Any) -> None:
    """Write a result."""
    write_atomically(path, (json.dumps(values, indent=1) + "\n").encode())


def write_figure(path: Path, figure: Figure, dpi: int) -> None:
    """Write a figure as PNG."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi)
    write_atomically(path, content.getvalue())


def machine() -> dict:
    """Return what the figures depend on."""
    info = Path("/proc/cpuinfo")
    models = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    load = os.getloadavg()[0]  # of the last minute; the benchmark itself makes 1 of it
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(models),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "shared": "other processes ran at the same time" if load > 1.5 else "no other process ran",
        "load": round(load, 1),
    }


def cost_at(rows: Sequence[Mapping], methods: Sequence[str], unit: str, key: str, error: float) -> tuple[float, str]:
    """Return the least cost at which one of the methods reaches an error (log-log), and a ">" where none does."""
    found, longest = math.inf, 0.0
    for method in methods:
        curve = sorted((row[unit], row[key]) for row in rows if row["method"] == method)
        longest = max([longest, *[cost for cost, _ in curve]])
        if curve and curve[0][1] <= error:
            found = min(found, curve[0][0])
        for (c, e), (d, f) in pairwise(curve):
            if f <= error < e:
                part = (math.log(e) - math.log(error)) / (math.log(e) - math.log(f))
                found = min(found, math.exp(math.log(c) + part * (math.log(d) - math.log(c))))
                break
    return (found, "") if math.isfinite(found) else (longest, "> ")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    names = list(head)
    return [f"| {' | '.join(cells)} |" for cells in (names, ["---"] * len(names), *rows)]


def publish(
    folder: Path, stem: str, names: Iterable[str], markdown: Callable[[dict], str], draw: Callable[[Path, list], None]
) -> None:
    """Write the tables and the figure of all results `stem_NAME.json` that a folder holds, and print the tables."""
    stored = [folder / f"{stem}_{name}.json" for name in names]
    results = [json.loads(path.read_bytes()) for path in stored if path.is_file()]
    if not results:
        raise SystemExit(f"{folder} has no results of {stem}; measure some, or name another folder with --out")
    text = "\n".join(markdown(result) for result in results)
    write_atomically(folder / f"{stem}.md", text.encode())
    draw(folder / f"{stem}.png", results)
    print(text)
