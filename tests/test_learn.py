"""Laws of learning probabilities: the gradient against exact enumeration, memory, descent, resuming, bad input."""

import gc
import itertools
import json
import math
import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

import multilevel_sde as mls
from multilevel_sde.files import seal
from multilevel_sde.learned import log_times
from multilevel_sde.path_gradient import cost_gradient, path_gradient

SHARE = 1e-3  # price of the cost in the enumerated loss


def affine_step(y: Tensor, estimate: Tensor, t: float, s: float, noise: Tensor | None) -> Tensor:
    """A step that is affine in the estimate but not Euler's, with its own coefficients and noise."""
    following = math.exp(s - t) * y + (1.3 * (s - t) + 0.1) * estimate
    return following if noise is None else following + (1 + t) * noise


def nonlinear_ladder(levels: int) -> mls.Ladder:
    def drift(k: int):
        return lambda x, t: torch.sin((1 + k) * x + t) + 0.5 * k * x * torch.roll(x, 1, -1).cos()

    return mls.Ladder([drift(k) for k in range(levels)], [4.0**k for k in range(levels)])


def seeded(seeds):
    return mls.seeded_normal(seeds, (2,), dtype=torch.float64)


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


# -- learning ----------------------------------------------------------------------------------------------------------

TIMES = torch.linspace(0.0, 1.0, 17, dtype=torch.float64)


def early_ladder() -> mls.Ladder:
    """The correction matters late and not at all early, so that a constant probability is far from the best."""
    return mls.Ladder([lambda x, t: -x, lambda x, t: -x + 2 * t**3 * torch.cos(3 * x)], [1.0, 8.0])


def arguments(**changes) -> dict:
    values = {
        "delta": 0.05,
        "regularisation": 1e-3,
        "diffusion": 0.5,
        "brownian_source": mls.BrownianPath,
        "budget": 40.0,
        "steps": 40,
        "batch": 40,
        "generator": torch.Generator().manual_seed(0),
    }
    return values | changes


def held_out_loss(ladder, schedule, price, samples=2000) -> float:
    table = schedule.probabilities(ladder, TIMES)
    seeds = range(10**6, 10**6 + samples)
    y0, brownian = seeded(seeds), mls.BrownianPath(seeds)
    plan = mls.draw_plan(table, mls.independent, generator=torch.Generator().manual_seed(7), samples=samples)
    y, x = (
        mls.solve(ladder, y0, TIMES, plan, diffusion=0.5, brownian=brownian).y
        for plan in (plan, mls.em_plan(ladder, TIMES))
    )
    return float((y - x).square().mean()) + price * mls.expected_cost(ladder, table, mls.independent)


def test_learning_lowers_the_loss_on_held_out_noise():
    """From 1/T to the learned schedule by at least a fifth; the standard error of each loss is below 4%."""
    ladder = early_ladder()
    learned = mls.learn(ladder, seeded, TIMES, **arguments())
    start = mls.learn(ladder, seeded, TIMES, **arguments(steps=1, optimiser=partial(torch.optim.SGD, lr=0.0)))
    assert abs(start.alphas[0]) < 1e-6  # SGD at rate zero: the start itself
    before, after = held_out_loss(ladder, start, 1e-3), held_out_loss(ladder, learned, 1e-3)
    assert after < 0.8 * before
    assert learned.alphas[0] > 0.2  # late is where it matters
    equal = learned.probabilities(ladder, TIMES, budget=40.0, draw=mls.independent)
    same_cost = mls.FixedSchedule(equal)
    assert held_out_loss(ladder, same_cost, 0.0) < 0.8 * held_out_loss(ladder, start, 0.0)


def test_the_same_seed_gives_the_same_schedule_and_another_does_not():
    first, second, other = (
        mls.learn(early_ladder(), seeded, TIMES, **arguments(steps=3, generator=torch.Generator().manual_seed(seed)))
        for seed in (0, 0, 1)
    )
    assert first == second
    assert first.betas != other.betas


@pytest.mark.parametrize("optimiser", [partial(torch.optim.Adam, lr=0.1), partial(torch.optim.SGD, lr=0.1)])
def test_a_killed_run_resumes_to_the_same_schedule(tmp_path, optimiser):
    ladder, calls = early_ladder(), 0
    options = {"steps": 6, "batch": 8, "optimiser": optimiser}
    whole = mls.learn(ladder, seeded, TIMES, **arguments(**options))

    def dies_in_the_fourth_step(seeds):
        nonlocal calls
        calls += 1
        if calls == 5:  # the first call looks at the levels
            raise KeyboardInterrupt
        return seeded(seeds)

    with pytest.raises(KeyboardInterrupt):
        mls.learn(ladder, dies_in_the_fourth_step, TIMES, **arguments(folder=tmp_path, **options))
    seen = []

    def recording(seeds):
        seen.append(list(seeds))
        return seeded(seeds)

    resumed = mls.learn(ladder, recording, TIMES, **arguments(folder=tmp_path, **options))
    assert resumed == whole
    assert [seeds[0] for seeds in seen[1:]] == [24, 32, 40]  # fresh seeds at every step, from where it stopped
    assert mls.LearnedSchedule.load(tmp_path / "schedule.json") == whole
    again = mls.learn(ladder, seeded, TIMES, **arguments(folder=tmp_path, **options))
    assert again == whole


