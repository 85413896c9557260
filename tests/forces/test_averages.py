"""Averages of long runs by plans: what is exact is exact, what heats is refused or heats as predicted.

Statistical claims are within 3 standard errors, from the spread over independent systems; seeds are 0, 1, 2 ...
"""

import math

import numpy as np
import pytest
import torch
from pairs import BOX, CHEAP, COPPER, TOP, lennard_jones

import multilevel_sde as mls

units = pytest.importorskip("ase.units")
from ase import Atoms  # noqa: E402
from ase.build import bulk  # noqa: E402
from ase.calculators.emt import EMT  # noqa: E402

from multilevel_forces import Langevin, Walk, impulses, ladder  # noqa: E402
from multilevel_forces.harmonic import response  # noqa: E402
from multilevel_forces.observables import radial_distribution, squared_displacement  # noqa: E402

STIFF = 80.0  # eV / Angstrom^2: copper's atom in such a well has a period of 57 fs


def wells(share, systems=8, atoms=40):
    """Copper atoms in wells of their own; the cheap level lacks a share of the force."""
    places = np.zeros((atoms, 3))
    several = [Atoms(f"Cu{atoms}", positions=places) for _ in range(systems)]
    return ladder([lambda q: -(1 - share) * STIFF * q, lambda q: -STIFF * q], several, prices=[1, 8])


def held(plan):
    return mls.hold(plan, torch.arange(plan.steps + 1.0))


def averaged(walk, steps, burn):
    """Temperatures over that of the bath and spreads k <q^2> / k_B T of each system."""
    walk.thermalize(0)
    temperature, spread = np.zeros((2, len(walk.systems)))
    for n in range(steps):
        walk.step()
        if n >= burn:
            temperature += walk.temperature() / walk.dynamics.temperature
            spread += STIFF * walk.q.square().mean((1, 2)).numpy() / walk.dynamics.thermal
    return temperature / (steps - burn), spread / (steps - burn)


def within(values, expected, errors=3.0):
    return abs(values.mean() - expected) < errors * values.std(ddof=1) / math.sqrt(len(values))


@pytest.mark.parametrize(("plan", "share"), [
    (impulses([1, 1]), 0.3), (impulses([1, 4]), 0.3), (impulses([1, 2]), -0.5), (held(impulses([1, 2])), 0.1),
])  # fmt: skip
def test_a_harmonic_well_has_the_temperature_and_spread_that_are_predicted(plan, share):
    dynamics = Langevin(temperature=300, friction=0.02, timestep=3.0)
    w = math.sqrt(STIFF / 63.546) * units.fs  # radians / fs
    said = response(plan, np.array([w]), np.array([[share]]), dynamics.friction, dynamics.timestep)
    temperature, spread = averaged(Walk(wells(share), dynamics, plan, range(8)), 2500, 500)
    assert within(temperature, float(said.temperature[0]))
    assert within(spread, float(said.spread[0]))
    if plan == impulses([1, 1]):
        h = w * dynamics.timestep
        assert said.temperature[0] == pytest.approx(1 - h * h / 4)  # known of BAOAB
        assert said.spread[0] == pytest.approx(1.0)
    if plan.recall is not None:
        assert said.temperature[0] > 1.05  # it heats


def test_independent_draws_heat_by_the_formula_and_are_refused():
    """h V / (2 m gamma k_B) for a force error of variance V, here (1 / p - 1) <D^2>, itself proportional to T."""
    dynamics, share, p, mass = Langevin(temperature=300, friction=0.02, timestep=2.0), 0.15, 0.25, 63.546
    table = torch.tensor([1.0, p]).expand(199, 2)
    plan = mls.draw_plan(table, mls.independent, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"uneven places .* heats the system"):
        Walk(wells(share), dynamics, plan, range(8))
    temperature, _ = averaged(Walk(wells(share), dynamics, plan, range(8), allow_heating=True), 4000, 1000)
    w = math.sqrt(STIFF / mass) * units.fs
    own, drawn = (
        float(response(one, np.array([w]), np.array([[share]]), dynamics.friction, dynamics.timestep).temperature[0])
        for one in (impulses([1, 1]), plan)
    )
    assert within(temperature, drawn)
    rate = dynamics.h * (1 / p - 1) * share**2 * STIFF / (2 * mass * dynamics.gamma)
    assert rate > 0.03
    assert drawn / own == pytest.approx(1 / (1 - rate), abs=0.3 * rate)
    print(f"independent draws heat by {temperature.mean() / own - 1:.1%}, the formula says {rate:.1%}")


