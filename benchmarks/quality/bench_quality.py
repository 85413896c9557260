"""Which sampler's images look most like real ones at equal cost? Distances between sets, not to a path.

On the shipped ladders (digits 8x8, dead leaves 32x32), for the reverse SDE (DDPM) and the ODE (DDIM), at equal costs in
evaluations of the largest network (by FLOPs):

- on the largest network alone Euler-Maruyama (that is DDPM and DDIM), DPM-Solver++ 2M and SA-Solver; for the ODE also
  DPM-Solver++ 3M, UniPC and the forward-value sampler, on two grids;
- the largest network fitted in at most 20 evaluations (`bench_fitted.py` makes and keeps the fits);
- ML-EM with p = C/T and systematic draws, the pilot's plan, fitted plans;
- one level a step, chosen by the pilot, or a small network first and the largest one from some time on;
- each smaller network alone, and the largest one with 100 and 1000 steps.

The reference are real images that no network was trained on: the 300 held-out digits, 512 dead leaves. Measured are

- the Fréchet distance in the features of a small classifier of digits, or of a random network for the dead leaves;
- the sliced Wasserstein distance of the pixels (dead leaves: averages over 4x4 pixels);
- how well a support vector machine tells samples from the reference (dead leaves: by the random features).

The floor is real images in place of the samples, as many. Distances are less their bootstrap bias, and their 95%
intervals are over samples: the reference is the same for all rows, so its noise does not enter. Random plans are drawn
anew for each quarter of the images. Rows are stored as they come: a run that is stopped goes on where it was. Rows of
another pilot or number of images are thrown away; after a change of the code of plans, measure those again with
`--again "ML-EM, pilot's plan"`.

    python benchmarks/quality/bench_quality.py                   # an hour of an idle core
    python benchmarks/quality/bench_quality.py --quick --out /tmp/quality
    python benchmarks/quality/bench_quality.py --ladders         # none: only print and draw what is stored
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import multilevel_sde as mls
from benchmarks.common import machine, parser_of, publish, write_json
from benchmarks.one_network import bench_fitted
from benchmarks.quality.quality_tables import DRAWN_BY_COST, REAL, draw_figure, markdown, top_alone
from benchmarks.samplers.bench_samplers import (
    FINE,
    FITS,
    GRIDS,
    QUARTERS,
    Bench,
    Run,
    fitted_runs,
    ladder_runs,
    open_bench,
    single_runs,
)
from benchmarks.samplers.sampler_tables import ALONE, EM, FITTED, PILOT
from multilevel_diffusion import shipped_ladder
from multilevel_diffusion.networks.data import DeadLeaves
from multilevel_diffusion.process import MODES
from multilevel_diffusion.quality import (
    RandomFeatures,
    bootstrap,
    digit_classifier,
    digit_sets,
    frechet_distance,
    grey_levels,
    in_batches,
    sliced_wasserstein,
    split_halves,
    two_sample_classifier,
)

BUDGETS, LONG = (5, 8, 12, 20, 35), (100, FINE)
IMAGES = {"digits": 512, "deadleaves32": 96}
MULTILEVEL_STEPS, DIRECTIONS, RESAMPLES, REFERENCES = 100, 128, 100, 512
ODE_SOLVERS = ("DPM++ 2M", "UniPC", "SA-Solver 2/2", "forward value")
# For the SDE the grid about uniform in log-SNR is the worse one at these costs: samplers/results/samplers.md.
SINGLES = {
    "ddpm": {EM, "DPM++ 2M, uniform", "SA-Solver 2/2, uniform"},
    "ddim": {EM, "DPM++ 3M, log-SNR", *(f"{name}, {grid}" for name, grid in product(ODE_SOLVERS, GRIDS))},
}
LADDER = {PILOT, FITTED, "one level a step, chosen"}


@dataclass(frozen=True)
class Judge:
    """What the images of a ladder are compared with, and by what.

    Attributes:
        reference: Real images that no network saw.
        floor: More of them.
        rounded: Makes samples as coarse as real images.
        features: For the Fréchet distance.
        pixels: For the sliced Wasserstein distance.
        told_by: What the classifier sees.
    """

    reference: Tensor
    floor: Tensor
    rounded: Callable[[Tensor], Tensor]
    features: Callable[[Tensor], Tensor]
    pixels: Callable[[Tensor], Tensor]
    told_by: Callable[[Tensor], Tensor]

    def distances(self) -> dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], float]]]:
        """Return for each distance what it is between."""
        return {"frechet": (self.features, frechet_distance), "sliced": (self.pixels, _sliced)}

    def measure(self, images: Tensor) -> dict[str, dict]:
        """Return the interval of every measure."""
        images, found = self.rounded(images), {}
        for name, (view, distance) in self.distances().items():
            samples, reference = in_batches(view, images), in_batches(view, self.reference)
            statistic = partial(lambda x, y, distance: distance(x, y), y=reference, distance=distance)
            found[name] = bootstrap(statistic, samples, generator=_generator(), resamples=RESAMPLES)
        views = in_batches(self.told_by, images), in_batches(self.told_by, self.reference)
        found["told apart"] = two_sample_classifier(*views, _generator())
        return {name: {key: float(f"{value:.5g}") for key, value in asdict(one).items()} for name, one in found.items()}

    def halves(self) -> dict[str, float]:
        """Return the distances between random halves of the reference."""
        return {
            name: split_halves(distance, in_batches(view, self.reference), _generator()).estimate
            for name, (view, distance) in self.distances().items()
        }


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _sliced(a: Tensor, b: Tensor) -> float:
    return sliced_wasserstein(a, b, DIRECTIONS, _generator())


def digits_judge(images: int) -> Judge:
    """Return the real digits, the classifier's features, and pixels."""
    sets, whole = digit_sets(), partial(torch.flatten, start_dim=1)
    features = digit_classifier(sets)[:-2]
    return Judge(sets.held_out, sets.floor[:images], grey_levels, features, whole, whole)


