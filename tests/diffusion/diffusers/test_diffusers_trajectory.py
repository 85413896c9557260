"""Which call of which trajectory: the rules, the rows of the draw, and the schedulers of diffusers."""

from __future__ import annotations

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

import multilevel_sde as mls  # noqa: E402
from multilevel_diffusion.diffusers.clock import PipelineClock  # noqa: E402
from multilevel_diffusion.loops.rows import DrawnRows, PlannedRows, combine, step_probabilities  # noqa: E402
from multilevel_diffusion.loops.trajectory import Meter, Trajectory  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SCHEDULERS = [
    "CosineDPMSolverMultistepScheduler",
    "DDIMInverseScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "HeunDiscreteScheduler",
    "IPNDMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
]


class Pipe:
    def __init__(self, scheduler):
        self.scheduler = scheduler


def states(number: int) -> list[torch.Tensor]:
    return [torch.zeros(1) for _ in range(number)]


def positions(trajectory: Trajectory, times: list[float]) -> list[int]:
    return [trajectory.visit(t, x) for t, x in zip(times, states(len(times)), strict=True)]


def test_calls_of_a_trajectory_are_numbered_through():
    trajectory = Trajectory()
    assert positions(trajectory, [9, 6, 3, 0]) == [0, 1, 2, 3]
    assert trajectory.number == 1


def test_a_repeated_time_is_the_next_call():
    assert positions(Trajectory(), [9, 6, 6, 3, 3, 0]) == [0, 1, 2, 3, 4, 5]


def test_the_same_state_at_the_same_time_is_the_same_call():
    trajectory, (x, y, z) = Trajectory(), states(3)
    calls = [(9.0, x), (9.0, x), (6.0, y), (6.0, y), (6.0, z), (6.0, z)]
    assert [trajectory.visit(t, state) for t, state in calls] == [0, 0, 1, 1, 2, 2]
    assert trajectory.number == 1


def test_a_state_changed_in_place_is_another_state():
    trajectory, x, y = Trajectory(), torch.zeros(1), torch.zeros(1)
    assert [trajectory.visit(9.0, y), trajectory.visit(6.0, x)] == [0, 1]
    x += 1
    assert trajectory.visit(6.0, x) == 2


def test_inference_tensors_have_no_version_and_still_work():
    with torch.inference_mode():
        assert positions(Trajectory(), [9, 6, 3]) == [0, 1, 2]


@pytest.mark.parametrize("interrupted", [[9], [9, 6], [9, 6, 6], [9, 6, 3, 0]])
def test_a_new_run_begins_at_zero_whether_or_not_the_last_one_was_finished(interrupted: list[float]):
    trajectory = Trajectory()
    positions(trajectory, interrupted)
    assert positions(trajectory, [9, 6, 6, 3, 0]) == [0, 1, 2, 3, 4]
    assert trajectory.number == 2


def test_runs_of_a_single_call_are_apart():
    assert positions(Trajectory(), [9, 9, 9]) == [0, 0, 0]


def test_ascending_times_are_followed():
    assert positions(Trajectory(), [0, 3, 6, 9, 0, 3]) == [0, 1, 2, 3, 0, 1]
    assert positions(Trajectory(), [1, 3, 6, 9, 2, 4]) == [0, 1, 2, 3, 0, 1]


def test_rounding_does_not_begin_a_trajectory_but_a_rise_does():
    assert positions(Trajectory(), [9, 6, 6.000001, 3]) == [0, 1, 2, 3]
    assert positions(Trajectory(), [9, 6, 7, 3]) == [0, 1, 0, 1]
    assert positions(Trajectory(rise=2.0), [9, 6, 7, 3, 9]) == [0, 1, 2, 3, 0]


def test_a_rise_below_one_is_refused():
    with pytest.raises(ValueError, match=r'"rise" must be a factor of at least 1, got 0\.5'):
        Trajectory(rise=0.5)


