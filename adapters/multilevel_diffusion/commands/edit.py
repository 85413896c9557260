"""`multilevel-sde edit`: paint on images and make the paint part of the scene, densely, sparsely and multilevel.

Images of a ladder are generated, a disc is painted on each, and they are noised to a middle time and denoised again
with the ladder's largest network. The sparse version recomputes it only around the paint; the multilevel sum of both
removes what that leaves out.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import multilevel_sde as mls
from multilevel_diffusion.commands.options import (
    add_device,
    add_ladder,
    add_mode,
    add_out,
    add_seed,
    add_threads,
    at_least,
    number,
    prepare,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from multilevel_diffusion.networks.store import DiffusionLadder
    from multilevel_diffusion.sparse.editing import Edit, EditRow

__all__ = ["register"]

_GENERATION = 200  # steps in which the original images are made
_GAIN = 5  # differences are shown so many times larger


def register(subparsers) -> None:
    """Add the command to an argparse subparsers object.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> register(parser.add_subparsers())
        >>> parser.parse_args(["edit", "--area", "0.1"]).area
        0.1
    """
    parser = subparsers.add_parser("edit", help="edit images by recomputing around the edit", description=__doc__)
    add_ladder(parser, "deadleaves32")
    parser.add_argument("--images", type=at_least(1), default=8, help="how many [%(default)s]")
    parser.add_argument(
        "--area", type=number(above=0, most=0.5), default=0.05, help="painted part of an image [%(default)s]"
    )
    parser.add_argument(
        "--middle", type=number(above=0), default=0.4, help="time to which they are noised [%(default)s]"
    )
    parser.add_argument("--steps", type=at_least(1), default=50, help="steps from there to 0 [%(default)s]")
    add_mode(parser)
    parser.add_argument(
        "--corrections",
        type=at_least(1),
        nargs="+",
        help="dense evaluations beside the sparse ones [3 6 12, those below --steps]",
    )
    parser.add_argument("--tile", type=at_least(1), default=2, help="side of the recomputed tiles [%(default)s]")
    parser.add_argument(
        "--margin", type=at_least(0), default=1, help="pixels by which each resolution widens the edit [1]"
    )
    add_seed(parser, "of images, noise, paint and plans")
    add_out(parser, "edit-output")
    add_device(parser, "where the network runs")
    add_threads(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from multilevel_diffusion.networks.by_name import open_ladder
    from multilevel_diffusion.process.reverse_process import MODES
    from multilevel_diffusion.sparse.drift import SparseDrift
    from multilevel_diffusion.sparse.editing import Edit, compare, paint

    corrections = _corrections(arguments)
    device = prepare(arguments)
    images = open_ladder(arguments.ladder, device)
    _try(arguments, images, device)
    seeds = range(arguments.seed, arguments.seed + arguments.images)
    original = _generate(images, seeds, device)
    edit = Edit(
        images.denoisers[-1],
        images.schedule,
        original,
        paint(original, arguments.area, arguments.seed),
        arguments.middle,
        arguments.steps,
        MODES[arguments.mode],
        seeds,
    )
    reference = edit.reference(tile=arguments.tile, progress=True)
    sparse = SparseDrift(reference, edit.region, margin=arguments.margin, progress=True)
    results = compare(edit, sparse, corrections, plan_seed=arguments.seed)
    rows = [row for row, _ in results]
    memory = {"reference": reference.memory, "sparse": sparse.memory}
    print(_table(rows))
    print(
        f"\nbeside this, once for all edits of an image: {arguments.steps} dense evaluations for the reference; it "
        f"takes {memory['reference'] / 1e6:.0f} MB ({memory['sparse'] / 1e6:.1f} MB are kept for one edit)"
    )
    _draw(arguments.out / "edit.png", edit, results)
    _record(arguments, edit, corrections, rows, memory, sparse.shares())
    print(f"written to {arguments.out / 'edit.png'} and {arguments.out / 'edit.json'}")
    return 0


def _corrections(arguments: argparse.Namespace) -> list[int]:
    """The numbers of dense evaluations: those given, or of the usual ones those below the steps."""
    if arguments.corrections is None:
        return [count for count in (3, 6, 12) if count < arguments.steps] or [1]
    most = max(arguments.corrections)
    if most > arguments.steps:
        raise ValueError(f'"--corrections" has {most}, more than the {arguments.steps} of --steps; give fewer')
    return arguments.corrections


def _try(arguments: argparse.Namespace, images: DiffusionLadder, device: torch.device) -> None:
    """Price the edit on blank images before any are made: options out of range show there."""
    import torch

    from multilevel_diffusion.sparse.drift import SparseDrift
    from multilevel_diffusion.sparse.editing import Edit, paint

    latest = images.schedule.t_max
    if arguments.middle > latest:
        raise ValueError(f'"--middle" is {arguments.middle:g}, expected a time in (0, {latest:g}]; 0.4 is usual')
    blank = torch.zeros(arguments.images, *images.image_shape, device=device)
    painted = paint(blank, arguments.area, arguments.seed)
    edit = Edit(images.denoisers[-1], images.schedule, blank, painted, arguments.middle, 1, 0.0, range(len(blank)))
    sparse = SparseDrift(edit.reference(tile=arguments.tile), edit.region, margin=arguments.margin)
    noised = edit.noised(painted)
    alone, dense = mls.FlopCost(noised, t=arguments.middle)([sparse, edit.denoiser])
    if alone >= dense:
        raise ValueError(
            f'"--area" {arguments.area:g}, "--tile" {arguments.tile} and "--margin" {arguments.margin} recompute all '
            f"of an image of {images.image_shape[-1]} pixels a side, which saves nothing; give smaller ones"
        )


def _record(
    arguments: argparse.Namespace,
    edit: Edit,
    corrections: list[int],
    rows: list[EditRow],
    memory: dict[str, int],
    shares: dict[tuple[int, int], float],
) -> None:
    import torch

    from multilevel_sde.files import write_atomically

    record = {
        "versions": {"multilevel_sde": mls.__version__, "torch": torch.__version__},
        "arguments": {name: value for name, value in vars(arguments).items() if isinstance(value, str | int | float)},
        "seeds": [edit.seeds[0], edit.seeds[-1] + 1],
        "corrections": corrections,
        "edited": float(edit.region.double().mean()),
        "active": {f"{height}x{width}": share for (height, width), share in shares.items()},
        "bytes": memory,
        "rows": [asdict(row) for row in rows],
    }
    write_atomically(arguments.out / "edit.json", (json.dumps(record, indent=1) + "\n").encode())


def _generate(images: DiffusionLadder, seeds: range, device: torch.device) -> Tensor:
    from multilevel_diffusion.process.grids import uniform
    from multilevel_diffusion.process.reverse_process import Process
    from multilevel_diffusion.sampling.samples import sample

    process = Process(images.schedule, 1.0, uniform(images.schedule, _GENERATION))
    ladder, times = images.ladder.top(), process.grid(_GENERATION)
    plan, shape = mls.em_plan(ladder, times), images.image_shape
    made = sample(ladder, process, times, plan, seeds, shape, device=device, progress=True, label="original images")
    return made.images.clamp(-1, 1)


def _table(rows: list[EditRow]) -> str:
    head = f"{'method':<28} {'cost':>6} {'MSE':>9} {'inside':>9} {'outside':>9} {'seconds':>8}"
    lines = ["distance to the dense result; cost of an image in dense evaluations (FLOPs)", head]
    lines += [
        f"{row.method:<28} {row.cost:>6.1f} {row.mse:>9.2e} {row.inside:>9.2e} {row.outside:>9.2e} {row.seconds:>8.2f}"
        for row in rows
    ]
    return "\n".join(lines)


def _draw(path: Path, edit: Edit, results: list[tuple[EditRow, Tensor]]) -> None:
    from multilevel_diffusion.sampling.pictures import save_rows

    (_, dense), *others = results
    strips = [("original", edit.original), ("edited", edit.edited), ("dense", dense)]
    strips += [
        (f"{row.method}\ncost {row.cost:.1f}, MSE {row.mse:.1e}", images)
        for row, images in others
        if not row.method.startswith("dense")
    ]
    strips += [(f"{row.method}\n{_GAIN} times the difference", _GAIN * (images - dense)) for row, images in others]
    save_rows(
        path,
        strips,
        f"Edits by noise; the dense network takes {edit.steps} steps",
        scale=max(1, 64 // edit.original.shape[-1]),
    )
