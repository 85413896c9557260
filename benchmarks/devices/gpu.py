"""Train a ladder of networks on a GPU and measure all of it there: gamma, plans, every sampler, precisions, placement.

The work is cut into pieces of some minutes. What is done is kept in the folder; call it again until it says "all done":

    python benchmarks/devices/gpu.py --out run                      # as many pieces as fit into --minutes (9)
    python benchmarks/devices/gpu.py --out run --piece train:4      # one piece, from where it was
    python benchmarks/devices/gpu.py --out run --tiny --device cpu  # everything at 8x8, about a minute of one core

A piece that is stopped, by the clock or by a kill, goes on from its last checkpoint (training, every 250 steps) or its
last measurement (samplers, timings); pilots and fits start over. On a CPU the result is bit for bit that of a run that
was not stopped, but for the seconds.

`run/ladder` is the trained ladder with its pilots and fitted plans, `run/results` the tables (gpu.md, gpu.json), the
figures and the image strips. Networks train in bfloat16 and are compared in float32 without TF32.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

from benchmarks.devices.gpu_setup import DEFAULT, TINY, Deadline, Leaves, Settings, measure_pilot, train_level
from benchmarks.devices.gpu_short import SHORT, TINY_SHORT, run_short
from benchmarks.devices.gpu_speed import measure_levels, measure_solves
from benchmarks.devices.gpu_tables import measure_samplers, write_report, write_strip
from multilevel_diffusion import Process, load_ladder, uniform
from multilevel_diffusion.networks import DiffusionLadder, train_ladder
from multilevel_diffusion.networks.scaling import Scaling, measure_errors
from multilevel_diffusion.process import MODES
from multilevel_diffusion.sampling import fit
from multilevel_diffusion.sampling.trajectories import FIRST_SEED, reference
from multilevel_sde.files import write_atomically

__all__ = ["Benchmark", "main"]


class Benchmark:
    """The benchmark in one folder.

    Arguments:
        settings: The sizes.
        out: The folder; made if missing.
        device: Where the networks run.

    Raises:
        ValueError: The folder holds a run with other settings.
    """

    def __init__(self, settings: Settings, out: Path, device: torch.device):
        self.settings, self.out, self.device, self.folder = settings, out, device, out / "ladder"
        self.source = Leaves(settings.configs[0].image_size, settings.pool, out / "pool.safetensors", device)
        self._state = out / "state.json"
        identity = json.loads(json.dumps(settings.to_dict()))
        self.done: list[str] = []
        if self._state.is_file():
            state = json.loads(self._state.read_bytes())
            if state["settings"] != identity:
                raise ValueError(f'"--out" {out} holds a run with other settings; choose an empty folder')
            self.done = state["done"]
        self._identity = identity

    @property
    def pieces(self) -> dict[str, Callable[[Deadline], bool]]:
        """The pieces in their order: name -> what runs it until a deadline and says whether it is done."""
        every: dict[str, Callable[[Deadline], bool]] = {"render": self._whole(self.source.render)}
        for level in range(len(self.settings.configs)):
            every[f"train:{level}"] = functools.partial(
                train_level, self.settings, level, self.source, self.folder, self.device
            )
        every |= {"ladder": self._whole(self._ladder), "gamma": self._whole(self._gamma)}
        for mode in MODES:
            every[f"pilot:{mode}"] = self._whole(self._pilot, mode)
        for budget in self.settings.fits:
            every[f"fit:{budget}"] = self._whole(self._fit, budget)
        for mode in MODES:
            every[f"samplers:{mode}"] = functools.partial(
                measure_samplers, self.folder, self.out, mode, self.settings, self.device
            )
        every["levels"] = lambda deadline: measure_levels(
            load_ladder(self.folder, device=self.device),
            self.settings,
            self.out / "levels.json",
            self.device,
            deadline,
        )
        every["solves"] = functools.partial(
            measure_solves, self.folder, self.settings, self.out / "solves.json", self.device
        )
        for mode in MODES:
            every[f"strip:{mode}"] = self._whole(write_strip, self.folder, self.out, mode, self.settings, self.device)
        every["report"] = self._whole(write_report, self.folder, self.out, self.settings, self.device)
        return every

    def run(self, piece: str, deadline: Deadline) -> bool:
        """Run a piece until it is done or the time is over; return whether it is done."""
        finished = self.pieces[piece](deadline)
        if finished and piece not in self.done:
            self.done.append(piece)
        content = json.dumps({"settings": self._identity, "done": self.done}, indent=1)
        write_atomically(self._state, (content + "\n").encode())
        return finished

    def check(self, piece: str) -> None:
        """Check that a piece can be run.

        Raises:
            ValueError: There is no such piece, or one that comes before it is not done.
        """
        names = list(self.pieces)
        if piece not in names:
            raise ValueError(f'"--piece" is {piece!r}, expected one of {", ".join(names)}')
        before = ["render"] if piece.startswith("train:") else names[: names.index(piece)]
        missing = [name for name in before if name not in self.done]
        if missing:
            raise ValueError(f'"--piece" {piece} needs {missing[0]} first; leave out --piece to run what is next')

    def next(self) -> str | None:
        """Return the first piece that is not done."""
        return next((name for name in self.pieces if name not in self.done), None)

    def _whole(self, run: Callable, *arguments) -> Callable[[Deadline], bool]:
        """Return a piece that is run as a whole."""

        def piece(deadline: Deadline) -> bool:
            run(*arguments)
            return True

        return piece

    def _ladder(self) -> None:
        settings = self.settings
        train_ladder(
            settings.configs,
            self.source,
            settings.schedule,
            self.folder,
            settings.training,
            device=self.device,
            progress=False,
        )

    def _gamma(self) -> None:
        images = load_ladder(self.folder, device=self.device)
        errors = measure_errors(
            images.networks,
            images.schedule,
            self.source.held_out(self.settings.held_out),
            device=self.device,
            progress=True,
        )
        parameters = [sum(value.numel() for value in network.parameters()) for network in images.networks]
        seconds = [level["seconds"] for level in images.record["levels"]]  # small networks may take equally long
        scaling = Scaling(errors, parameters, {"FLOPs": list(images.ladder.costs), "seconds": seconds})
        scaling.save(self.out / "results")
        write_atomically(self.out / "results" / "scaling.txt", scaling.table().encode())

    def _pilot(self, mode: str) -> None:
        measure_pilot(self.folder, mode, self.settings, self.device)

    def _fit(self, budget: int) -> None:
        settings, images = self.settings, load_ladder(self.folder, device=self.device)
        process = Process(images.schedule, 0.0, uniform(images.schedule, settings.fine))
        found = fit(
            images,
            process,
            budget,
            samples=settings.fit_samples,
            steps=settings.fit_steps,
            target=self._target(images, process),
            progress=True,
        )
        found.plan.save(self.folder / f"plan_ddim_{budget}.safetensors", found.times)

    def _target(self, images: DiffusionLadder, process: Process) -> Tensor:
        """Return what all fits aim at, kept in a file."""
        path = self.out / "target.safetensors"
        if not path.is_file():
            seeds = range(FIRST_SEED, FIRST_SEED + self.settings.fit_samples)
            target = reference(images, process, seeds, progress=True)
            write_atomically(path, to_safetensors({"target": target.cpu()}))
        return load_file(path)["target"].to(self.device)


def main(arguments: list[str] | None = None) -> int:
    """Run what fits into the time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; kept between calls")
    parser.add_argument("--piece", help="run this piece only, such as train:0; by default what is next")
    parser.add_argument("--short", action="store_true", help="a ladder in seconds, in eight minutes (gpu_short.py)")
    parser.add_argument("--data", default="deadleaves", help="with --short: as in `train` [%(default)s]")
    parser.add_argument("--minutes", type=float, help="when to stop [9, with --short 8]")
    parser.add_argument("--tiny", action="store_true", help="8x8 images and a few steps of everything")
    parser.add_argument("--training", type=float, default=1.0, help="share of the training steps [%(default)s]")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="[%(default)s]")
    options = parser.parse_args(arguments)
    minutes = options.minutes if options.minutes is not None else 8.0 if options.short else 9.0
    device, deadline = torch.device(options.device), Deadline(minutes)
    if device.type == "cpu":
        torch.set_num_threads(1)  # one thread gives the same numbers on every run
    torch.backends.cudnn.allow_tf32 = False
    if options.short:
        settings_of = TINY_SHORT if options.tiny else SHORT
        following = run_short(settings_of, options.data, options.out, device, deadline)
        print(f"next: {following}" if following else f"all done: {options.out / 'results' / 'short.md'}")
        return 0
    settings = (TINY if options.tiny else DEFAULT).trained_for(options.training)
    try:
        benchmark = Benchmark(settings, options.out, device)
        if options.piece:
            benchmark.check(options.piece)
    except ValueError as error:
        parser.error(str(error))
    pieces = [options.piece] if options.piece else iter(benchmark.next, None)
    for piece in pieces:
        finished = benchmark.run(piece, deadline)
        print(f"{piece}: {'done' if finished else 'to be continued'}", flush=True)
        if deadline.passed():
            break
    print(f"next: {benchmark.next()}" if benchmark.next() else f"all done: {options.out / 'results' / 'gpu.md'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
