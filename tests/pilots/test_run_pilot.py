"""What a pilot takes: any step, few steps, conditions, any drift; and what it refuses or warns of."""

import warnings
from functools import partial

import pytest
import torch

import multilevel_sde as mls
from multilevel_sde.pilots.answers import Form
from multilevel_sde.pilots.peak import peak_bytes
from multilevel_sde.pilots.responses import Responses

MATRIX = torch.tensor([[-1.0, 0.5], [-0.5, -1.0]], dtype=torch.float64)
SMALL = mls.Ladder([lambda y, t: -y, lambda y, t: -torch.sin(y)], costs=[1.0, 30.0])
ROW = torch.linspace(0.2, 2.0, 16, dtype=torch.float64)[:, None]


def linear_ladder():
    """The differences do not depend on the state, so the first order is all there is."""

    def level(k):
        return lambda y, t: y @ MATRIX.T + 2.0**-k * torch.sin((1 + k) * (1 + 4 * t.to(y)))

    return mls.Ladder([level(k) for k in range(3)], costs=[1.0, 10.0, 100.0])


def symplectic(y, F, t, s, noise):
    """A step that unpacks the state: positions move with the new momenta."""
    q, p = y.unbind(-1)
    p = p + (s - t) * F[..., 1] + (0.0 if noise is None else noise[..., 1])
    return torch.stack([q + (s - t) * p, p], -1)


STEPS = {"heun": mls.Heun(), "midpoint": mls.Midpoint(), "adams": mls.AdamsBashforth(2), "symplectic": symplectic}


@pytest.mark.parametrize("diffusion", [None, 0.5])
@pytest.mark.parametrize("step", STEPS)
def test_the_first_order_is_exact_with_any_step_on_a_linear_problem(step, diffusion):
    """A rule's estimates are rows of the plan, also those of a rule that remembers."""
    ladder, times, rule = linear_ladder(), torch.linspace(0.0, 1.0, 13, dtype=torch.float64), STEPS[step]
    y0 = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    given = {} if diffusion is None else {"diffusion": diffusion, "brownian": mls.BrownianPath(range(6), grid=times)}
    rows = mls.plan_rows(rule, times)
    measured = mls.pilot(ladder, y0, times, step=rule, **given)
    assert measured.rows == len(rows)
    target = mls.solve(ladder, y0, times, mls.em_plan(ladder, times, step=rule), step=rule, **given).y
    p = torch.tensor([[1.0, 0.4, 0.2]], dtype=torch.float64).expand(len(rows), 3)
    for seed in range(3):
        plan = mls.draw_plan(p, mls.independent, generator=torch.Generator().manual_seed(seed))
        error = float((mls.solve(ladder, y0, times, plan, step=rule, **given).y - target).square().mean())
        exact = Responses(measured.gram, measured.gram, measured.gram, torch.ones(len(rows), 2)).error(plan.weights)
        assert exact == pytest.approx(error, rel=1e-9)
    best = measured.plan(budget=0.4 * len(rows) * 100.0)
    assert best.plan.steps == len(mls.plan_rows(rule, best.times))
    mls.solve(ladder, y0, best.times, best.plan, step=rule, **given)


def test_a_rule_has_no_multistep_base():
    with pytest.raises(ValueError, match='"multistep" belongs to steps with one estimate, got a StepRule'):
        mls.pilot(SMALL, ROW, torch.linspace(0, 1, 9), step=mls.Heun(), multistep=lambda times: torch.ones(8, 1))


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 7, 8])
def test_few_steps_are_enough(steps):
    times = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    measured = mls.pilot(SMALL, ROW, times)
    best = measured.plan(budget=16.0 * steps)
    assert best.plan.cost(SMALL) <= 16.0 * steps
    assert mls.solve(SMALL, ROW, best.times, best.plan).y.isfinite().all()
    assert measured.advise(budget=30.0 * steps).use.predicted.cost <= 30.0 * steps


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_multistep_method_may_have_a_higher_order_than_there_are_steps(steps):
    three = lambda times: torch.tensor([[1.0, 0.0, 0.0]]).expand(len(times) - 1, 3)  # noqa: E731
    times = torch.linspace(0, 1, 9, dtype=torch.float64)
    measured, plain = (mls.pilot(SMALL, ROW, times, candidates=steps, multistep=how) for how in (three, None))
    torch.testing.assert_close(measured.gram, plain.gram)
    assert measured.plan(budget=60.0).plan.cost(SMALL) <= 60.0


def test_not_finite_names_level_time_and_samples():
    """The samples by their place in the whole batch, of which every fifth is used here."""
    y0 = torch.linspace(0.2, 2.0, 21, dtype=torch.float64)[:, None]

    def top(y, t):
        return torch.where((y > 1.4) & (t > 0.1), torch.nan, -0.1 * y)

    with pytest.raises(mls.NonFiniteError, match=r"the drift of level 2 was not finite at step 1, time 0\.125, .*20"):
        mls.pilot(mls.Ladder([lambda y, t: -y, top], [1.0, 30.0]), y0, torch.linspace(0, 1, 9), samples=5)


