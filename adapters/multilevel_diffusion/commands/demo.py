"""`multilevel-sde demo`: images of a shipped ladder by plans, next to one network alone at the same cost.

The question: how far from the 1000-step path of the largest network, with the same noise, does each method end when
it may spend so many evaluations of that network, or as many seconds?
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import multilevel_sde as mls
from multilevel_diffusion.commands.options import (
    add_device,
    add_mode,
    add_out,
    add_price,
    add_seed,
    add_threads,
    at_least,
    number,
    prepare,
    priced,
    usual_steps,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from multilevel_diffusion.networks.store import DiffusionLadder
    from multilevel_diffusion.process.reverse_process import Process
    from multilevel_diffusion.sampling.samples import Samples

__all__ = ["Row", "demo", "register"]

_FINE = 1000
_MULTILEVEL_STEPS = 100
_UNIT = "evaluations of the largest network"
_ALONE, _PAPER, _PILOT = "one network, chosen", "ML-EM, p = C/T", "ML-EM, pilot"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        method: Its name.
        budget: What it was allowed to spend, in evaluations of the largest network.
        cost: What it spent, in the same unit.
        mse: Mean squared distance per pixel to the reference, over all images.
        median: The same of the median image: a few images that turn into another digit dominate the mean.
        seconds: Wall-clock time for all images.
        evaluations: How often each level ran for an image.
    """

    method: str
    budget: float
    cost: float
    mse: float
    median: float
    seconds: float
    evaluations: list[int]


def register(subparsers) -> None:
    """Add the command to an argparse subparsers object.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> register(parser.add_subparsers())
        >>> parser.parse_args(["demo"]).images
        8
    """
    parser = subparsers.add_parser("demo", help="images of a shipped ladder, by one network and by plans at equal cost")
    parser.add_argument("--ladder", default="emoji32", help="name of a shipped ladder [%(default)s]")
    add_mode(parser)
    parser.add_argument("--images", type=at_least(1), default=8, help="how many images are compared [%(default)s]")
    parser.add_argument(
        "--budgets",
        type=number(above=0),
        nargs="+",
        default=[6.0, 12.0, 20.0],
        help="cost of an image in evaluations of the largest network [6 12 20]",
    )
    add_price(parser)
    parser.add_argument("--steps", type=at_least(2), default=_FINE, help="steps of the reference [%(default)s]")
    add_seed(parser, "seed of the first image; images take consecutive ones")
    add_out(parser, "demo-output", "folder of the pictures")
    add_device(parser)
    add_threads(parser, "the images are too small for more than 1")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from multilevel_diffusion.networks.by_name import open_ladder
    from multilevel_diffusion.process.grids import uniform
    from multilevel_diffusion.process.reverse_process import MODES, Process

    arguments.threads = 1 if arguments.threads is None else arguments.threads
    images = open_ladder(arguments.ladder, prepare(arguments))
    process = Process(images.schedule, MODES[arguments.mode], uniform(images.schedule, arguments.steps))
    prices = priced(arguments, images, process, arguments.images)
    demo(images, process, arguments.out, arguments.images, arguments.budgets, arguments.seed, prices)
    return 0


