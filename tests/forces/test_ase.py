"""What ASE's users expect of a dynamics object and of a calculator."""

import io

import numpy as np
import pytest
import torch
from pairs import CHEAP, COPPER, TOP

from multilevel_sde.plans.plan import Plan

units = pytest.importorskip("ase.units")
import ase.io  # noqa: E402
from ase.calculators.emt import EMT  # noqa: E402
from ase.calculators.morse import MorsePotential  # noqa: E402
from ase.constraints import FixAtoms  # noqa: E402
from ase.md.velocitydistribution import thermalize_momenta  # noqa: E402
from ase.md.verlet import VelocityVerlet  # noqa: E402
from ase.optimize import BFGS  # noqa: E402

from multilevel_forces import Langevin, MultilevelCalculator, MultilevelLangevin, Walk, impulses, ladder, pilot  # noqa: E402

WARM = Langevin(temperature=600, friction=0.01, timestep=4.0)


def copper():
    atoms = COPPER.copy()
    thermalize_momenta(atoms, 600, rng=np.random.default_rng(0))
    return atoms


def few():
    """Four atoms, for ASE's own potentials."""
    atoms = COPPER[:4]
    atoms.cell = [3.61] * 3
    thermalize_momenta(atoms, 300, rng=np.random.default_rng(0))
    return atoms


def of_ase():
    return [MorsePotential(epsilon=0.35, r0=2.6, rho0=4.3), EMT()]


def test_it_is_a_walk_with_ases_ways(tmp_path):
    atoms, log = few(), io.StringIO()
    run = MultilevelLangevin(
        atoms, of_ase(), WARM, plan=impulses([1, 4]), seed=2, trajectory=str(tmp_path / "run.traj"), logfile=log
    )
    times = []
    run.attach(lambda: times.append(run.get_time() / units.fs), interval=3)
    assert run.run(6)
    run.run(3)
    walk = Walk(ladder(of_ase(), few(), prices=[1, 2]), WARM, impulses([1, 4]), [2])
    for _ in range(9):
        walk.step()
    assert (atoms.positions == walk.q[0].numpy()).all()
    assert np.abs(atoms.get_momenta() - walk.p[0].numpy()).max() < 1e-12
    assert times == pytest.approx([0.0, 12.0, 24.0, 36.0])
    frames = ase.io.read(tmp_path / "run.traj", ":")
    assert len(frames) == 10
    assert np.abs(frames[-1].get_forces() - walk.begin()[0].numpy()).max() < 1e-12
    assert len(log.getvalue().splitlines()) == 11
    assert run.todict()["temperature_K"] == 600


def test_energy_and_stress_are_the_tops_where_it_was_evaluated():
    atoms = few()
    run = MultilevelLangevin(atoms, of_ase(), WARM, plan=impulses([1, 4]))
    run.run(4)
    other = atoms.copy()
    other.calc = EMT()
    assert atoms.get_potential_energy() == pytest.approx(other.get_potential_energy(), abs=1e-9)
    assert np.abs(atoms.get_stress() - other.get_stress()).max() < 1e-9
    run.run(1)  # between: Morse and the last difference
    other.positions = atoms.positions
    assert atoms.get_potential_energy() != pytest.approx(other.get_potential_energy(), abs=1e-9)
    assert atoms.get_potential_energy() == pytest.approx(other.get_potential_energy(), abs=0.3)


def test_functions_have_no_energy_and_run_all_the_same():
    atoms = copper()
    MultilevelLangevin(atoms, [CHEAP, TOP], WARM, plan=impulses([1, 2])).run(4)
    assert np.isnan(atoms.get_potential_energy())


def test_a_pilot_is_enough():
    atoms = copper()
    found = pilot(atoms, [CHEAP, TOP], WARM, steps=64, prices=[1.0, 50.0])
    run = MultilevelLangevin(atoms, found)
    run.run(8)
    assert run.walk.plan == found.plan
    by_itself = MultilevelLangevin(copper(), [CHEAP, TOP], WARM)
    assert isinstance(by_itself.walk.plan, Plan)


def test_fixed_atoms_stay():
    atoms = copper()
    atoms.set_constraint(FixAtoms([3]))
    before = atoms.positions.copy()
    MultilevelLangevin(atoms, [CHEAP, TOP], WARM, plan=impulses([1, 2])).run(5)
    moved = np.abs(atoms.positions - before).max(1)
    assert moved[3] == 0
    assert (moved[[2, 4]] > 0).all()
    assert (atoms.get_momenta()[3] == 0).all()


