"""Space-time Levy areas: one path at every step size, the right law, the same increments as without areas."""

import math

import pytest
import torch
import torchsde

import multilevel_sde as mls
from multilevel_sde.noise.space_time import increments_and_areas

DOUBLE = torch.float64
GRID = torch.tensor([0.0, 0.1, 0.15, 0.4, 0.5, 0.8, 1.0], dtype=DOUBLE)
Y = torch.zeros(3, 2, dtype=DOUBLE)


def path(grid=GRID, seeds=(1, 2, 3)):
    return mls.BrownianPath(seeds, grid=grid)


def pairs(times, y=Y, **options):
    return [torch.stack(part) for part in zip(*increments_and_areas(path(**options), times, y), strict=True)]


@pytest.mark.parametrize("down", [False, True])
def test_an_interval_has_the_increment_and_area_of_its_cells(down):
    """By the definition: W is its chord and the area in each cell, and h H the integral less that of the chord."""
    times = GRID.flip(0) if down else GRID
    dW, H = pairs(times)
    ((whole, area),) = zip(*pairs(times[[0, -1]]), strict=True)
    h = times.diff().abs()[:, None, None]
    start = dW.cumsum(0) - dW
    integral = (h * (start + dW / 2 + H)).sum(0)
    torch.testing.assert_close(whole, dW.sum(0), rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(area, integral - whole / 2, rtol=1e-12, atol=1e-13)


def test_an_area_is_the_same_whichever_way_the_interval_is_run_through():
    for up, down in zip(pairs(GRID[[0, 3, 6]]), pairs(GRID[[6, 3, 0]]), strict=True):
        torch.testing.assert_close(up.abs(), down.flip(0).abs(), rtol=1e-12, atol=1e-13)
    areas = [pairs(times)[1] for times in (GRID[[0, 3, 6]], GRID[[6, 3, 0]])]
    torch.testing.assert_close(areas[0], areas[1].flip(0), rtol=1e-12, atol=1e-13)


def test_increments_are_those_of_the_path_and_a_sample_is_its_seed():
    dW, H = pairs(GRID)
    torch.testing.assert_close(dW, torch.stack(list(path().like(Y).increments(GRID))), rtol=0, atol=0)
    some = pairs(GRID, y=Y[:1], seeds=[3])
    assert torch.equal(some[0], dW[:, 2:])
    assert torch.equal(some[1], H[:, 2:])


@pytest.mark.parametrize("times", [GRID, GRID[[0, 2, 6]]])
def test_the_law_of_an_area(times):
    """Variance h/12, no correlation with the increment or the next area: 20000 paths, five standard errors."""
    samples = 20000
    dW, H = pairs(times, y=torch.zeros(samples, 1, dtype=DOUBLE), seeds=range(samples))
    dW, H, h = dW[:, :, 0], H[:, :, 0], times.diff()
    assert (H.var(1) / (h / 12) - 1).abs().max() < 5 * math.sqrt(2 / samples)
    assert (H.mean(1) / (h / 12).sqrt()).abs().max() < 5 / math.sqrt(samples)
    for a, b in ((H, dW), (H[1:], H[:-1]), (H[1:], dW[:-1])):
        correlation = (a * b).mean(1) / (a.square().mean(1) * b.square().mean(1)).sqrt()
        assert correlation.abs().max() < 5 / math.sqrt(samples)


def test_steps_off_the_grid_are_refused():
    with pytest.raises(ValueError, match="grid"):
        pairs(torch.tensor([0.0, 0.3], dtype=DOUBLE))


def test_a_path_of_torchsde_has_areas_if_it_was_made_with_them():
    size = {"size": (3, 2), "dtype": DOUBLE, "entropy": 1}
    bm = torchsde.BrownianInterval(0.0, 1.0, levy_area_approximation="space-time", **size)
    for times in ([0.25, 0.75], [0.75, 0.25]):
        ((dW, H),) = increments_and_areas(mls.TorchSDEBrownian(bm), torch.tensor(times), Y)
        W, U = bm(0.25, 0.75, return_U=True)
        torch.testing.assert_close(dW, W if times[0] < times[1] else -W)
        torch.testing.assert_close(0.5 * (H + W / 2), U)
    without = mls.TorchSDEBrownian(torchsde.BrownianInterval(0.0, 1.0, **size))
    with pytest.raises(ValueError, match="areas, which the torchsde path does not have"):
        next(iter(increments_and_areas(without, torch.tensor([0.0, 1.0]), Y)))