def energy(walk):
    kinetic = (walk.p.square() / walk.systems.masses).sum((1, 2)) / 2
    return (kinetic + STIFF * walk.q.square().sum((1, 2)) / 2).numpy()


def test_energy_stays_at_periods_that_do_not_resonate():
    """Newton's equations: below resonance the energy of impulses swings and does not drift; beyond it grows."""
    dynamics = Langevin(temperature=300, friction=0.0, timestep=3.0)
    w, share = math.sqrt(STIFF / 63.546) * units.fs, 0.3
    growth = {
        period: float(response(impulses([1, period]), np.array([w]), np.array([[share]]), 0.0, 3.0).growth[0])
        for period in range(1, 20)
    }
    safe = max(period for period in growth if all(growth[one] < 1e-9 for one in range(1, period + 1)))
    print(f"largest safe period: {safe} steps, {safe * 3 / (2 * math.pi / w):.2f} of the well's period")
    assert safe + 1 == pytest.approx(math.pi / (w * 3.0), abs=2)  # half the well's period

    def run(period, steps):
        walk = Walk(wells(share, systems=2), dynamics, impulses([1, period]), [0, 1])
        walk.thermalize(0)
        found = []
        for n in range(steps):
            walk.step()
            if n % period == period - 1:
                found.append(energy(walk))
        return np.array(found)

    steady = run(safe, 1500)
    part = len(steady) // 3
    assert np.abs(steady[-part:].mean(0) / steady[:part].mean(0) - 1).max() < 0.02
    assert (run(safe + 1, 600)[-1] > 100 * steady[0]).all()


def test_paths_have_order_two_in_the_step():
    atoms = COPPER.copy()
    atoms.rattle(0.1, seed=0)

    def end(timestep):
        dynamics = Langevin(temperature=0, friction=0, timestep=timestep)
        walk = Walk(ladder([CHEAP, TOP], atoms, prices=[1, 2]), dynamics, impulses([1, 2]), [0])
        for _ in range(round(64 / timestep)):
            walk.step()
        return walk.q

    coarse, middle, fine = end(4.0), end(2.0), end(0.25)
    ratio = float((coarse - fine).norm() / (middle - fine).norm())
    assert 3.4 < ratio < 4.8  # 4 in the limit


ARGON_LIKE = lennard_jones(0.35, 2.3, BOX)


@pytest.mark.parametrize(("levels", "periods", "timestep"), [
    ([ARGON_LIKE], [1], 4.0),
    ([ARGON_LIKE], [1], 8.0),
    ([lennard_jones(0.30, 2.32, BOX), ARGON_LIKE], [1, 2], 4.0),
])  # fmt: skip
def test_a_lennard_jones_crystal_has_the_baths_temperature_to_second_order_in_the_step(levels, periods, timestep):
    """<p^2> / m = k_B T - h^2 <f^2> / (4 m) for each coordinate, which is 1 - (h w)^2 / 4 where forces are harmonic."""
    systems = [COPPER.copy() for _ in range(8)]
    dynamics = Langevin(temperature=300, friction=0.02, timestep=timestep)
    forces = ladder(levels, systems, prices=range(1, len(levels) + 1))
    walk = Walk(forces, dynamics, impulses(periods), range(8))
    walk.thermalize(0)
    temperature, square = np.zeros((2, 8))
    for n in range(1000):
        walk.step()
        if n >= 200:
            temperature += walk.temperature() / 800
            if n % periods[-1] == periods[-1] - 1:  # the top's forces
                square += forces.drifts[-1](walk.q, 0.0).square().mean((1, 2)).numpy() * periods[-1] / 800
    lost = dynamics.h**2 * square / (4 * float(walk.systems.masses[0]) * units.kB)
    assert within(temperature + lost, 300)
    if timestep == 8:
        assert lost.mean() > 5  # K: the first order would be seen


def copper_run(levels, periods, steps, kelvin=600):
    systems = []
    for seed in range(4):
        systems.append(COPPER.copy())
        systems[-1].rattle(0.05, seed=seed)
    dynamics = Langevin(temperature=kelvin, friction=0.01, timestep=4.0)
    walk = Walk(ladder(levels, systems, prices=range(1, len(levels) + 1)), dynamics, impulses(periods), range(4))
    walk.thermalize(0)
    temperatures, places = [], []
    for n in range(steps):
        walk.step()
        if n >= steps // 5:
            temperatures.append(walk.temperature())
            if n % 10 == 0:
                places.append(walk.q.numpy())
    return np.array(temperatures), np.array(places)