def demo(
    images: DiffusionLadder,
    process: Process,
    out: Path,
    count: int,
    budgets: list[float],
    seed: int = 0,
    prices: mls.Ladder | None = None,
) -> list[Row]:
    """Compare one network and plans on a ladder, print the table and write the pictures.

    Arguments:
        images: The ladder.
        process: What is solved; its finest grid is that of the reference.
        out: Folder for `samples.png`, `compare.png`, `error.png`, `report.html` and `demo.json`.
        count: Number of images.
        budgets: Cost of an image, in evaluations of the largest network.
        seed: Seed of the first image.
        prices: The ladder at the prices by which budgets count; by default FLOPs.

    Returns:
        The rows of the table.

    Raises:
        ValueError: A budget that does not pay one evaluation of the largest network, or more than all steps cost.
    """
    from multilevel_diffusion.sampling.samples import sample

    _check_budgets(budgets, process)
    prices, steps = prices or images.ladder, len(process.fine_times) - 1
    print(_level_table(images, count))
    seeds = range(seed, seed + count)
    ladder, device = prices.in_evaluations(_UNIT), _device(images)

    def run(times: Tensor, plan: mls.Plan, label: str) -> Samples:
        shape = images.image_shape
        return sample(ladder, process, times, plan, seeds, shape, device=device, progress=True, label=label)

    fine = process.grid(steps)
    started = time.perf_counter()
    reference = run(fine, mls.em_plan(ladder, fine), f"reference: {steps} steps of the largest network")
    pilot = _pilot(images, process).priced(ladder)
    rows, pictures = [], []
    for budget in budgets:
        for name, (times, plan) in {
            "EM": _euler_maruyama(ladder, process, budget),
            _ALONE: _grid_and_plan(pilot.single(budget=budget)),
            _PAPER: _inverse_cost(ladder, process, budget),
            _PILOT: _grid_and_plan(pilot.plan(budget=budget)),
        }.items():
            result = run(times, plan, f"{name} at {budget:g} evaluations")
            rows.append(_row(name, budget, result, reference))
            pictures.append((f"{name}, cost {rows[-1].cost:.1f}, MSE {rows[-1].mse:.3f}", result.images))
    print(_table(rows, reference, steps, prices.unit))
    mode = "DDIM" if process.tau == 0 else "DDPM"
    name = images.folder.name if images.folder else "own"
    _write(out, rows, pictures, reference, pilot, seed, f"Pilot of the ladder {name}, {mode}")
    print(
        f"\n{time.perf_counter() - started:.0f} s; look at compare.png, samples.png, error.png and report.html "
        f"in {out}/"
    )
    return rows


