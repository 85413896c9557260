"""Models of torch-sim as levels, by a model with its interface that asks ASE's EMT for every system."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

from multilevel_forces import ForceError, ladder


class Model(torch.nn.Module):
    """What torch-sim's ModelInterface says: a state in columns, all systems at once, energy, forces and stress."""

    memory_scales_with = "n_atoms_x_density"
    compute_forces = compute_stress = True
    device, dtype = torch.device("cpu"), torch.float64

    def forward(self, state):
        found = {"energy": [], "forces": [], "stress": []}
        for system, cell in enumerate(state["cell"]):
            own = state["system_idx"] == system
            atoms = Atoms(state["atomic_numbers"][own].numpy(), state["positions"][own].numpy(), pbc=state["pbc"])
            atoms.cell = cell.numpy().T
            atoms.calc = EMT()
            found["energy"].append(atoms.get_potential_energy())
            found["forces"].append(atoms.get_forces())
            found["stress"].append(atoms.get_stress(voigt=False))
        whole = {name: torch.from_numpy(np.asarray(each)) for name, each in found.items()}
        return whole | {"forces": whole["forces"].flatten(0, 1)}


def crystals():
    """Two cells that are no boxes, with displaced atoms."""
    found = []
    for seed in range(2):
        atoms = bulk("Cu", cubic=True) * (2, 2, 2)
        atoms.set_cell(atoms.cell.array @ [[1.0, 0.1, 0.0], [0.0, 1.0, 0.05], [0.0, 0.0, 1.0]], scale_atoms=True)
        atoms.rattle(0.1, seed=seed)
        found.append(atoms)
    return found


def test_a_model_is_called_once_for_all_systems_with_cells_in_columns():
    systems = crystals()
    model, by_ase = ladder([Model(), EMT()], systems, prices=[1.0, 2.0]).drifts
    q = torch.from_numpy(np.stack([atoms.positions for atoms in systems]))
    torch.testing.assert_close(model(q, 0.0), by_ase(q, 0.0), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(model.energy, by_ase.energy, rtol=1e-10)
    np.testing.assert_allclose(model.stress, by_ase.stress, rtol=1e-8, atol=1e-12)


def test_a_model_that_raises_is_named():
    broken = Model()
    broken.forward = lambda state: {"energy": torch.zeros(2)}
    with pytest.raises(ForceError, match=r"the calculator of level 1 \(Model\) raised KeyError: 'forces'"):
        ladder([broken, EMT()], crystals())


def test_cells_that_are_periodic_in_part_are_refused():
    slabs = crystals()
    for atoms in slabs:
        atoms.pbc = (True, True, False)
    with pytest.raises(ValueError, match="periodic in all directions or in none, got"):
        ladder([Model(), EMT()], slabs)
