"""The pilot of forces: what it measures, predicts, chooses and refuses."""

import numpy as np
import pytest
import torch
from pairs import CHEAP, COPPER, MIDDLE, TOP

import multilevel_sde as mls

pytest.importorskip("ase")
from ase import Atoms

from multilevel_forces import ForceError, ForcePilot, Langevin, Overdamped, Walk, impulses, ladder, pilot
from multilevel_forces.spectra import Spectrum

WARM = Langevin(temperature=600, friction=0.005, timestep=4.0)


def copper(seed=0):
    atoms = COPPER.copy()
    atoms.rattle(0.05, seed=seed)
    return atoms


@pytest.fixture(scope="module")
def found():
    return pilot(copper(), {"cheap": CHEAP, "middle": MIDDLE, "top": TOP}, WARM, prices=[1.0, 10.0, 100.0])


def test_it_says_levels_plan_and_savings(found):
    assert isinstance(found, ForcePilot)
    assert found.names == ("cheap", "middle", "top")
    assert found.force_errors[0] > found.force_errors[1] > found.force_errors[2] == 0.0
    assert all(5 < time < 100 for time in found.correlation_times)  # fs, of vibrations of 8 THz
    assert 500 < found.temperature < 700
    assert found.pays
    assert found.best.off <= 0.01
    assert found.best.levels[-1] == 2
    assert found.best.seconds < 30  # of 100
    assert found.plan.levels == len(found.ladder) == len(found.best.levels)
    for word in ("cheap every step", "steps", "ns/day", "temperature", "resonates at"):
        assert word in found.text
    assert str(found) == found.text


def test_seconds_of_a_plan_are_the_prices_over_the_periods(found):
    said = found.expect((1, 2, 8))
    assert said.seconds == pytest.approx(1 + 10 / 2 + 100 / 8)
    assert found.ns_per_day(1.0) == pytest.approx(4e-6 * 86400)
    with pytest.raises(ValueError, match='"levels" must be one a period'):
        found.expect((1, 2), (0, 1))


def test_the_force_error_of_a_plan_is_that_of_its_block_means(found):
    """By hand for impulses of period 2: half of D(0) - D(1) in the mean over a block; the top alone has none."""
    corrections = found.forces[2] - found.forces[0]
    by_hand = float(np.sqrt(np.square((corrections[::2] - corrections[1::2]) / 2).mean()))
    assert found.force_error(impulses([1, 2]), (0, 2)) == pytest.approx(by_hand)
    held = mls.hold(impulses([1, 2]), torch.arange(3.0))
    assert found.force_error(held, (0, 2)) == pytest.approx(by_hand)
    assert found.force_error(impulses([1]), (2,)) == 0
    assert found.force_error(impulses([1, 512]), (0, 2)) == np.inf


def temperature(levels, plan, steps=1000):
    walk = Walk(ladder(levels, [copper(one) for one in range(4)], prices=[1, 2]), WARM, plan, range(4))
    walk.thermalize(0)
    seen = []
    for n in range(steps):
        walk.step()
        if n > steps // 5:
            seen.append(walk.temperature())
    return np.mean(seen, 0)


def test_the_temperature_of_plans_is_predicted(found):
    """Of plans that keep it and of one that heats; the top's own run with the same noise is what it is compared to."""
    top = temperature([CHEAP, TOP], impulses([1, 1]))
    kept = temperature([CHEAP, TOP], impulses([1, 4])) / top
    assert abs(found.expect((1, 4), (0, 2)).temperature - 1) < 0.01
    assert abs(kept.mean() - 1) < 0.01
    hot = temperature([MIDDLE, TOP], mls.hold(impulses([1, 2]), torch.arange(3.0))) / top
    said = found.expect((1, 2), (1, 2), hold=True).temperature
    assert said > 1.05
    assert abs(hot.mean() - said) < 3 * hot.std(ddof=1) / 2 + 0.3 * (said - 1)  # harmonic: 30% of the heating


