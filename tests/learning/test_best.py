"""Laws of picking a plan: the right one is chosen, and its error is that of noise that did not choose it."""

import math

import pytest
import torch

import multilevel_sde as mls

TIMES = torch.linspace(0.0, 1.0, 21, dtype=torch.float64)
LADDER = mls.Ladder([lambda x, t: -x, lambda x, t: -x + torch.cos(2 * x) * (1 + t)], [1.0, 8.0])
TABLE = mls.InverseCostSchedule().probabilities(LADDER, TIMES, budget=60.0)
CALIBRATION, HELD_OUT = range(16), range(1000, 1200)


def seeded(seeds):
    return mls.seeded_normal(seeds, (3,), dtype=torch.float64)


def pick(table=TABLE, ladder=LADDER, **changes) -> mls.BestPlan:
    values = {
        "calibration": CALIBRATION,
        "held_out": HELD_OUT,
        "generator": torch.Generator().manual_seed(0),
        "diffusion": 0.4,
        "brownian_source": mls.BrownianPath,
        "draw": mls.independent,
        "run_all": True,
    }
    return mls.best_plan(ladder, table, seeded, TIMES, **(values | changes))


def distance(plan: mls.Plan, seeds) -> torch.Tensor:
    common = {"diffusion": 0.4, "brownian": mls.BrownianPath(seeds)}
    y, x = (mls.solve(LADDER, seeded(seeds), TIMES, p, **common).y for p in (plan, mls.em_plan(LADDER, TIMES)))
    return (y - x).square().mean(1)


@pytest.fixture(scope="module")
def best() -> mls.BestPlan:
    return pick()


def test_the_plan_with_the_smallest_calibration_error_is_chosen(best):
    assert len(best.calibration_errors) == len(best.costs) == len(best.held_out_errors) == 15
    assert best.calibration_errors[best.index] == min(best.calibration_errors)
    generator = torch.Generator().manual_seed(0)
    plans = [mls.draw_plan(TABLE, mls.independent, generator=generator) for _ in range(15)]
    assert best.plan == plans[best.index]
    for plan, error in zip(plans, best.calibration_errors, strict=True):
        assert float(distance(plan, CALIBRATION).mean()) == pytest.approx(error, rel=1e-12)
    assert best.cost == best.plan.cost(LADDER)


def test_the_error_is_that_on_held_out_noise(best):
    errors = distance(best.plan, HELD_OUT)
    assert best.error == pytest.approx(float(errors.mean()), rel=1e-12)
    assert best.standard_error == pytest.approx(float(errors.std()) / math.sqrt(200), rel=1e-12)
    assert best.held_out_errors[best.index] == best.error
    assert best.optimism == best.error - min(best.calibration_errors)


def test_choosing_pays_on_noise_that_did_not_choose(best):
    """The chosen plan is better than the mean candidate on held-out noise by more than five standard errors."""
    mean = sum(best.held_out_errors) / 15
    assert mean - best.error > 5 * best.standard_error


def test_states_may_have_no_shape_of_their_own():
    """A number a sample: chosen and learned as states of one number are."""
    sources = (lambda seeds: mls.seeded_normal(seeds, ()), lambda seeds: mls.seeded_normal(seeds, (1,)))
    seeds = {"calibration": range(4), "held_out": range(10, 14)}
    flat, column = (
        mls.best_plan(LADDER, TABLE, start, TIMES, **seeds, generator=torch.Generator().manual_seed(0))
        for start in sources
    )
    assert (flat.plan, flat.error) == (column.plan, column.error)
    how = {"delta": 0.1, "regularisation": 1.0, "steps": 2, "batch": 4, "budget": 60.0}
    flat, column = (
        mls.learn(LADDER, start, TIMES, **how, generator=torch.Generator().manual_seed(0)).probabilities(LADDER, TIMES)
        for start in sources
    )
    assert torch.equal(flat, column)


def test_targets_can_be_given(best):
    """Those of the path of f^K give the same; shifted ones are as far as that from what they choose."""

    def path(seeds, shift=0.0):
        common = {"diffusion": 0.4, "brownian": mls.BrownianPath(seeds)}
        return mls.solve(LADDER, seeded(seeds), TIMES, mls.em_plan(LADDER, TIMES), **common).y + shift

    again = pick(target_source=path)
    assert again.plan == best.plan
    assert again.held_out_errors == pytest.approx(best.held_out_errors, rel=1e-12)
    far = pick(target_source=lambda seeds: path(seeds, 100.0), candidates=2)
    assert far.error == pytest.approx(100.0**2, rel=0.05)
    with pytest.raises(ValueError, match=r"states of shape \(16, 3\), got \(16, 1\)"):
        pick(target_source=lambda seeds: path(seeds)[:, :1])


def test_choosing_by_noise_alone_is_seen_as_optimism():
    """Plans that are equally good, as the correction varies too fast to be alike in two samples.

    The calibration score of the best of 30 is then too low: mean over twenty repetitions, by more than five standard
    errors.
    """
    ladder = mls.Ladder([lambda x, t: -x, lambda x, t: -x + torch.cos(200 * x + 1e4 * t)], [1.0, 8.0])
    gaps = []
    for repetition in range(20):
        seeds = range(5000 + 2 * repetition, 5002 + 2 * repetition)
        generator = torch.Generator().manual_seed(repetition)
        found = pick(
            ladder=ladder, calibration=seeds, candidates=30, run_all=False, generator=generator, draw=mls.systematic
        )
        gaps.append(found.optimism)
    gaps = torch.tensor(gaps)
    assert float(gaps.mean()) > 5 * float(gaps.std()) / math.sqrt(20)


def test_only_the_chosen_plan_runs_on_held_out_noise_unless_all_shall():
    rows = 0

    def counted(x, t):
        nonlocal rows
        rows += len(x)
        return -x

    ladder = mls.Ladder([counted, LADDER.drifts[1]], [1.0, 8.0])
    found = pick(ladder=ladder, candidates=4, run_all=False)
    assert found.held_out_errors == ()
    assert rows == 20 * (4 * 16 + 200)


def test_the_same_seed_chooses_the_same_plan(best):
    assert pick().plan == best.plan
    assert "candidate" in str(best)
    assert "optimism" in str(best)
    assert f"number {1 + sum(e < best.error for e in best.held_out_errors)}" in str(best)


def test_a_candidate_that_explodes_is_not_chosen():
    table = TABLE.clone()
    table[:, 1] = 0.05  # two hits leave the region where the drift is finite, one does not
    ladder = mls.Ladder([lambda x, t: -x, lambda x, t: torch.where(x.abs() > 4, math.inf, -x + 3)], [1.0, 8.0])
    found = pick(table, ladder, candidates=12, run_all=False, diffusion=None, brownian_source=None)
    assert math.inf in found.calibration_errors
    assert math.isfinite(found.error)
    with pytest.raises(mls.NonFiniteError):
        pick(table, mls.Ladder([lambda x, t: x * math.inf, LADDER.drifts[1]], [1.0, 8.0]), candidates=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": 0}, '"candidates" must be at least 1, got 0'),
        ({"held_out": range(10, 40)}, "share seed 10"),
        ({"held_out": []}, "must not be empty"),
        ({"calibration": []}, "must not be empty"),
        ({"diffusion": None}, "both or neither"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        pick(**changes)
