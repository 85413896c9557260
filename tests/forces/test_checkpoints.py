"""Averages of crystals by real checkpoints: those of a plan are the top level's, those of the cheapest level are not.

Needs the packages sevenn and chgnet, and a minute a crystal. Runs share start and noise; intervals are those of the
top's own averages, from six blocks. `benchmarks.forces.bench_crystals` measures the same for longer.
"""

import math

import numpy as np
import pytest

pytest.importorskip("sevenn")
pytest.importorskip("chgnet")
from ase import units
from ase.calculators.calculator import Calculator

from benchmarks.forces.bench_crystals import calculators, crystal
from multilevel_forces import Langevin, Walk, impulses, ladder, pilot
from multilevel_forces.observables import radial_distribution

BLOCKS, STEPS, BURN = 6, 120, 24
pytestmark = pytest.mark.slow


def averages(forces, dynamics, plan, atoms, top: Calculator):
    """Temperature in K, squared displacement, pressure in GPa, and g(r), of each block."""
    walk = Walk(forces, dynamics, plan, [0])
    temperatures, places, pressures = [], [], []
    for n in range(STEPS):
        walk.step()
        if n >= BURN:
            temperatures.append(float(walk.temperature()[0]))
            places.append(walk.q[0].numpy())
        if n >= BURN and n % 8 == 7:
            box = atoms.copy()
            box.positions = places[-1]
            pressures.append(-top.get_stress(box)[:3].mean() / units.GPa)
    apart = np.array(places) - np.mean(places, 1, keepdims=True)
    squares = np.square(apart - apart.mean(0)).sum(2).mean(1)
    g = [radial_distribution(atoms, part, 6.0, 30)[1] for part in np.array_split(np.array(places)[::4], BLOCKS)]
    means = [[part.mean() for part in np.array_split(one, BLOCKS)] for one in (temperatures, squares, pressures)]
    return np.concatenate([np.transpose(means), g], 1)


@pytest.mark.parametrize(("system", "kelvin"), [("silicon", 300), ("silicon", 1200), ("nacl", 300)])
def test_a_crystal_by_a_plan_is_that_of_the_top_level(system, kelvin):
    atoms, dynamics = crystal(system, 1, kelvin), Langevin(temperature=kelvin, friction=0.01, timestep=2.0)
    named = calculators(system, atoms)
    found, levels = pilot(atoms, named, dynamics, steps=64), list(named.values())
    print(found)
    assert found.pays
    own = averages(ladder(levels[-1:], atoms, prices=[1]), dynamics, impulses([1]), atoms, levels[-1])
    error = own.std(0, ddof=1) / math.sqrt(BLOCKS)
    plan = averages(found.ladder, dynamics, found.plan, atoms, levels[-1]) - own
    cheap = averages(ladder(levels[:1], atoms, prices=[1]), dynamics, impulses([1]), atoms, levels[-1]) - own
    for words, off in (("top", own), ("its errors", error[None]), ("plan off", plan), ("cheapest off", cheap)):
        print(f"{words:<12}", off.mean(0)[:3].round(4), "g", np.abs(off.mean(0)[3:]).max().round(3))
    assert (np.abs(plan.mean(0)) <= error)[:3].all()  # temperature, displacement, pressure
    greatest = np.abs(plan.mean(0)[3:]).max()
    assert greatest < 0.1 * own.mean(0)[3:].max()
    assert np.abs(cheap.mean(0)[3:]).max() > 3 * greatest
