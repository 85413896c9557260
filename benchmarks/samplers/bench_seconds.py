"""What does a ladder save in seconds, against the best sampler of one network, fitted ones included?

    python -m benchmarks.samplers.bench_seconds                 # emoji32, both modes; an hour of one idle core each
    python -m benchmarks.samplers.bench_seconds --fits          # none: no fitted rivals and plans; 15 minutes each
    python -m benchmarks.samplers.bench_seconds --quick --ladder digits --out /tmp/seconds

On one thread, 64 images in batches of 16. Plans are made for seconds: levels are priced by the time of a step
(:class:`multilevel_sde.StepSecondsCost`), and budgets count those of the largest network. The error is the mean squared
distance to the largest network's path in 1,000 steps with the same noise. Rivals are all samplers of
`bench_samplers.py` with the largest network; the network and number of steps that the pilot takes for the best to use
alone, which may be a smaller one with more steps; and the largest network fitted, from six methods on four grids, on
the same samples as plans are. Plans are fitted for the ODE only. A cell of the last two columns is what the best rival
takes for that error over what the plan takes.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict

import torch
from tqdm import tqdm

import multilevel_sde as mls
from benchmarks.common import cost_at, machine, parser_of, table, write_json
from benchmarks.samplers.bench_samplers import FINE, QUARTERS, Bench, Run, open_bench, single_runs
from multilevel_diffusion.process import MODES
from multilevel_diffusion.sampling.one_network import fit_alone
from multilevel_diffusion.sampling.pilots_and_fits import fit
from multilevel_diffusion.sampling.prices import in_seconds
from multilevel_diffusion.sampling.trajectories import FIRST_SEED, reference
from multilevel_sde.files import write_atomically

BUDGETS, SINGLES, FITS = (5, 8, 12, 20, 35), (5, 8, 12, 20, 35, 60), (5, 8, 12)
IMAGES, FITTED = 64, 32
PLAN, FIT, ALONE, CHOSEN = "the pilot's plan", "a fitted plan", "one network, fitted", "one network, by the pilot"


def fits(bench: Bench, prices: mls.Ladder, budgets: tuple[int, ...]) -> Iterator[Run]:
    """Yield the fitted network and the fitted ladder: what `single_runs` yields."""
    seeds = range(FIRST_SEED, FIRST_SEED + FITTED)
    target = reference(bench.stored, bench.process, seeds, progress=True)
    for n in budgets:
        found = fit_alone(bench.stored, bench.process, n, samples=FITTED, target=target)
        plans = [found.plan] * QUARTERS
        yield ALONE, n, lambda t=found.times, p=plans: bench.solve(t, p), plans
    for n in budgets if bench.process.tau == 0 else ():  # plans of the SDE gain hardly anything: bench_fitted.py
        try:
            found = fit(bench.stored, bench.process, n, prices, samples=FITTED, target=target)
        except ValueError as error:  # no plan is so cheap in seconds
            warnings.warn(str(error), stacklevel=1)
            continue
        plans = [found.plan] * QUARTERS
        yield FIT, n, lambda t=found.times, p=plans: bench.solve(t, p), plans


def pilots(bench: Bench, prices: mls.Ladder, budgets: tuple[int, ...]) -> Iterator[Run]:
    """Yield the pilot's plans, and what it would do with one network."""
    pilot = bench.pilot.priced(prices).in_evaluations()
    for n in budgets:
        found = {CHOSEN: pilot.single(budget=n)} | ({PLAN: pilot.plan(budget=n)} if n >= pilot.least_budget else {})
        for name, best in found.items():
            plans = [best.plan] * QUARTERS
            yield name, n, lambda t=best.times, p=plans: bench.solve(t, p), plans


