"""The UNet family: its cost by formula, its behaviour at t = 1, dtypes, batches, configurations."""

import json
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from multilevel_diffusion.networks.unet import UNet, UNetConfig, dead_leaves_ladder, digits_ladder, paper_ladder

SMALL = UNetConfig(base_dim=6, bottom_depth=2, mid_depth=1, levels=2, image_size=8, channels=2, time_dim=16)


def randomised(config: UNetConfig, seed: int = 0) -> UNet:
    """Return a network none of whose weights is zero, so that every layer matters."""
    generator = torch.Generator().manual_seed(seed)
    network = UNet(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network


def multiply_adds(config: UNetConfig) -> int:
    """Return the multiply-adds of one evaluation on one image, from the description of the network."""
    c, m, k, side = config.base_dim, config.expansion, config.kernel, config.image_size
    layers, total = [], 2 * 9 * config.channels * c * side**2  # first and last convolution
    for level in range(config.levels + 1):
        dim, pixels = c * 2**level, (side // 2**level) ** 2
        depth = config.bottom_depth if level == config.levels else 2 * config.mid_depth
        layers += [dim] * depth
        total += depth * (k**2 * dim + 2 * m * dim**2) * pixels
        if level < config.levels:
            total += 2 * dim * 2 * dim * pixels  # 2x2 convolutions to the next scale and back
    return total + 14 * config.time_dim + config.time_dim * 2 * (sum(layers) + c)


@pytest.mark.parametrize("config", [SMALL, *digits_ladder()[:3]], ids=lambda config: f"base{config.base_dim}")
def test_cost_is_the_formula(config):
    network = UNet(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, *config.image_shape), torch.tensor(0.5))
    assert counter.get_total_flops() == 2 * multiply_adds(config)


@pytest.mark.parametrize(
    ("ladder", "least"), [(digits_ladder(), 200), (dead_leaves_ladder(), 100), (paper_ladder(), 300)]
)
def test_ladders_span_what_they_promise(ladder, least):
    costs = [multiply_adds(config) for config in ladder]
    assert costs == sorted(costs)
    assert costs[-1] > least * costs[0]
    assert len({config.image_shape for config in ladder}) == 1


def test_pure_noise_is_returned_at_time_one():
    x = torch.randn(3, *SMALL.image_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(randomised(SMALL).double()(x, torch.tensor(1.0)), x, rtol=0, atol=1e-6)


def test_output_is_sine_x_plus_cosine_of_the_layers():
    network = randomised(SMALL).double()
    x = torch.randn(2, *SMALL.image_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        full = network(x, torch.tensor(0.3, dtype=torch.float64))
        network.head.weight.zero_()
        network.head.bias.zero_()
        torch.testing.assert_close(network(x, torch.tensor(0.3, dtype=torch.float64)), math.sin(0.15 * math.pi) * x)
    assert (full - math.sin(0.15 * math.pi) * x).abs().mean() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("t", [torch.tensor(0.4, dtype=torch.float64), torch.tensor(0.4)])
def test_dtype_and_shape_are_kept(dtype, t):
    x = torch.randn(2, *SMALL.image_shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    out = randomised(SMALL).to(dtype)(x, t)
    assert out.dtype == dtype
    assert out.shape == x.shape
    assert out.is_contiguous()


def test_images_do_not_see_each_other_and_have_their_own_times():
    network = randomised(SMALL).double()
    x = torch.randn(3, *SMALL.image_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    together = network(x, t)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], network(x[i : i + 1], t[i]))
    assert (network(x, t[0]) - together)[1:].abs().amax() > 1e-3


def test_every_parameter_matters():
    network = randomised(SMALL)
    x = torch.randn(2, *SMALL.image_shape, generator=torch.Generator().manual_seed(1))
    network(x, torch.tensor([0.2, 0.7])).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_a_new_network_is_the_best_guess_without_looking():
    network = UNet(SMALL)
    x = torch.randn(2, *SMALL.image_shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(network(x, torch.tensor(0.5)), math.sqrt(0.5) * x)


def test_configuration_survives_json():
    assert UNetConfig.from_dict(json.loads(json.dumps(SMALL.to_dict()))) == SMALL


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"base_dim": 0}, ValueError, '"base_dim" is 0'),
        ({"mid_depth": -1}, ValueError, '"mid_depth" is -1'),
        ({"base_dim": 2.5}, TypeError, '"base_dim" is 2.5'),
        ({"kernel": 4}, ValueError, '"kernel" is 4'),
        ({"image_size": 10}, ValueError, '"image_size" is 10'),
        ({"colour": 3}, ValueError, 'unknown key "colour"'),
    ],
)
def test_bad_configurations_are_refused(change, error, words):
    with pytest.raises(error, match=words):
        UNetConfig.from_dict({**SMALL.to_dict(), **change})


def test_missing_key_and_wrong_type_are_refused():
    with pytest.raises(ValueError, match='no key "bottom_depth"'):
        UNetConfig.from_dict({"base_dim": 8})
    with pytest.raises(TypeError, match='"config" is a dict'):
        UNet({"base_dim": 8})  # type: ignore[arg-type]
