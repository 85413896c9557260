"""The GPU benchmark's tables: error against cost and seconds for every sampler, image strips, and the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

import multilevel_sde as mls
from benchmarks.common import machine, table, write_json
from benchmarks.devices.gpu_setup import Deadline, Settings
from benchmarks.devices.gpu_speed import Rows, timed
from benchmarks.samplers.bench_samplers import QUARTERS, Bench, all_runs
from benchmarks.samplers.sampler_tables import EM, FITTED, PILOT, markdown, plot
from multilevel_diffusion import Process, load_ladder, stored_pilot, uniform
from multilevel_diffusion.process import MODES
from multilevel_diffusion.sampling.pictures import save_rows
from multilevel_sde.files import write_atomically

__all__ = ["hardware", "measure_samplers", "write_report", "write_strip"]

_SHOWN = 8  # images in a strip


def hardware(device: torch.device) -> dict:
    """Return what the figures depend on, the GPU's name first."""
    found = machine()
    if device.type != "cuda":
        return {"device": found["cpu"], **found}
    del found["shared"]
    name = torch.cuda.get_device_name(device)
    return {"device": name, "cuda": torch.version.cuda, "tf32": torch.backends.cudnn.allow_tf32, **found}


def bench_of(folder: Path, mode: str, settings: Settings, device: torch.device) -> Bench:
    """Return a process on the trained ladder with its pilot."""
    stored = load_ladder(folder, device=device)
    pilot = stored_pilot(stored, mode)
    assert pilot is not None
    process = Process(stored.schedule, MODES[mode], uniform(stored.schedule, settings.fine))
    return Bench(stored, process, pilot, settings.images, mode, str(device))


def reference_of(bench: Bench, path: Path, device: torch.device) -> tuple[Tensor, float]:
    """Return where the largest network ends on the finest grid, and the seconds an image; kept in a file."""
    if not path.is_file():
        fine = bench.process.fine_times
        plans = [mls.em_plan(bench.stored.ladder, fine)] * QUARTERS
        images, seconds = timed(lambda: bench.solve(fine, plans), device)
        kept = {"images": images.cpu(), "seconds": torch.tensor(seconds / bench.images, dtype=torch.float64)}
        write_atomically(path, to_safetensors(kept))
    found = load_file(path)
    return found["images"].to(device), float(found["seconds"])


@torch.no_grad()
def measure_samplers(
    folder: Path, out: Path, mode: str, settings: Settings, device: torch.device, deadline: Deadline
) -> bool:
    """Measure every sampler at every budget; what was measured before is kept. Return whether all is there."""
    bench = bench_of(folder, mode, settings, device)
    reference, _ = reference_of(bench, out / f"reference_{mode}.safetensors", device)

    warm: set[str] = set()  # methods that ran in this process, at whatever budget

    def todo() -> Iterator[tuple[dict, Callable[[], dict]]]:
        for run, single in all_runs(bench, settings.budgets):

            def measure(run=run, single=single) -> dict:
                images, seconds = timed(run[2], device, warm=run[0] in warm)
                warm.add(run[0])
                squared = (images - reference).double().square().flatten(1).mean(1)
                return asdict(bench.row(run, single, squared, seconds))

            yield {"method": run[0], "budget": run[1]}, measure

    return Rows(out / f"rows_{mode}.json").run(todo(), deadline)


