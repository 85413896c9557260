"""Bad input is refused with a sentence: which argument, what came, what was expected."""

import re

import pytest
import torch

import multilevel_sde as mls

NAN, INF = float("nan"), float("inf")
TIMES = [0.0, 0.5, 1.0]


def twin():
    return mls.Ladder([lambda x, t: -x, lambda x, t: -2 * x], costs=[1.0, 8.0])


def generator():
    return torch.Generator().manual_seed(0)


def solve(ladder=None, y0=None, times=TIMES, plan=None, **options):
    ladder = ladder or twin()
    plan = plan or mls.em_plan(ladder, [0.0, 0.5, 1.0])
    return mls.solve(ladder, torch.ones(3) if y0 is None else y0, times, plan, **options)


def refused(message, error: type[Exception] = ValueError):
    return pytest.raises(error, match=message)


# -- ladders and costs ------------------------------------------------------------------------------------------------


def test_empty_ladder():
    with refused('"drifts" is empty'):
        mls.Ladder([], costs=[])


def test_a_drift_that_is_not_callable():
    with refused(r'"drifts\[1\]" must be a callable .* got Tensor', TypeError):
        mls.Ladder([torch.sin, torch.ones(2)], costs=[1.0, 2.0])


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ([4.0, 1.0], '"costs" must strictly increase with the level, got 4 for level 0 and 1 for level 1'),
        ([2.0, 2.0], '"costs" must strictly increase with the level, got 2 for level 0 and 2 for level 1'),
        ([0.0, 1.0], r'"costs\[0\]" must be a positive finite number, got 0.0'),
        ([-1.0, 1.0], r'"costs\[0\]" must be a positive finite number, got -1.0'),
        ([1.0, NAN], r'"costs\[1\]" must be a positive finite number, got nan'),
        ([1.0, INF], r'"costs\[1\]" must be a positive finite number, got inf'),
        ([1.0], '"costs" has 1 entries for 2 drifts'),
        ([1.0, 2.0, 3.0], '"costs" has 3 entries for 2 drifts'),
    ],
)
def test_costs(costs, message):
    with refused(message):
        mls.Ladder([torch.sin, torch.cos], costs=costs)


def test_one_number_for_all_costs():
    with refused('"costs" must be one number per drift or a cost model, got float', TypeError):
        mls.Ladder([torch.sin], costs=5.0)  # type: ignore[arg-type]


def test_a_cost_model_of_the_wrong_length():
    class Short:
        unit = "units"

        def __call__(self, drifts):
            return [1.0]

    with refused('"costs" has 1 entries for 2 drifts'):
        mls.Ladder([torch.sin, torch.cos], costs=Short())


def test_flops_of_pointwise_drifts():
    matrix = torch.ones(2, 2)
    with refused(r'"drifts\[1\]" has no operation that the FLOP counter sees.*SecondsCost'):
        mls.FlopCost(torch.ones(1, 2))([lambda x, t: x @ matrix, lambda x, t: torch.sin(x)])


@pytest.mark.parametrize("counts", [{"calls": 0}, {"warmup": -1}])
def test_counts_of_timed_calls(counts):
    counts = {"calls": 3, "warmup": 2, **counts}
    came = f"calls={counts['calls']}, warmup={counts['warmup']}"
    with refused(f'"calls" must be at least 1 and "warmup" at least 0, got {came}'):
        mls.SecondsCost(torch.ones(1), **counts)


@pytest.mark.parametrize("levels", [[], [1, 0], [0, 0], [0, 2], [-1], [0.0]])
def test_levels_of_a_subset(levels):
    with refused(r'"levels" must be strictly increasing indices within 0\.\.1, got ' + re.escape(str(levels))):
        twin().subset(levels)


# -- what a drift returns ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (
            lambda x: x[:2],
            ValueError,
            r"drift of level 1 returned shape torch.Size\(\[2\]\).* shape torch.Size\(\[3\]\)",
        ),
        (lambda x: x.double(), ValueError, "drift of level 1 returned dtype torch.float64 .* dtype torch.float32"),
        (lambda x: x.to("meta"), ValueError, "drift of level 1 returned device meta .* device cpu"),
        (lambda x: 0.0, TypeError, "drift of level 1 must return a Tensor, got float"),
        (lambda x: None, TypeError, "drift of level 1 must return a Tensor, got NoneType"),
    ],
)
def test_what_a_drift_returns_is_checked_at_its_first_call(value, error, message):
    with refused(message, error):
        solve(mls.Ladder([lambda x, t: x, lambda x, t: value(x)], costs=[1.0, 2.0]))


