"""Force fields as drifts for `multilevel_sde`: molecular dynamics at a fraction of a foundation potential's cost.

atoms = ase.io.read("si.cif")
found = pilot(atoms, [Tersoff(...), CHGNetCalculator(), SevenNetCalculator("7net-l3i5")], Langevin(temperature=300))
MultilevelLangevin(atoms, found.ladder, found.dynamics, plan=found.plan, trajectory="si.traj").run(10_000)

Units: eV, Angstrom, fs, K, amu. The public names stand in `__init__.pyi`; a room is imported when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
