"""What mls.expectation refuses, in one sentence each."""

import pytest
import torch
from estimates import TIMES, estimate, ones, two_levels
from good_input import refused

import multilevel_sde as mls


def test_phi_of_another_shape():
    with refused(r'"phi" must return a real Tensor of shape \(256,\) or \(256, m\) for 256 samples, got shape \(\);'):
        estimate(phi=lambda y: y.sum())
    with refused(r"got shape \(256, 1, 1\)"):
        estimate(phi=lambda y: y[:, None])
    with refused("got float"):
        estimate(phi=lambda y: 1.0)
    with refused("got complex numbers"):
        estimate(phi=lambda y: y[:, 0] * 1j)


def test_phi_that_changes_its_shape():
    def phi(ys):
        return ys[..., 0].T

    with refused(r'"phi" must return the same shape always, got \(256, 3\) after \(256, 2\)'):
        estimate(phi=phi, save=True)


def test_phi_that_is_nan_is_named_with_sample_level_and_steps():
    with refused(r'"phi" returned nan for the sample of seed \d+ at level 1 with 1 steps; .* start\(\[\d+\]\)'):
        estimate(phi=lambda y: (y[:, 0] - 1.5).log())
    with refused(r"returned inf .* at level 1 with 1 steps"):
        estimate(phi=lambda y: 1 / y[:, 0].clamp_min(0))


def test_a_state_that_is_nan_is_named_by_its_own_level():
    ladder = mls.Ladder([lambda y, t: -y, lambda y, t: y / 0.0], costs=[1.0, 2.0])
    with pytest.raises(mls.NonFiniteError, match="the drift of level 2 was not finite at step 0"):
        estimate(ladder)


def test_a_tolerance_below_the_bias_of_the_finest_grid():
    with refused(
        r'"tolerance" of 0.001 is below the bias of the finest grid: its 8 steps leave about 0\.0\d+, of order \d\.\d; '
        r"give times with about \d+ steps, or a tolerance above 0.\d+"
    ):
        estimate(times=TIMES[::32], tolerance=0.001)


def test_a_start_that_is_no_function():
    with refused('"start" must be a function of seeds, got Tensor', TypeError):
        estimate(start=torch.ones(3, 1))
    with refused('"start" must return a Tensor with one state for each of 256 seeds, got shape'):
        estimate(start=lambda seeds: torch.ones(3, 1))
    with refused('"start" must return floating-point states, got torch.int64', TypeError):
        estimate(start=lambda seeds: torch.ones(len(seeds), 1, dtype=torch.long))


def test_states_noise_and_phi_that_do_not_follow_from_their_seeds():
    with refused('"start" gave other states when it was asked for 128 of the 256 seeds again; each state must follow'):
        estimate(start=lambda seeds: torch.randn(len(seeds), 1))
    with refused('"start" gave other states'):
        estimate(start=lambda seeds: torch.linspace(0.0, 1.0, len(seeds))[:, None])
    with refused('"brownian_source" gave the same noise for other seeds; pass on the seeds that it is given'):
        estimate(brownian_source=lambda seeds: mls.BrownianPath(range(len(seeds))))
    with refused('"brownian_source" gave other noise when it was asked for the same seeds again'):
        estimate(brownian_source=lambda seeds: lambda t, s: abs(s - t) ** 0.5 * torch.randn(len(seeds), 1))
    with refused('"phi" gave other values when it saw 128 of the 256 samples again; .* from its third argument'):
        estimate(phi=lambda y: y[:, 0] + torch.randn(len(y)))
    with refused('"phi" gave other values'):
        estimate(phi=lambda ys: (ys[-1, :, 0] - ys[-1, :, 0].mean()) ** 2, save=True)


def test_saved_times_in_another_order_than_phi_will_see_them():
    for save in ([1.0, 0.5], [0.5, 0.5], [-1, 0]):
        with refused(r'"save" must have its times in the order of "times" and each once, .* got \['):
            estimate(phi=lambda ys: ys[0, :, 0], save=save)