@torch.no_grad()
def write_strip(folder: Path, out: Path, mode: str, settings: Settings, device: torch.device) -> None:
    """Write the same seeds from the reference, EM, the best other sampler of one network, and ours, at equal cost."""
    bench = bench_of(folder, mode, settings, device)
    reference, _ = reference_of(bench, out / f"reference_{mode}.safetensors", device)
    measured = [row for row in json.loads((out / f"rows_{mode}.json").read_bytes()) if row["budget"] == settings.strip]
    others = [row for row in measured if row["single"] and row["method"] != EM]
    best = min(others, key=lambda row: row["median"])["method"]
    errors = {row["method"]: row["median"] for row in measured}
    runs = {run[0]: run[2] for run, _ in all_runs(bench, (settings.strip,))}
    rows = [(f"{settings.fine} steps of the largest network", reference[:_SHOWN])]
    for method in (EM, best, PILOT, FITTED):
        if method in runs:
            rows.append((f"{method}: {errors[method]:.2g}", runs[method]()[:_SHOWN]))
    name = hardware(device)["device"]
    title = f"{mode.upper()}, {settings.strip} evaluations, {name}; error of the median image"
    save_rows(out / "results" / f"strip_{mode}.png", rows, title, scale=max(1, 64 // bench.stored.image_shape[-1]))


def _ways(rows: list[dict], keys: list[str]) -> list[str]:
    """Return the lines of a table of timings: seconds in ms, and the error."""
    head = [*keys, "way", "ms", "error", "speed-up"]
    body, first = [], {}
    for row in rows:
        name = row["name"]
        place = tuple(name[key] + (key == "level") for key in keys)  # a person counts levels from 1
        base = first.setdefault(place, row["seconds"])
        speed = f"{base / row['seconds']:.2f}"
        body.append([*map(str, place), name["way"], f"{1000 * row['seconds']:.3g}", f"{row['error']:.2g}", speed])
    return table(head, body)


def _offloading(rows: list[dict]) -> list[str]:
    """Return the lines of the table of what was loaded."""
    head = ["way", "loads a solve", "loaded ahead", "ms waited a solve", "MB of the slot"]
    body = []
    for row in rows:
        if "loads" in row:
            share, runs = row["prefetched"] / row["loads"], row["solves"]
            body.append(
                [
                    row["name"]["way"],
                    f"{row['loads'] / runs:.3g}",
                    f"{100 * share:.0f}%",
                    f"{1000 * row['waited'] / runs:.3g}",
                    f"{row['slot_bytes'] / 2**20:.3g}",
                ]
            )
    return table(head, body)


def write_report(folder: Path, out: Path, settings: Settings, device: torch.device) -> None:
    """Write all tables as JSON and Markdown, and the figures."""
    results, stored, results_of = out / "results", load_ladder(folder), []
    clock = "GPU seconds" if device.type == "cuda" else "CPU seconds"
    where = hardware(device)
    for mode in MODES:
        pilot = stored_pilot(stored, mode)
        assert pilot is not None
        found = {
            "ladder": f"dead leaves on {where['device']}",
            "mode": mode,
            "images": settings.images,
            "gamma": pilot.rates.cost_exponent,
            "reference_seconds": float(load_file(out / f"reference_{mode}.safetensors")["seconds"]),
            "machine": where,
            "clock": clock,
            "rows": json.loads((out / f"rows_{mode}.json").read_bytes()),
        }
        results_of.append(found)
    levels, solves, scaling = (
        json.loads(path.read_bytes()) for path in (out / "levels.json", out / "solves.json", results / "scaling.json")
    )
    everything = {"machine": where, "settings": settings.to_dict(), "scaling": scaling, "samplers": results_of}
    everything |= {"levels": levels, "solves": solves}
    write_json(results / "gpu.json", everything)
    gamma = (results / "scaling.txt").read_text()
    described = ", ".join(f"{key} {value}" for key, value in where.items())
    lines = [f"# Dead leaves on {where['device']}", "", described, "", "## Gamma", "", "```text", gamma, "```", ""]
    lines += ["## Samplers", "", *[markdown(found) for found in results_of]]
    lines += ["## Levels, one evaluation of a batch; relative error to float32", ""]
    lines += [*_ways(levels, ["level", "batch"]), ""]
    lines += ["## One solve of the pilot's plan; mean squared difference to float32", ""]
    lines += [*_ways(solves, ["steps", "batch"]), "", *_offloading(solves), ""]
    write_atomically(results / "gpu.md", "\n".join(lines).encode())
    plot(results / "samplers.png", results_of)
    plot(results / "seconds.png", results_of, "seconds")
