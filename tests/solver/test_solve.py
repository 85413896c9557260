"""Laws of the loop: it is Euler-Maruyama where it should be, evaluates what the plan names, and nothing else."""

import itertools
import math

import pytest
import torch
from counted_drifts import DOUBLE, TIMES, draw, ladder_of
from hypothesis import given
from hypothesis import strategies as st

import multilevel_sde as mls
from multilevel_sde.testing import grids, ladders, plans, states


def hand_written_em(drift, y, times, sigma=None, path=None):
    """Euler-Maruyama as one would write it."""
    points = times.tolist()
    increments = None if path is None else path.like(y).increments(times)
    for n, (t, s) in enumerate(itertools.pairwise(points)):
        following = torch.add(y, drift(y, times[n]), alpha=s - t)
        y = following if sigma is None else following + sigma * next(increments)
    return y


# -- Euler-Maruyama ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [None, 0.7])
@pytest.mark.parametrize(
    "times", [TIMES, TIMES.flip(0), torch.tensor([0.0, 0.1, 0.4, 0.45, 3.0])], ids=["up", "down", "uneven"]
)
def test_probability_one_is_euler_maruyama_on_the_top_level_bit_for_bit(times, sigma):
    y0, path = torch.linspace(-2.0, 2.0, 12, dtype=DOUBLE).reshape(4, 3), mls.BrownianPath(range(4))
    noise = {} if sigma is None else {"diffusion": sigma, "brownian": path}
    ladder, steps = ladder_of(), len(times) - 1
    expected = hand_written_em(ladder.drifts[-1], y0, times, sigma, path)
    whole = mls.solve(ladder, y0, times, draw(table=torch.ones(4), steps=steps), **noise)
    alone = mls.solve(ladder.top(), y0, times, mls.em_plan(ladder.top(), times), **noise)
    own = mls.solve(ladder, y0, times, draw(table=torch.ones(4), steps=steps, samples=4), **noise)
    for solution in (whole, alone, own):
        assert torch.equal(solution.y, expected)
        assert solution.stats.cost == steps * 64.0
        assert solution.stats.steps == steps
    assert whole.stats.evaluations.tolist() == [0, 0, 0, steps]
    assert alone.stats.evaluations.tolist() == [steps]
    assert whole.status == alone.status == "completed"


@given(data=st.data(), ladder=ladders(), times=grids(max_steps=12), y0=states())
def test_any_plan_is_the_telescoping_sum_and_what_it_recalls(data, ladder, times, y0):
    plan = data.draw(plans(ladder, times, smallest=0.2, truncate=True, recall=True))
    y, seen = y0, []
    for n, h in enumerate(times.diff().tolist()):
        f = [drift(y, times[n]) for drift in ladder.drifts]
        seen.append(f)
        differences = [f[0], *(high - low for low, high in itertools.pairwise(f))]
        estimate = sum(w * d for w, d in zip(plan.weights[n].tolist(), differences, strict=True))
        if plan.recall is not None:
            estimate = estimate + sum(r * seen[m][k] for k, m, r in plan.recall.at(n))
        y = y + h * estimate
    torch.testing.assert_close(mls.solve(ladder, y0, times, plan).y, y, rtol=1e-9, atol=1e-9)  # of weights up to 5


@pytest.mark.parametrize("draw_rule", [mls.independent, mls.nested, mls.systematic])
def test_one_step_is_unbiased(draw_rule):
    ladder, times, y0 = ladder_of(), [0.0, 0.1], torch.full((20_000, 2), 0.4, dtype=DOUBLE)
    plan = draw(draw_rule, samples=len(y0), steps=1)
    y = mls.solve(ladder, y0, times, plan).y
    expected = hand_written_em(ladder.drifts[-1], y0, torch.tensor(times, dtype=DOUBLE))
    assert ((y - expected).mean(0).abs() <= 4 * y.std(0) / len(y) ** 0.5).all()


# -- what is evaluated ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw_rule", [mls.independent, mls.nested, mls.systematic])
def test_statistics_are_the_drifts_own_counters_and_nothing_else_is_called(draw_rule):
    ladder, plan = ladder_of(), draw(draw_rule, seed=3)
    solution = mls.solve(ladder, torch.ones(5), TIMES, plan)
    counted = [drift.calls for drift in ladder.drifts]
    assert solution.stats.evaluations.tolist() == counted == plan.evaluations.tolist() == list(solution.stats.calls)
    assert solution.stats.cost == plan.cost(ladder) == sum(n * c for n, c in zip(counted, ladder.costs, strict=True))


