"""The pilot's report: one self-contained HTML page, which prints well, and the same as JSON.

The words and the looks of the page stand in `template.html` beside this file; what it says comes from `facts`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from multilevel_sde.files import write_atomically
from multilevel_sde.pilots.pilot_class import Pilot
from multilevel_sde.pilots.report.facts import facts
from multilevel_sde.pilots.report.figures import FIGURES, draw

__all__ = ["write_report"]

_RATES = {
    "alpha": "each level halves its distance to the top level this many times",
    "beta": "each difference’s mean square halves this many times",
    "gamma": "each level doubles its cost this many times",
}


def write_report(
    pilot: Pilot,
    path: str | os.PathLike[str],
    *,
    title: str = "Pilot report",
    measured: Iterable[tuple[str, float, float]] = (),
    budgets: Sequence[float] | None = None,
) -> None:
    """Write what a pilot found as an HTML page, and beside it the same numbers as JSON.

    The page holds its figures and needs no scripts, no network and no other file.

    Arguments:
        pilot: The measurements.
        path: Where the page goes; the JSON file has the suffix .json.
        title: Its heading.
        measured: Points to draw beside the predictions: (label, cost in the ladder's unit, mean squared error).
        budgets: What to advise on, in the ladder's unit; by default three from tight to generous.

    Raises:
        ValueError: The path ends in .json; a budget that pays nothing.
        ModuleNotFoundError: matplotlib or jinja2 is missing; both come with the extra `plot`.

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
    contents = facts(pilot, title, measured, budgets)
    text = _page(contents)
    write_atomically(page.with_suffix(".json"), (json.dumps(contents, indent=1, allow_nan=False) + "\n").encode())
    write_atomically(page, text.encode())


def _page(contents: Mapping[str, Any]) -> str:
    import jinja2
    import markupsafe

    figures = {
        name: {"svg": markupsafe.Markup(draw(name, contents)), "caption": caption, "wide": size[0] > 5}
        for name, (_, size, caption) in FIGURES.items()
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("template.html").render(**contents, figures=figures, rate_meanings=_RATES)
