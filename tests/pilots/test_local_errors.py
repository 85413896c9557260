"""A grid by a rule: steps of equal errors, chosen once along the path of the top level."""

import pytest
import torch
from good_input import refused

import multilevel_sde as mls

TIMES = torch.linspace(0.0, 1.0, 2001, dtype=torch.float64)
Y0 = torch.linspace(0.0, 1.0, 8, dtype=torch.float64)[:, None]
NOISE = {"diffusion": 0.1, "brownian": mls.BrownianPath(range(8), grid=TIMES)}


def layer(y, t):
    """A drift that is fast for a fortieth of the time, and slow afterwards."""
    return -y + 40 * torch.exp(-40 * t) * torch.cos(y)


ONE, TWO = mls.Ladder([layer], [1.0]), mls.Ladder([lambda y, t: 0.9 * layer(y, t), layer], [1.0, 20.0])


def final(grid, **options):
    return mls.solve(ONE, Y0, grid, mls.em_plan(ONE, grid), **options).y


def uniform(steps):
    return TIMES[torch.linspace(0, 2000, steps + 1).round().long()]


@pytest.mark.parametrize("options", [{}, NOISE], ids=["ODE", "SDE"])
@pytest.mark.parametrize("steps", [10, 20, 40])
def test_an_initial_layer_needs_half_the_steps_at_most(steps, options):
    """It is far less than half: a uniform grid of eight times the steps is still not as near."""
    target = final(TIMES, **options)
    grid = mls.EqualErrors(steps)(ONE, Y0, TIMES, **options)
    error, other = ((final(times, **options) - target).norm() for times in (grid, uniform(8 * steps)))
    assert len(grid) == steps + 1
    assert error < other


def test_without_a_layer_the_grid_is_about_uniform():
    still = mls.Ladder([lambda y, t: t.expand_as(y)], [1.0])
    steps = mls.EqualErrors(20)(still, Y0, TIMES).diff()
    assert steps.min() > 0.045
    assert steps.max() < 0.055


def test_errors_are_equal_to_a_cell():
    """The first step of the layer errs by int 40 (e^-40s - e^-40t) ds to first order; all steps in it err as much."""
    grid = mls.EqualErrors(20)(ONE, Y0, TIMES)
    errors = []
    for t, s in zip(grid[:8].tolist(), grid[1:9].tolist(), strict=True):
        inside = TIMES[(t <= TIMES) & (s >= TIMES)]
        start = mls.solve(ONE, Y0, TIMES[t >= TIMES], mls.em_plan(ONE, TIMES[t >= TIMES])).y if t > 0 else Y0
        fine = mls.solve(ONE, start, inside, mls.em_plan(ONE, inside)).y
        errors.append(float((fine - start - (s - t) * layer(start, torch.tensor(t))).norm()))
    assert max(errors) < 1.6 * min(errors)


@pytest.mark.parametrize("count", [1, 7, 1999, 2000])
def test_the_grid_has_as_many_steps_as_asked(count):
    grid = mls.EqualErrors(count)(ONE, Y0, TIMES)
    assert len(grid) == count + 1
    assert grid[[0, -1]].tolist() == [0.0, 1.0]
    assert bool((grid.diff() > 0).all())
    assert set(grid.tolist()) <= set(TIMES.tolist())


def test_times_may_fall():
    grid = mls.EqualErrors(5)(mls.Ladder([lambda y, t: layer(y, 1 - t)], [1.0]), Y0, TIMES.flip(0))
    assert grid[[0, -1]].tolist() == [1.0, 0.0]
    assert float(grid[2]) > 0.8


def test_a_pilot_takes_the_grid_and_reports_it():
    options = {"candidates": mls.EqualErrors(16), "samples": 8, **NOISE}
    pilot = mls.pilot(TWO, Y0, TIMES, **options)
    assert len(pilot.times) == 17
    assert float(pilot.times[8]) < 0.2
    other = mls.pilot(TWO, Y0, TIMES, candidates=16, samples=8, **NOISE)
    assert pilot.single_error(1, 16, False) < 0.1 * other.single_error(1, 16, False)


def test_a_pilot_with_noise_that_cannot_be_split_and_conditions():
    def drift(y, t, shift):
        return layer(y, t) + shift

    ladder = mls.Ladder([lambda y, t, shift: 0.9 * layer(y, t), drift], [1.0, 20.0])
    path = mls.BrownianPath(range(8), grid=TIMES, shape=(1,), dtype=torch.float64)
    options = {"diffusion": 0.1, "brownian": lambda t, s: path(t, s), "conditions": {"shift": Y0}}
    pilot = mls.pilot(ladder, Y0, TIMES[::10], candidates=mls.EqualErrors(12), samples=4, **options)
    assert len(pilot.times) == 13
    assert float(pilot.times[6]) < 0.3


def test_what_it_refuses():
    with refused('"steps" must be at least 1, got 0'):
        mls.EqualErrors(0)
    with refused('"samples" must be an integer, got float', TypeError):
        mls.EqualErrors(5, samples=1.5)
    with refused('"steps" must be at most the 2000 of "times", got 2001'):
        mls.EqualErrors(2001)(ONE, Y0, TIMES)
    with refused('"candidates" must be a number, or a grid made of times'):
        mls.pilot(TWO, Y0, TIMES, candidates=lambda ladder, y0, times, **options: times[:5])
