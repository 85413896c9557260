"""What does a solver cost beside the arithmetic: against the shortest loop by hand, and against other libraries?

Euler's method and Euler-Maruyama on dy = -y dt + 0.5 dW from 0 to 1, states of 1x1, 128x5 and 512x256 in float32, 50,
200 and 1000 steps, the same arithmetic everywhere: one evaluation of the drift a step. The settings are in peers.py.

- ODE: torchdiffeq, scipy's solve_ivp (float64; with Euler's tableau, and RK23 with as many evaluations), diffrax.
- SDE, stored increments: every solver is given the same increments. What is left is the loop.
- SDE, own noise: every solver draws its own; ours with one seed a sample. The loop by hand uses our noise, and another
  one torch.randn, which is what one writes without a library. torchsde as it comes and in its fast settings.
- Ladder of 3, a systematic plan, stored increments: against a loop by hand over the same plan's coefficients.
- A drift of 5 ms: what is left of the overhead beside a network.

Solvers take turns (A B C A B C ...), after one turn to warm up (and to compile); a ratio is the median of the ratios
within a turn, with its quartiles. Times are CPU time of the process on one thread, as others on the machine disturb it
less than the clock; wall-clock time is in the JSON. Where the noise is the same, a solver that ends more than 1e-4 from
the loop by hand stops the run. Settings of a peer that took more than 1.5 times its best one are left out at the next
number of steps. diffrax is compiled and of another framework: it shows what a compiler gains, not what a library does.

    python benchmarks/overhead/bench_overhead.py        # about 5 minutes of an idle core; goes on where it was stopped
    python benchmarks/overhead/bench_overhead.py --quick --out /tmp/overhead
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.common import machine, parser_of, table, write_figure, write_json
from benchmarks.overhead import cases as solves
from benchmarks.overhead import peers
from benchmarks.overhead.cases import Case, Runs
from multilevel_sde.files import write_atomically

SHAPES = ((1, 1), (128, 5), (512, 256))
STEPS = (50, 200, 1000)
ODE, STORED, OWN = "ODE", "SDE, stored increments", "SDE, own noise"
LADDER, SLOW = "ladder of 3, stored increments", "drift of 5 ms"
HAND, OURS = "bare loop", "solve"
OTHER = ("solve, torch.randn", "solve, check_finite=False")  # without seeds of samples, without looking for NaN
TORCH_PEERS = ("torchsde", "torchdiffeq")
TOLERANCE = 1e-4
SAMPLE = 3e-3  # seconds that one timing lasts at least
GOAL = 1.5
Makers = Sequence[Callable[[Case], Runs]]


@dataclass(frozen=True)
class Row:
    """One solver on one case; microseconds a step, quartiles in `_low` and `_high`, ratios to the loop by hand."""

    kind: str
    state: str
    steps: int
    solver: str
    cpu_us: float
    cpu_us_low: float
    cpu_us_high: float
    wall_us: float
    ratio: float
    ratio_low: float
    ratio_high: float
    turns: int


def slow(y: Tensor, t: Tensor) -> Tensor:
    """Spend 5 ms of CPU time."""
    end = time.thread_time() + 5e-3
    while time.thread_time() < end:
        pass
    return -y


def cases(quick: bool) -> Iterator[tuple[str, Case, Makers]]:
    """Yield the kind, the case, and who solves it."""
    others = (peers.torchsde_runs, peers.torchdiffeq_runs, peers.scipy_runs, peers.diffrax_runs)
    for kind in (ODE, STORED, OWN, LADDER):
        for shape in SHAPES[:2] if quick else SHAPES:
            for steps in STEPS[:1] if quick else STEPS:
                case = Case(shape, steps, noisy=kind != ODE, stored=kind in (STORED, LADDER))
                yield kind, case, (solves.ladder_runs,) if kind == LADDER else (solves.by_hand, solves.ours, *others)
    for noisy in (False, True):
        yield (
            f"{SLOW}, {'SDE' if noisy else 'ODE'}",
            Case((128, 5), 40, noisy, drift=slow),
            (solves.by_hand, solves.ours),
        )


def runs_of(case: Case, makers: Makers, missing: set[str], left_out: set[str]) -> Runs:
    """Return the runs of those that are installed."""
    found: Runs = {}
    for make in makers:
        try:
            found |= make(case)
        except ImportError as error:
            missing.add(f"{error.name} is not installed and left out; pip install -e '.[benchmarks]' brings it")
    return {name: run for name, run in found.items() if name not in left_out}


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))  # type: ignore[return-value]


def check(name: str, case: Case, y: Tensor, expected: Tensor) -> None:
    """Stop where a solver did something else: where noise is its own, only that the state is finite."""
    same = name != "scipy, RK23 of 3 evaluations a step" and (not case.noisy or case.stored)
    worst = float((y - expected).abs().max()) if same else 0.0
    if not (bool(y.isfinite().all()) and worst < TOLERANCE):
        raise SystemExit(f"{name} differs from the loop by hand by {worst:.2g} on {case.shape}, {case.steps} steps")


def measure(kind: str, case: Case, runs: Runs, seconds: float) -> list[Row]:
    """Time the runs in turns for about so many seconds; a slow run takes part in fewer turns, but in two."""
    expected = runs[HAND]()
    share, spent, number = seconds / len(runs), dict.fromkeys(runs, 0.0), {}
    for name, run in runs.items():
        start = time.perf_counter()
        check(name, case, run(), expected)
        spent[name] = time.perf_counter() - start
        if spent[name] < 1:  # else there is no need to know better how long it takes
            start = time.perf_counter()
            run()
            spent[name] = time.perf_counter() - start
        number[name] = max(1, math.ceil(SAMPLE / spent[name]))
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    wall: dict[str, list[float]] = {name: [] for name in runs}
    while turn := [name for name in runs if len(cpu[name]) < 2 or spent[name] < share]:
        for name in {HAND: None, **dict.fromkeys(turn)}:
            start, begin = time.perf_counter(), time.process_time()
            for _ in range(number[name]):
                runs[name]()
            cpu[name].append((time.process_time() - begin) / number[name])
            wall[name].append((time.perf_counter() - start) / number[name])
            spent[name] += wall[name][-1] * number[name]
    rows, scale = [], 1e6 / case.steps
    for name in runs:
        low, middle, high = (value * scale for value in quartiles(cpu[name]))
        ratio_low, ratio, ratio_high = quartiles([a / b for a, b in zip(cpu[name], cpu[HAND], strict=False)])
        state = "x".join(map(str, case.shape))
        times = (middle, low, high, statistics.median(wall[name]) * scale)
        rows.append(Row(kind, state, case.steps, name, *times, ratio, ratio_low, ratio_high, len(cpu[name])))
    return rows


def slow_settings(rows: Sequence[Row], kind: str, state: str) -> set[str]:
    """Settings of a peer that took more than 1.5 times its best one at the largest number of steps so far."""
    latest: dict[str, Row] = {row.solver: row for row in rows if (row.kind, row.state) == (kind, state)}
    found = set()
    for name, row in latest.items():
        peer = name.split(",")[0]
        best = min(other.cpu_us for other in latest.values() if other.solver.split(",")[0] == peer)
        if peer not in (HAND, OURS) and row.cpu_us > 1.5 * best:
            found.add(name)
    return found


def best_of(rows: Sequence[Row], *owners: str) -> Row | None:
    """Return the fastest setting of the given libraries that does the whole work."""
    chosen = (row for row in rows if row.solver.split(",")[0] in owners and row.solver not in OTHER)
    return min(chosen, key=lambda row: row.cpu_us, default=None)


def cells(rows: Sequence[Row]) -> list[str]:
    """Return the cells of one case: the loop by hand, ours over it, the others over `solve` as it comes."""
    by = {row.solver: row for row in rows}
    plain = by[OURS]
    shown = [plain.state, str(plain.steps), f"{by[HAND].cpu_us:.1f}", f"{plain.cpu_us:.1f}"]
    shown.append(f"{plain.ratio:.2f} ({plain.ratio_low:.2f} to {plain.ratio_high:.2f})")
    for name in ("solve, check_finite=False", "solve, grid=times", "solve, torch.randn"):
        shown.append(f"{by[name].ratio:.2f}" if name in by else "")
    written = by.get("bare loop, as one writes it")
    shown.append("" if written is None else f"{plain.cpu_us / written.cpu_us:.2f}")
    for owners in (("torchsde",), ("torchdiffeq",), ("scipy",), ("diffrax",)):
        row = best_of(rows, *owners)
        shown.append("" if row is None else f"{row.cpu_us / plain.cpu_us:.2f}")
    default = by.get("torchsde, default")
    shown.append("" if default is None else f"{default.cpu_us / plain.cpu_us:.1f}")
    return shown


def grouped(rows: Sequence[Row]) -> dict[str, dict[tuple[str, int], list[Row]]]:
    """Return the rows by kind, then by state and steps."""
    found: dict[str, dict[tuple[str, int], list[Row]]] = {}
    for row in rows:
        found.setdefault(row.kind, {}).setdefault((row.state, row.steps), []).append(row)
    return found


def goals(rows: Sequence[Row]) -> list[str]:
    """Say where the goals are missed: fastest of the torch libraries, within 1.5 of the loop by hand."""
    lost, far, count = [], [], 0
    for kind, by_case in grouped(rows).items():
        for (state, steps), found in by_case.items():
            count, where = count + 1, f"{kind}, {state}, {steps} steps"
            fastest, plain = best_of(found, *TORCH_PEERS), next(row for row in found if row.solver == OURS)
            tuned = min(row.cpu_us for row in found if row.solver in (OURS, "solve, grid=times"))
            if fastest is not None and fastest.cpu_us < plain.cpu_us:
                shares = f"{fastest.cpu_us / plain.cpu_us:.2f} of the time of solve, {fastest.cpu_us / tuned:.2f}"
                lost.append(f"- {where}: {fastest.solver} takes {shares} with the noise's grid given")
            if plain.ratio > GOAL:
                far.append(f"- {where}: {plain.ratio:.2f}")
    lines = [f"Fastest torch library as it comes: missed on {len(lost)} of {count} cases.", *lost, ""]
    return [*lines, f"Within {GOAL} of the loop by hand: missed on {len(far)} of {count} cases.", *far]


def markdown(result: dict, rows: Sequence[Row]) -> str:
    """Return all tables."""
    lines = [
        "# Overhead",
        "",
        "`python benchmarks/overhead/bench_overhead.py`; its docstring says what is compared.",
        "",
    ]
    lines += [", ".join(f"{name} {value}" for name, value in result["machine"].items()) + ".", ""]
    lines += [
        "CPU microseconds a step; in brackets the quartiles of the ratio. Columns of peers: the time of their best"
    ]
    lines += ["setting over that of solve as it comes, so above 1 solve is faster.", ""]
    head = ["state", "steps", "bare loop", "solve", "solve/bare", "unchecked/bare", "grid=times/bare", "randn/bare"]
    head.append("solve/loop as one writes it")
    head += ["torchsde", "torchdiffeq", "scipy", "diffrax", "torchsde, default"]
    for kind, by_case in grouped(rows).items():
        body = [cells(found) for found in by_case.values()]
        used = [n for n in range(len(head)) if any(row[n] for row in body)]
        lines += [f"## {kind}", "", *table([head[n] for n in used], [[row[n] for n in used] for row in body]), ""]
    return "\n".join([*lines, "## Goals", "", *goals(rows), ""])


def plot(path: Path, rows: Sequence[Row]) -> None:
    """Write time over that of the loop by hand, one panel a kind."""
    from matplotlib.figure import Figure

    kinds = {kind: by_case for kind, by_case in grouped(rows).items() if not kind.startswith(SLOW)}
    figure = Figure(figsize=(4.2 * len(kinds), 4.6), layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    owners = (OURS, *TORCH_PEERS, "scipy", "diffrax")
    for axes, (kind, by_case) in zip(panels, kinds.items(), strict=True):
        for place, owner in enumerate(owners):
            best = [best_of(found, owner) for found in by_case.values()]
            points = [(n, row.ratio) for n, row in enumerate(best) if row is not None]
            if points:
                axes.semilogy(*zip(*points, strict=True), "o-", color=f"C{place}", label=owner, ms=4)
        axes.axhline(1.0, color="black", linewidth=1)
        axes.axhline(GOAL, color="black", linewidth=1, linestyle=":")
        axes.set_xticks(range(len(by_case)), [f"{s} | {n}" for s, n in by_case], rotation=75, fontsize=8)
        axes.set_title(kind, fontsize=10)
    panels[0].set_ylabel("CPU time / that of the loop by hand")
    handles = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    write_figure(path, figure, dpi=110)


def main() -> None:
    """Measure what is not measured yet, then write tables and figure."""
    parser = parser_of(__file__, __doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="for each case, beside warming up [6]")
    parser.add_argument("--quick", action="store_true", help="a smoke run: two small states, 50 steps, short")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="torchsde")
    part = options.out / "overhead.part.json"
    rows = [Row(**row) for row in json.loads(part.read_bytes())] if part.is_file() else []
    missing: set[str] = set()
    for kind, case, makers in tqdm([*cases(options.quick)], unit="case"):
        state = "x".join(map(str, case.shape))
        if not any((row.kind, row.state, row.steps) == (kind, state, case.steps) for row in rows):
            runs = runs_of(case, makers, missing, slow_settings(rows, kind, state))
            rows += measure(kind, case, runs, 0.5 if options.quick else options.seconds)
            write_atomically(part, json.dumps([asdict(row) for row in rows]).encode())
    result = {"machine": machine(), "rows": [asdict(row) for row in rows]}
    text = markdown(result, rows)
    write_json(options.out / "overhead.json", result)
    write_atomically(options.out / "overhead.md", text.encode())
    plot(options.out / "overhead.png", rows)
    part.unlink()
    print("\n".join([text, *sorted(missing)]))


if __name__ == "__main__":
    main()
