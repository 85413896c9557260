"""Conditions follow their samples: laws of solve, fit_plan, learn and best_plan with drifts f(x, t, **conditions)."""

import functools

import pytest
import torch
from counted_drifts import DOUBLE, TIMES, draw, generator

import multilevel_sde as mls

SAMPLES = 8
LABELS = torch.arange(SAMPLES)
SHIFTS = torch.linspace(-1.0, 1.0, SAMPLES * 2, dtype=DOUBLE).reshape(SAMPLES, 2)
CONDITIONS = {"label": LABELS, "shift": SHIFTS}
Y0 = torch.linspace(0.1, 1.0, SAMPLES * 2, dtype=DOUBLE).reshape(SAMPLES, 2)
TABLE = torch.tensor([1.0, 0.4, 0.3])


def level(scale):
    """A drift that refuses rows of others: the label says which shift belongs to it."""

    def drift(x, t, label, shift):
        assert len(x) == len(label) == len(shift)
        assert torch.equal(shift, SHIFTS[label])
        return scale * (shift - x) + 0.1 * label[:, None] * torch.sin(t)

    return drift


LADDER = mls.Ladder([level(0.8), level(0.95), level(1.0)], costs=[1.0, 4.0, 16.0])


def noise(seeds=range(SAMPLES)):
    return {"diffusion": lambda y, t: 0.2 + 0.1 * y, "brownian": mls.BrownianPath(seeds)}


def rows(conditions, chosen):
    return {name: value[chosen] for name, value in conditions.items()}


@pytest.mark.parametrize("samples", [None, SAMPLES])
@pytest.mark.parametrize("step", [mls.euler_maruyama, mls.Heun()], ids=["euler", "heun"])
def test_samples_and_conditions_permuted_together_permute_the_result(samples, step):
    many = 20 * (1 if step is mls.euler_maruyama else 2)
    plan, order = draw(table=TABLE, samples=samples, steps=many), torch.tensor([3, 0, 7, 5, 1, 6, 2, 4])
    options = {"step": step, "save": True}
    first = mls.solve(LADDER, Y0, TIMES, plan, conditions=CONDITIONS, **noise(), **options)
    moved = plan if samples is None else mls.Plan(plan.hits[:, order], plan.weights[:, order])
    seeds = order.tolist()
    second = mls.solve(LADDER, Y0[order], TIMES, moved, conditions=rows(CONDITIONS, order), **noise(seeds), **options)
    assert torch.allclose(second.ys, first.ys[:, order], rtol=1e-12)
    other = mls.solve(
        mls.Ladder([lambda x, t, shift: shift - x] * 1, costs=[1.0]), Y0, TIMES, mls.em_plan(LADDER.top(), TIMES),
        conditions={"shift": SHIFTS.flip(0)},
    ).y  # fmt: skip
    assert not torch.allclose(other, first.y)


@pytest.mark.parametrize("samples", [None, SAMPLES])
def test_a_batch_may_be_split(samples):
    plan = draw(table=TABLE, samples=samples)
    whole = mls.solve(LADDER, Y0, TIMES, plan, conditions=CONDITIONS, **noise()).y
    for part in (slice(0, 3), slice(3, None)):
        own = plan if samples is None else mls.Plan(plan.hits[:, part], plan.weights[:, part])
        given = rows(CONDITIONS, part)
        y = mls.solve(LADDER, Y0[part], TIMES, own, conditions=given, **noise(range(SAMPLES)[part])).y
        assert torch.allclose(y, whole[part], rtol=1e-12)


def test_a_draw_per_sample_gives_each_call_the_rows_of_its_samples():
    seen = []

    def drift(x, t, label):
        seen.append(label.tolist())
        return -x

    ladder, plan = mls.Ladder([lambda x, t, label: -2 * x, drift], costs=[1.0, 8.0]), draw(
        mls.independent, table=torch.tensor([1.0, 0.4]), samples=SAMPLES
    )  # fmt: skip
    mls.solve(ladder, Y0, TIMES, plan, conditions={"label": LABELS})
    expected = [hits[:, 1].nonzero()[:, 0].tolist() for hits in plan.hits]
    assert seen == [labels for labels in expected if labels]
    assert len(set(map(tuple, seen))) > 5


def test_no_conditions_are_no_arguments():
    ladder = mls.Ladder([lambda x, t: -x], costs=[1.0])
    plan = mls.em_plan(ladder, TIMES)
    for none in (None, {}):
        assert mls.solve(ladder, Y0, TIMES, plan, conditions=none).status == "completed"


def test_gradients_reach_conditions():
    def end(shift):
        plan = draw(table=TABLE[:2], samples=SAMPLES)
        ladder = mls.Ladder([lambda x, t, shift: 0.9 * (shift - x), lambda x, t, shift: shift - x], costs=[1.0, 8.0])
        return mls.solve(ladder, Y0, TIMES, plan, conditions={"shift": shift}).y

    assert torch.autograd.gradcheck(end, (SHIFTS.clone().requires_grad_(),))


