"""Hypothesis strategies for ladders, time grids, tables of probabilities, plans and states.

Hypothesis runs a strategy when it draws the first example, so that is where wrong arguments are refused.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from multilevel_sde.cost import Drift
from multilevel_sde.ladder import Ladder
from multilevel_sde.plans.drawing import draw_plan
from multilevel_sde.plans.draws import independent, nested, systematic
from multilevel_sde.plans.plan import Plan
from multilevel_sde.plans.recall import Recall
from multilevel_sde.rates.problem_parts import check_at_least
from multilevel_sde.steps.rules import Step, StepRule, euler_maruyama, plan_rows

__all__ = ["grids", "ladders", "plans", "probabilities", "states"]

_CELLS = 10_000  # times of an uneven grid are multiples of this part of its span
_NICE = (0.1, 0.25, 0.5, 1 / 3, 1.0)  # probabilities whose sums meet whole numbers, and certainty


def _pull(x: Tensor, t: Tensor) -> Tensor:
    return -torch.sin(x)


@dataclass(frozen=True)
class _Level:
    """f^k(x, t) = f(x, t) + size cos(slope x + t + phase), in every component."""

    drift: Drift
    size: float
    slope: float
    phase: float

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.drift(x, t) + self.size * torch.cos(self.slope * x + (t.to(x) + self.phase))


@st.composite
def ladders(
    draw: st.DrawFn,
    *,
    drift: Drift = _pull,
    min_levels: int = 1,
    max_levels: int = 5,
    max_ratio: float = 200.0,
) -> Ladder:
    r"""Strategy for ladders f^k = f + s_k cos(a_k x + t + b_k) with errors s_1 > s_2 > ... and costs T_1 < T_2 < ...

    The drifts act on every component by themselves, so they take states of any shape and dtype; all are Lipschitz and
    bounded if f is.

    Arguments:
        drift: f(x, t) that the levels approximate; -sin(x) by default.
        min_levels: Least K.
        max_levels: Largest K.
        max_ratio: Largest T_{k+1} / T_k; the least is 1.01.

    Raises:
        ValueError: `min_levels` below 1 or above `max_levels`, `max_ratio` below 1.01.

    Example:
        >>> from hypothesis import given
        >>> @given(ladder=ladders(min_levels=2))
        ... def costs_increase(ladder):
        ...     assert 2 <= len(ladder) <= 5 and ladder.costs[0] < ladder.costs[1]
        >>> costs_increase()
    """
    check_at_least(1, min_levels=min_levels)
    check_at_least(min_levels, max_levels=max_levels)
    if not (math.isfinite(max_ratio) and max_ratio >= 1.01):
        raise ValueError(f'"max_ratio" must be a finite number of at least 1.01, got {max_ratio}')
    levels = draw(st.integers(min_levels, max_levels))
    ratios = draw(st.lists(st.floats(1.01, max_ratio), min_size=levels - 1, max_size=levels - 1))
    costs = list(itertools.accumulate([draw(st.floats(1e-3, 1e6)), *ratios], lambda cost, ratio: cost * ratio))
    shrink = draw(st.floats(0.1, 0.7))
    drifts = [
        _Level(drift, shrink**k, draw(st.floats(-2.0, 2.0)), draw(st.floats(0.0, 2 * math.pi)))
        for k in range(1, levels + 1)
    ]
    return Ladder(drifts, costs)


@st.composite
def grids(
    draw: st.DrawFn,
    *,
    min_steps: int = 1,
    max_steps: int = 40,
    low: float = 0.0,
    high: float = 1.0,
    descending: bool | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Strategy for time grids (N + 1,) within [low, high], even or uneven, up or down.

    Even grids span the whole of [low, high]; steps of uneven ones are multiples of (high - low) / 10 000.

    Arguments:
        min_steps: Least N.
        max_steps: Largest N, at most 1000.
        low: Earliest time.
        high: Latest time.
        descending: Whether times run down; None for both.
        dtype: Dtype of the grid; it must resolve steps of (high - low) / 10 000.

    Raises:
        ValueError: `min_steps` below 1 or above `max_steps`, `max_steps` above 1000, `low` not below `high`, a dtype
            that does not resolve the steps.

    Example:
        >>> from hypothesis import given
        >>> @given(times=grids(max_steps=8, descending=True))
        ... def times_run_down(times):
        ...     assert 1 <= len(times) - 1 <= 8 and (times.diff() < 0).all()
        >>> times_run_down()
    """
    check_at_least(1, min_steps=min_steps)
    check_at_least(min_steps, max_steps=max_steps)
    if max_steps > _CELLS // 10:
        raise ValueError(f'"max_steps" must be at most {_CELLS // 10}, got {max_steps}')
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f'"low" must be below "high" and both finite, got {low} and {high}')
    if not dtype.is_floating_point or torch.finfo(dtype).eps * max(abs(low), abs(high)) > 0.1 * (high - low) / _CELLS:
        raise ValueError(f'"dtype" must resolve times between {low} and {high} to 1/100 000 of them, got {dtype}')
    steps = draw(st.integers(min_steps, max_steps))
    if draw(st.booleans()):
        times = torch.linspace(low, high, steps + 1, dtype=torch.float64)
    else:
        cells = draw(st.lists(st.integers(0, _CELLS), min_size=steps + 1, max_size=steps + 1, unique=True))
        times = low + (high - low) * torch.tensor(sorted(cells), dtype=torch.float64) / _CELLS
    down = draw(st.booleans()) if descending is None else descending
    return (times.flip(0) if down else times).to(dtype)


