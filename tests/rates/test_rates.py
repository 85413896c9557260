"""The cost exponents of EM and ML-EM: measured against the finite formulas, and these against the theorem."""

import json
import math

import pytest
import torch

import multilevel_sde as mls
from multilevel_sde import cli
from multilevel_sde.rates import first_order
from multilevel_sde.rates.first_order import Constants
from multilevel_sde.rates.runs import measure
from multilevel_sde.rates.study import RatesResult, measure_rates

CONSTANTS = Constants(level=0.68, step=0.19, gain=0.55, duration=1.0)
SPANS = {1.5: range(3, 10), 2.5: range(3, 9), 3.0: range(3, 9), 4.0: range(3, 9)}  # three decades of cost each
SIMULATED = [1.5, 3.0, pytest.param(2.5, marks=pytest.mark.slow), pytest.param(4.0, marks=pytest.mark.slow)]


@pytest.mark.parametrize("gamma", SIMULATED)
def test_costs_errors_and_exponents_are_measured_as_predicted(gamma):
    """Nothing is fitted, and the seed is fixed; what the bands have room for was found with four seeds.

    Costs to 4 % (worst 2.8 %), errors to 10 % (worst 5.3 %), exponents to 0.15 (worst 0.08).
    """
    measured = measure_rates(gamma, levels=SPANS[gamma])
    curves = ((measured.em, measured.em_predicted), (measured.multilevel, measured.multilevel_predicted))
    for points, predicted in curves:
        assert points[-1].cost > 1000 * points[0].cost
        for point, expected in zip(points, predicted, strict=True):
            assert abs(point.cost / expected.cost - 1) < 0.04
            assert abs(point.error / expected.error - 1) < 0.1
    em, multilevel = (first_order.exponent(points) for points, _ in curves)
    assert abs(em - (gamma + 1)) < 0.15
    assert abs(multilevel - first_order.exponent(measured.multilevel_predicted)) < 0.15
    assert multilevel < em - 0.5


def test_predicted_cost_is_the_expectation_that_the_library_budgets_with():
    point, scale = first_order.predict_multilevel(3.0, CONSTANTS, levels=5, steps=300)
    problem = mls.problems.scaling_law(3.0, 5)
    p = mls.TheoremSchedule(3.0).probabilities(problem.ladder, problem.times(300), scale=scale)
    assert math.isclose(point.cost, mls.expected_cost(problem.ladder, p, mls.independent), rel_tol=1e-12)
    difference = 5 * 4.0 ** -torch.arange(2, 6, dtype=torch.float64)
    variance = CONSTANTS.gain / 300 * float((difference * (1 / p[0, 1:] - 1)).sum())
    bias = (CONSTANTS.level / 32) ** 2
    assert math.isclose(variance, bias, rel_tol=1e-9)
    assert math.isclose(point.error**2, 2 * bias + (CONSTANTS.step / 300) ** 2, rel_tol=1e-9)


@pytest.mark.parametrize("gamma", [1.5, 2.5, 3.0, 4.0])
def test_forty_levels_reach_the_theorem(gamma):
    levels, em, multilevel = first_order.limits(gamma, CONSTANTS)[-1]
    assert levels == 40
    assert abs(em - (gamma + 1)) < 1e-9
    assert abs(multilevel - max(2.0, gamma)) < 0.05


def test_at_gamma_two_the_cost_has_two_logarithms():
    """cost error^2 is a quadratic polynomial of the number of levels K = log2(1/error)."""
    products = []
    for K in (10, 20, 30, 40):
        point, _ = first_order.predict_multilevel(2.0, CONSTANTS, K, first_order.theorem_steps(2.0, CONSTANTS, K))
        products.append(point.cost * point.error**2)
    a, b, c, d = products
    assert abs(d - 3 * c + 3 * b - a) < 1e-4 * d
    assert c - 2 * b + a > 0.05 * d


@pytest.mark.parametrize(("gamma", "steps"), [(3.0, 1e6), (4.0, 1e4)])
def test_cost_at_fixed_error_does_not_depend_on_the_step_size(gamma, steps):
    """EM would pay 20 times more. Ten levels, and N so large that clipping has little left to save."""
    points = [
        first_order.predict_multilevel(gamma, CONSTANTS, 10, n, reference_step=1 / n)[0] for n in (steps, 20 * steps)
    ]
    assert math.isclose(points[0].error, points[1].error, rel_tol=1e-9)
    assert abs(points[1].cost / points[0].cost - 1) < 0.15