def test_conditions_of_a_half_state():
    halves = {"shift": SHIFTS.bfloat16()}
    ladder = mls.Ladder([lambda x, t, shift: shift - x], costs=[1.0])
    y = mls.solve(ladder, Y0.bfloat16(), TIMES, mls.em_plan(ladder, TIMES), conditions=halves).y
    exact = SHIFTS + (Y0 - SHIFTS) * (1 - 1 / 20) ** 20
    assert (y.double() - exact).abs().max() < 0.02


# -- fit_plan ---------------------------------------------------------------------------------------------------------


def test_a_fit_is_that_of_drifts_which_know_their_samples():
    """The shift as a part of the state that does not move, against the same as a condition."""
    cheap, exact = (lambda x, t, shift, k=k: k * torch.sin(shift - x) for k in (0.8, 1.0))
    ladder = mls.Ladder([cheap, exact], costs=[1.0, 30.0])

    def joint(drift):
        return lambda z, t: torch.cat([drift(z[:, :2], t, z[:, 2:]), torch.zeros_like(z[:, 2:])], 1)

    bound = mls.Ladder([joint(cheap), joint(exact)], costs=[1.0, 30.0])
    times = torch.linspace(0.0, 1.0, 33, dtype=DOUBLE)
    z0 = torch.cat([Y0, SHIFTS], 1)
    target = mls.solve(bound, z0, times, mls.em_plan(bound, times)).y
    plans = mls.pilot(bound, z0, times, candidates=16).plans(budget=80.0)[:3]
    whole = mls.fit_plan(bound, z0, plans, target, iterations=2)
    fitted = mls.fit_plan(ladder, Y0, plans, target[:, :2], conditions={"shift": SHIFTS}, iterations=2)
    assert fitted.errors == pytest.approx([2 * error for error in whole.errors], rel=1e-6)
    assert len(fitted.errors) > 1
    assert torch.allclose(fitted.plan.weights, whole.plan.weights)


def test_a_fit_refuses_conditions_of_others_and_step_rules():
    times = torch.linspace(0.0, 1.0, 5)
    with pytest.raises(ValueError, match='"candidates" must hold'):
        mls.fit_plan(LADDER, Y0, [], Y0, conditions=CONDITIONS)
    with pytest.raises(TypeError, match=r'"step" must be a function .* got the rule Heun'):
        mls.fit_plan(LADDER, Y0, [_candidate(times)], Y0, step=mls.Heun())
    with pytest.raises(ValueError, match=r'"conditions" has "label" of shape \(3,\), expected one row for each of 8'):
        mls.fit_plan(LADDER, Y0, [_candidate(times)], Y0, conditions={"label": LABELS[:3]})


def _candidate(times):
    levels = [lambda y, t: -0.8 * y, lambda y, t: -0.9 * y, lambda y, t: -torch.sin(y)]
    ladder = mls.Ladder(levels, costs=[1.0, 5.0, 30.0])
    return mls.pilot(ladder, torch.linspace(0.2, 2.0, 8)[:, None], times, candidates=4).plans(budget=60.0)[0]


# -- learn and best_plan ----------------------------------------------------------------------------------------------


def of_seeds(seeds):
    """Labels and shifts that belong to seeds."""
    label = torch.tensor([seed % SAMPLES for seed in seeds])
    return {"label": label, "shift": SHIFTS[label]}


def states(seeds):
    return mls.seeded_normal(seeds, (2,), dtype=DOUBLE)


@functools.cache
def joint_ladder():
    """The same drifts with label and shift in the state."""

    def joint(drift):
        def moved(z, t):
            label, shift = z[:, 2].detach().round().long(), z[:, 3:]
            return torch.cat([drift(z[:, :2], t, label, shift), torch.zeros_like(z[:, 2:])], 1)

        return moved

    return mls.Ladder([joint(plain(0.8)), joint(plain(1.0))], costs=[1.0, 16.0])


def plain(scale):
    return lambda x, t, label, shift: torch.sin(scale * (shift - x)) + 0.1 * label[:, None] * torch.sin(t)


def joint_states(seeds):
    given = of_seeds(seeds)
    return torch.cat([states(seeds), given["label"][:, None].to(DOUBLE), given["shift"]], 1)


@pytest.mark.parametrize("derivative", [None, mls.forward_mode, mls.central_difference])
@pytest.mark.parametrize("mapping", [False, True])
def test_learning_with_conditions_is_that_with_them_in_the_state(derivative, mapping):
    options = {"delta": 0.05, "regularisation": 1e-3, "budget": 60.0, "steps": 3, "batch": SAMPLES}
    options |= {"derivative": derivative}
    ladder = mls.Ladder([plain(0.8), plain(1.0)], costs=[1.0, 16.0])
    conditions = of_seeds(range(SAMPLES)) if mapping else of_seeds  # the seeds of a batch begin at multiples of 8
    found = mls.learn(ladder, states, TIMES, conditions=conditions, generator=generator(), **options)
    options["regularisation"] /= 2.5  # means over 5 numbers, of which 2 move
    expected = mls.learn(joint_ladder(), joint_states, TIMES, generator=generator(), **options)
    errors = [2.5 * error for error, _ in expected.history]
    assert [error for error, _ in found.history] == pytest.approx(errors, rel=1e-5)