def test_numbers_whose_powers_are_none():
    with refused(r'"phi" returned 1e\+200, and the fourth powers of its values must be numbers, up to 1e\+60'):
        estimate(phi=lambda y: 1e200 + 0 * y[:, 0], tolerance=1e50)
    with refused('"phi" returned values of at most .*e-200, and their fourth powers must be numbers, from 1e-60 on'):
        estimate(phi=lambda y: 1e-200 * y[:, 0], tolerance=None, budget=1e5)
    with refused('"tolerance" must lie between 1e-60 and 1e\\+60'):
        estimate(tolerance=1e-201)


def test_a_bias_that_the_trial_did_not_see_is_found_before_the_work_is_done():
    called = 0

    def phi(y):
        nonlocal called
        called += len(y)
        return y[:, 0]

    given = {"diffusion": lambda y, t: y, "times": TIMES[::32], "trial": 32}
    with refused('"tolerance" of 0.001 is below the bias of the finest grid: its 8 steps leave about 0.0'):
        estimate(mls.Ladder([lambda y, t: 0.3 * y], [1.0]), phi=phi, tolerance=0.001, **given)
    assert 1e4 < called < 1e6  # more than the trial, and less than a quarter of the samples that it would take


def test_noise_of_another_dimension_than_declared():
    noise = mls.NoiseTerm(lambda y, t, dW: dW.sum(1, keepdim=True), shape=(2,), additive=True)
    with refused(r'"diffusion" is declared for Brownian motions of shape \(2,\)'):
        estimate(diffusion=noise, brownian_source=lambda seeds: mls.BrownianPath(seeds, shape=(3,)))


def test_stratonovich_noise_with_an_ito_rule():
    noise = mls.NoiseTerm(lambda y, t, dW: y * dW, stratonovich=True)
    with refused('"diffusion" is declared Stratonovich and the step euler_maruyama solves Ito'):
        estimate(diffusion=noise)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": None}, 'give exactly one of "tolerance" and "budget", got neither'),
        ({"tolerance": 0.1, "budget": 10}, 'give exactly one of "tolerance" and "budget", got both'),
        ({"tolerance": -1.0}, '"tolerance" must be a positive number, got -1'),
        ({"tolerance": float("nan")}, '"tolerance" must be a positive number, got nan'),
        ({"budget": 10.0}, r'"budget" of 10 units pays no trial of 256 paths on two grids; give at least'),
        ({"confidence": 95}, '"confidence" must lie between 0 and 1, got 95'),
        ({"trial": 3}, '"trial" must be at least 32, got 3'),
        ({"batch": 0}, '"batch" must be at least 1, got 0'),
        ({"coarsest": 1000}, r'"coarsest" must be a number of steps within 1..256'),
        ({"save": [0.3]}, '"save" has the time 0.3, which is not on the grid'),
        ({"distributed": True}, '"distributed" needs torch.distributed.init_process_group first'),
        ({"diffusion": None, "brownian_source": ones}, '"brownian_source" was given without "diffusion"'),
    ],
)
def test_arguments_out_of_range(options, message):
    with refused(message):
        estimate(two_levels(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"phi": 3}, '"phi" must be a function of states, got int'),
        ({"phi": lambda a, b, c, d: a}, '"phi" must take states, .* got a function of 4 arguments'),
        ({"brownian_source": mls.BrownianPath([1])}, '"brownian_source" must be a function of seeds, got BrownianPath'),
        ({"seed": 1.5}, '"seed" must be an integer, got float'),
        ({"tolerance": "small"}, '"tolerance" must be a number, got str'),
        ({"ladder": [1]}, '"ladder" must be a multilevel_sde.Ladder, got list'),
    ],
)
def test_arguments_of_another_kind(options, message):
    with refused(message, TypeError):
        estimate(**options)