@st.composite
def probabilities(
    draw: st.DrawFn, ladder: Ladder, times: Tensor, *, smallest: float = 1e-6, truncate: bool = False
) -> Tensor:
    """Strategy for tables p_k(n), float64 (N, K): entries in [smallest, 1], the lowest level 1.

    Arguments:
        ladder: K levels.
        times: N + 1 times.
        smallest: Least probability, in (0, 1].
        truncate: Also drop the top levels (p = 0) at some steps; draw from such tables with `truncate=True`.

    Raises:
        ValueError: `smallest` outside (0, 1].

    Example:
        >>> import torch, multilevel_sde as mls
        >>> from hypothesis import given
        >>> ladder = mls.Ladder([torch.sin, torch.cos], costs=[1.0, 8.0])
        >>> @given(p=probabilities(ladder, torch.linspace(0.0, 1.0, 5), smallest=0.1))
        ... def the_lowest_level_always_runs(p):
        ...     assert p.shape == (4, 2) and (p[:, 0] == 1).all() and (p >= 0.1).all()
        >>> the_lowest_level_always_runs()
    """
    if not 0 < smallest <= 1:
        raise ValueError(f'"smallest" must lie in (0, 1], got {smallest}')
    steps, levels = len(times) - 1, len(ladder)
    nice = [p for p in _NICE if p >= smallest]
    entry = st.one_of(st.just(1.0), st.floats(smallest, 1.0), st.sampled_from(nice))
    row = st.lists(entry, min_size=levels, max_size=levels)
    table = torch.tensor(draw(st.lists(row, min_size=steps, max_size=steps)), dtype=torch.float64)
    table[:, 0] = 1.0
    if truncate:
        kept = torch.tensor(draw(st.lists(st.integers(1, levels), min_size=steps, max_size=steps)))
        table[torch.arange(levels) >= kept[:, None]] = 0.0
    return table


@st.composite
def plans(
    draw: st.DrawFn,
    ladder: Ladder,
    times: Tensor,
    *,
    step: Step | StepRule = euler_maruyama,
    samples: int | None = None,
    smallest: float = 0.05,
    truncate: bool = False,
    recall: bool = False,
) -> Plan:
    """Strategy for plans: drawn from :func:`probabilities` by each of the three draws, with stored values if wanted.

    Arguments:
        ladder: K levels.
        times: N + 1 times.
        step: The step of the solve; a rule has a row of the plan for each of its evaluations.
        samples: Size B of the batch, for a draw of every sample; by default one draw for the batch.
        smallest: Least probability; weights are at most its inverse.
        truncate: Also plans that leave out top levels on purpose.
        recall: Also plans that use stored values, with coefficients in [-1, 1]; not with `samples`.

    Raises:
        ValueError: `recall` together with `samples`; as :func:`probabilities`.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> from hypothesis import given
        >>> ladder, times = mls.Ladder([torch.sin, torch.cos], costs=[1.0, 8.0]), torch.linspace(0.0, 1.0, 5)
        >>> @given(plan=plans(ladder, times))
        ... def a_plan_fits(plan):
        ...     assert (plan.steps, plan.levels, plan.samples) == (4, 2, None)
        >>> a_plan_fits()
    """
    if recall and samples is not None:
        raise ValueError('"recall" needs one draw for the batch; leave out "samples"')
    table = draw(probabilities(ladder, times, smallest=smallest, truncate=truncate))[plan_rows(step, times)]
    how = draw(st.sampled_from([independent, nested, systematic]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    plan = draw_plan(table, how, generator=generator, samples=samples, truncate=truncate)
    if not recall or plan.steps < 2:
        return plan
    number = st.integers(0, plan.steps - 1)
    entry = st.tuples(number, st.integers(0, plan.levels - 1), number, st.floats(-1.0, 1.0))
    entries = draw(st.lists(entry.filter(lambda e: e[2] < e[0]), max_size=6))
    return Plan(plan.hits, plan.weights, truncated=plan.truncated, recall=Recall(entries))


@st.composite
def states(
    draw: st.DrawFn,
    *,
    min_samples: int = 1,
    max_samples: int = 6,
    max_dims: int = 2,
    max_side: int = 4,
    bound: float = 2.0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Strategy for states (B, ...) with finite elements in [-bound, bound].

    Arguments:
        min_samples: Least B.
        max_samples: Largest B.
        max_dims: Most dimensions beside that of the samples.
        max_side: Largest size of each of these.
        bound: Largest absolute value; positive.
        dtype: Floating-point dtype.

    Raises:
        ValueError: `min_samples` below 1 or above `max_samples`, a bound that is not positive and finite, `max_dims`
            below 0, `max_side` below 1, a dtype that is not floating point.

    Example:
        >>> from hypothesis import given
        >>> @given(y=states(min_samples=2, dtype=torch.float32))
        ... def states_are_bounded(y):
        ...     assert len(y) >= 2 and y.dtype == torch.float32 and (y.abs() <= 2).all()
        >>> states_are_bounded()
    """
    check_at_least(1, min_samples=min_samples, max_side=max_side)
    check_at_least(min_samples, max_samples=max_samples)
    check_at_least(0, max_dims=max_dims)
    if not (math.isfinite(bound) and bound > 0):
        raise ValueError(f'"bound" must be a positive finite number, got {bound}')
    if not dtype.is_floating_point:
        raise ValueError(f'"dtype" must be a floating-point dtype, got {dtype}')
    samples = draw(st.integers(min_samples, max_samples))
    shape = (samples, *draw(st.lists(st.integers(1, max_side), max_size=max_dims)))
    count = math.prod(shape)
    values = draw(st.lists(st.floats(-bound, bound), min_size=count, max_size=count))
    return torch.tensor(values, dtype=torch.float64).reshape(shape).to(dtype).clamp(-bound, bound)
