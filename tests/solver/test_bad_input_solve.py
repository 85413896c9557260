"""Bad input of a solve: times, the state, what a drift returns, and the noise."""

import re

import pytest
import torch
from good_input import INF, NAN, refused, solve, twin

import multilevel_sde as mls

# -- times ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([], r'"times" must be a 1-d grid of at least 2 times, got shape \(0,\)'),
        ([0.0], r'"times" must be a 1-d grid of at least 2 times, got shape \(1,\)'),
        (torch.zeros(2, 2), r'"times" must be a 1-d grid of at least 2 times, got shape \(2, 2\)'),
        (torch.tensor(1.0), r'"times" must be a 1-d grid of at least 2 times, got shape \(\)'),
        ([0.0, NAN, 1.0], '"times" must be finite, got nan at index 1'),
        ([0.0, 1.0, INF], '"times" must be finite, got inf at index 2'),
        (
            [0.0, 1.0, 0.5],
            '"times" must be strictly increasing or strictly decreasing, got 1 followed by 0.5 at index 1',
        ),
        ([1.0, 0.5, 0.75], "got 0.5 followed by 0.75 at index 1"),
        ([0.0, 0.0, 1.0], "got 0 followed by 0 at index 0"),
        ([0.0, 1.0, 1.0], "got 1 followed by 1 at index 1"),
    ],
)
def test_times(times, message):
    with refused(message):
        solve(times=times)
    with refused(message):
        mls.em_plan(twin(), times)
    with refused(message):
        mls.TheoremSchedule(gamma=2.0).probabilities(twin(), times, scale=1.0)
    with refused(message):
        mls.BrownianPath([0], grid=times)


# -- what a drift returns ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (
            lambda x: x[:2],
            ValueError,
            r"drift of level 2 returned shape torch.Size\(\[2\]\).* shape torch.Size\(\[3\]\)",
        ),
        (lambda x: x.double(), ValueError, "drift of level 2 returned dtype torch.float64 .* dtype torch.float32"),
        (lambda x: x.to("meta"), ValueError, "drift of level 2 returned device meta .* device cpu"),
        (lambda x: 0.0, TypeError, "drift of level 2 must return a Tensor, got float"),
        (lambda x: None, TypeError, "drift of level 2 must return a Tensor, got NoneType"),
    ],
)
def test_what_a_drift_returns_is_checked_at_its_first_call(value, error, message):
    with refused(message, error):
        solve(mls.Ladder([lambda x, t: x, lambda x, t: value(x)], costs=[1.0, 2.0]))


@pytest.mark.parametrize("samples", [None, 3])
def test_a_drift_that_returns_nothing_later_is_named(samples):
    ladder = mls.Ladder([lambda x, t: x, lambda x, t: x if t < 0.3 else None], costs=[1.0, 2.0])
    p = torch.ones(4, 2)
    plan = mls.draw_plan(p, mls.independent, generator=torch.Generator().manual_seed(0), samples=samples)
    with refused("drift of level 2 must return a Tensor, got NoneType", TypeError):
        mls.solve(ladder, torch.ones(3), torch.linspace(0.0, 1.0, 5), plan)


@pytest.mark.parametrize("wrong", [lambda x: x.half(), lambda x: x.double(), lambda x: x[:1], lambda x: x[:, None]])
def test_a_drift_that_returns_something_else_later_is_named_with_a_draw_per_sample(wrong):
    ladder = mls.Ladder([lambda x, t: x, lambda x, t: x if t < 0.3 else wrong(x)], costs=[1.0, 2.0])
    hits = torch.tensor([[True, True], [True, True], [True, False]]).expand(4, 3, 2)
    with refused("drift of level 2 returned (shape|dtype) .* a drift must return a tensor like its state"):
        mls.solve(ladder, torch.ones(3), torch.linspace(0.0, 1.0, 5), mls.Plan(hits, hits.double()))


def test_only_levels_that_are_called_are_checked():
    ladder = mls.Ladder([lambda x, t: x[:1], lambda x, t: -x], costs=[1.0, 2.0])
    assert solve(ladder).status == "completed"


# -- the rest of solve ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("y0", "came"), [([1.0], "list"), (torch.ones(3, dtype=torch.int64), "torch.int64")])
def test_the_state_is_a_floating_point_tensor(y0, came):
    with refused(f'"y0" must be a floating-point Tensor of 16, 32 or 64 bits, got {came}', TypeError):
        solve(y0=y0)


