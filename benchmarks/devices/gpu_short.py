"""The short GPU benchmark: a ladder of 64x64 images trained, priced and compared in seconds, in eight minutes.

    python benchmarks/devices/gpu.py --short --out run                        # dead leaves, rendered there
    python benchmarks/devices/gpu.py --short --out run --data folder:emoji    # pictures of your own
    python benchmarks/devices/gpu.py --short --out run --tiny --device cpu    # everything at 16x16, in a minute

The most valuable figures come first: training (five of the eight minutes, bfloat16, each network taught by the next
larger one), prices of the levels in seconds (eager, compiled, CUDA graph), then for the SDE and the ODE a pilot and the
table at batch 64 against EM, DPM-Solver++, UniPC and SA-Solver on their better grid, strips of images, the fitted
network and plan, batch 1, and one short check each of the paths that only a GPU runs. What is done is kept; call it
again to go on. `run/results` has at most eight files: short.md, short.json, two strips, and the ladder with its pilots
in half precision as one tar file.

Everything is compared as it runs fastest there: on a GPU all levels, also the rivals' one, have half precision weights
and run as CUDA graphs, if the check of the graphs passes.
"""

from __future__ import annotations

import functools
import io
import json
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

import multilevel_sde as mls
from benchmarks.common import table, write_json
from benchmarks.devices.gpu_checks import CHECKS
from benchmarks.devices.gpu_setup import Deadline, measure_pilot
from benchmarks.devices.gpu_speed import Rows, timed, variants
from benchmarks.devices.gpu_tables import hardware
from benchmarks.samplers.bench_samplers import QUARTERS, Bench, single_runs
from benchmarks.samplers.bench_seconds import FIT, PLAN, fits, markdown, pilots
from multilevel_diffusion import CosineSchedule, Process, load_ladder, uniform
from multilevel_diffusion.cheap_levels import half_weights
from multilevel_diffusion.networks import TrainSettings, train_ladder
from multilevel_diffusion.networks.by_name import open_source
from multilevel_diffusion.networks.data import Source
from multilevel_diffusion.networks.image_ladders import DiffusionLadder, ImageLadder, OwnLadder
from multilevel_diffusion.networks.patches import PatchConfig
from multilevel_diffusion.networks.store import save_ladder
from multilevel_diffusion.networks.training_state import Run
from multilevel_diffusion.process import MODES
from multilevel_diffusion.sampling.pictures import save_rows
from multilevel_diffusion.sampling.prices import in_seconds
from multilevel_sde.files import write_atomically

__all__ = ["SHORT", "TINY_SHORT", "Short", "ShortRun", "in_halves", "run_short"]

_SHOWN = 8


@dataclass(frozen=True)
class Short:
    """The sizes of everything.

    Arguments:
        configs: The networks, cheapest first.
        minutes: Of training, all networks together.
        shares: Of these minutes, by network.
        training: How to train; the steps follow from the minutes and the speed that is measured.
        fine: Steps of the reference path.
        pilot_samples: Trajectories of a pilot.
        candidates: Its candidates for DDPM and for DDIM.
        budgets: Of the table, in evaluations of the largest network.
        fitted: Budgets of the fits.
        batch: Images that are computed together; the table has four such batches.
        compiler: Backend of torch.compile.
    """

    configs: tuple[PatchConfig, ...]
    minutes: float
    shares: tuple[float, ...]
    training: TrainSettings
    fine: int = 1000
    pilot_samples: int = 32
    candidates: tuple[int, int] = (100, 56)
    budgets: tuple[int, ...] = (5, 8, 12, 20, 35)
    fitted: tuple[int, ...] = (5, 8)
    batch: int = 64
    compiler: str = "inductor"