def test_measured_cost_and_error_do_not_depend_on_the_step_size():
    """Two levels far apart, 40 hits of the upper one in the limit, N = 500 and 10000 steps of 512 ODE paths.

    At fixed variance eta T G V (1/p - 1) the hits N p are h = N H / (N + H), H = 40: 8 % more for the finer grid. Over
    five seeds an error scattered by 3 %, so the band of 15 % for the ratio is 3.5 standard errors.
    """
    problem = mls.problems.scaling_law(4.0, 8)
    ladder, y0 = problem.ladder.subset([3, 7]), problem.y0(512)
    costs, errors = [], []
    for steps in (500, 10000):
        times = problem.times(steps)
        p = torch.tensor([1.0, 40 / (steps + 40)]).expand(steps, 2)
        plan = mls.draw_plan(p, mls.independent, generator=torch.Generator().manual_seed(0), samples=512)
        exact = mls.solve(ladder.top(), y0, times, mls.em_plan(ladder.top(), times)).y
        y = mls.solve(ladder, y0, times, plan).y
        costs.append(mls.expected_cost(ladder, p, mls.independent))
        errors.append(float((y - exact).square().mean().sqrt()))
        assert abs(plan.cost(ladder) / costs[-1] - 1) < 0.1
    assert abs(costs[1] / costs[0] - 1) < 0.15
    assert abs(errors[1] / errors[0] - 1) < 0.15


def test_theorem_steps_are_the_fewest_without_clipping():
    for gamma in (1.5, 3.0):
        steps = first_order.theorem_steps(gamma, CONSTANTS, 6)
        ladder = mls.problems.scaling_law(gamma, 6).ladder
        _, scale = first_order.predict_multilevel(gamma, CONSTANTS, 6, steps)
        first = scale * ladder.costs[0] ** (-(gamma + 2) / (2 * gamma))
        assert 0.7 < first < 1.0  # the variance of the clipped formula, 1/p - 1, is a little below 1/p
        assert mls.TheoremSchedule(gamma).probabilities(ladder, [0.0, 1.0], scale=scale)[0, 1] < 1


def test_constants_of_an_ornstein_uhlenbeck_process():
    """J(t) = e^{-theta (1 - t)}: gain (1 - e^{-2 theta}) / (2 theta), to the pilot's step (1/256)."""
    theta = 1.5
    constants = measure(mls.problems.ornstein_uhlenbeck(theta), samples=32)
    assert abs(constants.gain / ((1 - math.exp(-2 * theta)) / (2 * theta)) - 1) < 0.01
    assert constants.duration == 1.0


@pytest.mark.parametrize("diffusion", [None, 0.5])
def test_constants_predict_the_errors_of_levels_and_steps(diffusion):
    """Levels 9 to 12, whose shifts are first order to 2e-3; single levels differ from their mean by up to 10 %."""
    problem = mls.problems.scaling_law(3.0, 12, diffusion=diffusion)
    constants = measure(problem, samples=128)
    noise = {"diffusion": diffusion, "brownian": None if diffusion is None else mls.BrownianPath(range(128))}

    def final(ladder, steps):
        times = problem.times(steps)
        return mls.solve(ladder, problem.y0(128), times, mls.em_plan(ladder, times), **noise).y

    true = final(problem.limit, 256)
    shifts = [final(problem.ladder.subset([k]), 256) - true for k in range(8, 12)]
    sizes = [float(shift.square().mean().sqrt()) * 2 ** (k + 1) for k, shift in enumerate(shifts, start=8)]
    assert abs(sum(sizes) / 4 / constants.level - 1) < 0.1
    error = float((final(problem.limit, 32) - final(problem.limit, 2048)).square().mean().sqrt())
    assert abs(error / (constants.step * (1 / 32 - 1 / 2048)) - 1) < 0.1


def test_result_is_reproducible_and_leaves_global_random_numbers_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = measure_rates(3.0, levels=(2, 3), samples=4, seed=5)
    assert torch.equal(state, torch.get_rng_state())
    assert first == measure_rates(3.0, levels=(2, 3), samples=4, seed=5)
    assert first.multilevel != measure_rates(3.0, levels=(2, 3), samples=4, seed=6).multilevel


