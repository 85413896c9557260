"""Laws of the multistep weights: moments by quadrature, exactness on polynomials, published coefficients."""

import itertools
import math

import numpy as np
import pytest
import torch

import multilevel_sde as mls
from multilevel_diffusion.process.grids import karras, uniform
from multilevel_diffusion.process.multistep import (
    corrected_weights,
    exact_moments,
    midpoint_moments,
    multistep_weights,
    rescaled_moments,
)
from multilevel_diffusion.process.sa_solver import SASolver
from multilevel_diffusion.process.schedules import CosineSchedule, EDMSchedule, RectifiedFlowSchedule
from multilevel_diffusion.process.steps import ExponentialStep
from multilevel_sde.steps.adams import interpolation_weights

POINTS, WEIGHTS = np.polynomial.legendre.leggauss(200)


def quadrature(z, q):
    """E[v^q] of the density proportional to e^{z v} on [0, 1], on 200 panels towards both ends of 200 points each."""
    edges = np.concatenate([np.geomspace(1e-9, 0.5, 100), 1 - np.geomspace(0.5, 1e-9, 100)[1:]])
    edges = np.concatenate([[0.0], edges, [1.0]])
    total = moment = 0.0
    for a, b in itertools.pairwise(edges):
        v = a + (b - a) * (1 + POINTS) / 2
        density = WEIGHTS * (b - a) / 2 * np.exp(z * v - max(z, 0.0))
        total, moment = total + density.sum(), moment + (density * v**q).sum()
    return moment / total


@pytest.mark.parametrize("z", [1e-12, 1e-6, 1e-3, 0.02, 0.3, 1.9, 2.0, 2.1, 7.0, 40.0, 300.0])
@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["data", "noise"])
def test_moments_are_the_integrals_to_rounding(z, sign):
    moments = exact_moments(sign * z, 5)
    assert moments == pytest.approx([quadrature(sign * z, q) for q in range(5)], rel=2e-13)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_weights_integrate_polynomials_of_lower_degree(order):
    nodes = [0.0, -0.7, -2.0, -2.5][:order]
    weights = interpolation_weights(nodes, exact_moments(1.3, order))
    for q in range(order):
        power = sum(w * v**q for w, v in zip(weights, nodes, strict=True))
        assert power == pytest.approx(exact_moments(1.3, order)[q], rel=1e-12)
    beyond = sum(w * v**order for w, v in zip(weights, nodes, strict=True))
    assert abs(beyond - exact_moments(1.3, order + 1)[order]) > 0.01


@pytest.mark.parametrize("tau", [0.0, 0.7, lambda t: 1.0 if t > 0.4 else 0.0], ids=["ode", "sde", "switch"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("schedule", "grid"), [(CosineSchedule(), uniform), (EDMSchedule(), karras), (RectifiedFlowSchedule(), uniform)]
)
def test_rows_sum_to_one_and_orders_rise_at_the_start(schedule, grid, order, tau):
    times = grid(schedule, 9)
    weights = multistep_weights(schedule, tau, times, order)
    torch.testing.assert_close(weights.sum(1), torch.ones(9, dtype=torch.float64), rtol=0, atol=1e-11)
    first = 1 if math.isfinite(schedule.log_snr(float(times[0]))) else 0  # a node at alpha = 0 is left out
    used = [min(order, max(1, n + first)) for n in range(8)] + [1]
    assert (weights != 0).sum(1).tolist() == used
    final = multistep_weights(schedule, tau, times, order, lower_order_final=True)
    assert (final != 0).sum(1).tolist() == [min(m, 9 - n) for n, m in enumerate(used)]


@pytest.mark.parametrize("tau", [0.0, 0.6])
def test_order_two_is_what_the_papers_print(tau):
    """SA-Solver's b_j and its rescaling; DPM-Solver++(2M): (1 + 1/(2r)) D_n - 1/(2r) D_{n-1}, r = h_{n-1} / h_n."""
    schedule, times = EDMSchedule(), karras(EDMSchedule(), 7)
    places = [schedule.log_snr(t) for t in times.tolist()]
    k = 1 + tau**2
    exact, rescaled, midpoint = (
        multistep_weights(schedule, tau, times, 2, moments=moments)
        for moments in (exact_moments, rescaled_moments, midpoint_moments)
    )
    for n in range(1, 6):
        h, before = places[n + 1] - places[n], places[n] - places[n - 1]
        scale = k * math.exp(-k * places[n + 1]) / (1 - math.exp(-k * h))  # of b_j to w_j
        low, high = (math.exp(k * p) * (k * p - 1) / k**2 for p in places[n : n + 2])
        b1 = ((high - low) - places[n] * (math.exp(k * places[n + 1]) - math.exp(k * places[n])) / k) / -before
        q = math.exp(k * places[n + 1]) * (h**2 / 2 - (k * h - 1 + math.exp(-k * h)) / k**2)
        assert exact[n, 1].item() == pytest.approx(scale * b1, rel=1e-10)
        assert rescaled[n, 1].item() == pytest.approx(scale * (b1 - q / before), rel=1e-10)
        assert midpoint[n, 1].item() == pytest.approx(-h / before / 2, rel=1e-12)


def test_a_callable_tau_is_taken_where_a_step_starts():
    times = karras(EDMSchedule(), 7)
    places = times.tolist()
    switched = multistep_weights(EDMSchedule(), lambda t: 1.0 if t in places[::2] else 0.3, times, 3)
    for first, tau in enumerate((1.0, 0.3)):
        assert torch.equal(switched[first::2], multistep_weights(EDMSchedule(), tau, times, 3)[first::2])


def test_equal_places_are_one_node_and_a_step_of_no_length_has_order_one():
    """The cosine schedule has a floor: lambda is the same from t = 0.99997 to 1."""
    schedule, times = CosineSchedule(), [1.0, 0.99999, 0.99998, 0.7, 0.5, 0.3]
    weights = multistep_weights(schedule, 0.0, times, 4)
    assert (weights != 0).sum(1).tolist() == [1, 1, 1, 2, 3]
    torch.testing.assert_close(weights[2:, :3], multistep_weights(schedule, 0.0, times[2:], 3), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [0, 1.5, True, "2"])
def test_errors_name_the_argument(order):
    with pytest.raises(ValueError, match='"order"'):
        multistep_weights(CosineSchedule(), 0.0, [1.0, 0.5, 0.0], order)


@pytest.mark.parametrize("tau", [0.0, 0.7])
@pytest.mark.parametrize(("predictor", "corrector"), [(1, 1), (1, 2), (2, 2), (3, 4), (2, 1)])
def test_predictor_and_corrector_are_one_multistep_method(tau, predictor, corrector):
    schedule = CosineSchedule()
    ladder = mls.Ladder([lambda x, t: torch.tanh(1.3 * x) * (1 - t)], costs=[1.0])
    times = uniform(schedule, 12)
    rule = SASolver(schedule, tau, predictor=predictor, corrector=corrector, lower_order_final=False)
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = {"diffusion": 1.0, "brownian": mls.BrownianPath(seeds=range(3), grid=times)} if tau else {}
    expected = mls.solve(ladder, x, times, mls.em_plan(ladder, times, step=rule), step=rule, **noise).y
    plan = mls.multistep(mls.em_plan(ladder, times), corrected_weights(schedule, tau, times, predictor, corrector))
    found = mls.solve(ladder, x, times, plan, step=ExponentialStep(schedule, tau), **noise).y
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-14)
    assert not torch.allclose(expected, x.new_zeros(()))
