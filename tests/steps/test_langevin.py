r"""Laws of Langevin rules on a harmonic oscillator, exact: a step is linear, so its stationary law is solved for.

One step is y -> M y + N xi with M and N read off the rule itself, and the covariance S solves S = M S M^T + N N^T.
"""

import itertools
import math
import warnings
from contextlib import nullcontext

import pytest
import torch

import multilevel_sde as mls

DOUBLE = torch.float64
TEMPERATURE, FRICTION, MASS, STIFFNESS = 0.7, 1.3, 2.0, 3.0
GIVEN = {"temperature": TEMPERATURE, "friction": FRICTION, "mass": MASS}


def spring(costs=(1.0,), parts=(1.0,)):
    return mls.Ladder([lambda q, t, k=part: -STIFFNESS * k * q for part in parts], list(costs))


def linear_map(rule, h, steps=1):
    """M (2, 2) and N (2, normals) of `steps` steps of the rule, one normal of variance 1 at a time."""
    ladder, times = spring(), [n * h for n in range(steps + 1)]
    normals = 2 if isinstance(rule, mls.OBABO) else 1
    columns = []
    for column in range(2 + normals * steps):
        y0 = torch.zeros(1, 2, dtype=DOUBLE)
        if column < 2:
            y0[0, column] = 1.0
        unit = torch.zeros(steps, normals, dtype=DOUBLE)
        if column >= 2:
            unit.view(-1)[column - 2] = math.sqrt(h)
        rows = iter(unit if normals == 2 else unit[:, 0])
        given = {
            "diffusion": 1.0,
            "brownian": lambda t, s, rows=rows: next(rows).reshape(1, *[normals] * (normals > 1)),
        }
        columns.append(mls.solve(ladder, y0, times, mls.em_plan(ladder, times, step=rule), step=rule, **given).y[0])
    whole = torch.stack(columns, 1)
    return whole[:, :2], whole[:, 2:]


def stationary(M, N):
    d = len(M)
    right = (N @ N.T).reshape(-1)
    return torch.linalg.solve(torch.eye(d * d, dtype=DOUBLE) - torch.kron(M, M), right).reshape(d, d)


