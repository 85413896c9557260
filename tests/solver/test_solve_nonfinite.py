"""Laws of the look for NaN and infinity: the error names step, time, level and samples, and nothing else is blamed."""

import math

import pytest
import torch
from counted_drifts import DOUBLE, TIMES, ladder_of

import multilevel_sde as mls
import multilevel_sde.solver.finite


@pytest.fixture(params=["small", "large", "gpu"])
def watched(request, monkeypatch):
    """The three ways of looking for NaN: the one for GPUs works on any device."""
    if request.param == "gpu":
        monkeypatch.setattr(multilevel_sde.solver.finite, "_on_host", lambda y: False)
    if request.param == "large":
        monkeypatch.setattr(multilevel_sde.solver.finite, "_SMALL", 0)


def fails_at(level, step, samples, value=math.nan):
    """A ladder of which one level returns `value` in some samples from one step on."""

    def drift(x, t, k):
        out = -x
        if k == level and t >= TIMES[step] - 1e-9:
            out = out.clone()
            out[samples] = value
        return out

    return mls.Ladder([lambda x, t, k=k: drift(x, t, k) for k in range(3)], costs=[1.0, 2.0, 4.0])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("samples", [[0], [2, 4], [0, 1, 2, 3, 4]])
@pytest.mark.parametrize("shape", [(5,), (5, 3)])
def test_the_error_names_step_time_level_and_samples(watched, value, samples, shape):
    weights = torch.tensor([1.0, 1.0, 2.0]).expand(20, 3)
    plan = mls.Plan(weights > 0, weights)
    with pytest.raises(mls.NonFiniteError) as caught:
        mls.solve(fails_at(1, 7, samples, value), torch.ones(shape), TIMES, plan)
    error = caught.value
    assert (error.step, error.level, error.samples) == (7, 1, samples)
    assert error.time == pytest.approx(0.35)
    assert f"level 2 was not finite at step 7, time 0.35, samples {samples}" in str(error)
    assert isinstance(error, ArithmeticError)


def test_of_several_levels_the_lowest_is_named(watched):
    ladder = mls.Ladder([lambda x, t: x, lambda x, t: x / 0.0, lambda x, t: x / 0.0], costs=[1.0, 2.0, 4.0])
    weights = torch.tensor([1.0, 2.0, 4.0]).expand(20, 3)
    with pytest.raises(mls.NonFiniteError) as caught:
        mls.solve(ladder, torch.ones(2), TIMES, mls.Plan(weights > 0, weights))
    assert caught.value.level == 1


def test_only_called_levels_are_blamed(watched):
    weights = torch.tensor([[1.0, 0.0, 0.0]] * 12 + [[1.0, 1.0, 0.0]] * 8)
    with pytest.raises(mls.NonFiniteError) as caught:
        mls.solve(fails_at(1, 3, [1]), torch.ones(2), TIMES, mls.Plan(weights > 0, weights))
    assert (caught.value.step, caught.value.level, caught.value.samples) == (12, 1, [1])


def test_with_own_draws_the_sample_that_hits_fails(watched):
    hits = torch.ones(20, 3, 2, dtype=torch.bool)
    hits[:9, :, 1] = False
    hits[9:, [0, 1], 1] = False
    with pytest.raises(mls.NonFiniteError) as caught:
        mls.solve(fails_at(1, 0, [0]).subset([0, 1]), torch.ones(3), TIMES, mls.Plan(hits, hits.double()))
    assert (caught.value.step, caught.value.level, caught.value.samples) == (9, 1, [2])


@pytest.mark.parametrize("culprit", ["noise", "diffusion", "step"])
def test_no_level_is_blamed_for_noise_diffusion_or_step(watched, culprit):
    ladder = ladder_of(1)
    path = mls.BrownianPath(range(3))

    def brownian(t, s):
        increment = path.like(torch.ones(3))(t, s)
        increment[1] = math.nan if culprit == "noise" and t > 0.49 else increment[1]
        return increment

    def sigma(y, t):
        return torch.where((torch.arange(3) == 1) & (t > 0.49) & (culprit == "diffusion"), math.inf, 1.0)

    def step(y, estimate, t, s, noise):
        following = mls.euler_maruyama(y, estimate, t, s, noise)
        following[1] *= math.inf if culprit == "step" and t > 0.49 else 1.0
        return following

    with pytest.raises(
        mls.NonFiniteError, match=r"the state was not finite after step 10, time 0\.5, samples"
    ) as caught:
        mls.solve(
            ladder, torch.ones(3), TIMES, mls.em_plan(ladder, TIMES), diffusion=sigma, brownian=brownian, step=step
        )
    assert (caught.value.step, caught.value.level, caught.value.samples) == (10, None, [1])


