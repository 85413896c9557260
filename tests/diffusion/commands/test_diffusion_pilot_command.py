"""The commands `pilot` and `plan`: what they write is what the library says, and the plan can be sampled."""

import json

import pytest
import torch

import multilevel_sde as mls
from multilevel_diffusion.networks.by_name import open_ladder
from multilevel_diffusion.sampling.pilots_and_fits import run_pilot
from multilevel_diffusion.sampling.stored import stored_pilot
from multilevel_sde.cli import main

TOP = open_ladder("digits").ladder.costs[-1]


def test_the_plan_of_the_stored_pilot_is_written(tmp_path, capsys):
    path = tmp_path / "plan.safetensors"
    assert main(["plan", "--ladder", "digits", "--budget", "8", "-o", str(path)]) == 0
    best = stored_pilot(open_ladder("digits"), "ddpm").plan(budget=8 * TOP)
    assert mls.Plan.load(path) == best.plan
    assert f"expected mean squared error {best.predicted.mse:.3g}" in capsys.readouterr().out
    assert main(["sample", "--ladder", "digits", "--plan", str(path), "--count", "2", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["evaluations"] == best.plan.evaluations.tolist()


def test_a_target_takes_the_place_of_a_budget(tmp_path):
    path = tmp_path / "plan.safetensors"
    found = stored_pilot(open_ladder("digits"), "ddim")
    target = found.plan(budget=10 * TOP).predicted.mse
    assert (
        main(["plan", "--ladder", "digits", "--mode", "ddim", "--target-mse", f"{target:.17g}", "-o", str(path)]) == 0
    )
    assert found.predict(mls.Plan.load(path)).mse <= target


def test_a_pilot_is_measured_reported_and_reproducible(tmp_path, capsys):
    out = tmp_path / "out"
    small = ["--steps", "40", "--samples", "2", "--candidates", "12", "--mode", "ddim"]
    assert main(["pilot", "--ladder", "digits", *small, "--out", str(out)]) == 0
    assert sorted(file.name for file in out.iterdir()) == ["pilot.safetensors", "report.html", "report.json"]
    again = run_pilot(open_ladder("digits"), "ddim", steps=40, samples=2, candidates=12)
    torch.testing.assert_close(mls.Pilot.load(out / "pilot.safetensors").gram, again.gram, rtol=1e-4, atol=1e-9)
    assert json.loads((out / "report.json").read_text())["title"] == "digits, DDIM"
    plan = tmp_path / "plan.safetensors"
    saved = str(out / "pilot.safetensors")
    words = ["--ladder", "digits", "--mode", "ddim"]
    assert main(["plan", *words, "--budget", "5", "--pilot", saved, "-o", str(plan)]) == 0
    assert mls.Plan.load(plan).cost(open_ladder("digits").ladder) <= 5 * TOP
    told = capsys.readouterr().out
    assert "report.html" in told
    assert f"use it with: multilevel-sde sample --ladder digits --mode ddim --fine 40 --plan {plan}" in told
    assert main(["sample", *words, "--fine", "40", "--plan", str(plan), "--count", "1", "--out", str(tmp_path)]) == 0
    assert main(["plan", "--ladder", "digits", "--budget", "5", "--pilot", saved, "-o", str(plan)]) == 2
    assert "holds a pilot for mode ddim, this run has mode ddpm; give --mode ddim" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["plan", "--ladder", "digits", "--budget", "0.01", "-o", "x"], '"budget" must be at least'),
        (
            ["plan", "--ladder", "digits", "--target-mse", "1e-12", "-o", "x"],
            '"target_mse" is 1e-12, the best reachable',
        ),
        (
            ["plan", "--ladder", "digits", "--budget", "5", "--pilot", "missing", "-o", "x"],
            'no pilot file at "missing"',
        ),
        (["pilot", "--ladder", "digits", "--steps", "50", "--save"], '"--save" keeps the default for 1000 steps'),
        (["pilot", "--ladder", "nowhere"], "\"--ladder\" is 'nowhere'"),
    ],
)
def test_a_users_error_is_one_sentence(command, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_pilot_of_other_networks_is_refused(tmp_path, capsys):
    other = open_ladder("deadleaves32").folder / "pilot_ddpm.safetensors"
    target = tmp_path / "plan.safetensors"
    assert main(["plan", "--ladder", "digits", "--budget", "5", "--pilot", str(other), "-o", str(target)]) == 2
    assert "holds a pilot for another ladder, or for this one before its weights changed" in capsys.readouterr().err
    assert not target.exists()
