"""Laws of the coupled noise: what a coarse step adds is what the fine steps inside it leave; variance; seeds."""

import itertools
import math

import pytest
import torch

import multilevel_sde as mls
from multilevel_diffusion.process.grids import karras, uniform
from multilevel_diffusion.process.noise import ClockedNoise, coupled_noise
from multilevel_diffusion.process.schedules import CosineSchedule, EDMSchedule, RectifiedFlowSchedule
from multilevel_diffusion.process.steps import ExponentialStep
from multilevel_diffusion.process.tables import LinearSchedule
from multilevel_sde.noise.counter import CounterNormals

CASES = [
    (CosineSchedule(), uniform),
    (LinearSchedule(), uniform),
    (EDMSchedule(), karras),
    (RectifiedFlowSchedule(), uniform),
]
CASE_IDS = ["cosine", "linear", "edm", "flow"]


def noise_alone(schedule, tau, times, noise, count=8, dtype=torch.float64):
    """The end of a path with x = 0 and estimate 0: nothing but the noise and its damping."""
    ladder = mls.Ladder([lambda x, t: torch.zeros_like(x)], costs=[1.0])
    x = torch.zeros(count, 3, dtype=dtype)
    step = ExponentialStep(schedule, tau)
    return mls.solve(ladder, x, times, mls.em_plan(ladder, times), step=step, diffusion=1.0, brownian=noise).y


@pytest.mark.parametrize(("schedule", "grid"), CASES, ids=CASE_IDS)
@pytest.mark.parametrize("tau", [0.3, 1.0, 2.0, 6.0])
def test_a_coarse_step_adds_what_the_fine_ones_leave(schedule, grid, tau):
    fine = grid(schedule, 120)
    noise = coupled_noise(schedule, range(8), fine, tau)
    for stop in (20, 60, 110):
        expected = noise_alone(schedule, tau, fine[: stop + 1], noise)
        assert expected.abs().max() > 1e-4
        for stride in (2, 5, 10, stop):
            coarse = noise_alone(schedule, tau, fine[: stop + 1 : stride], noise)
            torch.testing.assert_close(coarse, expected, rtol=1e-9, atol=1e-12)


def test_the_weights_are_those_of_the_literature():
    """tau = 1: w_u = e^{-(lambda_r - lambda_{u-1})} sqrt(1 - e^{-2 h_u}) over the fine steps u -> u-1, normalised."""
    schedule = CosineSchedule()
    times = uniform(schedule, 50)[10:21]
    noise = coupled_noise(schedule, [3], times)
    log_snr = schedule.log_snr(times)
    weights = torch.exp(log_snr[1:] - log_snr[-1]) * torch.sqrt(1 - torch.exp(-2 * log_snr.diff()))
    overall = 1 - torch.exp(-2 * (log_snr[-1] - log_snr[0]))
    torch.testing.assert_close(weights.square().sum(), overall, rtol=1e-12, atol=0)
    noise = noise.like(torch.zeros(1, 5, dtype=torch.float64))
    fine = torch.cat(list(noise.increments(times))) / times.diff().abs().sqrt()[:, None]
    coarse = noise(float(times[0]), float(times[-1])) / math.sqrt(float(times[0] - times[-1]))
    expected = (weights[:, None] * fine).sum(0, keepdim=True) / overall.sqrt()
    torch.testing.assert_close(coarse, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("schedule", "grid"), CASES, ids=CASE_IDS)
@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_variance_of_what_is_left(schedule, grid, tau):
    """12000 normals: variance sigma_s^2 (1 - e^{-2 tau^2 h}) within 4.5 standard errors, at fine and coarse steps."""
    fine = grid(schedule, 60)[:41]
    noise = coupled_noise(schedule, range(4000), fine, tau)
    h = schedule.log_snr(float(fine[-1])) - schedule.log_snr(float(fine[0]))
    expected = schedule.sigma(float(fine[-1])) ** 2 * -math.expm1(-2 * tau**2 * h)
    for times in (fine, fine[::8]):
        sample = noise_alone(schedule, tau, times, noise, count=4000)
        ratio = float(sample.square().mean()) / expected
        assert abs(ratio - 1) < 4.5 * math.sqrt(2 / sample.numel())


@pytest.mark.parametrize(("schedule", "grid"), CASES, ids=CASE_IDS)
def test_increments_have_the_variance_of_brownian_ones_to_the_very_data(schedule, grid):
    times = grid(schedule, 10)
    noise = coupled_noise(schedule, range(5000), times).like(torch.zeros(5000, 2, dtype=torch.float64))
    for length, increment in zip(times.diff().abs().tolist(), noise.increments(times), strict=True):
        assert abs(float(increment.square().mean()) / length - 1) < 4.5 * math.sqrt(2 / increment.numel())