def test_a_state_without_samples_can_fail(watched):
    ladder = mls.Ladder([lambda x, t: x * math.inf], costs=[1.0])
    with pytest.raises(mls.NonFiniteError) as caught:
        mls.solve(ladder, torch.ones(()), TIMES, mls.em_plan(ladder, TIMES))
    assert (caught.value.step, caught.value.samples) == (0, [0])


def test_a_sum_that_overflows_hides_nothing(watched):
    def drift(x, t):
        return torch.where((t > 0.49) & (torch.arange(4) == 2), math.nan, torch.zeros_like(x))

    ladder = mls.Ladder([drift], costs=[1.0])
    with pytest.raises(mls.NonFiniteError) as caught:
        mls.solve(ladder, torch.full((4,), 3e38), TIMES, mls.em_plan(ladder, TIMES))
    assert (caught.value.step, caught.value.level, caught.value.samples) == (10, 0, [2])


@pytest.mark.parametrize("last", [1, 15, 16, 17, 31, 32, 33])
def test_every_step_is_looked_at(watched, last):
    times = torch.linspace(0.0, 1.0, last + 1, dtype=DOUBLE)
    ladder = mls.Ladder([lambda x, t: x * (math.nan if t >= times[-2] else 1.0)], costs=[1.0])
    with pytest.raises(mls.NonFiniteError) as caught:
        mls.solve(ladder, torch.ones(2), times, mls.em_plan(ladder, times))
    assert caught.value.step == last - 1


def test_many_samples_are_shortened_in_the_message_only():
    ladder = mls.Ladder([lambda x, t: x / 0.0], costs=[1.0])
    with pytest.raises(mls.NonFiniteError, match=r"samples \[0, 1, 2, 3, 4, 5, 6, 7, \.\.\.\]") as caught:
        mls.solve(ladder, torch.ones(30), TIMES, mls.em_plan(ladder, TIMES))
    assert caught.value.samples == list(range(30))


@pytest.mark.parametrize(
    ("dtype", "large"), [(torch.float16, 6e4), (torch.bfloat16, 3e38), (torch.float32, 3e38), (DOUBLE, 1.7e308)]
)
def test_a_sum_that_overflows_is_no_false_alarm(watched, dtype, large):
    still = mls.Ladder([lambda x, t: torch.zeros_like(x)], costs=[1.0])
    y0 = torch.full((4, 10), large, dtype=dtype)
    assert torch.equal(mls.solve(still, y0, TIMES, mls.em_plan(still, TIMES)).y, y0)


def test_checking_can_be_turned_off():
    ladder = mls.Ladder([lambda x, t: x / 0.0], costs=[1.0])
    assert (
        not mls.solve(ladder, torch.ones(2), TIMES, mls.em_plan(ladder, TIMES), check_finite=False).y.isfinite().any()
    )


def test_a_drift_may_fail_by_itself(watched):
    def drift(x, t):
        if t > 0.5:
            raise KeyError("mine")
        return -x

    ladder = mls.Ladder([drift], costs=[1.0])
    with pytest.raises(KeyError, match="mine"):
        mls.solve(ladder, torch.ones(2), TIMES, mls.em_plan(ladder, TIMES))


def test_a_drift_that_fails_on_nan_is_not_blamed_for_it(watched):
    def drift(x, t):
        if x.isnan().any():
            raise RuntimeError("cannot work with NaN")
        return x * (math.nan if t > 0.49 else 1.0)

    ladder = mls.Ladder([drift], costs=[1.0])
    with pytest.raises(mls.NonFiniteError, match="level 1 was not finite at step 10"):
        mls.solve(ladder, torch.ones(2), TIMES, mls.em_plan(ladder, TIMES))