def _write(
    out: Path, rows: list[Row], pictures: list, reference: Samples, pilot: mls.Pilot, seed: int, title: str
) -> None:
    """The pictures, the pilot's report and the record."""
    from multilevel_diffusion.sampling.pictures import save_grid, save_rows
    from multilevel_sde.files import write_atomically
    from multilevel_sde.pilots.report.page import write_report

    images = reference.images[:16]
    shown = [(name, made[:16]) for name, made in pictures if name.startswith((_ALONE, _PILOT))]
    strips = [(f"reference, cost {reference.cost:g}", images), *shown]
    size = max(2, 40 // images.shape[-1])
    save_rows(out / "compare.png", strips, f"The same seeds by every method; cost in {_UNIT}", scale=size)
    save_grid(out / "samples.png", pictures[-1][1], scale=max(1, 48 // images.shape[-1]))
    _plot(out / "error.png", rows)
    measured = [(row.method, row.cost * pilot.costs[-1], row.mse) for row in rows]
    budgets = sorted({row.budget * pilot.costs[-1] for row in rows})
    write_report(pilot, out / "report.html", title=title, measured=measured, budgets=budgets)
    count = len(reference.images)
    record = {"version": mls.__version__, "seed": seed, "images": count, "rows": [asdict(row) for row in rows]}
    write_atomically(out / "demo.json", (json.dumps(record, indent=1) + "\n").encode())


def _check_budgets(budgets: list[float], process: Process) -> None:
    """Refuse a budget for which a method has no plan, before anything runs."""
    most = min(_MULTILEVEL_STEPS, len(process.fine_times) - 1)
    for budget in budgets:
        if not 1 <= budget <= most:
            raise ValueError(
                f'"--budgets" has {budget:g}, expected between 1 and {most} {_UNIT}, which the steps of ML-EM cost; '
                "give another"
            )


def _device(images: DiffusionLadder) -> torch.device:
    return next(images.networks[0].parameters()).device


def _euler_maruyama(ladder: mls.Ladder, process: Process, budget: float) -> tuple[Tensor, mls.Plan]:
    times = process.grid(int(budget))  # at least 1: see _check_budgets
    return times, mls.em_plan(ladder, times)


def _pilot(images: DiffusionLadder, process: Process) -> mls.Pilot:
    """The stored pilot, or one made now where the demo's finest grid is not the pilot's."""
    from multilevel_diffusion.sampling.pilots_and_fits import run_pilot
    from multilevel_diffusion.sampling.stored import stored_pilot

    pilot = stored_pilot(images, "ddim" if process.tau == 0 else "ddpm")
    if pilot is None or not set(pilot.times.tolist()) <= set(process.fine_times.tolist()):
        pilot = run_pilot(images, process, samples=16, progress=True)
    return pilot


def _grid_and_plan(planned: mls.PilotPlan) -> tuple[Tensor, mls.Plan]:
    return planned.times, planned.plan


def _inverse_cost(ladder: mls.Ladder, process: Process, budget: float) -> tuple[Tensor, mls.Plan]:
    import torch

    steps = usual_steps(budget, ladder.costs[0], min(_MULTILEVEL_STEPS, len(process.fine_times) - 1))
    times = process.grid(steps)
    table = mls.InverseCostSchedule().probabilities(ladder, times, budget=min(budget, steps * ladder.costs[-1]))
    return times, mls.draw_plan(table, mls.systematic, generator=torch.Generator().manual_seed(0))


def _row(name: str, budget: float, result: Samples, reference: Samples) -> Row:
    squared = (result.images - reference.images).double().square().flatten(1).mean(1)
    mean, median = float(squared.mean()), float(squared.median())
    return Row(name, budget, result.cost, mean, median, result.seconds, result.evaluations.tolist())


def _level_table(images: DiffusionLadder, batch: int) -> str:
    import torch

    seconds = mls.SecondsCost(torch.zeros(batch, *images.image_shape, device=_device(images)))(images.networks)
    lines = [f"{'level':>5} {'parameters':>11} {'MFLOP/image':>12} {'ms/image':>9} {'denoising loss':>15}"]
    for index, (level, time_) in enumerate(zip(images.record["levels"], seconds, strict=True)):
        lines.append(
            f"{index + 1:>5} {level['parameters']:>11,} {level['flops'] / 1e6:>12.3f} {time_ / batch * 1e3:>9.3f} "
            f"{level['error']['loss']:>15.5f}"
        )
    return "\n".join(lines)


def _table(rows: list[Row], reference: Samples, steps: int, unit: str) -> str:
    head = f"{'method':<20} {'cost':>8} {'MSE':>9} {'median':>9} {'seconds':>8}  evaluations per level"
    lines = ["", f"distance to {steps} steps of the largest network; cost in its evaluations by {unit}", head]
    lines += [
        f"{row.method:<20} {row.cost:>8.2f} {row.mse:>9.5f} {row.median:>9.5f} {row.seconds:>8.2f}  {row.evaluations}"
        for row in rows
    ]
    lines.append(f"{'reference':<20} {reference.cost:>8.2f} {0:>9.5f} {0:>9.5f} {reference.seconds:>8.2f}")
    return "\n".join(lines)


def _plot(path: Path, rows: list[Row]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from multilevel_sde.files import write_atomically

    figure = Figure(figsize=(9, 4), layout="constrained")
    read: list[tuple[str, Callable[[Row], float]]] = [("mean", lambda r: r.mse), ("median image", lambda r: r.median)]
    for axes, (what, value) in zip(figure.subplots(1, 2), read, strict=True):
        for name, marker in zip(dict.fromkeys(row.method for row in rows), "osD^v", strict=False):
            mine = [row for row in rows if row.method == name]
            axes.loglog([row.cost for row in mine], [value(row) for row in mine], marker=marker, label=name)
        axes.set(xlabel="cost in evaluations of the largest network", ylabel=f"squared distance, {what}")
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    write_atomically(path, buffer.getvalue())
