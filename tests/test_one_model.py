"""Cheap levels from one network: exact where the maths says so, nothing left behind, unbiased where it is claimed."""

from __future__ import annotations

import itertools
import math
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import multilevel_sde as mls
from multilevel_diffusion.cheap_levels import (
    Int8Linear,
    LowResolution,
    MemoryLadder,
    bilinear,
    block_effects,
    cached_ladder,
    cheap_levels,
    choose_blocks,
    deep_modules,
    detail_variance,
    half_weights,
    int8_weights,
    repeat,
    skip_blocks,
    survey,
)
from multilevel_diffusion.denoisers import EpsilonDenoiser
from multilevel_diffusion.schedules import (
    CosineSchedule,
    EDMSchedule,
    LinearSchedule,
    NoiseSchedule,
    RectifiedFlowSchedule,
)
from multilevel_diffusion.unet import UNet, UNetConfig

SCHEDULES = [CosineSchedule(), LinearSchedule(), EDMSchedule(), RectifiedFlowSchedule()]


def unet(seed: int = 0, dtype: torch.dtype = torch.float64, dim: int = 4) -> UNet:
    """A small network with two halvings whose every layer does something."""
    net = UNet(UNetConfig(base_dim=dim, bottom_depth=2, mid_depth=1, levels=2, image_size=8, channels=1, time_dim=8))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return net.to(dtype).eval().requires_grad_(False)


def images(count: int = 3, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)


def at(t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)


# -- lower resolution ---------------------------------------------------------------------------------------------


def white_posterior(schedule: NoiseSchedule, full_side: int, variance: float):
    """E[x_0 | x_t] of white noise of this variance, at the full side and, pooled, at every smaller one."""

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        pooled = variance * (x.shape[-1] / full_side) ** 2
        gain = alpha * pooled / (alpha**2 * pooled + sigma**2)
        return gain.reshape(-1, *[1] * (x.ndim - 1)) * x

    return denoise


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize("factor", [2, 4])
def test_lower_resolution_is_exact_for_white_data(schedule: NoiseSchedule, factor: int):
    """Pooled white data is white data: network and Wiener estimate together are the exact posterior mean."""
    exact = white_posterior(schedule, 8, 0.7)
    level = LowResolution(exact, schedule, factor, detail_variance=0.7, upsample=repeat)
    x = images()
    for part in (0.05, 0.3, 0.6, 0.95):
        t = at(part * schedule.t_max)
        torch.testing.assert_close(level(x, t), exact(x, t), rtol=1e-10, atol=1e-12)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64) * schedule.t_max
    torch.testing.assert_close(level(x, t), exact(x, t), rtol=1e-10, atol=1e-12)


def test_pure_noise_reaches_the_network_as_pure_noise():
    """Where alpha = 0 the pooled state is scaled back to unit variance, and the time stays."""
    asked = []
    level = LowResolution(lambda x, t: (asked.append((x, t)), x)[1], RectifiedFlowSchedule())
    for t in (at(1.0), torch.ones(2000, dtype=torch.float64)):
        level(images(2000), t)
    for seen, time in asked:
        assert bool((time == 1).all())
        # 32000 normal numbers: the standard error of their variance is sqrt(2 / 32000) = 0.008; five of them
        assert float(seen.var()) == pytest.approx(1.0, abs=0.04)


def test_the_network_is_asked_where_the_noise_fits_but_not_below_its_times():
    schedule = CosineSchedule(t_min=0.05)
    asked = []
    level = LowResolution(lambda x, t: (asked.append(float(t)), x)[1], schedule, 2)
    for t in (0.5, 0.07, 0.03):
        level(images(), at(t))
    assert schedule.log_snr(asked[0]) == pytest.approx(schedule.log_snr(0.5) + math.log(2))
    assert asked[1:] == [0.05, 0.03]


