"""Which runs a pilot makes: of levels alone, of plans on samples kept out, and what its target is made from."""

import pytest

import multilevel_sde as mls
from multilevel_sde.pilots.measure_errors import calibration_budgets, grids_of_plans, single_steps, target_runs

LADDER = mls.Ladder([lambda y, t: y] * 3, [1.0, 4.0, 16.0])


def test_levels_alone_get_as_many_steps_as_the_candidates_cost():
    """Of 8 candidates at 16: 128 steps of level 1 at 1, 32 of level 2 at 4, twice as many of the top level itself."""
    for level, most in enumerate((128, 32, 16)):
        plain = single_steps(LADDER, level, 1000, 8, multistep=False)
        assert plain == [(n, True) for n in (1, 2, 4, 8, 16, 32, 64, 128) if n <= most]
        both = single_steps(LADDER, level, 1000, 8, multistep=True)
        assert [n for n, one_step in both if not one_step] == [n for n, _ in plain]
        assert max(n for n, one_step in both if one_step) == (8 if level == 2 else most // 2)
    assert single_steps(LADDER, 0, 20, 8, multistep=False)[-1] == (20, True)  # no more than the finest grid has


@pytest.mark.parametrize(
    ("level", "finest", "candidates", "steps"),
    [
        (2, 1000, 12, [1, 3, 6, 12, 24]),
        (2, 1000, 7, [1, 3, 7, 14]),
        (2, 1000, 1, [1, 2]),
        (2, 15, 12, [1, 3, 6, 7, 12, 15]),  # and the candidates, a half and a quarter of them
        (2, 13, 10, [1, 3, 5, 6, 10, 13]),  # where those are whole numbers
        (2, 35, 28, [1, 2, 4, 7, 8, 14, 17, 28, 35]),
        (1, 1000, 12, [1, 3, 6, 12, 24, 48]),
        (1, 1000, 5, [1, 2, 5, 10, 20]),
        (1, 35, 28, [1, 2, 4, 8, 17, 35]),  # of the top level only
    ],
)
def test_levels_alone_get_half_as_many_steps_and_so_on(level, finest, candidates, steps):
    assert single_steps(LADDER, level, finest, candidates, multistep=False) == [(n, True) for n in steps]


def test_one_step_at_a_time_every_second_number_is_left_out():
    assert single_steps(LADDER, 1, 1000, 5, multistep=True) == sorted(
        [(n, False) for n in (1, 2, 5, 10, 20)] + [(n, True) for n in (1, 2, 10)]
    )
    assert single_steps(LADDER, 2, 1000, 20, multistep=True) == sorted(
        [(n, False) for n in (1, 2, 5, 10, 20, 40)] + [(n, True) for n in (1, 5, 10, 20)]
    )


def test_the_target_is_refined_by_lower_levels_as_far_as_they_cost_no_more():
    """8 candidates of the top level pay 32 steps of level 2; the cheapest level has the finest grid."""
    assert list(target_runs(LADDER, 1000, 8)) == [(1, 32), (0, 1000)]
    assert list(target_runs(LADDER, 20, 8)) == [(1, 20), (0, 20)]


@pytest.mark.parametrize(
    ("steps", "coarse", "grids"),
    [
        (32, True, [32, 16, 8]),
        (28, True, [28, 14]),  # a quarter would be 7, too few
        (30, True, [30, 15]),
        (15, True, [15]),
        (16, True, [16, 8]),
        (4, True, [4]),  # the candidates themselves, however few
        (32, False, [32]),
    ],
)
def test_plans_have_a_half_and_a_quarter_of_the_candidates_too(steps, coarse, grids):
    assert grids_of_plans(steps, coarse) == grids


def test_calibrations_reach_from_few_corrections_to_many():
    """Of 2900 between the cheapest plan and the top level at every step; what pays no correction is left out."""
    for costs, coarse, shares in (
        ([1.0, 30.0], False, (0.015, 0.04, 0.12, 0.3, 0.5)),
        ([1.0, 30.0], True, (0.04, 0.1, 0.35, 0.8)),
        ([0.0, 29.0], True, (0.04, 0.1, 0.35, 0.8)),
    ):
        assert calibration_budgets(costs, 100, coarse=coarse) == pytest.approx([share * 2900 for share in shares])
    assert calibration_budgets([1.0, 117.0], 25, coarse=True) == pytest.approx([290.0, 1015.0, 2320.0])
