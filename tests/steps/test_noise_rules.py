"""Laws of rules that ask for their noise: formulas of one step, ladders, gradients, the protocol and its errors."""

import itertools
import math
import re

import pytest
import torch
from places import DOCS

import multilevel_sde as mls
from multilevel_sde.steps.step_noise import StepNoise

DOUBLE = torch.float64
TIMES = torch.linspace(0.0, 1.0, 9, dtype=DOUBLE)
RULES = [
    mls.Milstein(),
    mls.Milstein(gradient_free=True),
    mls.EulerHeun(),
    mls.StratonovichHeun(),
    mls.StratonovichMidpoint(),
    mls.SRA1(),
    mls.ExponentialEuler(-2.0),
    mls.TamedEuler(),
]
AFFINE = [*RULES[:3], mls.ExponentialEuler(-2.0)]


def pair():
    return mls.Ladder([lambda y, t: torch.sin(y) - t, lambda y, t: torch.sin(1.1 * y) - t], [1.0, 8.0])


def noise_for(rule, samples=4):
    sigma = (lambda t: 0.3 + t) if isinstance(rule, mls.SRA1) else (lambda y, t: 0.3 * torch.cos(y) + 0.1 * t)
    return {"diffusion": sigma, "brownian": mls.BrownianPath(range(samples), grid=TIMES), "step": rule}


def solve(rule, ladder, y0, plan=None, times=TIMES, **options):
    plan = mls.em_plan(ladder, times, step=rule) if plan is None else plan
    return mls.solve(ladder, y0, times, plan, **noise_for(rule, len(y0)) | options)


def states(samples=4):
    return torch.linspace(-1.0, 1.5, 3 * samples, dtype=DOUBLE).reshape(samples, 3)


# -- formulas ---------------------------------------------------------------------------------------------------------


def g(y):
    """A matrix (B, 2, 2) whose noise does not commute."""
    return torch.stack([torch.stack([torch.sin(y[:, 1]), y[:, 0]], 1), torch.stack([1 + y[:, 0] ** 2, y[:, 1]], 1)], 1)