def test_block_means_are_those_of_the_network_whatever_the_interpolation():
    schedule, z = CosineSchedule(), images(3, seed=2)[:, :, :4, :4]
    for upsample in (repeat, bilinear):
        for variance in (0.0, 0.3):
            level = LowResolution(lambda x, t: z, schedule, 2, variance, upsample)
            pooled = nn.functional.avg_pool2d(level(images(), at(0.4)), 2)
            torch.testing.assert_close(pooled, z)
    smooth = LowResolution(lambda x, t: z, schedule, 2)(images(), at(0.4))
    expected = bilinear(z, 2)
    torch.testing.assert_close(smooth - repeat(nn.functional.avg_pool2d(smooth, 2), 2), _detail(expected))


def _detail(x: Tensor) -> Tensor:
    return x - repeat(nn.functional.avg_pool2d(x, 2), 2)


def test_a_state_with_the_expected_detail_tells_nothing_new():
    schedule, z = CosineSchedule(), images(3, seed=2)[:, :, :4, :4]
    level = LowResolution(lambda x, t: z, schedule, 2, detail_variance=0.3)
    torch.testing.assert_close(_detail(level(schedule.alpha(0.4) * bilinear(z, 2), at(0.4))), _detail(bilinear(z, 2)))


def test_without_noise_the_detail_is_that_of_the_state():
    level = LowResolution(lambda x, t: x, EDMSchedule(), 2, detail_variance=0.1)
    x = images()
    torch.testing.assert_close(_detail(level(x, at(1e-9))), _detail(x))


def test_detail_variance_is_that_of_white_data():
    """20 * 64 * 64 pixels, 3/4 of them detail: standard error of the variance 1 * sqrt(2 / 61440) = 0.0057."""
    white = torch.randn(20, 1, 64, 64, generator=torch.Generator().manual_seed(3))
    assert detail_variance(white, 2, repeat) == pytest.approx(1.0, abs=5 * 0.0057)
    assert detail_variance(repeat(white, 2), 2, repeat) == 0.0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1, CosineSchedule()), TypeError, '"denoise"'),
        ((torch.sin, 3), TypeError, '"schedule"'),
        ((torch.sin, CosineSchedule(), 1), ValueError, '"factor"'),
        ((torch.sin, CosineSchedule(), 2, -1.0), ValueError, '"detail_variance"'),
    ],
)
def test_lower_resolution_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        LowResolution(*arguments)


def test_lower_resolution_refuses_sides_that_do_not_divide():
    with pytest.raises(ValueError, match="multiples of the factor 3"):
        LowResolution(lambda x, t: x, CosineSchedule(), 3)(images(), at(0.5))


# -- skipped blocks -----------------------------------------------------------------------------------------------


def test_a_skipped_layer_is_one_that_adds_nothing():
    """Our residual layers add contract(...): without it, the layer hands its input on."""
    net, x, t = unet(), images(), at(0.4)
    before = net(x, t)
    cheap = skip_blocks(net, ["down.1.0", "bottom.1"], x)
    silent = unet()
    for name in ("down.1.0", "bottom.1"):
        nn.init.zeros_(silent.get_submodule(name).contract.weight)
        nn.init.zeros_(silent.get_submodule(name).contract.bias)
    torch.testing.assert_close(cheap(x, t), silent(x, t), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(before, cheap(x, t))
    assert torch.equal(net(x, t), before)
    assert all(not module._forward_hooks and "forward" not in vars(module) for module in net.modules())
    assert {id(p) for p in cheap.parameters()} == {id(p) for p in net.parameters()}


def test_skipping_inside_a_denoiser_keeps_the_rest_of_it():
    schedule = CosineSchedule()
    denoise = EpsilonDenoiser(unet(), schedule, clip=(-1, 1))
    cheap = skip_blocks(denoise, ["bottom.0"], images())
    assert (cheap.schedule, cheap.clip, type(cheap)) == (schedule, (-1, 1), EpsilonDenoiser)
    assert not torch.equal(cheap(images(), at(0.3)), denoise(images(), at(0.3)))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["bottom.9"], "which is no submodule"),
        ("bottom.0", "expected a list of names"),
        ([], "expected a list of names"),
        (["bottom.0", "bottom.0.expand"], "named twice or lies inside"),
        (["shrink.0"], "not a tensor like its first input"),
        (["embed"], "not a tensor like its first input"),
    ],
)
def test_what_cannot_be_skipped_is_refused(names, message):
    with pytest.raises(ValueError, match=message):
        skip_blocks(unet(), names, images())