def leaves_judge(images: int) -> Judge:
    """Return dead leaves that were rendered for testing, and random features."""
    real = DeadLeaves(32).held_out(REFERENCES + images)
    features, pooled = RandomFeatures(3), torch.nn.AvgPool2d(4)
    return Judge(real[:REFERENCES], real[REFERENCES:], _bytes, features, pooled, features)


def _bytes(images: Tensor) -> Tensor:
    return ((images.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


JUDGES = {"digits": digits_judge, "deadleaves32": leaves_judge}


def switched(ladder: mls.Ladder, times: Tensor, level: int, first: int) -> mls.Plan:
    """Return the plan that evaluates one lower level in the first steps and the largest network in the others."""
    changes = [float(times[0])] * level + [float(times[first])] * (len(ladder) - 1 - level)
    return mls.SwitchSchedule(changes).plan(ladder, times)


def other_runs(bench: Bench) -> Iterator[Run]:
    """Yield the samplers that `bench_samplers` has not."""
    ladder, process = bench.stored.ladder, bench.process
    costs = [cost / ladder.costs[-1] for cost in ladder.costs]

    def run(name: str, budget: int, times: Tensor, plans: list[mls.Plan]) -> Run:
        return name, budget, lambda: bench.solve(times, plans), plans

    for n in BUDGETS:
        times = process.grid(MULTILEVEL_STEPS)
        table = mls.InverseCostSchedule().probabilities(ladder, times, budget=n * ladder.costs[-1])
        generator = torch.Generator().manual_seed(n)
        drawn = [mls.draw_plan(table, mls.systematic, generator=generator) for _ in range(QUARTERS)]
        yield run(DRAWN_BY_COST, n, times, drawn)
        for level in (len(ladder) - 3, len(ladder) - 2):
            first = int(n / (1 - costs[level]))  # of 2 n steps: as many as make the cost n
            plan = switched(ladder, times := process.grid(2 * n), level, first)
            yield run(f"level {level + 1}, then the top", n, times, [plan] * QUARTERS)
        for level, cost in enumerate(costs[:-1]):
            steps = min(FINE, int(n / cost))
            if steps < FINE or n == BUDGETS[0]:  # with 1000 steps it costs the same whatever the budget
                plan = switched(ladder, times := process.grid(steps), level, steps)
                yield run(f"level {level + 1} alone", n, times, [plan] * QUARTERS)


def runs(bench: Bench, fitted: Iterable[Run] = ()) -> list[Run]:
    """Return all samplers, the most expensive last."""
    found = [run for run in single_runs(bench, BUDGETS) if run[0] in SINGLES[bench.mode]]
    found += [run for run in ladder_runs(bench, BUDGETS) if run[0] in LADDER]
    found += [*fitted, *other_runs(bench)]
    for steps in LONG:
        plans = [mls.em_plan(bench.stored.ladder, times := bench.process.grid(steps))] * QUARTERS
        found.append((top_alone(steps), steps, lambda times=times, plans=plans: bench.solve(times, plans), plans))
    return sorted(found, key=lambda run: run[1])


def relative_cost(bench: Bench, budget: float, plans: list[mls.Plan]) -> float:
    """Return what an image cost on the average of the quarters, in evaluations of the largest network."""
    costs = torch.tensor(bench.stored.ladder.costs, dtype=torch.float64) / bench.stored.ladder.costs[-1]
    return sum(float(plan.evaluations.double() @ costs) for plan in plans) / QUARTERS if plans else budget


def measure(
    name: str, mode: str, images: int, path: Path, now: Sequence[int], again: Sequence[str] = (), fitted: bool = True
) -> None:
    """Measure what the file does not hold yet and the methods wanted again, at those of the budgets wanted now."""
    bench, judge = open_bench(name, mode, images), JUDGES[name](images)
    pilot = (shipped_ladder(name) / f"pilot_{mode}.safetensors").read_bytes()
    head = {"ladder": name, "mode": mode, "images": images, "pilot": hashlib.sha256(pilot).hexdigest()[:16]}
    result = json.loads(path.read_bytes()) if path.is_file() else {}
    if {key: result.get(key) for key in head} != head:
        result = {**head, "machine": machine(), "halves": judge.halves(), "rows": []}
    result["rows"] = [row for row in result["rows"] if row["method"] not in again or row["budget"] not in now]
    done = {(row["method"], row["budget"]) for row in result["rows"]}
    fits = [n for n in FITS if fitted and n in now and (ALONE, n) not in done]
    todo: list[Run] = [(REAL, 0, lambda: judge.floor, [])]
    todo += [run for run in runs(bench, fitted_runs(bench, bench_fitted.Case(name, mode), fits)) if run[1] in now]
    with tqdm(total=len(todo), desc=f"{name} {mode}", unit="run") as bar, torch.no_grad():
        for method, budget, sampled, plans in todo:
            if (method, budget) not in done:
                begin = time.process_time()
                found = sampled()
                seconds = float(f"{(time.process_time() - begin) / images:.3g}")
                cost = round(relative_cost(bench, budget, plans), 4)
                row = {"method": method, "budget": budget, "cost": cost, "seconds": seconds}
                result["rows"].append({**row, "measures": judge.measure(found)})
                write_json(path, result)
            bar.update()


def main() -> None:
    """Measure what was asked for, then print and draw all that lies in the folder."""
    parser = parser_of(__file__, __doc__)
    parser.add_argument("--ladders", nargs="*", choices=IMAGES, default=list(IMAGES), help="none: only redraw [all]")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="[both]")
    parser.add_argument(
        "--budgets", nargs="+", type=int, default=[*BUDGETS, *LONG], help="[all, and 100 and 1000: the top]"
    )
    parser.add_argument("--again", nargs="+", default=[], help="methods to measure again, by name")
    parser.add_argument("--images", type=int, help="a multiple of 4 [512 digits, 96 dead leaves]")
    parser.add_argument("--quick", action="store_true", help="a smoke run: 16 digits, one budget, no fits")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, mode in product(["digits"] if options.quick else options.ladders, options.modes):
        images = 16 if options.quick else options.images or IMAGES[name]
        if not 8 <= images <= 996 or images % QUARTERS:
            parser.error(f'"--images" must be a multiple of {QUARTERS} from 8 to 996 (the real digits), got {images}')
        budgets = BUDGETS[:1] if options.quick else options.budgets
        measure(
            name, mode, images, options.out / f"quality_{name}_{mode}.json", budgets, options.again, not options.quick
        )
    names = [f"{name}_{mode}" for name, mode in product(IMAGES, MODES)]
    publish(options.out, "quality", names, markdown, draw_figure)


if __name__ == "__main__":
    main()