def measure(ladder: str, mode: str, images: int, fitted: tuple[int, ...], quick: bool) -> dict:
    """Measure every method on one process."""
    budgets, singles, fitted = (each[:1] if quick else each for each in (BUDGETS, SINGLES, fitted))
    bench = open_bench(ladder, mode, images)
    prices = in_seconds(bench.stored, bench.process, len(bench.parts[0]))
    top = torch.tensor(prices.costs, dtype=torch.float64) / prices.costs[-1]
    fine, rows = bench.process.grid(FINE), []
    with torch.no_grad():
        end = bench.solve(fine, [mls.em_plan(bench.stored.ladder, fine)] * QUARTERS)
        todo = [(run, True) for run in single_runs(bench, singles)]
        todo += [(run, run[0] == ALONE) for run in (fits(bench, prices, fitted) if fitted else ())]
        todo += [(run, run[0] == CHOSEN) for run in pilots(bench, prices, budgets)]
        for run, single in tqdm(todo, desc=f"{ladder} {mode}", unit="run"):
            begin = time.process_time()
            made = run[2]()
            taken = time.process_time() - begin
            squared = (made - end).double().square().flatten(1).mean(1)
            row = asdict(bench.row(run, single, squared, taken))
            if run[3]:
                row["cost"] = float(run[3][0].evaluations.double() @ top)
            rows.append(row)
    about = {"ladder": ladder, "mode": mode, "images": bench.images, "batch": len(bench.parts[0]), "rows": rows}
    return about | {"prices": list(prices.costs), "unit": prices.unit, "machine": machine()}


def markdown(result: dict) -> str:
    """The table of one process."""
    rows, unit = result["rows"], result["unit"]
    rivals = list(dict.fromkeys(row["method"] for row in rows if row["single"]))
    shares = ", ".join(f"{price / result['prices'][-1]:.3g}" for price in result["prices"])
    lines = [
        f"### {result['ladder']}, {result['mode'].upper()}",
        "",
        f"Levels' {unit} in those of the largest: {shares}.",
        "",
    ]
    if unit == "seconds":
        lines.insert(
            3, f"The largest takes {1e3 * result['prices'][-1]:.3g} ms an image, in batches of {result['batch']}."
        )
    body = []
    for row in (row for row in rows if row["method"] in (PLAN, FIT)):
        error = f"{row['mse']:.2g} ({row['median']:.2g})"
        cells = [row["method"], f"{row['budget']:g}", error, f"{1e3 * row['seconds']:.3g}"]
        for methods in (rivals, [name for name in rivals if name != ALONE]):
            both = [cost_at(rows, methods, "seconds", key, row[key]) for key in ("mse", "median")]
            ratios = [f"{sign}{cost / row['seconds']:.2f}" for cost, sign in both]
            cells.append(f"{ratios[0]} ({ratios[1]})")
        body.append(cells)
    head = ["", "budget", "error", "ms an image", "best rival / plan", "best rival not fitted / plan"]
    lines += ["Errors and ratios are of the mean, and in brackets of the median image.", "", *table(head, body), ""]
    kept = [row for row in rows if row["single"] and row["budget"] in BUDGETS]
    for budget in sorted({row["budget"] for row in kept}):
        some = [row for row in kept if row["budget"] == budget]
        told = [("best rival", min(some, key=lambda row: row["mse"]))]
        told += [("rival", row) for row in some if row["method"] == ALONE]
        lines += [
            f"- {what} with {budget:g} evaluations: {row['method']}, error {row['mse']:.2g} +- "
            f"{row['standard_error']:.1g}, {1e3 * row['seconds']:.3g} ms"
            for what, row in told
        ]
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure what was asked for, and write and print the tables of all that lies in the folder."""
    parser = parser_of(__file__, __doc__)
    parser.add_argument("--ladder", default="emoji32", help="a shipped ladder with pilots [%(default)s]")
    parser.add_argument("--modes", nargs="*", choices=MODES, default=list(MODES), help="none: only the tables [both]")
    parser.add_argument("--images", type=int, default=IMAGES, help="a multiple of 4 [%(default)s]")
    parser.add_argument("--fits", type=int, nargs="*", default=list(FITS), help="budgets of fits [%(default)s]")
    parser.add_argument("--quick", action="store_true", help="a smoke run: 8 images, one budget")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for mode in options.modes:
        images = 8 if options.quick else options.images
        result = measure(options.ladder, mode, images, tuple(options.fits), options.quick)
        write_json(options.out / f"seconds_{options.ladder}_{mode}.json", result)
    text = "\n".join(markdown(json.loads(path.read_bytes())) for path in sorted(options.out.glob("seconds_*.json")))
    write_atomically(options.out / "seconds.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
