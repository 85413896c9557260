"""Laws of the gradient of a path: its mean against exact enumeration of all draws, its memory, its derivatives."""

import gc
import itertools
import math
import weakref

import pytest
import torch
from learn_ladders import nonlinear_ladder, seeded
from torch import Tensor

import multilevel_sde as mls
from multilevel_sde.learning.gradients import cost_gradient, path_gradient
from multilevel_sde.learning.learned_schedule import log_times

SHARE = 1e-3  # price of the cost in the enumerated loss


def affine_step(y: Tensor, estimate: Tensor, t: float, s: float, noise: Tensor | None) -> Tensor:
    """A step that is affine in the estimate but not Euler's, with its own coefficients and noise."""
    following = math.exp(s - t) * y + (1.3 * (s - t) + 0.1) * estimate
    return following if noise is None else following + (1 + t) * noise


class Enumerated:
    """The loss of a small problem as an exact sum over all draws, for one start and one path of the noise."""

    def __init__(self, levels, times, step, diffusion):
        self.ladder, self.times, self.step, self.diffusion = nonlinear_ladder(levels), times, step, diffusion
        steps = len(times) - 1
        logs = log_times(times, 0.1)
        self.features = torch.stack([logs, torch.ones_like(logs)], dim=1)
        choices = itertools.product([False, True], repeat=steps * (levels - 1))
        upper = torch.tensor(list(choices)).reshape(-1, steps, levels - 1).transpose(0, 1)
        self.hits = torch.cat([torch.ones_like(upper[..., :1]), upper], dim=2)
        self.theta = torch.linspace(-0.6, 0.4, 2 * (levels - 1), dtype=torch.float64).reshape(2, levels - 1)

    @property
    def draws(self) -> int:
        return self.hits.shape[1]

    def run(self, theta: Tensor, hits: Tensor, directions: Tensor):
        """The gradient's parts on given hits and directions, all samples with the same start and noise."""
        batch = hits.shape[1]
        brownian = None if self.diffusion is None else mls.BrownianPath([5] * batch)
        y0 = seeded([3]).expand(batch, -1)
        arguments = {"step": self.step, "diffusion": self.diffusion, "brownian": brownian}
        return path_gradient(self.ladder, y0, self.times, hits, theta, self.features, directions, **arguments)

    def table(self, theta: Tensor) -> Tensor:
        p = torch.sigmoid(self.features @ theta)
        return torch.cat([torch.ones(len(p), 1, dtype=torch.float64), p], dim=1)

    def chances(self, theta: Tensor) -> Tensor:
        """Probability of every draw."""
        p = self.table(theta)[:, None]
        return torch.where(self.hits, p, 1 - p).prod(2).prod(0)

    def loss(self, theta: Tensor) -> float:
        errors = self.run(theta, self.hits, torch.zeros(self.draws, *theta.shape, dtype=torch.float64)).errors
        price = SHARE * mls.expected_cost(self.ladder, self.table(theta), mls.independent)
        return float(self.chances(theta) @ errors) + price

    def finite_differences(self) -> Tensor:
        slopes = torch.zeros_like(self.theta)
        for i in range(slopes.numel()):
            change = torch.zeros_like(slopes)
            change.view(-1)[i] = 1e-4
            slopes.view(-1)[i] = (self.loss(self.theta + change) - self.loss(self.theta - change)) / 2e-4
        return slopes


UP = torch.tensor([0.0, 0.3, 0.7, 1.0], dtype=torch.float64)
CASES = {
    "ODE": (2, UP, mls.euler_maruyama, None),
    "SDE": (2, UP, mls.euler_maruyama, 0.5),
    "downwards, a step of its own": (2, UP.flip(0), affine_step, 1.0),
    "noise that depends on the state": (2, UP, mls.euler_maruyama, lambda y, t: 0.3 * y.sin() + t),
    "three levels": (3, UP[:3], mls.euler_maruyama, 0.5),
}


@pytest.mark.parametrize("case", CASES)
def test_the_mean_of_the_gradient_is_that_of_the_enumerated_loss(case):
    """Mean over all draws and over v in {sqrt(d) e_i}, for which E[v v'] = I exactly."""
    problem = Enumerated(*CASES[case])
    parameters = problem.theta.numel()
    mean = SHARE * cost_gradient(problem.ladder, problem.theta, problem.features)
    for i in range(parameters):
        v = torch.zeros(problem.draws, *problem.theta.shape, dtype=torch.float64)
        v.view(problem.draws, -1)[:, i] = math.sqrt(parameters)
        samples = problem.run(problem.theta, problem.hits, v).samples(baseline=False)
        mean += torch.einsum("b,bmk->mk", problem.chances(problem.theta), samples) / parameters
    truth = problem.finite_differences()
    assert (mean - truth).norm() < 1e-3 * truth.norm()
    assert ((mean - truth).abs() < 1e-5 * truth.norm()).all()


def test_the_baseline_leaves_the_mean_and_reduces_the_spread():
    """All batches of two draws, with their probabilities; the baseline is the other sample's error."""
    problem = Enumerated(*CASES["SDE"])
    zero = torch.zeros(problem.draws, *problem.theta.shape, dtype=torch.float64)
    one = problem.run(problem.theta, problem.hits, zero)
    chances = problem.chances(problem.theta)
    wanted = torch.einsum("b,bmk->mk", chances, one.samples(baseline=False))
    mean = torch.zeros_like(wanted)
    for a, b in itertools.product(range(problem.draws), repeat=2):
        pair = problem.run(problem.theta, problem.hits[:, [a, b]], zero[:2])
        mean += chances[a] * chances[b] * pair.samples().mean(0)
    assert torch.allclose(mean, wanted, rtol=1e-9, atol=1e-12)
    many = torch.multinomial(chances, 400, replacement=True, generator=torch.Generator().manual_seed(0))
    drawn = problem.run(problem.theta, problem.hits[:, many], zero[:1].expand(400, -1, -1))
    assert (drawn.samples().std(0) < drawn.samples(baseline=False).std(0)).all()