def test_ode_is_run_without_noise():
    ode = measure_rates(3.0, levels=(2, 3), samples=4, diffusion=0.0)
    assert "ODE" in ode.table()
    assert ode.em != measure_rates(3.0, levels=(2, 3), samples=4).em


def test_command_prints_the_table_and_writes_the_files(tmp_path, capsys):
    options = ["--gamma", "4", "--levels", "2", "4", "--samples", "2", "--diffusion", "0"]
    assert cli.main(["rates", *options, "--out", str(tmp_path / "a")]) == 0
    printed = capsys.readouterr().out
    assert "gamma = 4, ODE, 2 paths" in printed
    content = json.loads((tmp_path / "a" / "rates.json").read_text())
    again = measure_rates(4.0, levels=(2, 3, 4), samples=2, diffusion=0.0)
    assert again.table() in printed
    assert content["exponents"]["EM"]["measured"] == first_order.exponent(again.em)
    assert content["multilevel"][-1]["cost"] == again.multilevel[-1].cost
    assert (tmp_path / "a" / "rates.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["rates.json", "rates.png"]


def status_of(*words):
    """The status of the command line, which argparse raises."""
    try:
        return cli.main(words)
    except SystemExit as stopped:
        return stopped.code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gamma", "-1"], "argument --gamma: must be a finite number above 0 and at most 20, got '-1'"),
        (["--gamma", "30"], "argument --gamma: must be a finite number above 0 and at most 20, got '30'"),
        (["--gamma", "nan"], "argument --gamma: must be a finite number above 0 and at most 20, got 'nan'"),
        (["--samples", "1"], "argument --samples: must be a whole number of at least 2, got '1'"),
        (["--diffusion", "-2"], "argument --diffusion: must be a finite number of at least 0, got '-2'"),
        (["--levels", "9", "3"], '"--levels" must be LOW and HIGH with 2 <= LOW < HIGH <= 9, got 9 3; try 3 9'),
        (["--levels", "3", "10"], '"--levels" must be LOW and HIGH with 2 <= LOW < HIGH <= 9, got 3 10; try 3 9'),
        (["--levels", "3", "3"], '"--levels" must be LOW and HIGH with 2 <= LOW < HIGH <= 9, got 3 3; try 3 9'),
        (["--levels", "1", "3"], "argument --levels: must be a whole number of at least 2, got '1'"),
        (["--out", __file__], f"argument --out: must be a folder, but {__file__!r} is a file; give another"),
    ],
)
def test_wrong_arguments_of_the_command_are_one_sentence_and_status_2(arguments, message, capsys):
    assert status_of("rates", *arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("levels", [(), (3,), (4, 3), (1, 2), (3, 10)])
def test_levels_are_checked(levels):
    with pytest.raises(ValueError, match=r'^"levels" must be at least two increasing numbers between 2 and 9'):
        measure_rates(3.0, levels=levels)


def test_one_level_has_nothing_random_to_predict():
    with pytest.raises(ValueError, match=r'^"levels" must be at least 2, got 1'):
        first_order.predict_multilevel(3.0, CONSTANTS, 1, 10)


def test_table_lists_every_point():
    small = measure_rates(3.0, levels=(2, 3), samples=4)
    assert isinstance(small, RatesResult)
    lines = small.table().splitlines()
    assert [line.split()[:3] for line in lines if line[:2] in ("EM", "ML")][:4] == [
        ["EM", "2", "4"],
        ["EM", "3", "8"],
        ["ML-EM", "2", str(small.multilevel[0].steps)],
        ["ML-EM", "3", str(small.multilevel[1].steps)],
    ]


def test_cost_ratio_at_equal_error():
    em = tuple(first_order.Point(k, 1, cost=10.0 * 16.0**k, error=2.0**-k) for k in (1, 2, 3))
    multilevel = tuple(first_order.Point(k, 1, cost=40.0 * 8.0**k, error=2.0**-k) for k in (2, 3, 4))
    made = RatesResult(3.0, 0.5, 2, CONSTANTS, em, em, multilevel, multilevel, ((40, 4.0, 3.0),))
    assert math.isclose(made.cost_ratio(2**-2.5), 4 / 2**2.5)
    assert "of EM at equal error: 1 at 0.25, 0.5 at 0.12" in made.table()
    with pytest.raises(ValueError, match=r'^"error" must lie within both measured curves, got 0.5 outside 0.0625'):
        made.cost_ratio(0.5)
