"""Which sampler ends nearest to the 1000-step path of the largest network, for the same cost and the same noise?

On the shipped ladders of networks (digits 8x8, dead leaves 32x32), for the reverse SDE (DDPM) and the ODE (DDIM), at
equal costs in evaluations of the largest network (by FLOPs). Single-network samplers run on two grids, uniform in time
and in log-SNR:

- Euler-Maruyama (that is DDPM and DDIM), and from diffusers DPM-Solver++ 2M and 3M (the SDE variant of 2M for DDPM) and
  UniPC, given our noise levels, our denoiser and our noise;
- SA-Solver with predictor and corrector of order 2 and 3, and for the ODE the forward-value sampler;
- the network fitted by the procedure that fits plans, on the same samples (`bench_fitted.py` makes and keeps the fits).

On the ladder:

- draws from the pilot's schedule, independent and systematic, without and with stored corrections (`mls.remember`);
- one level at each step, chosen by the pilot (`pilot.choice`);
- the pilot's plan with impulses, and tracking; SA-Solver on a drawn plan (multilevel SA-Solver);
- the plan that was fitted for the budget, where the ladder's folder has one.

A random plan is drawn anew for each quarter of the images. Seconds are CPU time on one thread, which other processes on
the machine disturb less than wall-clock time. The mean error and that of the median image are given: a few images that
turn into another mode dominate the mean. Rows are stored as they come, and a run that was stopped goes on; `--again
METHOD` measures a method anew.

    python benchmarks/samplers/bench_samplers.py       # about 25 minutes on an idle core; --ladders digits --modes ddim
    python benchmarks/samplers/bench_samplers.py --quick --out /tmp/samplers
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise, product
from typing import Any

import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor
from tqdm import tqdm

import multilevel_sde as mls
from benchmarks.common import machine, parser_of, publish, write_json
from benchmarks.one_network import bench_fitted
from benchmarks.samplers.sampler_tables import ALONE, DRAWN, FITTED, PILOT, markdown, plot
from multilevel_diffusion import ForwardValue, Process, SASolver, load_ladder, shipped_ladder, stored_pilot, uniform
from multilevel_diffusion.networks.image_ladders import ImageLadder
from multilevel_diffusion.process import MODES
from multilevel_diffusion.sampling import stored_plan
from multilevel_sde.pilots.trial import typical

FINE, QUARTERS = 1000, 4
BUDGETS = (5, 8, 12, 20, 35, 60, 120)
FITS = (5, 8, 12, 20)  # budgets of fits
IMAGES = {"digits": 32, "deadleaves32": 16}
GRIDS = ("uniform", "log-SNR")


@dataclass(frozen=True)
class Row:
    """One method at one budget; costs in top evaluations, seconds of CPU time an image, errors per pixel."""

    method: str
    budget: float
    cost: float
    seconds: float
    mse: float
    standard_error: float
    median: float
    typical: float
    single: bool


@dataclass(frozen=True)
class Bench:
    """A process on a ladder with its pilot and the images' seeds."""

    stored: ImageLadder
    process: Process
    pilot: mls.Pilot
    images: int
    mode: str
    device: str = "cpu"

    @property
    def parts(self) -> list[range]:
        """Seeds of the quarters."""
        size = self.images // QUARTERS
        return [range(first, first + size) for first in range(0, self.images, size)]

    def start(self, seeds: range) -> Tensor:
        """Return the noise that images start from."""
        return self.process.start(seeds, self.stored.image_shape, device=self.device)

    def solve(self, times: Tensor, plans: list[mls.Plan]) -> Tensor:
        """Return the images, one plan a quarter."""
        out = []
        for seeds, plan in zip(self.parts, plans, strict=True):
            start = self.start(seeds)
            out.append(mls.solve(self.stored.ladder, start, times, plan, **self.process.arguments(seeds)).y)
        return torch.cat(out)

    def rule(self, rule: mls.StepRule, times: Tensor, plans: list[mls.Plan]) -> Tensor:
        """Return the images of a step rule, one plan a quarter."""
        out = []
        for seeds, plan in zip(self.parts, plans, strict=True):
            start = self.start(seeds)
            noise = {name: self.process.arguments(seeds)[name] for name in ("diffusion", "brownian")}
            out.append(mls.solve(self.stored.ladder, start, times, plan, step=rule, **noise).y)
        return torch.cat(out)

    def foreign(self, make: Callable[[], Any], times: Tensor) -> Tensor:
        """Return the images of one of diffusers' schedulers on the top level."""
        top, schedule, points = self.stored.ladder.drifts[-1], self.stored.schedule, times.tolist()
        out = []
        for seeds in self.parts:
            x, scheduler = self.start(seeds), make()
            scheduler.set_timesteps(len(points) - 1)
            # The table of betas is replaced: our noise levels sigma / alpha, our continuous times for the network.
            scheduler.sigmas = torch.tensor([schedule.sigma(t) / schedule.alpha(t) for t in points])
            scheduler.set_begin_index(0)
            brownian = self.process.arguments(seeds)["brownian"]
            noises = brownian.like(x).increments(times) if brownian is not None else None
            for (t, s), moment in zip(pairwise(points), times.to(self.device), strict=False):
                extra = {} if noises is None else {"variance_noise": next(noises) / math.sqrt(t - s)}
                x = scheduler.step(top(x, moment), t, x, return_dict=False, **extra)[0]
            out.append(x)
        return torch.cat(out)

    def row(self, run: Run, single: bool, squared: Tensor, seconds: float) -> Row:
        """Return what the squared errors of a run's images, (B,), and the seconds it took say about its method."""
        method, budget, _, plans = run
        costs = torch.tensor(self.stored.ladder.costs, dtype=torch.float64) / self.stored.ladder.costs[-1]
        cost = sum(float(plan.evaluations.double() @ costs) for plan in plans) / QUARTERS if plans else budget
        squared = squared.cpu()
        error, middle = float(squared.std()) / self.images**0.5, float(squared.median())
        errors = (float(squared.mean()), error, middle, typical(squared))
        return Row(method, budget, cost, seconds / self.images, *errors, single=single)


