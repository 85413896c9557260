"""Laws of kept features: renewed when they should be, nothing left behind, unbiased where it is claimed."""

from __future__ import annotations

import itertools
import threading

import pytest
import torch
from tiny_unet import at, images, unet
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import multilevel_sde as mls
from multilevel_diffusion.cheap_levels import MemoryLadder, cached_ladder, deep_modules
from multilevel_diffusion.networks.unet import UNet


def small_step(y: Tensor, estimate: Tensor, t: float, s: float, noise: Tensor | None) -> Tensor:
    return 0.8 * y + 0.2 * estimate


TIMES = [1.0, 0.9, 0.7, 0.55, 0.4, 0.2]


def run(ladder: mls.Ladder, plan: mls.Plan, x: Tensor | None = None) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Solve, and return the last state and every (state, estimate)."""
    seen = []

    def step(y: Tensor, estimate: Tensor, t: float, s: float, noise: Tensor | None) -> Tensor:
        seen.append((y, estimate))
        return small_step(y, estimate, t, s, noise)

    return mls.solve(ladder, images() if x is None else x, TIMES, plan, step=step).y, seen


def kept(net: UNet, every: int | None = None) -> MemoryLadder:
    return cached_ladder(net, deep_modules(net), images(1), every=every)


def by_hand(net: UNet, x: Tensor, t: Tensor, inner: Tensor) -> Tensor:
    """Our UNet's outer scale with a given output of grow[0]."""

    class Given(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return inner

    other = unet()
    other.grow[0] = Given()
    return other(x, t)


def inner_of(net: UNet, x: Tensor, t: Tensor) -> Tensor:
    found = []
    handle = net.grow[0].register_forward_hook(lambda module, inputs, output: found.append(output))
    net(x, t)
    handle.remove()
    return found[0]


def test_the_cheap_level_alone_keeps_the_inner_features_for_n_steps():
    net = unet()
    alone = kept(net, every=3).subset([0])
    _, seen = run(alone, mls.em_plan(alone, TIMES))
    for n, (x, estimate) in enumerate(seen):
        renewed = n - n % 3
        inner = inner_of(net, seen[renewed][0], at(TIMES[renewed]))
        torch.testing.assert_close(estimate, by_hand(net, x, at(TIMES[n]), inner), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("hits", [[0, 2], [0, 1, 4]])
def test_features_renewed_at_hits_are_those_of_the_last_hit_before(hits: list[int]):
    """The correction compares with what the old features gave, not with the ones it brings."""
    net = unet()
    weights = torch.zeros(5, 2, dtype=torch.float64)
    weights[:, 0], weights[hits, 1] = 1.0, 3.0
    weights[0] = 1.0
    _, seen = run(kept(net), mls.Plan(weights != 0, weights))
    for n, (x, estimate) in enumerate(seen):
        full, renewed = net(x, at(TIMES[n])), max([m for m in hits if m < n], default=0)
        stale = by_hand(net, x, at(TIMES[n]), inner_of(net, seen[renewed][0], at(TIMES[renewed])))
        expected = full if n == 0 else stale + float(weights[n, 1]) * (full - stale)
        torch.testing.assert_close(estimate, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("every", [None, 2])
def test_two_solves_in_a_row_are_equal(every: int | None):
    ladder = kept(unet(), every)
    plan = mls.draw_plan(torch.tensor([[1.0, 0.5]] * 5), generator=torch.Generator().manual_seed(1))
    first, other, second = (run(ladder, plan, images(seed=seed))[0] for seed in (1, 2, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_solves_at_the_same_time_do_not_meet():
    ladder = kept(unet())
    plan = mls.draw_plan(torch.tensor([[1.0, 0.5]] * 5), generator=torch.Generator().manual_seed(1))
    expected = [run(ladder, plan, images(seed=seed))[0] for seed in range(4)]
    found: dict[int, Tensor] = {}
    threads = [
        threading.Thread(target=lambda s=seed: found.update({s: run(ladder, plan, images(seed=s))[0]}))
        for seed in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[seed], expected[seed]) for seed in range(4))


def mean_excess(ladder: mls.Ladder, net: UNet, probability: float, plans: list[tuple[float, list[int]]]) -> Tensor:
    """Mean over plans of sum_n (F_n - f^2(x_n)), exactly; every plan hits at the first step with weight 1."""
    total = torch.zeros_like(images())
    for chance, hits in plans:
        weights = torch.zeros(5, 2, dtype=torch.float64)
        weights[:, 0], weights[hits, 1] = 1.0, 1 / probability
        weights[0] = 1.0
        _, seen = run(ladder, mls.Plan(weights != 0, weights))
        for n, (x, estimate) in enumerate(seen):
            total += chance * (estimate - net(x, at(TIMES[n])))
    return total


@pytest.mark.parametrize("every", [None, 2])
def test_independent_hits_are_unbiased_given_the_path(every: int | None):
    """E[F_n - f^2(x_n)] = 0, summed over all 16 draws of four steps with their probabilities."""
    p, plans = 0.3, []
    for draw in itertools.product([False, True], repeat=4):
        hits = [n + 1 for n, hit in enumerate(draw) if hit]
        plans.append((p ** len(hits) * (1 - p) ** (4 - len(hits)), hits))
    net = unet()
    assert float(mean_excess(kept(net, every), net, p, plans).abs().max()) < 1e-12


def test_hits_that_know_of_each_other_are_biased_where_they_renew_the_features():
    """Systematic draws, p = 1/2: hits at steps 1 and 3 or at 2 and 4.

    With a clock of its own x_n still knows the draw, as with levels without memory, which leaves a smaller excess.
    """
    net, plans = unet(), [(0.5, [1, 3]), (0.5, [2, 4])]
    at_hits = mean_excess(kept(net), net, 0.5, plans).norm()
    own_clock = mean_excess(kept(net, every=2), net, 0.5, plans).norm()
    assert float(at_hits) > 5 * float(own_clock) > 0


@pytest.mark.parametrize(("every", "full"), [(None, 1), (2, 3), (5, 1)])
def test_the_cheap_level_runs_the_inner_layers_as_often_as_it_says(every: int | None, full: int):
    net = unet()
    ladder = kept(net, every).subset([0])
    (shallow, whole) = kept(net).costs
    with FlopCounterMode(display=False) as flops:
        solution = mls.solve(ladder, images(1), TIMES, mls.em_plan(ladder, TIMES), step=small_step)
    expected = full * whole + (5 - full) * shallow
    assert flops.get_total_flops() == pytest.approx(expected)
    if every == 5:
        assert solution.stats.cost == pytest.approx(expected)


def test_a_pilot_measures_kept_features_and_its_plan_holds():
    """The perturbed copies see the features of their sample; the plan's cost is what solve counts."""
    ladder, x = kept(unet(), every=4), images(4)
    times = torch.linspace(1.0, 0.2, 33, dtype=torch.float64)
    first, second = (mls.pilot(ladder, x, times, step=small_step, candidates=16) for _ in range(2))
    assert torch.equal(first.gram, second.gram)
    assert float(first.variances[0, 0]) == 0  # the features are new
    assert float(first.variances[1, 0]) > 0
    assert float(first.variances[4, 0]) == 0
    best = first.plan(budget=10 * ladder.costs[-1])
    solution = mls.solve(ladder, x, best.times, best.plan, step=small_step)
    assert solution.stats.cost == pytest.approx(best.predicted.cost)


def test_perturbed_copies_see_the_features_of_their_sample():
    ladder, x = kept(unet(), every=4), images()
    copies = [x + 0.1, 2 * x, x]
    values = []
    for batch in (*copies, torch.cat(copies)):
        cheap, _ = ladder.drifts
        cheap(x, at(0.9))
        values.append(cheap(batch, at(0.5)))
    torch.testing.assert_close(values[-1], torch.cat(values[:-1]), rtol=1e-12, atol=1e-12)


def test_a_pilot_of_features_renewed_at_hits_is_refused():
    with pytest.raises(ValueError, match="give every= to a ladder that a pilot is to measure"):
        mls.pilot(kept(unet()), images(4), torch.linspace(1.0, 0.2, 17), step=small_step, candidates=16)


def test_draws_per_sample_are_refused():
    ladder = kept(unet())
    table = torch.tensor([[1.0, 0.5]] * 5)
    plan = mls.draw_plan(table, mls.independent, generator=torch.Generator().manual_seed(0), samples=3)
    with pytest.raises(ValueError, match="one plan for the batch"):
        run(ladder, plan)


def test_a_part_of_a_memory_ladder_shares_the_memory():
    ladder = kept(unet())
    both = ladder.subset([0, 1])
    plan = mls.draw_plan(torch.tensor([[1.0, 0.5]] * 5), generator=torch.Generator().manual_seed(1))
    assert torch.equal(run(both, plan)[0], run(ladder, plan)[0])
    assert ladder.top().costs == ladder.costs[1:]


@pytest.mark.parametrize(
    ("names", "every", "message"),
    [
        (["bottom.0"], 1, '"every"'),
        (["nowhere"], None, "no submodule"),
        (["spare"], None, "evaluated 0 times"),
    ],
)
def test_features_that_cannot_be_kept_are_refused(names, every, message):
    net = unet()
    net.spare = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=message):
        cached_ladder(net, names, images(1), every=every)


def test_depth_of_the_kept_features():
    net = unet()
    costs = [cached_ladder(net, deep_modules(net, depth), images(1)).costs[0] for depth in (1, 2)]
    assert costs[0] < costs[1]
    with pytest.raises(ValueError, match='"depth" is 3'):
        deep_modules(net, 3)


def test_features_that_are_tuples_are_kept():
    """As the blocks of diffusers' UNets return them, with attributes that the network reads."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.count = nn.Linear(4, 4), 2

        def forward(self, h: Tensor, scale: Tensor | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
            return self.layer(h), (h,) * self.count

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = Block(), nn.Linear(4, 4)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            h, skips = self.inner(x, scale=t)
            assert len(skips) == self.inner.count
            return self.outer(h + sum(skips)) * t.float()

    net, x = Net().requires_grad_(False), torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    cheap, full = cached_ladder(net, ["inner"], x[:1]).drifts
    full(x, at(0.9))
    expected = net.outer(net.inner(x)[0] + 2 * x) * 0.5
    torch.testing.assert_close(cheap(2 * x, at(0.5)), expected)
