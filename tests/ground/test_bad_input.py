"""Bad input of ladders and costs, and arguments of another kind: refused with a sentence that names the argument."""

import re

import pytest
import torch
from good_input import INF, NAN, generator, refused, solve, twin

import multilevel_sde as mls

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
        ([4.0, 1.0], '"costs" must strictly increase with the level, got 4 for level 1 and 1 for level 2'),
        ([2.0, 2.0], '"costs" must strictly increase with the level, got 2 for level 1 and 2 for level 2'),
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


# -- arguments of another kind ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: mls.Ladder(None, [1.0]), '"drifts" must be a sequence of callables, got NoneType'),
        (lambda: mls.Ladder([torch.sin], ["a"]), r'"costs\[0\]" must be a number, got str'),
        (lambda: mls.Ladder([torch.sin], "12"), '"costs" must be one number per drift or a cost model, got str'),
        (
            lambda: mls.Ladder([torch.sin, torch.cos], costs=mls.FlopCost),
            '"costs" must be one number per drift or a cost model, got the class FlopCost; make an object of it',
        ),
        (
            lambda: mls.Ladder([torch.sin], int),
            '"costs" must be one number per drift or a cost model, got the class int',
        ),
        (lambda: mls.FlopCost("x"), '"x" must be a Tensor, an example of the state, got str'),
        (lambda: mls.FlopCost(None), '"x" must be a Tensor, an example of the state, got NoneType'),
        (lambda: mls.SecondsCost([1.0]), '"x" must be a Tensor, an example of the state, got list'),
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
        (lambda: solve(save=["x"]), '"save" must be an integer, got str'),
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
