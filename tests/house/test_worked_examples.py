"""The worked examples outside diffusion: the laws of their forces and integrals, and short forms of their runs."""

import importlib.util
import math
import re
import sys

import pytest
import torch
from places import ROOT

import multilevel_sde as mls


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


langevin, integral = script("langevin"), script("integral_drift")
T = torch.tensor(0.0)


# -- Langevin dynamics -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fluid():
    """Two systems of 100 particles in float64, some of them outside of the box."""
    x = langevin.equilibrated(2, 100, steps=60).double()
    return x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def potential(squared):
    g, s = 1 / (langevin.CORE + squared**3), (squared + langevin.SMEAR**2).sqrt()
    return 4 * (g**2 - g) + langevin.CHARGE * torch.exp(-langevin.SCREENING * s) / s


def two(*distances, box=40.0):
    """Return systems of two particles at these distances, across the box's corner."""
    apart = torch.tensor(distances, dtype=torch.float64)[:, None] * torch.tensor([0.6, 0.8], dtype=torch.float64)
    return torch.stack([torch.zeros_like(apart), apart], 1) + box - 0.3


def test_the_force_is_the_gradient_of_the_potential_below_the_taper_and_zero_beyond():
    x = two(0.3, 0.9, 1.1, 1.7, 2.39).requires_grad_()
    (slope,) = torch.autograd.grad(potential((x[:, 0] - x[:, 1]).square().sum(-1)).sum(), x)
    for cutoff in (3.0, 20.0):  # by cells, and over all pairs
        torch.testing.assert_close(langevin.PairForce(40.0, cutoff)(x.detach()), -slope)
    assert not langevin.PairForce(40.0, 3.0)(two(3.001, 5.0)).any()
    taper = langevin.PairForce(40.0, 3.0)(two(2.401, 2.7, 2.999)) / langevin.PairForce(40.0, 20.0)(
        two(2.401, 2.7, 2.999)
    )
    assert (taper.diff(dim=0) < -0.3).all()
    assert taper[0].min() > 0.99
    assert taper[-1].max() < 0.01


def test_cells_find_every_pair(fluid):
    """The cell list against all images of all pairs, summed by themselves."""
    box, cutoff = math.sqrt(200), 3.0
    force = langevin.PairForce(box, cutoff)
    assert force._cells == 4
    images = box * torch.cartesian_prod(torch.arange(-2.0, 3), torch.arange(-2.0, 3)).double()
    for system, found in zip(fluid, force(fluid), strict=True):
        apart = system[:, None, None] - system[:, None] - images
        squared = apart.square().sum(-1)
        part = ((1 - squared / cutoff**2) / 0.36).clamp(0, 1)
        squared = squared.detach().requires_grad_()
        (slope,) = torch.autograd.grad(potential(squared).sum(), squared)
        expected = (-2 * slope * part**2 * (3 - 2 * part))[..., None] * apart
        torch.testing.assert_close(found, expected.sum((1, 2)), rtol=1e-9, atol=1e-9)


def test_forces_obey_newton_and_know_no_box(fluid):
    generator = torch.Generator().manual_seed(1)
    for force in langevin.ladder_of(fluid).drifts:
        value = force(fluid)
        assert value.sum(1).abs().max() < 1e-10 * value.abs().max()  # action and reaction
        moved = fluid + force.box * torch.randint(-3, 4, fluid.shape, generator=generator).double()
        torch.testing.assert_close(force(moved), value, rtol=1e-7, atol=1e-7)  # any image of a particle
        torch.testing.assert_close(force(fluid + 1.234), value, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(force(fluid[1:]), value[1:])


def test_the_virial_is_the_force_along_a_dilation(fluid):
    """W = -dU / d log(scale) = sum over particles of x F, where no pair is seen through the boundary."""
    x = fluid % math.sqrt(200)
    for cutoff in (1.3, 3.0, 50.0):
        force = langevin.PairForce(100.0, cutoff)
        torch.testing.assert_close(force.virial(x), (x * force(x)).sum((1, 2)))


def test_the_ladder_telescopes_to_the_full_force(fluid):
    ladder, times = langevin.ladder_of(fluid), langevin.grid(0.0, 4, langevin.FINE)
    cheap, middle, full = (drift(fluid) for drift in ladder.drifts)
    torch.testing.assert_close(cheap + (middle - cheap) + (full - middle), full)
    every = langevin.run(ladder, fluid, times, langevin.impulses(4, (1, 1))).y
    assert torch.equal(every, langevin.run(ladder.top(), fluid, times, mls.em_plan(ladder.top(), times)).y)


def test_costs_are_distances(fluid):
    ladder = langevin.ladder_of(fluid)
    assert ladder.costs[2] == 100**2
    assert [cost % 900 for cost in ladder.costs[:2]] == [0, 0]  # nine cells of as many places for each of 100
    assert ladder.costs[0] < 0.6 * ladder.costs[1] < 0.6 * ladder.costs[2]
    plan = langevin.impulses(8, (2, 4))
    assert plan.evaluations.tolist() == [8, 4, 2]  # no two weights of a step are equal
    assert plan.weights.mean(0).tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match='"cutoff" must be positive and at most half the box of 10, got 6'):
        langevin.PairForce(10.0, 6.0)