def test_drifts_are_called_at_the_times_that_the_plan_names():
    seen = []
    ladder = mls.Ladder([lambda x, t, k=k: (seen.append((k, t.item())), -x)[1] for k in range(2)], costs=[1.0, 2.0])
    hits = torch.tensor([[True, False], [True, True], [True, False]])
    mls.solve(ladder, torch.ones(1), [3.0, 2.0, 1.0, 0.0], mls.Plan(hits, torch.tensor([[1.0, 0], [1, 1], [1, 0]])))
    assert seen == [(0, 3.0), (1, 2.0), (0, 1.0)]  # equal weights: the lower network cancels
    seen.clear()
    mls.solve(ladder, torch.ones(1), [3.0, 2.0, 1.0, 0.0], mls.Plan(hits, torch.tensor([[1.0, 0], [1, 2], [1, 0]])))
    assert seen == [(0, 3.0), (0, 2.0), (1, 2.0), (0, 1.0)]


def test_samples_with_their_own_draws_evaluate_only_their_hits():
    ladder, plan = ladder_of(), draw(mls.independent, samples=7)
    solution = mls.solve(ladder, torch.linspace(-1, 1, 7), TIMES, plan)
    needed = plan.coefficients != 0
    for level, drift in enumerate(ladder.drifts):
        assert drift.samples == [n for n in needed[:, :, level].sum(1).tolist() if n]
        assert solution.stats.calls[level] == drift.calls == needed[:, :, level].any(1).sum()
    assert torch.equal(solution.stats.evaluations, needed.sum(0))
    assert solution.stats.cost == pytest.approx(plan.cost(ladder), rel=1e-12)


@pytest.mark.parametrize("shape", [(6,), (6, 2, 3)])
def test_samples_with_their_own_draws_are_the_samples_solved_one_by_one(shape):
    ladder, plan = ladder_of(), draw(mls.nested, seed=5, samples=6)
    y0 = torch.linspace(-1.0, 2.0, math.prod(shape), dtype=DOUBLE).reshape(shape)
    together = mls.solve(ladder, y0, TIMES, plan, diffusion=0.4, brownian=mls.BrownianPath(range(10, 16)))
    for b in range(6):
        own = mls.Plan(plan.hits[:, b], plan.weights[:, b])
        alone = mls.solve(ladder, y0[b : b + 1], TIMES, own, diffusion=0.4, brownian=mls.BrownianPath([10 + b]))
        torch.testing.assert_close(together.y[b], alone.y[0], rtol=1e-13, atol=1e-13)
        assert torch.equal(together.stats.evaluations[b], alone.stats.evaluations)


def test_values_are_zero_in_the_samples_that_do_not_need_them():
    class Look(mls.Telescoping):
        def start(self, plan):
            combine = super().start(plan)

            def look(n, values):
                for level, value in values.items():
                    needed = plan.coefficients[n, :, level] != 0
                    assert (value[~needed] == 0).all()
                    assert (value[needed] != 0).all()
                return combine(n, values)

            return look

    plan, y0 = draw(mls.independent, samples=7), torch.linspace(0.5, 1.0, 7)
    watched = mls.solve(ladder_of(), y0, TIMES, plan, estimator=Look())
    assert torch.equal(watched.y, mls.solve(ladder_of(), y0, TIMES, plan).y)


# -- noise and diffusion ----------------------------------------------------------------------------------------------


def test_the_batch_can_be_split():
    ladder, plan, y0 = ladder_of(), draw(), torch.linspace(-1.0, 1.0, 10)
    whole = mls.solve(ladder, y0, TIMES, plan, diffusion=0.5, brownian=mls.BrownianPath(range(10))).y
    for part in (slice(0, 1), slice(1, 4), slice(4, 10)):
        y = mls.solve(ladder, y0[part], TIMES, plan, diffusion=0.5, brownian=mls.BrownianPath(range(10)[part])).y
        torch.testing.assert_close(y, whole[part], rtol=1e-6, atol=1e-6)


def test_all_forms_of_one_diffusion_agree():
    ladder, y0 = ladder_of(), torch.linspace(-1.0, 1.0, 6, dtype=DOUBLE).reshape(3, 2)
    forms = [
        0.5,
        lambda t: 0.5,
        lambda t: torch.full_like(t, 0.5),
        lambda y, t: torch.full_like(y, 0.5),
        lambda y, t, scale=0.5: scale,
        mls.NoiseTerm(lambda y, t, dW: 0.5 * dW),
    ]
    path = mls.BrownianPath(range(3))
    solutions = [mls.solve(ladder, y0, TIMES, draw(), diffusion=form, brownian=path).y for form in forms]
    for y in solutions[1:]:
        assert torch.equal(y, solutions[0])
    unit = mls.solve(ladder, y0, TIMES, draw(), diffusion=1.0, brownian=path).y
    assert torch.equal(unit, mls.solve(ladder, y0, TIMES, draw(), diffusion=lambda t: 1.0, brownian=path).y)


