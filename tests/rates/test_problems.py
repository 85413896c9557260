"""The toy problems are what their docstrings say: level errors, costs, exact solutions and laws."""

import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import multilevel_sde as mls
from multilevel_sde.noise.diffusion import as_noise
from multilevel_sde.rates.problem_parts import check_at_least, check_positive

problems = mls.problems
MEANS = torch.tensor([[1.0, -0.5, 0.3, 0.0], [-0.8, 0.4, 0.0, 1.0], [0.2, 0.9, -1.0, 0.5]], dtype=torch.float64)
PERTURBED = {
    "scaling_law": lambda **kw: problems.scaling_law(2.5, **{"levels": 5, "dimension": 4, **kw}),
    "ornstein_uhlenbeck": problems.ornstein_uhlenbeck,
    "geometric_brownian_motion": problems.geometric_brownian_motion,
    "decaying_noise": problems.decaying_noise,
    "double_well": problems.double_well,
    "gaussian_mixture": lambda **kw: problems.gaussian_mixture(MEANS, **kw),
}


def at(t):
    return torch.tensor(t, dtype=torch.float64)


@pytest.mark.parametrize("name", PERTURBED)
def test_level_k_errs_by_two_to_the_minus_k_and_neighbours_orthogonally(name):
    problem = PERTURBED[name]()
    x = problem.y0(16, seed=3)
    previous = None
    for t in (problem.t0, (problem.t0 + problem.t1) / 3):
        errors = [drift(x, at(t)) - problem.drift(x, at(t)) for drift in problem.ladder.drifts]
        for k, error in enumerate(errors, start=1):
            sizes = error.square().mean(1).sqrt()
            torch.testing.assert_close(sizes, torch.full_like(sizes, 2.0**-k), rtol=1e-10, atol=0.0)
        for k, (low, high) in enumerate(itertools.pairwise(errors), start=2):
            squared = (high - low).square().mean(1)
            torch.testing.assert_close(squared, torch.full_like(squared, 5 * 4.0**-k), rtol=1e-10, atol=0.0)
        if previous is not None:
            assert all((a - b).abs().max() > 1e-3 for a, b in zip(previous, errors, strict=True))  # depends on t
        assert all(error.std(0).max() > 1e-3 for error in errors)  # depends on x
        previous = errors


def test_costs_follow_gamma():
    assert problems.scaling_law(1.5, levels=3).ladder.costs == (2**1.5, 2**3.0, 2**4.5)
    assert problems.quadrature(3, nodes=(2, 5)).ladder.costs == (8.0, 125.0)


