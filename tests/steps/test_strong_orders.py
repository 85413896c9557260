"""Strong orders by regression, a problem for each kind of noise; docs/orders.md is the same table with more paths.

The band is 0.1, the seed 0. `check_order` itself refuses a slope whose standard error is above a quarter of the band,
so a false alarm is beyond four standard errors; problems are of :mod:`multilevel_sde.rates.noise_problems`.
"""

import pytest
import torch

import multilevel_sde as mls
from multilevel_sde.rates.noise_problems import noise_problems
from multilevel_sde.testing import check_order

COARSE = {"steps": (8, 16, 32, 64)}  # where a fine path is the reference
ITO = [
    (mls.euler_maruyama, {"scalar": 0.5, "diagonal": 0.5}),
    (mls.Heun(), {"scalar": 0.5, "diagonal": 0.5}),
    (mls.Midpoint(), {"diagonal": 0.5}),
    (mls.Milstein(), {"solved": 1.0, "scalar": 1.0, "diagonal": 1.0, "commutative": 1.0}),
    (mls.Milstein(gradient_free=True), {"scalar": 1.0, "diagonal": 1.0, "commutative": 1.0}),
    (mls.SRA1(), {"additive": 1.5}),
    (mls.TamedEuler(), {"solved": 1.0, "diagonal": 0.5}),
]
STRATONOVICH = [
    (rule, {"additive": 1.0, "scalar": 1.0, "diagonal": 1.0, "commutative": 1.0})
    for rule in (
        mls.Milstein(stratonovich=True),
        mls.Milstein(stratonovich=True, gradient_free=True),
        mls.EulerHeun(),
        mls.StratonovichHeun(),
        mls.StratonovichMidpoint(),
    )
]
CASES = [
    pytest.param(rule, sense, name, order, id=f"{getattr(rule, '__name__', rule)}-{name}")
    for sense, rules in ((False, ITO), (True, STRATONOVICH))
    for rule, orders in rules
    for name, order in orders.items()
]


@pytest.mark.parametrize(("rule", "sense", "name", "order"), CASES)
def test_strong_order(rule, sense, name, order):
    options = COARSE if name == "additive" else {}
    if isinstance(rule, mls.SRA1):
        options = {"steps": (16, 32, 64)}  # its next term is large at 8
    samples = 2048 if sense or order == 0.5 else 512
    check_order(rule, noise_problems(stratonovich=sense)[name], order, samples=samples, **options)


def test_order_two_where_the_areas_cancel():
    """On the additive problem with a solution in W(t) alone the areas of the steps drop out."""
    check_order(mls.SRA1(), noise_problems()["solved"], 2.0)


@pytest.mark.parametrize(("rule", "sense"), [(mls.Milstein(), False), (mls.EulerHeun(), True)], ids=str)
def test_noise_that_does_not_commute_has_order_one_half(rule, sense):
    """No rule that knows dW alone can do better (Clark and Cameron 1980)."""
    check_order(rule, noise_problems(stratonovich=sense)["general"], 0.5, samples=256, tolerance=0.15, **COARSE)


@pytest.mark.parametrize("A", [-3.0, torch.diag(torch.tensor([-3.0, -2.0, -1.0, 0.0]))], ids=["number", "matrix"])
def test_strong_order_one_of_the_exponential_rule(A):
    """The additive problem, its drift split into A x and the rest."""
    problem = noise_problems()["solved"]
    apply = (lambda x: A * x) if isinstance(A, float) else (lambda x: x @ A.to(x))
    rest = mls.problems.Counted(lambda x, t: problem.drift(x, t) - apply(x))
    split = mls.problems.Problem(problem.ladder, rest, problem.initial, problem.diffusion, exact=problem.exact)
    check_order(mls.ExponentialEuler(A), split, 1.0)
