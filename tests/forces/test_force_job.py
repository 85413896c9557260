"""Runs in a folder: what a kill leaves is gone on with, to the same bytes."""

import multiprocessing
import os
import re
import signal
import threading
import time

import numpy as np
import pytest
import torch
from pairs import CHEAP, COPPER, TOP
from tqdm import tqdm

from multilevel_sde.cli import _sentence

pytest.importorskip("ase")
import argparse

import ase.io
from ase.calculators.lj import LennardJones

from multilevel_forces import Langevin, commands, impulses, ladder
from multilevel_forces import job as job_room
from multilevel_forces.calculator_names import calculator_named
from multilevel_forces.job import Job

FILES = ("trajectory.extxyz", "log.csv")
LEVELS = ["lj(epsilon=0.3,sigma=2.3)", "emt"]


def job(folder, of_ase=False):
    """By functions, or by ASE's potentials, whose lists of neighbours depend on where atoms were before."""
    atoms = COPPER
    if of_ase:
        atoms = COPPER[:4]
        atoms.cell = [3.61] * 3
    levels = [calculator_named(name) for name in LEVELS] if of_ase else [CHEAP, TOP]
    warm = Langevin(temperature=1200 if of_ase else 600, timestep=4.0)
    return Job(folder, ladder(levels, atoms, prices=[1, 2]), warm, impulses([1, 4]), seed=3, every=5)


def contents(folder):
    return [(folder / name).read_bytes() for name in FILES]


@pytest.mark.parametrize("of_ase", [False, True])
def test_a_run_that_was_cut_anywhere_goes_on_to_the_same_bytes(tmp_path, monkeypatch, of_ase):
    """Checkpoints fall at every tenth step here; the run stops at some steps, and rubbish lies behind."""
    steps, stops = (400, (1, 93, 140, 222)) if of_ase else (60, (1, 13, 20, 42))
    job(tmp_path / "whole", of_ase).run(steps)
    monkeypatch.setattr(job_room, "_SECONDS", -1.0)
    for stop in stops:

        def tell(walk, stop=stop):
            if walk.n == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            job(tmp_path / "cut", of_ase).run(steps, tell)
        for name in FILES:
            with open(tmp_path / "cut" / name, "ab") as file:
                file.write(b"half a frame of what came after")
    used = job(tmp_path / "cut", of_ase)
    for force in used.ladder.drifts:  # as a pilot does before
        shifts = torch.randn(force.systems.positions().shape, generator=torch.Generator().manual_seed(0))
        force(force.systems.positions() + 0.2 * shifts)
    used.run(steps)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    frames = ase.io.read(tmp_path / "cut" / "trajectory.extxyz", ":")
    assert [frame.info["step"] for frame in frames] == list(range(0, steps + 1, 5))
    job(tmp_path / "cut", of_ase).run(steps + 25)
    job(tmp_path / "long", of_ase).run(steps + 25)
    assert contents(tmp_path / "cut") == contents(tmp_path / "long")


def test_what_is_damaged_is_refused(tmp_path):
    job(tmp_path).run(10)
    (tmp_path / "log.csv").write_text("")
    with pytest.raises(ValueError, match="shorter than when the run stopped"):
        job(tmp_path).run(20)
    (tmp_path / "state.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is damaged"):
        job(tmp_path).run(20)


def command(folder, *more, steps=40):
    parser = argparse.ArgumentParser()
    commands.register(parser.add_subparsers())
    structure = folder.parent / "copper.extxyz"
    if not structure.exists():
        atoms = COPPER[:4]
        atoms.cell = [3.61] * 3
        atoms.write(structure)
    line = ["forces", "run", "--structure", str(structure), "--calculators", *LEVELS, "--temperature", "300"]
    given = parser.parse_args([*line, "--steps", str(steps), "--timestep", "2", "--out", str(folder), *more])
    return given.run(given)


def test_the_command_runs_goes_on_and_reports(tmp_path, capsys):
    pytest.importorskip("jinja2")
    out = tmp_path / "run"
    assert command(out, "--periods", "1", "4", steps=30) == 0
    assert command(out, "--periods", "1", "4", steps=60) == 0
    frames = ase.io.read(out / "trajectory.extxyz", ":")
    assert [frame.info["step"] for frame in frames] == list(range(0, 61, 10))
    assert frames[0].get_temperature() > 50
    log = np.genfromtxt(out / "log.csv", delimiter=",", names=True)
    assert log["temperature_K"][-1] == pytest.approx(frames[-1].get_temperature(), rel=1e-6)
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 4
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    for word in ("Cu4 at 300.0 K", "every", "4 steps", "60 steps of 2.0 fs"):
        assert word in page
    assert "ns/day" in capsys.readouterr().err