def test_a_folder_of_another_run_is_refused(tmp_path):
    options = {"steps": 1, "batch": 4, "folder": tmp_path}
    mls.learn(early_ladder(), seeded, TIMES, **arguments(**options))
    with pytest.raises(ValueError, match='another "delta"'):
        mls.learn(early_ladder(), seeded, TIMES, **arguments(**options, delta=0.1))
    (tmp_path / "learning.safetensors").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="damaged"):
        mls.learn(early_ladder(), seeded, TIMES, **arguments(**options))


def test_learning_that_diverges_stops_with_the_last_good_schedule_saved(tmp_path):
    def explodes(x, t):
        return x * math.inf if len(x) > 2 and explodes.calls() > 3 * 16 else x

    explodes.calls = partial(next, itertools.count())
    ladder = mls.Ladder([lambda x, t: -x, explodes], [1.0, 8.0])
    with pytest.raises(mls.DivergedError, match="diverged at step") as caught:
        mls.learn(ladder, seeded, TIMES, **arguments(folder=tmp_path, batch=4))
    error = caught.value
    assert error.iteration > 0
    assert len(error.schedule.history) == error.iteration
    assert mls.LearnedSchedule.load(tmp_path / "schedule.json") == error.schedule
    always = mls.Ladder([lambda x, t: -x, lambda x, t: x * math.inf], [1.0, 8.0])
    with pytest.raises(mls.DivergedError, match="start itself") as caught:
        mls.learn(always, seeded, TIMES, **arguments(batch=4))
    assert caught.value.schedule is None


def test_infinite_parameters_are_divergence():
    huge = partial(torch.optim.SGD, lr=1e308)
    with pytest.raises(mls.DivergedError):
        mls.learn(early_ladder(), seeded, TIMES, **arguments(optimiser=huge, batch=4, regularisation=10.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"regularisation": -1.0}, '"regularisation" must be a finite number of at least 0, got -1.0'),
        ({"delta": 0.0}, '"delta" must be a finite number above -?0'),
        ({"delta": math.nan}, '"delta"'),
        ({"budget": None}, 'exactly one of "start" and "budget", got neither'),
        ({"start": torch.ones(16, 2)}, 'exactly one of "start" and "budget", got both'),
        ({"start": torch.ones(3, 2), "budget": None}, r'"start" must have shape .* = \(16, 2\), got \(3, 2\)'),
        ({"steps": 0}, '"steps" must be at least 1'),
        ({"batch": 1}, '"batch" must be at least 2'),
        ({"diffusion": None}, 'both or neither of "diffusion" and "brownian_source"'),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        mls.learn(early_ladder(), seeded, TIMES, **arguments(**changes))


def test_bad_ladders_and_types():
    with pytest.raises(ValueError, match="one level"):
        mls.learn(early_ladder().top(), seeded, TIMES, **arguments())
    equal = mls.Ladder([lambda x, t: -x, lambda x, t: -x], [1.0, 8.0])
    with pytest.raises(ValueError, match=r"levels 0 and 1 .* are equal"):
        mls.learn(equal, seeded, TIMES, **arguments())
    hidden = mls.Ladder([lambda x, t: -x, lambda x, t: torch.from_numpy(x.detach().numpy() ** 2)], [1.0, 8.0])
    with pytest.raises((ValueError, RuntimeError), match="central_difference"):
        mls.learn(hidden, seeded, TIMES, **arguments())
    detached = mls.Ladder([lambda x, t: -x, lambda x, t: x.detach() ** 2], [1.0, 8.0])
    with pytest.raises(ValueError, match="level 1 varies with its state"):
        mls.learn(detached, seeded, TIMES, **arguments())
    with pytest.raises(TypeError, match="generator"):
        mls.learn(early_ladder(), seeded, TIMES, **arguments(generator=0))
    with pytest.raises(TypeError, match="y0_source"):
        mls.learn(early_ladder(), torch.zeros(3), TIMES, **arguments())


