"""The pilot's report: one self-contained HTML page, which prints well, and the same as JSON."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from multilevel_sde.files import write_atomically
from multilevel_sde.pilots.pilot_class import Pilot
from multilevel_sde.pilots.report.facts import facts
from multilevel_sde.pilots.report.figures import FIGURES, draw

__all__ = ["write_report"]

_CSS = """
:root { color-scheme: light; --ink: #1d2330; --soft: #5b6475; --line: #dfe3ea; --blue: #1b6ca8; }
* { box-sizing: border-box; }
body { margin: 0; background: #f4f6f9; color: var(--ink); font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 62rem; margin: 2rem auto; padding: 2rem 2.5rem; background: #fff; border-radius: 8px;
  box-shadow: 0 1px 4px rgba(20, 30, 60, .12); }
h1 { margin: 0 0 .3rem; font-size: 1.7rem; } h2 { margin: 2.2rem 0 .6rem; font-size: 1.15rem; }
p, li { max-width: 52rem; } .soft, figcaption { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid var(--line); }
th { font-weight: 600; vertical-align: bottom; } th:first-child, td:first-child, td.words { text-align: left; }
.cards { display: grid; grid-template-columns: repeat(3, 1fr); gap: 1rem; }
.card { border: 1px solid var(--line); border-left: 4px solid var(--blue); border-radius: 6px; padding: .7rem 1rem; }
.card.no { border-left-color: #b04a3a; } .card b { display: block; } .card p { margin: .3rem 0 0; font-size: .92rem; }
.warn { margin: 0; padding: .7rem 1rem .7rem 2rem; background: #fff7e8; border: 1px solid #f0d9a8; border-radius: 6px; }
.fine { padding: .7rem 1rem; background: #edf7f0; border: 1px solid #bfe0ca; border-radius: 6px; }
.figures { display: grid; grid-template-columns: 1fr 1fr; gap: 1.2rem 1.6rem; } .wide { grid-column: 1 / -1; }
figure { margin: 0; } svg.figure { width: 100%; height: auto; } figcaption { font-size: .88rem; }
@media screen and (max-width: 50rem) { main { margin: 0; padding: 1.2rem; }
  .figures, .cards { grid-template-columns: 1fr; } }
@media print {
  @page { size: A4; margin: 14mm; }
  body { background: #fff; font-size: 10.5pt; } main { max-width: none; margin: 0; padding: 0; box-shadow: none; }
  table { font-size: 8pt; } th, td { padding: .25rem .35rem; } td { white-space: nowrap; }
  td.words { white-space: normal; } .figures, .cards { gap: .6rem; } .card p { font-size: 9pt; }
  figure, .card, table, .warn li { break-inside: avoid; } h2 { break-after: avoid; }
}
"""


def write_report(
    pilot: Pilot,
    path: str | os.PathLike[str],
    *,
    title: str = "Pilot report",
    measured: Iterable[tuple[str, float, float]] = (),
) -> None:
    """Write what a pilot found as an HTML page, and beside it the same numbers as JSON.

    The page holds its figures and needs no scripts, no network and no other file.

    Arguments:
        pilot: The measurements.
        path: Where the page goes; the JSON file has the suffix .json.
        title: Its heading.
        measured: Points to draw beside the predictions: (label, cost in the ladder's unit, mean squared error).

    Raises:
        ValueError: The path ends in .json.
        ModuleNotFoundError: matplotlib is missing.

    Example:
        >>> import tempfile, torch, multilevel_sde as mls
        >>> ladder = mls.Ladder([lambda y, t: -y, lambda y, t: -torch.sin(y)], costs=[1.0, 30.0])
        >>> y0 = torch.linspace(0.2, 2.0, 8)[:, None]
        >>> measured = mls.pilot(ladder, y0, torch.linspace(0.0, 1.0, 41))
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_report(measured, folder / "report.html", title="Pendulum")
        >>> sorted(file.name for file in folder.iterdir())
        ['report.html', 'report.json']
    """
    page = Path(path)
    if page.suffix == ".json":
        raise ValueError(f'"path" is {str(path)!r}, the page would be overwritten by its JSON; end it in .html')
    contents = facts(pilot, title, measured)
    text = _page(contents)
    write_atomically(page.with_suffix(".json"), (json.dumps(contents, indent=1, allow_nan=False) + "\n").encode())
    write_atomically(page, text.encode())


def _page(contents: Mapping[str, Any]) -> str:
    title = html.escape(contents["title"])
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><link rel="icon" href="data:,"><style>{_CSS}</style></head>
<body><main>
<h1>{title}</h1>
<p class="soft">{html.escape(contents["summary"])}</p>
<h2>What to do</h2>
<div class="cards">{"".join(map(_card, contents["advice"]))}</div>
<h2>What to be careful about</h2>
{_warnings(contents["warnings"])}
<h2>The levels</h2>
<div class="scroll">{_level_table(contents)}</div>
<h2>Rates</h2>
{_rates(contents["rates"])}
<h2>Error against cost</h2>
{_figure("errors", contents)}
<h2>Where the corrections matter</h2>
<div class="figures">{_figure("variances", contents)}{_figure("responses", contents)}</div>
<h2>What the plans do</h2>
{_figure("hits", contents)}
<h2>Random plans, and how good the predictions are</h2>
<div class="figures">{_figure("probabilities", contents)}{_figure("calibration", contents)}</div>
</main></body></html>
"""


def _card(advice: Mapping[str, Any]) -> str:
    kind, answer = ("card", "pays") if advice["pays"] else ("card no", "does not pay")
    return (
        f'<div class="{kind}"><b>Budget {advice["budget_in_top"]:.3g}: {answer}</b>'
        f"<p>{html.escape(advice['text'])}</p></div>"
    )


def _warnings(warnings: list[str]) -> str:
    if not warnings:
        return '<p class="fine">Nothing: no heavy tails, every level better than the one below, plausible costs.</p>'
    return f'<ul class="warn">{"".join(f"<li>{html.escape(text)}</li>" for text in warnings)}</ul>'


def _level_table(contents: Mapping[str, Any]) -> str:
    unit = html.escape(contents["unit"])
    head = (
        f"<tr><th>level</th><th>cost, {unit}</th><th>of the top</th><th>ms a sample</th><th>of the top</th>"
        "<th>used alone: RMS error at the end</th><th>difference to the level below, RMS</th><th>its kurtosis</th>"
        "<th>mean check</th></tr>"
    )
    rows = []
    for level in contents["levels"]:
        cells = [
            str(level["level"]),
            f"{level['cost']:.4g}",
            f"{level['cost_in_top']:.2g}",
            f"{1e3 * level['seconds']:.3g}",
            f"{level['seconds_in_top']:.2g}",
            f"{level['alone']:.3g}",
            *(f"{level[key]:.2g}" if key in level else "–" for key in ("difference", "kurtosis", "consistency")),
        ]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    note = (
        '<p class="soft">Used alone: distance of the final state from the top level’s path if only this level ran at '
        "every step, to first order. Mean check: |E f<sub>k</sub> − E f<sub>k−1</sub> − E D<sub>k</sub>| / |E f<sub>k"
        "</sub>|, zero to rounding where levels are evaluated consistently.</p>"
    )
    return f"<table>{head}{''.join(rows)}</table>{note}"


def _figure(name: str, contents: Mapping[str, Any]) -> str:
    return f"<figure>{draw(name, contents)}<figcaption>{html.escape(FIGURES[name][2])}</figcaption></figure>"


def _rates(rates: Mapping[str, Any]) -> str:
    meanings = {
        "alpha": "each level halves its distance to the top level this many times",
        "beta": "each difference’s mean square halves this many times",
        "gamma": "each level doubles its cost this many times",
    }
    rows = []
    for name, meaning in meanings.items():
        value, low, high = (rates[name][key] for key in ("value", "low", "high"))
        number = "–" if value is None else f"{value:.2f}"
        between = "too few levels" if low is None or high is None else f"{low:.2f} to {high:.2f}"
        rows.append(f'<tr><td>{name}</td><td>{number}</td><td>{between}</td><td class="words">{meaning}</td></tr>')
    exponent = rates["cost_exponent"]
    verdict = (
        "The differences do not shrink with the level, so no exponent can be given."
        if exponent is None
        else f"Cost grows as the RMS error to the power −{exponent:.2g} (2γ/β): "
        + (
            "above 2, harder than Monte Carlo, where the multilevel method gains a power of the error."
            if rates["harder_than_monte_carlo"]
            else "at most 2, where the multilevel method gains a factor but no power of the error."
        )
    )
    return (
        f"<table><tr><th>rate</th><th>per level</th><th>95% interval</th><th></th></tr>{''.join(rows)}</table>"
        f"<p>{verdict}</p>"
    )
