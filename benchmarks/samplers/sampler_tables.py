"""Tables and figure of `bench_samplers.py`, and the names of the methods that others ask for."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

from benchmarks.common import cost_at, table, write_figure

__all__ = ["ALONE", "DRAWN", "EM", "FITTED", "PILOT", "markdown", "plot"]

EM, PILOT, FITTED, ALONE = "EM, uniform", "ML-EM, pilot's plan", "ML-EM, fitted plan", "one network, fitted"
DRAWN = "ML-EM, drawn"
OURS = (  # in the figure
    f"{DRAWN} independently",
    f"{DRAWN} systematically",
    "one level a step, chosen",
    "ML-EM, pilot's plan, impulses",
    PILOT,
    FITTED,
)


def ratios(result: dict, ours: str, unit: str) -> list[str]:
    """Return the speed-up of one of ours: the cost of others at its errors, divided by its own.

    The best single network may be fitted, too; "best unfitted" leaves that one out.
    """
    singles = list(dict.fromkeys(row["method"] for row in result["rows"] if row["single"]))
    rivals = {"EM": [EM], "best unfitted": [name for name in singles if name != ALONE], "best single": singles}
    head = [unit, *(f"{name}, {kind}" for name in rivals for kind in ("mean", "median"))]
    rows = []
    for found in (row for row in result["rows"] if row["method"] == ours):
        cells = [f"{found[unit]:.3g}"]
        for methods, key in product(rivals.values(), ("mse", "median")):
            cost, sign = cost_at(result["rows"], methods, unit, key, found[key])
            cells.append(f"{sign}{cost / found[unit]:.2f}")
        rows.append(cells)
    return table(head, rows)


def markdown(result: dict) -> str:
    """Return the tables of one process."""
    rows, clock = result["rows"], result.get("clock", "CPU seconds")
    budgets = sorted({row["budget"] for row in rows})
    lines = [f"### {result['ladder']}, {result['mode'].upper()}, {result['images']} images", ""]
    lines += [f"Mean squared error / of the median image / {clock} an image at a cost of about:", ""]
    body = []
    for method in dict.fromkeys(row["method"] for row in rows):
        by = {row["budget"]: row for row in rows if row["method"] == method}
        shown = {b: f"{row['mse']:.2g} / {row['median']:.2g} / {row['seconds']:.2g}" for b, row in by.items()}
        body.append([method, *[shown.get(b, "") for b in budgets]])
    lines += [*table(["method", *[f"{b:g}" for b in budgets]], body), ""]
    for ours in (PILOT, FITTED):
        if any(row["method"] == ours for row in rows):
            name = ours.removeprefix("ML-EM, ")
            lines += [f"Speed-up of the {name} over others at equal error, by FLOPs:", ""]
            lines += [*ratios(result, ours, "cost"), "", f"By {clock} an image:", ""]
            lines += [*ratios(result, ours, "seconds"), ""]
    return "\n".join(lines)


def plot(path: Path, results: list[dict], unit: str = "cost") -> None:
    """Write the median image's error against cost in evaluations or in "seconds", one panel a process."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(results), 5), layout="constrained")
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    ours = [name for name in OURS if any(row["method"] == name for result in results for row in result["rows"])]
    for axes, result in zip(panels, results, strict=True):
        curves: dict[str, list[tuple[float, float]]] = {}
        for row in result["rows"]:
            curves.setdefault(row["method"], []).append((row[unit], row["median"]))
        singles = {row["method"] for row in result["rows"] if row["single"]} - {EM, ALONE}
        for place, method in enumerate(sorted(singles)):
            label = "other samplers of the largest network" if place == 0 else None
            axes.loglog(*zip(*curves[method], strict=True), "-", color="0.75", linewidth=1, label=label)
        for method, style in ((EM, "--"), (ALONE, "-s")):
            points = curves.get(method, [(math.nan, math.nan)])
            axes.loglog(*zip(*points, strict=True), style, color="black", linewidth=1.5, ms=4, label=method)
        for place, method in enumerate(ours):
            points = curves.get(method, [(math.nan, math.nan)])
            axes.loglog(*zip(*points, strict=True), "-o", color=f"C{place}", label=method, linewidth=2, ms=4)
        axes.set_title(f"{result['ladder']}, {result['mode'].upper()}, {result['images']} images")
        if unit == "cost":
            axes.set_xlabel("cost in evaluations of the largest network (FLOPs)")
            axes.set_xticks([5, 10, 20, 50, 100], ["5", "10", "20", "50", "100"])
        else:
            axes.set_xlabel(f"{result.get('clock', 'CPU seconds')} an image")
    panels[0].set_ylabel("squared distance to the reference, median image")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    write_figure(path, figure, dpi=110)
