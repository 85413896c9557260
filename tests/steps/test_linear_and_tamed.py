"""Exponential and tamed Euler: exact where they promise it, bounded where Euler-Maruyama is not, and their errors."""

import math

import pytest
import torch

import multilevel_sde as mls

DOUBLE = torch.float64


def states(samples=4):
    return torch.linspace(-1.0, 1.5, 3 * samples, dtype=DOUBLE).reshape(samples, 3)


def solve(ladder, y0, times=(0.0, 0.25, 0.5, 1.0), **options):
    return mls.solve(ladder, y0, times, mls.em_plan(ladder, times), step=mls.TamedEuler(), **options)


def test_the_exponential_rule_is_exact_for_a_linear_drift_with_a_constant():
    """y' = A y + b for a matrix with complex eigenvalues and one of 0."""
    A = torch.tensor([[-50.0, 20.0, 0.0], [-20.0, -50.0, 0.0], [0.0, 0.0, 0.0]], dtype=DOUBLE)
    b, y0 = torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE), states(1)
    ladder, times = mls.Ladder([lambda y, t: b.expand_as(y)], [1.0]), [0.0, 0.1, 0.2, 0.5]
    y = mls.solve(ladder, y0, times, mls.em_plan(ladder, times), step=mls.ExponentialEuler(A)).y
    whole = torch.zeros(4, 4, dtype=DOUBLE)
    whole[:3, :3], whole[:3, 3] = A, b
    exact = torch.matrix_exp(0.5 * whole) @ torch.cat([y0[0], torch.ones(1, dtype=DOUBLE)])
    torch.testing.assert_close(y[0], exact[:3], rtol=1e-11, atol=1e-13)


def test_taming_keeps_a_cubic_drift_where_euler_explodes():
    ladder, y0 = mls.Ladder([lambda y, t: -(y**3)], [1.0]), torch.full((2, 1), 8.0, dtype=DOUBLE)
    times, path = torch.linspace(0.0, 1.0, 17, dtype=DOUBLE), mls.BrownianPath([0, 1])
    given = {"diffusion": 0.5, "brownian": path}
    assert solve(ladder, y0, times, **given).y.abs().max() < 8
    with pytest.raises(mls.NonFiniteError):
        mls.solve(ladder, y0, times, mls.em_plan(ladder, times), **given)


def test_taming_is_of_each_sample():
    ladder, y0 = mls.Ladder([lambda y, t: -(y**3)], [1.0]), states()
    whole, some = solve(ladder, y0).y, solve(ladder, y0[:2]).y
    assert torch.equal(whole[:2], some)


@pytest.mark.parametrize(
    ("A", "error", "message"),
    [
        (torch.ones(2, 3), ValueError, r'"A" must be a square matrix \(d, d\) or have another number of axes'),
        (math.nan, ValueError, '"A" must be finite'),
        ("stiff", TypeError, '"A" must be a tensor or nested lists of real numbers, got str'),
    ],
)
def test_a_linear_part_that_is_none_is_refused(A, error, message):
    with pytest.raises(error, match=message):
        mls.ExponentialEuler(A)


@pytest.mark.parametrize("A", [torch.eye(3), torch.ones(3), torch.ones(1, 4, 1, 2)])
def test_a_linear_part_of_another_size_than_the_state_is_refused(A):
    times = [0.0, 1.0]
    ladder = mls.Ladder([lambda y, t: y], [1.0])
    with pytest.raises(ValueError, match=r'"A" of shape .* does not fit a state of shape \(4, 1\); give a matrix'):
        mls.solve(ladder, torch.ones(4, 1), times, mls.em_plan(ladder, times), step=mls.ExponentialEuler(A))
