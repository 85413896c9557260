"""Averages of silicon by real checkpoints: those of a plan are the top level's, those of a cheap level alone are not.

Needs the packages sevenn and chgnet, and a minute. Runs share start and noise; intervals are those of the top's own
averages, from six blocks. `benchmarks.forces.bench_crystals` measures the same for longer.
"""

import math

import numpy as np
import pytest

pytest.importorskip("sevenn")
pytest.importorskip("chgnet")
from ase import units
from ase.build import bulk
from ase.calculators.calculator import Calculator

from benchmarks.forces.classical import stillinger_weber
from multilevel_forces import Langevin, Walk, impulses, ladder, pilot
from multilevel_forces.calculator_names import calculator_named
from multilevel_forces.observables import radial_distribution

DYNAMICS = Langevin(temperature=300, friction=0.01, timestep=2.0)
BLOCKS, STEPS, BURN = 6, 120, 24
pytestmark = pytest.mark.slow


def averages(forces, plan, atoms, top: Calculator):
    """Temperature in K, squared displacement, pressure in GPa, and g(r), of each block."""
    walk = Walk(forces, DYNAMICS, plan, [0])
    walk.thermalize(0)
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


def test_silicon_by_a_plan_is_silicon_by_the_top_level():
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=0)
    named = {name: calculator_named(name) for name in ("chgnet", "7net-0", "7net-l3i5")}
    top = named["7net-l3i5"]
    found = pilot(atoms, {"sw": stillinger_weber(atoms), **named}, DYNAMICS, steps=64)
    print(found)
    assert found.pays
    own = averages(ladder([top], atoms, prices=[1]), impulses([1]), atoms, top)
    error = own.std(0, ddof=1) / math.sqrt(BLOCKS)
    plan = averages(found.ladder, found.plan, atoms, top) - own
    cheap = averages(ladder([named["chgnet"]], atoms, prices=[1]), impulses([1]), atoms, top) - own
    for words, off in (("plan", plan), ("CHGNet", cheap)):
        print(words, (off.mean(0) / error.clip(1e-9))[:3].round(2), np.abs(off.mean(0)[3:]).max().round(2))
    assert (np.abs(plan.mean(0)) <= error)[:3].all()  # temperature, displacement, pressure
    greatest = np.abs(plan.mean(0)[3:]).max()
    assert greatest < 0.1 * own.mean(0)[3:].max()
    assert np.abs(cheap.mean(0)[3:]).max() > 3 * greatest
