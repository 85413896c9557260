"""Laws of learned schedules: fits to tables, the formula, budgets, and files."""

import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
from learn_ladders import TIMES, early_ladder, nonlinear_ladder

import multilevel_sde as mls
from multilevel_sde.files import seal


def test_the_start_is_the_closest_schedule_and_keeps_the_hits():
    ladder = early_ladder()
    member = mls.LearnedSchedule((0.7,), (-0.4,), 0.05)
    found = mls.LearnedSchedule.fit(member.probabilities(ladder, TIMES), TIMES, 0.05)
    assert found.alphas[0] == pytest.approx(0.7, abs=1e-6)
    assert found.betas[0] == pytest.approx(-0.4, abs=1e-6)
    other = torch.ones(16, 2, dtype=torch.float64)
    other[:, 1] = torch.linspace(0.9, 0.1, 16) ** 2
    table = mls.LearnedSchedule.fit(other, TIMES, 0.05).probabilities(ladder, TIMES)
    assert float(table[:, 1].sum()) == pytest.approx(float(other[:, 1].sum()), rel=1e-6)


def test_a_fit_is_the_most_likely_member():
    """Moving either parameter of either level lowers the likelihood of the table."""
    wanted = torch.ones(16, 3, dtype=torch.float64)
    wanted[:, 1], wanted[:, 2] = torch.linspace(0.9, 0.1, 16) ** 2, torch.linspace(0.05, 0.4, 16)

    def likelihood(schedule):
        p = schedule.probabilities(nonlinear_ladder(3), TIMES)[:, 1:]
        return float((wanted[:, 1:] * p.log() + (1 - wanted[:, 1:]) * (-p).log1p()).sum())

    best = mls.LearnedSchedule.fit(wanted, TIMES, 0.05)
    for name, level, change in itertools.product(("alphas", "betas"), (0, 1), (-0.01, 0.01)):
        values = list(getattr(best, name))
        values[level] += change
        assert likelihood(replace(best, **{name: tuple(values)})) < likelihood(best) - 1e-6


def test_a_fit_applies_to_other_grids_of_the_same_times():
    member, fine = mls.LearnedSchedule((0.7,), (-0.4,), 0.05), torch.linspace(1.0, 0.0, 301, dtype=torch.float64)
    fitted = mls.LearnedSchedule.fit(member.probabilities(early_ladder(), TIMES), TIMES, 0.05)
    assert torch.allclose(*(s.probabilities(early_ladder(), fine) for s in (member, fitted)), rtol=1e-6)
    one = mls.LearnedSchedule.fit(torch.tensor([[1.0, 0.3]]), [1.0, 0.0], 0.05)
    assert one.alphas == (0.0,)
    assert float(one.probabilities(early_ladder(), [1.0, 0.0])[0, 1]) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("table", "delta", "message"),
    [
        (torch.ones(3, 2), 0.05, "with 16 steps"),
        (torch.ones(16, 1), 0.05, "at least 2 levels"),
        (torch.full((16, 2), 0.5), 0.05, "lowest level must be 1"),
        (torch.ones(16, 2), -2.0, "delta"),
    ],
)
def test_a_table_that_cannot_be_fitted(table, delta, message):
    with pytest.raises(ValueError, match=message):
        mls.LearnedSchedule.fit(table, TIMES, delta)


def test_probabilities_are_the_formula():
    ladder = nonlinear_ladder(3)
    table = mls.LearnedSchedule((0.5, -1.0), (0.1, 0.2), 0.05).probabilities(ladder, TIMES)
    for n, t in enumerate(TIMES[:-1].tolist()):
        for k, (alpha, beta) in enumerate([(0.5, 0.1), (-1.0, 0.2)], start=1):
            assert float(table[n, k]) == pytest.approx(1 / (1 + math.exp(-alpha * math.log(t + 0.05) - beta)))
    assert (table[:, 0] == 1).all()


