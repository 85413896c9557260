"""Bad input of probabilities, budgets and plans is refused with a sentence: which argument, what came."""

import re

import pytest
import torch
from good_input import INF, NAN, TIMES, generator, refused, solve, twin

import multilevel_sde as mls

# -- probabilities and budgets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([[1.0, 1.5]], r'"probabilities" must lie in \(0, 1\], got 1.5 at step 0, level 2$'),
        ([[1.0, 0.5], [1.0, -0.1]], r"got -0.1 at step 1, level 2$"),
        ([[1.0, NAN]], "got nan at step 0, level 2$"),
        ([[1.0, 0.0]], "got 0 at step 0, level 2; a level is dropped only with truncate=True"),
        ([1.0, 0.5], r'"probabilities" must have shape \(steps, levels\), got \(2,\)'),
        ([[[1.0]]], r'"probabilities" must have shape \(steps, levels\), got \(1, 1, 1\)'),
        ([[], []], r'"probabilities" must have shape \(steps, levels\), got \(2, 0\)'),
        ([[1.0, 1.0], [0.5, 0.5]], '"probabilities" of the lowest level must be 1, got 0.5 at step 1'),
    ],
)
def test_probabilities(table, message):
    with refused(message):
        mls.draw_plan(torch.tensor(table), generator=generator())
    if torch.tensor(table).dim() == 2:
        with refused(message):
            mls.FixedSchedule(torch.tensor(table))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([[1.0, 0.0, 0.5]], '"probabilities" at step 0 drop a level but keep one above it'),
        ([[1.0, 0.5, -0.5]], "got -0.5 at step 0, level 3$"),
        ([[0.0, 0.0, 0.0]], '"probabilities" of the lowest level must be 1, got 0 at step 0'),
    ],
)
def test_truncated_probabilities(table, message):
    with refused(message):
        mls.draw_plan(torch.tensor(table), generator=generator(), truncate=True)


def test_tables_of_another_size_than_the_ladder_or_the_times():
    for table in (torch.ones(3, 2), torch.ones(2, 3), torch.ones(3)):
        with refused(r'"table" has shape .* 2 steps and 2 levels need \(2, 2\)'):
            mls.FixedSchedule(table).probabilities(twin(), TIMES)


def test_a_budget_does_not_fit_a_truncated_table():
    with refused('"budget" and "scale" do not apply to a table with zeros'):
        mls.FixedSchedule(torch.tensor([1.0, 0.0]), truncate=True).probabilities(twin(), TIMES, budget=3.0)


@pytest.mark.parametrize("budget", [1.9, 16.1, 0.0, -5.0, NAN, INF])
def test_budgets_out_of_reach(budget):
    with refused(
        rf'"budget" must lie between 2 \(every step on the lowest level\) and 16 \(every step on the top level\) '
        rf"units for 2 steps, got {budget}"
    ):
        mls.InverseCostSchedule().probabilities(twin(), TIMES, budget=budget)


@pytest.mark.parametrize("arguments", [{}, {"budget": 3.0, "scale": 0.5}])
def test_one_of_budget_and_scale(arguments):
    with refused(
        f'exactly one of "budget" and "scale", got budget={arguments.get("budget")} and scale={arguments.get("scale")}'
    ):
        mls.TheoremSchedule(gamma=2.0).probabilities(twin(), TIMES, **arguments)


@pytest.mark.parametrize("scale", [0.0, -1.0, NAN, INF])
def test_scales(scale):
    with refused(f'"scale" must be a positive finite number, got {scale}'):
        mls.InverseCostSchedule().probabilities(twin(), TIMES, scale=scale)


@pytest.mark.parametrize("value", [0.0, -1.0, NAN, INF])
@pytest.mark.parametrize("name", ["gamma", "beta"])
def test_exponents(name, value):
    with refused(f'"{name}" must be a positive finite number, got {value}'):
        mls.TheoremSchedule(**{"gamma": 2.0, name: value})


@pytest.mark.parametrize("choice", [{"budget": 9.0}, {"scale": 1.0}])
def test_a_switch_has_no_scale(choice):
    with refused('"budget" and "scale" do not apply to a SwitchSchedule'):
        mls.SwitchSchedule([0.5]).probabilities(twin(), TIMES, **choice)


