"""Jobs that go on: the same bytes however often they are killed or damaged, what a folder refuses, and full disks."""

import errno
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from job_processes import child, command, job, run_until

import multilevel_sde as mls
from multilevel_diffusion.networks.store import load_ladder
from multilevel_diffusion.sampling import job_folder
from multilevel_diffusion.sampling.job_folder import close_folder, finish, open_folder, run, stored_job
from multilevel_diffusion.sampling.shards import PLAN, Shard, load_images, read_manifest
from multilevel_sde import cli


def contents(folder):
    """Everything in a folder but the two files that are not the same bytes in every run: see the test of them."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name not in (PLAN, "record.json")}


@pytest.fixture(scope="module")
def whole(tiny_ladder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(job(tiny_ladder), folder)
    return contents(folder)


# -- continuing, repairing ---------------------------------------------------------------------------------------------


def test_finished_shards_are_not_computed_again(tiny_ladder, tmp_path, whole):
    task = job(tiny_ladder)
    open_folder(task, tmp_path)
    finish(task, tmp_path, task.shards[1])
    before = (tmp_path / task.shards[1].name).stat().st_mtime_ns
    assert run(task, tmp_path).images == 7
    assert (tmp_path / task.shards[1].name).stat().st_mtime_ns == before
    assert contents(tmp_path) == whole
    assert run(task, tmp_path) == job_folder.Result(0, 0.0, "nothing to do")
    open_folder(task, tmp_path)
    assert len(load_images(tmp_path)) == 11  # a finished job stays readable while it is looked through again


def test_the_parts_of_a_run_give_the_same_in_any_order(tiny_ladder, tmp_path, whole):
    """As an engine does it that hands out shards: a process has the folder and the ladder only."""
    open_folder(job(tiny_ladder), tmp_path)
    task = stored_job(tmp_path, load_ladder(tiny_ladder))
    entries = [finish(task, tmp_path, shard) for shard in reversed(task.shards)]
    with pytest.raises(ValueError, match='"entries" must name each of the 3 shards once, got 2 entries'):
        close_folder(task, tmp_path, entries[1:])
    (tmp_path / f".{task.shards[0].name}.abcd_123").touch()  # what a worker that was killed has left
    close_folder(task, tmp_path, entries)
    assert contents(tmp_path) == whole


def damages(content):
    """Yield contents with one bit changed in every part of a file, and shortened ones."""
    for position in [*range(0, 320, 3), len(content) // 2, len(content) - 1]:
        for bit in (0, 3, 5):
            yield content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :]
    for length in (0, 7, 100, len(content) - 1):
        yield content[:length]
    yield content + b"\0"


def test_any_changed_bit_of_a_shard_is_seen(tiny_ladder, whole):
    shard = job(tiny_ladder).shards[0]
    content = whole[shard.name]
    assert shard.intact(content)
    assert [number for number, changed in enumerate(damages(content)) if shard.intact(changed)] == []
    images = torch.zeros(4, 1, 4, 4)
    assert not Shard("another job", shard.first, shard.last).intact(content)
    assert not shard.intact(Shard(shard.job, 4, 8).encode(images))
    assert not shard.intact(shard.encode(images[:3]))


def test_missing_and_damaged_shards_are_reported_and_repaired(tiny_ladder, tmp_path, whole):
    task = job(tiny_ladder)
    run(task, tmp_path)
    first, second, _ = (tmp_path / shard.name for shard in task.shards)
    second.write_bytes(whole[second.name][:-9] + b"\x01" + whole[second.name][-8:])
    with pytest.raises(ValueError, match=f"{second.name} is missing or not the file that was written"):
        load_images(tmp_path)
    first.unlink()
    with pytest.raises(ValueError, match=f"{first.name} is missing or not the file that was written"):
        load_images(tmp_path)
    assert run(task, tmp_path).images == 8
    assert contents(tmp_path) == whole


# -- what a folder refuses ---------------------------------------------------------------------------------------------


def test_another_job_is_refused_and_changes_nothing(tiny_ladder, tmp_path, whole):
    run(job(tiny_ladder), tmp_path)
    kept = contents(tmp_path) | {PLAN: (tmp_path / PLAN).read_bytes()}
    with pytest.raises(ValueError, match=r"another job \(seeds \[3, 14\] against \[3, 12\]\); give another folder"):
        run(job(tiny_ladder, seeds=range(3, 12)), tmp_path)
    with pytest.raises(ValueError, match=r"a plan of 3 steps with evaluations \[3, 3\] against one of 6 with \[6, 6\]"):
        open_folder(job(tiny_ladder, steps=6), tmp_path)
    assert contents(tmp_path) | {PLAN: (tmp_path / PLAN).read_bytes()} == kept


def test_manifests_that_are_not_ours_are_refused(tiny_ladder, tmp_path):
    task, path = job(tiny_ladder), tmp_path / "manifest.json"
    with pytest.raises(ValueError, match="which holds no job"):
        stored_job(tmp_path, task.images)
    open_folder(task, tmp_path)
    with pytest.raises(ValueError, match="holds no finished job"):
        load_images(tmp_path)
    values = json.loads(path.read_bytes())
    for content, message in [
        (b"\xff", "damaged or not the manifest"),
        (b"[]", "damaged or not the manifest"),
        (b'{"format": 1}', "damaged or not the manifest"),
        (json.dumps(values | {"format": 2}).encode(), "has format 2, expected 1"),
        (json.dumps(values | {"digest": "x"}).encode(), "damaged or not the manifest"),
        (b"[" * 100_000, "damaged or not the manifest"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            run(task, tmp_path)
    path.unlink()
    assert run(task, tmp_path).images == 11
    content, whole = path.read_bytes(), read_manifest(tmp_path)
    for position in range(0, len(content), 7):  # a changed bit is refused, or changes nothing
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        try:
            changed = read_manifest(tmp_path)
        except ValueError:
            continue
        assert changed == whole
    path.write_bytes(content)
    task.plan.save(tmp_path / PLAN)
    with pytest.raises(ValueError, match=r"whose plan.safetensors holds no times"):
        stored_job(tmp_path, task.images)


# -- killed ------------------------------------------------------------------------------------------------------------


def test_killed_at_every_step_of_every_write_and_restarted(tiny_ladder, tmp_path, capsys):
    run(job(tiny_ladder, seeds=range(3, 9)), tmp_path / "whole")
    expected, left = contents(tmp_path / "whole"), 0
    for last in itertools.count(1):
        folder = tmp_path / str(last)
        process = child(run_until, last, tiny_ladder, folder)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        left += any(path.name.startswith(".") for path in folder.iterdir())
        names = {path.name for path in folder.glob("shard_*")}
        assert all(contents(folder)[name] == expected[name] for name in names)  # none is half-written
        task = job(tiny_ladder, seeds=range(3, 9))
        open_folder(task, folder)
        assert not list(folder.glob(".*"))
        there = sum(len(shard.seeds) for shard in task.shards if shard.name in names)
        assert run(task, folder).images == 6 - there
        assert contents(folder) == expected
    assert last - 1 == 5 * 5  # plan, manifest, two shards, manifest
    assert left == 5 * 4  # only after the file got its name there is nothing to clear away
    with capsys.disabled():
        print(f" [killed at each of {last - 1} steps of {5} writes]", end="")


def test_the_command_killed_20_times_at_random_moments(tiny_ladder, tmp_path, capsys):
    """Moments between the start and an eighth of the sampling; a run that ends before is started again too."""

    def words(name):
        sizes = ["--count", "120", "--batch", "2", "--shard", "3", "--fine", "12", "--threads", "1"]
        return ["sample", "--ladder", str(tiny_ladder), "--method", "em", "--budget", "3", *sizes, "--out", name]

    child(os.getpid).join()  # the first one is slow to start
    spent = []
    for _ in range(2):  # the whole, and a run with nothing to do
        start = time.perf_counter()
        process = child(command, words(str(tmp_path / "whole")))
        process.join()
        assert process.exitcode == 0
        spent.append(time.perf_counter() - start)
    draw, folder, kills, within = random.Random(0), tmp_path / "killed", 0, 0
    while kills < 20:
        process = child(command, words(str(folder)))
        process.join(draw.uniform(0, spent[1] + (spent[0] - spent[1]) / 8))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        kills += process.exitcode == -signal.SIGKILL
        within += 0 < len(list(folder.glob("shard_*"))) < 40
    process = child(command, words(str(folder)))
    process.join()
    assert process.exitcode == 0
    assert contents(folder) == contents(tmp_path / "whole")
    plans = [mls.Plan.load(tmp_path / name / PLAN) for name in ("whole", "killed")]
    assert plans[0] == plans[1]
    with capsys.disabled():
        print(f" [killed {kills} times, {within} of them with some of 40 shards finished]", end="")


# -- disks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "number"), [("fsync", errno.ENOSPC), ("replace", errno.EACCES)])
def test_a_failed_write_is_one_sentence_and_keeps_what_is_finished(
    tiny_ladder, tmp_path, monkeypatch, capsys, whole, name, number
):
    """The fourth write, that of the second shard, fails."""
    calls, real = itertools.count(1), getattr(os, name)

    def failing(*arguments):
        if next(calls) == 4:
            raise OSError(number, os.strerror(number))
        return real(*arguments)

    monkeypatch.setattr(os, name, failing)
    with pytest.raises(OSError, match="cannot write to") as caught:
        run(job(tiny_ladder), tmp_path)
    assert os.strerror(number) in str(caught.value)
    assert "finished shards are kept" in str(caught.value)
    assert caught.value.errno == number
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", PLAN, "shard_000000003.safetensors"]
    assert contents(tmp_path)["shard_000000003.safetensors"] == whole["shard_000000003.safetensors"]
    assert run(job(tiny_ladder), tmp_path).images == 7
    assert contents(tmp_path) == whole


@pytest.fixture
def small_disk(tmp_path):
    """Make a disk of 40 pages of 4 kB; only root may."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(folder)]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("cannot mount a small disk here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_and_a_read_only_disk(tiny_ladder, small_disk, tmp_path, capsys):
    words = [
        "sample",
        "--ladder",
        str(tiny_ladder),
        "--method",
        "em",
        "--budget",
        "2",
        "--fine",
        "12",
        "--threads",
        "1",
    ]
    words += ["--count", "200", "--batch", "20", "--shard", "20", "--out", str(small_disk)]
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 120_000)
    assert cli.main(words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("multilevel-sde sample: ")
    assert f'cannot write to "{small_disk}": No space left on device; finished shards are kept' in error
    finished = sorted(small_disk.glob("shard_*"))
    assert 0 < len(finished) < 10
    assert not list(small_disk.glob(".*"))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert cli.main(words) == 2
    assert f'cannot write to "{small_disk}": Read-only file system' in capsys.readouterr().err.splitlines()[-1]
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    ballast.unlink()
    assert cli.main(words) == 0
    assert f"{20 * len(finished)} of them were there" in capsys.readouterr().out
    assert cli.main([*words[:-1], str(tmp_path / "whole")]) == 0
    assert contents(small_disk) == contents(tmp_path / "whole")
