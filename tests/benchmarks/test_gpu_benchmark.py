"""The GPU benchmark at its smallest: what is stopped goes on to the same numbers; the default size is as promised."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import warnings
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from places import BENCHMARKS
from safetensors.torch import load_file

import multilevel_sde as mls
from multilevel_diffusion import load_ladder
from multilevel_diffusion.networks.data import DeadLeaves
from multilevel_diffusion.networks.unet import UNet

CPU = torch.device("cpu")
TIMES = {"seconds", "waited", "prefetched", "seconds_measured", "reference_seconds", "machine", "scaling"}


def module(name: str) -> ModuleType:
    return import_module(f"benchmarks.devices.{name}")


class After:
    """A deadline that passes after it was looked at so many times."""

    def __init__(self, looks: int):
        self.looks = looks

    def passed(self) -> bool:
        self.looks -= 1
        return self.looks < 0


def leaves(folder: Path):
    return module("gpu_setup").Leaves(8, 16, folder / "pool.safetensors", CPU)


# -- pieces -------------------------------------------------------------------------------------------------------


def test_training_that_stops_at_every_checkpoint_ends_where_it_would_have(tmp_path):
    setup = module("gpu_setup")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert setup.train_level(setup.TINY, 1, leaves(tmp_path), whole, CPU, After(99))
    calls = 1
    while not setup.train_level(setup.TINY, 1, leaves(tmp_path), parts, CPU, After(0)):
        calls += 1
    assert calls == 12 / 3  # as many as there are checkpoints
    found, expected = (load_file(f / "training" / "level_1" / "checkpoint.safetensors") for f in (parts, whole))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert setup.train_level(setup.TINY, 1, leaves(tmp_path), parts, CPU, After(0))  # done stays done


def test_leaves_are_those_of_the_library_and_rendered_once(tmp_path, monkeypatch):
    expected = DeadLeaves(8, pool=16)
    source = leaves(tmp_path)
    source.render()
    monkeypatch.setattr(module("gpu_setup"), "DeadLeaves", None)  # the file is enough from now on
    again = leaves(tmp_path)
    for images in (source, again):
        a, b = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
        for _ in range(2):
            assert torch.equal(images.batch(9, a), expected.batch(9, b))
    assert again.describe() == expected.describe()
    assert torch.equal(again.held_out(2), expected.held_out(2))


def test_measurements_that_are_there_are_not_made_again(tmp_path):
    rows, made = module("gpu_speed").Rows, []

    def todo(fail: bool):
        for number in range(4):

            def measure(number=number):
                if fail and number == 2:
                    raise KeyboardInterrupt
                made.append(number)
                return {"value": number**2}

            yield {"number": number}, measure

    path = tmp_path / "rows.json"
    with pytest.raises(KeyboardInterrupt):
        rows(path).run(todo(True), After(99))
    assert made == [0, 1]
    assert not rows(path).run(todo(False), After(0))  # one more at each call, however late it is
    assert made == [0, 1, 2]
    assert rows(path).run(todo(False), After(99))
    assert made == [0, 1, 2, 3]
    assert json.loads(path.read_bytes()) == [{"name": {"number": n}, "value": n**2} for n in range(4)]


def test_a_gpu_is_warmed_up_and_timed_by_events(monkeypatch):
    """With events that stand for a GPU's: they tick once for each time that the run was called."""
    speed, calls = module("gpu_speed"), []

    class Event:
        def __init__(self, enable_timing):
            self.at = None

        def record(self):
            self.at = len(calls)

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return 1000.0 * (end.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    for warm, expected in ((False, 2), (True, 1)):
        calls.clear()
        value, seconds = speed.timed(lambda: (calls.append(1), torch.ones(1))[1], torch.device("cuda"), warm=warm)
        assert (len(calls), seconds, float(value)) == (expected, 1.0, 1.0)
    clock = iter([3.0, 5.5]).__next__
    assert speed.timed(lambda: torch.zeros(1), CPU, clock)[1] == 2.5


def test_pieces_come_in_order(tmp_path, capsys):
    gpu = module("gpu")
    command = ["--out", str(tmp_path), "--tiny", "--device", "cpu"]
    with pytest.raises(SystemExit):
        gpu.main([*command, "--piece", "train:0"])
    assert '"--piece" train:0 needs render first' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu.main([*command, "--piece", "all"])
    assert "\"--piece\" is 'all', expected one of render, train:0" in capsys.readouterr().err
    assert gpu.main([*command, "--minutes", "0"]) == 0
    assert "render: done\nnext: train:0" in capsys.readouterr().out
    assert gpu.main([*command, "--piece", "train:1"]) == 0  # the networks do not need one another
    assert "train:1: done\nnext: train:0" in capsys.readouterr().out
    assert gpu.main([*command, "--minutes", "0"]) == 0
    assert "train:0: to be continued\nnext: train:0" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        gpu.main([*command, "--piece", "ladder"])
    assert '"--piece" ladder needs train:0 first' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu.main([*command, "--training", "2"])
    assert "holds a run with other settings; choose an empty folder" in capsys.readouterr().err


# -- the default size ---------------------------------------------------------------------------------------------


def test_the_default_ladder_is_as_large_as_promised():
    settings = module("gpu_setup").DEFAULT
    networks = [UNet(config).eval().requires_grad_(False) for config in settings.configs]
    assert [network.config.image_shape for network in networks] == [(3, 64, 64)] * 5
    costs = mls.FlopCost(torch.zeros(1, 3, 64, 64))(networks)
    assert costs == sorted(costs)
    assert costs[-1] / costs[0] >= 300
    assert max(b / a for a, b in itertools.pairwise(costs)) < 8  # about equally spaced
    bytes_of = [4 * sum(value.numel() for value in network.parameters()) for network in networks]
    assert sum(bytes_of[:3]) < 4 * 2**20  # small enough to keep in a repository
    assert all(size < 64 * 2**20 for size in bytes_of)
    value = networks[-1].to(torch.bfloat16)(torch.randn(1, 3, 64, 64).bfloat16(), torch.tensor(0.5))
    assert value.dtype == torch.bfloat16
    assert value.isfinite().all()
    assert settings.trained_for(0.5).training[0].steps == settings.training[0].steps / 2
    assert settings.images % 4 == 0
    assert settings.strip in settings.budgets


# -- all of it ----------------------------------------------------------------------------------------------------


def without_times(value):
    """Drop what is measured in seconds."""
    if isinstance(value, dict):
        return {name: without_times(item) for name, item in value.items() if name not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def run(folder: Path, *more: str) -> list[str]:
    script = str(BENCHMARKS / "devices" / "gpu.py")
    return [sys.executable, script, "--out", str(folder), "--tiny", "--device", "cpu", *more]


@pytest.mark.slow
def test_killed_and_called_again_it_ends_as_if_it_had_not_been(tmp_path):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    output = subprocess.run(run(whole), env=env, check=True, capture_output=True, text=True).stdout
    assert f"all done: {whole / 'results' / 'gpu.md'}" in output
    kills, before = 0, -1
    for seconds in (6.0, 9.0, 12.0, 15.0, 18.0, 40.0, 80.0, 600.0):  # long enough to get further each time
        child = subprocess.Popen(run(killed), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + seconds
        while child.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
        if child.poll() is not None:
            break
        child.send_signal(signal.SIGKILL)
        child.wait()
        kills += 1
        state = killed / "state.json"
        done = len(json.loads(state.read_bytes())["done"]) if state.is_file() else 0
        assert done >= before
        before = done
    assert child.returncode == 0
    assert kills >= 2
    everything = [json.loads((folder / "results" / "gpu.json").read_bytes()) for folder in (whole, killed)]
    assert without_times(everything[0]) == without_times(everything[1])
    for level in range(1, 6):
        weights = [load_file(f / "ladder" / f"level_{level}" / "model.safetensors") for f in (whole, killed)]
        assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())
    report = (whole / "results" / "gpu.md").read_text()
    for expected in ("# Dead leaves on ", "difference of neighbours", ", DDPM, 4 images", "ML-EM, fitted plan"):
        assert expected in report
    for figure in ("samplers", "seconds", "strip_ddpm", "strip_ddim", "scaling"):
        assert (whole / "results" / f"{figure}.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_smallest_run_ends(tmp_path):
    assert module("gpu").main(["--out", str(tmp_path), "--tiny", "--device", "cuda"]) == 0
    found = json.loads((tmp_path / "results" / "gpu.json").read_bytes())
    assert found["machine"]["device"] == torch.cuda.get_device_name()
    assert {row["name"]["way"] for row in found["levels"]} >= {"CUDA graph", "TF32", "bfloat16 weights", "compiled"}
    assert all(row["error"] < 0.05 for row in found["levels"])
    assert {row["seconds"] > 0 for row in found["levels"] + found["solves"]} == {True}


# -- the short run ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A short run at its smallest that was stopped after every step, and its folder."""
    folder, gpu = tmp_path_factory.mktemp("short"), module("gpu_short")
    calls = 0
    with warnings.catch_warnings(action="ignore"):  # a busy clock, budgets that no plan meets
        while gpu.run_short(gpu.TINY_SHORT, "deadleaves", folder, CPU, After(calls % 2)) is not None:
            calls += 1
    return folder


def test_a_short_run_writes_every_figure(short):
    results = short / "results"
    assert sorted(path.name for path in results.iterdir()) == [
        "ladder.tar",
        "short.json",
        "short.md",
        "strip_ddim.png",
        "strip_ddpm.png",
    ]
    found, rows_of = (
        json.loads((results / "short.json").read_bytes()),
        import_module("benchmarks.samplers.bench_seconds"),
    )
    assert set(found["tables"]) == {f"rows_{mode}_{batch}" for mode in ("ddim", "ddpm") for batch in (1, 2)}
    for place, table in found["tables"].items():
        methods = {row["method"] for row in table["rows"]}
        assert {"EM, uniform", "DPM++ 2M, log-SNR", "SA-Solver 2/2, uniform", rows_of.PLAN, rows_of.CHOSEN} <= methods
        assert (rows_of.ALONE in methods) == place.endswith("_2")
        assert all(row["seconds"] > 0 for row in table["rows"])
    assert {row["way"] for row in found["facts"]["level rows"]} >= {"float32", "bfloat16 weights", "compiled"}
    assert found["facts"]["waits"] == "not run: no GPU here"
    with tarfile.open(results / "ladder.tar") as archive:
        archive.extractall(short / "again", filter="data")
    again = load_ladder(short / "again")
    assert len(again.ladder) == 3
    assert "batch 2, DDPM" in (results / "short.md").read_text()


def test_levels_of_a_gpu_run_are_nearly_those_that_were_trained(short):
    images = load_ladder(short / "ladder")
    halves = module("gpu_short").in_halves(images, short / "ladder", graphs=False)
    x = mls.seeded_normal(range(2), images.image_shape)
    for own, fast in zip(images.ladder.drifts, halves.ladder.drifts, strict=True):
        torch.testing.assert_close(own(x, torch.tensor(0.5)), fast(x, torch.tensor(0.5)), rtol=0.05, atol=0.05)


def test_the_short_ladder_is_small_enough_to_keep_and_wide():
    configs = module("gpu_short").SHORT.configs
    networks = [config.build() for config in configs]
    assert sum(2 * value.numel() for network in networks for value in network.parameters()) < 10 * 2**20
    costs = mls.FlopCost(torch.zeros(1, 3, 64, 64))(networks)
    assert costs == sorted(costs)
    assert costs[-1] / costs[0] > 100
