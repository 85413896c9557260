"""Saving by times of the grid, and callbacks that stop a solve."""

import pytest
import torch

import multilevel_sde as mls

DOUBLE = torch.float64
TIMES = torch.linspace(0.0, 1.0, 11, dtype=DOUBLE)
LADDER = mls.Ladder([lambda y, t: -y, lambda y, t: -torch.sin(y)], [1.0, 8.0])


def solve(times=TIMES, step=mls.euler_maruyama, plan=None, y0=None, **options):
    plan = mls.em_plan(LADDER, times, step=step) if plan is None else plan
    y0 = torch.ones(3, dtype=DOUBLE) if y0 is None else y0
    return mls.solve(LADDER, y0, times, plan, step=step, **options)


@pytest.mark.parametrize(
    "times", [TIMES, TIMES.flip(0), TIMES.float(), TIMES.tolist()], ids=["up", "down", "32", "list"]
)
@pytest.mark.parametrize(
    "save", [[0.0, 0.3, 1.0], [1.0, 0.3], (0, 0.3), torch.tensor([0.3]), [torch.tensor(0.3).item()]]
)
def test_saved_times_are_those_indices(times, save):
    asked = sorted({round(float(time), 6) for time in save}, reverse=float(times[1]) < float(times[0]))
    by_time, by_index = solve(times, save=save), solve(times, save=True)
    rows = [round(float(time) * 10) for time in asked]
    rows = [10 - row for row in rows] if float(times[1]) < float(times[0]) else rows
    assert torch.equal(by_time.ys, by_index.ys[rows])
    assert [round(float(time), 6) for time in by_time.times] == asked


@pytest.mark.parametrize("save", [[0.25], [0.3, 1.1], [0.1 + 2e-4], [float("nan")]])
def test_a_time_off_the_grid_is_refused(save):
    with pytest.raises(
        ValueError, match=r'"save" has the time (0.25|1.1|0.1002|nan), which is not on the grid of the solve'
    ):
        solve(save=save)


def test_whole_numbers_stay_indices():
    assert solve(save=[0, 1]).times.tolist() == pytest.approx([0.0, 0.1])
    with pytest.raises(ValueError, match=r'"save" must be True, False or indices of times within 0\.\.10, got \[11\]'):
        solve(save=[11])


def test_a_callback_sees_every_state():
    seen = []
    whole = solve(save=True, callback=lambda n, t, y: seen.append((n, t, y)))
    assert [n for n, _, _ in seen] == list(range(1, 11))
    assert [t for _, t, _ in seen] == TIMES[1:].tolist()
    assert torch.equal(torch.stack([y for _, _, y in seen]), whole.ys[1:])
    assert whole.status == "completed"


@pytest.mark.parametrize(
    "step", [mls.euler_maruyama, mls.Heun(), mls.AdamsBashforth(3)], ids=["euler", "heun", "adams3"]
)
def test_a_callback_stops(step):
    """The state, times, statistics and status are those of the steps that were made."""
    kept, whole = [], solve(step=step, save=True)
    for save in (False, True, [0, 2, 8], [0.2, 0.8]):
        solution = solve(step=step, save=save, callback=lambda n, t, y: n == 4)
        assert torch.equal(solution.y, whole.ys[4])
        assert solution.status == "stopped by the callback at step 4 of 10, time 0.4"
        short = solve(TIMES[:5], step=step)
        assert solution.stats.evaluations.tolist() == short.stats.evaluations.tolist()
        assert (solution.stats.cost, solution.stats.calls, solution.stats.steps) == (
            short.stats.cost,
            short.stats.calls,
            4,
        )
        assert torch.equal(solution.ys[-1], solution.y)
        kept.append([round(float(time), 6) for time in solution.times])
    assert kept == [[0.4], [0.0, 0.1, 0.2, 0.3, 0.4], [0.0, 0.2, 0.4], [0.2, 0.4]]


def test_stopping_at_the_last_step_is_completing():
    assert solve(callback=lambda n, t, y: n == 10).status == "completed"


def test_a_draw_per_sample_and_16_bits_stop_too():
    plan = mls.draw_plan(torch.tensor([1.0, 0.5]).expand(10, 2), samples=3, generator=torch.Generator().manual_seed(0))
    assert solve(plan=plan, callback=lambda n, t, y: n == 4).stats.evaluations.shape == (3, 2)
    seen = []
    y0 = torch.ones(3, dtype=torch.bfloat16)
    solution = solve(y0=y0, callback=lambda n, t, y: seen.append(y.dtype) or torch.tensor(n == 2))
    assert seen == [torch.bfloat16] * 2
    assert solution.y.dtype == torch.bfloat16


def test_what_a_callback_returns_is_checked():
    with pytest.raises(TypeError, match='"callback" must return True to stop, or False or None to go on, got int'):
        solve(callback=lambda n, t, y: 1)