def test_the_start_is_the_closest_schedule_and_keeps_the_hits():
    ladder = early_ladder()
    member = mls.LearnedSchedule((0.7,), (-0.4,), 0.05)
    found = mls.LearnedSchedule.fit(member.probabilities(ladder, TIMES), TIMES, 0.05)
    assert found.alphas[0] == pytest.approx(0.7, abs=1e-6)
    assert found.betas[0] == pytest.approx(-0.4, abs=1e-6)
    other = torch.ones(16, 2, dtype=torch.float64)
    other[:, 1] = torch.linspace(0.9, 0.1, 16) ** 2
    table = mls.LearnedSchedule.fit(other, TIMES, 0.05).probabilities(ladder, TIMES)
    assert float(table[:, 1].sum()) == pytest.approx(float(other[:, 1].sum()), rel=1e-6)


def test_a_fit_is_the_most_likely_member():
    """Moving either parameter of either level lowers the likelihood of the table."""
    wanted = torch.ones(16, 3, dtype=torch.float64)
    wanted[:, 1], wanted[:, 2] = torch.linspace(0.9, 0.1, 16) ** 2, torch.linspace(0.05, 0.4, 16)

    def likelihood(schedule):
        p = schedule.probabilities(nonlinear_ladder(3), TIMES)[:, 1:]
        return float((wanted[:, 1:] * p.log() + (1 - wanted[:, 1:]) * (-p).log1p()).sum())

    best = mls.LearnedSchedule.fit(wanted, TIMES, 0.05)
    for name, level, change in itertools.product(("alphas", "betas"), (0, 1), (-0.01, 0.01)):
        values = list(getattr(best, name))
        values[level] += change
        assert likelihood(replace(best, **{name: tuple(values)})) < likelihood(best) - 1e-6


def test_a_fit_applies_to_other_grids_of_the_same_times():
    member, fine = mls.LearnedSchedule((0.7,), (-0.4,), 0.05), torch.linspace(1.0, 0.0, 301, dtype=torch.float64)
    fitted = mls.LearnedSchedule.fit(member.probabilities(early_ladder(), TIMES), TIMES, 0.05)
    assert torch.allclose(*(s.probabilities(early_ladder(), fine) for s in (member, fitted)), rtol=1e-6)
    one = mls.LearnedSchedule.fit(torch.tensor([[1.0, 0.3]]), [1.0, 0.0], 0.05)
    assert one.alphas == (0.0,)
    assert float(one.probabilities(early_ladder(), [1.0, 0.0])[0, 1]) == pytest.approx(0.3)


def test_learning_starts_from_the_schedule_of_a_pilot():
    """From the table, and from the schedule fitted on the pilot's own grid: the same first step, at the same cost."""
    ladder, finer = early_ladder(), torch.linspace(float(TIMES[0]), float(TIMES[-1]), 33, dtype=torch.float64)
    pilot = mls.pilot(ladder, seeded(range(900, 908)), finer, candidates=32)
    table = pilot.schedule(budget=70.0, draw=mls.independent)
    fitted = mls.LearnedSchedule.fit(table, pilot.times, 0.5)
    learned = mls.learn(ladder, seeded, TIMES, **arguments(start=fitted, budget=None, delta=0.5, steps=1))
    again = mls.learn(
        ladder, seeded, TIMES, **arguments(start=fitted.probabilities(ladder, TIMES), budget=None, delta=0.5, steps=1)
    )
    cost = mls.expected_cost(ladder, fitted.probabilities(ladder, TIMES), mls.independent)
    assert learned.history[0][1] == pytest.approx(cost, rel=1e-12)
    assert again.history[0] == pytest.approx(learned.history[0], rel=1e-6)
    with pytest.raises(ValueError, match=r"2 levels with delta 0\.5, expected 2 levels and delta 0\.1"):
        mls.learn(ladder, seeded, TIMES, **arguments(start=fitted, budget=None, delta=0.1))


@pytest.mark.parametrize(
    ("table", "delta", "message"),
    [
        (torch.ones(3, 2), 0.05, "with 16 steps"),
        (torch.ones(16, 1), 0.05, "at least 2 levels"),
        (torch.full((16, 2), 0.5), 0.05, "lowest level must be 1"),
        (torch.ones(16, 2), -2.0, "delta"),
    ],
)
def test_a_table_that_cannot_be_fitted(table, delta, message):
    with pytest.raises(ValueError, match=message):
        mls.LearnedSchedule.fit(table, TIMES, delta)


# -- the schedule ------------------------------------------------------------------------------------------------------


