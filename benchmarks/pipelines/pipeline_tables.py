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

PLANS = ("default", "calibrated", "ladder fitted")
ONE = ("multistep", "fitted")
CHOICES = ("T-Stitch", "SRDiffusion", "FlowBlending")
BUDGETS = (3, 5, 8, 12, 20)


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


def markdown(name: str, result: Mapping[str, Any]) -> list[str]:
    """The tables of one ladder and loop."""
    rows = rows_of(result)
    singles, ones, plans = (methods_of(rows, kinds) for kinds in (["single"], ONE, PLANS))
    lines = [f"### {name.replace('_', ', ')}, {result['samples']} images", ""]
    body = []
    for method in [*plans, *methods_of(rows, CHOICES), *ones, *singles]:
        by = {row["number"]: row for row in rows if row["method"] == method}
        body.append([method, *[_cell(by.get(n)) for n in BUDGETS]])
    lines += [
        "Mean squared error / of the median image / CPU seconds an image, by evaluations:",
        "",
    ]
    lines += [*table(["", *map(str, BUDGETS)], body), ""]
    if singles:
        lines += [
            "What the best stock scheduler and the best fitted network cost at a row's error, over the row's cost:",
            "",
        ]
        body = []
        for method in [*plans, *ones]:
            for row in (row for row in rows if row["method"] == method and row["number"] in BUDGETS):
                cells = [f"{method} @ {row['number']}", f"{row['cost']:.3g}", f"{row['mse']:.2g}"]
                for unit in ("cost", "seconds"):
                    for rivals in (singles, [one for one in ones if one.startswith("fitted")]):
                        cost, sign = cost_at(rows, rivals, unit, "mse", row["mse"])
                        cells.append(f"{sign}{cost / row[unit]:.2f}")
                body.append(cells)
        head = ["", "cost", "error", "stock, evaluations", "fitted, evaluations", "stock, seconds", "fitted, seconds"]
        lines += [*table(head, body), ""]
    return lines


def _cell(row: Mapping[str, Any] | None) -> str:
    return "" if row is None else f"{row['mse']:.2g} / {row['median']:.2g} / {row['seconds']:.2g}"


def publish(folder: Path) -> None:
    """Write tables and figure of all results in a folder, and print the tables."""
    results = {path.stem: json.loads(path.read_bytes()) for path in sorted(folder.glob("*_*de.json"))}
    lines = list(chain.from_iterable(markdown(name, result) for name, result in results.items()))
    write_atomically(folder / "pipelines.md", ("\n".join(lines) + "\n").encode())
    ode = [name for name in results if name.endswith("_ode")]
    figure, axes = plt.subplots(1, len(ode), figsize=(5.2 * len(ode), 4.0), squeeze=False)
    for axis, name in zip(axes[0], ode, strict=True):
        rows = rows_of(results[name])
        kinds = {
            "one network, best stock scheduler": ["single"], "one network, multistep base": ["multistep"],
            "one network, fitted": ["fitted"], "ladder, not measured": ["default"],
            "ladder, calibrated": ["calibrated"], "ladder, fitted": ["ladder fitted"],
        }  # fmt: skip
        for place, (label, kind) in enumerate(kinds.items()):
            methods = methods_of(rows, kind)
            plans = {row["cost"]: row["mse"] for row in rows if row["method"] in methods}
            curve = plans if kind[0] in PLANS else least(rows, methods)
            style = "--" if "network" in label else "-"
            axis.plot(list(curve), list(curve.values()), style, marker="o", ms=4, color=f"C{place}", label=label)
        axis.set(
            xscale="log", yscale="log", xlabel="evaluations of the largest network", title=name.removesuffix("_ode")
        )
        axis.set_xticks([3, 5, 8, 12, 20, 28, 40], ["3", "5", "8", "12", "20", "28", "40"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("mean squared error to DDIM with 1,000 steps")
    axes[0][-1].legend(fontsize=8, loc="upper right")
    figure.tight_layout()
    write_figure(folder / "pipelines.png", figure, 120)
    print("\n".join(lines))
