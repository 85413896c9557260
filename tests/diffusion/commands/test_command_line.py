"""What all commands share: a help that answers at once, one order, one device, errors of one sentence, one unit."""

import argparse
import json
import re
import subprocess
import sys

import pytest
import torch

import multilevel_sde as mls
from multilevel_diffusion.commands.options import add_mode, prepare
from multilevel_diffusion.networks.by_name import PRESETS, open_ladder
from multilevel_diffusion.process.reverse_process import MODES
from multilevel_diffusion.sampling.stored import stored_pilot
from multilevel_sde import cli

COMMANDS = ["demo", "sample", "plan", "pilot", "measure", "train", "quality", "edit", "forces", "rates"]


def test_help_imports_nothing_heavy():
    program = f"""
import sys
from multilevel_sde.cli import main
for words in {[["--help"], *([name, "--help"] for name in COMMANDS)]}:
    try:
        main(words)
    except SystemExit as stopped:
        assert stopped.code == 0
print(sorted({{"torch", "numpy", "scipy", "tqdm", "PIL", "safetensors", "sklearn"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def subparsers():
    return next(action for action in cli.build_parser()._actions if isinstance(action, argparse._SubParsersAction))


def test_commands_stand_in_the_order_in_which_one_needs_them():
    assert list(subparsers().choices) == COMMANDS


def test_the_choices_are_those_of_the_library():
    """They are written twice, as the library's own come with torch."""
    parser = argparse.ArgumentParser()
    add_mode(parser)
    assert list(parser._actions[-1].choices) == list(MODES)
    train = {action.dest: action for action in subparsers().choices["train"]._actions}
    assert list(train["preset"].choices) == list(PRESETS)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("forces", "rates")])
def test_every_command_has_one_device(command):
    options = {action.dest: action for action in subparsers().choices[command]._actions}
    assert options["device"].default is None
    assert "cuda where there is one, else cpu" in options["device"].help
    assert options["threads"].default is None


def given(device=None, threads=None):
    return argparse.Namespace(device=device, threads=threads)


def machine(monkeypatch, gpus):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


@pytest.mark.parametrize(("gpus", "name", "expected"), [
    (0, None, "cpu"), (2, None, "cuda"), (2, "cpu", "cpu"), (2, "cuda", "cuda"), (2, "cuda:1", "cuda:1"),
])  # fmt: skip
def test_the_device_is_cuda_where_there_is_one(gpus, name, expected, monkeypatch):
    machine(monkeypatch, gpus)
    assert prepare(given(name)) == torch.device(expected)


@pytest.mark.parametrize(("gpus", "name", "message"), [
    (0, "cuda", "\"--device\" is 'cuda', but torch finds no CUDA device on this machine; use cpu"),
    (1, "cuda:1", "\"--device\" is 'cuda:1', but torch finds one on this machine; use cuda:0"),
    (2, "cuda:x", "\"--device\" is 'cuda:x', but torch finds 2 of them on this machine; use cuda:1"),
    (0, "gpu", "\"--device\" is 'gpu', expected a device of this machine, such as cpu"),
    (0, "", "\"--device\" is '', expected a device of this machine, such as cpu"),
])  # fmt: skip
@pytest.mark.parametrize("command", ["sample", "edit"])
def test_another_device_is_refused_in_a_sentence(command, gpus, name, message, monkeypatch, capsys, tmp_path):
    machine(monkeypatch, gpus)
    words = [command, "--ladder", "digits", "--device", name, "--out", str(tmp_path / "out")]
    assert cli.main([*words, *(["--budget", "9"] if command == "sample" else [])]) == 2
    assert capsys.readouterr().err == f"multilevel-sde {command}: {message}\n"
    assert not list(tmp_path.iterdir())


def test_threads_below_one_are_refused():
    with pytest.raises(ValueError, match='"--threads" must be at least 1, got 0'):
        prepare(given("cpu", 0))


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: out of memory\nCompile with ..."), OverflowError("big\n")])
def test_every_error_is_one_sentence(error, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr("multilevel_sde.rates.study.measure_rates", fail)
    assert cli.main(["rates"]) == 2
    assert capsys.readouterr().err == f"multilevel-sde rates: {str(error).splitlines()[0]}\n"
    with pytest.raises(type(error)):
        cli.main(["--debug", "rates"])


@pytest.mark.parametrize("words", [
    ["sample", "--budget", "0.01"],
    ["sample", "--budget", "0.01", "--steps", "50"],
    ["plan", "--budget", "0.01"],
])  # fmt: skip
def test_a_budget_in_evaluations_is_answered_in_evaluations(words, capsys, tmp_path):
    assert cli.main([*words, "--ladder", "digits", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "evaluations of the largest network" in error
    assert "FLOPs" not in error
    costs = open_ladder("digits").ladder.costs
    least = 50 * costs[0] if "--steps" in words else stored_pilot(open_ladder("digits"), "ddpm").least_budget
    assert float(re.search(r"(?:at least|between) ([\d.]+)", error)[1]) == pytest.approx(least / costs[-1], rel=1e-5)


def test_a_pilots_advice_is_in_evaluations_too(capsys, tmp_path):
    words = ["--steps", "40", "--samples", "2", "--candidates", "12", "--mode", "ddim", "--out", str(tmp_path)]
    assert cli.main(["pilot", "--ladder", "digits", *words]) == 0
    printed = capsys.readouterr().out
    assert "FLOPs" not in printed
    unit = "evaluations of the largest network by seconds"
    advice = re.findall(rf"budget ([\d.]+): Use levels .* at cost ([\d.]+) {unit};", printed)
    assert advice
    assert all(float(cost) <= float(budget) for budget, cost in advice)
    assert json.loads((tmp_path / "report.json").read_text())["unit"] == "seconds"
    assert mls.Pilot.load(tmp_path / "pilot.safetensors").unit == "FLOPs"  # which are the same everywhere
