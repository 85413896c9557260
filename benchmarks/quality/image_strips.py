"""How the samplers' images look at equal cost: the same seeds under each other, one picture a ladder and process.

Rows: the largest network with 1000 steps, and at each budget EM, ML-EM with p = C/T and systematic draws, the pilot's
plan, the fitted plan where the ladder has one, and the single-network sampler with the least error of the median image
at that cost in `../samplers/results/samplers_*.json`.

    python benchmarks/quality/image_strips.py             # 3 minutes of one core; pictures into docs/images
    python benchmarks/quality/image_strips.py --out /tmp/strips --budgets 5
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.quality.bench_quality import relative_cost, runs
from benchmarks.quality.quality_tables import DRAWN_BY_COST, top_alone
from benchmarks.samplers.bench_samplers import FINE, open_bench, single_runs
from benchmarks.samplers.sampler_tables import EM, FITTED, PILOT
from multilevel_diffusion.process import MODES
from multilevel_diffusion.sampling.pictures import save_rows

BENCHMARKS = Path(__file__).parents[1]
IMAGES, SHOWN, SCALES = (
    {"digits": 16, "deadleaves32": 8},
    {"digits": 16, "deadleaves32": 6},
    {"digits": 4, "deadleaves32": 2},
)


def best_single(name: str, mode: str, budget: int) -> str:
    """Return the single-network sampler with the least error of the median image at a cost."""
    stored = json.loads((BENCHMARKS / "samplers" / "results" / f"samplers_{name}_{mode}.json").read_bytes())["rows"]
    singles = [row for row in stored if row["single"] and row["budget"] == budget and row["method"] != EM]
    return min(singles, key=lambda row: row["median"])["method"]


def strip(name: str, mode: str, budgets: list[int], seeds: int) -> list[tuple[str, Tensor]]:
    """Return the labelled rows."""
    bench, rows = open_bench(name, mode, seeds), []
    every = [*single_runs(bench, tuple(budgets)), *runs(bench)]
    found = {(method, budget): (sampled, plans) for method, budget, sampled, plans in every}
    wanted = [(top_alone(FINE), FINE)]
    for budget in budgets:
        methods = (EM, best_single(name, mode, budget), DRAWN_BY_COST, PILOT, FITTED)
        wanted += [(method, budget) for method in methods if (method, budget) in found]
    with torch.no_grad():
        for method, budget in tqdm(wanted, desc=f"{name} {mode}", unit="row"):
            sampled, plans = found[method, budget]
            rows.append((f"{method}: cost {relative_cost(bench, budget, plans):.4g}", sampled()[: SHOWN[name]]))
    return rows


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ladders", nargs="+", choices=IMAGES, default=list(IMAGES), help="[both]")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="[both]")
    parser.add_argument("--budgets", nargs="+", type=int, default=[5, 12], help="in top evaluations [%(default)s]")
    parser.add_argument("--out", type=Path, default=BENCHMARKS.parent / "docs" / "images", help="[docs/images]")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, mode in product(options.ladders, options.modes):
        rows = strip(name, mode, options.budgets, IMAGES[name])
        title = f"{name}, {mode.upper()}: the same seeds by every method"
        save_rows(options.out / f"quality_{name}_{mode}.png", rows, title, scale=SCALES[name])


if __name__ == "__main__":
    main()
