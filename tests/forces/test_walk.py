"""Laws of walks: they are the core's solve, and ASE's own BAOAB, and go on to the same bits."""

import numpy as np
import pytest
import torch
from pairs import CHEAP, COPPER, MIDDLE, TOP

import multilevel_sde as mls

units = pytest.importorskip("ase.units")
from ase.calculators.emt import EMT  # noqa: E402
from ase.calculators.morse import MorsePotential  # noqa: E402
from ase.constraints import FixAtoms, FixBondLength  # noqa: E402
from ase.md.langevinbaoab import LangevinBAOAB  # noqa: E402
from ase.md.velocitydistribution import thermalize_momenta  # noqa: E402

from multilevel_forces import ForceError, Langevin, Overdamped, Walk, impulses, ladder  # noqa: E402

WARM = Langevin(temperature=600, friction=0.01, timestep=4.0)


def copper(seed=0, kelvin=600):
    atoms = COPPER.copy()
    thermalize_momenta(atoms, kelvin, rng=np.random.default_rng(seed))
    return atoms


def forces(*levels, atoms=None):
    return ladder(levels, copper() if atoms is None else atoms, prices=[1.0, 3.0, 9.0][: len(levels)])


def walked(walk, steps):
    for _ in range(steps):
        walk.step()
    return walk


def far(a, b):
    return float((a - b).abs().max())


@pytest.mark.parametrize("dynamics", [WARM, Overdamped(temperature=600, friction=0.05, timestep=2.0)])
@pytest.mark.parametrize("held", [False, True])
def test_a_walk_is_solve_with_the_block_written_out(dynamics, held):
    """Both add the same numbers, so that they agree to rounding, 1e-9 Angstrom after 20 steps."""
    levels, steps = forces(CHEAP, MIDDLE, TOP), 20
    block = impulses([1, 2, 4])
    if held:
        block = mls.hold(block, torch.arange(5.0))
    walk = walked(Walk(levels, dynamics, block, seeds=[7]), steps)
    inertial = not isinstance(dynamics, Overdamped)
    rows = steps + inertial
    index = [row % 4 for row in range(rows)]
    recall = [] if block.recall is None else block.recall.entries
    entries = [(row, k, row - n + m, r) for row in range(rows) for n, k, m, r in recall if n == row % 4]
    plan = mls.Plan(block.hits[index], block.weights[index], recall=mls.Recall(entries))
    q, p = walk.systems.positions(), walk.systems.momenta()
    times = torch.arange(steps + 1, dtype=torch.float64) * dynamics.h
    path = mls.BrownianPath([7], unit=dynamics.h, shape=q.shape[1:], dtype=torch.float64)
    start = torch.stack((q, p), 1) if inertial else q
    rule = dynamics.rule(walk.systems.masses)
    y = mls.solve(levels, start, times, plan, step=rule, diffusion=1.0, brownian=path).y
    assert far(y[:, 0] if inertial else y, walk.q) < 1e-9
    assert far(walk.q, q) > 0.05


class NormalsOf:
    """The normals of a walk, in the shape of numpy's generator, so that ASE's integrator has the same noise."""

    def __init__(self, dynamics, shape, seed):
        self.path = mls.BrownianPath([seed], unit=dynamics.h, shape=shape, dtype=torch.float64)
        self.h, self.n = dynamics.h, 0

    def normal(self, size):
        grid = torch.tensor([self.n, self.n + 1], dtype=torch.float64) * self.h
        self.n += 1
        return (next(self.path.increments(grid))[0] / self.h**0.5).numpy().reshape(size)


def test_the_top_level_alone_is_ases_own_baoab_with_the_same_noise():
    atoms = copper()
    levels = ladder([MorsePotential(epsilon=0.35, r0=2.6, rho0=4.3), EMT()], atoms, prices=[1.0, 2.0])
    walk = walked(Walk(levels, WARM, impulses([1, 1]), seeds=[3]), 15)
    atoms.calc = EMT()
    own = LangevinBAOAB(atoms, WARM.h, temperature_K=600, T_tau=1 / WARM.gamma, rng=np.random.default_rng(0))
    own.rng = NormalsOf(WARM, (len(atoms), 3), 3)
    own.run(15)
    assert np.abs(walk.q[0].numpy() - atoms.positions).max() < 1e-9
    assert np.abs(walk.p[0].numpy() - atoms.get_momenta()).max() < 1e-8


