"""Seconds of levels: measured once for a device and a batch, kept beside the ladder, and not taken from a bad clock."""

import json
import shutil

import pytest
import torch

import multilevel_sde as mls
from multilevel_diffusion import Process, load_ladder, uniform
from multilevel_diffusion.sampling.prices import PRICES, in_seconds  # before the fixture that replaces it
from multilevel_diffusion.sampling.shards import read_manifest
from multilevel_sde.cli import main


@pytest.fixture
def tiny(tiny_ladder, tmp_path):
    shutil.copytree(tiny_ladder, tmp_path / "tiny", ignore=shutil.ignore_patterns(PRICES))
    return load_ladder(tmp_path / "tiny")


@pytest.fixture
def process(tiny):
    return Process(tiny.schedule, 1.0, uniform(tiny.schedule, 10))


@pytest.fixture
def clock(monkeypatch):
    """The seconds that the next measurements will find, a list for every one of them; says how many there were."""
    told, seen = [[2.0, 6.0]], []

    def measure(cost, drifts):
        seen.append(len(cost.y0))
        return told[min(len(seen), len(told)) - 1]

    monkeypatch.setattr(mls.StepSecondsCost, "__call__", measure)
    return told, seen


def test_seconds_are_of_one_image_and_measured_once(tiny, process, clock):
    _, seen = clock
    found = in_seconds(tiny, process, 4)
    assert found.costs == (0.5, 1.5)
    assert found.unit == "seconds"
    assert found.drifts == tiny.ladder.drifts
    assert in_seconds(tiny, process, 4).costs == found.costs
    assert in_seconds(load_ladder(tiny.folder), process, 4).costs == found.costs
    assert seen == [4, 4]
    in_seconds(tiny, process, 8)
    in_seconds(tiny, Process(tiny.schedule, 0.0, process.fine_times), 4)
    assert seen == [4, 4, 8, 8, 4, 4]
    in_seconds(tiny, process, 4)
    assert len(seen) == 6


def test_seconds_of_other_weights_are_measured_anew(tiny, process, clock):
    in_seconds(tiny, process, 4)
    with torch.no_grad():
        next(tiny.networks[0].parameters()).add_(1.0)
    in_seconds(tiny, process, 4)
    assert len(clock[1]) == 4


def test_a_clock_that_scatters_is_said_and_not_used(tiny, process, clock):
    clock[0][:] = [[2.0, 6.0], [2.0, 9.2]]
    words = "a step of level 2 took 6e[+]03 ms and then 9.2e[+]03 ms, so seconds are not to be trusted now, and costs"
    with pytest.warns(UserWarning, match=words):
        found = in_seconds(tiny, process, 4)
    assert (found.costs, found.unit) == (tiny.ladder.costs, "FLOPs")
    assert not (tiny.folder / PRICES).exists()


def test_a_clock_that_scatters_once_is_read_again(tiny, process, clock):
    clock[0][:] = [[2.0, 6.0], [9.0, 6.0], [3.2, 20.0], [2.1, 6.6]]
    assert in_seconds(tiny, process, 4).costs == (0.5, 1.5)
    assert len(clock[1]) == 4


def test_the_faster_of_two_measurements_counts(tiny, process, clock):
    clock[0][:] = [[2.0, 8.0], [2.8, 6.0]]
    assert in_seconds(tiny, process, 2).costs == (1.0, 3.0)


def test_a_level_that_is_slower_than_the_next_costs_as_much(tiny, process, clock):
    clock[0][:] = [[6.0, 4.0]]
    costs = in_seconds(tiny, process, 1).costs
    assert costs[0] == 6.0
    assert 6.0 < costs[1] < 6.0001


@pytest.mark.parametrize("content", [b"", b"[1]", b'[{"seconds": []}]', b'[{"seconds": [0.0, 1.0]}]', b"{}"])
def test_a_damaged_file_is_written_again(tiny, process, clock, content):
    (tiny.folder / PRICES).write_bytes(content)
    assert in_seconds(tiny, process, 2).costs == (1.0, 3.0)
    assert json.loads((tiny.folder / PRICES).read_text())[-1]["seconds"] == [1.0, 3.0]