def test_the_diffusion_sees_the_time_and_the_state_before_the_step():
    still = mls.Ladder([lambda x, t: torch.zeros_like(x)], costs=[1.0])
    times, path, plan = (
        torch.tensor([0.5, 1.0, 3.0], dtype=DOUBLE),
        mls.BrownianPath([1]),
        mls.em_plan(still, [0, 1, 2]),
    )
    dW = list(path.like(torch.zeros(1, dtype=DOUBLE)).increments(times))
    y0 = torch.tensor([2.0], dtype=DOUBLE)
    additive = mls.solve(still, y0, times, plan, diffusion=lambda t: t, brownian=path).y
    torch.testing.assert_close(additive, y0 + 0.5 * dW[0] + 1.0 * dW[1])
    geometric = mls.solve(still, y0, times, plan, diffusion=lambda y, t: y, brownian=path).y
    torch.testing.assert_close(geometric, y0 * (1 + dW[0]) * (1 + dW[1]))


def test_noise_of_another_shape_goes_through_a_noise_term():
    still = mls.Ladder([lambda x, t: torch.zeros_like(x)], costs=[1.0])
    g = torch.tensor([[1.0, 2.0, -1.0], [0.0, 0.5, 3.0]], dtype=DOUBLE)
    path = mls.BrownianPath(range(4), shape=(3,))
    y0 = torch.zeros(4, 2, dtype=DOUBLE)
    y = mls.solve(
        still, y0, TIMES, mls.em_plan(still, TIMES), diffusion=mls.NoiseTerm(lambda y, t, dW: dW @ g.T), brownian=path
    ).y
    whole = mls.BrownianPath(range(4), shape=(3,), dtype=DOUBLE)(0.0, 1.0)
    torch.testing.assert_close(y, whole @ g.T, rtol=1e-12, atol=1e-12)


def test_any_callable_of_an_interval_is_a_brownian_path():
    still, asked = mls.Ladder([lambda x, t: torch.zeros_like(x)], costs=[1.0]), []

    def brownian(t, s):
        asked.append((t, s))
        return torch.full((2,), s - t)

    y = mls.solve(
        still, torch.zeros(2), [1.0, 0.5, 0.25], mls.em_plan(still, [0, 1, 2]), diffusion=2.0, brownian=brownian
    ).y
    assert asked == [(1.0, 0.5), (0.5, 0.25)]
    assert y.tolist() == [-1.5, -1.5]


def test_a_step_gets_host_times_the_estimate_and_the_noise():
    seen = []

    def step(y, estimate, t, s, noise):
        seen.append((t, s, type(t), noise is None))
        return y * (s / t) + (s - t) * estimate

    ladder, times = mls.Ladder([lambda x, t: 3 * x], costs=[1.0]), [1.0, 0.5, 0.25]
    y = mls.solve(ladder, torch.ones(1, dtype=DOUBLE), times, mls.em_plan(ladder, times), step=step).y
    assert seen == [(1.0, 0.5, float, True), (0.5, 0.25, float, True)]
    assert y.item() == (0.5 - 1.5) * (0.5 - 0.75)


def test_an_estimator_sees_the_plan_and_the_needed_values():
    class Last:
        """Remembers the last correction and always needs both levels."""

        def needed(self, plan):
            return torch.ones_like(plan.hits)

        def start(self, plan):
            memory = []

            def combine(n, values):
                memory.append((n, sorted(values)))
                self.memory = memory
                return values[1]

            return combine

    ladder, estimator = ladder_of(2), Last()
    hits = torch.tensor([[True, False]]).expand(20, 2)
    solution = mls.solve(ladder, torch.ones(2), TIMES, mls.Plan(hits, hits.double()), estimator=estimator)
    assert estimator.memory == [(n, [0, 1]) for n in range(20)]
    assert torch.equal(solution.y, mls.solve(ladder, torch.ones(2), TIMES, mls.em_plan(ladder, TIMES)).y)
    assert solution.stats.evaluations.tolist() == [20, 20]
    assert solution.stats.cost == 20 * 5.0


# -- progress and replay ----------------------------------------------------------------------------------------------


def test_progress_goes_to_stderr_only_on_request(capsys):
    mls.solve(ladder_of(), torch.ones(2), TIMES, draw())
    assert capsys.readouterr() == ("", "")
    mls.solve(ladder_of(), torch.ones(2), TIMES, draw(), progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "20/20" in captured.err


def test_a_solve_repeats_bit_for_bit_and_uses_no_global_generator():
    plan, y0 = draw(), torch.linspace(-1.0, 1.0, 4)
    noise = {"diffusion": 0.5, "brownian": mls.BrownianPath(range(4))}
    state = torch.random.get_rng_state()
    first = mls.solve(ladder_of(), y0, TIMES, plan, **noise)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first.y, mls.solve(ladder_of(), y0, TIMES, plan, **noise).y)
    assert first.stats.seconds > 0
