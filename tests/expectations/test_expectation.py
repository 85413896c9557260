"""mls.expectation: the same for any batch and any processes, the tolerance kept, the table true to the samples."""

import math
import multiprocessing

import pytest
import torch
from estimates import SQUARE, TIMES, estimate, in_a_group, numbers, ones, square, two_levels

import multilevel_sde as mls
from multilevel_sde.expectations.paths import seeds_of
from multilevel_sde.expectations.sampling import optimal_samples

RUNS = 60


@pytest.mark.parametrize("batch", [1000, 64, 7])
def test_batches_do_not_change_the_result(batch):
    assert numbers(estimate(batch=batch)) == numbers(estimate())


def test_another_seed_gives_another_result():
    assert numbers(estimate(seed=1))[0] != numbers(estimate())[0]


@pytest.mark.parametrize("world", [2, 3])
def test_processes_do_not_change_the_result(tmp_path, world):
    context = multiprocessing.get_context("spawn")
    arguments = [(rank, world, str(tmp_path / "meeting"), str(tmp_path / "out")) for rank in range(world)]
    processes = [context.Process(target=in_a_group, args=given, daemon=True) for given in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * world
    for rank in range(world):
        assert torch.load(tmp_path / f"out.{rank}", weights_only=False) == numbers(estimate())


def test_the_value_is_the_sum_of_the_means_of_the_terms():
    result = estimate()
    assert result.value == pytest.approx(sum(row.mean for row in result.rows), abs=1e-12)
    error = math.sqrt(sum(row.variance / row.samples for row in result.rows))
    assert error <= result.standard_error < 1.2 * error
    spent = sum(row.samples * row.cost for row in result.rows)
    assert result.cost == pytest.approx(spent + result.trial_cost)
    assert result.standard_error**2 + result.bias**2 <= 1.1 * 0.01**2


def test_a_term_is_what_its_seeds_say():
    """The mean of the first term, from one solve of its seeds."""
    result = estimate()
    row = result.rows[0]
    ((sign, level, steps),) = row.paths
    seeds, times = seeds_of(0, 1, 0, row.samples), TIMES[:: 256 // steps]
    ladder = two_levels().subset([level])
    path = mls.BrownianPath(seeds, grid=TIMES)
    plan = mls.em_plan(ladder, times)
    y = mls.solve(ladder, ones(seeds), times, plan, diffusion=0.5, brownian=path).y
    assert sign == 1
    assert row.mean == pytest.approx(float(square(y).mean()), rel=1e-12)


@pytest.mark.parametrize("levels", [1, 2])
def test_intervals_hold_the_truth(levels):
    """Of 60 intervals of 95% at least 51 do: fewer would have a chance of 0.0004."""
    ladder = two_levels() if levels == 2 else two_levels().top()
    found = [estimate(ladder, seed=seed) for seed in range(RUNS)]
    assert sum(one.low <= SQUARE <= one.high for one in found) >= 51


def test_the_tolerance_is_a_root_mean_squared_error():
    """Of 60 estimates; more than 1.3 times the tolerance would have a chance below 0.001."""
    errors = torch.tensor([estimate(seed=seed).value - SQUARE for seed in range(RUNS)])
    assert 0.006 < float(errors.square().mean().sqrt()) < 0.013


def test_a_budget_is_kept_and_spent():
    result = estimate(budget=1e6)
    assert 0.9e6 < result.cost <= 1e6
    assert result.low < SQUARE < result.high
    assert result.standard_error < 0.5 * estimate(budget=1e5).standard_error


def test_the_cost_is_near_that_of_the_optimal_allocation():
    result = estimate(tolerance=0.002)
    length = sum(math.sqrt(row.variance * row.cost) for row in result.rows)
    assert result.cost < 1.3 * length**2 / (0.002**2 - result.bias**2)


def test_optimal_samples_are_optimal():
    """Moving samples between terms at equal cost raises the variance."""
    variances, costs = [4.0, 0.5, 0.01], [1.0, 4.0, 16.0]
    best = optimal_samples(variances, costs, 1e-4)
    variance = sum(v / n for v, n in zip(variances, best, strict=True))
    assert variance == pytest.approx(1e-4, rel=1e-2)
    for a in range(3):
        for b in range(3):
            moved = [float(n) for n in best]
            moved[a] += 0.1 * best[a]
            moved[b] -= 0.1 * best[a] * costs[a] / costs[b]
            if moved[b] > 0 and a != b:
                assert sum(v / n for v, n in zip(variances, moved, strict=True)) > variance


def test_outputs_share_their_paths():
    def phi(y):
        return torch.cat([y, y**2], 1)

    result = estimate(phi=phi)
    truth = torch.tensor([math.exp(-1.0), SQUARE], dtype=torch.float64)
    assert result.value.shape == (2,)
    assert bool(((result.value - truth).abs() < 4 * 0.01).all())
    assert result.rows[0].variance.shape == (2,)


def test_phi_of_saved_states_is_given_times_and_seeds():
    seen = []

    def phi(ys, times, seeds):
        seen.append((tuple(ys.shape), times.tolist(), len(seeds)))
        return ys[0, :, 0] * ys[1, :, 0]

    result = estimate(two_levels().top(), phi=phi, save=[0.5, 1.0])
    assert all(shape == (2, count, 1) and times == [0.5, 1.0] for shape, times, count in seen)
    truth = math.exp(-1.5) + math.exp(-0.5) * 0.25 * (1 - math.exp(-1.0)) / 2
    assert abs(result.value - truth) < 4 * 0.01


def test_the_running_maximum_has_no_error_of_order_one_half():
    """max of W over [0, 1] is |W(1)|: sqrt(2 / pi); without the bridge 16 steps would miss 0.58 / 4 of it."""

    def highest(ys, times, seeds):
        return mls.running_maximum(ys, times, 1.0, seeds)[-1, :, 0]

    still = mls.Ladder([lambda y, t: torch.zeros_like(y)], costs=[1.0])
    result = estimate(still, phi=highest, start=lambda s: 0 * ones(s), diffusion=1.0, save=True, tolerance=0.02)
    assert abs(result.value - math.sqrt(2 / math.pi)) < 4 * 0.02


def test_an_exit_probability():
    """P(max W > 1) = 2 P(W(1) > 1) = 0.3173."""

    def out(ys, times, seeds):
        return mls.exit_times(ys, times, 1.0, 1.0, seeds)[:, 0].isfinite().double()

    still = mls.Ladder([lambda y, t: torch.zeros_like(y)], costs=[1.0])
    result = estimate(still, phi=out, start=lambda s: 0 * ones(s), diffusion=1.0, save=True, tolerance=0.02)
    assert abs(result.value - 0.3173) < 4 * 0.02


def test_one_grid_is_taken_as_it_is():
    result = estimate(coarsest=256)
    assert {steps for row in result.rows for _, _, steps in row.paths} == {256}
    assert result.bias == 0
    assert len(result.rows) == 2  # both levels
    discrete = (1 - 1 / 256) ** 512
    assert abs(result.value - discrete - 0.25 / 256 * (1 - discrete) / (1 - (1 - 1 / 256) ** 2)) < 4 * 0.01


def test_an_ode_takes_the_fewest_paths():
    result = estimate(two_levels(), diffusion=None, tolerance=0.05)
    assert result.value == pytest.approx(math.exp(-2.0), abs=0.05)
    assert result.standard_error == 0
    assert all(row.samples == 5 for row in result.rows)


def test_a_rectangle_is_taken_where_it_is_cheaper():
    """Refining the steps does nearly the same to both levels, so the difference of that is small."""
    result = estimate(tolerance=0.002)
    assert any(len(row.paths) == 4 for row in result.rows)
    assert abs(result.value - SQUARE) < 4 * 0.002
    assert all(len(row.paths) <= 2 for row in estimate(two_levels().top(), tolerance=0.002).rows)


def test_unstable_grids_are_left_out():
    stiff, times = mls.Ladder([lambda y, t: -100.0 * y**3], costs=[1.0]), torch.linspace(0.0, 2.0, 4097)
    result = estimate(stiff, tolerance=0.02, start=lambda s: 3 * ones(s), times=times)
    assert result.unstable
    assert max(result.unstable) < min(steps for row in result.rows for _, _, steps in row.paths)
    assert "infinite" in result.advise()


def test_orders_are_those_of_the_problem():
    """Additive noise: alpha = 1, beta = 2."""
    result = estimate(two_levels().top(), tolerance=0.001)
    assert result.alpha.low <= 1 <= result.alpha.high
    assert result.beta.value == pytest.approx(2, abs=0.3)
    assert result.gamma.value == pytest.approx(1)


def test_the_progress_bar_ends_at_what_was_spent(capsys):
    estimate(progress=False)
    assert capsys.readouterr().err == ""
    estimate(progress=True)
    assert "expectation: 100%" in capsys.readouterr().err.split("\r")[-1]


def test_what_is_printed():
    text = str(estimate())
    assert text.startswith("E[phi] = 0.2")
    assert all(word in text for word in ("paths", "kurtosis", "alpha", "beta", "gamma", "plain Monte Carlo"))


def test_what_is_printed_of_several_outputs_says_whose_it_is():
    text = str(estimate(phi=lambda y: torch.cat((y, y**2), 1)))
    assert "(means, variances and kurtoses of the first of 2 outputs)" in text


def test_advice_names_what_is_cheaper():
    """Two levels that are almost the same at almost the same cost, and two that have nothing in common."""
    ladder = mls.Ladder([lambda y, t: 1e-4 - y, lambda y, t: -y], costs=[1.0, 1.01])
    assert "level 1 is cheaper" in estimate(ladder, tolerance=0.03).advise()
    ladder = mls.Ladder([lambda y, t: 9.0 * y, lambda y, t: -y], costs=[1.0, 1.01])
    assert "level 1 did not pay: not used" in estimate(ladder, tolerance=0.03).advise()


def test_what_is_not_known_is_said():
    assert "their bias is not known" in estimate(coarsest=256).advise()
    never = estimate(phi=lambda y: (y[:, 0] > 9).double())
    assert never.value == never.high == 0
    assert "rare event" in never.advise()
    assert "rare event" not in estimate(diffusion=None, tolerance=0.05).advise()


def test_a_plot_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    estimate().plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
