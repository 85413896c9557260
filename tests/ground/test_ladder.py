"""Ladders: order, sub-ladders, and how drifts are called."""

import pytest
import torch

import multilevel_sde as mls


def drifts(count):
    return [lambda x, t, k=k: (k + 1) * x for k in range(count)]


def test_top_is_the_last_drift_alone():
    fs = drifts(3)
    ladder = mls.Ladder(fs, costs=[1.0, 2.0, 4.0])
    assert ladder.top().drifts == (fs[2],)
    assert ladder.top().costs == (4.0,)


def test_subset_keeps_drifts_costs_and_unit():
    fs = drifts(4)
    ladder = mls.Ladder(fs, costs=mls.GivenCost([1.0, 2.0, 4.0, 9.0], unit="joules"))
    chosen = ladder.subset([0, 2, 3])
    assert chosen.drifts == (fs[0], fs[2], fs[3])
    assert chosen.costs == (1.0, 4.0, 9.0)
    assert chosen.unit == ladder.unit == "joules"
    assert "joules" in repr(chosen)


def test_a_ladder_is_immutable():
    ladder = mls.Ladder(drifts(2), costs=[1.0, 2.0])
    with pytest.raises(AttributeError):
        ladder.costs = (1.0, 3.0)
    with pytest.raises(AttributeError):
        ladder.name = "new"
    assert isinstance(ladder.drifts, tuple)
    assert isinstance(ladder.costs, tuple)


def test_any_iterable_of_drifts_will_do():
    assert len(mls.Ladder(iter(drifts(3)), costs=range(1, 4))) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_drift_gets_the_state_and_a_0d_time_of_the_grid(dtype):
    seen = []

    def drift(x, t):
        seen.append((t.shape, t.dtype, t.item(), x.dtype))
        return torch.zeros_like(x)

    ladder, times = mls.Ladder([drift], costs=[1.0]), torch.tensor([0.5, 0.75, 2.0], dtype=dtype)
    mls.solve(ladder, torch.zeros(2, dtype=torch.float32), times, mls.em_plan(ladder, times))
    assert seen == [(torch.Size([]), dtype, 0.5, torch.float32), (torch.Size([]), dtype, 0.75, torch.float32)]
