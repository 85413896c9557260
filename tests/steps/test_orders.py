"""Convergence orders of the solver against closed-form solutions, and its agreement with torchsde."""

import math

import pytest
import torch
import torchsde

import multilevel_sde as mls
from multilevel_sde.testing import check_order


# The band is 0.1: over ten sets of 2048 paths two standard deviations of the slope are at most 0.03 (multiplicative
# noise), and the next term of the expansion moves it by at most 0.03.
@pytest.mark.parametrize(
    ("name", "options", "order"),
    [
        ("scaling_law", {"gamma": 3.0}, 1.0),
        ("quadrature", {"dimension": 2}, 1.0),
        ("gaussian_mixture", {"means": torch.ones(1, 4)}, 1.0),
        ("decaying_noise", {"alpha": 4.0}, 1.0),
        ("geometric_brownian_motion", {}, 0.5),
    ],
)
def test_strong_order_of_euler_maruyama(name, options, order):
    check_order(mls.euler_maruyama, getattr(mls.problems, name)(**options), order, tolerance=0.1)


def test_plan_with_all_probabilities_one_is_euler_maruyama_on_the_top_level():
    problem = mls.problems.scaling_law(3.0, levels=4, diffusion=0.5)
    times, y0 = problem.times(50), problem.y0(8)
    common = {"diffusion": 0.5, "brownian": mls.BrownianPath(range(8))}
    ladder = problem.ladder
    certain = mls.draw_plan(torch.ones(50, 4), mls.independent, generator=torch.Generator().manual_seed(0))
    multilevel = mls.solve(ladder, y0, times, certain, **common)
    plain = mls.solve(ladder.top(), y0, times, mls.em_plan(ladder.top(), times), **common)
    assert torch.equal(multilevel.y, plain.y)
    assert [drift.calls for drift in ladder.drifts] == [0, 0, 0, 100]


class Pendulum:
    """A torchsde SDE with each supported noise type; three components, two Brownian motions where additive."""

    sde_type = "ito"

    def __init__(self, noise_type):
        self.noise_type = noise_type

    def f(self, t, y):
        return torch.sin(t) - torch.sin(y)

    def g(self, t, y):
        if self.noise_type == "diagonal":
            return 0.3 * torch.cos(y) + 0.1 * t
        if self.noise_type == "scalar":
            return (0.3 * torch.cos(y) + 0.1 * t).unsqueeze(-1)
        matrix = torch.tensor([[0.3, 0.1], [0.0, 0.2], [-0.1, 0.4]], dtype=y.dtype)
        return matrix.expand(len(y), 3, 2) * (1 + t)


@pytest.mark.parametrize(("noise_type", "channels"), [("diagonal", 3), ("scalar", 1), ("additive", 2)])
def test_one_level_is_torchsde_euler_on_the_same_path(noise_type, channels):
    steps, samples = 64, 5
    times = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64)
    y0 = torch.linspace(-2.0, 2.0, samples * 3, dtype=torch.float64).reshape(samples, 3)
    bm = torchsde.BrownianInterval(
        t0=0.0, t1=1.0, size=(samples, channels), dtype=torch.float64, entropy=7, dt=1 / steps
    )
    sde = Pendulum(noise_type)
    theirs = torchsde.sdeint(sde, y0, times[[0, -1]], bm=bm, method="euler", dt=1 / steps)[-1]
    ladder, diffusion = mls.from_torchsde([sde])
    plan = mls.em_plan(ladder, times)
    ours = mls.solve(ladder, y0, times, plan, diffusion=diffusion, brownian=mls.TorchSDEBrownian(bm)).y
    assert (ours - y0).abs().min() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-13)


def test_euler_maruyama_on_an_ornstein_uhlenbeck_process_has_its_discrete_law():
    """Var of EM: sigma^2 eta (1 - a^{2N}) / (1 - a^2), a = 1 - theta eta; five standard errors, p < 1e-6."""
    theta, sigma, steps, samples = 2.0, 0.7, 5, 4096
    problem = mls.problems.ornstein_uhlenbeck(theta, sigma)
    y0 = problem.y0(1).expand(samples, -1)
    times = problem.times(steps)
    plan = mls.em_plan(problem.limit, times)
    y = mls.solve(problem.limit, y0, times, plan, diffusion=sigma, brownian=mls.BrownianPath(range(samples))).y
    a = 1 - theta / steps
    variance = sigma**2 / steps * (1 - a ** (2 * steps)) / (1 - a**2)
    assert ((y - a**steps * y0).mean(0).abs() < 5 * math.sqrt(variance / samples)).all()
    assert (y.var(0) / variance - 1).abs().max() < 5 * math.sqrt(2 / samples)
    assert abs(variance / float(problem.law(y0, 1.0)[1]) - 1) > 5 * math.sqrt(
        2 / samples
    )  # the two laws are told apart