def test_a_level_that_diverges_with_few_steps_is_left_out_there():
    stiff = mls.Ladder([lambda y, t: -y.pow(5), lambda y, t: -y.pow(5) + 0.1 * torch.cos(y)], [1.0, 4.0])
    measured = mls.pilot(stiff, 1.5 * ROW, torch.linspace(0, 1, 513, dtype=torch.float64), candidates=256)
    assert 8 not in measured.measured_alone(1, False)
    assert 256 in measured.measured_alone(1, False)


def dropout(y, t):
    return -torch.sin(y) * (torch.rand_like(y) > 0.5) * 2


def antisymmetric(y, t):
    return torch.sin(y[:, None] - y[:, :, None]).mean(-1)  # sums to zero


@pytest.mark.parametrize(("drift", "random"), [(dropout, (1,)), (antisymmetric, ())])
def test_a_random_drift_is_seen_and_no_other(drift, random):
    y0 = torch.randn(16, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ladder = mls.Ladder([lambda y, t: -y, drift], costs=[1.0, 30.0])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        measured = mls.pilot(ladder, y0, torch.linspace(0, 1, 17))
    assert measured.random_levels == random
    told = [one for one in seen if "level 2 gave another value when it was evaluated again" in str(one.message)]
    assert len(told) == len(random)


def test_halves_that_disagree_are_warned_of():
    ladder = mls.Ladder([lambda y, t: -y, lambda y, t: -y + 0.1 * y.pow(3)], costs=[1.0, 30.0])
    uneven = torch.tensor([0.1] * 7 + [2.0], dtype=torch.float64)[:, None]
    with pytest.warns(UserWarning, match="two halves of the 8 samples disagree by a factor"):
        mls.pilot(ladder, uneven, torch.linspace(0, 1, 17))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mls.pilot(ladder, torch.full((8, 1), 0.5), torch.linspace(0, 1, 17)).disagreement == pytest.approx(1.0)


def test_conditions_follow_their_samples():
    """Of samples sub-selected, split into folds and repeated: as if every one had its own ladder."""
    labels = torch.arange(20, dtype=torch.float64)[:, None] % 2

    def level(scale):
        return lambda y, t, label: -scale * torch.sin(y) + label

    y0 = torch.linspace(-1, 2, 20, dtype=torch.float64)[:, None]
    times = torch.linspace(0, 1, 17, dtype=torch.float64)
    given = {"samples": 7, "diffusion": 0.3}
    ladder = mls.Ladder([level(0.8), level(1.0)], [1.0, 30.0])
    measured = mls.pilot(ladder, y0, times, conditions={"label": labels}, brownian=mls.BrownianPath(range(20)), **given)
    # The label as a part of the state says the same without conditions.
    joined = mls.Ladder(
        [lambda y, t, f=f: torch.cat([f(y[:, :1], t, y[:, 1:]), 0 * y[:, 1:]], 1) for f in (level(0.8), level(1.0))],
        [1.0, 30.0],
    )
    path = mls.BrownianPath(range(20), shape=(1,), dtype=torch.float64)
    noise = {
        "diffusion": lambda y, t: torch.tensor([0.3, 0.0], dtype=torch.float64).expand_as(y),
        "brownian": lambda t, s: path(t, s).repeat(1, 2),
    }
    other = mls.pilot(joined, torch.cat([y0, labels], 1), times, samples=7, **noise)
    torch.testing.assert_close(measured.gram, 2 * other.gram)
    halved = [one.measured / 2 for one in measured.calibration]
    assert halved == pytest.approx([one.measured for one in other.calibration])


LABELS = torch.arange(16, dtype=torch.float64)[:, None] % 2


def test_drifts_that_know_their_batch_are_told_of_conditions():
    bound = mls.Ladder([lambda y, t: -0.8 * y + LABELS, lambda y, t: -y + LABELS], costs=[1.0, 30.0])
    for y0 in (ROW, torch.cat([ROW, ROW, ROW])):  # of 48 samples 32 are used
        with pytest.raises(RuntimeError, match="must match the size of tensor b") as caught:
            mls.pilot(bound, y0, torch.linspace(0, 1, 17))
        assert caught.value.__notes__ == [
            "the pilot calls drifts with parts of the batch and with copies of it; what belongs to a sample, such as "
            "its label, goes into conditions="
        ]


@pytest.mark.parametrize(("wrong", "named"), [((0,), "level 1"), ((0, 1), "level 1, 2"), ((), None)])
def test_values_that_depend_on_the_rest_of_the_batch_are_warned_of(wrong, named):
    """Labels that are repeated to any number of rows fit copies of the batch, and silently not its parts."""

    def level(k, scale):
        def guessed(y, t, label):
            return -scale * y + LABELS.repeat(-(-len(y) // 16), 1)[: len(y)]

        return guessed if k in wrong else lambda y, t, label: -scale * y + label

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        ladder = mls.Ladder([level(0, 0.8), level(1, 1.0)], costs=[1.0, 30.0])
        mls.pilot(ladder, 0 * ROW + 1, torch.linspace(0, 1, 17), conditions={"label": LABELS})
    told = [one for one in seen if "when it was called with every second one alone" in str(one.message)]
    assert [str(one.message).split(" gave ")[0] for one in told] == ([named] if named else [])
    assert all(one.filename == __file__ for one in told)


def test_a_drift_may_differentiate_inside():
    def force(scale):
        def drift(y, t):
            x = y.detach().requires_grad_(True)
            return -torch.autograd.grad((scale * (x * x - 1).square()).sum(), x)[0]

        return drift

    def closed(scale):
        return lambda y, t: -4 * scale * y * (y * y - 1)

    times, y0 = torch.linspace(0, 1, 33, dtype=torch.float64), 0.5 * ROW
    inside, outside = (mls.pilot(mls.Ladder([f(0.8), f(1.0)], [1.0, 30.0]), y0, times) for f in (force, closed))
    torch.testing.assert_close(inside.gram, outside.gram)
    assert torch.is_grad_enabled()
    assert not inside.gram.requires_grad


def counted():
    """A pair force of 64 particles that needs 64 times its state, and the rows of its calls."""
    calls = []

    def force(y, t):
        calls.append(len(y))
        apart = y[:, None] - y[:, :, None]
        return -(apart * torch.exp(-apart.square())).mean(1)

    return force, calls


@pytest.mark.parametrize("batch", [32, None])
def test_perturbed_copies_go_in_bounded_calls(batch, monkeypatch):
    force, calls = counted()
    ladder = mls.Ladder([force, lambda y, t: -y], costs=[1.0, 30.0])
    y0 = torch.randn(8, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    need = peak_bytes(lambda: force(y0, 0.0))
    assert need >= 3 * 8 * 64 * 64 * 8
    monkeypatch.setattr("multilevel_sde.pilots.measure_responses._MEMORY", 5 * need)
    small = mls.pilot(ladder, y0, torch.linspace(0, 1, 33), batch=batch)
    assert max(calls) == (32 if batch else 40)
    monkeypatch.undo()
    torch.testing.assert_close(mls.pilot(ladder, y0, torch.linspace(0, 1, 33)).gram, small.gram)


def test_a_bar_says_what_it_costs_and_can_be_left_out(capfd):
    times = torch.linspace(0, 1, 17)
    mls.pilot(SMALL, ROW, times, progress=False)
    assert capfd.readouterr().err == ""
    slow = mls.Ladder([lambda y, t: -y, lambda y, t: (torch.manual_seed(0), -torch.sin(y))[1]], costs=[1.0, 30.0])
    measured = mls.pilot(slow, ROW, times, progress=True)
    shown = capfd.readouterr().err
    assert "evaluations of the top level a sample" in shown
    expected = float(shown.split("about ")[1].split(" ")[0])
    assert expected == pytest.approx(measured.cost / (16 * 30.0), rel=0.15)


@pytest.mark.parametrize("memory", [True, False])
def test_each_form_is_predicted_by_its_own_runs(memory):
    """With a multistep base, plans without memory err far more, and say so."""
    problem = mls.problems.scaling_law(2.5, levels=3)
    fine, ladder = problem.times(160), problem.ladder
    adams = partial(mls.adams_bashforth_weights, order=2)
    measured = mls.pilot(ladder, problem.y0(48), fine, samples=48, candidates=80, multistep=adams)
    y0 = problem.y0(256, seed=1)
    target = mls.solve(ladder, y0, fine, mls.multistep(mls.em_plan(ladder, fine), adams(fine))).y
    plans = [one for one in measured.plans(budget=8 * ladder.costs[-1], memory=memory) if one.form is not Form.ALONE]
    assert len(plans) > 2
    for best in plans[:3]:
        assert memory == (best.plan.recall is not None)
        error = float((mls.solve(ladder, y0, best.times, best.plan).y - target).square().mean())
        assert 0.4 < error / best.predicted.mse < 2.0


def test_states_of_16_bits_are_carried_in_float32():
    """The drifts see bfloat16, as in solve; the measurements are those of such drifts on states of float32."""
    y0, times = ROW.bfloat16(), torch.linspace(0, 1, 33)

    def rounded(drift):
        return lambda y, t: drift(y.bfloat16(), t).to(y.dtype)

    seen = []
    levels = [lambda y, t: (seen.append(y.dtype), -y)[1], lambda y, t: -torch.sin(y)]
    half = mls.pilot(mls.Ladder(levels, [1.0, 30.0]), y0, times, candidates=16)
    assert set(seen) == {torch.bfloat16}
    whole = mls.pilot(mls.Ladder([rounded(level) for level in levels], [1.0, 30.0]), y0.float(), times, candidates=16)
    torch.testing.assert_close(half.gram, whole.gram)
    assert [one.error for one in half.singles] == pytest.approx([one.error for one in whole.singles])


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ladder": None}, '"ladder" must be a multilevel_sde.Ladder, got NoneType'),
        ({"y0": [1.0, 2.0]}, '"y0" must be a floating-point Tensor'),
        ({"y0": torch.full((4, 1), torch.nan)}, '"y0" must be finite'),
        ({"samples": 2.5}, '"samples" must be an integer'),
        ({"samples": "a"}, '"samples" must be an integer'),
        ({"candidates": 2.5}, '"candidates" must be an integer'),
        ({"limit": "a"}, '"limit" must be a number'),
        ({"limit": torch.nan}, '"limit" must be a positive cost, got nan'),
        ({"batch": 0}, '"batch" must be at least 1 row, got 0'),
        ({"batch": 1.5}, '"batch" must be an integer'),
        ({"diffusion": 0.5}, '"diffusion" needs "brownian"'),
        ({"brownian": mls.BrownianPath(range(16))}, '"brownian" was given without "diffusion"'),
        ({"diffusion": 0.5, "brownian": 3}, '"brownian" must be a callable of an interval, got int'),
        ({"multistep": 2}, '"multistep" must be a function of a grid that gives coefficients .*, got int; for example'),
        ({"multistep": lambda times: None}, '"multistep" must be a tensor or nested lists of real numbers, got None'),
        ({"conditions": [1]}, '"conditions" must be a mapping'),
        ({"conditions": {"label": torch.ones(5)}}, "one row for each of 16 samples"),
    ],
)
def test_bad_arguments_are_refused_by_name(change, message):
    given = {"ladder": SMALL, "y0": ROW, "times": torch.linspace(0, 1, 9), **change}
    with pytest.raises((TypeError, ValueError), match=message):
        mls.pilot(**given)


@pytest.mark.parametrize(
    ("drift", "message"),
    [
        (lambda y, t: None, "the drift of level 2 must return a Tensor, got NoneType"),
        (lambda y, t: y[:, :0], "the drift of level 2 returned shape"),
        (lambda y, t: y.float(), "the drift of level 2 returned dtype"),
    ],
)
def test_a_drift_that_returns_something_else_is_named(drift, message):
    with pytest.raises((TypeError, ValueError), match=message):
        mls.pilot(mls.Ladder([lambda y, t: -y, drift], [1.0, 30.0]), ROW, torch.linspace(0, 1, 9))


def test_a_cheapest_level_that_explodes_is_named():
    """On the path all is well; the copies that it carries run away."""
    ladder = mls.Ladder([lambda y, t: 500 * y.pow(9), lambda y, t: 0.1 * torch.cos(y)], [1.0, 30.0])
    with pytest.raises((ValueError, mls.NonFiniteError), match="level 1"):
        mls.pilot(ladder, ROW, torch.linspace(0, 1, 65))


# -- the target -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [("none",), ("none", "middle"), ("linear",)])
def test_the_target_does_not_flatter_the_top_level(levels):
    """Whatever the cheaper levels are good for: 64 of 512 steps are candidates, and 80 are not said to err nothing."""
    kinds = {"none": lambda y, t: 0 * y, "middle": lambda y, t: 0 * y + 0.1, "linear": lambda y, t: -2 * y}
    top = lambda y, t: -torch.sin(2 * y)  # noqa: E731
    ladder = mls.Ladder([*(kinds[name] for name in levels), top], [*(1.0, 5.0)[: len(levels)], 30.0])
    y0, times = torch.linspace(-1, 1, 32, dtype=torch.float64)[:, None], torch.linspace(0, 1, 513, dtype=torch.float64)
    measured = mls.pilot(ladder, y0, times, candidates=64)
    target = mls.solve(ladder, y0, times, mls.em_plan(ladder, times)).y
    for steps in (8, 32, 64):
        grid = times[:: 512 // steps]
        error = float((mls.solve(ladder, y0, grid, mls.em_plan(ladder, grid)).y - target).square().mean())
        assert measured.step_error(steps) == pytest.approx(error, rel=0.25)
    assert max(measured.measured_alone(len(levels), False)) == 64
    single = measured.single(budget=150 * 30.0)
    assert len(single.times) - 1 <= 64 or single.levels != (len(levels),)
    assert single.predicted.mse > 1e-9