Run = tuple[str, float, Callable[[], Tensor], list[mls.Plan]]


def single_runs(bench: Bench, budgets: tuple[int, ...]) -> Iterator[Run]:
    """Yield the samplers of the largest network alone: method, budget, what samples, the plans of the quarters."""
    ladder, process, ode = bench.stored.ladder, bench.process, bench.process.tau == 0
    common: dict[str, Any] = {"prediction_type": "sample"}
    if ode:
        foreign: dict[str, Callable[[], Any]] = {
            "DPM++ 2M": lambda: DPMSolverMultistepScheduler(solver_order=2, **common),
            "DPM++ 3M": lambda: DPMSolverMultistepScheduler(solver_order=3, **common),
            "UniPC": lambda: UniPCMultistepScheduler(solver_order=3, **common),
        }
    else:
        foreign = {"DPM++ 2M": lambda: DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", **common)}
    rules: dict[str, mls.StepRule] = {
        f"SA-Solver {order}/{order}": SASolver(process.schedule, process.tau, predictor=order, corrector=order)
        for order in (2, 3)
    }
    if ode:
        rules["forward value"] = ForwardValue(process.schedule)
    for n, place in product(budgets, GRIDS):
        times = process.grid(n) if place == "uniform" else process.log_snr_grid(n)
        plans = [mls.em_plan(ladder, times)] * QUARTERS
        yield f"EM, {place}", n, lambda times=times, plans=plans: bench.solve(times, plans), plans
        for name, make in foreign.items():
            yield f"{name}, {place}", n, lambda times=times, make=make: bench.foreign(make, times), []
        for name, rule in rules.items():
            rows = [mls.em_plan(ladder, times, step=rule)] * QUARTERS
            yield f"{name}, {place}", n, lambda rule=rule, t=times, rows=rows: bench.rule(rule, t, rows), rows


def ladder_runs(bench: Bench, budgets: tuple[int, ...]) -> Iterator[Run]:
    """Yield the samplers of the ladder, as `single_runs`."""
    ladder, pilot = bench.stored.ladder, bench.pilot
    adams = SASolver(bench.process.schedule, bench.process.tau, predictor=2, corrector=2)
    for n in budgets:
        budget = n * ladder.costs[-1]
        if budget < pilot.steps * ladder.costs[-1]:
            table = pilot.schedule(budget=budget)
            generator = torch.Generator().manual_seed(n)
            for draw, kind in ((mls.independent, "independently"), (mls.systematic, "systematically")):
                drawn = [mls.draw_plan(table, draw, generator=generator) for _ in range(QUARTERS)]
                yield f"{DRAWN} {kind}", n, lambda plans=drawn: bench.solve(pilot.times, plans), drawn
                stored = [mls.remember(plan, table, pilot.memory()) for plan in drawn]
                name = f"{DRAWN} {kind}, stored corrections"
                yield name, n, lambda plans=stored: bench.solve(pilot.times, plans), stored
            yield (
                f"{DRAWN} systematically, SA-Solver 2/2",
                n,
                lambda plans=drawn: bench.rule(adams, pilot.times, plans),
                drawn,
            )
        choice = pilot.choice(budget=budget)
        plans = [choice.plan] * QUARTERS
        yield "one level a step, chosen", n, lambda t=choice.times, plans=plans: bench.solve(t, plans), plans
        for name, memory in (("ML-EM, pilot's plan, impulses", False), (PILOT, True)):
            best = pilot.plan(budget=budget, memory=memory)
            plans = [best.plan] * QUARTERS
            yield name, n, lambda times=best.times, plans=plans: bench.solve(times, plans), plans
        fitted = stored_plan(bench.stored, bench.mode, n)
        if fitted is not None:
            plans = [fitted[0]] * QUARTERS
            yield FITTED, n, lambda times=fitted[1], plans=plans: bench.solve(times, plans), plans


def fitted_runs(bench: Bench, case: bench_fitted.Case, budgets: Sequence[int]) -> Iterator[Run]:
    """Yield the fitted largest network, as `single_runs`."""
    for n in budgets:
        plan, times, _ = case.fit(n, bench_fitted.FIT)
        plans = [plan] * QUARTERS
        yield ALONE, n, lambda times=times, plans=plans: bench.solve(times, plans), plans


def all_runs(bench: Bench, budgets: tuple[int, ...], fitted: Iterable[Run] = ()) -> list[tuple[Run, bool]]:
    """Return all runs, and whether each needs the largest network alone."""
    singles, ladders = [*single_runs(bench, budgets), *fitted], ladder_runs(bench, budgets)
    return [*((run, True) for run in singles), *((run, False) for run in ladders)]


def open_bench(name: str, mode: str, images: int) -> Bench:
    """Return a process on a shipped ladder with its pilot."""
    stored = load_ladder(shipped_ladder(name))
    pilot = stored_pilot(stored, mode)
    if pilot is None:
        raise ValueError(f"the ladder {name} has no pilot for {mode}; write one with multilevel_sde.pilot and save")
    return Bench(stored, Process(stored.schedule, MODES[mode], uniform(stored.schedule, FINE)), pilot, images, mode)


def measure(name: str, mode: str, images: int, budgets: tuple[int, ...], options: argparse.Namespace) -> None:
    """Measure every method on one process of one ladder, and keep every row as it comes."""
    bench, path = open_bench(name, mode, images), options.out / f"samplers_{name}_{mode}.json"
    known = json.loads(path.read_bytes()) if path.is_file() else {}
    kept = known["rows"] if known.get("images") == images and not options.anew else []
    kept = [row for row in kept if row["method"] not in options.again]
    done = {(row["method"], row["budget"]) for row in kept}
    case = bench_fitted.Case(name, mode, options.out if options.quick else bench_fitted.RESULTS)
    fits = [] if options.quick else [n for n in options.fits if (ALONE, n) not in done]
    runs = all_runs(bench, budgets, fitted_runs(bench, case, fits))
    order = {run[:2]: place for place, (run, _) in enumerate(runs)}
    todo = [(run, single) for run, single in runs if run[:2] not in done]
    if not todo:
        return
    about = {"ladder": name, "mode": mode, "images": images, "gamma": bench.pilot.rates.cost_exponent}
    with torch.no_grad():
        reference = case.target(0, images)
        for run, single in tqdm(todo, desc=f"{name} {mode}", unit="run"):
            begin = time.process_time()
            squared = (run[2]() - reference).double().square().flatten(1).mean(1)
            kept.append(asdict(bench.row(run, single, squared, time.process_time() - begin)))
            kept.sort(key=lambda row: order.get((row["method"], row["budget"]), len(order)))
            write_json(path, about | {"machine": machine(), "rows": kept})


def main() -> None:
    """Measure what was asked for, then print and draw all that lies in the folder."""
    parser = parser_of(__file__, __doc__)
    parser.add_argument("--ladders", nargs="*", choices=IMAGES, default=list(IMAGES), help="none: only redraw [all]")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="[both]")
    parser.add_argument("--images", type=int, help="a multiple of 4 [32 digits, 16 dead leaves]")
    parser.add_argument("--again", nargs="*", default=[], metavar="METHOD", help="measure these once more [none]")
    parser.add_argument("--anew", action="store_true", help="measure everything again, as after a change of the noise")
    parser.add_argument(
        "--fits", nargs="*", type=int, default=list(FITS), help="budgets of the fitted network %(default)s"
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run: digits, 8 images, two budgets, no fits")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, mode in product(["digits"] if options.quick else options.ladders, options.modes):
        images = 8 if options.quick else options.images or IMAGES[name]
        if images < 8 or images % QUARTERS:
            parser.error(f'"--images" must be a multiple of {QUARTERS}, at least 8, got {images}')
        measure(name, mode, images, BUDGETS[:2] if options.quick else BUDGETS, options)
    names = [f"{name}_{mode}" for name, mode in product(IMAGES, MODES)]
    publish(options.out, "samplers", names, markdown, plot)


if __name__ == "__main__":
    main()
