"""The command `sample` and the demo: what they write, print and refuse."""

import argparse
import json
import re

import numpy as np
import pytest
from PIL import Image

import multilevel_sde as mls
from multilevel_diffusion.commands import demo as demo_module
from multilevel_diffusion.commands import sample as sample_command
from multilevel_diffusion.networks.store import load_ladder, shipped_ladder
from multilevel_diffusion.process.grids import uniform
from multilevel_diffusion.process.reverse_process import Process
from multilevel_sde import cli


def run(module, *words):
    parser = argparse.ArgumentParser()
    module.register(parser.add_subparsers(required=True))
    arguments = parser.parse_args(list(words))
    return arguments.run(arguments)


def sampled(tmp_path, *words):
    base = ["sample", "--ladder", "digits", "--count", "3", "--out", str(tmp_path), "--threads", "1"]
    assert run(sample_command, *base, *words) == 0
    return json.loads((tmp_path / "record.json").read_text())


def test_sample_by_euler_maruyama(tmp_path, capsys):
    record = sampled(tmp_path, "--method", "em", "--budget", "4", "--seed", "7")
    assert record["method"] == "Euler-Maruyama on the largest network"
    assert record["evaluations"] == [0, 0, 0, 0, 4]
    assert record["cost"]["largest network's evaluations"]["FLOPs"] == 4
    assert (record["mode"], record["steps"], record["seeds"], record["fine"]) == ("ddpm", 4, [7, 10], 1000)
    assert record["versions"]["multilevel_sde"] == mls.__version__
    assert record["pages"] == ["samples_000007.png"]
    assert Image.open(tmp_path / "samples_000007.png").size == (2 * 64 + 2, 2 * 64 + 2)
    assert "3 images by Euler-Maruyama" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("mode", "budget", "method"),
    [("ddpm", 5, "the pilot's plan"), ("ddim", 7, "the pilot's plan"), ("ddim", 5, "a fitted plan")],
)
def test_sample_by_a_plan_keeps_to_its_budget(tmp_path, mode, budget, method):
    record = sampled(tmp_path, "--budget", str(budget), "--mode", mode)
    assert record["method"] == f"ML-EM, {method}"
    digits = load_ladder(shipped_ladder("digits"))
    cost = sum(n * cost for n, cost in zip(record["evaluations"], digits.ladder.costs, strict=True))
    assert record["cost"]["FLOPs per image"] == pytest.approx(cost)
    assert 0.8 * budget < cost / digits.ladder.costs[-1] <= budget
    assert record["status"].startswith("completed")


def test_sample_repeats_a_plan_and_a_page_of_seeds(tmp_path):
    """The plan that was written gives the same images again; a seed alone gives its image of the page."""
    first = sampled(tmp_path / "first", "--budget", "4", "--steps", "12", "--fine", "60", "--mode", "ddim")
    assert first["method"] == "ML-EM, p = C / T, systematic"
    plan = ["--plan", str(tmp_path / "first" / "plan.safetensors"), "--fine", "60", "--mode", "ddim"]
    again = sampled(tmp_path / "again", *plan)
    assert again["method"] == "plan plan.safetensors"
    assert again["evaluations"] == first["evaluations"]
    pages = [np.array(Image.open(tmp_path / name / "samples_000000.png")) for name in ("first", "again")]
    assert np.array_equal(*pages)
    sampled(tmp_path / "one", *plan, "--seed", "1", "--count", "1")
    one = np.array(Image.open(tmp_path / "one" / "samples_000001.png")).astype(int)
    assert np.abs(one - pages[0][:64, 66:130]).max() <= 1  # the second image of the page, to rounding


@pytest.mark.parametrize(
    ("words", "told"), [(["--fine", "10"], True), (["--steps", "100"], True), (["--fine", "1000"], False)]
)
def test_sample_says_where_it_does_not_use_the_plan_of_the_pilot(words, told, tmp_path, capsys):
    record = sampled(tmp_path, "--count", "1", "--budget", "9", *words)
    assert record["method"].endswith("p = C / T, systematic") == told
    note = (
        "note: the plans of the ladder's pilot are for --fine 1000 without --steps, so another one is drawn at random"
    )
    assert (note in capsys.readouterr().err) == told