@pytest.mark.parametrize("samples", [None, 3])
def test_a_drift_that_returns_nothing_later_is_named(samples):
    ladder = mls.Ladder([lambda x, t: x, lambda x, t: x if t < 0.3 else None], costs=[1.0, 2.0])
    p = torch.ones(4, 2)
    plan = mls.draw_plan(p, mls.independent, generator=torch.Generator().manual_seed(0), samples=samples)
    with refused("drift of level 1 must return a Tensor, got NoneType", TypeError):
        mls.solve(ladder, torch.ones(3), torch.linspace(0.0, 1.0, 5), plan)


def test_only_levels_that_are_called_are_checked():
    ladder = mls.Ladder([lambda x, t: x[:1], lambda x, t: -x], costs=[1.0, 2.0])
    assert solve(ladder).status == "completed"


# -- probabilities and budgets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([[1.0, 1.5]], r'"probabilities" must lie in \(0, 1\], got 1.5 at step 0, level 1$'),
        ([[1.0, 0.5], [1.0, -0.1]], r"got -0.1 at step 1, level 1$"),
        ([[1.0, NAN]], "got nan at step 0, level 1$"),
        ([[1.0, 0.0]], "got 0 at step 0, level 1; a level is dropped only with truncate=True"),
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
        ([[1.0, 0.5, -0.5]], "got -0.5 at step 0, level 2$"),
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


# -- times ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([], r'"times" must be a 1-d grid of at least 2 times, got shape \(0,\)'),
        ([0.0], r'"times" must be a 1-d grid of at least 2 times, got shape \(1,\)'),
        (torch.zeros(2, 2), r'"times" must be a 1-d grid of at least 2 times, got shape \(2, 2\)'),
        (torch.tensor(1.0), r'"times" must be a 1-d grid of at least 2 times, got shape \(\)'),
        ([0.0, NAN, 1.0], '"times" must be finite, got nan at index 1'),
        ([0.0, 1.0, INF], '"times" must be finite, got inf at index 2'),
        (
            [0.0, 1.0, 0.5],
            '"times" must be strictly increasing or strictly decreasing, got 1 followed by 0.5 at index 1',
        ),
        ([1.0, 0.5, 0.75], "got 0.5 followed by 0.75 at index 1"),
        ([0.0, 0.0, 1.0], "got 0 followed by 0 at index 0"),
        ([0.0, 1.0, 1.0], "got 1 followed by 1 at index 1"),
    ],
)
def test_times(times, message):
    with refused(message):
        solve(times=times)
    with refused(message):
        mls.em_plan(twin(), times)
    with refused(message):
        mls.TheoremSchedule(gamma=2.0).probabilities(twin(), times, scale=1.0)
    with refused(message):
        mls.BrownianPath([0], grid=times)


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
    with refused(
        f'"entries" must recall a level of an earlier step, got step {n}, level {k}, source {m}; a value of the'
    ):
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
    for entry, named in [((2, 0, 1, 1.0), "step 2 and level 0"), ((1, 2, 0, 1.0), "step 1 and level 2")]:
        with refused(rf'"recall" names {named}, the plan has steps 0\.\.1 and levels 0\.\.1'):
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
        (
            torch.linspace(0.0, 1.0, 21)[[0, 1, 2, 3, 4, 5, 6, 20]],
            "with its first and its last; got 7 steps from 0 to 1",
        ),
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


# -- the rest of solve ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("y0", "came"), [([1.0], "list"), (torch.ones(3, dtype=torch.int64), "torch.int64")])
def test_the_state_is_a_floating_point_tensor(y0, came):
    with refused(f'"y0" must be a floating-point Tensor, got {came}', TypeError):
        solve(y0=y0)


@pytest.mark.parametrize("value", [NAN, INF])
def test_the_state_is_finite(value):
    with refused('"y0" must be finite, got NaN or infinity'):
        solve(y0=torch.tensor([1.0, value]))


