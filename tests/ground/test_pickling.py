"""Everything public survives pickling, copying and another process; an error arrives with what it says."""

import copy
import math
import multiprocessing
import operator
import pickle
import queue

import pytest
import torch

import multilevel_sde as mls

DOUBLE = torch.float64
TIMES = torch.linspace(0.0, 1.0, 9, dtype=DOUBLE)
STATES = torch.linspace(0.2, 2.0, 8, dtype=DOUBLE)[:, None]


def rough(x, t):
    return -x


def fine(x, t):
    return -torch.sin(x)


def blows_up(x, t):
    return x / 0.0


def sigma(y, t):
    return 0.1 * y


def applied(y, t, dW):
    return 0.1 * dW


def matrix(y, t):
    return 0.1 * y[:, :, None]


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(1, 1, dtype=DOUBLE)

    def forward(self, x, t):
        return self.linear(x)


class OrnsteinUhlenbeck:
    noise_type, sde_type = "diagonal", "ito"

    def f(self, t, y):
        return -y

    def g(self, t, y):
        return 0.5 * torch.ones_like(y)


class Scalar(OrnsteinUhlenbeck):
    noise_type = "scalar"

    def g(self, t, y):
        return 0.5 * torch.ones_like(y)[:, :, None]


def twin():
    return mls.Ladder([rough, fine], costs=[1.0, 8.0])


def generator():
    return torch.Generator().manual_seed(0)


def measured():
    return mls.pilot(twin(), STATES, TIMES, candidates=8, progress=False)


def solution():
    return mls.solve(twin(), STATES, TIMES, mls.em_plan(twin(), TIMES), save=True)


def best():
    return mls.best_plan(
        twin(), torch.tensor([1.0, 0.5]).expand(8, 2), states_of, TIMES, calibration=range(4), held_out=range(4, 8),
        candidates=2, generator=generator(),
    )  # fmt: skip


def states_of(seeds):
    return mls.seeded_normal(seeds, (1,), dtype=DOUBLE)


def of_torchsde(kind):
    ladder, noise = mls.from_torchsde([kind()])
    return ladder.drifts[0], noise


def value_of_drift(drift):
    return drift(STATES, TIMES[1])


def noise_of_term(term):
    return term.apply(STATES, TIMES[0], STATES)


def values_of_ladder(ladder):
    return [ladder.costs, ladder.unit, *(drift(STATES, TIMES[1]) for drift in ladder.drifts)]


PLAN = mls.Plan([[True, True], [True, False]], [[1.0, 2.0], [1.0, 0.0]], recall=mls.Recall([(1, 1, 0, 0.5)]))
TABLE = torch.tensor([1.0, 0.5]).expand(8, 2)

