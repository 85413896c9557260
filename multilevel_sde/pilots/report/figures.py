"""The figures of a pilot's report as SVG text, drawn by matplotlib from the report's numbers."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["FIGURES", "draw"]

_COLOURS = ("#1b6ca8", "#e07a1f", "#2a9d5c", "#b8336a", "#6c4ab6", "#8c6d31", "#3a3a3a", "#17a2b8")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
}


def draw(name: str, facts: Mapping[str, Any]) -> str:
    """Draw one figure.

    Arguments:
        name: A key of `FIGURES`.
        facts: What :func:`multilevel_sde.pilots.report.facts.facts` returned.

    Returns:
        An <svg> element to stand inside HTML; the same for the same facts.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    paint, size, _ = FIGURES[name]
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure, facts)
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    return re.sub(
        r'(<svg [^>]*?) width="[^"]*pt"', rf'\1 class="figure" id="{name}" role="img"', text, count=1
    ).replace(f'height="{72 * size[1]:g}pt" ', "", 1)


def _over_time(axes: Any, facts: Mapping[str, Any]) -> None:
    times = facts["times"]
    axes.set_xlim(times[0], times[-1])
    axes.set_xlabel("time along the path (left: start)")


def _corrections(figure: Any, facts: Mapping[str, Any], key: str, label: str) -> None:
    axes = figure.subplots()
    for k, values in enumerate(facts[key]):
        axes.semilogy(facts["times"][:-1], _positive(values), color=_colour(k + 1), label=f"level {k + 2} − {k + 1}")
    largest = max(max(values) for values in facts[key])
    axes.set_ylim(max(1e-4 * largest, axes.get_ylim()[0]), 2 * largest)
    axes.set_ylabel(label)
    _over_time(axes, facts)
    figure.legend(loc="outside upper center", ncols=2)


def _variances(figure: Any, facts: Mapping[str, Any]) -> None:
    _corrections(figure, facts, "variances", "mean square of the difference")


def _responses(figure: Any, facts: Mapping[str, Any]) -> None:
    _corrections(figure, facts, "responses", "RMS change of the final state")


def _probabilities(figure: Any, facts: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    for k, values in enumerate(facts["probabilities"]["values"]):
        axes.step(facts["times"][:-1], values, where="post", color=_colour(k), label=f"level {k + 1}")
    axes.set(ylabel="probability of a correction", ylim=(-0.02, 1.05))
    _over_time(axes, facts)
    figure.legend(loc="outside upper center", ncols=3)


def _hits(figure: Any, facts: Mapping[str, Any]) -> None:
    plans = facts["plans"]
    levels = len(facts["levels"])
    for axes, plan in zip(figure.subplots(len(plans), 1, sharex=True, squeeze=False)[:, 0], plans, strict=True):
        used = [level - 1 for level in plan["levels"]]
        heaviest = max(abs(weight) for k in used for weight in plan["weights"][k])
        for k in used:
            for sign, face in ((1, _colour(k)), (-1, "white")):
                shown = [(t, abs(w)) for t, w in zip(plan["times"], plan["weights"][k], strict=False) if sign * w > 0]
                sizes = [3 if k == used[0] else 10 + 110 * w / heaviest for _, w in shown]
                axes.scatter(
                    [t for t, _ in shown], [k + 1] * len(shown), s=sizes, c=face, edgecolors=_colour(k), lw=0.8
                )
        axes.set_yticks(
            range(1, levels + 1), [f"level {k + 1}" + ("" if k in used else " (unused)") for k in range(levels)]
        )
        axes.set_ylim(0.4, levels + 0.8)
        axes.set_title(
            f"cost {plan['cost_in_top']:.3g}: {plan['steps']} steps, largest weight {heaviest:.3g}", loc="left", size=10
        )
    _over_time(axes, facts)


def _errors(figure: Any, facts: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    for key, label, style in (
        ("curve", "pilot's plans, predicted", {"color": _COLOURS[0]}),
        ("em", "EM on the top level", {"color": _COLOURS[1], "marker": "s", "ms": 4}),
    ):
        points = [point for point in facts[key] if point["mse"] > 0]
        axes.loglog([p["cost_in_top"] for p in points], [p["mse"] for p in points], label=label, **style)
    for number, (label, points) in enumerate(_grouped(facts["measured"]).items()):
        axes.loglog(*zip(*points, strict=True), "o^vDs"[number % 5], color=_COLOURS[2 + number % 6], label=label)
    axes.set(xlabel="cost in evaluations of the top level", ylabel="mean squared error")
    axes.grid(which="minor", alpha=0.12)
    axes.legend()


def _calibration(figure: Any, facts: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    points = [(p["first_order"], p["measured"]) for p in facts["calibration"] if p["first_order"] > 0 < p["measured"]]
    if points:
        ends = [min(min(p) for p in points) / 2, 2 * max(max(p) for p in points)]
        axes.fill_between(ends, [e / 2 for e in ends], [2 * e for e in ends], color="#999999", alpha=0.18, lw=0)
        axes.loglog(ends, ends, color="#777777", lw=1, label="equal (band: factor 2)")
        axes.loglog(*zip(*points, strict=True), "o", color=_COLOURS[3], label="plans run on held-out samples")
        axes.legend()
    axes.set(xlabel="level error to first order", ylabel="level error measured")


def _grouped(measured: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    groups: dict[str, list[tuple[float, float]]] = {}
    for point in measured:
        groups.setdefault(point["label"], []).append((point["cost_in_top"], point["mse"]))
    return groups


def _positive(values: Sequence[float]) -> list[float]:
    return [value if value > 0 else float("nan") for value in values]


def _colour(level: int) -> str:
    return _COLOURS[level % len(_COLOURS)]


FIGURES: dict[str, tuple[Callable[[Any, Mapping[str, Any]], None], tuple[float, float], str]] = {
    "errors": (
        _errors,
        (6.0, 3.7),
        "Mean squared distance to the top level's path on the finest grid, against cost. Where the blue curve lies "
        "left of the orange one, the ladder pays.",
    ),
    "variances": (
        _variances,
        (4.8, 3.3),
        "How large each correction is along the path: V_k(t), the mean square of level k − level k−1.",
    ),
    "responses": (
        _responses,
        (4.8, 3.3),
        "What leaving out a correction at one step does to the final state, √G_kk(t, t). Plans evaluate corrections "
        "where this is large.",
    ),
    "hits": (
        _hits,
        (6.0, 6.2),
        "Which level runs when, at three budgets. The area of a dot is the weight of that correction; hollow dots have "
        "negative weights.",
    ),
    "probabilities": (
        _probabilities,
        (4.8, 3.3),
        "For random plans: the probability of each correction with systematic draws, at the middle budget.",
    ),
    "calibration": (
        _calibration,
        (4.8, 3.3),
        "How far the first-order prediction can be trusted: plans made from three quarters of the samples, run on the "
        "rest. The predictions on this page are corrected by the ratio.",
    ),
}
