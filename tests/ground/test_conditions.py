"""Conditions: what is refused, and which rows are taken."""

import pickle

import pytest
import torch
from good_input import refused, solve

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
