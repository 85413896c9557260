"""Tables and figure of `bench_quality.py`."""

from __future__ import annotations

from pathlib import Path

from benchmarks.common import table, write_figure
from benchmarks.samplers.sampler_tables import EM, FITTED, PILOT

__all__ = ["DRAWN_BY_COST", "MEASURES", "REAL", "best_of", "draw_figure", "markdown", "top_alone"]

MEASURES = {
    "frechet": "Fréchet distance of features",
    "sliced": "sliced Wasserstein distance of pixels",
    "told apart": "told apart from real images",
}
REAL, DRAWN_BY_COST = "real images", "ML-EM, p = C/T, systematic"
SHOWN = (EM, PILOT, FITTED, "one level a step, chosen", DRAWN_BY_COST)  # in the figure


def top_alone(steps: int) -> str:
    """Return the name of the largest network with many steps."""
    return f"the top, {steps} steps"


def is_single(method: str) -> bool:
    """Whether a method takes other samplers of the largest network alone."""
    return method.startswith(("DPM++", "UniPC", "SA-Solver", "forward value"))


def best_of(rows: list[dict], measure: str) -> tuple[dict, set[str]]:
    """Return the best row of a measure, and the methods whose interval reaches down to that row's interval."""
    best = min(rows, key=lambda row: row["measures"][measure]["estimate"])
    bound = best["measures"][measure]["high"]
    return best, {row["method"] for row in rows if row["measures"][measure]["low"] <= bound}


def _cell(found: dict, bold: bool) -> str:
    text = f"{found['estimate']:.3g} ({found['low']:.2g} to {found['high']:.2g})"
    return f"**{text}**" if bold else text


def markdown(result: dict) -> str:
    """Return the tables of one process, one for each measure."""
    ends = [row for row in result["rows"] if row["method"] == REAL or row["method"].startswith("the top")]
    rows = [row for row in result["rows"] if row not in ends]
    budgets = sorted({row["budget"] for row in rows})
    lines = [f"### {result['ladder']}, {result['mode'].upper()}, {result['images']} images", ""]
    lines += ["With 95% intervals; bold: interval meets that of the best of the column.", ""]
    for measure, title in MEASURES.items():
        groups = {b: [row for row in rows if row["budget"] == b] for b in budgets}
        level = {b: best_of(group, measure)[1] for b, group in groups.items()}
        body = []
        for method in sorted({row["method"] for row in rows}):
            cells = {row["budget"]: row["measures"][measure] for row in rows if row["method"] == method}
            body.append([method, *[_cell(cells[b], method in level[b]) if b in cells else "" for b in budgets]])
        for row in sorted(ends, key=lambda row: -row["budget"]):
            body.append([row["method"], _cell(row["measures"][measure], False), *[""] * (len(budgets) - 1)])
        lines += [f"{title[0].upper()}{title[1:]}, at a cost of about:", ""]
        lines += [*table(["method", *[f"{b:g}" for b in budgets]], body), ""]
    halves = ", ".join(f"{MEASURES[name]} {value:.3g}" for name, value in result["halves"].items())
    return "\n".join([*lines, f"Halves of the reference, their bias included: {halves}.", ""])


def draw_figure(path: Path, results: list[dict]) -> None:
    """Write every measure against cost, one column a process."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8 * len(results), 3.4 * len(MEASURES)), layout="constrained")
    panels = figure.subplots(len(MEASURES), len(results), squeeze=False)
    for column, result in enumerate(results):
        for place, (measure, title) in enumerate(MEASURES.items()):
            axes = panels[place][column]
            _panel(axes, result["rows"], measure)
            axes.set_xscale("log")
            axes.set_xlim(4, 42)
            axes.set_xticks([5, 8, 12, 20, 35], ["5", "8", "12", "20", "35"])
            axes.set_xticks([], minor=True)
            if place == 0:
                axes.set_title(f"{result['ladder']}, {result['mode'].upper()}, {result['images']} images")
            if column == 0:
                axes.set_ylabel(title)
        panels[-1][column].set_xlabel("cost in evaluations of the largest network")
    labels = {}
    for axes in panels.flat:
        labels.update({label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)})
    figure.legend(
        labels.values(),
        labels.keys(),
        loc="outside lower center",
        ncols=min(4, 2 * len(results)),
        fontsize=8,
        frameon=False,
    )
    write_figure(path, figure, dpi=90)


def _panel(axes, rows: list[dict], measure: str) -> None:
    """Draw one measure: lines with intervals, the floor as a band, the top network with 1000 steps dashed."""
    for row in rows:
        found = row["measures"][measure]
        if row["method"] == REAL:
            axes.axhspan(found["low"], found["high"], color="0.9", label="real images")
    long = max((row for row in rows if row["method"].startswith("the top")), key=lambda r: r["budget"], default=None)
    if long is not None:
        axes.axhline(long["measures"][measure]["estimate"], color="0.4", linestyle=":", label="the largest, many steps")
    curves: dict[str, list[tuple]] = {}
    for row in rows:
        found = row["measures"][measure]
        point = (row["cost"], found["estimate"], found["estimate"] - found["low"], found["high"] - found["estimate"])
        curves.setdefault(row["method"], []).append(point)
    for method, points in curves.items():
        xs, ys, below, above = zip(*sorted(points), strict=True)
        if method in SHOWN:
            colour = f"C{SHOWN.index(method)}"
            axes.errorbar(xs, ys, (below, above), fmt="-o", color=colour, label=method, ms=4, capsize=2, lw=1.5)
        elif is_single(method):
            axes.plot(xs, ys, "-", color="0.7", lw=1, label="other samplers of the largest network")
        elif method.endswith("alone"):
            axes.plot(xs, ys, "x", color="C5", ms=5, label="a smaller network alone")
        elif method.endswith("then the top"):
            axes.plot(xs, ys, "+", color="C6", ms=7, label="a smaller network, then the largest")
    low = min(row["measures"][measure]["low"] for row in rows)
    most = max(row["measures"][measure]["estimate"] for row in rows if row["method"] in SHOWN)
    axes.set_ylim(low - 0.03 * (most - low), most + 0.12 * (most - low))
