"""What the benchmarks of error against cost share: the machine's description, and costs at equal error."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch

__all__ = ["cost_at", "machine", "table"]


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
