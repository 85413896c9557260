"""Cost models: what a FLOP and a second are, and which calls a measurement makes."""

import itertools
import time

import pytest
import torch

import multilevel_sde as mls


@pytest.mark.parametrize(("batch", "width_in", "width_out"), [(1, 3, 5), (4, 8, 8)])
def test_flops_of_a_linear_layer(batch, width_in, width_out):
    weight = torch.ones(width_out, width_in)
    counted = mls.FlopCost(torch.zeros(batch, width_in))([lambda x, t: x @ weight.T])
    assert counted == [2.0 * batch * width_in * width_out]


def test_flops_of_a_convolution():
    convolution = torch.nn.Conv2d(3, 7, kernel_size=3, padding=1)
    (counted,) = mls.FlopCost(torch.zeros(2, 3, 8, 8))([lambda x, t: convolution(x)])
    assert counted == 2 * 2 * 7 * 3 * 9 * 8 * 8


def test_flops_of_attention_are_its_two_matrix_products():
    """A CPU's fused kernel is invisible to the counter."""

    def attention(x, t):
        return torch.nn.functional.scaled_dot_product_attention(x, x, x)

    assert mls.FlopCost(torch.ones(1, 2, 8, 4))([attention]) == [2 * 2.0 * 2 * 8 * 8 * 4]


def test_flops_price_a_ladder():
    small, large = torch.nn.Linear(4, 4), torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Linear(16, 4))
    ladder = mls.Ladder([lambda x, t: small(x), lambda x, t: large(x)], costs=mls.FlopCost(torch.zeros(1, 4)))
    assert ladder.costs == (32.0, 256.0)
    assert ladder.unit == "FLOPs"


@pytest.mark.parametrize("model", [mls.FlopCost, mls.SecondsCost])
def test_a_measurement_passes_a_0d_time_in_the_grad_mode_of_the_caller(model):
    weight = torch.ones(2, 2, requires_grad=True)
    seen = []

    def drift(x, t):
        y = x @ weight
        seen.append((t.dim(), float(t), y.requires_grad))
        return y

    model(torch.zeros(1, 2), t=0.25)([drift])
    assert set(seen) == {(0, 0.25, True)}
    seen.clear()
    with torch.no_grad():
        model(torch.zeros(1, 2), t=0.25)([drift])
    assert set(seen) == {(0, 0.25, False)}


@pytest.mark.parametrize("model", [mls.FlopCost, mls.SecondsCost])
def test_a_measurement_gives_drifts_their_conditions_and_lets_them_differentiate_inside(model):
    seen = []

    def force(x, t, label):
        seen.append(label)
        x = x.detach().requires_grad_()
        return torch.autograd.grad((x @ torch.ones(2, 2)).square().sum() * label.sum(), x)[0]

    labels = torch.tensor([1.0, 2.0])
    (cost,) = model(torch.ones(2, 2), conditions={"label": labels})([force])
    assert cost > 0
    assert all(label is labels for label in seen)
    with pytest.raises(ValueError, match=r'"conditions" has "label" of shape \(2,\), expected one row for each of 3'):
        model(torch.ones(3, 2), conditions={"label": labels})


def test_seconds_are_the_median_of_the_calls_after_the_warm_up(monkeypatch):
    lengths = iter([1.0, 7.0, 2.0, 3.0, 100.0])
    readings = itertools.chain.from_iterable((10.0, 10.0 + length) for length in lengths)
    monkeypatch.setattr(time, "perf_counter", lambda: next(readings))
    calls = []
    (seconds,) = mls.SecondsCost(torch.zeros(1), calls=5, warmup=2)([lambda x, t: calls.append(1)])
    assert seconds == 3.0
    assert len(calls) == 7


def test_own_cost_models_are_callables_with_a_unit():
    class Parameters:
        unit = "parameters"

        def __call__(self, drifts):
            return [10.0 ** (k + 1) for k, _ in enumerate(drifts)]

    ladder = mls.Ladder([torch.sin, torch.cos], costs=Parameters())
    assert ladder.costs == (10.0, 100.0)
    assert ladder.unit == "parameters"
