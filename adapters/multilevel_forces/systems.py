"""Systems: one or several `ase.Atoms` of the same atoms, and the tensors that stand for what moves in them.

    positions  q  (systems, free atoms, 3)   Angstrom
    momenta    p  the same shape             amu Angstrom / unit, with ASE's unit of time, Angstrom sqrt(amu / eV)
    masses     m  (free atoms, 1)            amu

In these units dq/dt = p / m and dp/dt = f with f in eV / Angstrom, and `ase.units.fs` is a femtosecond. Atoms held by
`FixAtoms` are no part of the state: they never move and have no noise. Positions are not wrapped into the cell, so that
displacements can be measured; what is periodic is left to the calculators.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.constraints import FixAtoms
from torch import Tensor

__all__ = ["Systems"]


class Systems:
    """Several systems of the same atoms: species, masses and what is fixed are shared, cells may differ.

    Arguments:
        atoms: One `ase.Atoms` or several; they are copied, and keep their momenta. Positions in Angstrom, momenta and
            masses in ASE's units (amu), cells periodic or not.

    Raises:
        TypeError: Something that is no Atoms.
        ValueError: No system or no atom; systems of different atoms or fixed atoms; a constraint other than FixAtoms,
            positions that are not finite.

    Example:
        >>> from ase.build import bulk
        >>> systems = Systems(bulk("Cu", cubic=True))
        >>> systems.positions().shape, round(float(systems.masses[0]), 1)
        (torch.Size([1, 4, 3]), 63.5)
    """

    def __init__(self, atoms: Atoms | Sequence[Atoms]):
        given = [atoms] if isinstance(atoms, Atoms) else list(atoms) if isinstance(atoms, Sequence) else [atoms]
        for one in given:
            if not isinstance(one, Atoms):
                raise TypeError(f'"atoms" must be an ase.Atoms or several, got {type(one).__name__}')
        if not given or not len(given[0]):
            raise ValueError('"atoms" must hold at least one system of at least one atom, got none')
        fixed = [_fixed(one) for one in given]
        for number, (one, held) in enumerate(zip(given, fixed, strict=True), 1):
            if not (one.numbers.shape == given[0].numbers.shape and (one.numbers == given[0].numbers).all()):
                raise ValueError(
                    f'"atoms" must be systems of the same atoms, but system {number} is {one.get_chemical_formula()} '
                    f"and system 1 {given[0].get_chemical_formula()}; run them apart"
                )
            if (one.get_masses() != given[0].get_masses()).any() or held != fixed[0]:
                raise ValueError(
                    f'"atoms" must share masses and fixed atoms, system {number} has its own; run it apart'
                )
            if not (np.isfinite(one.positions).all() and np.isfinite(one.get_momenta()).all()):
                raise ValueError(
                    f'"atoms" must have finite positions and momenta, got NaN or infinity in system {number}'
                )
        self.atoms = [one.copy() for one in given]
        for one in self.atoms:
            one.set_constraint()
        self.free = [index for index in range(len(given[0])) if index not in fixed[0]]
        if not self.free:
            raise ValueError('"atoms" has all of its atoms fixed; nothing would move')
        self.masses = torch.from_numpy(given[0].get_masses()[self.free, None]).double()
        if not bool((self.masses > 0).all()):
            raise ValueError('"atoms" must have masses above 0; set them with atoms.set_masses')

    def __len__(self) -> int:
        return len(self.atoms)

    def positions(self) -> Tensor:
        """Return q of the atoms as given, float64 (systems, free atoms, 3), Angstrom."""
        return torch.stack([torch.from_numpy(one.positions[self.free].copy()) for one in self.atoms])

    def momenta(self) -> Tensor:
        """Return p of the atoms as given, float64 (systems, free atoms, 3), ASE's units."""
        return torch.stack([torch.from_numpy(one.get_momenta()[self.free]) for one in self.atoms])

    def placed(self, q: Tensor) -> list[np.ndarray]:
        """Return the positions of all atoms of each system, (atoms, 3), those that are free at q."""
        found = []
        for one, free in zip(self.atoms, q.detach().cpu().numpy(), strict=True):
            positions = one.positions.copy()
            positions[self.free] = free
            found.append(positions)
        return found

    def name(self, atom: int) -> str:
        """Return what messages call a free atom: its index among all atoms and its species."""
        index = self.free[atom]
        return f"{index} ({self.atoms[0].symbols[index]})"


def _fixed(atoms: Atoms) -> frozenset[int]:
    """The atoms that do not move."""
    found: set[int] = set()
    constraints: list[Any] = list(atoms.constraints)
    for one in constraints:
        if not isinstance(one, FixAtoms):
            raise ValueError(
                f'"atoms" has the constraint {type(one).__name__}, only FixAtoms is kept by this integrator; remove it '
                "with atoms.set_constraint()"
            )
        found.update(int(index) for index in one.index)
    return frozenset(found)
