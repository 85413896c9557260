"""Networks on patches: what they cost, what they return, and that ladders of them are written and read."""

import json
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from multilevel_diffusion.networks.families import config_from_dict
from multilevel_diffusion.networks.patches import PatchConfig, PatchNet, emoji_ladder
from multilevel_diffusion.networks.store import load_ladder, save_ladder, shipped_ladder
from multilevel_diffusion.process.schedules import CosineSchedule

FLAT = PatchConfig(patch=4, width=8, inner=2, outer=0, image_size=16, channels=1, time_dim=8)
DEEP = PatchConfig(patch=2, width=4, inner=1, outer=2, image_size=16, channels=3, time_dim=8, classes=2)


def randomised(config: PatchConfig, seed: int = 0) -> PatchNet:
    """A network whose layers all do something; new ones return the best guess without looking."""
    generator, network = torch.Generator().manual_seed(seed), PatchNet(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network


def multiply_adds(config: PatchConfig) -> int:
    """Multiply-adds of one evaluation on one image, from the description of the network."""
    side, pixels = config.image_size // config.patch, config.channels * config.patch**2
    inner, edge = (2 * config.width, 9) if config.outer else (config.width, 1)
    total = 2 * edge * pixels * config.width * side**2
    total += 2 * config.outer * 10 * config.width**2 * side**2
    total += config.inner * 10 * inner**2 * (side // 2 if config.outer else side) ** 2
    total += 2 * 4 * config.width * inner * (side // 2) ** 2 if config.outer else 0
    widths = 2 * config.outer * config.width + config.inner * inner + config.width
    return total + 14 * config.time_dim + config.time_dim * 2 * widths


@pytest.mark.parametrize("config", [FLAT, DEEP, *emoji_ladder()], ids=lambda config: config.shape)
def test_cost_is_the_formula(config):
    network = PatchNet(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, *config.image_shape), torch.tensor(0.5))
    assert counter.get_total_flops() == 2 * multiply_adds(config)


def test_the_ladder_spans_what_it_promises():
    costs = [multiply_adds(config) for config in emoji_ladder()]
    assert costs == sorted(costs)
    assert costs[-1] > 150 * costs[0]
    assert sum(parameter.numel() for config in emoji_ladder() for parameter in PatchNet(config).parameters()) < 6e6


@pytest.mark.parametrize("config", [FLAT, DEEP], ids=lambda config: config.shape)
def test_every_parameter_and_every_pixel_matters(config):
    network, x = randomised(config), torch.randn(2, *config.image_shape, generator=torch.Generator().manual_seed(1))
    label = torch.tensor([0, 2]) if config.classes else None
    x.requires_grad_(True)
    network(x, torch.tensor([0.3, 0.7]), label=label).square().sum().backward()
    assert x.grad is not None
    assert bool((x.grad != 0).all())
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert bool((parameter.grad != 0).any()), name


@pytest.mark.parametrize("config", [FLAT, DEEP], ids=lambda config: config.shape)
def test_images_do_not_see_each_other_and_have_their_own_times(config):
    network = randomised(config).double()
    x = torch.randn(3, *config.image_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    together = network(x, t)
    assert together.shape == x.shape
    assert together.is_contiguous()
    for index in range(3):
        assert torch.allclose(network(x[index : index + 1], t[index]), together[index : index + 1], atol=1e-10)


def test_a_patch_s_pixels_come_back_where_they_were():
    """Without layers, and with first and last convolution the identity, F is the image, normalised over each patch."""
    config = PatchConfig(patch=4, width=16, inner=1, outer=0, image_size=8, channels=1)
    network = PatchNet(config).double()
    with torch.no_grad():
        for convolution in (network.stem, network.head):
            convolution.weight.copy_(torch.eye(16)[:, :, None, None])
            assert convolution.bias is not None
            convolution.bias.zero_()
        network.modulate.weight.zero_()
        assert network.modulate.bias is not None
        network.modulate.bias.zero_()
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    patch = x[0, 0, 4:, :4]
    normal = (patch - patch.mean()) / (patch.var(correction=0) + 1e-5).sqrt()
    found = network(x, torch.tensor(0.0, dtype=torch.float64))[0, 0, 4:, :4]
    assert torch.allclose(found, torch.nn.functional.silu(normal), atol=1e-12)


def test_the_layers_after_the_inner_ones_see_what_was_before_them():
    """Also where nothing comes from the inner grid; at time 0 the output is F alone."""
    network, x = randomised(DEEP), torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for parameter in network.grow.parameters():
            parameter.zero_()
        first, second = network(x, torch.tensor(0.0))
    assert not torch.allclose(first, second)


def test_configurations_know_their_family():
    for config in (FLAT, DEEP):
        values = json.loads(json.dumps(config.to_dict()))
        assert values["family"] == "patches"
        assert config_from_dict(values) == config
    with pytest.raises(ValueError, match="\"family\" is 'trees', expected one of"):
        config_from_dict({**FLAT.to_dict(), "family": "trees"})


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"patch": 0}, ValueError, '"patch" is 0, expected at least 1'),
        ({"width": 2.5}, TypeError, '"width" is 2.5, expected an integer'),
        ({"image_size": 18}, ValueError, '"image_size" is 18, expected a multiple of 4 for patches of 4'),
        ({"image_size": 20, "outer": 1}, ValueError, '"image_size" is 20, expected a multiple of 8'),
    ],
)
def test_bad_configurations_are_refused(change, error, words):
    with pytest.raises(error, match=words):
        replace(FLAT, **change)


def test_ladders_of_patches_are_written_in_half_precision_and_read(tmp_path):
    networks = [randomised(replace(FLAT, width=width)) for width in (8, 16)]
    save_ladder(tmp_path, networks, CosineSchedule(), batch=2, dtype=torch.float16)
    ladder = load_ladder(tmp_path)
    assert ladder.dtype == torch.float32
    size = sum(parameter.numel() for network in networks for parameter in network.parameters())
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors")) < 2 * size + 10_000
    for written, read in zip(networks, ladder.networks, strict=True):
        assert read.config == written.config
        for before, after in zip(written.parameters(), read.parameters(), strict=True):
            assert torch.equal(before.half().float(), after)
    with torch.no_grad():
        networks[0].stem.weight.fill_(1e6)
    with pytest.raises(ValueError, match=r"networks\[0\] has weights that are not finite \(stem.weight\)"):
        save_ladder(tmp_path / "other", networks, CosineSchedule(), batch=2, dtype=torch.float16)


def test_the_shipped_emoji_are_wide_in_seconds():
    """By the seconds that were recorded when the ladder was written; nothing is timed here."""
    ladder = load_ladder(shipped_ladder("emoji32"))
    assert [network.config for network in ladder.networks] == emoji_ladder()
    for costs in (ladder.ladder.costs, ladder.seconds_ladder.costs):
        assert list(costs) == sorted(costs)
    assert ladder.seconds_ladder.costs[-1] > 60 * ladder.seconds_ladder.costs[0]
    errors = [level["error"] for level in ladder.record["levels"]]
    assert sorted((error["loss"] for error in errors), reverse=True) == [error["loss"] for error in errors]
    distances = [error["rms_to_top"] for error in errors[:-1]]
    assert sorted(distances, reverse=True) == distances
    assert "path" not in ladder.record["data"]