def test_the_command_takes_the_pilots_plan(tmp_path, capsys):
    assert command(tmp_path / "run", "--pilot-steps", "32", "--seed", str(10**30), steps=10) == 0
    said = capsys.readouterr().out
    assert "32 steps of 2 fs with all levels" in said
    assert "report.html" in said
    assert "What the pilot measured" in (tmp_path / "run" / "report.html").read_text()


def no_weights():
    raise RuntimeError("weights are gone")


@pytest.mark.parametrize(("more", "kind", "says"), [
    (["--periods", "1"], ValueError, '"--periods" must be one a calculator, got 1 for 2'),
    (["--periods", "1", "3", "4"], ValueError, '"periods" must begin with 1'),
    (["--structure", "nowhere.cif"], FileNotFoundError, "there is no such file"),
    (["--structure", __file__], ValueError, "which ase cannot read"),
    (["--structure", "EMPTY"], ValueError, "empty.xyz', which holds no atoms"),
    (["--structure", "."], FileNotFoundError, "which is a folder, not a file"),
    (["--calculators", "emt", "emt"], ValueError, "names one twice"),
    (["--calculators", "emtt"], ValueError, "has 'emtt', expected one of emt, morse"),
    (["--calculators", "lj(sigma)"], ValueError, "expected NAME\\(key=value"),
    (["--calculators", "emt(colour=2)", "--periods", "1"], ValueError, "takes asap_cutoff, not colour"),
    (["--calculators", "morse(r0=wide)"], ValueError, "where r0 must be a number"),
    (["--calculators", "7net-0(colour=2)"], ValueError, "cannot be made|needs the package sevenn; pip install it"),
    (["--calculators", "math:sqrt"], ValueError, "'math:sqrt', which cannot be made: .*argument"),
    (["--calculators", f"{__name__}:no_weights"], ValueError, "no_weights', which cannot be made: weights are gone$"),
    (["--calculators", "no.such:thing"], ValueError, "cannot be imported"),
])  # fmt: skip
def test_the_command_refuses_in_a_sentence(tmp_path, more, kind, says):
    (tmp_path / "empty.xyz").write_text("0\n\n")
    more = [str(tmp_path / "empty.xyz") if one == "EMPTY" else one for one in more]
    with pytest.raises(kind, match=says):
        command(tmp_path / "run", *more)


def test_a_folder_of_another_run_is_refused(tmp_path):
    command(tmp_path / "run", "--periods", "1", "4", steps=10)
    with pytest.raises(ValueError, match="begun with --seed 0, not 1"):
        command(tmp_path / "run", "--periods", "1", "4", "--seed", "1", steps=10)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="holds something else"):
        command(tmp_path / "other", "--periods", "1", "4")
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="is damaged"):
        command(tmp_path / "run", "--periods", "1", "4")


def test_calculators_by_name():
    found = calculator_named(" lj(epsilon=0.01, sigma=2.3)")
    assert isinstance(found, LennardJones)
    assert found.parameters["sigma"] == 2.3
    assert calculator_named("ase.calculators.emt:EMT").name == "emt"
    missing = ModuleNotFoundError("no", name="ase")
    assert "forces" in _sentence(missing)


def endless(folder):
    """`forces run` with a checkpoint every ten steps or so."""
    job_room._SECONDS = 0.02
    tqdm.set_lock(threading.RLock())  # one of processes would be left behind by a kill
    command(folder, "--periods", "1", "4", steps=1_000_000)


def test_twenty_kills_lose_nothing(tmp_path):
    """SIGKILL soon after a frame, every third time after a checkpoint: the files are those of a run left alone."""
    pytest.importorskip("jinja2")
    cut, context = tmp_path / "cut", multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "ase.calculators.emt", "multilevel_forces.job", "multilevel_forces.walk"])

    def written():
        state, log = cut / "state.safetensors", cut / "log.csv"
        return state.stat().st_mtime_ns if state.exists() else 0, log.stat().st_size if log.exists() else 0

    for kill in range(20):
        state, log = written()
        process = context.Process(target=endless, args=(cut,), daemon=True)
        process.start()
        while written()[0] == state if kill % 3 == 0 else written()[1] in (0, log):
            assert process.is_alive()
            time.sleep(0.002)
        time.sleep(0.004 * kill)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert state > 0  # the last run went on from a checkpoint
    steps = int((cut / "log.csv").read_bytes().rsplit(b"\n", 2)[-2].split(b",")[0]) + 100
    for name in ("cut", "whole"):
        command(tmp_path / name, "--periods", "1", "4", steps=steps)
    assert contents(cut) == contents(tmp_path / "whole")
    print(f"{steps} steps, 20 kills")