def test_momenta_that_were_changed_between_steps_are_taken():
    cold, atoms = Langevin(temperature=0, friction=0, timestep=4.0), copper()
    run = MultilevelLangevin(atoms, [CHEAP, TOP], cold, plan=impulses([1, 2]))
    run.run(2)
    atoms.set_momenta(np.zeros((32, 3)))
    run.run(1)
    assert atoms.get_temperature() < 60  # of 600: what one step's forces bring


def test_atoms_that_were_moved_are_refused():
    atoms = copper()
    run = MultilevelLangevin(atoms, [CHEAP, TOP], WARM, plan=impulses([1, 2]))
    run.run(2)
    atoms.positions[0] += 0.1
    with pytest.raises(RuntimeError, match="atoms were moved"):
        run.run(1)
    with pytest.raises(RuntimeError, match="atoms were moved"):
        atoms.get_forces()


@pytest.mark.parametrize(("change", "kind", "says"), [
    ({"atoms": [COPPER]}, TypeError, '"atoms" must be one ase.Atoms'),
    ({"dynamics": None}, TypeError, '"dynamics" must be Langevin'),
    ({"levels": ladder([CHEAP, TOP], COPPER, prices=[1, 2]), "plan": None}, ValueError, '"plan" must be given'),
    ({"levels": ladder([CHEAP, TOP], COPPER[:8], prices=[1, 2])}, ValueError, "made for 1 of Cu8, not for Cu32"),
    ({"plan": 4}, TypeError, '"plan" must be a multilevel_sde.Plan'),
])  # fmt: skip
def test_bad_arguments_are_refused_in_a_sentence(change, kind, says):
    given = {"levels": [CHEAP, TOP], "dynamics": WARM, "plan": impulses([1, 2]), "atoms": COPPER.copy(), **change}
    with pytest.raises(kind, match=says):
        MultilevelLangevin(given.pop("atoms"), given.pop("levels"), **given)


def test_a_foreign_integrator_gets_the_plan():
    """Velocity Verlet is BAOAB without friction: the same path, to 1e-9 Angstrom."""
    atoms = copper()
    atoms.calc = MultilevelCalculator([CHEAP, TOP], atoms, impulses([1, 4]))
    VelocityVerlet(atoms, 4 * units.fs).run(12)
    cold = Langevin(temperature=0, friction=0, timestep=4.0)
    walk = Walk(ladder([CHEAP, TOP], copper(), prices=[1, 2]), cold, impulses([1, 4]), [0])
    for _ in range(12):
        walk.step()
    assert np.abs(atoms.positions - walk.q[0].numpy()).max() < 1e-9
    assert atoms.calc.positions_seen == 13
    atoms.get_forces()
    atoms.get_potential_energy()
    assert atoms.calc.positions_seen == 13  # asked again at the same place


def begun():
    atoms = copper()
    atoms.calc = MultilevelCalculator([CHEAP, TOP], atoms, impulses([1, 4]))
    VelocityVerlet(atoms, 4 * units.fs).run(3)
    return atoms


def test_a_foreign_integrator_that_varies_its_step_is_refused():
    with pytest.raises(RuntimeError, match=r"position 5 is 1 fs along the momenta .* expected 4 fs"):
        VelocityVerlet(begun(), 1 * units.fs).run(1)


def test_an_integrator_that_goes_back_is_refused():
    atoms = begun()
    atoms.set_momenta(-atoms.get_momenta())
    atoms.positions -= 4 * units.fs * atoms.get_velocities()
    with pytest.raises(RuntimeError, match="in order"):
        atoms.get_forces()


def test_relaxations_and_other_cells_are_refused():
    atoms = COPPER.copy()
    atoms.rattle(0.1, seed=0)
    atoms.calc = MultilevelCalculator([CHEAP, TOP], atoms, impulses([1, 4]))
    with pytest.raises(RuntimeError, match="as a relaxation does"):
        BFGS(atoms, logfile=None).run(fmax=1e-3, steps=3)
    atoms = begun()
    atoms.set_cell(1.01 * atoms.cell)
    with pytest.raises(RuntimeError, match="another cell"):
        atoms.get_forces()


def test_a_toy_neural_potential_is_a_level_as_any_other():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)).double()

    def neural(q):
        x = q.detach().requires_grad_(True)
        energy = network(x - x.mean(1, keepdim=True)).sum()
        return TOP(q) - 0.1 * torch.autograd.grad(energy, x)[0]

    atoms = copper()
    run = MultilevelLangevin(atoms, {"pairs": TOP, "neural": neural}, WARM, plan=impulses([1, 2]))
    run.run(6)
    assert not run.walk.q.requires_grad
    assert atoms.get_temperature() > 100