def test_radial_distribution_is_normalised():
    """Of an ideal gas it is 1 (4 standard errors of a Poisson count in every bin); a pair at 1.05 fills one bin."""
    x = torch.rand(4, 400, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 20
    g = langevin.radial_distribution(x, 20.0).mean(0)
    areas = math.pi * torch.linspace(0.0, 5.0, 51).square().diff()
    expected = 4 * 400**2 / 2 / 20.0**2 * areas  # pairs
    assert ((g - 1).abs() < 4 / expected.sqrt()).all()
    single = langevin.radial_distribution(two(1.05, box=20.0), 20.0)[0]
    assert (single > 0).nonzero().tolist() == [[10]]
    assert single[10] * areas[10] / 20.0**2 == pytest.approx(0.5)  # 2 ordered pairs of 2^2


def numbers(text, name):
    """Return the numbers of the rows that start with a name."""
    rows = [line[len(name) :] for line in text.splitlines() if line.startswith(name)]
    return [[float(word) for word in re.findall(r"(?:\d[\d.]*(?:e-\d+)?|nan)", row)] for row in rows]


def test_langevin_runs_and_saves(tmp_path, capsys):
    """A small form: the plan is nearer than the full force at its cost, and has the full force's pressure."""
    words = [
        "--particles",
        "144",
        "--systems",
        "2",
        "--steps",
        "32",
        "--before",
        "60",
        "--long",
        "24",
        "--budgets",
        "4",
    ]
    assert langevin.main([*words, "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert (tmp_path / "langevin.png").read_bytes().startswith(b"\x89PNG")
    (cost, error, *_), full = numbers(text, "pilot's plan")[0], numbers(text, "full force")
    assert cost <= 4
    assert [row[0] for row in full] == [16, 8, 4, 24]
    assert error < full[2][1] / 4  # at 4
    (cheap,), (multilevel,) = numbers(text, "cheap force"), numbers(text, "multilevel")
    pressure, spread = full[3][-2:]
    assert abs(multilevel[-2] - pressure) < 4 * (spread + multilevel[-1])  # paired runs: far within the interval
    assert cheap[-2] < 0.5 * pressure  # what the tail does to it
    assert multilevel[0] < 0.5 * full[3][0]


# -- a drift that is an integral ---------------------------------------------------------------------------------------


def state(samples=3):
    y = torch.rand(samples, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return y


@pytest.mark.parametrize("rule", [integral.gauss(3), integral.sobol(64)])
def test_rules_integrate(rule):
    nodes, weights = rule
    assert float(weights.sum()) == pytest.approx(1)
    assert weights @ nodes.prod(1) == pytest.approx(2.0**-5, rel=1e-12 if len(nodes) == 243 else 0.1)
    assert nodes.min() > 0
    assert nodes.max() < 1


def test_gauss_rules_are_exact_to_degree_2n_minus_1_and_sobol_points_are_nested():
    nodes, weights = integral.gauss(2)
    assert weights @ nodes[:, 3] ** 3 == pytest.approx(1 / 4, rel=1e-12)
    assert weights @ nodes[:, 3] ** 4 != pytest.approx(1 / 5, rel=1e-4)
    assert torch.equal(integral.sobol(8)[0], integral.sobol(64)[0][:8])
    assert not torch.equal(integral.sobol(8)[0], integral.sobol(8, seed=1)[0])


def test_the_drift_is_the_mean_of_the_sales(monkeypatch):
    """One demand by hand: products 2 and 5 are sold out, and half of who finds that buys another one."""
    x = torch.tensor([0.5, 0.2, 0.5, 0.5, 0.1, 0.5], dtype=torch.float64)[None]  # theta = 0.5
    demand = torch.tensor([[0.1, 0.6, 0.2, 0.48, 0.3]], dtype=torch.float64)
    rule = (demand, torch.ones(1, dtype=torch.float64))
    expected = [0.1 + 0.6 / 8, 0.2, 0.2 + 0.6 / 8, 0.5, 0.1]  # 0.4 and 0.2 unserved; the fourth then runs out too
    change = integral.drift_by(rule, integral.kinked)(x, T)
    torch.testing.assert_close(integral.SUPPLY - change[0, :5], torch.tensor(expected, dtype=torch.float64))
    assert change[0, 5] == 0
    lost = [math.log1p(math.exp(6 * float(s - v))) / 6 for s, v in zip(demand[0], x[0], strict=False)]
    wanted = [float(s) + (sum(lost) - own) / 8 for s, own in zip(demand[0], lost, strict=True)]
    soft = [w - math.log1p(math.exp(6 * (w - float(v)))) / 6 for w, v in zip(wanted, x[0], strict=False)]
    change = integral.drift_by(rule, integral.smooth)(x, T)
    torch.testing.assert_close(integral.SUPPLY - change[0, :5], torch.tensor(soft, dtype=torch.float64))
    whole = integral.drift_by(integral.gauss(4), integral.smooth)(state(), T)
    monkeypatch.setattr(integral, "BLOCK", 100)  # in parts
    torch.testing.assert_close(integral.drift_by(integral.gauss(4), integral.smooth)(state(), T), whole)


def test_without_substitution_the_sales_are_known():
    """With theta = 0 the mean sales are E min(s, x) = x - x^2 / 2."""
    y = state(16)
    y[:, 5] = 0
    sales = integral.SUPPLY - integral.drift_by(integral.sobol(4096), integral.kinked)(y, T)[:, :5]
    torch.testing.assert_close(sales, y[:, :5] - y[:, :5] ** 2 / 2, rtol=0, atol=1e-4)


def test_a_kink_makes_the_product_rule_harder_than_monte_carlo():
    """gamma = 5/2 for a product rule of order 2 in 5 dimensions; far less where it is smooth or the nodes are even."""

    def gamma(rules, missing):
        (a, *_, b), (d, *_, e) = [len(weights) for _, weights in rules], integral.rule_errors(rules, missing, 1 << 14)
        return math.log(b / a) / math.log(d / e)

    product = [integral.gauss(side) for side in (1, 2, 4)]
    assert 2.0 < gamma(product, integral.kinked) < 3.0
    assert gamma(product, integral.smooth) < 1.0
    assert gamma([integral.sobol(count) for count in (4, 32, 256)], integral.kinked) < 1.2


def test_the_sweep_moves_no_theta_and_shares_the_noise():
    sweep = integral.Sweep(integral.kinked, thetas=3, seeds=2, steps=4, truth=64)
    assert sweep.y0[:, 5].tolist() == [0.0, 0.5, 1.0] * 2
    assert torch.equal(sweep.truth[:, 5], sweep.y0[:, 5])
    increment = sweep.noise["brownian"].like(sweep.y0)(0.0, 1.0)
    assert torch.equal(increment[0], increment[1])
    assert torch.equal(increment[0], increment[2])
    assert not torch.equal(increment[0], increment[3])
    same = integral.ladder_of([integral.sobol(64, seed=1)], integral.kinked)
    row = sweep.row("rule 1", same, sweep.times, mls.em_plan(same, sweep.times))
    assert row.errors.tolist() == [0.0, 0.0]
    assert row.cost == 64 * 16


def test_costs_at_equal_error():
    rows = [integral.Row("rule of 4", c, torch.tensor([e, e]), 0.0) for c, e in ((1.0, 1.0), (4.0, 0.25), (2.0, 2.0))]
    points = integral.frontier([*rows, integral.Row("plan", 1.0, torch.tensor([0.1]), 0.0)])
    assert points == [(1.0, 1.0), (4.0, 0.25)]
    assert integral.cost_at(points, 0.5) == pytest.approx(2.0)
    assert math.isnan(integral.cost_at(points, 0.1))


def test_integral_drift_runs_and_saves(tmp_path, capsys):
    """A small form: on the kinked integral the plan needs less than half the nodes of the best rule alone."""
    words = ["--thetas", "2", "--seeds", "2", "--steps", "16", "--sides", "1", "2", "3", "4", "--truth", "1024"]
    assert integral.main([*words, "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert (tmp_path / "integral_drift.png").read_bytes().startswith(b"\x89PNG")
    smooth, kinked, _ = re.split(r"\n(?=\S+, (?:smooth|kinked))", text.strip())[-3:]
    along = [float(re.search(r"along the path ([\d.]+)", part).group(1)) for part in (smooth, kinked)]
    assert along[0] < 1.5 < along[1]
    best = max(row[-1] for row in numbers(kinked, "plan") if not math.isnan(row[-1]))
    assert best > 2


# -- documentation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["langevin", "integral_drift"])
def test_the_code_of_a_page_runs_and_prints_what_it_says(name, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n((?:(?!```).)*)```\n\nprints\n\n```text\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == page.count("```python") > 0
    for code, output in blocks:
        exec(code, {})
        assert capsys.readouterr().out == output
