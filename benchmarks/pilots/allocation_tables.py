"""Tables and the figure of bench_allocation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import cost_at, table, write_figure

__all__ = ["draw_figure", "markdown"]

PLAN = "pilot plan"
COLOURS = {"EM": "black", "p = C/T": "C1", "theorem": "C2", "learned": "C4", "pilot schedule": "C0", PLAN: "C3"}


def markdown(results: Sequence[dict]) -> str:
    """Return the tables of all problems, and the goal's verdict."""
    lines = []
    for result in results:
        lines += _problem(result)
    lines += ["### In short", ""]
    lines += table(
        ["problem", "speed-up of the plan over EM", "where the pilot says that it pays", "and it does not"],
        [_verdict(result) for result in results],
    )
    return "\n".join([*lines, ""])


def _by_method(result: dict) -> dict[str, dict[float, dict]]:
    found: dict[str, dict[float, dict]] = {}
    for row in result["rows"]:
        found.setdefault(row["method"], {})[row["budget"]] = row
    return found


def _budgets(result: dict) -> list[float]:
    return result["settings"]["budgets"]


def _problem(result: dict) -> list[str]:
    settings, budgets, methods = result["settings"], _budgets(result), _by_method(result)
    lines = [
        f"### {result['problem']}",
        "",
        f"γ = {result['gamma']:.3g}; {settings['samples']} samples; learned in {settings['iterations']} steps of "
        f"{settings['batch']}; {settings['calibration']} calibration samples.",
        "",
        "Mean squared error ± standard error (median) at a cost of about",
        "",
    ]
    rows = []
    for method, found in methods.items():
        cells = [
            f"{r['mse']:.2g} ± {r['standard_error']:.1g} ({r['median']:.2g})" if r else ""
            for r in (found.get(b) for b in budgets)
        ]
        rows.append([method, *cells])
    lines += [*table(["method", *[f"{b:g}" for b in budgets]], rows), ""]
    lines += ["Speed-up over EM at equal mean (median) error; below 1 EM is faster:", ""]
    rows = []
    for method, found in methods.items():
        if method != "EM":
            rows.append([method, *[_ratios(result, found.get(b)) for b in budgets]])
    lines += [*table(["method", *[f"{b:g}" for b in budgets]], rows), ""]
    best = [(name, row) for name, found in methods.items() for row in found.values() if "calibration" in row]
    if best:
        factor = [row["mse"] / row["calibration"] for _, row in best if row["calibration"] > 0]
        middle = sorted(factor)[len(factor) // 2]
        lines += [
            f"The error of the best of 15 on held-out noise is {middle:.2f} times that on the noise that chose it "
            f"(median of {len(factor)}).",
            "",
        ]
    return lines


def _ratio(result: dict, row: dict, key: str) -> tuple[float, str]:
    cost, sign = cost_at(result["rows"], ["EM"], "cost", key, row[key])
    cheapest = min((other for other in result["rows"] if other["method"] == "EM"), key=lambda other: other["cost"])
    return cost / row["cost"], "< " if row[key] > cheapest[key] else sign


def _ratios(result: dict, row: dict | None) -> str:
    if row is None:
        return ""
    (mean, sign), (median, also) = (_ratio(result, row, key) for key in ("mse", "median"))
    return f"{sign}{mean:.2f} ({also}{median:.2f})"


def _verdict(result: dict) -> list[str]:
    """By the mean over samples, which is what the pilot predicts."""
    plans = _by_method(result).get(PLAN, {})
    ratios = {budget: _ratio(result, row, "mse") for budget, row in plans.items()}
    paying = [budget for budget, row in plans.items() if row["pays"]]
    lost = [budget for budget in paying if ratios[budget][0] < 1 and ratios[budget][1] != "> "]
    text = ", ".join(f"{sign}{ratio:.2f}" for ratio, sign in ratios.values())
    paying, lost = (", ".join(f"{budget:g}" for budget in chosen) or "-" for chosen in (paying, lost))
    return [result["problem"], text, paying, lost]


def draw_figure(path: Path, results: Sequence[dict]) -> None:
    """Write error against cost, one panel a problem, after the paper's Figure 1."""
    from matplotlib.figure import Figure

    columns = min(4, len(results))
    lines = -(-len(results) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.8 * lines + 1.2), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, result in zip(panels, results, strict=False):
        for method, found in _by_method(result).items():
            rows = sorted(found.values(), key=lambda row: row["cost"])
            axes.loglog([r["cost"] for r in rows], [r["mse"] for r in rows], label=method, **_style(method))
        axes.set_title(f"{result['problem']}, γ = {result['gamma']:.2g}", fontsize=10)
        axes.set_xlabel("cost in top evaluations")
        axes.set_xticks([5, 10, 20, 50, 100], ["5", "10", "20", "50", "100"])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    for axes in panels[len(results) :]:
        axes.set_visible(False)
    for axes in panels[::columns]:
        axes.set_ylabel("mean squared error to the reference")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, columns * 2), fontsize=8, frameon=False)
    write_figure(path, figure, dpi=100)


def _style(method: str) -> dict:
    name = method.removeprefix("best of 15: ").split(",")[0]
    style = {"color": COLOURS[name], "linewidth": 1.0, "linestyle": ":", "marker": "o", "markersize": 3.5}
    if "systematic" in method:
        style |= {"linestyle": "--", "marker": "s"}
    if method.startswith("best"):
        style |= {"linestyle": "none", "marker": "*", "markersize": 8}
    if method in ("EM", PLAN):
        style |= {"linestyle": "-", "linewidth": 2.2}
    if method.endswith("random phase"):
        style |= {"linestyle": "-.", "marker": "^"}
    return style