def test_a_stack_whose_modulations_would_be_left_over_is_refused():
    with pytest.raises(ValueError, match="without which the network fails"):
        skip_blocks(unet(), ["down.0"], images())


def test_a_function_has_no_blocks():
    with pytest.raises(TypeError, match=r"expected an nn\.Module"):
        skip_blocks(lambda x, t: x, ["a"], images())


def test_block_effects_are_those_of_skipping():
    net, states, times = unet(), torch.stack([images(), images(seed=5)]), torch.tensor([0.7, 0.2])
    effects = block_effects(net, states, times)
    assert [effect.change / effect.saved for effect in effects] == sorted(e.change / e.saved for e in effects)
    first = effects[0]
    cheap = skip_blocks(net, [first.name], images())
    full = torch.stack([net(x, t) for x, t in zip(states, times, strict=True)])
    skipped = torch.stack([cheap(x, t) for x, t in zip(states, times, strict=True)])
    assert first.change == pytest.approx(float((skipped - full).square().mean() / full.square().mean()))
    cost = mls.FlopCost(images(1))
    assert first.saved == pytest.approx(1 - cost([cheap])[0] / cost([net])[0])


def test_chosen_blocks_save_what_was_asked_and_no_more_than_needed():
    net, states, times = unet(), images()[None], torch.tensor([0.5])
    chosen = choose_blocks(net, states, times, saving=0.2)
    cost = mls.FlopCost(images(1))

    def saved(names: list[str]) -> float:
        return 1 - cost([skip_blocks(net, names, images())])[0] / cost([net])[0] if names else 0.0

    assert saved(chosen) >= 0.2 > saved(chosen[:-1])
    with pytest.raises(ValueError, match="leaving out all blocks that can be saves"):
        choose_blocks(net, states, times, saving=0.99)


