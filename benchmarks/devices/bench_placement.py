"""What does loading the next expensive level while the cheap one runs save, where the ladder does not fit the device?

A ladder of three untrained UNets for 8x8x3 images: a small one that stays, and two of 44 and 173 MB whose weights are
kept in host memory or in safetensors files and take turns in the slot of a :class:`multilevel_sde.Offload`. The same
plan, systematic draws with p = 1/8 and 1/32, runs with all in memory, with weights loaded ahead (the plan says what
comes) and on demand. The ways take turns; given are medians of wall-clock seconds and of the seconds for which
evaluations waited for weights. A hit of the largest level needs both, one after the other in the one slot, so that one
of these two loads cannot be hidden.

On a CPU "the device" is the same memory: the copy stands in for a transfer, and a second core must be idle to hide it.
Files come from the page cache. On a GPU the weights are pinned and copied on a stream of their own:

    python benchmarks/devices/bench_placement.py                  # about a minute; writes results/placement.{json,md}
    python benchmarks/devices/bench_placement.py --device cuda --out DIR
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from tqdm import tqdm

import multilevel_sde as mls
from benchmarks.common import parser_of, table, write_json
from benchmarks.devices.gpu_speed import timed
from benchmarks.devices.gpu_tables import hardware
from multilevel_diffusion.networks import UNet, UNetConfig
from multilevel_sde.files import write_atomically

CONFIGS = [
    UNetConfig(16, bottom_depth=2, mid_depth=2, levels=1, image_size=8),
    UNetConfig(64, bottom_depth=8, mid_depth=1, levels=3, image_size=8),
    UNetConfig(128, bottom_depth=8, mid_depth=1, levels=3, image_size=8),
]
QUICK = [UNetConfig(dim, bottom_depth=1, mid_depth=0, levels=2, image_size=8) for dim in (4, 8, 16)]
STEPS, BATCH, ROUNDS, P = 96, 4, 7, (1.0, 1 / 8, 1 / 32)


def make(
    way: str, configs: list[UNetConfig], folder: Path, plan: mls.Plan, device: torch.device
) -> tuple[mls.Ladder, mls.Offload | None]:
    """Return a ladder with networks of its own, and its Offload if it has one."""
    torch.manual_seed(0)
    nets = [UNet(config).eval().requires_grad_(False) for config in configs]
    ladder = mls.Ladder(nets, mls.FlopCost(torch.zeros(1, *configs[0].image_shape)))
    expensive = dict(enumerate(nets[1:], 1))
    nets[0].to(device)
    if way == WAYS[0]:
        for net in expensive.values():
            net.to(device)
        return ladder, None
    files = {level: folder / f"{level}.safetensors" for level in expensive} if "files" in way else {}
    for level, path in files.items():
        save_file({name: value.contiguous() for name, value in expensive[level].state_dict().items()}, path)
    offload = mls.Offload(ladder, expensive, device=device, files=files)
    return offload.ladder(plan if "ahead" in way else None), offload


WAYS = [
    "all in memory",
    *(f"{place}, {when}" for place in ("host memory", "files") for when in ("loaded ahead", "on demand")),
]


@torch.no_grad()
def measure(device: torch.device, configs: list[UNetConfig]) -> dict:
    """Measure every way."""
    plan = mls.draw_plan(torch.tensor(P).expand(STEPS, 3), generator=torch.Generator().manual_seed(0))
    times = torch.linspace(0.0, 1.0, STEPS + 1)
    start = mls.seeded_normal(range(BATCH), configs[0].image_shape, device=device)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    waited: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as temporary:
        made = {way: make(way, configs, Path(temporary), plan, device) for way in WAYS}
        reference = mls.solve(made[WAYS[0]][0], start, times, plan).y
        for _ in tqdm(range(ROUNDS), desc="rounds"):
            for way, (ladder, offload) in made.items():
                before = offload.stats.waited if offload else 0.0
                value, spent = timed(
                    lambda ladder=ladder: mls.solve(ladder, start, times, plan).y, device, time.perf_counter
                )
                if not torch.equal(value, reference):
                    raise RuntimeError(f"{way} gave other numbers than all in memory")
                seconds[way].append(spent)
                waited[way].append((offload.stats.waited - before) / solves(device) if offload else 0.0)
        last = made[WAYS[1]][1]
        assert last is not None
        loads = last.stats.loads / (ROUNDS * solves(device))
    rows = [
        {
            "way": way,
            "seconds": statistics.median(seconds[way]),
            "quartiles": statistics.quantiles(seconds[way], n=4),
            "waited": statistics.median(waited[way]),
        }
        for way in WAYS
    ]
    place = {"steps": STEPS, "batch": BATCH, "rounds": ROUNDS, "loads": loads, "slot_bytes": last.slot_bytes}
    return {"machine": hardware(device), **place, "rows": rows}


def solves(device: torch.device) -> int:
    """Return how many solves :func:`timed` makes on a device."""
    return 2 if device.type == "cuda" else 1


def markdown(result: dict) -> str:
    """Return the table."""
    head = ["way", "ms a solve", "quartiles", "ms waited for weights"]
    body = []
    for row in result["rows"]:
        low, _, high = (1000 * value for value in row["quartiles"])
        middle = f"{1000 * row['seconds']:.0f}"
        body.append([row["way"], middle, f"{low:.0f} to {high:.0f}", f"{1000 * row['waited']:.1f}"])
    size = result["slot_bytes"] / 1e6
    title = (
        f"{result['steps']} steps of a batch of {result['batch']}, {result['loads']:.3g} loads a solve into a slot of "
        f"{size:.0f} MB, on {result['machine']['device']}:"
    )
    return "\n".join([title, "", *table(head, body), ""])


def main() -> None:
    """Measure, print and write."""
    parser = parser_of(__file__, __doc__)
    parser.add_argument("--device", default="cpu", help="[%(default)s]")
    parser.add_argument("--quick", action="store_true", help="a smoke run with a small network")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(torch.device(options.device), QUICK if options.quick else CONFIGS)
    write_json(options.out / "placement.json", result)
    write_atomically(options.out / "placement.md", markdown(result).encode())
    print(markdown(result))


if __name__ == "__main__":
    main()
