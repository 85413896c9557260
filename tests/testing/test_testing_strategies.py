"""Laws of the strategies of multilevel_sde.testing: they make what they say; and the page that shows them runs."""

import itertools
import math
import re

import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from places import DOCS

import multilevel_sde as mls
from multilevel_sde.rates.problems import scaling_law
from multilevel_sde.testing import grids, ladders, plans, probabilities, states

DOUBLE = torch.float64
TIMES = torch.linspace(0.0, 1.0, 5, dtype=DOUBLE)
PAGE = DOCS / "testing.md"


def refused(message):
    return pytest.raises(ValueError, match=message)


def some(strategy, condition=lambda value: True):
    """Some example that fits a condition, not the least one."""
    return find(strategy, condition, settings=settings(phases=[Phase.generate], max_examples=300))


# -- strategies -------------------------------------------------------------------------------------------------------


@given(ladder=ladders(min_levels=2, max_levels=4, max_ratio=8.0), y=states(), t=st.floats(0.0, 1.0))
def test_ladders_are_ladders(ladder, y, t):
    assert 2 <= len(ladder) <= 4
    assert all(1.01 - 1e-12 <= b / a <= 8.0 + 1e-12 for a, b in itertools.pairwise(ladder.costs))
    time, limit = torch.tensor(t), -torch.sin(y)
    for k, drift in enumerate(ladder.drifts):
        value = drift(y, time)
        assert (value.shape, value.dtype) == (y.shape, y.dtype)
        assert (value - limit).abs().max() <= 0.7 ** (k + 1) + 1e-12
        assert torch.equal(drift(y[:1], time), value[:1])


def test_ladders_approximate_the_drift_that_is_given():
    ladder = some(ladders(drift=lambda x, t: 5 * x, min_levels=5))
    x = torch.ones(1, dtype=DOUBLE)
    assert (ladder.drifts[4](x, torch.tensor(0.0)) - 5).abs() < 0.2


@pytest.mark.parametrize("descending", [None, False, True])
def test_grids_run_as_they_are_told(descending):
    @given(times=grids(min_steps=2, max_steps=7, low=-1.0, high=3.0, descending=descending, dtype=torch.float32))
    def law(times):
        assert times.dtype == torch.float32
        assert 2 <= len(times) - 1 <= 7
        assert -1.0 <= times.min() < times.max() <= 3.0
        down = bool(times[1] < times[0])
        assert ((times.diff() < 0) if down else (times.diff() > 0)).all()
        assert down == descending or descending is None
        assert times.diff().abs().min() > 3.9e-4

    law()


def test_grids_go_both_ways_even_and_uneven():
    for down, even in itertools.product((False, True), repeat=2):
        some(
            grids(min_steps=3),
            lambda g, down=down, even=even: bool(g[1] < g[0]) == down and (g.diff().std() < 1e-9) == even,
        )


@given(data=st.data(), ladder=ladders(), times=grids())
def test_probabilities_are_probabilities(data, ladder, times):
    table = data.draw(probabilities(ladder, times, smallest=0.3))
    assert table.shape == (len(times) - 1, len(ladder))
    assert ((table >= 0.3) & (table <= 1)).all()
    mls.FixedSchedule(table)
    mls.FixedSchedule(data.draw(probabilities(ladder, times, truncate=True)), truncate=True)


def test_truncated_probabilities_reach_zero_and_others_do_not():
    ladder = scaling_law(2.0, 3).ladder
    some(probabilities(ladder, TIMES, truncate=True), lambda table: bool((table[0, 1:] == 0).all()))
    some(plans(ladder, TIMES, truncate=True), lambda plan: plan.truncated)


@given(data=st.data(), ladder=ladders(max_levels=3), times=grids(max_steps=6), samples=st.sampled_from([None, 1, 3]))
def test_plans_fit_their_ladder_and_times(data, ladder, times, samples):
    plan = data.draw(plans(ladder, times, samples=samples, step=mls.Heun(), smallest=0.25))
    y0 = torch.ones(samples or 2, dtype=DOUBLE)
    assert mls.solve(ladder, y0, times, plan, step=mls.Heun()).status == "completed"
    assert plan.samples == samples
    assert plan.weights.max() <= 4.0


def test_plans_recall_where_they_may():
    ladder = scaling_law(2.0, 3).ladder
    some(plans(ladder, TIMES, recall=True), lambda plan: plan.recall is not None and len(plan.recall) > 1)
    with refused('"recall" needs one draw for the batch'):
        some(plans(ladder, TIMES, recall=True, samples=2))


@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32, torch.bfloat16])
def test_states_have_the_shape_dtype_and_bound_that_is_asked_for(dtype):
    @given(y=states(min_samples=2, max_samples=3, max_dims=2, max_side=3, bound=0.3, dtype=dtype))
    def law(y):
        assert y.dtype == dtype
        assert 2 <= len(y) <= 3
        assert y.dim() <= 3
        assert max(y.shape[1:], default=1) <= 3
        assert (y.abs() <= torch.tensor(0.3, dtype=dtype)).all()

    law()


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (ladders(min_levels=0), '"min_levels" must be at least 1, got 0'),
        (ladders(min_levels=3, max_levels=2), '"max_levels" must be at least 3, got 2'),
        (ladders(max_ratio=1.0), '"max_ratio" must be a finite number of at least 1.01, got 1.0'),
        (grids(min_steps=0), '"min_steps" must be at least 1, got 0'),
        (grids(min_steps=5, max_steps=4), '"max_steps" must be at least 5, got 4'),
        (grids(max_steps=2000), '"max_steps" must be at most 1000, got 2000'),
        (grids(low=1.0, high=1.0), '"low" must be below "high" and both finite, got 1.0 and 1.0'),
        (grids(dtype=torch.int64), '"dtype" must resolve times'),
        (grids(dtype=torch.bfloat16), '"dtype" must resolve times'),
        (grids(low=1000.0, high=1001.0, dtype=torch.float32), '"dtype" must resolve times'),
        (probabilities(scaling_law(2.0, 2).ladder, TIMES, smallest=0.0), r'"smallest" must lie in \(0, 1\], got 0.0'),
        (states(min_samples=0), '"min_samples" must be at least 1, got 0'),
        (states(min_samples=9), '"max_samples" must be at least 9, got 6'),
        (states(max_dims=-1), '"max_dims" must be at least 0, got -1'),
        (states(bound=math.inf), '"bound" must be a positive finite number, got inf'),
        (states(dtype=torch.int32), '"dtype" must be a floating-point dtype, got torch.int32'),
    ],
)
def test_arguments_of_strategies(strategy, message):
    with refused(message):
        some(strategy)


# -- the page that shows them -----------------------------------------------------------------------------------------


def test_the_page_runs(tmp_path):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict = {}
    script = tmp_path / "page.py"  # hypothesis reads the source of a law
    script.write_text(block, encoding="utf-8")
    exec(compile(block, str(script), "exec"), names)
    laws = [value for name, value in names.items() if name.startswith("test_")]
    assert len(laws) == 2
    for law in laws:
        settings(max_examples=2)(law)()