def test_switch_boundaries():
    with refused(r'"boundaries" must be finite times, got \[nan\]'):
        mls.SwitchSchedule([NAN])
    with refused('"boundaries" must have one time for each of the 1 upper levels, got 2'):
        mls.SwitchSchedule([0.1, 0.2]).plan(twin(), TIMES)
    three = mls.Ladder([torch.sin] * 3, costs=[1.0, 2.0, 3.0])
    with refused(r'"boundaries" must be in the order of "times", which run from 1 to 0, got \[0.2, 0.8\]'):
        mls.SwitchSchedule([0.2, 0.8]).plan(three, [1.0, 0.5, 0.0])


# -- plans ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hits", "weights", "message"),
    [
        ([[True]], [[1.0, 1.0]], r'"hits" and "weights" must both have shape .* got \(1, 1\) and \(1, 2\)'),
        ([True], [1.0], r"got \(1,\) and \(1,\)"),
        ([[True, True]], [[1.0, NAN]], '"weights" must be finite, got NaN or infinity at step 0'),
        ([[True, True], [True, True]], [[1.0, 1.0], [1.0, INF]], "NaN or infinity at step 1"),
        (
            [[True, True], [True, False]],
            [[1.0, 1.0], [1.0, 2.0]],
            '"weights" must be zero where there is no hit.*step 1',
        ),
        ([[True, True], [False, False]], [[1.0, 1.0], [0.0, 0.0]], '"weights" must leave a drift to evaluate.*step 1'),
    ],
)
def test_plans(hits, weights, message):
    with refused(message):
        mls.Plan(torch.tensor(hits), torch.tensor(weights))


def test_samples_of_a_draw():
    with refused('"samples" must be at least 1, got 0'):
        mls.draw_plan(torch.ones(2, 2), generator=generator(), samples=0)


@pytest.mark.parametrize("wrong", [None, 0, torch])
def test_a_draw_needs_a_generator(wrong):
    with refused(f'"generator" must be a torch.Generator, got {type(wrong).__name__}', TypeError):
        mls.draw_plan(torch.ones(2, 2), generator=wrong)


@pytest.mark.parametrize(("draw", "told"), [("nested", "'nested'"), (None, "NoneType"), (torch.bernoulli, "builtin")])
def test_a_draw_is_no_name(draw, told):
    message = f'"draw" must be a way of drawing such as multilevel_sde.systematic, got {told}.*; give the object itself'
    for use in (
        lambda: mls.draw_plan(torch.ones(2, 2), draw, generator=generator()),
        lambda: mls.expected_cost(twin(), torch.ones(2, 2), draw),
        lambda: mls.InverseCostSchedule().probabilities(twin(), TIMES, budget=3.0, draw=draw),
    ):
        with refused(message, TypeError):
            use()


def test_a_plan_for_other_times():
    with refused('"plan" has 2 steps, "times" has 3'):
        solve(times=[0.0, 0.25, 0.5, 1.0])


def test_a_plan_for_another_ladder():
    plan = mls.em_plan(twin(), TIMES)
    with refused('"plan" was made for 2 levels, the ladder has 1'):
        solve(twin().top(), plan=plan)
    with refused('"plan" was made for 2 levels, the ladder has 1'):
        plan.cost(twin().top())


@pytest.mark.parametrize("shape", [(), (3,), (5, 4)])
def test_a_plan_for_other_samples(shape):
    plan = mls.draw_plan(torch.ones(2, 2), generator=generator(), samples=4)
    with refused('"plan" has draws for 4 samples, "y0" has shape ' + re.escape(str(shape))):
        solve(y0=torch.ones(shape), plan=plan)


# -- plans that remember ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [(1, 0, 1), (1, 0, 2), (1, -1, 0), (1, 0, -1), (0, 0, 0), (-1, 0, -2)])
def test_a_recall_of_what_is_not_yet_known(place):
    n, k, m = place
    entry = re.escape(f"({n}, {k}, {m}, 1.0)")
    with refused(f'"entries" must recall a level of an earlier step, got the entry {entry}; a value of the'):
        mls.Recall([(2, 0, 1, 1.0), (n, k, m, 1.0)])


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_coefficients_of_a_recall(value):
    with refused('"entries" must have finite coefficients, got NaN or infinity'):
        mls.Recall([(1, 0, 0, value)])


@pytest.mark.parametrize("place", [(1.5, 0, 0), (2, "0", 0), (2, 0, 1.0), (2, None, 0)])
def test_places_of_a_recall(place):
    with refused('"entries" must have integers for step, level and source', TypeError):
        mls.Recall([(*place, 1.0)])


def plan_of(weights, recall=None):
    table = torch.tensor(weights)
    return mls.Plan(table != 0, table, recall=recall)


