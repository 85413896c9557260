"""The report of a run: one self-contained HTML page of levels, plan, temperature, energy, g(r) and displacements."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms

from multilevel_forces.job import LOG, TRAJECTORY
from multilevel_forces.observables import radial_distribution, squared_displacement
from multilevel_sde.files import write_atomically

__all__ = ["write_report"]

_BURN = 0.2  # of the run that averages leave out
_FRAMES = 400  # at most that g(r) is taken from
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def write_report(folder: Path, settings: Mapping[str, Any], seconds: float) -> None:
    """Write report.html into the folder of a run.

    Arguments:
        folder: With trajectory and log.
        settings: Of `run.json`.
        seconds: Of a step; NaN where none was made now.

    Raises:
        ModuleNotFoundError: matplotlib or jinja2 is missing; both come with the extra `plot`.
    """
    import jinja2
    import markupsafe

    log = np.genfromtxt(folder / LOG, delimiter=",", names=True)
    frames: list[Atoms] = ase.io.read(folder / TRAJECTORY, index=":")  # type: ignore[assignment]
    log, pilot = np.atleast_1d(log), settings["pilot"]
    late = log["temperature_K"][int(_BURN * len(log)) :]
    error = _standard_error(late)
    facts = {
        "formula": frames[0].get_chemical_formula(),
        "atoms": len(frames[0]),
        "settings": settings,
        "levels": list(zip(settings["levels"], settings["plan"], strict=True)),
        "temperature": f"{late.mean():.1f} ± {error:.1f} K" if math.isfinite(error) else f"{late.mean():.1f} K",
        "seconds": "–" if not math.isfinite(seconds) else f"{seconds:.3g}",
        "day": "–" if not math.isfinite(seconds) else f"{settings['timestep'] * 0.0864 / seconds:.3g}",
        "steps": int(log["step"][-1]),
        "pilot": pilot,
        "figures": {name: markupsafe.Markup(svg) for name, svg in _figures(log, frames, settings, pilot).items()},
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    write_atomically(folder / "report.html", environment.get_template("report.html").render(**facts).encode())


def _standard_error(values: np.ndarray, blocks: int = 10) -> float:
    """Of a mean, from means of blocks; NaN where there are too few."""
    if len(values) < 2 * blocks:
        return math.nan
    return float(np.std([part.mean() for part in np.array_split(values, blocks)], ddof=1) / math.sqrt(blocks))


def _figures(
    log: np.ndarray, frames: list[Atoms], settings: Mapping[str, Any], pilot: Mapping[str, Any] | None
) -> dict[str, str]:
    time = log["time_fs"] / 1000
    late = frames[int(_BURN * len(frames)) :]
    few = late[:: max(1, len(late) // _FRAMES)]
    reach = 6.0
    r, g = radial_distribution(frames[0], np.stack([one.positions for one in few]), reach)
    lines = [(r, g, "this run")]
    if pilot is not None:
        lines.append((r, np.interp(r, pilot["r"], pilot["g"]), f"{pilot['names'][-1]} alone (the pilot's run)"))
    moved = squared_displacement(np.stack([one.positions for one in late]))
    lag = np.arange(len(moved)) * settings["every"] * settings["timestep"] / 1000
    found = {
        "temperature": _figure(
            [(time, log["temperature_K"], None)], "time, ps", "temperature, K", settings["temperature"]
        ),
        "g": _figure(lines, "r, Angstrom", "g(r)", 1.0),
        "displacement": _figure([(lag, moved, None)], "time, ps", "mean squared displacement, Å²"),
    }
    if np.isfinite(log["energy_eV"]).any():
        found["energy"] = _figure([(time, log["energy_eV"], None)], "time, ps", "potential energy, eV")
    return found


def _figure(lines: list[tuple], x: str, y: str, level: float | None = None) -> str:
    """An <svg> element."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": y}):  # ids that no other figure has
        figure = Figure(figsize=(5, 3), layout="constrained")
        axes = figure.add_subplot()
        if level is not None:
            axes.axhline(level, color="#999", linewidth=0.8)
        for number, (across, up, label) in enumerate(lines):
            axes.plot(across, up, "--" if number else "-", label=label, linewidth=1.4)
        axes.set(xlabel=x, ylabel=y)
        if any(label for *_, label in lines):
            axes.legend()
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    return re.sub(r'(<svg [^>]*?) width="[^"]*pt"', r'\1 role="img"', text[text.index("<svg") :], count=1)
