"""Fitted plans of a ladder of networks: made, kept with their grid, and found by a budget."""

import shutil

import pytest
import torch

import multilevel_sde as mls
from multilevel_diffusion.networks.store import load_ladder, shipped_ladder
from multilevel_diffusion.process.grids import uniform
from multilevel_diffusion.process.reverse_process import Process
from multilevel_diffusion.sampling.pilots_and_fits import base_coefficients, fit, reference, run_pilot
from multilevel_diffusion.sampling.plan_origin import load_plan, made_for
from multilevel_diffusion.sampling.samples import sample
from multilevel_diffusion.sampling.stored import stored_plan
from multilevel_sde.cli import main


@pytest.fixture(scope="module")
def digits():
    return load_ladder(shipped_ladder("digits"))


@pytest.fixture(scope="module")
def process(digits):
    return Process(digits.schedule, 0.0, uniform(digits.schedule, 1000))


@pytest.mark.parametrize(("budget", "found"), [(5, 5), (6, 5), (7, None), (8, 8), (9.5, 8), (44, None), (4.9, None)])
def test_a_budget_finds_the_dearest_plan_it_pays(digits, budget, found):
    plan = stored_plan(digits, "ddim", budget)
    if found is None:
        assert plan is None
    else:
        cost = plan[0].cost(digits.ladder) / digits.ladder.costs[-1]
        assert 0.8 * found < cost <= found * (1 + 1e-9)
        assert len(plan[1]) == plan[0].steps + 1


def test_a_stored_plan_is_nearer_than_ddim_at_twice_its_cost(digits, process):
    seeds = range(8)
    target = reference(digits, process, seeds)
    plan, times = stored_plan(digits, "ddim", 12)
    ddim = process.grid(24)

    def median(grid, chosen):
        images = sample(digits.ladder, process, grid, chosen, seeds, digits.image_shape).images
        return float((images - target).square().flatten(1).mean(1).median())

    assert median(times, plan) < 0.5 * median(ddim, mls.em_plan(digits.ladder, ddim))


def test_a_fit_does_not_ruin_what_was_kept_out(digits):
    process = Process(digits.schedule, 0.0, uniform(digits.schedule, 50))
    fitted = fit(digits, process, 6.0, samples=8, steps=10)
    assert fitted.held_out[1] <= fitted.held_out[0]
    assert fitted.plan.cost(digits.ladder) <= 6 * digits.ladder.costs[-1] * (1 + 1e-9)


def test_the_base_is_an_affine_mean_for_both_processes(digits, process):
    for tau in (0.0, 1.0):
        found = base_coefficients(Process(digits.schedule, tau, process.fine_times), process.log_snr_grid(12))
        torch.testing.assert_close(found.sum(1), torch.ones(12, dtype=torch.float64))


def test_a_plan_without_its_grid_is_refused(digits, process, tmp_path):
    shutil.copytree(shipped_ladder("digits"), tmp_path / "digits", ignore=shutil.ignore_patterns("plan_*"))
    times = process.grid(8)
    mls.em_plan(digits.ladder, times).save(tmp_path / "digits" / "plan_ddim_8.safetensors")
    with pytest.raises(ValueError, match="holds no times"):
        stored_plan(load_ladder(tmp_path / "digits"), "ddim", 8)


def test_sample_uses_the_stored_plan(tmp_path, capsys):
    command = ["sample", "--ladder", "digits", "--mode", "ddim", "--budget", "8", "--count", "2", "--threads", "1"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    assert "a fitted plan" in capsys.readouterr().out
    kept, times = mls.Plan.load_with_times(tmp_path / "plan.safetensors")
    assert times is not None
    assert len(times) == kept.steps + 1


def test_fit_needs_a_budget(tmp_path, capsys):
    arguments = ["plan", "--ladder", "digits", "--mode", "ddim", "--target-mse", "0.1", "--fit"]
    assert main([*arguments, "-o", str(tmp_path / "plan.safetensors")]) != 0
    assert '"--fit" takes a "--budget"' in capsys.readouterr().err


@pytest.mark.parametrize("name", ["digits", "deadleaves32"])
def test_shipped_plans_name_their_ladder(name):
    images = load_ladder(shipped_ladder(name))
    process = Process(images.schedule, 0.0, uniform(images.schedule, 1000))
    assert images.folder is not None
    paths = sorted(images.folder.glob("plan_*.safetensors"))
    assert len(paths) == 5
    for path in paths:
        assert mls.Plan.load_made_for(path) == made_for(images, process)
        plan, _ = load_plan(path, images, process)
        top = images.ladder.costs[-1]
        assert plan.cost(images.ladder) <= float(path.stem.split("_")[-1]) * top * (1 + 1e-9)


def test_a_stored_plan_of_weights_that_changed_is_refused(tmp_path):
    shutil.copytree(shipped_ladder("digits"), tmp_path / "digits")
    digits = load_ladder(tmp_path / "digits")
    assert stored_plan(digits, "ddim", 8.0) is not None
    with torch.no_grad():
        next(digits.networks[0].parameters()).add_(1e-3)
    with pytest.raises(ValueError, match="holds a plan for another ladder, or for this one before its weights changed"):
        stored_plan(digits, "ddim", 8.0)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda digits, process: fit(digits, process, 5.0, samples=0), '"samples" must be at least 8, got 0'),
        (lambda digits, process: fit(digits, process, 5.0, steps=1), '"steps" must be at least 2, got 1'),
        (lambda digits, process: fit(digits, process, 5.0, steps=1001), '"steps" must be at most the 1000 of the fin'),
        (lambda digits, process: run_pilot(digits, "ddim", steps=1), '"steps" must be at least 2, got 1'),
        (lambda digits, process: run_pilot(digits, "ddim", candidates=0), '"candidates" must be at least 2, got 0'),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_runs(use, message, digits, process, monkeypatch):
    monkeypatch.setattr(mls, "solve", None)
    monkeypatch.setattr(mls, "pilot", None)
    with pytest.raises(ValueError, match=message):
        use(digits, process)
