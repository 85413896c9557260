"""How do time and memory of a solve grow with the batch, the state, the steps and the levels, and how large can it be?

1. Time (CPU, one thread) and the peak of live tensor memory, along each of the four in turn, for ODEs and SDEs; fitted
   exponents over the larger half of the sizes. Linear is 1; memory must not grow with the steps but for the plan's and
   the grid's own few bytes.
2. A million steps on a state of 8 numbers: resident memory that the solve adds to its plan and grid.
3. A state of 1 GiB (64 x 2^22 numbers, float32): peak of resident memory above that of the process with its initial
   state, in units of the state. An Euler step out of place needs 3 at once, y_n, f(y_n) and y_{n+1}, and an
   Euler-Maruyama step its noise as well: 4. The noise is on a given grid (`grid=times`); the stated grid holds one more
   state for every split of Levy's construction above it.

Parts 2 and 3 run in processes of their own; part 3 needs 7 GiB.

    python benchmarks/growth/bench_growth.py               # about 3 minutes of an idle core
    python benchmarks/growth/bench_growth.py --parts 1 2   # without the large state
    python benchmarks/growth/bench_growth.py --quick --out /tmp/growth
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import argparse
import json
import statistics
import subprocess
import sys
import time
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

import multilevel_sde as mls
from benchmarks.common import machine, parser_of, table, write_figure, write_json
from multilevel_sde.files import write_atomically

GIB = (64, 1 << 22)
MILLION = 1_000_000


class LiveBytes(TorchDispatchMode):
    """Counts the memory of the tensors that are alive, and its peak, exactly and on any machine.

    Arguments:
        known: Tensors from before, which are not counted.
        least: Bytes below which a piece of memory is not counted.
    """

    def __init__(self, known: Iterable[Tensor] = (), least: int = 0):
        super().__init__()
        self.now = self.peak = 0
        self._least = least
        self._live = dict.fromkeys((x.untyped_storage()._cdata for x in known), 0)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run the operation, and take note of memory that it made."""
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                storage = x.untyped_storage()
                if storage._cdata not in self._live and storage.nbytes() >= self._least:
                    self._live[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self._freed, storage._cdata)
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
        return result

    def _freed(self, place: int) -> None:
        self.now -= self._live.pop(place, 0)


@dataclass(frozen=True)
class Size:
    """One solve: a state of batch x elements, so many steps, so many levels, all of them with draws."""

    batch: int = 64
    elements: int = 16
    steps: int = 50
    levels: int = 1
    noisy: bool = False

    def solver(self) -> tuple[Tensor, dict]:
        """Return the initial state and the arguments of `solve`."""
        times = torch.linspace(0.0, 1.0, self.steps + 1, dtype=torch.float64)
        drifts = [lambda y, t, k=k: y * -(1 + 0.1 / k) for k in range(1, self.levels + 1)]
        ladder = mls.Ladder(drifts, costs=[2.0**k for k in range(self.levels)])
        p = torch.tensor([1.0] + [0.5] * (self.levels - 1), dtype=torch.float64).expand(self.steps, -1)
        plan = mls.draw_plan(p, mls.systematic, generator=torch.Generator().manual_seed(0))
        arguments = {"ladder": ladder, "times": times, "plan": plan}
        if self.noisy:
            arguments |= {"diffusion": 0.1, "brownian": mls.BrownianPath(range(self.batch), grid=times)}
        return torch.ones(self.batch, self.elements), arguments


def live_peak(size: Size, least: int = 0) -> int:
    """Return the peak of live tensor memory during a solve beside its arguments, in bytes."""
    y0, arguments = size.solver()
    with LiveBytes([y0], least) as count:
        mls.solve(y0=y0, **arguments)
    return count.peak


def seconds(size: Size, rounds: int) -> list[float]:
    """Return the CPU times of solves after one to warm up."""
    y0, arguments = size.solver()
    found = []
    for _ in range(rounds + 1):
        start = time.process_time()
        mls.solve(y0=y0, **arguments)
        found.append(time.process_time() - start)
    return found[1:]


def sweeps(quick: bool) -> Iterator[tuple[str, list[Size]]]:
    """Yield what grows, and the sizes."""
    last = -3 if quick else None
    for noisy in (False, True):
        kind = "SDE" if noisy else "ODE"
        yield f"{kind}, batch", [Size(batch=4**n, noisy=noisy) for n in range(9)][:last]
        yield f"{kind}, state", [Size(batch=8, elements=4**n, noisy=noisy) for n in range(10)][:last]
        yield f"{kind}, steps", [Size(elements=64, steps=50 * 4**n, noisy=noisy) for n in range(5)][:last]
        yield f"{kind}, levels", [Size(levels=2**n, elements=1024, noisy=noisy) for n in range(5)][:last]


def grown(name: str, size: Size) -> float:
    """Return the number that a sweep varies."""
    varied = {"batch": size.batch, "state": size.elements, "steps": size.steps, "levels": size.levels}
    return varied[name.split(", ")[1]]


def exponent(sizes: list[float], values: list[float]) -> float:
    """Fit the power over the larger half of the sizes."""
    half = len(sizes) // 2
    return float(np.polyfit(np.log(sizes[half:]), np.log(values[half:]), 1)[0])


def measure(quick: bool) -> list[dict]:
    """Run all sweeps."""
    rows = []
    everything = [(name, size) for name, sizes in sweeps(quick) for size in sizes]
    for name, size in tqdm(everything, unit="solve"):
        times = seconds(size, 3 if quick else 5)
        low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
        counted = live_peak(size) if size.steps <= 1000 else None
        row = {"sweep": name, "size": f"{grown(name, size):g}", "seconds": middle}
        rows.append(row | {"seconds_low": low, "seconds_high": high, "peak_bytes": counted})
    return rows