@pytest.mark.parametrize("h", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("rule", [mls.BAOAB(**GIVEN), mls.OBABO(**GIVEN)], ids=["baoab", "obabo"])
def test_the_known_bias_of_a_harmonic_oscillator(rule, h):
    """BAOAB has no bias in q, OBABO none in p; the other is off by (h w / 2)^2."""
    S, off = stationary(*linear_map(rule, h)), 1 - h**2 * STIFFNESS / MASS / 4
    q, p = TEMPERATURE / STIFFNESS, MASS * TEMPERATURE
    expected = [q, p * off] if isinstance(rule, mls.BAOAB) else [q / off, p]
    torch.testing.assert_close(S.diagonal(), torch.tensor(expected, dtype=DOUBLE), rtol=1e-11, atol=0)
    assert abs(float(S[0, 1])) < 1e-12


@pytest.mark.parametrize("rule", [mls.BAOAB(**GIVEN), mls.OBABO(**GIVEN)], ids=["baoab", "obabo"])
def test_weak_order_two(rule):
    """Mean and covariance at time 1 against the exact ones: the error falls 4 times where the step is halved."""
    A = torch.tensor([[0.0, 1 / MASS], [-STIFFNESS, -FRICTION]], dtype=DOUBLE)
    D = torch.diag(torch.tensor([0.0, 2 * FRICTION * MASS * TEMPERATURE], dtype=DOUBLE))
    van_loan = torch.zeros(4, 4, dtype=DOUBLE)
    van_loan[:2, :2], van_loan[:2, 2:], van_loan[2:, 2:] = -A, D, A.T
    big = torch.matrix_exp(van_loan)
    mean, covariance = big[2:, 2:].T, big[2:, 2:].T @ big[:2, 2:]
    errors = []
    for steps in (8, 16, 32):
        M, N = linear_map(rule, 1 / steps, steps)
        errors.append([float((M - mean).norm()), float((N @ N.T - covariance).norm())])
    for coarse, fine in itertools.pairwise(errors):
        assert [math.log2(a / b) for a, b in zip(coarse, fine, strict=True)] == pytest.approx([2.0, 2.0], abs=0.1)


@pytest.mark.parametrize("h", [0.05, 0.5])
def test_the_overdamped_limit_has_no_bias_on_a_harmonic_oscillator(h):
    """As it remembers the last increment, the state is (q, last dW / sqrt(h))."""
    rule, ladder, times = mls.OverdampedLangevin(**GIVEN), spring(), [0.0, h, 2 * h]

    def second(q, first, last):
        increments = iter([first, last])
        given = {
            "diffusion": 1.0,
            "brownian": lambda t, s: math.sqrt(h) * torch.tensor([next(increments)], dtype=DOUBLE),
        }
        y0, plan = torch.tensor([q], dtype=DOUBLE), mls.em_plan(ladder, times)
        ends = mls.solve(ladder, y0, times, plan, step=rule, save=True, **given).ys
        return float(ends[1]), float(ends[2])

    contraction = second(1.0, 0.0, 0.0)[0]
    early, late = second(0.0, 1.0, 0.0), second(0.0, 0.0, 1.0)
    b, a = late[1], early[1] - contraction * early[0]  # of the increment of the step, and of the last one
    M = torch.tensor([[contraction, a], [0.0, 0.0]], dtype=DOUBLE)
    S = stationary(M, torch.tensor([[b], [1.0]], dtype=DOUBLE))
    assert float(S[0, 0]) == pytest.approx(TEMPERATURE / STIFFNESS, rel=1e-12)
    assert contraction == pytest.approx(1 - h * STIFFNESS / (FRICTION * MASS))


@pytest.mark.parametrize("rule", [mls.BAOAB(**GIVEN), mls.OBABO(**GIVEN), mls.OverdampedLangevin(**GIVEN)])
def test_one_force_a_step_and_the_ladder_law(rule):
    """One force a step and one to begin with; weights 1 are the top level alone, and the estimate enters affinely."""
    times, over = torch.linspace(0.0, 1.0, 11, dtype=DOUBLE), isinstance(rule, mls.OverdampedLangevin)
    ladder, y0 = spring([1.0, 8.0], [0.9, 1.0]), torch.ones(4, *([] if over else [2]), 3, dtype=DOUBLE)
    given = {"step": rule, "diffusion": 1.0, "brownian": mls.BrownianPath(range(4))}
    rows = len(mls.plan_rows(rule, times))
    assert rows == (10 if over else 11)
    plan = mls.draw_plan(torch.ones(rows, 2), generator=torch.Generator().manual_seed(0))
    whole = mls.solve(ladder, y0, times, plan, **given)
    alone = mls.solve(ladder.top(), y0, times, mls.em_plan(ladder.top(), times, step=rule), **given)
    assert torch.equal(whole.y, alone.y)
    weights = torch.ones(rows, 2, dtype=DOUBLE)
    ends = []
    for weight in (0.5, 1.0, 1.5):
        weights[-1, 1] = weight
        ends.append(mls.solve(ladder, y0, times, mls.Plan(weights > 0, weights.clone()), **given).y)
    torch.testing.assert_close(ends[1], (ends[0] + ends[2]) / 2, rtol=1e-13, atol=1e-13)
    assert not torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("rule", [mls.BAOAB(1.0, 0.0), mls.OBABO(1.0, 0.0)], ids=["baoab", "obabo"])
def test_without_friction_it_is_velocity_verlet(rule):
    """On a pendulum: an energy error of order 2 that does not grow, reversible, and no noise asked for."""
    ladder, y0, errors = mls.Ladder([lambda q, t: -torch.sin(q)], [1.0]), torch.tensor([[1.0, 0.0]], dtype=DOUBLE), []
    for steps in (1000, 2000):
        times = torch.linspace(0.0, 100.0, steps + 1, dtype=DOUBLE)
        plan = mls.em_plan(ladder, times, step=rule)
        q, p = mls.solve(ladder, y0, times, plan, step=rule, save=True).ys.unbind(-1)
        energy = (p**2 / 2 - torch.cos(q)).flatten()
        first, second = (part.max() for part in (energy - energy[0]).abs()[1:].chunk(2))
        assert second < 1.05 * first
        errors.append(float(first))
        back = torch.stack((q[-1], -p[-1]), 1)
        y = mls.solve(ladder, back, times, plan, step=rule).y
        torch.testing.assert_close(y, y0, rtol=0, atol=1e-9)
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("rule", [mls.BAOAB(0.0), mls.OBABO(0.0)], ids=["baoab", "obabo"])
def test_forces_are_asked_at_their_times(rule):
    """At the start of the first step, and at the end of every step."""
    asked, times = [], [0.0, 0.25, 0.75, 1.0]
    ladder = mls.Ladder([lambda q, t: asked.append(float(t)) or -q], [1.0])
    mls.solve(ladder, torch.ones(1, 2, dtype=DOUBLE), times, mls.em_plan(ladder, times, step=rule), step=rule)
    assert asked == times


def test_masses_are_of_each_coordinate():
    masses, times = torch.tensor([1.0, 4.0], dtype=DOUBLE), torch.linspace(0.0, 1.0, 5, dtype=DOUBLE)
    y0 = torch.ones(3, 2, 2, dtype=DOUBLE)
    path = mls.BrownianPath(range(3))
    ends = {}
    for mass in (masses, 1.0, 4.0):
        rule = mls.BAOAB(temperature=0.5, mass=mass)
        plan = mls.em_plan(spring(), times, step=rule)
        ends[str(mass)] = mls.solve(spring(), y0, times, plan, step=rule, diffusion=1.0, brownian=path).y
    torch.testing.assert_close(ends[str(masses)][..., 0], ends["1.0"][..., 0], rtol=1e-14, atol=0)
    torch.testing.assert_close(ends[str(masses)][..., 1], ends["4.0"][..., 1], rtol=1e-14, atol=0)


def test_independent_draws_heat_by_the_formula_and_held_corrections_do_not():
    """A force of mean-square error V in each step adds h V / (2 m gamma) to the temperature, here about a third of it.

    256 oscillators over 400 times the friction's, from BAOAB's stationary law; five standard errors (10 correlated
    samples a unit of time are counted as one). The correction is a constant force c, so V = c^2 (1/p - 1).
    """
    h, c, p, samples, steps = 0.1, 2.0, 0.25, 256, 1000
    ladder = mls.Ladder([lambda q, t: -STIFFNESS * q, lambda q, t: c - STIFFNESS * q], [1.0, 8.0])
    rule, times = mls.BAOAB(**GIVEN), torch.linspace(0.0, h * steps, steps + 1, dtype=DOUBLE)
    y0 = mls.seeded_normal(range(samples), (2, 1), dtype=DOUBLE) * 0.5
    table = torch.tensor([1.0, p]).expand(steps + 1, 2)
    independent = mls.draw_plan(table, mls.independent, generator=torch.Generator().manual_seed(0), samples=samples)
    every = torch.zeros(steps + 1, 2, dtype=torch.bool)
    every[:, 0], every[::4, 1] = True, True
    plans = {"independent": independent, "held": mls.hold(mls.Plan(every, every.double()), torch.arange(steps + 2.0))}
    measured = {}
    for name, plan in plans.items():
        given = {"step": rule, "diffusion": 1.0, "brownian": mls.BrownianPath(range(samples)), "save": True}
        heats = pytest.warns(UserWarning, match=r"p = 0.25\), which heats") if name == "independent" else nullcontext()
        with heats:
            momenta = mls.solve(ladder, y0, times, plan, **given).ys[100:, :, 1, 0]
        measured[name] = float(momenta.square().mean()) / MASS
    cold = TEMPERATURE * (1 - h**2 * STIFFNESS / MASS / 4)
    heating = h * c**2 * (1 / p - 1) / (2 * MASS * FRICTION)
    error = 5 * (cold + heating) * math.sqrt(2 / (samples * (steps - 100) * h))
    assert abs(measured["held"] - cold) < error
    assert abs(measured["independent"] - cold - heating) < error + 0.1 * heating  # the formula is the leading term in h
    assert heating > 0.3 * TEMPERATURE


@pytest.mark.parametrize("make", [mls.BAOAB, mls.OBABO, mls.OverdampedLangevin])
@pytest.mark.parametrize("samples", [None, 4])
@pytest.mark.parametrize(("draw", "p"), [(mls.independent, 0.25), (mls.systematic, 0.25), (mls.systematic, 0.9)])
def test_a_plan_of_random_draws_warns_of_its_heat(make, samples, draw, p):
    """h (1/p - 1) / (2 m gamma) with h = 0.1, p near 1/4, the lightest mass 2 and a friction of 1.3."""
    rule = make(TEMPERATURE, FRICTION, torch.tensor([2.0, 5.0], dtype=DOUBLE))
    times = torch.linspace(0.0, 20.0, 201, dtype=DOUBLE)
    table = torch.tensor([1.0, p]).expand(len(mls.plan_rows(rule, times)), 2)
    plan = mls.draw_plan(table, draw, generator=torch.Generator().manual_seed(0), samples=samples)
    y0 = torch.ones(4, *([] if make is mls.OverdampedLangevin else [2]), 2, dtype=DOUBLE)
    given = {"step": rule, "diffusion": 1.0, "brownian": mls.BrownianPath(range(4))}
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        mls.solve(spring([1.0, 8.0], [0.9, 1.0]), y0, times, plan, **given)
    if draw is mls.systematic:
        assert not found
        return
    (text,) = {str(one.message) for one in found}
    much = float(text.split("about ")[1].split(" c^2")[0])
    share = float((plan.weights[..., 1] != 0).double().mean())
    assert much == pytest.approx(0.1 * (1 / share - 1) / (2 * 2.0 * FRICTION), rel=0.06)  # two digits
    assert "level 2 at random steps" in text


def test_no_warning_where_nothing_heats():
    """The top level alone, held corrections, and every rule without a temperature."""
    times, y0 = torch.linspace(0.0, 20.0, 201, dtype=DOUBLE), torch.ones(4, 2, dtype=DOUBLE)
    ladder, rule = spring([1.0, 8.0], [0.9, 1.0]), mls.BAOAB(**GIVEN)
    drawn = mls.draw_plan(
        torch.tensor([1.0, 0.25]).expand(201, 2), mls.independent, generator=torch.Generator().manual_seed(0)
    )
    given = {"diffusion": 1.0, "brownian": mls.BrownianPath(range(4))}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for plan in (mls.em_plan(ladder, times, step=rule), mls.hold(drawn, torch.arange(202.0))):
            mls.solve(ladder, y0, times, plan, step=rule, **given)
        short = mls.Plan(drawn.hits[:200], drawn.weights[:200])
        mls.solve(ladder, y0, times, short, **given)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mls.BAOAB(-1.0), '"temperature" must be finite and at least 0, got -1'),
        (lambda: mls.OBABO(1.0, friction=math.inf), '"friction" must be finite and at least 0, got inf'),
        (lambda: mls.BAOAB(1.0, mass=0.0), '"mass" must be positive'),
        (lambda: mls.OverdampedLangevin(1.0, friction=0.0), '"friction" must be above 0 for OverdampedLangevin'),
    ],
)
def test_arguments_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("y0", "times", "noisy", "message"),
    [
        (torch.ones(3, 4), [0.0, 1.0], True, r'torch.stack\(\(q, p\), dim=1\), of shape .*, for BAOAB'),
        (torch.ones(3, 2), [1.0, 0.0], True, '"times" must increase for BAOAB'),
        (torch.ones(3, 2), [0.0, 1.0], False, "BAOAB at a temperature of 1 needs noise; pass diffusion=1.0"),
    ],
)  # fmt: skip
def test_states_times_and_noise_are_checked(y0, times, noisy, message):
    rule = mls.BAOAB(1.0)
    noise = {"diffusion": 1.0, "brownian": mls.BrownianPath(range(3))} if noisy else {}
    with pytest.raises(ValueError, match=message):
        mls.solve(spring(), y0, times, mls.em_plan(spring(), times, step=rule), step=rule, **noise)