@pytest.mark.parametrize("sense", [False, True])
def test_milstein_of_a_matrix_is_its_double_sum(sense):
    """1/2 sum_jk (Dg_k g_j)(dW_j dW_k - h 1[j = k]) with derivatives by hand."""
    y, dW, h = (
        torch.tensor([[0.4, -1.0], [0.3, 0.2]], dtype=DOUBLE),
        torch.tensor([[0.2, 0.5], [-0.3, 0.1]], dtype=DOUBLE),
        0.5,
    )
    term = mls.NoiseTerm.of_matrix(lambda y, t: g(y), 2, stratonovich=sense)
    ladder, rule = mls.Ladder([lambda y, t: torch.cos(y)], [1.0]), mls.Milstein(stratonovich=sense)
    given = {"step": rule, "diffusion": term, "brownian": lambda t, s: dW}
    ours = mls.solve(ladder, y, [0.0, h], mls.em_plan(ladder, [0.0, h]), **given).y
    D = torch.autograd.functional.jacobian(g, y)[torch.arange(2), :, :, torch.arange(2)]  # (B, i, k, state)
    expected = y + h * torch.cos(y) + (g(y) @ dW[:, :, None])[:, :, 0]
    for j, k in itertools.product(range(2), repeat=2):
        square = dW[:, j] * dW[:, k] - (0.0 if sense or j != k else h)
        expected += 0.5 * (D[:, :, k] @ g(y)[:, :, j, None])[:, :, 0] * square[:, None]
    torch.testing.assert_close(ours, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("sense", [False, True])
def test_milstein_of_a_matrix_without_derivatives_is_near_it(sense):
    """Differences at y + sqrt(h) g_j or y + g dW: the distance falls with h^(3/2), 8 times where h falls 4 times."""
    y, xi = torch.tensor([[0.4, -1.0]], dtype=DOUBLE), torch.tensor([[0.7, -1.1]], dtype=DOUBLE)
    term = mls.NoiseTerm.of_matrix(lambda y, t: g(y), 2, stratonovich=sense)
    ladder, gaps = mls.Ladder([lambda y, t: torch.cos(y)], [1.0]), []
    for h in (4e-4, 1e-4):
        ends = [
            mls.solve(
                ladder, y, [0.0, h], mls.em_plan(ladder, [0.0, h]), step=mls.Milstein(sense, free), diffusion=term,
                brownian=lambda t, s: xi * math.sqrt(s - t),
            ).y
            for free in (False, True)
        ]  # fmt: skip
        gaps.append(float((ends[0] - ends[1]).abs().max()))
    assert gaps[0] / gaps[1] == pytest.approx(8.0, rel=0.05)


def test_sra1_of_a_linear_drift_has_the_integral_of_the_path():
    """dy = -y dt + dW: one step has -int (W - W(t)) exactly, with h V = h (dW/2 + H), and the exact noise at g(t)."""
    dW, H, h = torch.tensor([0.3], dtype=DOUBLE), torch.tensor([-0.2], dtype=DOUBLE), 0.25

    class Known:
        def __call__(self, t, s):
            return dW

        def with_area(self, t, s):
            return dW, H

    ladder, rule = mls.Ladder([lambda y, t: -y], [1.0]), mls.SRA1()
    y0, times = torch.tensor([2.0], dtype=DOUBLE), [0.0, h]
    y = mls.solve(
        ladder, y0, times, mls.em_plan(ladder, times, step=rule), step=rule, diffusion=1.0, brownian=Known()
    ).y
    torch.testing.assert_close(y, y0 * (1 - h + h**2 / 2) + dW - h * (dW / 2 + H), rtol=1e-14, atol=0)


def test_numbers_and_functions_of_time_are_additive_for_every_rule():
    """Milstein is Euler-Maruyama there, bit for bit but for the order of the sum."""
    ladder, y0 = pair(), states()
    for sigma in (0.4, lambda t: 0.3 + t):
        given = {"diffusion": sigma, "brownian": mls.BrownianPath(range(4), grid=TIMES)}
        plain = mls.solve(ladder, y0, TIMES, mls.em_plan(ladder, TIMES), **given).y
        torch.testing.assert_close(solve(mls.Milstein(), ladder, y0, **given).y, plain, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("rule", RULES[:6], ids=str)
def test_without_noise_a_rule_is_one_for_odes(rule):
    """Euler, Heun, midpoint or Ralston (SRA1)."""
    ladder, y0 = pair(), states()
    counts, errors = (20, 40), []
    for n in counts:
        times = torch.linspace(0.0, 1.0, n + 1, dtype=DOUBLE)
        fine = torch.linspace(0.0, 1.0, 1281, dtype=DOUBLE)
        truth = mls.solve(ladder, y0, fine, mls.em_plan(ladder, fine, step=mls.Heun()), step=mls.Heun()).y
        y = mls.solve(ladder, y0, times, mls.em_plan(ladder, times, step=rule), step=rule).y
        errors.append(float((y - truth).square().mean().sqrt()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(rule.evaluations(TIMES)[0], abs=0.15)


# -- ladders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_probability_one_is_the_top_level_alone_bit_for_bit(rule):
    ladder, y0 = pair(), states()
    rows = len(mls.plan_rows(rule, TIMES))
    certain = mls.draw_plan(torch.ones(rows, 2), mls.independent, generator=torch.Generator().manual_seed(0))
    whole, alone = solve(rule, ladder, y0, certain), solve(rule, ladder.top(), y0)
    assert torch.equal(whole.y, alone.y)
    assert whole.stats.calls == (0, rows)


@pytest.mark.parametrize("rule", [*AFFINE, mls.TamedEuler()], ids=str)
def test_which_rules_are_affine_in_the_estimate(rule):
    """A step with the mean of two estimates is the mean of their steps; taming is not affine."""
    y, dW = states(), torch.full((4, 3), 0.3, dtype=DOUBLE)
    parts = StepNoise(dW, lambda y, t, v: torch.cos(y) * v, torch.tensor, diagonal=True)
    noise = parts if isinstance(rule, mls.NoiseRule) else torch.cos(y) * dW

    def end(value):
        return rule.start(TIMES)(y, lambda x, t: value, 0.0, 0.25, noise)

    a, b = torch.sin(y), 5 * torch.cos(y)
    gap = float((end((a + b) / 2) - (end(a) + end(b)) / 2).abs().max())
    assert gap > 0.01 if isinstance(rule, mls.TamedEuler) else gap < 1e-14


@pytest.mark.parametrize("rule", AFFINE[:3], ids=str)
def test_a_drawn_plan_has_the_mean_of_the_rule(rule):
    """Drifts linear in y, 4000 draws on one path, 4 standard errors in each of 3 components."""
    ladder = mls.Ladder([lambda y, t: -0.5 * y, lambda y, t: -1.5 * y], costs=[1.0, 8.0])
    y0 = torch.ones(4000, 3, dtype=DOUBLE)
    path = mls.BrownianPath([7], grid=TIMES, shape=(3,), dtype=DOUBLE)
    given = {"diffusion": lambda y, t: 0.3 * y, "brownian": lambda t, s: path(t, s).expand(4000, 3)}
    p = torch.tensor([1.0, 0.4]).expand(8, 2)
    plan = mls.draw_plan(p, mls.independent, generator=torch.Generator().manual_seed(1), samples=4000)
    drawn = solve(rule, ladder, y0, plan, **given).y
    exact = solve(rule, ladder.top(), y0[:1], **given | {"brownian": path}).y
    assert (drawn.mean(0) - exact[0]).abs().lt(4 * drawn.std(0) / math.sqrt(4000)).all()
    assert (drawn.std(0) > 0.05).all()


MATRIX = mls.NoiseTerm.of_matrix(lambda y, t: torch.stack([0.3 * torch.cos(y), 0.2 * y.roll(1, 1)], 2), 2)
PILOTED = [
    (mls.Milstein(), lambda y, t: 0.3 * torch.cos(y)),
    (mls.EulerHeun(), MATRIX),
    (mls.StratonovichHeun(), MATRIX),
    (mls.SRA1(), 0.3),
    (mls.BAOAB(0.5), 1.0),
    (mls.OBABO(0.5), 1.0),
]


@pytest.mark.parametrize(("rule", "sigma"), PILOTED, ids=lambda value: type(value).__name__)
def test_a_pilot_with_a_rule_that_asks_for_its_noise_predicts_its_plans(rule, sigma):
    """Within a factor of 2 on 32 samples that the pilot did not see."""
    fine = torch.linspace(0.0, 1.0, 33, dtype=DOUBLE)
    seen, noise = set(), {"step": rule, "diffusion": sigma}  # drifts of Langevin rules see positions only
    drift = lambda y, t, k: seen.add(y.dim()) or torch.sin(k * y) - t  # noqa: E731
    ladder = mls.Ladder([lambda y, t: drift(y, t, 1.0), lambda y, t: drift(y, t, 1.2)], [1.0, 8.0])
    y0 = states(64)
    y0 = torch.stack([y0, torch.zeros_like(y0)], 1) if isinstance(rule, (mls.BAOAB, mls.OBABO)) else y0
    known, new = (mls.BrownianPath(range(first, 64, 2), grid=fine) for first in (0, 1))
    measured = mls.pilot(ladder, y0[::2], fine, brownian=known, candidates=16, progress=False, **noise)
    best = measured.plan(budget=0.15 * measured.costs[-1] * len(mls.plan_rows(rule, fine)))
    y = mls.solve(ladder, y0[1::2], best.times, best.plan, brownian=new, **noise).y
    exact = mls.solve(ladder, y0[1::2], fine, mls.em_plan(ladder, fine, step=rule), brownian=new, **noise).y
    assert 0.5 < float((y - exact).square().mean()) / best.predicted.mse < 2.0
    assert seen == {2}


# -- gradients, dtypes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES[:5], ids=str)
@pytest.mark.parametrize("matrix", [False, True])
def test_gradients_go_through_drift_and_diffusion(rule, matrix):
    """Against central differences, of the state, of a parameter of the drift and of one of the diffusion."""
    times = TIMES[:3]

    def end(y0, a, b):
        ladder = mls.Ladder([lambda y, t: a * torch.sin(y) - t], [1.0])
        g = lambda y, t: b * torch.cos(y)  # noqa: E731
        term = mls.NoiseTerm.of_matrix(lambda y, t: g(y, t)[:, :, None] * torch.tensor([1.0, -0.5], dtype=DOUBLE), 2)
        return solve(rule, ladder, y0, times=times, diffusion=term if matrix else g).y

    given = (states(2), torch.tensor(0.9, dtype=DOUBLE), torch.tensor(0.4, dtype=DOUBLE))
    assert torch.autograd.gradcheck(end, tuple(value.requires_grad_() for value in given))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_no_graph_is_kept_where_nobody_asked_for_one(rule):
    assert torch.is_grad_enabled()
    assert not solve(rule, pair(), states()).y.requires_grad
    y0 = states().requires_grad_()
    assert solve(rule, pair(), y0).y.requires_grad
    assert not solve(rule, pair(), y0, gradients=False).y.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(solve(rule, pair(), states()).y, solve(rule, pair(), y0).y, rtol=0, atol=0)


def test_derivatives_of_a_matrix_are_on_the_graph_only_for_who_asks():
    """One step, from a state without a gradient: a parameter of the matrix has one, through its derivative too."""
    dW, h = torch.full((4, 2), 0.3, dtype=DOUBLE), 0.25

    def end(b):
        g = lambda y, t: b * torch.cos(y)[:, :, None] * torch.tensor([1.0, -0.5], dtype=DOUBLE)  # noqa: E731
        given = {"diffusion": mls.NoiseTerm.of_matrix(g, 2), "brownian": lambda t, s: dW, "step": mls.Milstein()}
        return mls.solve(pair(), states(), [0.0, h], mls.em_plan(pair(), [0.0, h]), **given).y

    b = torch.tensor(0.4, dtype=DOUBLE)
    assert not end(b).requires_grad
    assert torch.autograd.gradcheck(end, (b.requires_grad_(),))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_half_precision_is_carried_in_float32(rule):
    y = solve(rule, pair(), states().to(torch.bfloat16)).y
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), solve(rule, pair(), states()).y, atol=0.1, rtol=0)


def test_milstein_works_inside_torch_func():
    rule, ladder, y0 = mls.Milstein(), pair(), states()
    pushed = torch.func.jvp(lambda y: solve(rule, ladder, y).y, (y0,), (torch.ones_like(y0),))[1]
    y = y0.clone().requires_grad_()
    (pulled,) = torch.autograd.grad(solve(rule, ladder, y).y.sum(), y)
    torch.testing.assert_close(pushed, pulled, rtol=1e-12, atol=1e-12)  # the Jacobian is diagonal


# -- errors -----------------------------------------------------------------------------------------------------------


def test_a_rule_for_additive_noise_refuses_other_noise():
    for sigma in (lambda y, t: y, mls.NoiseTerm(lambda y, t, dW: dW)):
        with pytest.raises(ValueError, match="the step SRA1 needs noise that does not depend on the state"):
            solve(mls.SRA1(), pair(), states(), diffusion=sigma)


@pytest.mark.parametrize(
    ("brownian", "message"),
    [
        (mls.BrownianPath(range(4)), r"areas, which .* on a stated finest grid only; pass"),
        (lambda t, s: torch.zeros(4, 3), "areas, which a \"brownian\" of type function does not give"),
    ],
)  # fmt: skip
def test_a_path_without_areas_is_refused(brownian, message):
    with pytest.raises(ValueError, match=message):
        solve(mls.SRA1(), pair(), states(), brownian=brownian)


@pytest.mark.parametrize("samples", [1, 2, 50])
@pytest.mark.parametrize("rule", [mls.Milstein(), mls.Milstein(gradient_free=True), mls.Milstein(stratonovich=True)])
def test_milstein_refuses_diagonal_noise_whose_elements_depend_on_one_another(rule, samples):
    """Heston's model is of that kind; the rule would take the wrong derivatives."""
    y0, ladder = torch.tensor([[1.0, 0.04]], dtype=DOUBLE).repeat(samples, 1), pair()
    advice = "mls.EulerHeun" if rule.stratonovich else r"NoiseTerm.of_matrix\(lambda y, t: torch.diag_embed"
    for g in (
        lambda y, t: torch.stack((y[:, 1].abs().sqrt() * y[:, 0], 0.2 * y[:, 1].abs().sqrt()), 1),
        lambda y, t: torch.stack((torch.ones_like(y[:, 0]), y[:, 0]), 1),
        lambda y, t: y.mean() + 0 * y,
    ):
        with pytest.raises(ValueError, match="of which element i depends on element i of the state only, .*" + advice):
            solve(rule, ladder, y0, diffusion=g)
    other = mls.Milstein(stratonovich=True, gradient_free=True)  # it takes no derivative of a single element
    assert solve(other, ladder, y0, diffusion=g).y.isfinite().all()
    assert solve(rule, ladder, y0, diffusion=lambda y, t: (y**2 + 0.1).sqrt()).y.isfinite().all()


def test_a_matrix_of_another_shape_is_named():
    term = mls.NoiseTerm.of_matrix(lambda y, t: torch.ones(4, 3, 5, dtype=DOUBLE), 2)
    with pytest.raises(ValueError, match=r"the matrix of the diffusion must have the shape .* got \(4, 3, 5\) for"):
        solve(mls.Milstein(), pair(), states(), diffusion=term)


def test_the_code_of_the_page_runs_and_prints_what_it_says(capsys):
    page = (DOCS / "orders.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```\n\nprints\n\n```text\n(.*?)```", page, re.DOTALL)
    names: dict = {}
    for code, output in blocks:
        exec(code, names)
        assert capsys.readouterr().out == output
    assert len(blocks) == page.count("```python") == 1
