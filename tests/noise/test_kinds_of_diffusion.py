"""What may be a diffusion: numbers of Python, NumPy and torch, functions, modules; and what may not."""

import math

import numpy as np
import pytest
import torch

import multilevel_sde as mls

TIMES = torch.linspace(0.0, 1.0, 11)
PATH = mls.BrownianPath(range(2))


class Constant(torch.nn.Module):
    def forward(self, y, t):
        return 0.1 * torch.ones_like(y)


class OfTime(torch.nn.Module):
    def forward(self, t):
        return 0.1


class Callable:
    def __call__(self, y, t):
        return 0.1


class Anything(torch.nn.Module):
    def forward(self, *arguments):
        return 0.1


def final(diffusion, dtype=torch.float32):
    ladder = mls.Ladder([lambda y, t: -y], costs=[1.0])
    y0, plan = torch.ones(2, 3, dtype=dtype), mls.em_plan(ladder, TIMES)
    return mls.solve(ladder, y0, TIMES, plan, diffusion=diffusion, brownian=PATH).y


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "diffusion",
    [
        np.float64(0.1),
        np.float32(0.1),
        np.array(0.1),
        np.array([0.1], dtype=np.float32),
        torch.tensor(0.1),
        torch.tensor([0.1], dtype=torch.float64),
        Constant(),
        OfTime(),
        Callable(),
    ],
    ids=lambda value: f"{type(value).__name__} {getattr(value, 'dtype', '')}",
)
def test_all_kinds_are_the_number_that_they_hold(diffusion, dtype):
    y = final(diffusion, dtype)
    assert y.dtype == dtype
    assert torch.allclose(y, final(0.1, dtype), atol=1e-7)


def test_whole_numbers_of_numpy_and_torch():
    for one in (np.int64(1), torch.tensor(1), 1, np.array([1])):
        assert torch.equal(final(one), final(1.0))


def test_a_tensor_may_require_a_gradient():
    sigma = torch.tensor(0.1, requires_grad=True)
    final(sigma).sum().backward()
    assert float(sigma.grad) == pytest.approx(float((final(1.0) - final(0.0)).sum()), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("diffusion", "error", "message"),
    [
        (lambda y, t: None, TypeError, "must return a number or a tensor that multiplies increments of shape (2, 3)"),
        (lambda t: None, TypeError, "must return a number or a tensor that multiplies increments of shape (2, 3)"),
        (lambda t: "a", TypeError, "must return a number or a tensor that multiplies increments of shape (2, 3)"),
        (lambda t: [0.1], TypeError, "must return a number or a tensor that multiplies increments of shape (2, 3)"),
        (lambda y, t: torch.ones(7), ValueError, "increments of shape (2, 3), and what it returned does not (The size"),
        (lambda y, t: torch.ones(3, 2, 3), ValueError, '"brownian" give noise of shape (3, 2, 3) for a state of shape'),
        (mls.NoiseTerm(lambda y, t, dW: None), TypeError, '"brownian" must give noise as a Tensor, got NoneType'),
    ],
)
def test_functions_that_return_no_diffusion_are_named(diffusion, error, message, dtype):
    with pytest.raises(error) as caught:
        final(diffusion, dtype)
    assert str(caught.value).startswith('"diffusion"')
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "diffusion", [lambda y, t: y @ y, lambda t: None + t, mls.NoiseTerm(lambda y, t, dW: torch.ones(7) * dW)]
)
def test_errors_inside_a_diffusion_are_its_own(diffusion):
    with pytest.raises((TypeError, RuntimeError)) as caught:
        final(diffusion)
    assert '"diffusion"' not in str(caught.value)


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, np.float32("nan"), torch.tensor(math.inf), torch.tensor(math.nan)]
)
def test_numbers_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match=f'"diffusion" must be finite, got {float(value)}'):
        final(value)


@pytest.mark.parametrize(
    "value", [True, "0.1", torch.ones(3), np.ones(3), torch.tensor(1j), torch.tensor(True), Anything(), [0.1]]
)
def test_what_is_no_diffusion_is_refused_with_advice(value):
    with pytest.raises(TypeError, match=r'"diffusion" must be None, a number, .* one or two positional arguments'):
        final(value)