@pytest.mark.parametrize(
    "problem",
    [problems.scaling_law(3.0), problems.quadrature(2), problems.gaussian_mixture(MEANS[:1], std=0.4)],
    ids=["scaling_law", "quadrature", "gaussian_mixture"],
)
def test_exact_solution_of_an_ode_starts_at_y0_and_satisfies_it(problem):
    y0 = problem.y0(8)
    torch.testing.assert_close(problem.exact(y0, problem.t0, None), y0, rtol=1e-12, atol=1e-12)
    h = 1e-5
    for t in torch.linspace(problem.t0, problem.t1, 5)[1:-1].tolist():
        slope = (problem.exact(y0, t + h, None) - problem.exact(y0, t - h, None)) / (2 * h)
        x = problem.exact(y0, t, None)
        torch.testing.assert_close(slope, problem.drift(x, at(t)), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("dimension", [1, 3])
def test_quadrature_errs_like_the_midpoint_rule(dimension):
    """The rule integrates exactly to -A_n sin(x), and its error falls like n^-2 at n^D nodes: gamma = D / 2."""
    nodes = (2, 4, 8, 16)
    problem = problems.quadrature(dimension, nodes=nodes)
    x, t = problem.y0(8), at(0.0)
    errors = []
    for n, drift in zip(nodes, problem.ladder.drifts, strict=True):
        factor = (math.sin(1.0) / (n * math.sin(1.0 / n))) ** dimension
        torch.testing.assert_close(drift(x, t), -factor * torch.sin(x), rtol=1e-12, atol=1e-13)
        errors.append(float((drift(x, t) - problem.drift(x, t)).abs().mean()))
    order = math.log2(errors[2] / errors[3])
    assert abs(order - 2) < 0.02
    gamma = math.log2(problem.ladder.costs[3] / problem.ladder.costs[2]) / order
    assert abs(gamma - dimension / 2) < 0.02


def test_quadrature_sums_in_parts_what_it_sums_at_once():
    drift = problems.quadrature(3, nodes=(32,)).ladder.drifts[0]  # 32768 nodes: three parts for 4 x 6 components
    x, t = problems.quadrature(3).y0(6), at(0.0)
    torch.testing.assert_close(drift(x, t), torch.cat([drift(row[None], t) for row in x]), rtol=1e-12, atol=1e-13)


class SineCount(TorchDispatchMode):
    """Counts the sines that are really computed."""

    sines = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.sin.default:
            self.sines += args[0].numel()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("n", [4, 32])
def test_quadrature_computes_every_node(n):
    """The work is n^D sines a component, so that the time of a call grows with the stated cost."""
    problem = problems.quadrature(3, nodes=(n,))
    x = problem.y0(7)
    with SineCount() as count:
        problem.ladder.drifts[0](x, at(0.0))
    assert count.sines == problem.ladder.costs[0] * x.numel()


def test_pathwise_solutions_satisfy_ito_formula():
    """dx = f dt + g dW with dW^2 = dt: for x = F(t, W), g = dF/dW and f = dF/dt + F'' / 2."""
    y0, t = torch.full((1, 1), 1.3, dtype=torch.float64), 0.4
    w = torch.full((1, 1), 0.7, dtype=torch.float64)
    for problem in (problems.geometric_brownian_motion(), problems.decaying_noise()):
        assert torch.equal(problem.exact(y0, 0.0, 0 * w), y0)
        h = 1e-4
        x, up, down = (problem.exact(y0, t, w + shift) for shift in (0.0, h, -h))
        rate = (problem.exact(y0, t + h, w) - problem.exact(y0, t - h, w)) / (2 * h)
        time = at(t)
        torch.testing.assert_close(problem.drift(x, time), rate + (up - 2 * x + down) / (2 * h**2), rtol=1e-6, atol=0)
        unit = as_noise(problem.diffusion)(x, time, torch.ones_like(x))
        torch.testing.assert_close(unit, (up - down) / (2 * h), rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    "problem", [problems.ornstein_uhlenbeck(), problems.geometric_brownian_motion(sigma=0.3)], ids=["ou", "gbm"]
)
def test_law_is_that_of_a_fine_path(problem):
    """Mean and variance of 4096 fine paths; 5 standard errors (kurtosis below 8 for the log-normal) plus the step."""
    samples, steps = 4096, 200
    y0, times = problem.y0(1).expand(samples, -1), problem.times(steps)
    plan = mls.em_plan(problem.limit, times)
    brownian = mls.BrownianPath(range(samples))
    y = mls.solve(problem.limit, y0, times, plan, diffusion=problem.diffusion, brownian=brownian).y
    mean, variance = problem.law(y0[:1], 1.0)
    assert ((y.mean(0) - mean[0]).abs() < 5 * (variance / samples).sqrt() + 2 / steps).all()
    assert ((y.var(0) / variance - 1).abs() < 5 * math.sqrt(7 / samples) + 2 / steps).all()


def test_double_well_is_reversible():
    """The stationary density exp(-V / tau) satisfies f = (sigma^2 / 2) grad log rho."""
    problem = problems.double_well(temperature=0.3)
    x = problem.y0(16).requires_grad_()
    (score,) = torch.autograd.grad(problem.log_density(x).sum(), x)
    torch.testing.assert_close(problem.drift(x.detach(), at(0.0)), problem.diffusion**2 / 2 * score)


@pytest.mark.parametrize(("stochastic", "share"), [(False, 0.5), (True, 1.0)])
def test_mixture_drift_has_the_exact_score(stochastic, share):
    problem = problems.gaussian_mixture(MEANS, std=0.4, stochastic=stochastic)
    x = problem.y0(16).requires_grad_()
    for t in (0.0, 0.1, 1.0, 4.0):
        variance = math.exp(-t) * 0.4**2 + 1 - math.exp(-t)
        distance = (x[:, None] - math.exp(-t / 2) * MEANS).square().sum(-1)
        (score,) = torch.autograd.grad(torch.logsumexp(-distance / (2 * variance), dim=1).sum(), x)
        expected = -(x / 2 + share * score)
        torch.testing.assert_close(problem.drift(x, at(t)).detach(), expected.detach())


@pytest.mark.parametrize("stochastic", [False, True])
def test_mixture_runs_back_to_the_data(stochastic):
    """Moments of 4096 samples within 5 standard errors (kurtosis below 3 between separate modes) plus the step."""
    problem = problems.gaussian_mixture(MEANS, std=0.4, stochastic=stochastic)
    samples, steps = 4096, 400
    y0, times = problem.y0(samples), problem.times(steps)
    plan = mls.em_plan(problem.limit, times)
    brownian = mls.BrownianPath(range(samples)) if stochastic else None
    y = mls.solve(problem.limit, y0, times, plan, diffusion=problem.diffusion, brownian=brownian).y
    for t, state in ((problem.t0, y0), (problem.t1, y)):
        mean, variance = problem.law(y0, t)
        assert ((state.mean(0) - mean).abs() < 5 * (variance / samples).sqrt() + 4 / steps).all()
        assert ((state.var(0) / variance - 1).abs() < 5 * math.sqrt(2 / samples) + 4 / steps).all()


def test_counters_agree_with_the_plan():
    problem = problems.scaling_law(3.0, levels=3, diffusion=0.5)
    times, samples = problem.times(64), 6
    p = mls.TheoremSchedule(3.0).probabilities(problem.ladder, times, scale=4.0)
    common = {"diffusion": 0.5, "brownian": mls.BrownianPath(range(samples))}
    generator = torch.Generator().manual_seed(0)
    shared = mls.draw_plan(p, mls.independent, generator=generator)
    mls.solve(problem.ladder, problem.y0(samples), times, shared, **common)
    assert [drift.calls for drift in problem.ladder.drifts] == shared.evaluations.tolist()
    assert [drift.rows for drift in problem.ladder.drifts] == (samples * shared.evaluations).tolist()
    for drift in problem.ladder.drifts:
        drift.reset()
    own = mls.draw_plan(p, mls.independent, generator=generator, samples=samples)
    mls.solve(problem.ladder, problem.y0(samples), times, own, **common)
    assert [drift.rows for drift in problem.ladder.drifts] == own.evaluations.sum(0).tolist()


def test_initial_states_depend_on_the_seed_only():
    problem = problems.gaussian_mixture(MEANS)
    torch.manual_seed(1)
    first = problem.y0(4, seed=5)
    torch.manual_seed(2)
    assert torch.equal(first, problem.y0(4, seed=5))
    assert not torch.equal(first, problem.y0(4, seed=6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PERTURBED)
def test_drifts_keep_the_dtype_of_the_state(name, dtype):
    problem = PERTURBED[name]()
    x, t = problem.y0(3).to(dtype), at(0.5)
    assert all(drift(x, t).dtype == dtype for drift in (*problem.ladder.drifts, problem.drift))


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: problems.scaling_law(0.0), "gamma"),
        (lambda: problems.scaling_law(3.0, levels=0), "levels"),
        (lambda: problems.scaling_law(3.0, dimension=5), "dimension"),
        (lambda: problems.quadrature(0), "dimension"),
        (lambda: problems.quadrature(1, nodes=(4, 2)), "nodes"),
        (lambda: problems.ornstein_uhlenbeck(theta=-1.0), "theta"),
        (lambda: problems.double_well(temperature=0.0), "temperature"),
        (lambda: problems.gaussian_mixture(torch.zeros(4)), "means"),
        (lambda: problems.scaling_law(3.0).times(0), "steps"),
        (lambda: problems.scaling_law(3.0).y0(0), "samples"),
        (lambda: check_positive(kappa=math.nan), "kappa"),
        (lambda: check_at_least(2, parts=1), "parts"),
    ],
)
def test_errors_name_the_argument(call, argument):
    with pytest.raises(ValueError, match=f'^"{argument}"'):
        call()