def test_a_recall_that_the_plan_has_no_room_for():
    for entry, named in [((2, 0, 1, 1.0), "step 2 and level 1"), ((1, 2, 0, 1.0), "step 1 and level 3")]:
        with refused(rf'"recall" names {named}, the plan has steps 0\.\.1 and levels 1\.\.2'):
            plan_of([[1.0, 1.0], [1.0, 0.0]], mls.Recall([entry]))


def test_a_recall_of_another_type():
    with refused(r'"recall" must be a multilevel_sde.Recall or None, got list', TypeError):
        plan_of([[1.0]], [(1, 0, 0, 1.0)])


def test_recall_with_a_draw_per_sample():
    drawn = mls.draw_plan(torch.ones(2, 2), generator=generator(), samples=4)
    with refused('"recall" needs one draw for the batch, got weights per sample'):
        mls.Plan(drawn.hits, drawn.weights, recall=mls.Recall([(1, 0, 0, 1.0)]))
    for use in (
        lambda: mls.multistep(drawn, torch.ones(2, 1)),
        lambda: mls.hold(drawn, torch.tensor(TIMES)),
        lambda: mls.remember(drawn, torch.ones(2, 2), lambda level, n, h: 1.0),
    ):
        with refused('"plan" has draws per sample; a memory needs one draw for the batch'):
            use()


def test_a_plan_without_a_base():
    halved = plan_of([[1.0, 1.0], [0.5, 1.0]])
    for use in (
        lambda: mls.multistep(halved, torch.ones(2, 1)),
        lambda: mls.hold(halved, torch.tensor(TIMES)),
        lambda: mls.remember(halved, torch.ones(2, 2), lambda level, n, h: 1.0),
    ):
        with refused('"plan" must have weight 1 on the lowest level at every step'):
            use()


@pytest.mark.parametrize(
    ("coefficients", "message"),
    [
        ([[1.0], [1.0], [1.0]], r'"coefficients" must have shape \(2, order\), got \(3, 1\)'),
        ([1.0, 1.0], r'"coefficients" must have shape \(2, order\), got \(2,\)'),
        ([[1.0, 0.0], [1.5, -0.4]], '"coefficients" must have rows with sum 1'),
        ([[1.0, 0.0], [NAN, NAN]], '"coefficients" must have rows with sum 1'),
        ([[1.5, -0.5], [1.5, -0.5]], '"coefficients" must be 0 where no value is known: row 0 has 1 of them'),
        ([[1.0, 0.0, 0.0], [2.0, -0.5, -0.5]], "row 1 has 2 of them, got coefficient 2 = -0.5"),
    ],
)
def test_coefficients_of_a_multistep_method(coefficients, message):
    with refused(message):
        mls.multistep(mls.em_plan(twin(), TIMES), torch.tensor(coefficients))


@pytest.mark.parametrize("order", [0, 3, -1, 1.5])
def test_orders_of_a_held_correction(order):
    with refused(rf'"order" must be 1 \(hold\) or 2 \(extrapolate linearly\), got {order}'):
        mls.hold(plan_of([[1.0, 2.0], [1.0, 0.0]]), torch.tensor(TIMES), order)


def test_times_of_a_held_correction():
    with refused('"times" must be the 3 times of the plan, got 2'):
        mls.hold(plan_of([[1.0, 2.0], [1.0, 0.0]]), torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("table", [[[1.0, 0.5], [1.0, 0.25]], [[1.0, 0.5]] * 3, [[1.0, 0.5, 0.25]] * 2])
def test_probabilities_that_a_plan_was_not_drawn_from(table):
    with refused('"plan" must be drawn from "probabilities": its weights are not B / p'):
        mls.remember(plan_of([[1.0, 2.0], [1.0, 2.0]]), torch.tensor(table), lambda level, n, h: 1.0)


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        (torch.linspace(0.0, 0.5, 11), "got 10 steps from 0 to 0.5"),
        (torch.linspace(0.0, 1.0, 14), "made of times of"),
        (torch.linspace(1.0, 0.0, 11), "got 10 steps from 1 to 0"),
    ],
)
def test_candidate_grids_of_a_pilot(candidates, message):
    with refused(message):
        mls.pilot(twin(), torch.ones(4, 1), torch.linspace(0.0, 1.0, 21), candidates=candidates)


def test_a_limit_that_a_candidate_grid_exceeds():
    times = torch.linspace(0.0, 1.0, 21)
    with refused('"limit" is 3000, too little for the 20 steps of "candidates"; give a number'):
        mls.pilot(twin(), torch.ones(4, 1), times, candidates=times, limit=3000)