def test_a_complex_state_is_refused_with_advice():
    with refused(r"got torch.complex64; solve for torch.view_as_real\(y0\)", TypeError):
        solve(y0=torch.ones(3, dtype=torch.complex64))


@pytest.mark.parametrize("value", [NAN, INF])
def test_the_state_is_finite(value):
    with refused('"y0" must be finite, got NaN or infinity'):
        solve(y0=torch.tensor([1.0, value]))


def test_noise_and_diffusion_come_together():
    with refused('"diffusion" needs "brownian"'):
        solve(diffusion=1.0)
    with refused('"brownian" was given without "diffusion"'):
        solve(brownian=mls.BrownianPath(range(3)))


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_diffusion_number_is_finite(value):
    with refused(f'"diffusion" must be finite, got {value}'):
        solve(diffusion=value, brownian=mls.BrownianPath(range(3)))


@pytest.mark.parametrize("wrong", [True, "one", torch.ones(3), lambda: 1.0, lambda y, t, s: 1.0, lambda *a: 1.0])
def test_a_diffusion_is_a_number_or_a_function_of_one_or_two_arguments(wrong):
    came = type(wrong).__name__
    with refused(rf'"diffusion" must be None, a number, sigma\(t\), g\(y, t\) or a NoiseTerm, got {came}', TypeError):
        solve(diffusion=wrong, brownian=mls.BrownianPath(range(3)))


def test_noise_of_another_shape_than_the_state():
    with refused(r'"diffusion" and "brownian" give noise of shape \(3, 2\) for a state of shape \(3, 1\)'):
        solve(y0=torch.ones(3, 1), diffusion=1.0, brownian=mls.BrownianPath(range(3), shape=(2,)))


@pytest.mark.parametrize("save", [[3], [-4], [0, 7], []])
def test_saved_indices(save):
    with refused(r'"save" must be True, False or indices of times within 0\.\.2, got ' + re.escape(str(save))):
        solve(save=save)


# -- Brownian paths ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (2,), (4, 3)])
def test_seeds_that_do_not_match_the_batch(shape):
    with refused(r'"seeds" has 3 entries, the state of shape ' + re.escape(str(shape))):
        solve(y0=torch.ones(shape), diffusion=1.0, brownian=mls.BrownianPath(range(3)))


def test_no_seeds_are_those_of_an_empty_batch_only():
    with refused(r'"seeds" has 0 entries, the state of shape \(3,\) needs one per sample'):
        solve(diffusion=1.0, brownian=mls.BrownianPath([]))


@pytest.mark.parametrize("unit", [0.0, -1.0, NAN, INF])
def test_units(unit):
    with refused(f'"unit" must be a positive finite length of time, got {unit}'):
        mls.BrownianPath([0], unit=unit)


def test_the_dtype_of_a_path():
    with refused('"dtype" must be a floating-point dtype, got torch.int32'):
        mls.BrownianPath([0], dtype=torch.int32)


def test_a_path_without_a_shape():
    with refused('"shape" of this path is not set'):
        mls.BrownianPath([0])(0.0, 1.0)


def test_steps_below_the_resolution():
    path = mls.BrownianPath([0], shape=())
    with refused(r'"times" have a step of 1e-07 at index 0, which is 0.102 ticks .*grid=times, or a smaller unit'):
        path(0.0, 1e-7)
    assert mls.BrownianPath([0], shape=(), unit=1e-3)(0.0, 1e-7).abs() < 1e-2


def test_times_off_the_given_grid():
    path = mls.BrownianPath([0], grid=[0.0, 0.5, 1.0], shape=())
    with refused('"times" contains 0.25, which is not on the grid'):
        path(0.0, 0.25)
    with refused('"times" contains 1.5, which is not on the grid'):
        path(0.0, 1.5)
    with refused('"times" has two times at one point of the grid'):
        path(0.5, 0.5 + 1e-5)


def test_a_plan_for_a_step_rule_names_the_step():
    plan = mls.em_plan(twin(), [0.0, 0.5, 1.0], step=mls.Heun())
    with refused('"plan" has 4 steps, "times" has 2; draw .* or give the step rule .*, such as step=mls.Heun()'):
        solve(plan=plan)
    with refused('"plan" has 3 steps, "times" has 2; draw the plan for these times$'):
        solve(plan=mls.em_plan(twin(), torch.linspace(0, 1, 4)))
    assert solve(plan=plan, step=mls.Heun()).status == "completed"
