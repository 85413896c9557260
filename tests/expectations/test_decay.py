"""The bias that differences show, its bound, and the interval around it."""

import itertools

import pytest
import torch

from multilevel_sde.expectations.decay import Decay, Difference, half_width, slope


def exact(order, constant, counts, error=1e-9):
    def left(n):
        return torch.tensor([constant * n**-order], dtype=torch.float64)

    variance = torch.tensor([error**2], dtype=torch.float64)
    return [Difference(i, j, left(i) - left(j), variance) for i, j in itertools.pairwise(counts)]


@pytest.mark.parametrize("order", [0.5, 1.0, 2.0])
def test_the_order_of_known_differences_is_found(order):
    """It leans to 1 by less than half, as differences of coarse grids are hardly trusted."""
    decay = Decay.fit(exact(order, 3.0, [1, 2, 4, 8, 16, 32]))
    assert abs(decay.order.value - order) <= 0.49 * abs(order - 1) + 1e-9
    assert decay.order.low <= (order + 1) / 2 <= decay.order.high


@pytest.mark.parametrize("order", [0.75, 1.0, 1.5])
@pytest.mark.parametrize("constant", [0.2, -5.0])
def test_the_bound_holds_and_is_not_far(order, constant):
    decay = Decay.fit(exact(order, constant, [2, 4, 8, 16]))
    truth = abs(constant) * 16**-order
    assert truth < float(decay.beyond(16)) < 3 * truth
    assert float(decay.at_least(16)) < truth


def test_noise_leaves_the_order_near_one():
    decay = Decay.fit(exact(1.0, 1e-6, [2, 4, 8], error=1.0))
    assert decay.order.value == pytest.approx(1.0)
    assert decay.order.low < 0.6
    assert decay.order.high > 1.4
    assert float(decay.at_least(8)) == 0


def test_nothing_is_known_without_differences():
    assert Decay.fit([]) is None


@pytest.mark.parametrize("bias", [0.0, 0.3, 1.0, 30.0])
def test_the_interval_holds_as_often_as_it_says(bias):
    """Of 100000 normal errors around the bias; a standard error of the share is 0.0007."""
    z = torch.randn(100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    width = half_width(torch.tensor([1.0]), torch.tensor([bias]), 0.95)
    assert float(((z + bias).abs() <= width).double().mean()) == pytest.approx(0.95, abs=0.003)


def test_without_an_error_the_interval_is_the_bias():
    assert float(half_width(torch.zeros(1), torch.tensor([0.25]), 0.95)) == 0.25


def test_a_prior_counts_as_a_measurement():
    assert slope([0.0, 1.0], [0.0, 3.0], [1e-3, 1e-3], prior=(1.0, 0.5)).value == pytest.approx(3.0, abs=0.01)
    assert slope([0.0, 1.0], [0.0, 3.0], [1e3, 1e3], prior=(1.0, 0.5)).value == pytest.approx(1.0, abs=0.01)
