"""Fitted plans of a ladder of networks: made, kept with their grid, and found by a budget."""

import dataclasses
import functools
import math
import re
import shutil

import pytest
import torch

import multilevel_sde as mls
from multilevel_diffusion.commands.options import duration
from multilevel_diffusion.networks.image_ladders import OwnLadder
from multilevel_diffusion.networks.store import load_ladder, save_ladder, shipped_ladder
from multilevel_diffusion.process.grids import uniform
from multilevel_diffusion.process.reverse_process import MODES, Process
from multilevel_diffusion.sampling.one_network import base_coefficients
from multilevel_diffusion.sampling.origins import load_pilot, load_plan, made_for
from multilevel_diffusion.sampling.pilots_and_fits import expected_seconds, fit, run_pilot
from multilevel_diffusion.sampling.samples import sample
from multilevel_diffusion.sampling.stored import stored_pilot, stored_plan
from multilevel_diffusion.sampling.trajectories import reference
from multilevel_sde.cli import main


@pytest.fixture(scope="module")
def digits():
    return load_ladder(shipped_ladder("digits"))


@pytest.fixture(scope="module")
def process(digits):
    return Process(digits.schedule, 0.0, uniform(digits.schedule, 1000))


@pytest.mark.parametrize(
    ("budget", "found"), [(5, 5), (6, 5), (7, None), (8, 8), (9.5, 8), (44, None), (4.9, 5), (4, None)]
)
def test_a_budget_finds_the_most_expensive_plan_it_pays(digits, budget, found):
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


def test_a_fit_says_how_long_it_takes_before_it_starts(digits, process, monkeypatch, tmp_path, capsys):
    """The targets take the largest network; the perturbations of pilot and fit grow with the square of the steps."""
    seconds = [16.0 * level for level in (1, 2, 3, 4, 5)]  # of a batch of 16
    monkeypatch.setattr(mls, "SecondsCost", lambda *_: lambda drifts: seconds)
    costs = digits.ladder.costs
    alone = sum(3 * min(1000, 50 * costs[-1] / cost) * level for level, cost in enumerate(costs, start=1))
    expected = (1000 + 5 * 5**2) * 40 * 5 + 16 * (alone + 50**2 * 2) + 3 * 40 * 50**2
    assert expected_seconds(digits, process, 5.0, samples=40, steps=50) == pytest.approx(expected)

    monkeypatch.setattr(mls, "SecondsCost", lambda *_: lambda drifts: [16.0])
    assert expected_seconds(_top(digits), process, 60.0, samples=40) == (1000 + 5 * 60**2) * 40  # takes all 60 steps
    monkeypatch.setattr(mls, "SecondsCost", lambda *_: lambda drifts: seconds)

    def stopped(*_, **__):
        assert f"a fit with 40 trajectories and 50 steps takes about {duration(expected)}" in capsys.readouterr().out
        raise ValueError("stopped")

    monkeypatch.setattr("multilevel_diffusion.sampling.pilots_and_fits.fit", stopped)
    words = ["--ladder", "digits", "--mode", "ddim", "--budget", "5", "--samples", "40", "--steps", "50"]
    assert main(["plan", "--fit", *words, "--out", str(tmp_path / "plan")]) == 2
    assert "stopped" in capsys.readouterr().err


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


@pytest.mark.parametrize("name", ["digits", "deadleaves32"])
@pytest.mark.parametrize("mode", MODES)
def test_shipped_pilots_name_what_they_measured(name, mode):
    images = load_ladder(shipped_ladder(name))
    path = images.folder / f"pilot_{mode}.safetensors"
    process = Process(images.schedule, MODES[mode], uniform(images.schedule, 1000))
    assert mls.Pilot.load_made_for(path) == made_for(images, process)
    assert load_pilot(path, images, mode).costs == images.ladder.costs
    other = "ddpm" if mode == "ddim" else "ddim"
    with pytest.raises(ValueError, match=f"holds a pilot for mode {mode}, this run has mode {other}"):
        load_pilot(path, images, other)


@pytest.fixture
def changed(tmp_path):
    """The digits trained on since their plans and pilots were made."""
    shutil.copytree(shipped_ladder("digits"), tmp_path / "digits")
    digits = load_ladder(tmp_path / "digits")
    assert stored_plan(digits, "ddim", 8.0) is not None
    assert stored_pilot(digits, "ddim") is not None
    with torch.no_grad():
        next(digits.networks[0].parameters()).add_(1e-3)
    save_ladder(tmp_path / "digits", digits.networks, digits.schedule, batch=1)
    return load_ladder(tmp_path / "digits")