def test_the_mean_over_normal_directions_is_the_derivative():
    """50 000 directions; each parameter within 5 standard errors (about 1e-6 that any of 2 fails by chance)."""
    problem = Enumerated(*CASES["SDE"])
    v = torch.randn(50_000, 2, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    hits = problem.hits[:, 5:6].expand(-1, len(v), -1)
    found = problem.run(problem.theta, hits, v)
    estimates = found.slopes[:, None, None] * v

    def error(theta):
        return float(problem.run(theta, hits[:, :1], v[:1]).errors[0])

    for m in range(2):
        change = torch.zeros_like(problem.theta)
        change[m, 0] = 1e-4
        truth = (error(problem.theta + change) - error(problem.theta - change)) / 2e-4
        gap = abs(float(estimates[:, m].mean()) - truth)
        assert gap < 5 * float(estimates[:, m].std()) / math.sqrt(len(v))


def test_the_path_is_that_of_solve_with_the_same_hits():
    problem = Enumerated(*CASES["three levels"])
    p = problem.table(problem.theta)[:, None].expand(problem.hits.shape)
    plan = mls.Plan(problem.hits, torch.where(problem.hits, 1 / p, 0.0))
    y0 = seeded([3]).expand(problem.draws, -1)
    common = {"diffusion": 0.5, "brownian": mls.BrownianPath([5] * problem.draws)}
    y = mls.solve(problem.ladder, y0, problem.times, plan, **common).y
    x = mls.solve(problem.ladder, y0, problem.times, mls.em_plan(problem.ladder, problem.times), **common).y
    zero = torch.zeros(problem.draws, *problem.theta.shape, dtype=torch.float64)
    errors = problem.run(problem.theta, problem.hits, zero).errors
    assert torch.allclose(errors, (y - x).square().mean(1), rtol=1e-10, atol=1e-15)


def test_only_samples_that_need_a_network_are_evaluated():
    rows = {0: 0, 1: 0}

    def counting(level, drift):
        def counted(x, t):
            rows[level] += len(x)
            return drift(x, t)

        return counted

    drifts = nonlinear_ladder(2).drifts
    ladder = mls.Ladder([counting(k, drift) for k, drift in enumerate(drifts)], [1.0, 8.0])
    hits = torch.tensor([[[True, False]] * 9 + [[True, True]]] * 3)
    theta, features = torch.zeros(1, 1, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64)
    directions = torch.ones(10, 1, 1, dtype=torch.float64)
    path_gradient(ladder, seeded(range(10)), UP, hits, theta, features, directions)
    assert rows == {0: 30, 1: 3 + 30}  # the multilevel path, and the top level's path


@pytest.mark.parametrize("derivative", [mls.forward_mode, mls.central_difference])
def test_memory_does_not_grow_with_the_steps(derivative):
    """At most eight of the states and values that drifts see are alive at any time, however long the path."""
    alive, most = 0, {}

    def watch(x):
        nonlocal alive
        alive += 1
        weakref.finalize(x, freed)

    def freed():
        nonlocal alive
        alive -= 1

    def drift(k):
        def function(x, t):
            value = x.sin() * (1 + 0.1 * k)
            watch(x)
            watch(value)
            most[steps] = max(most.get(steps, 0), alive)
            return value

        return function

    ladder = mls.Ladder([drift(0), drift(1)], [1.0, 8.0])
    for steps in (5, 100):
        times = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        hits, features = torch.ones(steps, 4, 2).bool(), torch.ones(steps, 1, dtype=torch.float64)
        theta, v = torch.zeros(1, 1, dtype=torch.float64), torch.ones(4, 1, 1, dtype=torch.float64)
        gc.disable()  # what only the cycle collector frees counts as alive
        try:
            path_gradient(ladder, seeded(range(4)), times, hits, theta, features, v, derivative=derivative)
        finally:
            gc.enable()
    assert max(most.values()) <= 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_central_difference_agrees_with_forward_mode(dtype):
    drift = nonlinear_ladder(2).drifts[1]
    x = mls.seeded_normal(range(20), (3,), dtype=dtype)
    v = mls.seeded_normal(range(50, 70), (3,), dtype=dtype) * torch.logspace(-3, 3, 20, dtype=dtype)[:, None]
    v[0] = 0
    t = torch.tensor(0.3, dtype=torch.float64)
    value, slope = mls.forward_mode(drift, x, t, v)
    value_too, slope_too = mls.central_difference(drift, x, t, v)
    assert torch.allclose(value, value_too)
    assert ((slope - slope_too).norm(dim=1) <= {torch.float32: 1e-3, torch.float64: 1e-8}[dtype] * v.norm(dim=1)).all()
    assert not slope_too[0].any()


def test_forward_mode_sees_through_no_grad_and_names_the_way_out_where_there_is_none():
    x, t = torch.ones(2, 1), torch.tensor(0.0)
    assert mls.forward_mode(torch.no_grad()(lambda x, t: x**2), x, t, x)[1].tolist() == [[2.0], [2.0]]

    class NoForward(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return 2 * x

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

    with pytest.raises(RuntimeError, match="central_difference"):
        mls.forward_mode(lambda x, t: NoForward.apply(x), x, t, x)