def test_noise_and_diffusion_come_together():
    with refused('"diffusion" needs "brownian"'):
        solve(diffusion=1.0)
    with refused('"brownian" was given without "diffusion"'):
        solve(brownian=mls.BrownianPath(range(3)))


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_diffusion_number_is_finite(value):
    with refused(f'"diffusion" must be finite, got {value}'):
        solve(diffusion=value, brownian=mls.BrownianPath(range(3)))


@pytest.mark.parametrize("wrong", [True, "one", torch.ones(3), lambda: 1.0, lambda y, t, s: 1.0, lambda *a: 1.0])
def test_a_diffusion_is_a_number_or_a_function_of_one_or_two_arguments(wrong):
    came = type(wrong).__name__
    with refused(rf'"diffusion" must be None, a number, sigma\(t\), g\(y, t\) or a NoiseTerm, got {came}', TypeError):
        solve(diffusion=wrong, brownian=mls.BrownianPath(range(3)))


def test_noise_of_another_shape_than_the_state():
    with refused(r'"diffusion" and "brownian" give noise of shape \(3, 2\) for a state of shape \(3, 1\)'):
        solve(y0=torch.ones(3, 1), diffusion=1.0, brownian=mls.BrownianPath(range(3), shape=(2,)))


@pytest.mark.parametrize("save", [[3], [-4], [0, 7], []])
def test_saved_indices(save):
    with refused(r'"save" must be True, False or indices of times within 0\.\.2, got ' + re.escape(str(save))):
        solve(save=save)


# -- Brownian paths ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (2,), (4, 3)])
def test_seeds_that_do_not_match_the_batch(shape):
    with refused(r'"seeds" has 3 entries, the state of shape ' + re.escape(str(shape))):
        solve(y0=torch.ones(shape), diffusion=1.0, brownian=mls.BrownianPath(range(3)))


def test_no_seeds():
    with refused('"seeds" is empty'):
        mls.BrownianPath([])


@pytest.mark.parametrize("unit", [0.0, -1.0, NAN, INF])
def test_units(unit):
    with refused(f'"unit" must be a positive finite length of time, got {unit}'):
        mls.BrownianPath([0], unit=unit)


def test_the_dtype_of_a_path():
    with refused('"dtype" must be a floating-point dtype, got torch.int32'):
        mls.BrownianPath([0], dtype=torch.int32)


def test_a_path_without_a_shape():
    with refused('"shape" of this path is not set'):
        mls.BrownianPath([0])(0.0, 1.0)


def test_steps_below_the_resolution():
    path = mls.BrownianPath([0], shape=())
    with refused('"times" have steps below 9.77e-07.*grid=times, or a smaller unit'):
        path(0.0, 1e-7)
    assert mls.BrownianPath([0], shape=(), unit=1e-3)(0.0, 1e-7).abs() < 1e-2


def test_times_off_the_given_grid():
    path = mls.BrownianPath([0], grid=[0.0, 0.5, 1.0], shape=())
    with refused('"times" contains 0.25, which is not on the grid'):
        path(0.0, 0.25)
    with refused('"times" contains 1.5, which is not on the grid'):
        path(0.0, 1.5)
    with refused('"times" has two times at one point of the grid'):
        path(0.5, 0.5 + 1e-5)


def test_a_foreign_loop_refuses_a_plan_that_remembers():
    from multilevel_diffusion.rows import PlannedRows

    hits = torch.ones(2, 1, dtype=torch.bool)
    plan = mls.Plan(hits, hits.double(), recall=mls.Recall([(1, 0, 0, -0.5)]))
    with pytest.raises(ValueError, match=r'"plan" recalls values of earlier steps'):
        PlannedRows(plan)


