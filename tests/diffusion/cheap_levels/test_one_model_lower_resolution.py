"""Laws of a level at lower resolution: exact for white data and pure noise, and what it makes of the lost detail."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_unet import at, images
from torch import Tensor, nn

from multilevel_diffusion.cheap_levels import LowResolution, bilinear, detail_variance, repeat
from multilevel_diffusion.process.schedule_base import NoiseSchedule
from multilevel_diffusion.process.schedules import CosineSchedule, EDMSchedule, RectifiedFlowSchedule
from multilevel_diffusion.process.tables import LinearSchedule

SCHEDULES = [CosineSchedule(), LinearSchedule(), EDMSchedule(), RectifiedFlowSchedule()]


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
