"""What a sparse level saves: multiply-adds, seconds and memory against the area of an edit, and the errors of its sums.

Prints the Markdown tables of docs/editing.md. Seconds are the least of several of CPU time on one thread, dense and
sparse taking turns; weights of the larger networks are random, as time does not depend on them.

    python benchmarks/one_network/bench_sparse.py            # about 5 minutes of one core
    python benchmarks/one_network/bench_sparse.py --large    # also a network of 249 billion multiply-adds: 2 more
    python benchmarks/one_network/bench_sparse.py --quick
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import nn
from tqdm import tqdm

import multilevel_sde as mls
from multilevel_diffusion import load_ladder, shipped_ladder
from multilevel_diffusion.networks import DiffusionLadder, UNet, UNetConfig
from multilevel_diffusion.networks.data import DeadLeaves
from multilevel_diffusion.process import MODES
from multilevel_diffusion.sparse import Edit, Reference, SparseDrift, changed_region, compare, paint

AREAS = (0.01, 0.05, 0.2)
CORRECTIONS = (3, 6, 12)
T = torch.tensor(0.5, dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """A network to be timed."""

    name: str
    drift: mls.Drift
    side: int
    tile: int
    batch: int = 1
    turns: int = 10


def random_unet(side: int) -> UNet:
    """Our UNet of width 32 and depth 2 at 5 scales, with weights that do not vanish."""
    net = UNet(UNetConfig(base_dim=32, bottom_depth=2, mid_depth=2, levels=4, image_size=side))
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return net.eval().requires_grad_(False)


def church() -> mls.Drift:
    """The architecture of Ho et al. for 256x256 (that of google/ddpm-church-256, with symmetric padding)."""
    model = UNet2DModel(
        sample_size=256,
        block_out_channels=(128, 128, 256, 256, 512, 512),
        layers_per_block=2,
        down_block_types=(*("DownBlock2D",) * 4, "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", *("UpBlock2D",) * 4),
        attention_head_dim=512,
    )
    model.eval().requires_grad_(False)
    return lambda x, t: model(x, t * 1000).sample


def cases(large: bool, quick: bool) -> list[Case]:
    """The networks, smallest first."""
    top = load_ladder(shipped_ladder("deadleaves32")).networks[-1]
    found = [Case("dead leaves 32x32", top, 32, 2), Case("dead leaves 32x32, batch of 16", top, 32, 2, 16)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if not quick:
            found += [Case(f"UNet, {side}x{side}", random_unet(side), side, 4) for side in (64, 128, 256)]
        if large:
            found.append(Case("DDPM of Ho et al., 256x256", church(), 256, 4, turns=2))
    return found


def seconds(functions: Sequence[Callable[[], object]], turns: int) -> list[float]:
    """Return the least CPU time of each function, called in turns."""
    best = [float("inf")] * len(functions)
    for _ in range(turns + 1):
        for index, function in enumerate(functions):
            start = time.process_time()
            function()
            best[index] = min(best[index], time.process_time() - start)
    return best


@torch.no_grad()
def time_case(case: Case) -> list[str]:
    """Return the lines of a table for one network."""
    original = torch.zeros(case.batch, 3, case.side, case.side)
    noise = mls.seeded_normal(range(case.batch), original.shape[1:])
    reference = Reference(case.drift, [float(T)], [original + noise], tile=case.tile)
    edits = [paint(original, area) for area in AREAS]
    sparse = [SparseDrift(reference, changed_region(original, edited)) for edited in edits]
    states = [edited + noise for edited in edits]
    flops = mls.FlopCost(states[0], t=float(T))([case.drift])[0]
    runs = [lambda: case.drift(noise, T)]
    runs += [lambda drift=drift, x=x: drift(x, T) for drift, x in zip(sparse, states, strict=True)]
    dense_time, *times = seconds(runs, case.turns)
    lines = []
    for area, drift, x, taken in zip(AREAS, sparse, states, times, strict=True):
        part = mls.FlopCost(x, t=float(T))([drift])[0]
        lines.append(
            f"| {case.name} | {area:.0%} | {flops / 2e6 / case.batch:,.0f} | {part / 2e6 / case.batch:,.0f} | "
            f"{flops / part:.1f} | {dense_time * 1e3 / case.batch:.3g} | {taken * 1e3 / case.batch:.3g} | "
            f"{dense_time / taken:.2f} | {reference.memory / 1e6 / case.batch:.1f} | "
            f"{drift.memory / 1e6 / case.batch:.2f} |"
        )
    return lines


def edit_of(images: DiffusionLadder, mode: str, area: float, count: int) -> Edit:
    """An edit of held-out scenes."""
    original = DeadLeaves(32, pool=1).held_out(count)
    painted = paint(original, area)
    return Edit(images.denoisers[-1], images.schedule, original, painted, 0.4, 50, MODES[mode], range(count))


def error_line(images: DiffusionLadder, mode: str, area: float, count: int) -> list[str]:
    """Return a line of the table of errors: (cost) error, of multilevel sums and of dense steps at their cost."""
    edit = edit_of(images, mode, area, count)
    sparse = SparseDrift(edit.reference(tile=2), edit.region)
    results = compare(edit, sparse, CORRECTIONS)
    (_, dense), (alone, _), *others = results
    cells = [f"{alone.cost:.0f}: {alone.mse:.1e}"]
    cells += [
        f"{sum_.cost:.0f}: {sum_.mse:.1e} / {steps.mse:.1e}"
        for (sum_, _), (steps, _) in zip(others[::2], others[1::2], strict=True)
    ]
    costs = [cost / images.ladder.costs[-1] for cost in images.ladder.costs]
    ladder = mls.Ladder(images.denoisers, costs)
    table = mls.InverseCostSchedule().probabilities(ladder, edit.times, budget=others[2][0].cost)
    plan = mls.draw_plan(table, mls.systematic, generator=torch.Generator().manual_seed(0))
    trained = edit.run(edit.edited, ladder, edit.times, plan)
    cells.append(f"{trained.stats.cost:.0f}: {float((trained.y - dense).double().square().mean()):.1e}")
    return [f"| {mode} | {area:.0%} | " + " | ".join(cells) + " |"]


def statistics_lines(images: DiffusionLadder, count: int) -> list[str]:
    """Return the lines of the table of margins and of what group normalisation sees."""
    edit = edit_of(images, "ddpm", 0.05, count)
    lines = []
    for tile in (1, 2, 4):
        reference = edit.reference(tile=tile)
        for margin, update in ((0, True), (1, True), (2, True), (1, False)):
            sparse = SparseDrift(reference, edit.region, margin=margin, update_statistics=update)
            row = compare(edit, sparse, [])[1][0]
            seen = "updated" if update else "the reference's"
            values = f"{row.cost / edit.steps:.2f} | {row.mse:.1e} | {row.inside:.1e} | {row.outside:.1e}"
            lines.append(f"| {tile} | {margin} | {seen} | {values} |")
    return lines


def _print(head: str, groups: list[Callable[[], list[str]]], label: str) -> None:
    lines = [line for group in tqdm(groups, label) for line in group()]
    print("\n".join([head, "|" + " --- |" * (head.count("|") - 1), *lines]), end="\n\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="also time the network of Ho et al.")
    parser.add_argument("--quick", action="store_true", help="the shipped network and few images only")
    parser.add_argument("--images", type=int, default=16, help="images over which errors are averaged")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    count = 2 if arguments.quick else arguments.images
    images = load_ladder(shipped_ladder("deadleaves32"))
    _print(
        "| network | edit | dense MMACs | sparse | ratio | dense ms | sparse | ratio | whole reference MB | kept MB |",
        [lambda case=case: time_case(case) for case in cases(arguments.large, arguments.quick)],
        "networks",
    )
    problems = [(mode, area) for mode in MODES for area in AREAS]
    _print(
        "| mode | edit | sparse only | "
        + " | ".join(f"{number} corrections / dense" for number in CORRECTIONS)
        + " | shipped ladder, p = C/T |",
        [lambda mode=mode, area=area: error_line(images, mode, area, count) for mode, area in problems],
        "errors",
    )
    _print(
        "| tile | margin | mean and variance | cost of a step | MSE | inside | outside |",
        [lambda: statistics_lines(images, count)],
        "margins",
    )


if __name__ == "__main__":
    main()