# -- arguments of another kind ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: mls.Ladder(None, [1.0]), '"drifts" must be a sequence of callables, got NoneType'),
        (lambda: mls.Ladder([torch.sin], ["a"]), r'"costs\[0\]" must be a number, got str'),
        (lambda: mls.Ladder([torch.sin], "12"), '"costs" must be one number per drift or a cost model, got str'),
        (lambda: mls.Ladder([torch.sin], torch.sin), '"costs" must be one number per drift or a cost model'),
        (lambda: mls.em_plan(twin(), None), '"times" must be a tensor or nested lists of real numbers, got NoneType'),
        (lambda: mls.em_plan(twin(), [0.0, "a"]), '"times" must be .* real numbers, got list'),
        (lambda: mls.em_plan(twin(), [0, 10**400]), '"times" must be .* real numbers, got list'),
        (lambda: mls.em_plan(twin(), torch.tensor([0j, 1j])), '"times" must be .* real numbers, got complex Tensor'),
        (lambda: mls.Plan([[True]], [[None]]), '"weights" must be .* real numbers, got list'),
        (lambda: mls.Plan("a", [[1.0]]), '"hits" must be .* real numbers, got str'),
        (lambda: mls.draw_plan([[1.0], [1.0, 0.5]], generator=generator()), '"probabilities" must be .* got list'),
        (lambda: mls.Recall(None), '"entries" must be a sequence of .*, got NoneType'),
        (lambda: mls.Recall([1]), r'"entries" must be \(step, level, source, coefficient\), got int'),
        (lambda: mls.Recall([(1, 0, 0)]), r'"entries" must be \(step, level, source, coefficient\), got tuple'),
        (lambda: mls.Recall([(1, 0, 0, "x")]), '"entries" must be a number, got str'),
        (lambda: mls.TheoremSchedule("two"), '"gamma" must be a number, got str'),
        (lambda: mls.SwitchSchedule(0.5), '"boundaries" must be a sequence of times, got float'),
        (lambda: mls.SwitchSchedule([None]), '"boundaries" must be a number, got NoneType'),
        (lambda: mls.FixedSchedule(None), '"table" must be .* real numbers, got NoneType'),
        (lambda: mls.LearnedSchedule(1.0, [1.0], 0.1), '"alphas" must be a sequence of numbers, got float'),
        (lambda: mls.LearnedSchedule([1.0], [1.0], None), '"delta" must be a number, got NoneType'),
        (lambda: mls.LearnedSchedule([1.0], [1.0], 0.1, history=[1]), '"history" must be a sequence of pairs, got int'),
        (lambda: mls.BrownianPath(3), '"seeds" must be a sequence of integers, got int'),
        (lambda: mls.BrownianPath("12"), '"seeds" must be a sequence of integers, got str'),
        (lambda: mls.SwitchSchedule(torch.tensor(0.5)), '"boundaries" must be a sequence of times, got Tensor'),
        (lambda: mls.BrownianPath([1.5]), '"seeds" must be an integer, got float'),
        (lambda: mls.BrownianPath([1], unit="a"), '"unit" must be a number, got str'),
        (lambda: mls.BrownianPath([1], shape=2), '"shape" must be a sequence of integers, got int'),
        (lambda: solve(plan="plan"), r'"plan" must be a multilevel_sde.Plan, got str'),
        (lambda: solve(save=[1.5]), '"save" must be an integer, got float'),
        (
            lambda: solve(diffusion=1.0, brownian=lambda t, s: 0.0),
            '"diffusion" and "brownian" must give noise as a Tensor',
        ),
    ],
)
def test_arguments_of_another_kind(use, message):
    with refused(message, TypeError):
        use()


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: mls.TheoremSchedule(10**400), '"gamma" must be a number that a float can hold'),
        (
            lambda: solve(diffusion=10**400, brownian=mls.BrownianPath(range(3))),
            '"diffusion" must be a number that a float can hold',
        ),
        (lambda: mls.Recall([(2**63, 0, 0, 1.0)]), '"entries" must recall a level of an earlier step'),
        (lambda: mls.Recall([(1, 2**63, 0, 1.0)]), '"entries" must recall a level of an earlier step'),
        (lambda: mls.LearnedSchedule([1.0], [1.0], 0.1, history=[(1.0,)]), '"history" must hold pairs'),
        (lambda: mls.BrownianPath([1], shape=(-1,)), '"shape" must not have negative sizes'),
        (lambda: mls.draw_plan(torch.ones(2, 2), generator=generator(), samples=1.5), '"samples" must be at least 1'),
    ],
)
def test_numbers_out_of_range(use, message):
    with refused(message):
        use()
