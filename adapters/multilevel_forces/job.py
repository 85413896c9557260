"""A long run in a folder, which goes on after a kill to the same bits.

    run.json            what is run: structure, levels, plan, what the pilot said
    state.safetensors   the walk at the last checkpoint, and how long the files below were then
    trajectory.extxyz   frames: unwrapped positions, momenta, forces by the plan, energy, step and time
    log.csv             step, time in fs, temperature in K, energy in eV

What was written after the last checkpoint is cut off when the run goes on, and written again. Calculators that keep
lists of neighbours give other last bits after other calls, so they forget at every tenth step, the only ones at which
there are checkpoints.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import write_extxyz

import multilevel_sde as mls
from multilevel_forces.langevin import Langevin
from multilevel_forces.walk import Walk
from multilevel_sde.files import briefly, is_sealed, seal, write_atomically

__all__ = ["LOG", "SETTINGS", "TRAJECTORY", "Job"]

SETTINGS, STATE, TRAJECTORY, LOG = "run.json", "state.safetensors", "trajectory.extxyz", "log.csv"
_FORMAT = 1
_HEAD = "step,time_fs,temperature_K,energy_eV\n"
_CLEAN = 10  # steps after which calculators forget former calls
_SECONDS = 5.0  # between checkpoints at least


@dataclass(frozen=True)
class Job:
    """One system, run by a plan in a folder.

    Arguments:
        folder: Where the files are.
        ladder: Of forces for one system.
        dynamics: K, fs, 1/fs.
        plan: One block.
        seed: Of momenta, where the structure has none, and of noise.
        every: Steps between frames.

    Example:
        >>> import tempfile
        >>> from ase.build import bulk
        >>> from multilevel_forces import impulses, ladder
        >>> wells = ladder([lambda x: -x, lambda x: -torch.sin(x)], bulk("Cu"), prices=[1, 8])
        >>> folder = Path(tempfile.mkdtemp())
        >>> job = Job(folder, wells, Langevin(temperature=300), impulses([1, 4]), seed=0, every=5)
        >>> job.run(20).n, len((folder / "log.csv").read_text().splitlines())
        (20, 6)
    """

    folder: Path
    ladder: mls.Ladder
    dynamics: Langevin
    plan: mls.Plan
    seed: int
    every: int

    def run(self, steps: int, tell: Callable[[Walk], None] | None = None) -> Walk:
        """Run, or go on, until so many steps are made in all; tell(walk) is called after each.

        The steps after the last checkpoint, fewer than ten at the end of a run, are made again when it goes on.

        Raises:
            ValueError: The folder holds a state that is damaged or of other atoms.
            ForceError: See :class:`Walk`; what was written until the last checkpoint stays.
        """
        walk = Walk(self.ladder, self.dynamics, self.plan, [self.seed])
        walk.thermalize(self.seed)
        self._forget()
        lengths = self._go_on(walk)
        self.folder.mkdir(parents=True, exist_ok=True)
        with _cut(self.folder / TRAJECTORY, lengths[0]) as frames, _cut(self.folder / LOG, lengths[1]) as log:
            if lengths == (0, 0):
                log.write(_HEAD.encode())
                walk.begin()
                self._write(walk, frames, log)
            last = time.monotonic()
            while walk.n < steps:
                walk.step()
                if walk.n % self.every == 0:
                    self._write(walk, frames, log)
                if walk.n % _CLEAN == 0:
                    self._forget()
                    if walk.n + _CLEAN > steps or time.monotonic() - last > _SECONDS:
                        self._keep(walk, frames, log)
                        last = time.monotonic()
                if tell is not None:
                    tell(walk)
        return walk

    def _forget(self) -> None:
        for force in self.ladder.drifts:
            force.forget()  # type: ignore[attr-defined]

    def _write(self, walk: Walk, frames: IO[bytes], log: IO[bytes]) -> None:
        when, energy = walk.n * self.dynamics.timestep, float(walk.estimates.energy[0])
        atoms, free = walk.systems.atoms[0].copy(), walk.systems.free
        forces = np.zeros((len(atoms), 3))
        atoms.positions = walk.systems.placed(walk.q)[0]
        momenta = atoms.get_momenta()
        momenta[free], forces[free] = walk.p[0].numpy(), walk.begin()[0].numpy()
        atoms.set_momenta(momenta)
        atoms.info = {"step": walk.n, "time_fs": when}
        atoms.calc = SinglePointCalculator(atoms, forces=forces, **({"energy": energy} if np.isfinite(energy) else {}))
        text = io.StringIO()
        write_extxyz(text, [atoms])
        frames.write(text.getvalue().encode())
        log.write(f"{walk.n},{when:.6g},{walk.temperature()[0]:.9g},{energy:.12g}\n".encode())

    def _keep(self, walk: Walk, frames: IO[bytes], log: IO[bytes]) -> None:
        """Store the state, after what it speaks of is on the disk."""
        from safetensors.torch import save

        for file in (frames, log):
            file.flush()
            os.fsync(file.fileno())
        lengths = torch.tensor([frames.tell(), log.tell()])
        tensors = {name: value.contiguous().clone() for name, value in walk.state().items()}
        write_atomically(self.folder / STATE, save({**tensors, "lengths": lengths}))

    def _go_on(self, walk: Walk) -> tuple[int, int]:
        """Bring the walk to the last checkpoint and say how long the files were, or (0, 0)."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = self.folder / STATE
        if not path.is_file():
            return 0, 0
        try:
            state = load(path.read_bytes())
            lengths = tuple(int(one) for one in state.pop("lengths"))
        except (SafetensorError, KeyError) as error:
            raise ValueError(f'"{path}" is damaged ({briefly(error)}); remove the folder and begin anew') from None
        walk.go_on(state)
        for name, length in zip((TRAJECTORY, LOG), lengths, strict=True):
            file = self.folder / name
            if not file.is_file() or file.stat().st_size < length:
                raise ValueError(f'"{file}" is shorter than when the run stopped; remove the folder and begin anew')
        return lengths  # type: ignore[return-value]

    @staticmethod
    def settings(folder: Path) -> dict[str, Any] | None:
        """Return what a folder was begun with, None where there is none.

        Raises:
            ValueError: It is damaged, or of another version.
        """
        path = folder / SETTINGS
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if not isinstance(found, dict) or not is_sealed(found):
            raise ValueError(f'"{path}" is damaged; remove the folder and begin anew')
        if found.get("format") != _FORMAT:
            raise ValueError(
                f'"{path}" has format {found.get("format")}, this version reads {_FORMAT}; take another folder'
            )
        return found

    @staticmethod
    def write_settings(folder: Path, values: dict[str, Any]) -> None:
        """Write what a folder is begun with."""
        text = json.dumps(seal({"format": _FORMAT, **values}), indent=1)
        write_atomically(folder / SETTINGS, (text + "\n").encode())


def _cut(path: Path, length: int) -> IO[bytes]:
    """Open a file to go on at a length; what is beyond is cut off."""
    file = open(path, "r+b" if path.is_file() else "w+b")  # noqa: SIM115 - the caller closes it
    file.truncate(length)
    file.seek(length)
    return file
