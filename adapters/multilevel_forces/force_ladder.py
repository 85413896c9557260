"""A ladder of forces: ASE calculators, or functions of positions, cheapest first, with prices in measured seconds.

A level is a drift f(q, t) of :mod:`multilevel_sde`: positions q in Angstrom, (systems, free atoms, 3), to forces in
eV / Angstrom of the same shape. The time is not used.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.stress import full_3x3_to_voigt_6_stress
from torch import Tensor

import multilevel_sde as mls
from multilevel_forces.systems import Systems
from multilevel_sde.arguments import as_items, as_number

__all__ = ["ForceError", "Forces", "Levels", "as_prices", "is_model", "ladder", "levels_of", "measured_seconds"]

Source = Calculator | Callable[[Tensor], Any]
Levels = Sequence[Source] | Mapping[str, Source]

_UNIT = "s"
_APART = 1e-4  # Angstrom that atoms are moved between timed calls, or a calculator answers from its cache


class ForceError(RuntimeError):
    """A force that could not be had or is not finite; the message names level, step, system and atom."""


class Forces:
    """One level: a calculator or a function, called for every system.

    Arguments:
        source: An ASE calculator; a model of torch-sim; or a function of positions (systems, atoms, 3) in Angstrom, a
            float64 tensor of all atoms, that returns forces in eV / Angstrom, a tensor or an array of that shape.
        systems: What it is for.
        level: Its number in messages, from 0.
        name: What messages and tables call it; by default the function's name or the calculator's class.

    Attributes:
        energy: Of the last call in eV, float64 (systems,); NaN where the source gives none.
        stress: Of the last call in eV / Angstrom^3, (systems, 6) in Voigt order as ASE has it; NaN where the source
            gives none together with its forces.
    """

    def __init__(self, source: Source, systems: Systems, level: int, name: str | None = None):
        self.source, self.systems, self.level = source, systems, level
        named = name or (None if isinstance(source, Calculator) else getattr(source, "__name__", None))
        self.name = named if isinstance(named, str) else type(source).__name__
        self._boxes = [one.copy() for one in systems.atoms]
        self._nothing()

    def _nothing(self) -> None:
        self.energy = np.full(len(self.systems), np.nan)
        self.stress = np.full((len(self.systems), 6), np.nan)

    def __call__(self, q: Tensor, t: object = None) -> Tensor:
        """Return the forces on the free atoms, shaped like q.

        Raises:
            ForceError: The source raised something, or returned what are no forces.
        """
        placed = self.systems.placed(q)
        if isinstance(self.source, Calculator):
            found = np.stack([self._of_system(number, positions) for number, positions in enumerate(placed)])
        elif is_model(self.source):
            found = self._of_model(placed)
        else:
            found = self._of_function(placed)
        return torch.from_numpy(found[:, self.systems.free].astype(np.float64)).to(q)

    def forget(self) -> None:
        """Make the source forget former calls: lists of neighbours that it keeps change the last bits of its forces."""
        if isinstance(self.source, Calculator):
            self.source.reset()

    def _of_system(self, number: int, positions: np.ndarray) -> np.ndarray:
        box, source = self._boxes[number], self.source
        box.positions = positions
        assert isinstance(source, Calculator)
        try:
            forces = source.get_forces(box)
        except Exception as error:
            raise self._failed(error, f" for system {number + 1}, {box.get_chemical_formula()}") from error
        results = source.results
        self.energy[number] = results.get("energy", np.nan)
        stress = results.get("stress")
        self.stress[number] = stress if stress is not None and np.shape(stress) == (6,) else np.nan
        return np.asarray(forces)

    def _of_model(self, placed: list[np.ndarray]) -> np.ndarray:
        """All systems in one call of a model of torch-sim, whose cells have vectors as columns."""
        model: Any = self.source
        like, count = {"device": model.device, "dtype": model.dtype}, len(placed[0])
        state = {
            "positions": torch.from_numpy(np.concatenate(placed)).to(**like),
            "cell": torch.from_numpy(np.stack([box.cell.array.T for box in self._boxes])).to(**like),
            "pbc": bool(self._boxes[0].pbc.all()),
            "atomic_numbers": torch.from_numpy(np.concatenate([box.numbers for box in self._boxes])).to(model.device),
            "system_idx": torch.arange(len(placed), device=model.device).repeat_interleave(count),
        }
        try:
            with torch.enable_grad():  # some differentiate an energy
                found = {name: value.detach().double().cpu().numpy() for name, value in model(state).items()}
            forces = found["forces"].reshape(len(placed), count, 3)
        except Exception as error:
            raise self._failed(error, "") from error
        self.energy[:] = found.get("energy", np.nan)
        if "stress" in found:
            self.stress[:] = [full_3x3_to_voigt_6_stress(one) for one in found["stress"]]
        return forces

    def _of_function(self, placed: list[np.ndarray]) -> np.ndarray:
        everywhere = torch.from_numpy(np.stack(placed))
        shape = tuple(everywhere.shape)
        try:
            found = self.source(everywhere)  # type: ignore[operator]
        except Exception as error:
            raise self._failed(error, "") from error
        forces = found.detach().cpu().numpy() if isinstance(found, Tensor) else np.asarray(found)
        if forces.shape != shape or forces.dtype.kind != "f":
            raise ForceError(
                f"the force of level {self.level + 1} ({self.name}) must be floats of shape {shape}, one for each "
                f"system and atom, got {forces.dtype} of shape {forces.shape}"
            )
        return forces

    def _failed(self, error: Exception, where: str) -> ForceError:
        said = (str(error).strip().splitlines() or [""])[0]
        return ForceError(
            f"the calculator of level {self.level + 1} ({self.name}) raised {type(error).__name__}{where}: "
            f"{said or 'no message'}"
        )


def is_model(source: object) -> bool:
    """Whether it is a model of torch-sim, which is known by what it says of itself."""
    return isinstance(source, torch.nn.Module) and hasattr(source, "memory_scales_with")


def ladder(
    calculators: Levels,
    atoms: Atoms | Sequence[Atoms] | Systems,
    prices: Sequence[float] | None = None,
) -> mls.Ladder:
    """Return the ladder of forces of calculators for a system or several.

    f^K = f^1 + (f^2 - f^1) + ... + (f^K - f^{K-1}), forces in eV / Angstrom at positions in Angstrom, (systems, free
    atoms, 3).

    Arguments:
        calculators: ASE calculators, models of torch-sim, or functions of positions (systems, atoms, 3), a float64
            tensor in Angstrom, that return forces in eV / Angstrom. Cheapest first; or {name: calculator}.
        atoms: One `ase.Atoms` or several of the same species; FixAtoms is honoured. Fixed atoms are no part of q.
        prices: Seconds of one force of all systems. By default they are measured here: the median of calls on this
            machine after a warm-up, every time at other positions.

    Raises:
        TypeError: A calculator that is neither.
        ValueError: Prices that do not rise with the level (:func:`pilot` drops such a level by itself); see
            :class:`Systems` for what atoms may be.
        ForceError: A calculator that fails on these atoms, such as for a species that it does not know.

    Example:
        >>> from ase.build import bulk
        >>> from ase.calculators.emt import EMT
        >>> from ase.calculators.morse import MorsePotential
        >>> copper = bulk("Cu", cubic=True)
        >>> levels = [MorsePotential(epsilon=0.35, r0=2.6, rho0=4.3), EMT()]
        >>> forces = ladder(levels, copper, prices=[0.001, 0.002])
        >>> forces, forces.drifts[1](torch.from_numpy(copper.positions[None]), 0.0).shape
        (Ladder(2 levels, costs=[0.001, 0.002] s), torch.Size([1, 4, 3]))
    """
    systems = atoms if isinstance(atoms, Systems) else Systems(atoms)
    levels = levels_of(calculators, systems)
    seconds = [measured_seconds(level) for level in levels] if prices is None else as_prices(prices, len(levels))
    return mls.Ladder(levels, mls.GivenCost(seconds, _UNIT))


def levels_of(calculators: Levels, systems: Systems) -> list[Forces]:
    """Return the levels without their prices.

    Example:
        >>> levels_of("emt", Systems(Atoms("Cu")))
        Traceback (most recent call last):
        ...
        TypeError: "calculators" must be a list of ASE calculators or functions of positions, cheapest first, got str
    """
    named: list[tuple[str | None, Any]] = []
    if isinstance(calculators, Mapping):
        named = list(calculators.items())
    elif isinstance(calculators, Sequence) and not isinstance(calculators, str):
        named = [(None, one) for one in calculators]
    if not named:
        raise TypeError(
            '"calculators" must be a list of ASE calculators or functions of positions, cheapest first, got '
            f"{'an empty one' if isinstance(calculators, list | tuple | dict) else type(calculators).__name__}"
        )
    for level, (_, one) in enumerate(named):
        if not isinstance(one, Calculator) and (not callable(one) or isinstance(one, type)):
            made = f"; make an object of it, {one.__name__}()" if isinstance(one, type) else ""
            raise TypeError(
                f'"calculators[{level}]" must be an ASE calculator or a function of positions, got '
                f"{'the class ' + one.__name__ if isinstance(one, type) else type(one).__name__}{made}"
            )
        if is_model(one) and any(box.pbc.any() != box.pbc.all() for box in systems.atoms):
            raise ValueError(
                f'"calculators[{level}]" is a model of torch-sim, which knows cells that are periodic in all '
                f"directions or in none, got {systems.atoms[0].pbc.tolist()}; give an ASE calculator"
            )
    levels = [Forces(one, systems, level, name) for level, (name, one) in enumerate(named)]
    names = [level.name for level in levels]
    for level in levels:
        if names.count(level.name) > 1:  # two checkpoints of a class
            level.name = f"{level.name} {level.level + 1}"
    return levels


def as_prices(prices: Sequence[float], count: int) -> list[float]:
    """Return prices as numbers above 0, one a level.

    Example:
        >>> as_prices([0.1, float("nan")], 2)
        Traceback (most recent call last):
        ...
        ValueError: "prices" must be 2 finite numbers above 0, seconds of one force of each level, got [0.1, nan]
    """
    found = [as_number("prices", price) for price in as_items("prices", prices, "numbers")]
    if len(found) != count or not all(math.isfinite(price) and price > 0 for price in found):
        raise ValueError(
            f'"prices" must be {count} finite numbers above 0, seconds of one force of each level, got {found}'
        )
    return found


def measured_seconds(level: Forces, calls: int = 5, warmup: int = 3) -> float:
    """Return the median seconds of one force of all systems, each call at positions that the last one did not have."""
    q = level.systems.positions()
    shifts = torch.randn(calls + warmup, *q.shape, generator=torch.Generator().manual_seed(0), dtype=q.dtype)
    taken = []
    for shift in shifts:
        begin = time.perf_counter()
        level(q + _APART * shift)
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[warmup:])
