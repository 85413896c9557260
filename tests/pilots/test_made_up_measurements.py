"""What follows from measurements that are made up, so that every number is known: errors, costs, choices, words."""

import dataclasses
import math

import pytest
import torch

import multilevel_sde as mls
from multilevel_sde.pilots.answers import Calibration, Form, Single
from multilevel_sde.pilots.curves import Alone, Curve
from multilevel_sde.pilots.grids import refined

COSTS = (1.0, 4.0, 16.0)
STEPS = (1, 2, 4, 8, 16, 32, 64, 128)


def law(level, floor, order=2.0, size=1.0, most=128, multistep=False, tail=1.0):
    """Errors floor + size n^-order of a level alone."""
    return [Single(level, n, multistep, floor + size * n**-order, tail) for n in STEPS if n <= most]


def means(steps, order):
    """Coefficients of a multistep method: the mean of the last values, of which the first step has one."""
    table = torch.full((steps, order), 1 / order, dtype=torch.float64)
    table[0] = torch.eye(order, dtype=torch.float64)[0]
    return table


def made(*singles, calibration=(), gram=1e-6, multistep=None, finest=256):
    """A pilot of 64 candidates and three levels; responses are independent, of mean square `gram`."""
    times = torch.linspace(0, 1, finest + 1, dtype=torch.float64)
    return mls.Pilot(
        costs=COSTS,
        unit="units",
        seconds=(0.1, 0.4, 1.6),
        times=times[:: finest // 64],
        fine_times=times,
        coefficients=torch.full((64,), 1 / 64, dtype=torch.float64),
        gram=gram * torch.eye(128, dtype=torch.float64),
        variances=torch.ones(64, 2, dtype=torch.float64),
        kurtosis=(3.0, 3.0),
        random_levels=(),
        singles=tuple(one for level in singles for one in level),
        calibration=tuple(calibration),
        cost=1000.0,
        samples=16,
        multistep=multistep or {},
    )


def runs(steps, form, ratio, tail=1.0):
    """Calibrations in which plans erred `ratio` times their first order, beside the steps of the top level."""
    return [Calibration(steps, form, x, x, ratio * x + steps**-2.0, tail) for x in (1e-4, 1e-3, 1e-2)]


TOP = law(2, 0.0)


# -- single levels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [4, 5.5, 100])
def test_errors_are_interpolated_in_the_logarithm(steps):
    assert made(TOP).single_error(2, steps, False) == pytest.approx(steps**-2.0, rel=1e-9)
    assert made(law(2, 0.0, tail=3.0)).step_error(8) == pytest.approx(3 / 64)
    assert made(TOP).step_error(1) == pytest.approx(1.0)
    assert made(law(2, 0.0, tail=3.0)).single_mean(8**-2.0, 2, False) == pytest.approx(3 / 64)


def test_outside_the_measured_steps_the_nearest_counts():
    pilot = made([one for one in TOP if 4 <= one.steps <= 32])
    assert pilot.single_error(2, 2, False) == pytest.approx(1 / 16)
    assert pilot.single_error(2, 500, False) == pytest.approx(32.0**-2)


def test_beyond_the_last_that_errs_errors_fall_to_none_on_the_finest_grid():
    pilot = made([*TOP, Single(2, 256, False, 0.0, 1.0)])
    assert pilot.single_error(2, 192, False) == pytest.approx(128.0**-2 * ((1 / 192 - 1 / 256) / (1 / 256)) ** 2)
    assert pilot.single_error(2, 256, False) == 0.0


def test_the_mean_does_not_fall_as_typical_errors_grow():
    """Typical errors 1, 1/4 and 1/16 with tails 1, 2 and 4 have means 1, 1/2 and 1/4; with 8 at 1/4, 1 and 2 share."""
    top = [Single(2, n, False, n**-2.0, tail) for n, tail in ((1, 1.0), (2, 2.0), (4, 4.0))]
    pilot = made(top, law(1, 0.0, tail=9.0))
    for error, mean in ((1.0, 1.0), (1 / 4, 1 / 2), (1 / 16, 1 / 4), (1 / 64, 1 / 16), (4.0, 4.0)):
        assert pilot.single_mean(error, 2, False) == pytest.approx(mean)
    assert pilot.step_error(2) == pytest.approx(1 / 2)
    assert pilot.single_mean(0.5, 1, True) == 0.5  # not measured
    top[1] = top[1]._replace(tail=8.0)
    assert made(top).single_mean(1.0, 2, False) == pytest.approx(math.sqrt(2.0))
    heavy = made(law(2, 0.0, tail=3.0)).prediction(1e-3, 64, torch.zeros(3, dtype=torch.float64), Form.PLAIN)
    assert heavy.step_mse == pytest.approx(3 / 64**2)


@pytest.mark.parametrize("mse", [0.3, 1e-2, 1e-3])
def test_the_cost_at_an_error_is_the_inverse(mse):
    pilot = made(TOP, law(1, 0.0, size=4.0), law(0, 1.0))
    assert pilot.em_cost(mse) == pytest.approx(16.0 * mse**-0.5, rel=1e-9)
    assert pilot.single_cost(mse) == pytest.approx(min(16.0, 4.0 * 2) * mse**-0.5, rel=1e-9)
    assert made(law(2, 0.0, tail=4.0)).em_cost(mse) == pytest.approx(16.0 * (mse / 4) ** -0.5, rel=1e-9)


def test_an_error_below_all_measured_costs_infinitely_much():
    pilot = made(TOP, law(0, 1e-2))
    assert pilot.em_cost(0.9 * 128.0**-2) == math.inf
    assert pilot.single_cost(2.0) == 1.0  # one step of the cheapest level
    assert pilot.em_cost(1.0) == 16.0
    assert pilot.em_cost(5.0) == 16.0


@pytest.mark.parametrize(("budget", "level", "steps"), [(16.0, 1, 4), (64.0, 1, 16), (1600.0, 2, 100)])
def test_the_best_single_level_depends_on_the_budget(budget, level, steps):
    """Level 2 is four times cheaper and ends at 1e-3; any number of steps may be taken, measured or not."""
    single = made(TOP, law(1, 1e-3)).single(budget=budget)
    assert single.levels == (level,)
    assert len(single.times) - 1 == steps
    assert single.predicted.mse == pytest.approx((1e-3 if level == 1 else 0.0) + steps**-2.0, rel=1e-3)
    assert single.predicted.cost == steps * COSTS[level]
    assert single.predicted.step_mse == pytest.approx(steps**-2.0, rel=1e-9)  # that of the top level
    assert single.plan.truncated == (level == 1)
    assert single.plan.evaluations.tolist() == [0, steps, 0] if level == 1 else [0, 0, steps]
    assert single.form is Form.ALONE


def test_a_level_that_errs_less_than_the_top_one_errs_by_its_steps():
    predicted = made(TOP, law(1, 0.0, size=0.5)).single(budget=64.0).predicted
    assert (predicted.mse, predicted.level_mse) == (pytest.approx(0.5 / 256), 0.0)


@pytest.mark.parametrize(("floor", "steps"), [(1e-2, 64), (7.3e-3, 128)])
def test_steps_that_gain_nothing_are_not_bought(floor, steps):
    """The doubling from 64 to 128 steps gains 1.8%, which is not bought, or 2.5%."""
    single = made(law(1, floor)).single(budget=1e6)
    assert len(single.times) - 1 == steps
    assert single.predicted.mse == pytest.approx(floor + steps**-2.0)


def test_a_single_level_may_be_multistep():
    table = {n: means(n, 2) for n in (*range(1, 65), 128)}
    pilot = made(TOP, law(2, 0.0, order=4.0, size=50.0, multistep=True), multistep=table)
    few, many = pilot.single(budget=4 * 16.0), pilot.single(budget=100 * 16.0)
    assert (len(few.times) - 1, few.plan.recall) == (4, None)
    assert len(many.times) - 1 == 64  # what the table has at most within the budget
    assert many.plan.recall is not None
    assert many.predicted.mse == pytest.approx(50 * 64.0**-4)
    assert Alone(pilot, 2, True).estimate(1600.0, memory=False) == math.inf
    assert Alone(pilot, 2, True).estimate(1600.0) == pytest.approx(many.predicted.mse)
    assert Alone(pilot, 2, False).estimate(64.0, memory=False) == pytest.approx(few.predicted.mse)
    assert pilot.step_error(16) == pytest.approx(50 * 16.0**-4)  # by the pilot's method


def test_a_budget_that_pays_no_step_is_refused():
    with pytest.raises(ValueError, match=r'"budget" must be at least 16 units, got 15\.9'):
        made(TOP).single(budget=15.9)
    with pytest.raises(ValueError, match=r'"budget" must be at least 1 units'):
        made(TOP, law(0, 1.0)).single(budget=0.9)
    with pytest.raises(ValueError, match=r'"budget" must be at least 1 units'):
        made(TOP, law(0, 1.0)).advise(budget=0.9)
    assert made(TOP, law(0, 1.0)).single(budget=1.0).levels == (0,)
    assert made(TOP, law(0, 1.0)).advise(budget=1.0).single.levels == (0,)


def test_all_sets_of_levels_on_all_grids_are_tried():
    """Three sets with the top level on three grids, and the top level alone; the best eight unless more are wanted."""
    pilot = made(TOP, law(0, 1.0), calibration=[one for steps in (16, 32, 64) for one in runs(steps, Form.PLAIN, 1.0)])
    found = [(one.levels, one.plan.steps) for one in pilot.plans(budget=200.0, count=100)]
    sets = [((1, 2), 16), ((1, 2), 32), *((levels, n) for levels in ((0, 2), (0, 1, 2)) for n in (16, 32, 64))]
    assert sorted(found) == sorted([*sets, ((2,), 12)])
    assert len(pilot.plans(budget=200.0)) == 8


@pytest.mark.parametrize("steps", [5, 8, 12, 16, 23, 64])
@pytest.mark.parametrize("down", [False, True])
def test_grids_of_any_number_of_steps_are_even_where_the_candidates_are(steps, down):
    fine = torch.arange(65, dtype=torch.float64)
    fine = fine.flip(0) if down else fine
    grid = refined(fine, fine[::4], steps)
    assert len(grid) == steps + 1
    assert torch.equal(grid[[0, -1]], fine[[0, -1]])
    if 16 % steps == 0:
        assert torch.equal(grid, fine[:: 64 // steps])
    assert grid.diff().abs().max() - grid.diff().abs().min() <= 1


def test_grids_are_dense_where_uneven_candidates_are():
    fine = torch.arange(65, dtype=torch.float64)
    candidates = torch.tensor([0, 1, 2, 3, 4, 8, 16, 32, 64], dtype=torch.float64)
    assert refined(fine, candidates, 4).tolist() == [0, 2, 4, 16, 64]
    assert refined(fine, candidates, 12).tolist() == [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert len(refined(fine, candidates, 9).unique()) == 10
    assert len(refined(fine, candidates, 64)) == 65


# -- predictions ------------------------------------------------------------------------------------------------------


def test_every_grid_and_form_has_its_own_ratio():
    calibration = [*runs(64, Form.TRACKED, 2.0), *runs(64, Form.PLAIN, 5.0), *runs(32, Form.PLAIN, 7.0, tail=3.0)]
    pilot = made(TOP, calibration=calibration)
    evaluations = torch.tensor([64.0, 0.0, 4.0], dtype=torch.float64)
    for steps, form, ratio, tail in ((64, Form.TRACKED, 2, 1), (64, Form.PLAIN, 5, 1), (32, Form.PLAIN, 7, 3)):
        found = pilot.prediction(1e-3, steps, evaluations, form)
        assert found.step_mse == pytest.approx(steps**-2.0)
        assert found.typical == pytest.approx(ratio * 1e-3 + steps**-2.0)
        assert found.mse == pytest.approx(tail * found.typical)
        assert found.level_mse == pytest.approx(found.mse - steps**-2.0)
        assert (found.cost, found.seconds) == (64 + 64.0, pytest.approx(6.4 + 6.4))
        assert pilot.expected(1e-3, steps, form) == pytest.approx(found.mse)
    for less in (1e-5, 1e-9):  # the top level itself on the candidates, no less than was measured on coarser grids
        assert pilot.prediction(less, 64, evaluations, Form.PLAIN).typical == pytest.approx(5 * less + 64.0**-2)
        assert pilot.prediction(less, 32, evaluations, Form.PLAIN).typical == pytest.approx(7 * 1e-4 + 32.0**-2)
    near = pilot.prediction(1e-3, 16, evaluations, Form.PLAIN)  # no run on this grid: the nearest
    assert near.mse == pytest.approx(3 * (7e-3 + 16.0**-2))
    assert pilot.tail == 1.0
    assert made(TOP).tail == 1.0


def test_a_run_that_erred_less_than_its_steps_still_counts():
    pilot = made(TOP, calibration=[Calibration(64, Form.PLAIN, 1e-3, 1e-3, 0.5 * 64.0**-2, 1.0)])
    found = pilot.prediction(1e-3, 64, torch.ones(3, dtype=torch.float64), Form.PLAIN)
    assert found.level_mse == pytest.approx(0.05 * 0.5 * 64.0**-2)


def test_without_runs_the_first_order_is_believed():
    """Also where a run did not err at all, or was promised not to."""
    perfect = [Calibration(64, Form.PLAIN, x, x, y, 1.0) for x, y in ((1e-3, 0.0), (0.0, 1e-3))]
    for calibration in ((), perfect):
        pilot = made(TOP, calibration=calibration)
        for value in (1e-3, 0.0):
            found = pilot.prediction(value, 64, torch.ones(3, dtype=torch.float64), Form.PLAIN)
            assert found.level_mse == pytest.approx(value)
            assert found.step_mse == pytest.approx(0.0 if calibration else 64.0**-2)


@pytest.mark.parametrize(("order", "hits"), [(1, [62]), (2, range(0, 64, 2))])
def test_a_plan_is_predicted_by_the_runs_in_its_form(order, hits):
    """A tracked one remembers further than its base, here one step and two."""
    ratios = {Form.TRACKED: 2.0, Form.BASE: 3.0, Form.PLAIN: 5.0}
    calibration = [one for form, ratio in ratios.items() for one in runs(64, form, ratio)]
    table = means(64, order)
    pilot = made(TOP, law(2, 0.0, multistep=True), calibration=calibration, multistep={64: table} if order > 1 else {})
    apart = (torch.arange(64)[:, None] - torch.arange(64)).abs().double()
    pilot = dataclasses.replace(pilot, gram=1e-6 * torch.block_diag(*[torch.exp(-apart / 20)] * 2))
    weights = torch.ones(64, 3, dtype=torch.float64)
    weights[[n for n in range(64) if n not in hits], 1:] = 0.0
    plain = mls.Plan(weights != 0, weights)
    plans = {Form.PLAIN: plain, Form.TRACKED: pilot.track(plain)}
    plans |= {Form.BASE: mls.multistep(plain, table)} if order > 1 else {}
    for form, plan in plans.items():
        found = pilot.predict(plan)
        assert found.level_mse == pytest.approx(ratios[form] * pilot.first_order(plan), rel=1e-6), form


def test_steps_err_no_more_than_plans_on_their_grid_did():
    """Steps and corrections may cancel; other grids and forms are not touched."""
    small = [one._replace(measured=0.2 * 64.0**-2) for one in runs(64, Form.TRACKED, 1.0)[:1]]
    pilot = made(TOP, calibration=[*small, *runs(64, Form.TRACKED, 1.0)[1:], *runs(64, Form.PLAIN, 1.0)])
    found = pilot.prediction(1e-4, 64, torch.ones(3, dtype=torch.float64), Form.TRACKED)
    assert found.mse == pytest.approx(0.2 * 64.0**-2)
    assert pilot.step_error_of(64, Form.TRACKED) == pytest.approx(0.95 * 0.2 * 64.0**-2)
    for steps, form in ((64, Form.PLAIN), (32, Form.TRACKED)):
        assert pilot.step_error_of(steps, form) == pytest.approx(steps**-2.0)


def test_the_form_that_erred_less_is_taken():
    pilot = made(TOP, calibration=[*runs(64, Form.TRACKED, 2.0), *runs(64, Form.PLAIN, 5.0)])
    assert pilot.plan(budget=150.0).form is Form.TRACKED
    assert pilot.plan(budget=150.0, memory=False).form is Form.PLAIN
    other = made(TOP, calibration=[*runs(64, Form.TRACKED, 5.0), *runs(64, Form.PLAIN, 2.0)])
    assert other.plan(budget=150.0).form is Form.PLAIN


@pytest.mark.parametrize(("levels", "steps"), [((0, 2), 64), ((0, 1, 2), 32), ((0, 2), 16), ((1, 2), 64)])
@pytest.mark.parametrize("budget", [300.0, 500.0])
def test_without_correlations_the_estimate_is_the_rank(levels, steps, budget):
    pilot = made(TOP, calibration=[*runs(64, Form.PLAIN, 2.0), *runs(32, Form.PLAIN, 2.0)], gram=1e-4)
    curve = Curve(pilot, levels, steps)
    assert curve.estimate(budget) == pytest.approx(curve.ranked(budget)[0], rel=1e-6)


def test_plans_are_chosen_by_the_runs_on_all_grids_too():
    """Where all grids agree nothing changes; a grid whose runs were lucky is not believed alone."""
    alike = made(TOP, calibration=[*runs(64, Form.PLAIN, 5.0), *runs(32, Form.PLAIN, 5.0)])
    assert alike.common_typical(1e-3, 32, Form.PLAIN) == pytest.approx(5e-3 + 32.0**-2)
    lucky = made(TOP, calibration=[*runs(64, Form.PLAIN, 5.0), *runs(32, Form.PLAIN, 1e-3)], gram=1e-4)
    ranks = [curve.ranked(100.0, False) for curve in lucky._curves if curve.base_cost < 100]
    rank, plan = next(found for found in ranks if found[1].levels == (0, 2) and found[1].plan.steps == 32)
    assert rank > 1.2 * math.sqrt(plan.predicted.mse * plan.predicted.typical)
    plans = lucky.plans(budget=100.0, count=100, memory=False)
    assert len(plans) == len(ranks)
    assert [one.predicted for one in plans] == [found[1].predicted for found in sorted(ranks, key=lambda x: x[0])]


# -- advice -----------------------------------------------------------------------------------------------------------


def advised(predicted, cost, pilot=None, levels=None):
    """Advice at 200 where the best plan is said to err and cost this much."""
    pilot = pilot or made(TOP, law(1, 0.0, size=4.0), calibration=runs(64, Form.PLAIN, 1.0))
    some = pilot.plan(budget=150.0)
    assert len(some.levels) > 1
    told = dataclasses.replace(
        some,
        levels=levels or some.levels,
        predicted=dataclasses.replace(some.predicted, mse=predicted, step_mse=0.0, cost=cost),
    )

    class Told(mls.Pilot):
        def plan(self, **arguments):
            return told

    return Told(**{field.name: getattr(pilot, field.name) for field in dataclasses.fields(pilot)}).advise(budget=200.0)


@pytest.mark.parametrize(("cost", "pays"), [(71.0, True), (73.0, False)])
def test_a_plan_pays_below_nine_tenths_of_the_best_single_level(cost, pays):
    """Level 2 reaches 1e-2 with 20 steps, for 80."""
    advice = advised(1e-2, cost)
    assert advice.pays == pays
    assert advice.single_cost == pytest.approx(80.0)
    assert advice.em_cost == pytest.approx(160.0)
    assert advice.em_steps == 12
    assert advice.use is (advice.best if pays else advice.single)
    assert advised(1e-2, cost, levels=(0, 2)).pays == pays  # two levels are a ladder too


def test_the_words_name_what_was_compared():
    assert advised(1e-2, 40.0).text == (
        "Use levels 1, 2, 3 with 64 steps: expected mean squared error 0.01 at cost 40 units; "
        "the best single level needs 2 times as much."
    )
    assert advised(1e-2, 79.0).text == (
        "This ladder does not pay here: use level 2 alone with 50 steps: "
        "expected mean squared error 0.0016 at cost 200 units."
    )
    assert "; no single level reaches that (level 2: 0.0016)." in advised(1e-9, 150.0).text


def test_what_a_budget_just_pays_is_taken():
    advice = made(TOP).advise(budget=16.0)
    assert "use level 3 alone with 1 step:" in advice.text
    assert [made(TOP, law(0, 1.0)).advise(budget=budget).em_steps for budget in (1.0, 16.0, 48.0)] == [1, 1, 3]


def test_the_top_level_alone_is_no_ladder_that_pays():
    assert not made(TOP, calibration=runs(64, Form.PLAIN, 1e9)).advise(budget=200.0).pays


@pytest.mark.parametrize(
    ("finest", "gram", "told"),
    [(256, 1e-12, True), (64, 1e-12, False), (256, 1e-3, False), (256, 3e-6, True), (256, 7e-6, False)],
)
def test_where_candidates_limit_the_plan_it_says_so(finest, gram, told):
    """Not where the candidates are the finest grid, nor where the error is not of the steps, at least half of it."""
    pilot = made(TOP, calibration=runs(64, Form.PLAIN, 1.0), gram=gram, finest=finest)
    text = pilot.advise(budget=500.0).text
    assert ("More candidates would help: plans have at most 64 steps" in text) == told


def test_of_single_levels_about_as_good_the_cheaper_is_taken():
    pilot = made(law(2, 0.0, most=16), law(1, 0.03 * 16.0**-2, most=16))
    assert pilot.single(budget=256.0).levels == (1,)
    assert made(law(2, 0.0, most=16), law(1, 0.06 * 16.0**-2, most=16)).single(budget=256.0).levels == (2,)
