"""Antithetic pairs: the same law, a variance of order 2 where noise does not commute, and what they refuse."""

import itertools
import math

import pytest
import torch
from estimates import estimate, numbers
from good_input import refused

import multilevel_sde as mls
from multilevel_sde.expectations.grids import Grids
from multilevel_sde.expectations.paths import Paths, seeds_of
from multilevel_sde.expectations.terms import antithetic, difference

TIMES = torch.linspace(0.0, 1.0, 65, dtype=torch.float64)
STILL = mls.Ladder([lambda y, t: torch.zeros_like(y)], costs=[1.0])


def clark_cameron(y, t):
    """dy_1 = dW_1, dy_2 = y_1 dW_2: no rule that knows the increments alone has a strong order above 1/2."""
    zero = torch.zeros_like(y[:, 0])
    return torch.stack([torch.stack([zero + 1, zero], 1), torch.stack([zero, y[:, 0]], 1)], 1)


NOISE = mls.NoiseTerm.of_matrix(clark_cameron, 2)
TRUTH = 1 / math.sqrt(math.cosh(2.0))  # E cos(2 y_2(1)) = E exp(-2 int W^2)
GIVEN = {
    "ladder": STILL,
    "phi": lambda y: torch.cos(2 * y[:, 1]),
    "start": lambda seeds: torch.zeros(len(seeds), 2, dtype=torch.float64),
    "times": TIMES,
    "diffusion": NOISE,
    "step": mls.Milstein(),
    "antithetic": True,
}


def variances(step):
    """Of the differences of 8, 16, 32 and 64 steps on 1000 paths, plain and antithetic."""
    grids = Grids.of(TIMES, False, step, 4)
    source = lambda seeds: mls.BrownianPath(seeds, grid=TIMES)  # noqa: E731
    paths = Paths(GIVEN["phi"], STILL, GIVEN["start"], grids, step, NOISE, source)
    terms = [difference((0, j), (0, j - 1)) for j in range(1, len(grids))]
    return [
        [float(paths.of_term(f(term), seeds_of(0, 1, 0, 1000)).var()) for term in terms]
        for f in (lambda x: x, antithetic)
    ]


def test_variances_fall_as_steps_to_the_second_with_milstein():
    """4 times in each halving, where they fall 2 times without pairs; a ratio has a standard error of a tenth."""
    plain, pairs = variances(mls.Milstein())
    assert (plain[0] / plain[-1]) ** (1 / 3) == pytest.approx(2.0, rel=0.25)
    assert (pairs[0] / pairs[-1]) ** (1 / 3) == pytest.approx(4.0, rel=0.25)
    assert all(b < a for a, b in itertools.pairwise(pairs))


def test_it_is_cheaper_and_its_intervals_hold_the_truth():
    """Of 30 intervals of 95% at least 24 do: fewer would have a chance of 0.002."""
    found = [estimate(**GIVEN, tolerance=0.05, coarsest=4, seed=seed) for seed in range(30)]
    assert sum(one.low <= TRUTH <= one.high for one in found) >= 24
    options = {**GIVEN, "tolerance": 0.01, "coarsest": 4, "times": torch.linspace(0.0, 1.0, 257, dtype=torch.float64)}
    pairs, plain = estimate(**options), estimate(**{**options, "antithetic": False})
    assert pairs.cost < 0.5 * plain.cost
    assert [row.antithetic for row in pairs.rows] == [False] + [True] * (len(pairs.rows) - 1)
    assert pairs.rows[1].name == "+1:{1}x2 -1:{0}".format(*[row.paths[0][2] for row in pairs.rows[:2]])


def test_paths_that_have_no_areas_are_the_same_turned_around():
    """Additive noise without a drift: both grids end at the same place, so differences are zero."""
    result = estimate(**{**GIVEN, "diffusion": 0.5, "phi": lambda y: y[:, 0]}, tolerance=0.05)
    assert all(float(row.variance) < 1e-28 for row in result.rows[1:])


def test_batches_do_not_change_the_result():
    options = {**GIVEN, "tolerance": 0.05, "coarsest": 4}
    assert numbers(estimate(**options, batch=100)) == numbers(estimate(**options))


def test_two_levels_and_a_budget():
    ladder = mls.Ladder([lambda y, t: 0.1 - 0 * y, lambda y, t: 0 * y], costs=[1.0, 16.0])
    result = estimate(**{**GIVEN, "ladder": ladder}, budget=3e5, coarsest=4)
    assert result.cost <= 3e5
    assert result.low < TRUTH < result.high


def test_what_it_refuses():
    with refused('"antithetic" needs a "diffusion" and a step without areas'):
        estimate(**{**GIVEN, "diffusion": None})
    with refused('"antithetic" needs a "diffusion" and a step without areas'):
        estimate(**{**GIVEN, "diffusion": 1.0, "step": mls.SRA1()})
    with refused(r"turns increments around inside each coarse step, .* the grid of 2 steps has others"):
        estimate(**{**GIVEN, "times": TIMES.square()})
