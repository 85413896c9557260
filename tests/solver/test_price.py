"""A step's price is the time of all that it takes, by a clock that stands still but for what is counted."""

import pytest
import torch

import multilevel_sde as mls
from multilevel_sde.cost import rising


@pytest.fixture
def clock(monkeypatch):
    """Call it with seconds to let them pass."""
    now = [0.0]

    def passes(seconds):
        now[0] += seconds

    monkeypatch.setattr("multilevel_sde.solver.price.time.perf_counter", lambda: now[0])
    return passes


def drift(clock, seconds):
    def f(x, t):
        clock(seconds)
        return -x

    return f


def test_the_noise_is_part_of_the_price_of_every_level(clock):
    def noise(t, s):
        clock(0.25)
        return torch.zeros(2, 3)

    cost = mls.StepSecondsCost(torch.ones(2, 3), [0.0, 0.1, 0.2], arguments={"diffusion": 1.0, "brownian": noise})
    assert cost([drift(clock, 1.0), drift(clock, 4.0)]) == [1.25, 4.25]
    assert mls.Ladder([drift(clock, 1.0), drift(clock, 4.0)], cost).unit == "seconds"


def test_it_is_the_median_after_a_warm_up(clock):
    seconds = iter([100.0, 1.0, 7.0, 2.0])

    def f(x, t):
        clock(next(seconds))
        return -x

    assert mls.StepSecondsCost(torch.ones(2), [0.0, 0.1], calls=3)([f]) == [2.0]


def test_a_step_rule_is_timed_with_all_its_estimates(clock):
    cost = mls.StepSecondsCost(torch.ones(2), [0.0, 0.1], arguments={"step": mls.Heun()})
    assert cost([drift(clock, 1.0)]) == [2.0]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (([1.0], [0.0, 1.0]), TypeError, '"y0" must be a Tensor, an example of the state, got list'),
        ((torch.ones(1), [0.0, 1.0], 0), ValueError, '"calls" must be at least 1, got 0'),
        ((torch.ones(1), [0.0]), ValueError, '"times"'),
    ],
)
def test_bad_input_is_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        mls.StepSecondsCost(*arguments)


def test_rising_costs_make_a_ladder():
    assert rising([1.0, 3.0, 2.0, 2.0])[:2] == [1.0, 3.0]
    assert mls.Ladder([torch.sin] * 4, rising([1.0, 3.0, 2.0, 2.0])).costs[-1] < 3.0 * (1 + 1e-5)
