"""Tables and the figure of bench_crystals."""

from __future__ import annotations

import json

import numpy as np

from benchmarks.common import table, write_figure

TOP, PLAN = "SevenNet-l3i5 alone", "the pilot's plan"
CHEAP = {"silicon": "SW", "nacl": "Fumi-Tosi"}
REACH = 6.0  # of g(r), Angstrom
HOUR = 3600.0


def results(out):
    """All results, system by system."""
    paths = [path for system in CHEAP for path in out.glob(f"{system}-*.json")]
    return {path.stem: json.loads(path.read_text()) for path in sorted(paths, key=lambda path: _place(path.stem))}


def _place(stem):
    system, atoms, kelvin = stem.split("-")
    return list(CHEAP).index(system), int(atoms), int(kelvin)


def _words(stem):
    system, atoms, kelvin = stem.split("-")
    return f"{'Silicon' if system == 'silicon' else 'Sodium chloride'}, {atoms} atoms, {kelvin} K"


def report(out):
    """The tables of all results."""
    head = ["run", "steps", "CPU s a step", "speed-up", "temperature", "expected", "squared displacement", "expected"]
    head += ["greatest error of g", "temperature in an hour", "displacement in an hour"]
    text = []
    for stem, found in results(out).items():
        top, lines, said = found["rows"][TOP], [], found["pilot"]["expected"]
        for name, row in found["rows"].items():
            if row is None:
                lines.append([name, "too hot", *[""] * 9])
                continue
            own = {key: row[key][0] - row[f"{key}_off"][0] for key in ("temperature", "square")}  # the top's
            off = {key: [one / own[key] for one in row[f"{key}_off"]] for key in own}
            lines.append([
                name, str(row["steps"]), f"{row['seconds']:.3f}", f"{top['seconds'] / row['seconds']:.1f}x",
                "{:+.1%} ± {:.1%}".format(*off["temperature"]),
                f"{said[name][0] - 1:+.1%}".replace("+inf%", "hot") if name in said else "",
                "{:+.1%} ± {:.1%}".format(*off["square"]),
                f"{said[name][1] - 1:+.1%}".replace("+inf%", "hot") if name in said else "",
                "{:.2f} ± {:.2f}".format(*row["g_off"]),
                *(f"{in_an_hour(off[key][0], top, row, key):.1%}" for key in own),
            ])  # fmt: skip
        text += [f"### {_words(stem)}", "", "The pilot, before any of the runs:", ""]
        text += ["```text", *(line.rstrip() for line in found["pilot"]["text"].splitlines()), "```", ""]
        text += ["SevenNet-l3i5 alone was at {:.0f} ± {:.0f} K, its".format(*top["temperature"])]
        text += ["mean squared displacement {:.5f} ± {:.5f} Å².".format(*top["square"]), "", *table(head, lines), ""]
    (out / "crystals.md").write_text("\n".join(text))


def in_an_hour(off, top, row, key):
    """The relative error of an average after an hour: what the plan is off, and chance as that of the top's run."""
    mean, error = top[key]
    return float(np.hypot(off, error / mean * (top["steps"] * row["seconds"] / HOUR) ** 0.5))


def draw(out):
    """The figure: g(r) of the top level and of the plan, differences to the top's, and seconds."""
    from matplotlib.figure import Figure

    shown = {TOP: "#222222", PLAN: "#1b6ca8", "CHGNet alone": "#e07a1f"}
    stored = results(out)
    figure = Figure(figsize=(10.5, 3.0 * len(stored)), layout="constrained")
    for axes, (stem, found) in zip(figure.subplots(len(stored), 3, squeeze=False), stored.items(), strict=True):
        rows = {name: found["rows"][name] for name in shown if found["rows"].get(name)}
        for place, (name, row) in enumerate(rows.items()):
            r = (np.arange(len(row["g"])) + 0.5) * REACH / len(row["g"])
            if name != "CHGNet alone":
                axes[0].plot(r, row["g"], "--" if place else "-", color=shown[name], label=name)
            axes[1].plot(r, row["g_difference"], color=shown[name], label=name, linewidth=1.2)
            axes[2].barh(-place, row["seconds"], 0.45, color=shown[name])
            axes[2].text(0.0, -place + 0.34, name, fontsize=8, va="center")
        axes[0].legend(frameon=False, fontsize=8)
        axes[0].set(title=_words(stem), xlabel="r, Angstrom", ylabel="g(r)")
        axes[1].set(title="g(r) less the top level's, same steps", xlabel="r, Angstrom")
        axes[1].legend(frameon=False, fontsize=8)
        axes[2].locator_params(axis="x", nbins=5)
        axes[2].set(title="CPU seconds a step", yticks=[], ylim=(-len(rows) + 0.6, 0.6))
        for one in axes:
            one.spines[["top", "right"]].set_visible(False)
    write_figure(out / "crystals.png", figure, 110)