# Each: how to make one, and what must be the same of the copy; all are made and copied anew.
OBJECTS = {
    "Ladder": (twin, values_of_ladder),
    "Ladder of modules": (lambda: mls.Ladder([rough, Net()], costs=[1.0, 8.0]), values_of_ladder),
    "Plan": (lambda: PLAN, lambda plan: [plan.weights, plan.hits, plan.recall.entries, plan.evaluations]),
    "Plan per sample": (
        lambda: mls.draw_plan(TABLE, generator=generator(), samples=3), lambda plan: [plan.weights, plan.hits]
    ),
    "Recall": (lambda: PLAN.recall, lambda recall: recall.entries),
    "PoissonPlan": (
        lambda: mls.poisson_plan([9.0], TIMES, generator=generator()), lambda drawn: [drawn.times, drawn.plan.weights]
    ),
    "jump_rates": (lambda: mls.jump_rates(TABLE, TIMES), lambda rates: rates[0](TIMES[:-1])),
    "Solution": (solution, lambda s: [s.y, s.ys, s.times, s.status, s.stats.evaluations, s.stats.cost]),
    "BrownianPath": (lambda: mls.BrownianPath([3, 4], shape=(2,)), lambda path: path(0.25, 1.0)),
    "BrownianPath on a grid": (
        lambda: mls.BrownianPath([3, 4], shape=(2,), grid=TIMES), lambda path: path(0.25, 1.0)
    ),
    "BrownianPath without samples": (lambda: mls.BrownianPath([], shape=(2,)), lambda path: path(0.25, 1.0)),
    "NoiseTerm": (lambda: mls.NoiseTerm(applied), noise_of_term),
    "diagonal noise of torchsde": (lambda: of_torchsde(OrnsteinUhlenbeck)[1], noise_of_term),
    "scalar noise of torchsde": (lambda: of_torchsde(Scalar)[1], noise_of_term),
    "drift of torchsde": (lambda: of_torchsde(OrnsteinUhlenbeck)[0], value_of_drift),
    "Heun": (mls.Heun, lambda rule: (rule, rule.evaluations(TIMES))),
    "Midpoint": (mls.Midpoint, lambda rule: (rule, rule.evaluations(TIMES))),
    "AdamsBashforth": (lambda: mls.AdamsBashforth(3), lambda rule: (rule, rule.evaluations(TIMES))),
    **{
        type(rule).__name__: (lambda rule=rule: rule, lambda rule: (repr(rule), rule.evaluations(TIMES)))
        for rule in (
            *(mls.Milstein(gradient_free=True), mls.EulerHeun(), mls.StratonovichHeun(), mls.StratonovichMidpoint()),
            *(mls.SRA1(), mls.ExponentialEuler(-1.0), mls.TamedEuler()),
            *(mls.BAOAB(1.0), mls.OBABO(1.0, 2.0, 3.0), mls.OverdampedLangevin(1.0)),
        )
    },
    "NoiseTerm of a matrix": (
        lambda: mls.NoiseTerm.of_matrix(matrix, 1, additive=True), lambda term: (term.shape, noise_of_term(term))
    ),
    "Telescoping": (mls.Telescoping, lambda estimator: estimator.needed(PLAN)),
    "GivenCost": (lambda: mls.GivenCost([1.0, 2.0], "s"), lambda cost: [cost.unit, cost([rough, fine])]),
    "FlopCost": (lambda: mls.FlopCost(torch.ones(1, 1, dtype=DOUBLE)), lambda cost: cost([Net()])),
    "SecondsCost": (lambda: mls.SecondsCost(STATES, calls=2), lambda cost: [cost.x, cost.calls, cost.t]),
    "InverseCostSchedule": (mls.InverseCostSchedule, lambda s: s.probabilities(twin(), TIMES, scale=1.0)),
    "TheoremSchedule": (lambda: mls.TheoremSchedule(3.0), lambda s: s.probabilities(twin(), TIMES, scale=1.0)),
    "FixedSchedule": (lambda: mls.FixedSchedule(TABLE), lambda s: s.probabilities(twin(), TIMES)),
    "SwitchSchedule": (lambda: mls.SwitchSchedule([0.5]), lambda s: s.probabilities(twin(), TIMES)),
    "LearnedSchedule": (lambda: mls.LearnedSchedule((1.0,), (0.5,), 0.1), lambda s: s.probabilities(twin(), TIMES)),
    "systematic": (lambda: mls.systematic, lambda draw: draw(TABLE.double(), generator(), None)),
    "nested": (lambda: mls.nested, lambda draw: draw(TABLE.double(), generator(), None)),
    "independent": (lambda: mls.independent, lambda draw: draw(TABLE.double(), generator(), 2)),
    "even_arrivals": (lambda: mls.even_arrivals, lambda arrivals: arrivals(3.0, generator())),
    "BestPlan": (best, lambda found: [str(found), found.plan.weights]),
    "Pilot": (measured, lambda pilot: [pilot.gram, pilot.variances, pilot.cost, pilot.predict(TABLE).mse]),
    "PilotPlan": (lambda: measured().plan(budget=40.0), lambda plan: [plan.times, plan.plan.weights]),
    "Advice": (lambda: measured().advise(budget=40.0), str),
    "Autocast": (lambda: mls.Autocast(Net().float()), lambda drift: drift(STATES.float(), TIMES[0])),
    "CudaGraph": (lambda: mls.CudaGraph(rough), lambda drift: drift.drift(STATES, TIMES[0])),
    "OnDevice": (lambda: mls.OnDevice(fine, "cpu"), value_of_drift),
    "placed ladder": (lambda: mls.place(twin(), [None, "cpu"]), values_of_ladder),
    "NonFiniteError": (
        lambda: mls.NonFiniteError(3, 0.5, 1, [2, 4]), lambda e: (str(e), e.step, e.time, e.level, e.samples)
    ),
    "NonFiniteError of a state": (lambda: mls.NonFiniteError(3, 0.5, None, [2]), lambda e: (str(e), e.level)),
    "DivergedError": (
        lambda: mls.DivergedError(4, mls.LearnedSchedule((1.0,), (0.5,), 0.1)),
        lambda e: (str(e), e.iteration, e.schedule),
    ),
    "DivergedError at the start": (lambda: mls.DivergedError(0, None), lambda e: (str(e), e.schedule)),
}  # fmt: skip


