"""Running maxima and exit times of a Brownian motion with drift, by its closed forms, from four saved states.

20000 paths and five standard errors a check; seed 0 onwards.
"""

import math

import pytest
import torch

import multilevel_sde as mls

DOUBLE = torch.float64
SAMPLES, SIGMA, DRIFT, BARRIER = 20000, 0.8, 0.3, 0.7
TIMES = torch.tensor([0.0, 0.1, 0.5, 0.6, 1.0], dtype=DOUBLE)


def paths(drift):
    ladder = mls.Ladder([lambda y, t: torch.full_like(y, drift)], [1.0])
    given = {"diffusion": SIGMA, "brownian": mls.BrownianPath(range(SAMPLES)), "save": True}
    y0 = torch.zeros(SAMPLES, dtype=DOUBLE)
    return mls.solve(ladder, y0, TIMES, mls.em_plan(ladder, TIMES), **given).ys


def crossed(t, drift):
    """P(max up to t > BARRIER), Glasserman 2004 (6.61)."""
    phi = torch.special.ndtr(
        torch.tensor([(drift * t - BARRIER), (-drift * t - BARRIER)], dtype=DOUBLE) / (SIGMA * t**0.5)
    )
    return float(phi[0] + math.exp(2 * drift * BARRIER / SIGMA**2) * phi[1])


def near(share, p):
    return abs(share - p) < 5 * math.sqrt(p * (1 - p) / SAMPLES)


@pytest.mark.parametrize("drift", [0.0, DRIFT])
def test_the_law_of_the_running_maximum(drift):
    maximum = mls.running_maximum(paths(drift), TIMES, SIGMA, range(SAMPLES))
    for n in (1, 2, 4):
        assert near(float((maximum[n] > BARRIER).double().mean()), crossed(float(TIMES[n]), drift))
    if not drift:  # the maximum is distributed as |W|
        assert abs(float(maximum[-1].mean()) - SIGMA * math.sqrt(2 / math.pi)) < 5 * SIGMA * 0.603 / math.sqrt(SAMPLES)
    assert (maximum.diff(dim=0) >= 0).all()


@pytest.mark.parametrize("drift", [0.0, DRIFT])
@pytest.mark.parametrize("t", [0.05, 0.3, 0.55, 0.8, 1.0])
def test_the_law_of_the_exit_time(t, drift):
    """Also at times inside steps."""
    out = mls.exit_times(paths(drift), TIMES, SIGMA, BARRIER, range(SAMPLES))
    assert near(float((out <= t).double().mean()), crossed(t, drift))


def test_a_sample_is_its_seed_and_barriers_and_sigmas_may_be_tensors():
    ys = paths(0.0)[:, :6].reshape(5, 3, 2)
    whole = mls.exit_times(ys, TIMES, SIGMA, BARRIER, [1, 2, 3])
    sigmas, barriers = torch.full((4, 1, 1), SIGMA, dtype=DOUBLE), torch.full((2,), BARRIER, dtype=DOUBLE)
    torch.testing.assert_close(whole, mls.exit_times(ys, TIMES, sigmas, barriers, [1, 2, 3]), rtol=1e-12, atol=0)
    assert torch.equal(mls.exit_times(ys[:, 1:2], TIMES, SIGMA, BARRIER, [2]), whole[1:2])
    maximum = mls.running_maximum(ys, TIMES, SIGMA, [1, 2, 3])
    assert torch.equal(mls.running_maximum(ys[:, 1:2], TIMES, SIGMA, [2]), maximum[:, 1:2])


def test_without_noise_it_is_the_chord():
    ys = torch.tensor([[0.0], [2.0], [1.0]], dtype=DOUBLE)
    times = [0.0, 1.0, 3.0]
    assert mls.exit_times(ys, times, 0.0, 1.5, [0]).tolist() == pytest.approx([0.75])
    assert mls.running_maximum(ys, times, 0.0, [0]).flatten().tolist() == [0.0, 2.0, 2.0]
    assert mls.exit_times(ys, times, 1.0, -1.0, [0]).tolist() == [0.0]


def test_states_of_16_bits_are_carried_in_float32():
    ys = paths(0.0)[:, :3].half()
    for function, given in ((mls.running_maximum, [SIGMA]), (mls.exit_times, [SIGMA, BARRIER])):
        assert torch.equal(
            function(ys, TIMES, *given, [1, 2, 3]), function(ys.float(), TIMES, *given, [1, 2, 3]).half()
        )


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"ys": [[0.0]]}, TypeError, '"ys" must be a floating-point Tensor of saved states, got list'),
        (
            {"ys": torch.zeros(2, 3)},
            ValueError,
            r'"ys" must hold a state .* for each of the 5 times, got shape \(2, 3\)',
        ),
        ({"ys": torch.zeros(5, 3, dtype=torch.long)}, TypeError, "got torch.int64"),
        ({"sigma": math.nan}, ValueError, '"sigma" must be finite, got NaN or infinity'),
        ({"sigma": torch.ones(5, 3)}, ValueError, r'"sigma" must .* = \(4, 3\), got shape \(5, 3\)'),
        ({"barrier": math.nan}, ValueError, '"barrier" must be a number, got NaN'),
        ({"seeds": [1]}, ValueError, '"seeds" must be one for each of the 3 samples, got 1'),
        ({"times": TIMES.flip(0)}, ValueError, '"times" must increase for exit times'),
    ],
)
def test_arguments_are_checked(given, error, message):
    usual = {"ys": torch.zeros(5, 3), "times": TIMES, "sigma": 1.0, "barrier": 1.0, "seeds": [1, 2, 3]}
    with pytest.raises(error, match=message):
        mls.exit_times(**usual | given)