# -- fewer bits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "digits"), [(torch.bfloat16, 8), (torch.float16, 11)])
def test_half_weights_are_off_by_rounding_only(dtype: torch.dtype, digits: int):
    net, x = unet(dtype=torch.float32), images(dtype=torch.float32)
    value = half_weights(net, dtype)(x, at(0.4))
    assert value.dtype == torch.float32
    error = float((value - net(x, at(0.4))).norm() / net(x, at(0.4)).norm())
    assert 2.0 ** -(digits + 4) < error < 2.0 ** -(digits - 4)
    assert net.stem.weight.dtype == torch.float32


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv2d])
def test_int8_product_is_that_of_the_rounded_factors(kind, rows: int):
    torch_generator = torch.Generator().manual_seed(4)
    layer = nn.Linear(64, 24) if kind is nn.Linear else nn.Conv2d(64, 24, 1)
    weight = torch.randn(layer.weight.shape, generator=torch_generator)
    layer.load_state_dict({"weight": weight, "bias": torch.randn(24, generator=torch_generator)})
    x = torch.randn(rows, 64, generator=torch_generator)

    def rounded(values: Tensor) -> Tensor:
        scale = values.abs().amax(1, keepdim=True) / 127
        return (values / scale).round() * scale

    expected = rounded(x) @ rounded(weight.flatten(1)).T + layer.bias
    given = x if kind is nn.Linear else x[:, :, None, None]
    torch.testing.assert_close(Int8Linear(layer)(given).flatten(1), expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(expected, layer(given).flatten(1))


def test_int8_replaces_wide_layers_in_a_copy_only():
    net, x = unet(dtype=torch.float32, dim=16), images(dtype=torch.float32)
    before = net(x, at(0.4))
    cheap = int8_weights(net, least=32)
    assert torch.equal(net(x, at(0.4)), before)
    assert not any(isinstance(module, Int8Linear) for module in net.modules())
    error = float((cheap(x, at(0.4)) - before).norm() / before.norm())
    assert 1e-4 < error < 0.05
    assert isinstance(cheap.bottom[0].expand, Int8Linear)  # type: ignore[union-attr, index]
    assert isinstance(cheap.down[0][0].contract, Int8Linear)  # type: ignore[union-attr, index]  # 32 inputs
    assert type(cheap.stem) is nn.Conv2d  # 3x3
    assert type(cheap.down[0][0].expand) is nn.Conv2d  # type: ignore[union-attr, index]  # 16 inputs
    assert cheap.stem.weight is net.stem.weight
    with pytest.raises(ValueError, match='lower "least"'):
        int8_weights(net, least=1000)


def test_half_weights_refuse_what_is_no_half():
    with pytest.raises(ValueError, match='"dtype"'):
        half_weights(unet(), torch.float64)


# -- kept features ------------------------------------------------------------------------------------------------


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


# -- the menu -----------------------------------------------------------------------------------------------------


def test_the_menu_prices_what_it_offers():
    net, schedule, x = unet(dtype=torch.float32, dim=16), CosineSchedule(), images(1, dtype=torch.float32)
    denoise = EpsilonDenoiser(net, schedule, clip=(-1, 1))
    menu = cheap_levels(denoise, schedule, x, skip=["bottom.0"], keep=deep_modules(net), every=[2, 4])
    assert set(menu) == {
        "resolution / 2",
        "1 blocks skipped",
        "features kept, every 2",
        "features kept, every 4",
    }
    for ladder in menu.values():
        assert ladder.costs[1] == mls.FlopCost(x)([denoise])[0]
    four, two = (menu[f"features kept, every {n}"].costs[0] for n in (4, 2))
    shallow = cached_ladder(denoise, deep_modules(net), x).costs[0]
    full = menu["resolution / 2"].costs[1]
    assert (two, four) == (pytest.approx((full + shallow) / 2), pytest.approx((full + 3 * shallow) / 4))


def test_precision_is_offered_by_the_clock_only():
    """Counted operations do not see it: an 8-bit product is none to the counter."""

    class Ordered:
        """A unit in which the levels cost 1, 2, 3 ... in the order given."""

        unit = "places"

        def __init__(self, x: Tensor, t: float):
            pass

        def __call__(self, drifts: list) -> list[float]:
            return [1.0 + place for place, _ in enumerate(drifts)]

    net, x = unet(dtype=torch.float32, dim=16), images(1, dtype=torch.float32)
    menu = cheap_levels(net, CosineSchedule(), x, costs=Ordered)
    assert set(menu) == {"resolution / 2", "bfloat16", "float16", "int8"}
    assert "float16" not in cheap_levels(net, CosineSchedule(), x)


def test_survey_measures_the_lowest_level_against_the_top():
    ladder = mls.Ladder([lambda x, t: x * (1 - t), lambda x, t: 5 * x, lambda x, t: x], costs=[1.0, 2.0, 4.0])
    far = mls.Ladder([lambda x, t: -x, lambda x, t: x], costs=[1.0, 4.0])
    states = torch.stack([torch.ones(2, 3), 2 * torch.ones(2, 3)])
    near, last = survey({"far": far, "near": ladder}, states, torch.tensor([0.5, 0.1]))
    assert (near.name, last.name, last.difference, near.cost) == ("near", "far", 4.0, 0.25)
    assert near.by_step == pytest.approx((0.25, 0.01))
    assert near.difference == pytest.approx((0.25 * 1 + 0.01 * 4) / 5)
    with pytest.raises(ValueError, match='"states" has 2 times'):
        survey({"near": ladder}, states, torch.tensor([0.5]))