def test_a_period_that_resonates_is_neither_chosen_nor_kept_quiet(found):
    first = found.resonates(1)
    assert first is not None
    assert 6 <= first <= 16  # half a period of copper's fastest vibration is 10 steps
    assert found.expect((1, first), (0, 2)).off > 0.01
    assert found.best.periods[-1] < first


def test_a_level_that_is_too_far_off_does_not_pay():
    """Nothing but noise below the top: every period is off, and the advice says so."""
    nothing = pilot(copper(), [lambda q: 0 * q, TOP], WARM, prices=[10.0, 12.0], steps=64)
    assert not nothing.pays
    assert "does not pay" in nothing.text
    alone = pilot(copper(), [TOP], WARM, steps=32)
    assert not alone.pays
    assert alone.plan == impulses([1])


def test_a_level_that_is_as_good_alone_is_said_to_be():
    almost = pilot(copper(), {"almost": lambda q: 0.999 * TOP(q), "top": TOP}, WARM, prices=[50.0, 100.0], steps=64)
    assert almost.single[0] == "almost alone"
    assert not almost.pays


def test_a_softer_level_alone_spreads_more():
    """Without a fifth of the stiffness, 1 / 0.8 of the spread; the top itself has its own."""
    one = Spectrum(np.array([0.03]), np.array([1.0]), np.array([[0.2]]), np.array([[0.0]]))
    assert one.alone(0) == pytest.approx(1.25)
    assert one.alone(1) == 1.0


def test_levels_that_cost_more_and_know_less_are_dropped_and_said():
    pilots = pilot(
        copper(), {"cheap": CHEAP, "slow": lambda q: 0.5 * CHEAP(q), "top": TOP}, WARM, prices=[1, 2, 9], steps=32
    )
    assert pilots.names == ("cheap", "top")
    assert "Left out: slow (2 s a force), no cheaper than cheap (1 s)" in pilots.text


def test_a_run_that_was_not_at_its_temperature_is_cautioned():
    cold = pilot(COPPER, [CHEAP, TOP], Langevin(temperature=600, friction=0.0, timestep=4.0), steps=64, prices=[1, 9])
    assert cold.temperature < 450  # half of it went into the bonds
    assert "Caution: the run was at" in cold.text
    assert "Caution" not in pilot(COPPER, [CHEAP, TOP], WARM, steps=64, prices=[1, 9]).text or cold.temperature < 450


def test_measured_prices_rise_with_the_work():
    def slow(q):
        return sum(TOP(q) for _ in range(6)) / 6

    measured = pilot(copper(), [TOP, slow], WARM, steps=32)  # of one and the same force
    assert measured.names[-1] == "slow"
    assert measured.levels.unit == "s"


def blows(q):
    return torch.where(q.norm() > 0, torch.inf, TOP(q))


@pytest.mark.parametrize(("change", "kind", "says"), [
    ({"dynamics": Overdamped(temperature=300, friction=0.1)}, TypeError, "take multilevel_sde.pilot"),
    ({"dynamics": None}, TypeError, '"dynamics" must be Langevin'),
    ({"steps": 8}, ValueError, '"steps" must be at least 32'),
    ({"tolerance": 0}, ValueError, '"tolerance" must be between 0 and 1'),
    ({"prices": [1.0]}, ValueError, r'"prices" must be 2 finite numbers above 0, .* got \[1.0\]'),
    ({"calculators": [CHEAP, blows]}, ForceError, r"level 1 \(blows\) was not finite at step 0"),
    ({"calculators": {}}, TypeError, "an empty one"),
    ({"atoms": Atoms()}, ValueError, "at least one system"),
])  # fmt: skip
def test_bad_arguments_are_refused_in_a_sentence(change, kind, says):
    given = {"atoms": copper(), "calculators": [CHEAP, TOP], "dynamics": WARM, **change}
    with pytest.raises(kind, match=says):
        pilot(**given)