def test_the_best_plan_with_conditions_is_that_with_them_in_the_state():
    options = {"calibration": range(8), "held_out": range(8, 24), "candidates": 4, "run_all": True}
    ladder = mls.Ladder([plain(0.8), plain(1.0)], costs=[1.0, 16.0])
    p = torch.tensor([1.0, 0.3]).expand(20, 2)
    expected = mls.best_plan(joint_ladder(), p, joint_states, TIMES, generator=generator(), **options)
    rows = {name: torch.cat([of_seeds(range(8))[name], of_seeds(range(8, 24))[name]]) for name in ("label", "shift")}
    for conditions in (of_seeds, rows):
        best = mls.best_plan(ladder, p, states, TIMES, generator=generator(), conditions=conditions, **options)
        assert best.held_out_errors == pytest.approx([2.5 * error for error in expected.held_out_errors], rel=1e-9)
        assert best.calibration_errors == pytest.approx([2.5 * e for e in expected.calibration_errors], rel=1e-9)
    with pytest.raises(ValueError, match=r'"conditions" has "label" of shape \(8,\), expected one row for each of 24'):
        mls.best_plan(ladder, p, states, TIMES, generator=generator(), conditions=of_seeds(range(8)), **options)


def test_learning_refuses_a_mapping_of_another_batch():
    ladder, options = mls.Ladder([plain(0.8), plain(1.0)], costs=[1.0, 16.0]), {"delta": 0.05, "regularisation": 0.0}
    options |= {"budget": 60.0, "steps": 1, "batch": 4, "generator": generator()}
    with pytest.raises(ValueError, match=r'"conditions" has "label" of shape \(8,\), expected one row for each of 4'):
        mls.learn(ladder, states, TIMES, conditions=CONDITIONS, **options)


# -- drifts that differentiate inside ---------------------------------------------------------------------------------


def force(scale):
    def drift(y, t):
        x = y.detach().requires_grad_()
        return -torch.autograd.grad((scale * (x * x - 1).square()).sum(), x)[0]

    return drift


def test_fits_and_learning_of_forces_from_energies():
    forces = mls.Ladder([force(0.08), force(0.1)], costs=[1.0, 30.0])
    exact = mls.Ladder([lambda y, t, k=k: -4 * k * y * (y * y - 1) for k in (0.08, 0.1)], costs=[1.0, 30.0])
    y0 = states(range(16)).requires_grad_()
    target = mls.solve(exact, y0, TIMES, mls.em_plan(exact, TIMES)).y
    plans = mls.pilot(exact, y0, TIMES, candidates=16).plans(budget=80.0)[:2]
    fits = [mls.fit_plan(one, y0, plans, target, iterations=2) for one in (forces, exact)]
    assert fits[0].errors == pytest.approx(fits[1].errors, rel=1e-6)
    options = {"delta": 0.05, "regularisation": 1e-3, "budget": 60.0, "steps": 2, "batch": 8}
    learned = [mls.learn(one, states, TIMES, generator=generator(), **options) for one in (forces, exact)]
    assert [error for error, _ in learned[0].history] == pytest.approx([e for e, _ in learned[1].history], rel=1e-5)
    p = torch.tensor([1.0, 0.3]).expand(20, 2)
    seeds = {"calibration": range(8), "held_out": range(8, 16), "candidates": 2}
    best = [mls.best_plan(one, p, states, TIMES, generator=generator(), **seeds) for one in (forces, exact)]
    assert best[0].error == pytest.approx(best[1].error, rel=1e-9)


def test_fits_take_values_off_their_graph():
    weight, seen = torch.ones(1, dtype=DOUBLE, requires_grad=True), set()

    def step(y, estimate, t, s, noise):
        seen.update((y.requires_grad, estimate.requires_grad))
        return mls.euler_maruyama(y, estimate, t, s, noise)

    exact = mls.Ladder([lambda y, t, k=k: -k * torch.sin(y) for k in (0.8, 1.0)], costs=[1.0, 30.0])
    trained = mls.Ladder([lambda y, t, k=k: -k * weight * torch.sin(y) for k in (0.8, 1.0)], costs=[1.0, 30.0])
    y0 = torch.linspace(0.2, 2.0, 32, dtype=DOUBLE).reshape(16, 2)
    plans = mls.pilot(exact, y0, TIMES, candidates=16, progress=False).plans(budget=80.0)[:2]
    target = mls.solve(trained, y0, TIMES, mls.em_plan(trained, TIMES)).y
    mls.fit_plan(trained, y0, plans, target, step=step, iterations=1)
    assert seen == {False}
