"""All checks on drifts that differentiate inside, as forces from energies do: same result as the force written out."""

import dataclasses

import pytest
import torch

import multilevel_sde as mls
from multilevel_sde.rates.problem_parts import Counted
from multilevel_sde.testing import check_ladder, check_order, check_rates, check_unbiased

MATRIX = torch.eye(4, dtype=torch.float64)
Y = torch.linspace(-1.0, 1.0, 12, dtype=torch.float64).reshape(3, 4)


def products(x, count):
    for _ in range(count):
        x = x @ MATRIX
    return x


def written(scale, count):
    return lambda x, t: -scale * products(x, count)


def detached(scale, count):
    """It makes a variable of its own."""

    def drift(y, t):
        x = y.detach().requires_grad_(True)
        energy = 0.5 * scale * (x * products(x.detach(), count) * 2).sum()
        return -torch.autograd.grad(energy, x)[0]

    return drift


def in_place(scale, count):
    """It asks for the gradient of the state that it is given."""

    def drift(y, t):
        x = y.requires_grad_(True)
        return -torch.autograd.grad(0.5 * scale * (x * products(x.detach(), count) * 2).sum(), x)[0]

    return drift


def ladder_of(make):
    return mls.Ladder([make(0.8, 1), make(0.95, 4), make(1.0, 16)], costs=[1.0, 4.0, 16.0])


@pytest.mark.parametrize("make", [detached, in_place])
def test_checks_are_those_of_the_force_written_out(make):
    table = torch.tensor([[1.0, 0.5, 0.2]])
    for check in (
        lambda kind: check_ladder(ladder_of(kind), Y, [0.0, 0.5]),
        lambda kind: check_unbiased(ladder_of(kind), Y[:1], 0.5, table),
        lambda kind: check_rates(
            mls.Ladder([kind(1.0 - 2.0**-k, 1) for k in range(1, 5)], [1.0, 2.0, 4.0, 8.0]), Y, 0.5, gamma=1.0
        ),
    ):
        assert check(make) == check(written)
    assert not Y.requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("make", [detached, in_place])
def test_the_order_of_a_step_on_such_a_drift(make):
    linear = mls.problems.scaling_law(gamma=3.0)
    problems = [
        dataclasses.replace(linear, ladder=mls.Ladder([drift], [1.0]), drift=Counted(drift), exact=None)
        for drift in (make(1.0, 1), written(1.0, 1))
    ]
    inside, outside = (
        check_order(mls.Heun(), dataclasses.replace(one, initial=start), 2.0, steps=(8, 16, 32), samples=16)
        for one in problems
    )
    assert inside == outside


def start(samples, generator):
    return torch.randn(samples, 4, generator=generator, dtype=torch.float64)
