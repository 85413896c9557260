"""Cheap levels from one network: blocks skipped, numbers of fewer bits, and the menu that prices all of them."""

from __future__ import annotations

import pytest
import torch
from tiny_unet import at, images, unet
from torch import Tensor, nn

import multilevel_sde as mls
from multilevel_diffusion.cheap_levels import (
    Int8Linear,
    block_effects,
    cached_ladder,
    choose_blocks,
    deep_modules,
    half_weights,
    int8_weights,
    level_menu,
    skip_blocks,
    survey,
)
from multilevel_diffusion.networks.denoisers import EpsilonDenoiser
from multilevel_diffusion.process.schedules import CosineSchedule

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


# -- the menu -----------------------------------------------------------------------------------------------------


def test_the_menu_prices_what_it_offers():
    net, schedule, x = unet(dtype=torch.float32, dim=16), CosineSchedule(), images(1, dtype=torch.float32)
    denoise = EpsilonDenoiser(net, schedule, clip=(-1, 1))
    menu = level_menu(denoise, schedule, x, skip=["bottom.0"], keep=deep_modules(net), every=[2, 4])
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
    menu = level_menu(net, CosineSchedule(), x, costs=Ordered)
    assert set(menu) == {"resolution / 2", "bfloat16", "float16", "int8"}
    assert "float16" not in level_menu(net, CosineSchedule(), x)


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
