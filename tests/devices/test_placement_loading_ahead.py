"""Laws of weights that are loaded ahead: in the order of the plan, none twice, and evaluated as often as it says."""

from __future__ import annotations

import threading
import weakref

import pytest
import torch
from placed_networks import TIMES, ladder_of, nets, plan_of, solved
from torch import Tensor

import multilevel_sde as mls

WAIT = 20.0  # seconds after which a test that waits for the other thread fails


def expected_loads(plan: mls.Plan, within_a_step: tuple[int, ...] = (2, 1)) -> list[int]:
    """The levels 1 and 2 in the order of the plan, of those that a step needs together the dearest first."""
    order = [k for row in plan.needed.tolist() for k in within_a_step if row[k]]
    return [level for place, level in enumerate(order) if place == 0 or order[place - 1] != level]


def test_the_plan_is_loaded_ahead_and_nothing_twice():
    networks, plan = nets(), plan_of()
    loads = expected_loads(plan)
    size = {level: mls.Offload(ladder_of(nets()), {level: nets()[level]}).slot_bytes for level in (1, 2)}
    offload = mls.Offload(ladder_of(networks), {1: networks[1], 2: networks[2]})
    assert len(loads) > 4
    solved(offload.ladder(plan), plan)
    stats = offload.stats
    assert (stats.loads, stats.prefetched) == (len(loads), len(loads) - 1)  # all but the first
    assert stats.bytes == sum(size[level] for level in loads)
    assert stats.waited >= 0
    on_demand = mls.Offload(ladder_of(again := nets()), {1: again[1], 2: again[2]})
    solved(on_demand.ladder(), plan)
    assert (on_demand.stats.loads, on_demand.stats.prefetched) == (len(expected_loads(plan, (1, 2))), 0)


def test_the_next_batch_finds_its_first_level_on_the_way():
    networks, plan = nets(), plan_of()
    loads = expected_loads(plan)
    offload = mls.Offload(ladder_of(networks), {1: networks[1], 2: networks[2]})
    ladder = offload.ladder(plan)
    solved(ladder, plan)
    solved(ladder, plan)
    again = len(loads) - (loads[0] == loads[-1])  # what is resident at the end may be what comes first
    assert offload.stats.prefetched == len(loads) - 1 + again
    assert offload.stats.loads == len(loads) + again


@pytest.mark.parametrize("samples", [None, 3])
def test_each_level_is_evaluated_as_often_as_the_plan_says(samples):
    networks, calls = nets(), [0, 0, 0]

    def counted(level: int):
        def drift(x: Tensor, t: Tensor) -> Tensor:
            calls[level] += 1
            return networks[level](x, t)

        return drift

    plan = plan_of(samples=samples)
    ladder = ladder_of([counted(0), counted(1), counted(2)])
    y0, noise = torch.zeros(3, 1, 6, 6), mls.BrownianPath(seeds=range(3))
    expected = mls.solve(ladder, y0, TIMES, plan, diffusion=0.2, brownian=noise).stats.calls
    offload = mls.Offload(ladder, {1: networks[1], 2: networks[2]})
    for _ in range(2):
        calls[:] = [0, 0, 0]
        mls.solve(offload.ladder(plan), y0, TIMES, plan, diffusion=0.2, brownian=noise)
        assert tuple(calls) == expected
    calls[:] = [0, 0, 0]
    announced = mls.em_plan(ladder, TIMES) if samples else plan_of(9)
    mls.solve(offload.ladder(announced), y0, TIMES, plan, diffusion=0.2, brownian=noise)
    assert sum(calls) - sum(expected) in (0, 1)  # one too many shows that the plan is another one


def test_the_dearest_of_a_step_is_what_is_loaded_ahead():
    """Of levels that a step needs together only the first can come during the steps before."""
    networks, order = nets(), []

    def noted(level: int):
        def drift(x: Tensor, t: Tensor) -> Tensor:
            order.append(level)
            return networks[level](x, t)

        return drift

    weights = torch.tensor([[1.0, 2.0, 4.0], [1.0, 0.0, 0.0], [1.0, 2.0, 4.0]])  # all three, level 0, all three
    plan = mls.Plan(weights > 0, weights)
    offload = mls.Offload(ladder_of([noted(0), noted(1), noted(2)]), {1: networks[1], 2: networks[2]})
    mls.solve(offload.ladder(plan), torch.zeros(1, 1, 6, 6), torch.linspace(0.0, 1.0, 4), plan)
    assert order == [0, 2, 1, 0, 0, 2, 1]


def together() -> mls.Plan:
    """Three steps that need all levels."""
    weights = torch.tensor([1.0, 2.0, 4.0]).expand(3, 3)
    return mls.Plan(weights > 0, weights)


def test_a_value_is_kept_for_its_state_and_time_only():
    networks = nets()
    x, other = torch.zeros(1, 1, 6, 6), torch.ones(1, 1, 6, 6)
    t, later = torch.tensor(0.5), torch.tensor(0.75)
    expected = [networks[2](*where) for where in ((x, t), (x, later), (other, t))]
    offload = mls.Offload(ladder_of(networks), {1: networks[1], 2: networks[2]})
    for where, value in zip(((x, t), (x, later), (other, t)), expected, strict=True):
        _, low, high = offload.ladder(together()).drifts
        low(x, t)
        assert torch.equal(high(*where), value)


def test_another_plan_than_the_announced_one_costs_one_evaluation_at_most():
    networks, calls = nets(), [0]

    def top(x: Tensor, t: Tensor) -> Tensor:
        calls[0] += 1
        return networks[2](x, t)

    weights = torch.tensor([1.0, 1.0, 0.0]).expand(3, 3)  # level 1 alone
    offload = mls.Offload(ladder_of([networks[0], networks[1], top]), {1: networks[1], 2: networks[2]})
    y0, times = torch.zeros(1, 1, 6, 6), torch.linspace(0.0, 1.0, 4)
    ladder = offload.ladder(together())
    for _ in range(2):
        mls.solve(ladder, y0, times, mls.Plan(weights > 0, weights))
        assert calls == [1]


def test_no_state_is_kept_once_its_values_were_asked_for():
    networks = nets()
    offload = mls.Offload(ladder_of(networks), {1: networks[1], 2: networks[2]})
    weights = torch.tensor([1.0, 1.0, 0.0]).expand(3, 3)
    for plan, levels in ((together(), (1, 2)), (mls.Plan(weights > 0, weights), (1,))):
        ladder, x, t = offload.ladder(plan), torch.zeros(1, 1, 6, 6), torch.tensor(0.5)
        for level in levels:
            ladder.drifts[level](x, t)
        seen = weakref.ref(x)
        del x
        assert seen() is None


def test_weights_load_while_the_cheap_level_runs():
    """The cheap level waits for the dear one's weights; without a second thread it would wait forever."""
    networks = nets()
    weights = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])  # needs level 1, level 0, level 2
    plan = mls.Plan(weights > 0, weights)
    arrived = threading.Event()

    def cheap(x: Tensor, t: Tensor) -> Tensor:
        assert arrived.wait(WAIT)
        return networks[0](x, t)

    offload = mls.Offload(ladder_of([cheap, networks[1], networks[2]]), {1: networks[1], 2: networks[2]})
    fill = offload._weights[2].fill
    offload._weights[2].fill = lambda: (fill(), arrived.set())[0]  # type: ignore[method-assign]
    mls.solve(offload.ladder(plan), torch.zeros(1, 1, 6, 6), torch.linspace(0.0, 1.0, 4), plan)
    assert (offload.stats.loads, offload.stats.prefetched) == (2, 1)
