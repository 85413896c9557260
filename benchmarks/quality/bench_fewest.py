"""From how few evaluations on can a sampler's images not be told from those of 1,000 steps?

On the shipped ladders (digits 8x8, dead leaves 32x32), for the reverse SDE (DDPM) and the ODE (DDIM). The reference are
images of the largest network in 1,000 steps of Euler-Maruyama, of other seeds. A support vector machine is trained to
tell the two sets apart (digits: by pixels; dead leaves: by random features), and judged on images that it has not seen;
a half is chance. On the largest network alone run Euler-Maruyama, the samplers that were nearest to the path in
`bench_samplers.py`, and the fitted network; of the ladder the pilot's plan, and fitted plans where there are some.

The last column is the least cost at which the 95% interval reaches a half, and at all larger costs too, with CPU
seconds an image of one thread. A stopped run goes on; the reference is kept in parts of 64 images by
`bench_fitted.py`.

    python -m benchmarks.quality.bench_fewest               # an hour of an idle core
    python -m benchmarks.quality.bench_fewest --quick --out /tmp/fewest
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.common import machine, parser_of, table, write_json
from benchmarks.one_network import bench_fitted
from benchmarks.quality.bench_quality import JUDGES, relative_cost
from benchmarks.samplers.bench_samplers import Bench, Run, fitted_runs, ladder_runs, open_bench, single_runs
from benchmarks.samplers.sampler_tables import EM, FITTED, PILOT
from multilevel_diffusion.process import MODES
from multilevel_diffusion.quality import in_batches, two_sample_classifier
from multilevel_sde.files import write_atomically

BUDGETS, FITS = (3, 5, 8, 12, 20, 35), (3, 5, 8, 12)
IMAGES = {"digits": 512, "deadleaves32": 256}
FIRST, PART = 2_000_000, 64
METHODS = {
    "ddpm": (EM, "DPM++ 2M, uniform", "SA-Solver 2/2, uniform", PILOT),
    "ddim": (EM, "SA-Solver 2/2, uniform", "SA-Solver 3/3, log-SNR", "forward value, uniform", PILOT, FITTED),
}


def runs(bench: Bench, case: bench_fitted.Case, budgets: Sequence[int], fits: Sequence[int]) -> list[Run]:
    """All samplers at all budgets."""
    found = [*single_runs(bench, budgets), *ladder_runs(bench, budgets)]
    found = [run for method in METHODS[bench.mode] for run in found if run[0] == method]
    return [*found, *fitted_runs(bench, case, fits)]


def measure(name: str, mode: str, images: int, out: Path, quick: bool) -> None:
    """Measure what is missing of one process, and keep every row."""
    bench, judge, path = open_bench(name, mode, images), JUDGES[name](images), out / f"fewest_{name}_{mode}.json"
    known = json.loads(path.read_bytes()) if path.is_file() else {}
    kept = known["rows"] if known.get("images") == images else []
    done = {(row["method"], row["budget"]) for row in kept}
    case = bench_fitted.Case(name, mode, out if quick else bench_fitted.RESULTS)
    budgets, fits = (BUDGETS[1:2], ()) if quick else (BUDGETS, FITS)

    def seen(images: Tensor) -> Tensor:
        return in_batches(judge.told_by, judge.rounded(images))

    with torch.no_grad():
        other = seen(torch.cat([case.target(first, PART) for first in range(FIRST, FIRST + images, PART)]))
        for run in tqdm(runs(bench, case, budgets, fits), desc=f"{name} {mode}", unit="run"):
            if run[:2] not in done:
                begin = time.process_time()
                made = run[2]()
                seconds = (time.process_time() - begin) / images
                told = asdict(two_sample_classifier(seen(made), other, torch.Generator().manual_seed(0)))
                row = {"method": run[0], "budget": run[1], "cost": relative_cost(bench, run[1], run[3])}
                kept.append(row | {"seconds": seconds, "told": told})
                about = {"ladder": name, "mode": mode, "images": images, "machine": machine()}
                write_json(path, about | {"rows": kept})


def fewest(rows: list[dict]) -> dict | None:
    """Of the rows of a method that with the least cost from which on no interval lies above a half, or none."""
    last = None
    for row in sorted(rows, key=lambda row: -row["cost"]):
        if row["told"]["low"] > 0.5:
            return last
        last = row
    return last


def markdown(result: dict) -> str:
    """The table of one process."""
    rows = result["rows"]
    budgets = sorted({row["budget"] for row in rows})
    body = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        by, least = {row["budget"]: row["told"] for row in own}, fewest(own)
        cells = [
            f"{by[b]['estimate']:.3f} ({by[b]['low']:.2f} to {by[b]['high']:.2f})" if b in by else "" for b in budgets
        ]
        end = "none" if least is None else f"{least['cost']:.3g}, {1e3 * least['seconds']:.3g} ms"
        body.append([method, *cells, end])
    head = f"### {result['ladder']}, {result['mode'].upper()}, {result['images']} images"
    return "\n".join([head, "", *table(["told apart", *map(str, budgets), "not from"], body), ""])


def main() -> None:
    """Measure what was asked for and is missing, then print all that lies in the folder."""
    parser = parser_of(__file__, __doc__)
    parser.add_argument("--ladders", nargs="*", choices=IMAGES, default=list(IMAGES), help="none: only print [all]")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="[both]")
    parser.add_argument("--images", type=int, help="a multiple of 64 [512 digits, 256 dead leaves]")
    parser.add_argument("--quick", action="store_true", help="a smoke run: 64 digits, one budget, no fits")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, mode in product(["digits"] if options.quick else options.ladders, options.modes):
        images = PART if options.quick else options.images or IMAGES[name]
        if images < PART or images % PART:
            parser.error(f'"--images" must be a multiple of {PART}, at least {PART}, got {images}')
        measure(name, mode, images, options.out, options.quick)
    paths = (options.out / f"fewest_{name}_{mode}.json" for name, mode in product(IMAGES, MODES))
    text = "\n".join(markdown(json.loads(path.read_bytes())) for path in paths if path.is_file())
    write_atomically(options.out / "fewest.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