@pytest.mark.parametrize(
    "seconds", ["[1.0]", "[1.0, 2.0, 3.0]", "[1.0, Infinity]", "[1e-320, 1.0]", '"12"', '{"1": 2}']
)
def test_an_entry_that_is_no_price_of_these_levels_is_measured_again(tiny, process, clock, seconds):
    in_seconds(tiny, process, 8)
    in_seconds(tiny, process, 2)
    path = tiny.folder / PRICES
    other, entry = json.loads(path.read_text())
    path.write_text(json.dumps([other, {**entry, "seconds": "HERE"}]).replace('"HERE"', seconds))
    for _ in range(2):
        assert in_seconds(tiny, process, 2).costs == (1.0, 3.0)
        assert json.loads(path.read_text()) == [other, entry]
    assert clock[1] == [8, 8, 2, 2, 2, 2]


def test_a_folder_that_cannot_be_written_is_no_error(tiny, process, clock, monkeypatch):
    def refuse(path, content):
        raise PermissionError(path)

    monkeypatch.setattr("multilevel_diffusion.sampling.prices.write_atomically", refuse)
    assert in_seconds(tiny, process, 2).costs == (1.0, 3.0)


def at(monkeypatch, ratios):
    """Let commands find these seconds."""

    def found(images, process, batch):
        return mls.Ladder(images.ladder.drifts, mls.GivenCost(ratios, "seconds"))

    monkeypatch.setattr("multilevel_diffusion.sampling.prices.in_seconds", found)


DIGITS = ["sample", "--ladder", "digits", "--mode", "ddim", "--budget", "6", "--threads", "1"]


def test_budgets_count_seconds_unless_flops_are_asked_for(tmp_path, monkeypatch, capsys):
    at(monkeypatch, [0.1, 0.2, 0.3, 0.5, 1.0])
    for price in ("seconds", "flops"):
        assert main([*DIGITS, "--count", "2", "--price", price, "--out", str(tmp_path / price)]) == 0
    by_seconds, by_flops = (mls.Plan.load(tmp_path / price / "plan.safetensors") for price in ("seconds", "flops"))
    assert by_seconds != by_flops
    cost = json.loads((tmp_path / "seconds" / "record.json").read_text())["cost"]["largest network's evaluations"]
    assert cost["seconds"] <= 6 < by_flops.evaluations.double() @ torch.tensor([0.1, 0.2, 0.3, 0.5, 1.0]).double()
    assert f"{cost['seconds']:.2f} by seconds, {cost['FLOPs']:.2f} by FLOPs" in capsys.readouterr().out


def test_a_run_goes_on_with_its_plan_whatever_the_clock_says_then(tmp_path, monkeypatch, capsys):
    at(monkeypatch, [0.1, 0.2, 0.3, 0.5, 1.0])
    command = [*DIGITS, "--out", str(tmp_path)]
    assert main([*command, "--count", "2"]) == 0
    begun = mls.Plan.load(tmp_path / "plan.safetensors")
    at(monkeypatch, [0.01, 0.02, 0.03, 0.5, 1.0])
    assert main([*command, "--count", "4"]) == 0
    assert "2 of them were there" in capsys.readouterr().out
    assert mls.Plan.load(tmp_path / "plan.safetensors") == begun
    assert read_manifest(tmp_path)["job"]["seeds"] == [0, 4]
    assert main([*command, "--count", "4", "--budget", "9"]) == 2
    assert "--budget 6 against 9" in capsys.readouterr().err


def test_processes_take_the_prices_of_the_first(tmp_path, monkeypatch):
    at(monkeypatch, [0.01, 0.02, 0.03, 0.5, 1.0])
    real = __import__("multilevel_diffusion.sampling.distributed", fromlist=["gather"]).gather

    def gather(value):
        first = ((0.1, 0.2, 0.3, 0.5, 1.0), "seconds")
        return [first] if isinstance(value, tuple) and value[-1] == "seconds" else real(value)

    monkeypatch.setattr("multilevel_diffusion.sampling.distributed.gather", gather)
    assert main([*DIGITS, "--count", "2", "--out", str(tmp_path / "other")]) == 0
    at(monkeypatch, [0.1, 0.2, 0.3, 0.5, 1.0])
    assert main([*DIGITS, "--count", "2", "--out", str(tmp_path / "first")]) == 0
    assert mls.Plan.load(tmp_path / "other/plan.safetensors") == mls.Plan.load(tmp_path / "first/plan.safetensors")
