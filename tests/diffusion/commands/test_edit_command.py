"""The command `edit`, run in this process through an argument parser of its own."""

import argparse
import json

import pytest
from PIL import Image

from multilevel_diffusion.commands.edit import register


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers(required=True))
    arguments = parser.parse_args(["edit", *words])
    return arguments.run(arguments)


@pytest.mark.parametrize("mode", ["ddpm", "ddim"])
def test_edit_prints_draws_and_records(mode, tmp_path, capsys):
    words = ["--ladder", "digits", "--images", "3", "--area", "0.1", "--tile", "1", "--steps", "10", "--mode", mode]
    assert run(*words, "--corrections", "2", "10", "--out", str(tmp_path)) == 0
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "edit.json").read_text())
    rows = {row["method"]: row for row in record["rows"]}
    assert rows["dense"]["mse"] == 0
    assert rows["dense"]["cost"] == 10
    assert rows["sparse only"]["cost"] < 10
    assert rows["multilevel, 2 corrections"]["mse"] < rows["sparse only"]["mse"]
    assert rows["multilevel, 10 corrections"]["mse"] < 1e-10
    assert all(name in printed for name in rows)
    assert record["active"]["8x8"] < 1
    assert record["bytes"]["sparse"] < record["bytes"]["reference"]
    assert Image.open(tmp_path / "edit.png").width > 290 + 3 * 64


def test_a_run_is_repeatable_and_its_seed_matters(tmp_path):
    words = ["--ladder", "digits", "--images", "1", "--tile", "1", "--steps", "4", "--corrections", "1"]

    def errors(name: str, seed: str) -> list[float]:
        assert run(*words, "--seed", seed, "--out", str(tmp_path / name)) == 0
        return [row["mse"] for row in json.loads((tmp_path / name / "edit.json").read_text())["rows"]]

    first = errors("a", "0")
    assert errors("b", "0") == first
    assert errors("c", "1") != first
    assert json.loads((tmp_path / "c" / "edit.json").read_text())["seeds"] == [1, 2]


def test_the_seed_reaches_the_plans(tmp_path, monkeypatch):
    def stop(edit, sparse, corrections, plan_seed):
        raise ValueError(f"plans of seed {plan_seed}")

    monkeypatch.setattr("multilevel_diffusion.sparse.editing.compare", stop)
    with pytest.raises(ValueError, match="plans of seed 7"):
        run("--ladder", "digits", "--images", "1", "--steps", "2", "--seed", "7", "--out", str(tmp_path))


@pytest.mark.parametrize(("steps", "corrections"), [("50", [3, 6, 12]), ("4", [3]), ("2", [1]), ("1", [1])])
def test_the_usual_corrections_fit_the_steps(steps, corrections, tmp_path):
    assert run("--ladder", "digits", "--images", "1", "--tile", "1", "--steps", steps, "--out", str(tmp_path)) == 0
    assert json.loads((tmp_path / "edit.json").read_text())["corrections"] == corrections


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ladder", "nowhere"], "\"--ladder\" is 'nowhere'"),
        (["--ladder", "digits", "--images", "1", "--middle", "2"], r'"--middle" is 2, expected a time in \(0, 1\]'),
        (["--ladder", "digits", "--images", "1", "--steps", "3", "--corrections", "4"], '"--corrections" has 4, more'),
        (
            ["--ladder", "digits", "--images", "1", "--tile", "8"],
            '"--area" 0.05, "--tile" 8 and "--margin" 1 recompute',
        ),
        (["--ladder", "digits", "--images", "1", "--tile", "1", "--margin", "99"], '"--margin" 99 recompute all'),
    ],
)
def test_errors_are_one_sentence_before_any_image_is_made(words, message, tmp_path, monkeypatch):
    monkeypatch.setattr("multilevel_diffusion.sampling.samples.sample", None)
    with pytest.raises(ValueError, match=message) as caught:
        run(*words, "--out", str(tmp_path))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "edit.json").exists()
