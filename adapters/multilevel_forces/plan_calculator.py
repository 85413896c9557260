"""An ASE calculator that answers a foreign integrator's calls by a plan: the n-th position gets row n of the block."""

from __future__ import annotations

import numpy as np
import torch
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes

import multilevel_sde as mls
from multilevel_forces.blocks import Estimates, check_block
from multilevel_forces.force_ladder import Levels, ladder
from multilevel_forces.systems import Systems

__all__ = ["MultilevelCalculator"]

_VARIES = 0.5  # relative change of the apparent step that is no longer the same step


class MultilevelCalculator(Calculator):
    """Forces by a plan for an integrator that takes one force a step, such as `ase.md.verlet.VelocityVerlet`.

    The step is seen from how far atoms move along their momenta, h = dq . v / v . v. An integrator that varies its
    step, goes back, or moves atoms that have no momenta (a relaxation) is refused, as impulses mean something at evenly
    spaced positions only. Forces are in eV / Angstrom, energies in eV, as for any calculator of ASE.

    Arguments:
        levels: Calculators or functions of positions, cheapest first, as for :func:`ladder`.
        atoms: What they are for; cell, species and number of atoms must stay as they are.
        plan: One block, such as `impulses([1, 4])` or a pilot's `.plan` with the calculators that it keeps.
        allow_heating: See :func:`.blocks.check_block`.

    Raises:
        TypeError, ValueError: As :func:`ladder` and :func:`.blocks.check_block`.
        RuntimeError: At a call, positions that do not follow the ones before by the same step; other atoms or cell.
        ForceError: A force cannot be had or is not finite.

    Example:
        >>> from ase.build import bulk
        >>> from ase.calculators.emt import EMT
        >>> from ase.calculators.morse import MorsePotential
        >>> from ase.md.velocitydistribution import thermalize_momenta
        >>> from ase.md.verlet import VelocityVerlet
        >>> from multilevel_forces import impulses
        >>> atoms = bulk("Cu", cubic=True)
        >>> thermalize_momenta(atoms, 300, rng=np.random.default_rng(0))
        >>> levels = [MorsePotential(epsilon=0.35, r0=2.6, rho0=4.3), EMT()]
        >>> atoms.calc = MultilevelCalculator(levels, atoms, impulses([1, 4]))
        >>> VelocityVerlet(atoms, 2 * units.fs).run(8), atoms.calc.positions_seen
        (True, 9)
    """

    implemented_properties = ("energy", "forces", "stress")  # type: ignore[assignment]

    def __init__(
        self,
        levels: Levels,
        atoms: Atoms,
        plan: mls.Plan,
        *,
        allow_heating: bool = False,
    ):
        super().__init__()
        whole = Systems(_unconstrained(atoms))
        known = ladder(levels, whole, prices=range(1, len(levels) + 1))
        self._estimates = Estimates(known, check_block(plan, len(known), allow_heating), whole)
        self._last: np.ndarray | None = None
        self._step: float | None = None
        self.positions_seen = 0

    def calculate(self, atoms=None, properties=("forces",), system_changes=all_changes) -> None:
        """Answer the next position."""
        box = self._estimates.systems.atoms[0]
        if atoms is None or atoms.numbers.tolist() != box.numbers.tolist() or (atoms.cell != box.cell).any():
            raise RuntimeError("this calculator was made for other atoms or another cell; make a new one")
        if self._last is None or (atoms.positions != self._last).any():
            self._check_step(atoms)
            q = torch.from_numpy(atoms.positions[None].copy())
            forces = self._estimates(self.positions_seen, q)[0].numpy()
            self._last, self.positions_seen = atoms.positions.copy(), self.positions_seen + 1
            self.results = {"forces": forces, "energy": float(self._estimates.energy[0])}
            if np.isfinite(self._estimates.stress).all():
                self.results["stress"] = self._estimates.stress[0]
        self.atoms = atoms.copy()

    def _check_step(self, atoms: Atoms) -> None:
        if self._last is None:
            return
        v = atoms.get_velocities()
        square = float((v * v).sum())
        if square == 0:
            raise RuntimeError(
                "atoms were moved without momenta, as a relaxation does; a plan answers molecular dynamics with a "
                "fixed step, so give a relaxation the top calculator itself"
            )
        step = float(((atoms.positions - self._last) * v).sum()) / square
        if self._step is None and step > 0:
            self._step = step
        if self._step is None or abs(step / self._step - 1) > _VARIES:
            before = "forward" if self._step is None else f"{self._step / units.fs:.3g} fs"
            raise RuntimeError(
                f"position {self.positions_seen + 1} is {step / units.fs:.3g} fs along the momenta from the last one, "
                f"expected {before}: a plan needs one force a step, in order, and one and the same step; make a new "
                "calculator for another step or start"
            )


def _unconstrained(atoms: Atoms) -> Atoms:
    """A copy without constraints, which are the integrator's business."""
    if not isinstance(atoms, Atoms):
        raise TypeError(f'"atoms" must be one ase.Atoms, got {type(atoms).__name__}')
    free = atoms.copy()
    free.set_constraint()
    return free
