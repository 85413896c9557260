"""Tables that end in pure noise (zero terminal SNR): exact at their entries, invertible, and usable by samplers."""

import copy
import math
import pickle

import pytest
import torch

import multilevel_sde as mls
from multilevel_diffusion import (
    DDIM,
    CosineSchedule,
    DataDenoiser,
    EDMSchedule,
    LinearSchedule,
    MultilevelDenoiser,
    Process,
    RectifiedFlowSchedule,
    TableIndex,
    TableSchedule,
    VDenoiser,
    coupled_noise,
    log_snr_uniform,
    uniform,
)

DOUBLE = torch.float64


def rescaled(steps=1000):
    """Betas of a scaled linear table, rescaled as Lin et al. 2024 (algorithm 1) do."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, steps, dtype=DOUBLE) ** 2
    root = (1 - betas).cumprod(0).sqrt()
    shifted = (root - root[-1]) * root[0] / (root[0] - root[-1])
    squared = shifted**2
    return tuple((1 - torch.cat([squared[:1], squared[1:] / squared[:-1]])).tolist()), shifted


def test_entries_are_those_of_the_table():
    betas, alphas = rescaled()
    schedule = TableSchedule(betas)
    assert betas[-1] == 1.0
    for place in (0, 400, 990, 997, 998, 999):
        t = (place + 1) / 1000
        assert schedule.alpha(t) == pytest.approx(float(alphas[place]), rel=1e-6, abs=1e-15)
        assert schedule.sigma(t) == pytest.approx(math.sqrt(1 - float(alphas[place]) ** 2), rel=1e-9)
    assert (schedule.alpha(1.0), schedule.sigma(1.0), schedule.log_snr(1.0)) == (0.0, 1.0, -math.inf)


@pytest.mark.parametrize("betas", [rescaled()[0], rescaled(4)[0], (0.5, 1.0), (0.1, 0.3, 1.0)])
def test_it_falls_to_noise_without_a_jump_and_has_an_inverse(betas):
    schedule = TableSchedule(betas)
    times = torch.linspace(1e-4, 1.0, 3001, dtype=DOUBLE)
    alpha, sigma, log_snr = schedule.alpha(times), schedule.sigma(times), schedule.log_snr(times)
    assert bool((log_snr.diff() < 0).all())
    assert torch.allclose(alpha**2 + sigma**2, torch.ones_like(times))
    assert float(alpha.diff().abs().max()) < 4e-3
    assert float(log_snr[-1]) == -math.inf
    back = schedule.time(log_snr)
    assert torch.allclose(back, times, atol=1e-9)
    for t in (0.2, 0.7, 0.9993, 1.0):
        assert schedule.alpha(t) == pytest.approx(float(schedule.alpha(torch.tensor(t, dtype=DOUBLE))), rel=1e-12)
        assert schedule.sigma(t) == pytest.approx(float(schedule.sigma(torch.tensor(t, dtype=DOUBLE))), rel=1e-12)
        assert schedule.time(schedule.log_snr(t)) == pytest.approx(t, abs=1e-9)


def test_the_last_step_is_a_straight_line_of_alpha():
    schedule = TableSchedule((0.1, 0.3, 1.0))
    start = schedule.alpha(2 / 3)
    for part in (0.25, 0.5, 0.75):
        assert schedule.alpha(2 / 3 + part / 3) == pytest.approx((1 - part) * start)


def test_a_sampler_begins_in_pure_noise():
    """DDIM with the exact v of data N(0, 0.5^2): from N(0, 1) to it, the error falling with the steps."""
    schedule = TableSchedule(rescaled()[0])

    def v(x, t):
        alpha, sigma = (f(t).reshape(-1, 1).to(x) for f in (schedule.alpha, schedule.sigma))
        x0 = 0.25 * alpha * x / (0.25 * alpha**2 + sigma**2)
        eps = sigma * x / (0.25 * alpha**2 + sigma**2)
        return alpha * eps - sigma * x0

    ladder = mls.Ladder([VDenoiser(v, schedule)], costs=[1.0])
    errors = []
    for steps in (25, 100):
        times = uniform(schedule, steps)
        solution = mls.solve(
            ladder, torch.ones(1, 1, dtype=DOUBLE), times, mls.em_plan(ladder, times), step=DDIM(schedule)
        )
        errors.append(abs(float(solution.y) - 0.5))
    assert errors[0] < 0.07
    assert errors[1] < 0.4 * errors[0]


@pytest.mark.parametrize("place", [0, 3, 8])
@pytest.mark.parametrize("value", [0.0, -0.1, 1.0, 1.5, math.nan])
def test_a_wrong_entry_is_named_with_its_place(place, value):
    betas = [0.1] * 10
    betas[place] = value
    with pytest.raises(ValueError, match=rf'"betas\[{place}\]" is {value} of 10, expected a number strictly between'):
        TableSchedule(betas)


def test_the_last_entry_may_be_one_and_no_more():
    with pytest.raises(ValueError, match=r'"betas\[2\]" is 1.1 of 3'):
        TableSchedule([0.1, 0.2, 1.1])
    with pytest.raises(ValueError, match='"betas" has 1 entries, expected at least 2'):
        TableSchedule([1.0])


# -- pickling of the adapter's objects --------------------------------------------------------------------------------


class Net(torch.nn.Module):
    def forward(self, x, t):
        return 0.5 * x


SCHEDULES = [
    CosineSchedule(), EDMSchedule(), RectifiedFlowSchedule(), LinearSchedule(), TableSchedule((0.1, 0.2)),
    TableSchedule((0.1, 1.0)),
]  # fmt: skip


@pytest.mark.parametrize("way", [lambda thing: pickle.loads(pickle.dumps(thing)), copy.deepcopy])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_what_belongs_to_a_process_survives_pickling(schedule, way):
    x, t = torch.ones(2, 3), torch.tensor(0.4, dtype=DOUBLE)
    schedule.alpha(t)  # what it keeps for later goes along
    other = way(schedule)
    assert other == schedule
    assert hash(other) == hash(schedule)
    assert torch.equal(other.log_snr(t), schedule.log_snr(t))
    denoiser = DataDenoiser(Net(), schedule, clip=(-1, 1), time=TableIndex(1000))
    assert torch.equal(way(denoiser)(x, t), denoiser(x, t))
    for step in (DDIM(schedule),):
        assert torch.equal(way(step)(x, x, 0.4, 0.2, None), step(x, x, 0.4, 0.2, None))
    times = uniform(schedule, 8) if not isinstance(schedule, EDMSchedule) else log_snr_uniform(schedule, 8)
    noise = coupled_noise(schedule, range(2), times).like(x)
    assert torch.equal(way(noise)(float(times[0]), float(times[1])), noise(float(times[0]), float(times[1])))
    assert torch.equal(way(Process(schedule, 1.0, times)).fine_times, times)
    model = MultilevelDenoiser(mls.Ladder([Net(), denoiser], costs=[1.0, 2.0]), budget_fraction=0.7)
    assert torch.equal(way(model)(x, t), model(x, t))