def test_a_seed_is_a_path_whatever_the_batch():
    schedule = CosineSchedule()
    times = uniform(schedule, 20)
    together = noise_alone(schedule, 1.0, times[:-1], coupled_noise(schedule, [5, 6, 7], times), count=3)
    alone = noise_alone(schedule, 1.0, times[:-1], coupled_noise(schedule, [7], times), count=1)
    assert torch.equal(together[2:], alone)
    assert not torch.equal(together[0], together[1])


def test_single_calls_and_a_row_of_them_agree():
    schedule = CosineSchedule()
    times = uniform(schedule, 12)
    noise = coupled_noise(schedule, [1, 2], times).like(torch.zeros(2, 3, dtype=torch.float64))
    wanted = times[::3]
    for n, increment in enumerate(noise.increments(wanted)):
        assert torch.equal(increment, noise(float(wanted[n]), float(wanted[n + 1])))


def test_grids_may_run_either_way_and_the_reverse_increment_is_the_negative():
    schedule = CosineSchedule()
    times = uniform(schedule, 12)
    y = torch.zeros(2, 3, dtype=torch.float64)
    down = coupled_noise(schedule, [1, 2], times).like(y)
    t, s = float(times[2]), float(times[8])
    torch.testing.assert_close(down(s, t), -down(t, s), rtol=1e-13, atol=1e-13)
    up = coupled_noise(schedule, [1, 2], times.flip(0)).like(y)
    torch.testing.assert_close(up(s, t), -up(t, s), rtol=1e-13, atol=1e-13)
    coarse, fine = (noise_alone(schedule, 1.0, grid, up, count=2) for grid in (times[:11:5], times[:11]))
    torch.testing.assert_close(coarse, fine, rtol=1e-9, atol=1e-12)


def test_times_off_by_rounding_are_recognised():
    schedule = CosineSchedule()
    fine = torch.linspace(1.0, 0.0, 1001, dtype=torch.float64)
    noise = coupled_noise(schedule, [1], fine).like(torch.zeros(1, 3))
    for times in (torch.linspace(1, 0, 101, dtype=torch.float32), torch.linspace(1, 0, 41, dtype=torch.float64)):
        assert len(list(noise.increments(times))) == len(times) - 1
    fine = karras(EDMSchedule(), 100)  # in float32 its first times round by more than a thousandth of its last cells
    noise = coupled_noise(EDMSchedule(), [1], fine).like(torch.zeros(1, 3))
    assert len(list(noise.increments(fine[::10].float()))) == 10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_states_get_low_precision_noise(dtype):
    schedule = EDMSchedule()
    times = karras(schedule, 40)
    noise = coupled_noise(schedule, range(4), times)
    exact = noise_alone(schedule, 1.0, times[:31], noise, count=4)
    low = noise_alone(schedule, 1.0, times[:31], noise, count=4, dtype=dtype)
    assert low.dtype == dtype
    torch.testing.assert_close(low.double(), exact, rtol=0, atol=30 * torch.finfo(dtype).eps)


def test_tau_in_an_interval_couples_as_a_constant_inside_it():
    """tau(t) = 1 for 0.2 < t <= 0.8, else 0: at coarse steps that do not cross its jumps the coupling is exact."""
    schedule = CosineSchedule()

    def tau(t):
        return 1.0 if 0.2 < t <= 0.8 else 0.0

    fine = uniform(schedule, 100)
    noise = coupled_noise(schedule, range(8), fine, tau)
    expected = noise_alone(schedule, tau, fine[:96], noise)
    assert expected.abs().max() > 1e-3
    coarse = noise_alone(schedule, tau, fine[:96:5], noise)
    torch.testing.assert_close(coarse, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("schedule", "grid"), CASES, ids=CASE_IDS)
def test_two_sub_grids_have_the_joint_law_of_one_motion_in_the_clock(schedule, grid):
    """Correlations are sqrt(overlap^2 / (v_i v_j)) in v = e^{2 lambda}: 20 000 pairs, 9 entries, level 6e-5."""
    fine = grid(schedule, 60)[:59]
    noise = coupled_noise(schedule, range(5000), fine).like(torch.zeros(5000, 4, dtype=torch.float64))
    first, second = [0, 9, 30, 58], [3, 25, 41, 50]
    a, b = (torch.stack(list(noise.increments(fine[places]))).flatten(1) for places in (first, second))
    a, b = (x / fine[places].diff().abs().sqrt()[:, None] for x, places in ((a, first), (b, second)))
    clock = torch.exp(2 * schedule.log_snr(fine.double()))
    for i, (lo, hi) in enumerate(itertools.pairwise(first)):
        for j, (low, high) in enumerate(itertools.pairwise(second)):
            overlap = float((clock[min(hi, high)] - clock[max(lo, low)]).clamp_min(0))
            expected = overlap / math.sqrt(float((clock[hi] - clock[lo]) * (clock[high] - clock[low])))
            error = math.sqrt((1 + expected**2) / a.shape[1])
            assert abs(float((a[i] * b[j]).mean()) - expected) < 4.5 * error