def seen(places):
    """g(r) in coarse bins, and the squared displacement at long lags, of each system."""
    each = [places[:, system] for system in range(places.shape[1])]
    g = [radial_distribution(COPPER, one[::4], 3.6, 12)[1] for one in each]
    return np.array([np.append(a, 50 * squared_displacement(one)[20:].mean()) for a, one in zip(g, each, strict=True)])


@pytest.fixture(scope="module")
def top_run():
    temperatures, places = copper_run([TOP], [1], 1000)
    return temperatures, seen(places)


@pytest.mark.parametrize(("periods", "levels", "same"), [([1, 4], [CHEAP, TOP], True), ([1], [CHEAP], False)])
def test_structure_of_a_plan_is_the_top_levels_and_the_cheap_levels_is_not(top_run, periods, levels, same):
    """Same noise, so that runs are compared system by system; the bound is 4 standard errors for 13 numbers at once."""
    temperatures, places = copper_run(levels, periods, 1000)
    off = seen(places) - top_run[1]
    error = off.std(0, ddof=1) / 2 + 0.02
    assert (np.abs(off.mean(0)) < 4 * error).all() == same
    if same:
        assert abs(temperatures.mean() / top_run[0].mean() - 1) < 0.01


def morse_with_images(q):
    """Morse in the cell of four atoms, tapered to 0 between 4.4 and 5.2 Angstrom."""
    side = 3.61
    apart = q[:, :, None] - q[:, None]
    apart = (apart - side * torch.round(apart / side))[..., None, :] + side * IMAGES
    r = apart.norm(dim=-1)
    r = torch.where(r < 1e-6, 1e6, r)
    e = torch.exp(-4.3 * (r / 2.6 - 1))
    slope = 2 * 0.35 * 4.3 / 2.6 * (e - e * e) * (1 - ((r - 4.4) / 0.8).clamp(0, 1) ** 2) ** 2
    return (-slope / r)[..., None].mul(apart).sum((2, 3))


IMAGES = torch.cartesian_prod(*[torch.arange(-1.0, 2.0, dtype=torch.float64)] * 3)


def emt_averages(levels, periods, steps=300):
    """g(r) in coarse bins, the squared displacement, and EMT's pressure in GPa, of eight copper crystals."""
    systems = [bulk("Cu", cubic=True) for _ in range(8)]
    for seed, one in enumerate(systems):
        one.rattle(0.05, seed=seed)
    dynamics = Langevin(temperature=600, friction=0.01, timestep=4.0)
    walk = Walk(ladder(levels, systems, prices=range(1, len(levels) + 1)), dynamics, impulses(periods), range(8))
    walk.thermalize(0)
    places = []
    for n in range(steps):
        walk.step()
        if n >= steps // 5 and n % 4 == 0:
            places.append(walk.q.numpy())
    found, calculator = [], EMT()
    for box, path in zip(systems, np.swapaxes(places, 0, 1), strict=True):
        g = radial_distribution(box, path[::4], 4.0, 8)[1]
        stresses = []
        for positions in path:
            box.positions = positions
            stresses.append(calculator.get_stress(box)[:3].mean() / units.GPa)
        found.append([*g, 50 * squared_displacement(path)[10:].mean(), -np.mean(stresses)])
    return np.array(found)


def test_structure_displacements_and_pressure_of_emt_over_morse_are_those_of_emt():
    """Off by less than the top's own standard errors and 1%; Morse alone is further off in the last two of them."""
    own = emt_averages([EMT()], [1])
    off = emt_averages([morse_with_images, EMT()], [1, 4]) - own
    assert (np.abs(off.mean(0)) <= own.std(0, ddof=1) / math.sqrt(8)).all()
    assert (np.abs(off.mean(0)) < 0.01 * np.abs(own.mean(0)).clip(0.5)).all()
    cheap = emt_averages([morse_with_images], [1]) - own
    assert (np.abs(cheap.mean(0)) > 3 * cheap.std(0, ddof=1) / math.sqrt(8))[-2:].all()
    assert abs(cheap[:, -1].mean()) > 0.1 * own[:, -1].mean()


@pytest.mark.slow
def test_twenty_thousand_steps_of_a_plan_do_not_drift():
    temperatures, _ = copper_run([CHEAP, TOP], [1, 4], 20_000)
    top, _ = copper_run([TOP], [1], 20_000)
    assert abs(temperatures.mean() / top.mean() - 1) < 0.01
    parts = np.array([part.mean() for part in np.array_split(temperatures, 20)])
    slope, error = np.polyfit(np.arange(20), parts, 1, cov=True)
    assert abs(slope[0]) < 3 * math.sqrt(error[0, 0])