@pytest.mark.parametrize("dynamics", [WARM, Overdamped(temperature=600, friction=0.05, timestep=2.0)])
@pytest.mark.parametrize("stop", [1, 6, 300])
def test_a_stored_walk_goes_on_to_the_same_bits(dynamics, stop):
    block = mls.hold(impulses([1, 4]), torch.arange(5.0)) if stop == 6 else impulses([1, 4])
    levels = forces(CHEAP, TOP)
    whole = walked(Walk(levels, dynamics, block, seeds=[1]), stop)
    state = {name: value.clone() for name, value in whole.state().items()}
    walked(whole, 9)
    again = Walk(levels, dynamics, block, seeds=[1])
    again.go_on(state)
    walked(again, 9)
    assert torch.equal(whole.q, again.q)
    assert torch.equal(whole.p, again.p)
    assert again.n == stop + 9
    with pytest.raises(ValueError, match="same atoms"):
        again.go_on({"q": state["q"]})


def test_each_force_is_evaluated_as_often_as_the_plan_says():
    counts = [0, 0]

    def counting(level, force):
        def counted(q):
            counts[level] += 1
            return force(q)

        return counted

    levels = ladder([counting(0, CHEAP), counting(1, TOP)], copper(), prices=[1.0, 2.0])
    walked(Walk(levels, WARM, impulses([1, 4]), seeds=[0]), 40)
    assert counts == [41, 11]


def test_systems_of_a_batch_are_those_run_alone():
    several = [copper(0), copper(1)]
    both = walked(Walk(forces(CHEAP, TOP, atoms=several), WARM, impulses([1, 2]), seeds=[5, 6]), 10)
    alone = walked(Walk(forces(CHEAP, TOP, atoms=several[1]), WARM, impulses([1, 2]), seeds=[6]), 10)
    assert far(both.q[1:], alone.q) < 1e-10


@pytest.mark.parametrize(("places", "taken"), [([0, 3], True), ([0, 2], False)])
def test_corrections_may_be_one_step_from_even_and_no_more(places, taken):
    """In a block of 7 steps, with the weight of the steps until the next: 3 and 4, or 2 and 5."""
    weights = torch.tensor([[1.0, 0.0]] * 7, dtype=torch.float64)
    weights[places, 1] = torch.tensor([places[1], 7.0 - places[1]], dtype=torch.float64)
    plan = mls.Plan(weights != 0, weights)
    if taken:
        walked(Walk(forces(CHEAP, TOP), WARM, plan, [0]), 3)
        return
    with pytest.raises(ValueError, match=r"uneven places \(2 to 5 steps apart\)"):
        Walk(forces(CHEAP, TOP), WARM, plan, [0])
    Walk(forces(CHEAP, TOP), WARM, plan, [0], allow_heating=True)


def test_levels_of_one_class_have_names_of_their_own():
    levels = ladder([EMT(), EMT(), TOP], copper(), prices=[1, 2, 3]).drifts
    assert [level.name for level in levels] == ["EMT 1", "EMT 2", "force"]


def test_a_plan_that_leaves_out_the_top_is_refused():
    plan = mls.Plan(torch.tensor([[True, False]]), torch.tensor([[1.0, 0.0]]))
    with pytest.raises(ValueError, match="correction of level 2 0 times in the mean"):
        Walk(forces(CHEAP, TOP), WARM, plan, [0])


@pytest.mark.parametrize("periods", [[1, 4], [1, 1]])
def test_momentum_is_conserved_without_friction(periods):
    walk = Walk(forces(CHEAP, TOP), Langevin(temperature=0, friction=0, timestep=4.0), impulses(periods), seeds=[0])
    before = walk.p.sum(1)
    walked(walk, 40)
    assert far(walk.p.sum(1), before) < 1e-9 * float(walk.p.abs().sum())


def test_a_walk_knows_neither_where_it_is_nor_how_atoms_are_numbered():
    """Newton's equations commute with translations, also by cells, and with permutations: to 1e-9 Angstrom."""
    cold = Langevin(temperature=0, friction=0, timestep=4.0)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    atoms = copper()
    here = walked(Walk(forces(CHEAP, TOP, atoms=atoms), cold, impulses([1, 4]), seeds=[0]), 20).q
    moved, mixed = atoms.copy(), atoms[order.tolist()]
    moved.positions += [3 * BOX_SIDE, 0.7, -11.0]
    there = walked(Walk(forces(CHEAP, TOP, atoms=moved), cold, impulses([1, 4]), seeds=[0]), 20).q
    assert far(there - torch.tensor([3 * BOX_SIDE, 0.7, -11.0], dtype=here.dtype), here) < 1e-9
    other = walked(Walk(forces(CHEAP, TOP, atoms=mixed), cold, impulses([1, 4]), seeds=[0]), 20).q
    assert far(other, here[:, order]) < 1e-9


BOX_SIDE = float(COPPER.cell[0, 0])