SHORT = Short(
    tuple(
        PatchConfig(*shape, image_size=64) for shape in [(8, 64, 1, 0), (8, 128, 2, 0), (4, 72, 3, 1), (2, 100, 6, 4)]
    ),
    minutes=5.0,
    shares=(0.07, 0.1, 0.2, 0.63),
    training=TrainSettings(1, batch_size=128, learning_rate=1.5e-3, log_every=50, checkpoint_every=250, velocity=True),
)
TINY_SHORT = Short(
    tuple(PatchConfig(*shape, image_size=16) for shape in [(8, 8, 1, 0), (4, 8, 1, 0), (4, 16, 1, 1)]),
    minutes=0.01,
    shares=(0.2, 0.2, 0.6),
    training=TrainSettings(1, batch_size=8, warmup=2, log_every=2, checkpoint_every=2, velocity=True),
    fine=60,
    pilot_samples=8,
    candidates=(12, 12),
    budgets=(5,),
    fitted=(5,),
    batch=2,
    compiler="eager",
)


class ShortRun:
    """One run in its folder; every step keeps what it found, and the report is written after each."""

    def __init__(self, settings: Short, data: str, out: Path, device: torch.device):
        self.settings, self.data, self.out, self.device = settings, data, out, device
        self.folder, self.results = out / "ladder", out / "results"
        self._facts = out / "facts.json"
        self.facts: dict[str, Any] = json.loads(self._facts.read_bytes()) if self._facts.is_file() else {}

    @property
    def steps(self) -> dict[str, Callable[[Deadline], Any]]:
        """What is to be done, the most valuable first."""
        every: dict[str, Callable[[Deadline], Any]] = {"train": self._train, "graphs": self._check("graphs")}
        every["levels"] = self._levels
        for mode in MODES:
            every |= {f"pilot {mode}": functools.partial(self._pilot, mode)}
            every |= {f"table {mode}": functools.partial(self._table, mode, self.settings.batch, False)}
            every |= {f"strip {mode}": functools.partial(self._strip, mode)}
        every["ladder"] = self._pack
        for mode in reversed(MODES):
            every[f"fits {mode}"] = functools.partial(self._table, mode, self.settings.batch, True)
        for mode in MODES:
            every[f"batch 1 {mode}"] = functools.partial(self._table, mode, 1, False)
        return every | {name: self._check(name) for name in CHECKS if name != "graphs"}

    def keep(self, name: str, value: Any) -> None:
        """Keep a fact and write the report anew."""
        self.facts[name] = value
        write_json(self._facts, self.facts)
        self._report()

    # -- steps --------------------------------------------------------------------------------------------------------

    def _train(self, deadline: Deadline) -> str:
        source = open_source(self.data, self.settings.configs[0].image_size)
        if "steps" not in self.facts:
            self.keep("steps", self._affordable(source))
        settings = [replace(self.settings.training, steps=steps) for steps in self.facts["steps"]]
        train_ladder(
            self.settings.configs, source, CosineSchedule(), self.folder, settings, teacher=True, device=self.device
        )
        return f"{self.facts['steps']} steps"

    def _affordable(self, source: Source) -> list[int]:
        """Steps of each network that take its share of the minutes, by the seconds of some steps."""
        found, setting = [], self.settings.training
        for config, share in zip(self.settings.configs, self.settings.shares, strict=True):
            run = Run(config, source, CosineSchedule(), setting, self.device)
            begin, counted = time.perf_counter(), 2 * setting.log_every
            for step in range(counted):
                run.advance()
                if step + 1 == setting.log_every:  # the device was waited for: warmed up
                    begin = time.perf_counter()
            seconds = (time.perf_counter() - begin) / setting.log_every
            wanted = 60 * self.settings.minutes * share / seconds
            found.append(max(1, round(wanted / setting.checkpoint_every)) * setting.checkpoint_every)
        return found

    def fastest(self) -> ImageLadder:
        """The ladder as it runs fastest here."""
        images = load_ladder(self.folder, device=self.device)
        if self.device.type != "cuda":
            return images
        return in_halves(images, self.folder, graphs=self.facts.get("graphs") == "passed")

    @torch.no_grad()
    def _levels(self, deadline: Deadline) -> str:
        images, rows = load_ladder(self.folder, device=self.device), []
        x = mls.seeded_normal(range(self.settings.batch), images.image_shape, device=self.device)
        t = torch.tensor(0.5, dtype=torch.float64, device=self.device)
        for level, drift in enumerate(images.denoisers):
            exact = drift(x, t)
            for way, make in variants(drift, self.settings.compiler, self.device).items():
                try:
                    other = make()
                    seconds = mls.SecondsCost(x, calls=10, warmup=3)([other])[0]
                    error = float((other(x, t) - exact).double().norm() / exact.double().norm())
                except Exception as problem:  # one way that fails here must not cost the other figures
                    rows.append({"level": level + 1, "way": way, "failed": str(problem)[:200]})
                    continue
                rows.append({"level": level + 1, "way": way, "seconds": seconds, "error": error})
        self.keep("level rows", rows)
        return f"{len(rows)} timings"

    def _pilot(self, mode: str, deadline: Deadline) -> str:
        return f"{measure_pilot(self.folder, mode, self.settings, self.device).samples} samples"

    def _bench(self, mode: str, batch: int) -> Bench:
        stored, pilot = self.fastest(), mls.Pilot.load(self.folder / f"pilot_{mode}.safetensors")
        process = Process(stored.schedule, MODES[mode], uniform(stored.schedule, self.settings.fine))
        return Bench(stored, process, pilot, QUARTERS * batch, mode, str(self.device))

    @torch.no_grad()
    def _table(self, mode: str, batch: int, fitted: bool, deadline: Deadline) -> str:
        bench, settings = self._bench(mode, batch), self.settings
        prices = in_seconds(bench.stored, bench.process, batch)
        top = torch.tensor(prices.costs, dtype=torch.float64) / prices.costs[-1]
        end = self._reference(bench, batch)

        def todo() -> Iterator[tuple[dict, Callable[[], dict]]]:
            runs = fits(bench, prices, settings.fitted) if fitted else _chained(bench, prices, settings.budgets)
            for run in runs:

                def measure(run=run) -> dict:
                    images, seconds = timed(run[2], self.device, time.perf_counter)
                    squared = (images - end).double().square().flatten(1).mean(1)
                    row = asdict(bench.row(run, run[0] not in (PLAN, FIT), squared, seconds))
                    return row | ({"cost": float(run[3][0].evaluations.double().cpu() @ top)} if run[3] else {})

                yield {"method": run[0], "budget": run[1]}, measure

        rows = Rows(self.out / f"rows_{mode}_{batch}.json")
        whole = rows.run(todo(), deadline)
        self.keep(f"prices {mode} {batch}", {"costs": list(prices.costs), "unit": prices.unit})
        if not whole:
            raise TimeoutError
        return f"{len(rows.found)} rows"

    def _reference(self, bench: Bench, batch: int) -> Tensor:
        path = self.out / f"reference_{bench.mode}_{batch}.safetensors"
        if not path.is_file():
            fine = bench.process.fine_times
            end = bench.solve(fine, [mls.em_plan(bench.stored.ladder, fine)] * QUARTERS)
            write_atomically(path, to_safetensors({"end": end.cpu()}))
        return load_file(path)["end"].to(self.device)

    @torch.no_grad()
    def _strip(self, mode: str, deadline: Deadline) -> str:
        """The same seeds from the reference, the best rival, and the plan, at about equal seconds."""
        bench, budget = self._bench(mode, self.settings.batch), self.settings.budgets[len(self.settings.budgets) // 2]
        found = json.loads((self.out / f"rows_{mode}_{self.settings.batch}.json").read_bytes())
        rows = [row for row in found if row["budget"] == budget]
        best = min((row for row in rows if row["single"]), key=lambda row: row["mse"])
        prices = in_seconds(bench.stored, bench.process, self.settings.batch)
        runs = {run[0]: run[2] for run in _chained(bench, prices, (budget,))}
        shown = [(f"{self.settings.fine} steps of the largest", self._reference(bench, self.settings.batch)[:_SHOWN])]
        for row in [best, *(row for row in rows if row["method"] == PLAN)]:
            label = f"{row['method']}: {row['mse']:.2g}, {1e3 * row['seconds']:.3g} ms"
            shown.append((label, runs[row["method"]]()[:_SHOWN]))
        title = f"{mode.upper()}, {budget} evaluations on {hardware(self.device)['device']}"
        save_rows(self.results / f"strip_{mode}.png", shown, title, scale=2)
        return best["method"]

    def _pack(self, deadline: Deadline) -> str:
        """The ladder and its pilots as one file, weights in half precision."""
        images, packed = load_ladder(self.folder), self.out / "packed"
        save_ladder(packed, images.networks, images.schedule, data=images.record["data"], dtype=torch.float16)
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as archive:
            for path in sorted([*packed.rglob("*"), *self.folder.glob("pilot_*.safetensors")]):
                archive.add(
                    path, path.name if path.parent == self.folder else path.relative_to(packed), recursive=False
                )
        write_atomically(self.results / "ladder.tar", content.getvalue())
        return f"{len(content.getvalue()) / 2**20:.1f} MiB"

    def _check(self, name: str) -> Callable[[Deadline], str]:
        def check(deadline: Deadline) -> str:
            try:
                return CHECKS[name](load_ladder(self.folder, device=self.device), self.device, self.settings.batch)
            except Exception as problem:  # what failed is a result, not an end
                return f"failed: {type(problem).__name__}: {str(problem)[:300]}"

        return check

    # -- report ---------------------------------------------------------------------------------------------------

    def _report(self) -> None:
        where = hardware(self.device)
        lines = [f"# A ladder in seconds on {where['device']}", "", ", ".join(f"{k} {v}" for k, v in where.items()), ""]
        done = [[name, str(self.facts[name])] for name in self.steps if name in self.facts]
        lines += [*table(["step", "what came out"], done), ""]
        if "level rows" in self.facts:
            body = [
                [str(row["level"]), row["way"], f"{1e3 * row['seconds']:.3g}" if "seconds" in row else row["failed"]]
                for row in self.facts["level rows"]
            ]
            lines += ["## Levels, ms a batch", "", *table(["level", "way", "ms"], body), ""]
        tables = {}
        for path in sorted(self.out.glob("rows_*.json"), reverse=True):
            mode, batch = path.stem.split("_")[1:]
            prices = self.facts.get(f"prices {mode} {batch}")
            if prices is not None:
                about = {"ladder": f"{self.data}, batch {batch}", "mode": mode, "batch": int(batch)}
                found = about | {"rows": json.loads(path.read_bytes()), "prices": prices["costs"]}
                tables[path.stem] = found | {"unit": prices["unit"], "images": QUARTERS * int(batch)}
                lines.append(markdown(tables[path.stem]))
        everything = {"machine": where, "facts": self.facts, "tables": tables}
        write_json(self.results / "short.json", everything)
        write_atomically(self.results / "short.md", ("\n".join(lines) + "\n").encode())


def in_halves(images: DiffusionLadder, folder: Path, *, graphs: bool) -> OwnLadder:
    """The levels with weights in half precision, as CUDA graphs or not."""
    halves = [half_weights(drift) for drift in images.denoisers]
    costs = mls.GivenCost(images.ladder.costs, images.ladder.unit)
    ladder = mls.Ladder([mls.CudaGraph(drift) for drift in halves] if graphs else halves, costs)
    known: dict[str, Any] = {"device": images.device, "folder": folder, "version": f"halves, graphs {graphs}"}
    return OwnLadder(ladder, images.schedule, images.image_shape, **known)


def _chained(bench: Bench, prices: mls.Ladder, budgets: tuple[int, ...]) -> Iterator[Any]:
    """The pilot's plans first, then all samplers of the largest network."""
    yield from pilots(bench, prices, budgets)
    yield from single_runs(bench, budgets)


def run_short(settings: Short, data: str, out: Path, device: torch.device, deadline: Deadline) -> str | None:
    """Do what fits into the time; return the step that is next, None when all is done."""
    run = ShortRun(settings, data, out, device)
    for name, step in run.steps.items():
        if name in run.facts:
            continue
        if deadline.passed():
            return name
        begin = time.perf_counter()
        try:
            found = step(deadline)
        except TimeoutError:
            return name
        run.keep(name, found)
        print(f"{name}: {found}, {time.perf_counter() - begin:.1f} s", flush=True)
    return None