def test_an_interval_has_the_same_bits_in_every_sub_grid_and_few_steps_take_few_normals(monkeypatch):
    """Five steps of a thousand take six normals, and are what single calls of one sample give."""
    schedule, drawn = CosineSchedule(), []
    fine = uniform(schedule, 1000)
    noise = coupled_noise(schedule, range(3), fine).like(torch.zeros(3, 50_000))
    draw = CounterNormals.__call__
    with monkeypatch.context() as patch:
        patch.setattr(CounterNormals, "__call__", lambda *args: drawn.append(args[1]) or draw(*args))
        increments = list(noise.increments(fine[::200]))
    assert sorted(drawn) == [0, 200, 400, 500, 600, 800]
    more = list(noise.increments(fine[[0, 120, 200, 400, 433, 600, 610]]))
    assert torch.equal(more[2], increments[1])
    alone = noise.subset([2])(float(fine[200]), float(fine[400]))
    assert torch.equal(alone[0], increments[1][2])


@pytest.mark.parametrize("tau", [6.0, 12.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_clock_wider_than_the_numbers_has_the_right_variance(tau, dtype):
    """e^{2 tau^2 lambda} spans e^760 and e^3000 here; 10 000 normals a step, 100 steps, level 7e-4."""
    schedule = EDMSchedule()
    times = karras(schedule, 100)
    noise = coupled_noise(schedule, range(100), times, tau).like(torch.zeros(100, 100, dtype=dtype))
    for length, increment in zip(times.diff().abs().tolist(), noise.increments(times), strict=True):
        assert increment.dtype == dtype
        assert abs(float(increment.double().square().mean()) / length - 1) < 4.5 * math.sqrt(2 / increment.numel())
    coarse = torch.stack(list(noise.increments(times[::10]))).double().square().mean((1, 2))
    assert (coarse / times[::10].diff().abs() - 1).abs().max() < 4.5 * math.sqrt(2 / 10_000)


def test_where_the_clock_stands_still_there_is_no_noise():
    noise = ClockedNoise([0], [1.0, 0.6, 0.3, 0.0], [-math.inf, 0.0, -math.inf], shape=(4,))
    first, second, third = noise.increments([1.0, 0.6, 0.3, 0.0])
    assert not first.any()
    assert not third.any()
    torch.testing.assert_close(noise(1.0, 0.0), second * math.sqrt(1.0 / 0.3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: coupled_noise(CosineSchedule(), [1], [1.0, 0.5, 0.0], tau=0.0), '"tau"'),
        (lambda: ClockedNoise([1], [1.0, 0.5, 0.0], [0.0]), '"log_variances"'),
        (lambda: ClockedNoise([1], [1.0, 0.5, 0.0], [0.0, 0.0], shape=())(1.0, 0.3), '"times"'),
        (lambda: ClockedNoise([1], [1.0, 0.5, 0.0], [0.0, math.nan]), '"log_variances" must be finite, or -inf'),
        (lambda: ClockedNoise([1], [1.0, 0.5, 0.0], [0.0, math.inf]), '"log_variances" must be finite, or -inf'),
        (lambda: ClockedNoise([1], [1.0, 0.5, 0.0], 0.0), r'"log_variances" has shape \(\)'),
        (lambda: coupled_noise(CosineSchedule(), [1], [1.0, 0.5, 0.0], tau=lambda t: math.nan), '"tau" returned'),
        (lambda: coupled_noise(CosineSchedule(), [1], [1.0, 0.5, 0.0], tau=lambda t: -1.0), '"tau" returned'),
        (lambda: coupled_noise(CosineSchedule(), [1], [2.0, 1.0, 0.0]), r'"t" is 2.0, expected a time in \[0'),
        (lambda: coupled_noise(CosineSchedule(), [1], [1.0, 0.5, 0.5]), '"times"'),
        (lambda: coupled_noise(CosineSchedule(), [1, 2], [1.0, 0.5]).like(torch.zeros(3, 1)), '"seeds"'),
    ],
)
def test_errors_name_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_two_times_at_one_point_of_the_grid_are_refused():
    noise = ClockedNoise([0], [1.0, 0.5, 0.0], [0.0, 0.0], shape=())
    with pytest.raises(ValueError, match='"times" has two times at one point of the grid'):
        list(noise.increments([1.0, 0.5, 0.4999]))