def test_probabilities_are_the_formula():
    ladder = nonlinear_ladder(3)
    table = mls.LearnedSchedule((0.5, -1.0), (0.1, 0.2), 0.05).probabilities(ladder, TIMES)
    for n, t in enumerate(TIMES[:-1].tolist()):
        for k, (alpha, beta) in enumerate([(0.5, 0.1), (-1.0, 0.2)], start=1):
            assert float(table[n, k]) == pytest.approx(1 / (1 + math.exp(-alpha * math.log(t + 0.05) - beta)))
    assert (table[:, 0] == 1).all()


def test_a_shift_multiplies_the_odds_and_traces_the_curve():
    ladder, schedule = nonlinear_ladder(3), mls.LearnedSchedule((0.5, -1.0), (0.1, 0.2), 0.05)
    p, q = (s.probabilities(ladder, TIMES)[:, 1:] for s in (schedule, schedule.shifted(1.5)))
    assert torch.allclose(q / (1 - q), math.exp(1.5) * p / (1 - p))
    scaled = schedule.probabilities(ladder, TIMES, scale=math.exp(1.5))[:, 1:]
    assert torch.allclose(scaled, q)
    costs = [
        mls.expected_cost(ladder, schedule.shifted(d).probabilities(ladder, TIMES)) for d in torch.linspace(-4, 4, 9)
    ]
    assert costs == sorted(costs)


@pytest.mark.parametrize("draw", [mls.systematic, mls.nested])
@pytest.mark.parametrize("share", [0.07, 0.2, 0.6, 0.99, 1.0])
def test_a_budget_is_met(draw, share):
    ladder, schedule = nonlinear_ladder(3), mls.LearnedSchedule((0.5, -30.0), (0.1, 20.0), 0.05)
    budget = share * 16 * ladder.costs[-1]
    table = schedule.probabilities(ladder, TIMES, budget=budget, draw=draw)
    assert mls.expected_cost(ladder, table, draw) == pytest.approx(budget, rel=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 1e9}, '"budget" must lie above 16'),
        ({"budget": 1.0}, '"budget" must lie above 16'),
        ({"budget": 50.0, "scale": 1.0}, "at most one"),
        ({"scale": 0.0}, '"scale" must be a positive'),
    ],
)
def test_budgets_out_of_reach(options, message):
    with pytest.raises(ValueError, match=message):
        mls.LearnedSchedule((0.5,), (0.1,), 0.05).probabilities(nonlinear_ladder(2), TIMES, **options)


def test_schedules_are_checked_saved_and_loaded(tmp_path):
    with pytest.raises(ValueError, match="one number for each level"):
        mls.LearnedSchedule((1.0,), (), 0.1)
    with pytest.raises(ValueError, match="must be finite"):
        mls.LearnedSchedule((math.inf,), (0.0,), 0.1)
    schedule = mls.LearnedSchedule((0.1, 1 / 3), (2.0, -1.0), 0.05, 1e-3, ((0.5, 10.0), (0.25, 12.0)))
    path = tmp_path / "schedule.json"
    schedule.save(path)
    assert mls.LearnedSchedule.load(path) == schedule
    with pytest.raises(ValueError, match="has 2 levels, the schedule was learned for 3"):
        schedule.probabilities(nonlinear_ladder(2), TIMES)
    with pytest.raises(FileNotFoundError):
        mls.LearnedSchedule.load(tmp_path / "none.json")
    content = json.loads(path.read_text())
    for change, message in [
        ({"version": 99}, "version"),
        ({"format": "else"}, "not a learned"),
        ({"delta": None}, "lacks"),
    ]:
        path.write_text(json.dumps(seal({key: (content | change)[key] for key in content if key != "sha256"})))
        with pytest.raises(ValueError, match=message):
            mls.LearnedSchedule.load(path)
    for damaged in ("{", "[" * 100_000):
        path.write_text(damaged)
        with pytest.raises(ValueError, match="damaged"):
            mls.LearnedSchedule.load(path)
    path.write_bytes(json.dumps(content).encode("utf-16"))
    with pytest.raises(ValueError, match="damaged"):
        mls.LearnedSchedule.load(path)
    for damage in ({"delta": 0.06}, {"sha256": ""}, {"version": 1}):
        path.write_text(json.dumps(content | damage))
        with pytest.raises(ValueError, match="its checksum does not fit"):
            mls.LearnedSchedule.load(path)
    del content["sha256"]
    path.write_text(json.dumps(content | {"version": 1}))  # as the first preview wrote them
    assert mls.LearnedSchedule.load(path) == schedule
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="its checksum does not fit"):
        mls.LearnedSchedule.load(path)


def test_the_plot_of_the_loss_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    mls.learn(early_ladder(), seeded, TIMES, **arguments(steps=2, batch=4, folder=tmp_path))
    assert (tmp_path / "learning.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="history"):
        mls.LearnedSchedule((1.0,), (0.0,), 0.1).plot(tmp_path / "none.png")