def resident(name: str) -> int:
    """Return resident memory in bytes: VmRSS now, or VmHWM, the most since the process began or `alone` forgot it."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith(name)).split()[1]) * 1024


def alone(size: Size) -> dict:
    """Solve once in this process: what resident memory its peak added to that with the arguments made."""
    torch.set_num_threads(1)
    y0, arguments = Size(noisy=size.noisy, levels=size.levels).solver()
    mls.solve(y0=y0, **arguments)
    y0, arguments = size.solver()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that of now
    before, start = resident("VmRSS"), time.process_time()
    mls.solve(y0=y0, **arguments)
    return {"added_bytes": resident("VmHWM") - before, "seconds": time.process_time() - start}


def in_a_process(size: Size) -> dict:
    """Run `alone` in a process of its own."""
    command = [sys.executable, __file__, "--alone", json.dumps(vars(size))]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def large(parts: list[int], quick: bool) -> Iterator[dict]:
    """Run parts 2 and 3, and yield each row."""
    shape = (64, 1 << 14) if quick else GIB
    for noisy in (False, True):
        kind = "SDE" if noisy else "ODE"
        for steps in (MILLION // 100, MILLION // 100 if quick else MILLION) if 2 in parts else ():
            found = in_a_process(Size(batch=1, elements=8, steps=steps, noisy=noisy))
            yield {"run": f"{kind}, state of 8, {steps} steps", "units": None} | found
        if 3 in parts:
            found = in_a_process(Size(*shape, steps=4, noisy=noisy))
            units = found["added_bytes"] / (4 * shape[0] * shape[1])
            yield {"run": f"{kind}, state of {shape[0]} x {shape[1]}, 4 steps", "units": units} | found


def markdown(result: dict) -> str:
    """Return the tables."""
    lines = ["# Growth", "", "`python benchmarks/growth/bench_growth.py`; its docstring says what is measured.", ""]
    lines += [", ".join(f"{name} {value}" for name, value in result["machine"].items()) + ".", ""]
    body = []
    for name in dict.fromkeys(row["sweep"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["sweep"] == name]
        sizes = [float(row["size"]) for row in rows]
        counted = [row for row in rows if row["peak_bytes"]]
        memory = exponent([float(row["size"]) for row in counted], [row["peak_bytes"] for row in counted])
        slope = exponent(sizes, [row["seconds"] for row in rows])
        ends = " to ".join(f"{rows[n]['seconds'] * 1e3:.3g}" for n in (0, -1))
        peaks = " to ".join(f"{counted[n]['peak_bytes'] / 2**20:.3g}" for n in (0, -1))
        body.append([name, f"{sizes[0]:g} to {sizes[-1]:g}", ends, f"{slope:.2f}", peaks, f"{memory:.2f}"])
    lines += [*table(["", "size", "ms", "exponent of time", "peak MiB", "exponent of memory"], body), ""]
    if result["large"]:
        body = []
        for row in result["large"]:
            units = "" if row["units"] is None else f"{row['units']:.2f}"
            body.append([row["run"], f"{row['seconds']:.1f}", f"{row['added_bytes'] / 2**20:.1f}", units])
        lines += [*table(["one solve", "CPU s", "added resident MiB", "in states"], body), ""]
    return "\n".join(lines)


def plot(path: Path, rows: list[dict]) -> None:
    """Write time and peak memory against each size."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(14, 6), layout="constrained")
    panels = figure.subplots(2, 4)
    for column, what in enumerate(("batch", "state", "steps", "levels")):
        for kind in ("ODE", "SDE"):
            found = [row for row in rows if row["sweep"] == f"{kind}, {what}"]
            for axes, key, scale in zip(panels[:, column], ("seconds", "peak_bytes"), (1e3, 2**-20), strict=True):
                points = [(float(row["size"]), row[key] * scale) for row in found if row[key]]
                axes.loglog(*zip(*points, strict=True), "o-", label=kind, ms=4)
                if kind == "SDE":
                    (x, _), (end, y) = points[0], points[-1]
                    axes.loglog([x, end], [y * x / end, y], ":", color="0.5", label="linear")
        for axes in panels[:, column]:
            axes.xaxis.set_minor_formatter(NullFormatter())
        panels[1, column].set_xlabel({"state": "elements of a sample"}.get(what, what))
    panels[0, 0].set_ylabel("CPU time of a solve, ms")
    panels[1, 0].set_ylabel("peak of live tensors, MiB")
    panels[0, 0].legend(frameon=False)
    write_figure(path, figure, dpi=100)


def main() -> None:
    """Measure, print, write."""
    parser = parser_of(__file__, __doc__)
    parser.add_argument("--parts", type=int, nargs="*", choices=(1, 2, 3), default=[1, 2, 3], help="none: redraw [all]")
    parser.add_argument("--quick", action="store_true", help="a smoke run: small sizes")
    parser.add_argument("--alone", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(alone(Size(**options.alone))))
        return
    torch.set_num_threads(1)
    path = options.out / "growth.json"
    result = json.loads(path.read_bytes()) if path.is_file() else {"rows": [], "large": []}
    result["machine"] = machine()
    if 1 in options.parts:
        result["rows"] = measure(options.quick)
        write_json(path, result)
    for row in large(options.parts, options.quick):
        result["large"] = [old for old in result["large"] if old["run"] != row["run"]] + [row]
        write_json(path, result)
    text = markdown(result)
    write_atomically(options.out / "growth.md", text.encode())
    plot(options.out / "growth.png", result["rows"])
    print(text)


if __name__ == "__main__":
    main()
