"""Laws of learning probabilities: the loss falls, runs repeat and resume, and bad input is refused."""

import itertools
import math
from functools import partial

import pytest
import torch
from learn_ladders import TIMES, early_ladder, seeded

import multilevel_sde as mls


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
        calls += len(seeds) == 8  # fewer seeds look at the levels
        if calls == 4:
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
    assert [seeds[0] for seeds in seen if len(seeds) == 8] == [24, 32, 40]  # fresh ones, from where it stopped
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
    with pytest.raises(ValueError, match=r"levels 1 and 2 .* are equal"):
        mls.learn(equal, seeded, TIMES, **arguments())
    hidden = mls.Ladder([lambda x, t: -x, lambda x, t: torch.from_numpy(x.detach().numpy() ** 2)], [1.0, 8.0])
    with pytest.raises((ValueError, RuntimeError), match="central_difference"):
        mls.learn(hidden, seeded, TIMES, **arguments(derivative=mls.forward_mode))
    detached = mls.Ladder([lambda x, t: -x, lambda x, t: x.detach() ** 2], [1.0, 8.0])
    with pytest.raises(ValueError, match="level 2 varies with its state"):
        mls.learn(detached, seeded, TIMES, **arguments(derivative=mls.forward_mode))
    with pytest.raises(TypeError, match="generator"):
        mls.learn(early_ladder(), seeded, TIMES, **arguments(generator=0))
    with pytest.raises(TypeError, match="y0_source"):
        mls.learn(early_ladder(), torch.zeros(3), TIMES, **arguments())


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


def test_the_plot_of_the_loss_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    mls.learn(early_ladder(), seeded, TIMES, **arguments(steps=2, batch=4, folder=tmp_path))
    assert (tmp_path / "learning.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="history"):
        mls.LearnedSchedule((1.0,), (0.0,), 0.1).plot(tmp_path / "none.png")