@pytest.mark.parametrize("rule", [mls.BAOAB, mls.OBABO, mls.OverdampedLangevin])
def test_a_mass_of_another_size_than_positions_is_refused(rule):
    step, times = rule(1.0, mass=torch.ones(3)), [0.0, 1.0]
    y0 = torch.ones(4, 1) if rule is mls.OverdampedLangevin else torch.ones(4, 2, 1)
    given = {"diffusion": 1.0, "brownian": mls.BrownianPath(range(4))}
    with pytest.raises(ValueError, match=r'"mass" of shape \(3,\) does not multiply positions of shape \(4, 1\)'):
        mls.solve(spring(), y0, times, mls.em_plan(spring(), times, step=step), step=step, **given)


@pytest.mark.parametrize("sigma", [0.5, torch.tensor(2.0, requires_grad=True)])
def test_a_diffusion_that_changes_the_temperature_is_refused(sigma):
    rule, path, times = mls.BAOAB(1.0), mls.BrownianPath(range(3)), [0.0, 1.0]
    plan = mls.em_plan(spring(), times, step=rule)
    with pytest.raises(ValueError, match=r'"diffusion" of .* would change the temperature of BAOAB'):
        mls.solve(spring(), torch.ones(3, 2), times, plan, step=rule, diffusion=sigma, brownian=path)
    warming = mls.solve(spring(), torch.ones(3, 2), times, plan, step=rule, diffusion=lambda t: 1 + t, brownian=path)
    assert warming.y.isfinite().all()
