"""Tables and figure of `bench_pipelines.py`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from benchmarks.common import cost_at, table, write_figure
from multilevel_sde.files import write_atomically

__all__ = ["publish"]

PLANS = ("default", "calibrated", "calibrated, seconds", "ladder fitted")
ONE = ("multistep", "fitted")
OTHERS = ("T-Stitch", "SRDiffusion", "FlowBlending", "FirstBlockCache", "TaylorSeer")
BUDGETS = (3, 5, 8, 12, 20, 28)
NAMES = {
    "deadleaves32": "Dead leaves",
    "digits": "Digits",
    "dit_eps": "DiT on emoji, noise",
    "dit_flow": "DiT on emoji, flow",
}
_ACROSS = 3  # panels of the figure in a row
ROWS = ("mse", "psnr", "frechet", "told_apart", "seconds", "mib")
TITLES = {
    "mse": "Mean squared error",
    "psnr": "PSNR to the target in decibels",
    "frechet": "Fréchet distance",
    "told_apart": "How often told apart from images of many steps",
    "seconds": "CPU seconds an image",
    "mib": "Peak memory of a run of four images with its weights, MiB",
}


def rows_of(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows with their method and number of evaluations, apart."""
    rows = []
    for key, row in result["rows"].items():
        method, _, number = key.rpartition(" @ ")
        rows.append(row | {"method": method, "number": int(number)})
    return rows


def methods_of(rows: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> list[str]:
    """The methods of these kinds."""
    return list(dict.fromkeys(row["method"] for row in rows if row["method"].split(":")[0] in kinds))


def least(rows: Sequence[Mapping[str, Any]], methods: Sequence[str], key: str = "mse") -> dict[float, float]:
    """Cost -> least error of some methods at so many evaluations or fewer."""
    found: dict[float, float] = {}
    for row in sorted((row for row in rows if row["method"] in methods), key=lambda row: row["cost"]):
        found[row["cost"]] = min([row[key], *[error for cost, error in found.items() if cost <= row["cost"]]])
    return found


def title(name: str) -> str:
    """What a table is about."""
    ladder, _, loop = name.rpartition("_")
    return f"{NAMES.get(ladder, ladder)}, {loop.upper()}"


def markdown(name: str, result: Mapping[str, Any]) -> list[str]:
    """The tables of one ladder and loop."""
    rows = rows_of(result)
    singles, ones, plans = (methods_of(rows, kinds) for kinds in (["single"], ONE, PLANS))
    lines = [f"### {title(name)}", "", f"{result['pairs']} pairs, {result['images']} images in a set.", ""]
    methods = [*plans, *methods_of(rows, OTHERS), *ones, *methods_of(rows, ["best stock"]), *singles]
    for key in ROWS:
        body = []
        for method in methods:
            by = {row["number"]: row.get(key) for row in rows if row["method"] == method}
            if any(by.get(n) is not None for n in BUDGETS):
                body.append([method, *[_cell(by.get(n), key) for n in BUDGETS]])
        if body:
            floor = next((row[key] for row in rows if row["method"] == "fine" and key in row), None)
            said = (
                f" (many steps: {_cell(floor, key)})" if floor is not None and key in ("frechet", "told_apart") else ""
            )
            lines += [f"{TITLES[key]}{said}:", "", *table(["", *map(str, BUDGETS)], body), ""]
    if any("mse" in row for row in rows if row["method"] in singles):
        lines += _at_equal_error(rows, singles, ones, plans)
    return lines


def _at_equal_error(rows: list[dict[str, Any]], singles: list[str], ones: list[str], plans: list[str]) -> list[str]:
    body = []
    for method in [*plans, *ones]:
        for row in (row for row in rows if row["method"] == method and row["number"] in BUDGETS):
            cells = [f"{method} @ {row['number']}", f"{row['cost']:.3g}", f"{row['mse']:.2g}"]
            for unit in [unit for unit in ("cost", "seconds") if unit in row]:
                for rivals in (singles, [one for one in ones if one.startswith("fitted")]):
                    cost, sign = cost_at(rows, rivals, unit, "mse", row["mse"])
                    cells.append(f"{sign}{cost / row[unit]:.2f}")
            body.append(cells + [""] * (7 - len(cells)))
    head = ["", "cost", "error", "stock, evaluations", "fitted, evaluations", "stock, seconds", "fitted, seconds"]
    said = "What the best stock scheduler and the best fitted network cost at a row's error, over the row's cost:"
    return [said, "", *table(head, body), ""]


def _cell(value: float | None, key: str) -> str:
    if value is None:
        return ""
    return f"{value:.2g}" if key in ("mse", "seconds") else f"{value:.3g}"


def publish(folder: Path) -> None:
    """Write tables and figure of all results in a folder, and print the tables."""
    found = {path.stem: json.loads(path.read_bytes()) for path in sorted(folder.glob("*_*de.json"))}
    results = {name: result for name, result in found.items() if "pairs" in result}  # of the present format
    lines = list(chain.from_iterable(markdown(name, result) for name, result in results.items()))
    write_atomically(folder / "pipelines.md", ("\n".join(lines) + "\n").encode())
    print("\n".join(lines))
    drawn = {name: rows_of(result) for name, result in results.items()}
    drawn = {name: rows for name, rows in drawn.items() if methods_of(rows, ["single"])}
    if not drawn:
        return
    across = min(len(drawn), _ACROSS)
    down = -(-len(drawn) // across)
    figure, axes = plt.subplots(down, across, figsize=(5.0 * across, 4.2 * down), squeeze=False)
    for axis, (name, rows) in zip(axes.flat, drawn.items(), strict=False):
        _draw(axis, name, rows)
    for axis in axes.flat[len(drawn) :]:
        axis.set_axis_off()
    axes[0][-1].legend(fontsize=8, loc="upper right")
    figure.tight_layout()
    write_figure(folder / "pipelines.png", figure, 110)


def _draw(axis: Any, name: str, rows: list[dict[str, Any]]) -> None:
    """The errors of an ODE, the Frechet distances of an SDE."""
    key = "mse" if name.endswith("_ode") else "frechet"
    kinds = {
        "one network, best stock scheduler": ["single"], "one network, multistep base": ["multistep"],
        "one network, fitted": ["fitted"], "ladder, not measured": ["default"],
        "ladder, calibrated": ["calibrated"], "ladder, fitted": ["ladder fitted"],
    }  # fmt: skip
    for place, (label, kind) in enumerate(kinds.items()):
        shown = [row for row in rows if row["method"].split(":")[0] in kind and row.get(key) is not None]
        plans = {row["cost"]: row[key] for row in shown}
        curve = plans if kind[0] in PLANS else least(shown, methods_of(shown, kind), key)
        style = "--" if "network" in label else "-"
        axis.plot(list(curve), list(curve.values()), style, marker="o", ms=4, color=f"C{place}", label=label)
    axis.set(xscale="log", yscale="log", xlabel="evaluations", title=title(name), ylabel=TITLES[key].split(",")[0])
    axis.set_xticks([3, 5, 8, 12, 20, 28, 40], ["3", "5", "8", "12", "20", "28", "40"])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
