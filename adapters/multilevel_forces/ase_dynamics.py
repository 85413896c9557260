"""An ASE dynamics object: `attach`, `run`, trajectories and loggers work as for ASE's own."""

from __future__ import annotations

from typing import IO, Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.md.md import MolecularDynamics

import multilevel_sde as mls
from multilevel_forces.force_ladder import Levels, ladder
from multilevel_forces.force_pilot import ForcePilot
from multilevel_forces.langevin import Langevin, Overdamped
from multilevel_forces.run_pilot import pilot
from multilevel_forces.walk import Walk, systems_of

__all__ = ["MultilevelLangevin"]


class MultilevelLangevin(MolecularDynamics):
    """Langevin dynamics of atoms by a plan, an `ase.md.md.MolecularDynamics`.

    While it runs `atoms.calc` answers with the plan's estimate of the forces (eV / Angstrom), and with energy (eV) and
    stress of the cheapest level plus the last known difference of each level above. `get_time()` is in ASE's unit, as
    for ASE's own: divide by `ase.units.fs`.

    Arguments:
        atoms: What moves; Angstrom, amu. FixAtoms is honoured.
        levels: A :class:`ForcePilot`, which knows the rest; or calculators, cheapest first, as for :func:`ladder`; or a
            ladder.
        dynamics: :class:`Langevin`, in K, fs and 1/fs; of the pilot by default.
        plan: One block, such as `impulses([1, 4])`; by default the pilot's, and one is run if none is given.
        seed: Of the noise.
        allow_heating: See :func:`.blocks.check_block`.
        trajectory, logfile, loginterval: As for ASE's dynamics.

    Raises:
        TypeError, ValueError: As :class:`Walk` and :func:`pilot`; a ladder without a plan, levels for other atoms.
        ForceError: A force cannot be had or is not finite.
        RuntimeError: Atoms were moved by others since the last step.

    Example:
        >>> from ase.build import bulk
        >>> from ase.calculators.emt import EMT
        >>> from ase.calculators.morse import MorsePotential
        >>> from multilevel_forces import impulses
        >>> atoms, levels = bulk("Cu", cubic=True), [MorsePotential(epsilon=0.35, r0=2.6, rho0=4.3), EMT()]
        >>> run = MultilevelLangevin(atoms, levels, Langevin(temperature=300, timestep=2.0), plan=impulses([1, 4]))
        >>> run.run(8), run.nsteps, round(atoms.get_temperature()) > 0
        (True, 8, True)
    """

    def __init__(
        self,
        atoms: Atoms,
        levels: ForcePilot | mls.Ladder | Levels,
        dynamics: Langevin | None = None,
        *,
        plan: mls.Plan | None = None,
        seed: int = 0,
        allow_heating: bool = False,
        trajectory: Any = None,
        logfile: IO | str | None = None,
        loginterval: int = 1,
    ):
        if not isinstance(atoms, Atoms):
            raise TypeError(f'"atoms" must be one ase.Atoms, got {type(atoms).__name__}; several run in a Walk')
        if dynamics is None and isinstance(levels, ForcePilot):
            dynamics = levels.dynamics
        if not isinstance(dynamics, Langevin):
            raise TypeError(f'"dynamics" must be Langevin(temperature=..., ...), got {type(dynamics).__name__}')
        found, plan = _chosen(atoms, levels, dynamics, plan, seed)
        inner = systems_of(found)
        if len(inner) != 1 or (inner.atoms[0].numbers.tolist() != atoms.numbers.tolist()):
            raise ValueError(
                f'"levels" were made for {len(inner)} of {inner.atoms[0].get_chemical_formula()}, not for '
                f"{atoms.get_chemical_formula()}; make them for these atoms"
            )
        if len(inner.free) != len(atoms) - len({int(i) for one in atoms.constraints for i in one.get_indices()}):
            raise ValueError('"levels" were made for atoms with other constraints; make them for these')
        self.walk = Walk(found, dynamics, plan, [seed], allow_heating=allow_heating)
        self.walk.q = torch.from_numpy(atoms.positions[inner.free][None].copy())
        atoms.calc = _Answers(self.walk)
        super().__init__(atoms, dynamics.h, trajectory=trajectory, logfile=logfile, loginterval=loginterval)

    def todict(self) -> dict[str, Any]:
        """Return what trajectories keep of the dynamics."""
        made = self.walk.dynamics
        return {**super().todict(), "temperature_K": made.temperature, "friction_per_fs": made.friction}

    def step(self) -> None:
        """Make one step of the plan."""
        walk, free = self.walk, self.walk.systems.free
        if (self.atoms.positions[free] != walk.q[0].numpy()).any():
            raise RuntimeError(
                "atoms were moved by something else since the last step, so that remembered forces are not theirs; "
                "make a new MultilevelLangevin from where they are (and do not wrap them during a run)"
            )
        walk.p = torch.from_numpy(self.atoms.get_momenta()[free][None])
        walk.step()
        positions, momenta = self.atoms.positions.copy(), np.zeros((len(self.atoms), 3))
        positions[free], momenta[free] = walk.q[0].numpy(), walk.p[0].numpy()
        self.atoms.positions = positions
        if not isinstance(walk.dynamics, Overdamped):
            self.atoms.set_momenta(momenta, apply_constraint=False)


def _chosen(
    atoms: Atoms, levels: Any, dynamics: Langevin, plan: mls.Plan | None, seed: int
) -> tuple[mls.Ladder, mls.Plan]:
    """The ladder and the block to run."""
    if isinstance(levels, mls.Ladder):
        if plan is None:
            raise ValueError('"plan" must be given with a ladder, such as impulses([1, 4]), or give a pilot')
        return levels, plan
    if isinstance(levels, ForcePilot):
        return (levels.ladder, levels.plan) if plan is None else (levels.levels, plan)
    if plan is None:
        found = pilot(atoms, levels, dynamics, seed=seed)
        return found.ladder, found.plan
    return ladder(levels, atoms, prices=range(1, len(levels) + 1)), plan


class _Answers(Calculator):
    """What a walk knows at its present positions."""

    implemented_properties = ("energy", "forces", "stress")  # type: ignore[assignment]

    def __init__(self, walk: Walk):
        super().__init__()
        self._walk = walk

    def calculate(self, atoms=None, properties=("forces",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        walk, free = self._walk, self._walk.systems.free
        assert atoms is not None
        if (atoms.positions[free] != walk.q[0].numpy()).any():
            raise RuntimeError(
                "the forces of a run are known where the run is, and atoms were moved; make a new MultilevelLangevin "
                "or give atoms a calculator of their own"
            )
        forces = np.zeros((len(atoms), 3))
        forces[free] = walk.begin()[0].numpy()
        self.results = {"forces": forces, "energy": float(walk.estimates.energy[0])}
        if np.isfinite(walk.estimates.stress).all():
            self.results["stress"] = walk.estimates.stress[0]