def test_a_shift_multiplies_the_odds_and_traces_the_curve():
    ladder, schedule = nonlinear_ladder(3), mls.LearnedSchedule((0.5, -1.0), (0.1, 0.2), 0.05)
    p, q = (s.probabilities(ladder, TIMES)[:, 1:] for s in (schedule, schedule.shifted(1.5)))
    assert torch.allclose(q / (1 - q), math.exp(1.5) * p / (1 - p))
    scaled = schedule.probabilities(ladder, TIMES, scale=math.exp(1.5))[:, 1:]
    assert torch.allclose(scaled, q)
    costs = [
        mls.expected_cost(ladder, schedule.shifted(d).probabilities(ladder, TIMES)) for d in torch.linspace(-4, 4, 9)
    ]
    assert costs == sorted(costs)


@pytest.mark.parametrize("draw", [mls.systematic, mls.nested])
@pytest.mark.parametrize("share", [0.07, 0.2, 0.6, 0.99, 1.0])
def test_a_budget_is_met(draw, share):
    ladder, schedule = nonlinear_ladder(3), mls.LearnedSchedule((0.5, -30.0), (0.1, 20.0), 0.05)
    budget = share * 16 * ladder.costs[-1]
    table = schedule.probabilities(ladder, TIMES, budget=budget, draw=draw)
    assert mls.expected_cost(ladder, table, draw) == pytest.approx(budget, rel=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 1e9}, '"budget" must lie above 16'),
        ({"budget": 1.0}, '"budget" must lie above 16'),
        ({"budget": 50.0, "scale": 1.0}, "at most one"),
        ({"scale": 0.0}, '"scale" must be a positive'),
    ],
)
def test_budgets_out_of_reach(options, message):
    with pytest.raises(ValueError, match=message):
        mls.LearnedSchedule((0.5,), (0.1,), 0.05).probabilities(nonlinear_ladder(2), TIMES, **options)


def test_schedules_are_checked_saved_and_loaded(tmp_path):
    with pytest.raises(ValueError, match="one number for each level"):
        mls.LearnedSchedule((1.0,), (), 0.1)
    with pytest.raises(ValueError, match="must be finite"):
        mls.LearnedSchedule((math.inf,), (0.0,), 0.1)
    schedule = mls.LearnedSchedule((0.1, 1 / 3), (2.0, -1.0), 0.05, 1e-3, ((0.5, 10.0), (0.25, 12.0)))
    path = tmp_path / "schedule.json"
    schedule.save(path)
    assert mls.LearnedSchedule.load(path) == schedule
    with pytest.raises(ValueError, match="has 2 levels, the schedule was learned for 3"):
        schedule.probabilities(nonlinear_ladder(2), TIMES)
    with pytest.raises(FileNotFoundError):
        mls.LearnedSchedule.load(tmp_path / "none.json")
    content = json.loads(path.read_text())
    for change, message in [
        ({"version": 99}, "version"),
        ({"format": "else"}, "not a learned"),
        ({"delta": None}, "lacks"),
    ]:
        path.write_text(json.dumps(seal({key: (content | change)[key] for key in content if key != "sha256"})))
        with pytest.raises(ValueError, match=message):
            mls.LearnedSchedule.load(path)
    for damaged in ("{", "[" * 100_000):
        path.write_text(damaged)
        with pytest.raises(ValueError, match="damaged"):
            mls.LearnedSchedule.load(path)
    path.write_bytes(json.dumps(content).encode("utf-16"))
    with pytest.raises(ValueError, match="damaged"):
        mls.LearnedSchedule.load(path)
    for damage in ({"delta": 0.06}, {"sha256": ""}, {"version": 1}):
        path.write_text(json.dumps(content | damage))
        with pytest.raises(ValueError, match="its checksum does not fit"):
            mls.LearnedSchedule.load(path)
    checksum = content.pop("sha256")
    path.write_text(json.dumps(content | {"version": 1, "rha256": checksum}))  # two bits flipped
    with pytest.raises(ValueError, match="its checksum does not fit"):
        mls.LearnedSchedule.load(path)
    path.write_text(json.dumps(content | {"version": 1}))  # as the first preview wrote them
    assert mls.LearnedSchedule.load(path) == schedule
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="its checksum does not fit"):
        mls.LearnedSchedule.load(path)