def test_atoms_that_leave_the_cell_go_on_as_if_they_had_not():
    """Galileo: with a common velocity, Newton's equations give the same path moved along, to 1e-9 Angstrom."""
    cold, atoms, speed = Langevin(temperature=0, friction=0, timestep=4.0), copper(), 0.2
    here = walked(Walk(forces(CHEAP, TOP, atoms=atoms), cold, impulses([1, 4]), seeds=[0]), 60).q
    atoms.set_momenta(atoms.get_momenta() + speed * atoms.get_masses()[:, None])
    there = walked(Walk(forces(CHEAP, TOP, atoms=atoms), cold, impulses([1, 4]), seeds=[0]), 60).q
    assert float(there.max()) > 1.3 * BOX_SIDE  # not wrapped
    assert far(there - 60 * cold.h * speed, here) < 1e-9


def test_fixed_atoms_do_not_move_and_have_no_noise():
    atoms = copper()
    atoms.set_constraint(FixAtoms([0, 5]))
    walk = Walk(forces(CHEAP, TOP, atoms=atoms), WARM, impulses([1, 4]), seeds=[0])
    walked(walk, 10)
    placed = walk.systems.placed(walk.q)[0]
    assert walk.q.shape == (1, 30, 3)
    assert (placed[[0, 5]] == atoms.positions[[0, 5]]).all()
    assert (np.abs(placed - atoms.positions).max(1)[1:5] > 1e-3).all()


def _broken(q):
    return torch.where(torch.arange(32)[:, None] == 9, torch.nan, TOP(q))


def _raises(q):
    raise ArithmeticError("no convergence\nafter all")


@pytest.mark.parametrize(("make", "kind", "says"), [
    (lambda: forces(CHEAP, atoms=[copper(), COPPER[:8]]), ValueError, "system 2 is Cu8 and system 1 Cu32"),
    (lambda: forces(CHEAP, atoms=3), TypeError, '"atoms" must be an ase.Atoms'),
    (lambda: forces(CHEAP, atoms=[]), ValueError, "at least one system"),
    (lambda: ladder([EMT], copper()), TypeError, r"the class EMT; make an object of it, EMT\(\)"),
    (lambda: ladder(EMT(), copper()), TypeError, '"calculators" must be a list'),
    (lambda: ladder([], copper()), TypeError, "got an empty one"),
    (lambda: ladder([CHEAP, TOP], copper(), prices=[2.0, 1.0]), ValueError, "must strictly increase"),
    (lambda: walked(Walk(forces(CHEAP, _broken), WARM, impulses([1, 4]), [0]), 9), ForceError,
     r"level 2 \(_broken\) was not finite at step 0, system 1, atom 9 \(Cu\)"),
    (lambda: walked(Walk(forces(CHEAP, _raises), WARM, impulses([1, 4]), [0]), 9), ForceError,
     r"at step 0 the calculator of level 2 \(_raises\) raised ArithmeticError: no convergence$"),
    (lambda: walked(Walk(forces(CHEAP, lambda q: q[0]), WARM, impulses([1, 4]), [0]), 9), ForceError, "of shape"),
    (lambda: ladder([EMT()], _gold_of("Fe")), ForceError, r"level 1 \(EMT\) raised .* for system 1, Fe4: "),
    (lambda: Walk(forces(CHEAP, TOP), WARM, impulses([1, 4]), [0, 1]), ValueError, "one a system, got 2 for 1"),
    (lambda: Walk(forces(CHEAP, TOP), WARM, impulses([1]), [0]), ValueError, "for 1 levels, the ladder has 2"),
    (lambda: Walk(forces(CHEAP, TOP), 300, impulses([1, 2]), [0]), TypeError, '"dynamics" must be Langevin'),
    (lambda: Walk(mls.Ladder([torch.sin], [1.0]), WARM, impulses([1]), [0]), TypeError, "must be made by"),
    (lambda: impulses([1, 3, 4]), ValueError, "multiple of the one before"),
    (lambda: Langevin(temperature=-1), ValueError, '"temperature" must be'),
    (lambda: Langevin(temperature=300, timestep=0), ValueError, "above 0 fs"),
    (lambda: Langevin(temperature=300, timestep=1000), ValueError, "a plain number"),
    (lambda: Overdamped(temperature=300, friction=0), ValueError, '"friction" must be above 0'),
    (lambda: forces(CHEAP, atoms=_tied()), ValueError, "constraint FixBondLength"),
])  # fmt: skip
def test_what_cannot_be_run_is_refused_in_a_sentence(make, kind, says):
    with pytest.raises(kind, match=says):
        make()


def _gold_of(species):
    atoms = COPPER[:4]
    atoms.symbols[:] = species
    return atoms


def _tied():
    atoms = copper()
    atoms.set_constraint(FixBondLength(0, 1))
    return atoms