def test_many_images_make_several_pages(tmp_path):
    record = sampled(tmp_path, "--budget", "1", "--steps", "2", "--count", "66", "--method", "em", "--budget", "2")
    assert record["pages"] == ["samples_000000.png", "samples_000064.png"]
    assert Image.open(tmp_path / "samples_000064.png").size == (2 * 64 + 2, 64)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], '"--budget" is missing'),
        (["--budget", "5", "--plan", "PLAN"], '"--plan" already says what runs'),
        (["--method", "em", "--plan", "PLAN"], '"--plan" already says what runs'),
        (["--method", "em", "--steps", "9", "--budget", "5"], '"--steps" is 9, more than the "--budget" of 5'),
        (["--budget", "5", "--steps", "2000"], '"steps" must lie between 1 and 1000'),
        (["--budget", "5", "--ladder", "no-such-ladder"], "\"--ladder\" is 'no-such-ladder'"),
        (["--plan", "missing.safetensors"], "missing.safetensors"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(words, message, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["sample", "--ladder", "digits", "--count", "1", "--out", str(out), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("multilevel-sde sample: ")
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not out.exists()


def test_the_demo_writes_its_table_and_pictures(tmp_path, capsys):
    words = [
        "--ladder",
        "digits",
        "--images",
        "4",
        "--steps",
        "20",
        "--budgets",
        "6",
        "--seed",
        "3",
        "--out",
        str(tmp_path),
    ]
    assert run(demo_module, "demo", *words) == 0
    record = json.loads((tmp_path / "demo.json").read_text())
    assert (record["images"], record["seed"], record["version"]) == (4, 3, mls.__version__)
    assert [row["method"] for row in record["rows"]] == ["EM", "one network, chosen", "ML-EM, p = C/T", "ML-EM, pilot"]
    costs = load_ladder(shipped_ladder("digits")).ladder.costs
    for row in record["rows"]:
        spent = sum(n * cost for n, cost in zip(row["evaluations"], costs, strict=True)) / costs[-1]
        assert row["cost"] == pytest.approx(spent)
        assert row["budget"] == 6
        assert row["mse"] > 0
        assert row["median"] <= 4 * row["mse"]
    assert record["rows"][0]["evaluations"] == [0, 0, 0, 0, 6]
    assert max(record["rows"][row]["cost"] for row in (1, 3)) <= 6
    assert len([n for n in record["rows"][1]["evaluations"] if n]) == 1
    assert Image.open(tmp_path / "samples.png").size == (2 * 6 * 8 + 2, 2 * 6 * 8 + 2)
    width, height = Image.open(tmp_path / "compare.png").size
    assert width > 4 * 5 * 8  # four images beside their label, in a row for the reference and each method
    assert height > 4 * 5 * 8
    assert Image.open(tmp_path / "error.png").size == (900, 400)
    assert "distance to 20 steps of the largest network" in capsys.readouterr().out


def test_the_demo_reaches_its_reference_at_the_references_budget(tmp_path):
    """EM with as many steps as the reference is the reference."""
    digits = load_ladder(shipped_ladder("digits"))
    process = Process(digits.schedule, 1.0, uniform(digits.schedule, 8))
    rows = demo_module.demo(digits, process, tmp_path, 2, [8.0])
    assert rows[0].mse == 0
    assert rows[0].cost == 8


def test_the_demos_report_says_what_its_table_shows(tmp_path):
    """What pays by the report is nearer to the reference than the best network alone, and about as near as it says.

    By the typical image: of 32 a few turn into another digit whatever the method, and dominate its mean.
    """
    digits = load_ladder(shipped_ladder("digits"))
    process = Process(digits.schedule, 1.0, uniform(digits.schedule, 1000))
    rows = demo_module.demo(digits, process, tmp_path, 32, [6.0, 12.0])
    advice = json.loads((tmp_path / "report.json").read_text())["advice"]
    assert [one["budget_in_top"] for one in advice] == pytest.approx([6.0, 12.0])
    for one in advice:
        found = {row.method: row for row in rows if row.budget == pytest.approx(one["budget_in_top"])}
        assert one["pays"] == (found["ML-EM, pilot"].median < found["one network, chosen"].median)
        told = float(re.search(r"expected mean squared error ([\d.e-]+)", one["text"])[1])
        assert 1 / 5 < found["ML-EM, pilot"].mse / told < 2
        assert "evaluations of the top level" in one["text"]