def pickled(thing):
    return pickle.loads(pickle.dumps(thing))


def old_protocol(thing):
    return pickle.loads(pickle.dumps(thing, protocol=2))


@pytest.mark.parametrize("way", [pickled, old_protocol, copy.deepcopy, copy.copy])
@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.filterwarnings("ignore")
def test_public_objects_survive(name, way):
    make, seen = OBJECTS[name]
    thing = make()
    copied = way(thing)
    assert type(copied) is type(thing)
    _same(seen(thing), seen(copied))


def _same(one, other):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, list | tuple) and not hasattr(one, "_fields"):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            _same(*pair)
    else:
        assert one == other or (isinstance(one, float) and math.isclose(one, other))


def test_an_offload_says_that_it_belongs_to_its_process():
    offload = mls.Offload(mls.Ladder([rough, net := Net().requires_grad_(False)], costs=[1.0, 8.0]), {1: net})
    for way in (pickled, copy.deepcopy):
        with pytest.raises(
            TypeError, match=r'"Offload" holds a buffer and a thread of its process; make one in each process'
        ):
            way(offload)


def fails(kind):
    """What a worker does: a solve that is not finite, or learning that diverges."""
    ladder = mls.Ladder([rough, blows_up], costs=[1.0, 8.0])
    if kind == "solve":
        mls.solve(ladder, STATES, TIMES, mls.em_plan(ladder, TIMES))
    mls.learn(
        ladder, states_of, TIMES, delta=0.05, regularisation=1e-3, budget=40.0, steps=2, batch=4,
        generator=generator(), derivative=mls.central_difference,
    )  # fmt: skip


def in_a_worker(results, kind):
    try:
        fails(kind)
    except Exception as error:
        results.put(error)


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.parametrize(("kind", "error"), [("solve", mls.NonFiniteError), ("learn", mls.DivergedError)])
def test_errors_arrive_from_other_processes(method, kind, error):
    context = multiprocessing.get_context(method)
    results = context.Queue()
    worker = context.Process(target=in_a_worker, args=(results, kind))
    worker.start()
    try:
        came = results.get(timeout=100)  # a queue that cannot unpickle raises here
    except queue.Empty:
        pytest.fail("the error never arrived")
    finally:
        worker.join(30)
    assert type(came) is error
    with pytest.raises(error) as here:
        fails(kind)
    assert str(came) == str(here.value)


def test_errors_arrive_through_joblib():
    joblib = pytest.importorskip("joblib")
    with pytest.raises(mls.NonFiniteError, match="the drift of level 2 was not finite at step 0"):
        joblib.Parallel(n_jobs=2, timeout=100)([joblib.delayed(fails)("solve"), joblib.delayed(operator.neg)(1)])