def run_scheduler(clock: PipelineClock, scheduler, steps: int = 10) -> list[int]:
    scheduler.set_timesteps(steps)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    seen = []
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        seen.append(clock.visit(t, scaled))
        x = scheduler.step(0.01 * scaled, t, x).prev_sample
    return seen


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_call_of_every_scheduler_is_numbered_in_every_run(name: str, linked: bool):
    pipe, clock = Pipe(getattr(diffusers, name)()), PipelineClock()
    if linked:
        clock.link(pipe)
    for run in range(1, 4):
        seen = run_scheduler(clock, pipe.scheduler, steps=10)
        assert seen == list(range(len(pipe.scheduler.timesteps)))
        assert clock.number == run


def test_a_linked_clock_follows_a_swapped_scheduler_and_tells_its_calls():
    pipe, clock = Pipe(diffusers.DDIMScheduler()), PipelineClock()
    clock.link(pipe)
    run_scheduler(clock, pipe.scheduler)
    pipe.scheduler = diffusers.HeunDiscreteScheduler()
    assert run_scheduler(clock, pipe.scheduler, steps=5) == list(range(9))
    assert clock.calls == 9


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_a_linked_clock_knows_where_in_the_timesteps_a_trajectory_begins(name: str):
    pipe, clock = Pipe(getattr(diffusers, name)()), PipelineClock()
    clock.link(pipe)
    scheduler, x = pipe.scheduler, torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(10)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(6)
    seen = []
    for t in scheduler.timesteps[6:]:
        seen.append((clock.visit(t, x), clock.offset))
        x = scheduler.step(0.01 * x, t, x).prev_sample
    assert seen == [(n, 6) for n in range(4)]


def test_a_clock_in_the_wrong_pipeline_is_refused():
    pipe, clock = Pipe(diffusers.EulerDiscreteScheduler()), PipelineClock()
    pipe.scheduler.set_timesteps(10)
    clock.link(pipe)
    with pytest.raises(ValueError, match="is not the one that calls it: its scheduler was not set"):
        run_scheduler(clock, diffusers.DDIMScheduler())


