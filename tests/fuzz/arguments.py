"""Attacks on constructors and functions: good calls with one or several arguments replaced."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

import multilevel_sde as mls
from fuzz.harness import Target
from fuzz.values import bad_number, bad_object, either, small_int, some_number, table, tensor_of
from multilevel_sde.testing import grids, ladders, plans, states

_LADDER = mls.Ladder([lambda x, t: -x, lambda x, t: -torch.sin(x)], costs=[1.0, 8.0])
_TIMES = [0.0, 0.5, 1.0]
_PLAN = mls.em_plan(_LADDER, _TIMES)
_times = either(
    st.sampled_from([_TIMES, [1.0, 0.0], torch.linspace(0.0, 1.0, 3)]),
    st.one_of(st.lists(some_number, max_size=4), tensor_of(max_dims=2), bad_object),
)
_SCHEDULES = {
    mls.InverseCostSchedule: 0,
    mls.TheoremSchedule: 2,
    mls.SwitchSchedule: 1,
    mls.FixedSchedule: 1,
    mls.LearnedSchedule: 5,
}  # and how many arguments each takes


def _call(function):
    """An attack that calls a function with keywords."""

    def attack(arguments):
        function(**arguments)
        return "accepted"

    return attack


def _ladder(drifts, costs):
    return mls.Ladder(drifts, costs)


def _draw(probabilities, samples, truncate):
    generator = torch.Generator().manual_seed(0)
    return mls.draw_plan(probabilities, generator=generator, samples=samples, truncate=truncate)


def _probabilities(kind, arguments, times, budget, scale):
    schedule = kind(*arguments[: _SCHEDULES[kind]])
    p = schedule.probabilities(_LADDER, times, budget=budget, scale=scale)
    assert bool(((p >= 0) & (p <= 1)).all()), "a table outside [0, 1] without an error"


def _brownian(seeds, grid, unit, shape, times):
    for increment in mls.BrownianPath(seeds, grid=grid, unit=unit, shape=shape).increments(times):
        assert bool(increment.isfinite().all()), "noise that is not finite without an error"


def _wrong_drift(kind, at):
    """A drift that misbehaves from a time on."""
    wrong = {
        "nan": lambda x: x * float("nan"),
        "inf": lambda x: x / 0.0,
        "huge": lambda x: (x + 1) * 1e308,
        "shape": lambda x: x.reshape(-1)[:1],
        "dtype": lambda x: x.to(torch.float16),
        "none": lambda x: None,
        "good": lambda x: -x,
    }[kind]
    return lambda x, t: wrong(x) if float(t) >= at else -x


@st.composite
def _solves(draw):
    """Arguments of a solve: good ones of one size, and some of them replaced."""
    y0 = draw(states(max_samples=3, max_dims=1, max_side=2))
    times = draw(grids(max_steps=4))
    kind = draw(st.sampled_from(["good", "good", "nan", "inf", "huge", "shape", "dtype", "none"]))
    good = draw(ladders(max_levels=2))
    wrong = _wrong_drift(kind, draw(st.floats(0.0, 1.0)))
    ladder = mls.Ladder([*good.drifts, wrong], costs=[*good.costs, 2 * good.costs[-1]])
    samples = draw(st.sampled_from([None, len(y0)]))
    plan = draw(plans(ladder, times, samples=samples, truncate=True))
    arguments = {"ladder": ladder, "y0": y0, "times": times, "plan": plan}
    diffusion = draw(st.sampled_from([None, 0.5, lambda t: t, lambda y, t: y]))
    if diffusion is not None:
        arguments |= {"diffusion": diffusion, "brownian": mls.BrownianPath(range(len(y0)))}
    bad = {
        "y0": st.one_of(tensor_of(), bad_object),
        "times": _times,
        "plan": plans(draw(ladders(max_levels=3)), draw(grids(max_steps=4))),
        "diffusion": st.one_of(bad_number, st.just(lambda t: float("nan")), st.just(lambda y, t: y[:1] * 0 + 1e308)),
        "brownian": st.one_of(
            st.builds(mls.BrownianPath, st.lists(st.integers(0, 9), min_size=1, max_size=3)),
            st.just(lambda t, s: torch.tensor(float("inf"))),
            st.none(),
        ),
        "save": st.one_of(st.lists(st.integers(-6, 6), max_size=3), st.booleans()),
        "step": st.sampled_from([mls.Heun(), mls.AdamsBashforth(2), None, "euler", mls.Heun]),
        "conditions": _conditions,
        "gradients": st.sampled_from([None, True, False]),
        "check_finite": st.booleans(),
    }
    for name in draw(st.lists(st.sampled_from(sorted(bad)), max_size=2, unique=True)):
        arguments[name] = draw(bad[name])
    return arguments


def _solve(arguments):
    solution = mls.solve(**arguments)
    assert solution.status.startswith("completed")
    unseen = arguments.get("check_finite") is False
    assert unseen or bool(solution.ys.isfinite().all()), "NaN or infinity in a solution that says completed"
    assert solution.y.dtype == arguments["y0"].dtype, "a solution of another dtype than its start"
    return "accepted"


# -- conditions: drifts that refuse the rows of others ----------------------------------------------------------------

_names = st.one_of(st.just("label"), st.sampled_from(["shift", "x", "t", "", "a b", "class", 1, None]))
_conditions = st.one_of(st.dictionaries(_names, st.one_of(tensor_of(max_dims=2), bad_object), max_size=2), bad_object)


@st.composite
def _conditioned(draw):
    """A good solve with labels, of any dtype and draw, and conditions that may be anything."""
    samples, steps = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]))
    label = torch.arange(samples)
    good = draw(st.sampled_from([{"label": label}, {"label": label.reshape(-1, 1)}, {"label": label.to(dtype)}]))
    table = torch.tensor([1.0, draw(st.floats(0.1, 1.0))]).expand(steps, 2)
    of_each = draw(st.sampled_from([None, samples]))
    plan = mls.draw_plan(table, mls.independent, generator=torch.Generator().manual_seed(0), samples=of_each)
    conditions = draw(either(good, st.one_of(_conditions, st.just({"label": label[1:]}))))
    return {"y0": torch.arange(samples).reshape(-1, 1).to(dtype), "plan": plan, "conditions": conditions}


def _label(arguments):
    """The states are their own labels and do not move: where the rows are the right ones, every call sees its own."""
    y0, given = arguments["y0"], arguments["conditions"]
    label = given.get("label") if isinstance(given, dict) else None
    right = isinstance(label, torch.Tensor) and label.tolist() in (y0.tolist(), y0.flatten().tolist())

    def drift(x, t, label):
        assert len(label) == len(x), "a drift saw the conditions of others"
        assert not right or label.flatten().tolist() == x.flatten().tolist(), "a drift saw the conditions of others"
        return torch.zeros_like(x)

    ladder = mls.Ladder([drift, lambda x, t, label: drift(x, t, label)], costs=[1.0, 8.0])
    times = torch.linspace(0.0, 1.0, arguments["plan"].steps + 1)
    try:
        y = mls.solve(ladder, times=times, **arguments).y
    except TypeError as error:
        if "_label.<locals>" in str(error):  # Python's own: the drift has other arguments
            raise TypeError(f'"conditions" do not fit the drift: {error}') from None
        raise
    assert torch.equal(y, y0)
    return "accepted"


# -- step rules -------------------------------------------------------------------------------------------------------


class _Rule(mls.StepRule):
    """A rule that says one number of evaluations and makes another, at states of another kind perhaps."""

    def __init__(self, says, makes, returned):
        self.says, self.makes, self.returned = says, makes, returned

    def evaluations(self, times):
        return self.says if not isinstance(self.says, int) else [self.says] * (len(times) - 1)

    def start(self, times):
        def advance(y, F, t, s, noise):
            estimate = torch.zeros_like(y)
            for n in range(self.makes):
                estimate = F(y, t if n == 0 else s)
            return mls.euler_maruyama(y, estimate, t, s, noise) if self.returned is None else self.returned(y)

        return advance


def _ruled(says, makes, returned, rows):
    rule, y0 = _Rule(says, makes, returned), torch.ones(2)
    mls.plan_rows(rule, _TIMES)
    plan = mls.em_plan(_LADDER, _TIMES, step=rule) if rows is None else mls.em_plan(_LADDER, range(rows + 1))
    solution = mls.solve(_LADDER, y0, _TIMES, plan, step=rule)
    assert bool(solution.y.isfinite().all()), "NaN or infinity in a solution that says completed"


_record = st.fixed_dictionaries
_whole = st.one_of(st.integers(-3, 4), st.sampled_from([1.5, None, "1", True, 2**70]))

TARGETS = [
    Target(
        "Ladder",
        _record(
            {
                "drifts": either(
                    [torch.sin, torch.cos], st.one_of(st.lists(st.sampled_from([torch.sin, 1, None])), bad_object)
                ),
                "costs": st.one_of(st.lists(some_number, max_size=3), bad_object, some_number),
            }
        ),
        _call(_ladder),
        1.0,
    ),
    Target("times", _record({"ladder": st.just(_LADDER), "times": _times}), _call(mls.em_plan), 1.0),
    Target(
        "draw_plan",
        _record(
            {
                "probabilities": st.one_of(tensor_of(), table(some_number), bad_object),
                "samples": either(st.sampled_from([None, 2]), small_int),
                "truncate": st.booleans(),
            }
        ),
        _call(_draw),
        1.0,
    ),
    Target(
        "Plan",
        _record(
            {
                "hits": st.one_of(tensor_of(), st.just(torch.ones(2, 2)), bad_object),
                "weights": st.one_of(tensor_of(), st.just(torch.ones(2, 2)), bad_object),
                "recall": either(None, st.one_of(bad_object, st.just(mls.Recall([(1, 0, 0, 1.0)])))),
            }
        ),
        _call(mls.Plan),
        1.0,
    ),
    Target(
        "Recall",
        _record(
            {"entries": st.one_of(st.lists(st.tuples(_whole, _whole, _whole, some_number), max_size=3), bad_object)}
        ),
        _call(mls.Recall),
        1.0,
    ),
    Target(
        "schedules",
        _record(
            {
                "kind": st.sampled_from(list(_SCHEDULES)),
                "arguments": st.lists(
                    st.one_of(some_number, st.lists(some_number, max_size=3), tensor_of(max_dims=2)),
                    min_size=5,
                    max_size=5,
                ),
                "times": _times,
                "budget": either(st.sampled_from([None, 4.0]), some_number),
                "scale": either(st.sampled_from([None, 0.5]), some_number),
            }
        ),
        _call(_probabilities),
        1.5,
    ),
    Target(
        "BrownianPath",
        _record(
            {
                "seeds": st.one_of(st.lists(st.one_of(st.integers(), small_int), max_size=3), bad_object),
                "grid": either(None, _times),
                "unit": either(1.0, some_number),
                "shape": either(st.sampled_from([None, (2,)]), st.one_of(st.lists(small_int, max_size=2), bad_object)),
                "times": _times,
            }
        ),
        _call(_brownian),
        1.0,
    ),
    Target("solve", _solves(), _solve, 0.25),
    Target("conditions", _conditioned(), _label, 0.5),
    Target(
        "StepRule",
        _record(
            {
                "says": either(st.integers(1, 3), st.one_of(small_int, st.lists(small_int, max_size=3))),
                "makes": st.integers(0, 4),
                "returned": either(None, st.sampled_from([lambda y: y / 0.0, lambda y: y * float("nan")])),
                "rows": either(None, st.integers(1, 7)),
            }
        ),
        _call(_ruled),
        0.5,
    ),
    Target(
        "scale_to_budget",
        _record(
            {
                "ladder": st.just(_LADDER),
                "shape": st.one_of(tensor_of(max_dims=3), table(some_number), st.just(torch.ones(2, 2)), bad_object),
                "budget": either(st.sampled_from([2.0, 9.0]), some_number),
            }
        ),
        _call(mls.scale_to_budget),
        0.5,
    ),
]
