"""What does the sampler cost beside the networks it evaluates, and is its time linear in their evaluations?

Everything that is not the network counts as the sampler's: its loop, the step, the noise, the clipping and the
conversion of the network's output. Goal: at most 3% over bare calls of the network, on the top level of the digits
(batch 64) and on a small UNet for 64x64 images. Then, with one draw shared by the batch, the time of multilevel plans
against the sum of their evaluations' bare times (goal: the same ratio at every budget).

The two sides alternate (A B A B ...), and the medians of CPU time on one thread are compared: other processes on the
machine disturb that less than wall-clock time. They still disturb it, so the ratio of the minima stands beside.

    python benchmarks/overhead/bench_sampling.py        # about 2 minutes on an idle core
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from tqdm import tqdm

import multilevel_sde as mls
from benchmarks.common import machine, parser_of, write_json
from multilevel_diffusion import CosineSchedule, EpsilonDenoiser, Process, load_ladder, shipped_ladder, uniform
from multilevel_diffusion.networks import UNet
from multilevel_diffusion.networks.unet import paper_ladder
from multilevel_diffusion.process import MODES

BUDGETS = (5, 13, 30)
STEPS = 50


def alternate(cases: Mapping[str, Callable[[], object]], rounds: int, label: str) -> dict[str, list[float]]:
    """Return the CPU seconds of each case, run in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for case in cases.values():
        case()
    for _ in tqdm(range(rounds), desc=label, unit="round"):
        for name, case in cases.items():
            begin = time.process_time()
            case()
            seconds[name].append(time.process_time() - begin)
    return seconds


def bare(network: Callable[[Tensor, Tensor], Tensor], x: Tensor, calls: int) -> Callable[[], None]:
    """Return a function that only calls the network."""
    moments = torch.full((len(x),), 0.5)

    def run() -> None:
        with torch.no_grad():
            for _ in range(calls):
                network(x, moments)

    return run


def overhead(name: str, network: UNet, batch: int, steps: int, rounds: int) -> list[dict]:
    """Compare solve() on one network with bare calls of it, for both processes."""
    schedule, shape = CosineSchedule(), network.config.image_shape
    ladder = mls.Ladder([EpsilonDenoiser(network, schedule, clip=(-1.0, 1.0))], [1.0])
    cases: dict[str, Callable[[], object]] = {}
    x = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))
    for mode, tau in MODES.items():
        process = Process(schedule, tau, uniform(schedule, steps))
        times, arguments = process.grid(steps), process.arguments(range(batch))
        plan = mls.em_plan(ladder, times)

        def sampled(times: Tensor = times, plan: mls.Plan = plan, arguments: dict = arguments) -> object:
            return mls.solve(ladder, x, times, plan, gradients=False, **arguments)

        cases[f"bare, before {mode}"] = bare(network, x, steps)
        cases[mode] = sampled
    seconds = alternate(cases, rounds, name)
    rows = []
    for mode in MODES:
        plain, sampler = seconds[f"bare, before {mode}"], seconds[mode]
        middle = [statistics.median(values) / steps * 1e3 for values in (plain, sampler)]
        rows.append(
            {"network": name, "batch": batch, "mode": mode, "bare_ms": middle[0], "sampler_ms": middle[1]}
            | {"ratio": middle[1] / middle[0], "ratio_of_minima": min(sampler) / min(plain)}
        )
    return rows


def linearity(mode: str, batch: int, rounds: int) -> list[dict]:
    """Compare multilevel plans on the digits with the bare time of their evaluations."""
    stored = load_ladder(shipped_ladder("digits"))
    ladder = stored.ladder
    process = Process(stored.schedule, MODES[mode], uniform(stored.schedule, STEPS))
    times, seeds = process.grid(STEPS), range(batch)
    x, arguments = process.start(seeds, stored.image_shape), process.arguments(seeds)
    calls = 5
    cases: dict[str, Callable[[], object]] = {
        f"level {level}": bare(network, x, calls) for level, network in enumerate(stored.networks, 1)
    }
    plans = {}
    for budget in BUDGETS:
        table = mls.InverseCostSchedule().probabilities(ladder, times, budget=budget * ladder.costs[-1])
        plans[budget] = mls.draw_plan(table, mls.systematic, generator=torch.Generator().manual_seed(budget))

        def sampled(plan: mls.Plan = plans[budget]) -> object:
            return mls.solve(ladder, x, times, plan, gradients=False, **arguments)

        cases[f"budget {budget}"] = sampled
    runs = alternate(cases, rounds, f"plans, {mode}")
    seconds = {name: statistics.median(values) for name, values in runs.items()}
    per_call = [seconds[f"level {level}"] / calls for level in range(1, len(ladder) + 1)]
    rows = []
    for budget, plan in plans.items():
        networks = sum(int(count) * each for count, each in zip(plan.evaluations, per_call, strict=True))
        measured = seconds[f"budget {budget}"]
        rows.append(
            {"mode": mode, "budget": budget, "evaluations": plan.evaluations.tolist(), "networks_s": networks}
            | {
                "sampler_s": measured,
                "ratio": measured / networks,
                "beside_ms_a_step": (measured - networks) / STEPS * 1e3,
            }
        )
    return rows


def markdown(result: dict) -> str:
    """Return the tables."""
    lines = [
        "| network | batch | process | bare call, ms | step, ms | ratio | of minima |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["overhead"]:
        lines.append(
            f"| {row['network']} | {row['batch']} | {row['mode'].upper()} | {row['bare_ms']:.2f} | "
            f"{row['sampler_ms']:.2f} | {row['ratio']:.3f} | {row['ratio_of_minima']:.3f} |"
        )
    lines += ["", "| process | budget | evaluations | networks, s | sampler, s | ratio | beside, ms a step |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for row in result["linearity"]:
        lines.append(
            f"| {row['mode'].upper()} | {row['budget']} | {row['evaluations']} | {row['networks_s']:.3f} | "
            f"{row['sampler_s']:.3f} | {row['ratio']:.3f} | {row['beside_ms_a_step']:.3f} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure, print and write."""
    parser = parser_of(__file__, __doc__)
    parser.add_argument("--rounds", type=int, default=11, help="how often each case runs [%(default)s]")
    parser.add_argument("--steps", type=int, default=10, help="steps of a run on one network [%(default)s]")
    options = parser.parse_args()
    torch.set_num_threads(1)
    digits = load_ladder(shipped_ladder("digits")).networks[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        larger = UNet(paper_ladder()[0]).eval().requires_grad_(False)
    rows = overhead("digits, top level", digits, 64, options.steps, options.rounds)
    rows += overhead("64x64, smallest of the paper's ladder", larger, 8, options.steps, options.rounds)
    plans = [row for mode in MODES for row in linearity(mode, 64, max(3, options.rounds // 2))]
    result = {"machine": machine(), "rounds": options.rounds, "overhead": rows, "linearity": plans}
    write_json(options.out / "sampling.json", result)
    print(markdown(result))


if __name__ == "__main__":
    main()