def test_copies_of_a_scheduler_that_step_in_its_place_are_followed():
    """Two calls a step, two runs on one set of timesteps, and an interrupted one."""
    pipe, clock = Pipe(diffusers.UniPCMultistepScheduler()), PipelineClock()
    clock.link(pipe)
    for number in (2, 5):
        pipe.scheduler.set_timesteps(10)
        for _ in range(2):
            states = [torch.zeros(1) for _ in range(10)]
            calls = [(t, x) for t, x in zip(pipe.scheduler.timesteps, states, strict=True) for _ in range(2)]
            assert [clock.visit(t, x) for t, x in calls] == [n // 2 for n in range(20)]
        assert (clock.number, clock.offset) == (number, 0)
        clock.visit(pipe.scheduler.timesteps[0], torch.zeros(1))


def test_a_step_that_the_pipeline_announces_is_believed():
    pipe, clock, x = Pipe(diffusers.EulerDiscreteScheduler()), PipelineClock(), torch.zeros(1)
    clock.link(pipe)
    pipe.scheduler.set_timesteps(10)
    pipe.scheduler.set_begin_index(4)
    times = pipe.scheduler.timesteps[2:] / 1000
    assert [clock.visit(times[step], x, step) for step in (2, 2, 3, 4, 2, 3)] == [0, 0, 1, 2, 0, 1]
    assert (clock.offset, clock.number) == (4, 2)


def test_time_travel_is_one_trajectory():
    pipe, clock, x = Pipe(diffusers.RePaintScheduler()), PipelineClock(), torch.zeros(1)
    clock.link(pipe)
    for run in (1, 2):
        pipe.scheduler.set_timesteps(20, jump_length=3, jump_n_sample=3)
        times, last, seen = pipe.scheduler.timesteps, 10**6, []
        for t in times:
            if t < last:
                seen.append(clock.visit(t, x.clone()))
            last = t
        assert seen == list(range(clock.calls))
        assert (clock.number, len(seen) < len(times)) == (run, True)


def test_frames_at_times_of_their_own_are_refused():
    clock, x = PipelineClock(), torch.zeros(1)
    assert clock.visit(torch.tensor([[0.0, 900.0, 900.0]]), x) == 0
    assert clock.visit(torch.tensor([[0.0, 800.0, 800.0]]), x) == 1
    with pytest.raises(ValueError, match="the frames of a call are at different times"):
        clock.visit(torch.tensor([[0.0, 800.0, 900.0]]), x)


def test_rows_are_the_coefficients_of_a_plan_drawn_with_the_same_seed():
    p = torch.tensor([1.0, 0.3, 0.1], dtype=torch.float64)
    rows = DrawnRows(p, mls.systematic, seed=3)
    plan = mls.draw_plan(p.expand(1024, 3), mls.systematic, generator=torch.Generator().manual_seed(3))
    assert [rows[n] for n in range(1024)] == plan.coefficients.tolist()
    assert rows[5] == DrawnRows(p, mls.systematic, seed=3)[5]


@pytest.mark.parametrize("draw", [mls.systematic, mls.independent, mls.nested])
def test_rows_go_on_without_end_and_keep_their_marginals(draw: mls.Draw):
    rows = DrawnRows(torch.tensor([1.0, 0.25], dtype=torch.float64), draw, seed=0)
    hits = sum(rows[n][1] != 0 for n in range(5000))
    assert abs(hits - 1250) < 4 * (5000 * 0.25 * 0.75) ** 0.5
    assert all(sum(rows[n]) == pytest.approx(1.0) for n in range(20))


def test_rows_of_a_table_and_of_a_plan_end_with_a_sentence():
    table = torch.tensor([[1.0, 1.0], [1.0, 0.5]], dtype=torch.float64)
    for rows in (DrawnRows(table), PlannedRows(mls.Plan(table > 0, table))):
        assert rows[0] == [0.0, 1.0]
        with pytest.raises(ValueError, match='"plan" has 2 steps, the sampler made call number 3'):
            rows[2]


def test_plans_with_a_draw_for_each_sample_are_refused():
    with pytest.raises(ValueError, match="draws of their own for 3 samples"):
        PlannedRows(mls.Plan(torch.ones(2, 3, 2), torch.ones(2, 3, 2)))


def test_half_precision_is_summed_in_single():
    """400.5 - 400 is lost in float16 (spacing 0.25 there: 801 - 800 would survive only by luck)."""
    values = [torch.tensor([1.001], dtype=torch.float16), torch.tensor([1.0], dtype=torch.float16)]
    total = combine([-1000.0, 1001.0], values.__getitem__)
    exact = -1000.0 * values[0].double() + 1001.0 * values[1].double()
    assert total.dtype == torch.float16
    assert total.double().item() == pytest.approx(exact.item(), rel=1e-3)


def test_only_levels_with_a_coefficient_are_evaluated_and_one_is_passed_through():
    value = torch.randn(3)
    assert combine([0.0, 1.0, 0.0], {1: value}.__getitem__) is value


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.9, 1.0])
def test_step_probabilities_cost_the_fraction(fraction: float):
    ladder = mls.Ladder([torch.sin, torch.cos, torch.tan], costs=[1.0, 3.0, 9.0])
    for schedule in (mls.InverseCostSchedule(), mls.TheoremSchedule(gamma=2.5)):
        p = step_probabilities(ladder, fraction, schedule)
        assert mls.expected_cost(ladder, p[None]) == pytest.approx(9.0 * fraction, rel=1e-6)


def test_the_meter_counts_trajectories_apart():
    meter = Meter(costs=(1.0, 10.0))
    for levels, number in [([0], 1), ([0, 1], 1), ([1], 2)]:
        meter.count(levels, number)
    stats = meter.stats
    assert (stats.trajectories, stats.trajectory.evaluations, stats.total.evaluations) == (2, (0, 1), (2, 2))
    assert stats.trajectory.fraction == 1.0
    assert stats.total.fraction == pytest.approx(22 / 30)