def test_plans_and_pilots_of_weights_that_changed_are_not_used(changed):
    folder = changed.folder
    again = f"make it again with: multilevel-sde plan --ladder {folder} --mode ddim --budget 8 --fit --out {folder}"
    with pytest.warns(UserWarning, match=re.escape(again)) as seen:
        assert stored_plan(changed, "ddim", 8.0) is None
    assert seen[0].filename == __file__
    for mode in MODES:
        again = f"make it again with: multilevel-sde pilot --ladder {folder} --mode {mode} --save"
        with pytest.warns(UserWarning, match=re.escape(again)):
            assert stored_pilot(changed, mode) is None
    with pytest.raises(ValueError, match="holds a plan for another ladder, or for this one before its weights changed"):
        load_plan(folder / "plan_ddim_8.safetensors", changed, _ode(changed))
    with pytest.raises(ValueError, match="before its weights changed; measure this ladder with"):
        load_pilot(folder / "pilot_ddim.safetensors", changed, "ddim")


def test_sample_says_that_stored_plans_and_pilots_are_old(changed, capsys):
    out = ["--count", "1", "--threads", "1", "--out", str(changed.folder / "out")]
    assert main(["sample", "--ladder", str(changed.folder), "--mode", "ddim", "--budget", "8", *out]) == 0
    told = capsys.readouterr()
    assert "systematic" in told.out  # drawn at random
    plan, pilot, advice = (line for line in told.err.splitlines() if line.startswith("note: "))
    for kind, note in (("plan_ddim_8", plan), ("pilot_ddim", pilot)):
        assert f'{kind}.safetensors" was made before the networks of this ladder changed, and is not used' in note
    assert "has no pilot for --mode ddim that can be used, so the plan is drawn at random" in advice


def test_plan_measures_anew_where_the_stored_pilot_is_old(changed, monkeypatch, tmp_path, capsys):
    small = functools.partial(run_pilot, steps=12, samples=2, candidates=8)
    monkeypatch.setattr("multilevel_diffusion.sampling.pilots_and_fits.run_pilot", small)
    path = tmp_path / "plan.safetensors"
    words = ["--ladder", str(changed.folder), "--mode", "ddim", "--budget", "5"]
    assert main(["plan", *words, "--out", str(path)]) == 0
    assert 'pilot_ddim.safetensors" was made before the networks' in capsys.readouterr().err
    assert mls.Plan.load_made_for(path)["ladder"] == changed.digest


def test_a_pilot_that_does_not_say_is_taken_where_its_costs_fit(digits, process, tmp_path):
    path = tmp_path / "pilot.safetensors"
    found = stored_pilot(digits, "ddim")
    found.save(path)
    assert load_pilot(path, digits, "ddpm").costs == found.costs
    dataclasses.replace(found, costs=tuple(2 * cost for cost in found.costs)).save(path)
    with pytest.raises(ValueError, match="measured networks of other costs; measure this ladder with `multilevel-sde"):
        load_pilot(path, digits, "ddim")
    found.save(path, made_for(digits, process))
    with pytest.raises(ValueError, match="for a finest grid of 1000 steps, this run has a finest grid of 50"):
        load_pilot(path, digits, Process(digits.schedule, 0.0, uniform(digits.schedule, 50)))


def _ode(images):
    return Process(images.schedule, 0.0, uniform(images.schedule, 1000))


def _top(images):
    return OwnLadder(images.ladder.top(), images.schedule, images.image_shape)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda digits, process: fit(digits, process, 5.0, samples=0), '"samples" must be at least 8, got 0'),
        (lambda digits, process: fit(digits, process, 1e-4), "must pay an evaluation of the network, or a plan of 28"),
        (lambda digits, process: fit(digits, process, math.inf), "must pay an evaluation of the network, or a plan of"),
        (lambda digits, process: fit(_top(digits), process, 1001), "at most the 1000 of the finest grid, got 1001"),
        (lambda digits, process: fit(_top(digits), process, 0.9), "at most the 1000 of the finest grid, got 0.9"),
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
