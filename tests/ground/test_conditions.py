"""Conditions: what is refused, and which rows are taken."""

import pickle

import pytest
import torch
from good_input import refused, solve

import multilevel_sde as mls
from multilevel_sde.conditions import Conditioned, as_conditions, repeated_rows, some_rows

STATE = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("conditions", "error", "message"),
    [
        ([("label", torch.ones(3))], TypeError, '"conditions" must be a mapping of names to tensors, got list'),
        (torch.ones(3), TypeError, '"conditions" must be a mapping of names to tensors, got Tensor'),
        ({1: torch.ones(3)}, TypeError, '"conditions" must have names of arguments of the drifts as keys, got 1'),
        ({"a b": torch.ones(3)}, TypeError, '"conditions" must have names .* got .a b.'),
        ({"label": [1, 2, 3]}, TypeError, '"conditions" must hold tensors, got list for "label"'),
        ({"label": None}, TypeError, '"conditions" must hold tensors, got NoneType for "label"'),
        ({"label": torch.ones(2)}, ValueError, r'"label" of shape \(2,\), expected one row for each of 3 samples'),
        ({"label": torch.tensor(1)}, ValueError, r'"label" of shape \(\), expected one row for each of 3 samples'),
    ],
)
def test_what_are_no_conditions(conditions, error, message):
    with refused(message, error):
        as_conditions(conditions, STATE)
    with refused(message, error):
        solve(y0=STATE, conditions=conditions)


def test_a_state_without_samples_has_no_conditions():
    with refused('"conditions" has "label" .* expected a state without samples'):
        as_conditions({"label": torch.ones(1)}, torch.tensor(0.0))
    assert as_conditions(None, torch.tensor(0.0)) == {}


def test_rows():
    conditions = {"a": torch.arange(3), "b": torch.arange(6).reshape(3, 2)}
    for rows in ([2, 0], torch.tensor([2, 0])):
        assert some_rows(conditions, rows)["a"].tolist() == [2, 0]
        assert some_rows(conditions, rows)["b"].tolist() == [[4, 5], [0, 1]]
    assert some_rows(conditions, slice(1, None))["a"].tolist() == [1, 2]
    assert repeated_rows(conditions, 2)["a"].tolist() == [0, 1, 2, 0, 1, 2]


def add(x, t, shift):
    return x + shift


def test_a_drift_with_its_conditions_survives_pickling():
    drift = pickle.loads(pickle.dumps(Conditioned(add, {"shift": torch.tensor([1.0, 2.0])})))
    assert drift(torch.zeros(2), torch.tensor(0.0)).tolist() == [1.0, 2.0]
    assert drift.copies(2)(torch.zeros(4), torch.tensor(0.0)).tolist() == [1.0, 2.0, 1.0, 2.0]


def shifted(x, t, shift):
    return x + shift


class Module(torch.nn.Module):
    def forward(self, x, t, shift):
        return x + shift


def plain(x, t):
    return x @ torch.eye(2)


WRONG = [  # drift, conditions, what is wrong
    (shifted, None, 'needs "shift", which "conditions" do not hold; pass conditions={"shift": ...}'),
    (Module(), None, 'needs "shift", which "conditions" do not hold'),
    (lambda x, t, *, shift: x, {"label": STATE}, 'needs "shift", which "conditions" do not hold'),
    (plain, {"shift": STATE}, 'takes no "shift", which "conditions" give to every level; add it or '),
    (shifted, {"shift": STATE, "label": STATE}, 'takes no "label", which "conditions" give to every level'),
    (lambda x: x, None, "must be a callable f(x, t) -> Tensor, but takes (x); add an argument for the time"),
]
TIMES = torch.linspace(0, 1, 3)
USES = {
    "solve": lambda two, told: solve(two, STATE, conditions=told),
    "solve per sample": lambda two, told: solve(
        two, STATE, plan=mls.Plan(torch.ones(2, 3, 2, dtype=torch.bool), torch.ones(2, 3, 2)), conditions=told
    ),
    "pilot": lambda two, told: mls.pilot(two, STATE, TIMES, conditions=told),
    "flops": lambda two, told: mls.FlopCost(STATE, conditions=told)(two.drifts),
    "seconds": lambda two, told: mls.SecondsCost(STATE, conditions=told)(two.drifts),
    "learn": lambda two, told: mls.learn(
        two,
        lambda seeds: STATE[: len(seeds)],
        TIMES,
        delta=0.1,
        regularisation=0.0,
        budget=4.0,
        steps=1,
        batch=2,
        generator=torch.Generator(),
        conditions=told and (lambda seeds: some_rows(told, slice(len(seeds)))),
    ),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(("drift", "conditions", "message"), WRONG)
def test_a_condition_that_a_drift_lacks_or_does_not_take_is_named(use, drift, conditions, message):
    two = mls.Ladder([lambda x, t, **_: x @ torch.eye(2), drift], costs=[1.0, 2.0])
    with pytest.raises(TypeError) as caught:
        USES[use](two, conditions)
    assert str(caught.value).startswith(f"the drift of level 2 {message}")


def failing(x, t, **others):
    return x + None


@pytest.mark.parametrize("drift", [failing, lambda *args, **others: failing(*args), torch.add])
def test_other_errors_of_a_drift_are_its_own(drift):
    two = mls.Ladder([drift], costs=[1.0])
    with pytest.raises(TypeError) as caught:
        solve(two, STATE, conditions={"label": STATE})
    assert "the drift of level" not in str(caught.value)


def test_a_condition_may_have_any_name_that_is_not_a_drifts_own():
    """Not even those of the library's own functions are taken."""
    ladder = mls.Ladder([lambda state, time, *, t, y, x: t + y + x] * 2, [1.0, 2.0])
    told = {"t": STATE, "y": STATE, "x": STATE}
    y = mls.solve(ladder, STATE, TIMES, mls.em_plan(ladder, TIMES), conditions=told).y
    torch.testing.assert_close(y, 4 * STATE)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", ["x", "t"])
def test_a_drifts_own_arguments_are_no_conditions(name, use):
    ladder = mls.Ladder([lambda x, t, **others: -x, lambda x, t, **others: torch.sin(x)], [1.0, 2.0])
    with pytest.raises(TypeError, match=f'drift of level . has "{name}" as an argument of its own, which "conditions"'):
        USES[use](ladder, {name: STATE})
