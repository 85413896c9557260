"""Sampling jobs: the same bytes whoever runs them and however often they are killed; what a folder refuses."""

import errno
import hashlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from job_processes import child, command, job, run_until
from PIL import Image
from safetensors.torch import load_file

import multilevel_sde as mls
from multilevel_diffusion import job_run
from multilevel_diffusion.grids import uniform
from multilevel_diffusion.job import Job
from multilevel_diffusion.job_run import close_folder, finish, open_folder, run, stored_job
from multilevel_diffusion.pictures import image_grid
from multilevel_diffusion.sampling import Process, sample
from multilevel_diffusion.shards import PLAN, Shard, load_images, read_manifest, read_shards
from multilevel_diffusion.store import load_ladder
from multilevel_sde import cli


def contents(folder):
    """Everything in a folder but the two files that are not the same bytes in every run: see the test of them."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name not in (PLAN, "record.json")}


@pytest.fixture(scope="module")
def whole(tiny_ladder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(job(tiny_ladder), folder)
    return contents(folder)


# -- what a job writes -------------------------------------------------------------------------------------------------


def test_shards_hold_the_images_of_their_seeds(tiny_ladder, tmp_path):
    task = job(tiny_ladder)
    result = run(task, tmp_path)
    assert (result.images, result.status) == (11, "completed")
    assert result.seconds > 0
    assert [list(seeds) for seeds, _ in read_shards(tmp_path)] == [[3, 4, 5, 6], [7, 8, 9, 10], [11, 12, 13]]
    ladder, process = task.images.ladder, Process(task.images.schedule, 1.0, uniform(task.images.schedule, 12))
    expected = [
        sample(ladder, process, task.times, task.plan, seeds, (1, 4, 4)).images
        for seeds in ([3, 4], [5, 6], [7, 8], [9, 10], [11, 12], [13])
    ]
    assert torch.equal(load_images(tmp_path), torch.cat(expected))
    assert len(load_images(tmp_path).flatten(1).unique(dim=0)) == 11


def test_the_manifest_names_the_job_and_the_checksums_of_its_files(tiny_ladder, tmp_path):
    task = job(tiny_ladder)
    run(task, tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["job"] == task.description
    assert manifest["digest"] == task.digest == stored_job(tmp_path, task.images).digest
    assert [entry["seeds"] for entry in manifest["shards"]] == [[3, 7], [7, 11], [11, 14]]
    for entry in manifest["shards"]:
        assert hashlib.sha256((tmp_path / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["manifest.json", PLAN, *(entry["file"] for entry in manifest["shards"])]
    )


def test_everything_that_the_images_depend_on_is_in_the_digest(tiny_ladder, monkeypatch):
    task = job(tiny_ladder)
    others = [
        job(tiny_ladder, seeds=range(3, 15)),
        job(tiny_ladder, steps=6),
        *(
            job(tiny_ladder, **change)
            for change in ({"tau": 0.0}, {"fine": 24}, {"batch": 3}, {"shard": 5}, {"threads": 2})
        ),
    ]
    weights = job(tiny_ladder)
    next(weights.images.networks[1].parameters()).data.flatten()[0] += 1e-6
    shifted = job(tiny_ladder)
    shifted.times[1] += 1e-9
    hits, coefficients = task.plan.hits, task.plan.weights
    coefficients[1, 1] = 0.25
    reweighted = Job(task.images, task.times, mls.Plan(hits, coefficients), task.seeds, 1.0, 12, 2, 4, 1)
    recall = mls.Recall([(1, 0, 0, 0.5)])
    plan = mls.Plan(hits, task.plan.weights, recall=recall)
    remembering = Job(task.images, task.times, plan, task.seeds, 1.0, 12, 2, 4, 1)
    double = Job(load_ladder(tiny_ladder, torch.float64), task.times, task.plan, task.seeds, 1.0, 12, 2, 4, 1)
    digests = [each.digest for each in [task, *others, weights, shifted, reweighted, remembering, double]]
    assert len(set(digests)) == len(digests)
    assert job(tiny_ladder).digest == task.digest
    assert task.description["device"] == "cpu"
    monkeypatch.setattr(mls, "__version__", "0.0.0")
    assert job(tiny_ladder).digest not in digests


def test_a_job_refuses_what_it_cannot_split(tiny_ladder):
    task = job(tiny_ladder)
    for seeds in (range(0, 4, 2), range(0), [1, 2]):
        with pytest.raises(ValueError, match='"seeds" must be a range'):
            job(tiny_ladder, seeds=seeds)
    for name in ("batch", "shard", "threads"):
        with pytest.raises(ValueError, match=f'"{name}" must be at least 1, got 0'):
            job(tiny_ladder, **{name: 0})
    with pytest.raises(ValueError, match='"times" must be the 4 times of the plan, got 3'):
        Job(task.images, task.times[1:], task.plan, task.seeds)
    own = mls.Plan(task.plan.hits[:, None], task.plan.weights[:, None])
    with pytest.raises(ValueError, match='"plan" has a draw of its own'):
        Job(task.images, task.times, own, task.seeds)
    with pytest.raises(ValueError, match="was made for 1 levels"):
        Job(task.images, task.times, mls.em_plan(task.images.ladder.top(), task.times), task.seeds)


# -- continuing, repairing ---------------------------------------------------------------------------------------------


def test_finished_shards_are_not_computed_again(tiny_ladder, tmp_path, whole):
    task = job(tiny_ladder)
    open_folder(task, tmp_path)
    finish(task, tmp_path, task.shards[1])
    before = (tmp_path / task.shards[1].name).stat().st_mtime_ns
    assert run(task, tmp_path).images == 7
    assert (tmp_path / task.shards[1].name).stat().st_mtime_ns == before
    assert contents(tmp_path) == whole
    assert run(task, tmp_path) == job_run.Result(0, 0.0, "nothing to do")
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
    with pytest.raises(ValueError, match=r"its seeds is \[3, 14\], this one has \[3, 12\]; give another folder"):
        run(job(tiny_ladder, seeds=range(3, 12)), tmp_path)
    with pytest.raises(ValueError, match="another job: its plan is"):
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


# -- the command -------------------------------------------------------------------------------------------------------


def sampled(ladder, folder, *words):
    base = ["sample", "--ladder", str(ladder), "--method", "em", "--budget", "2", "--fine", "12", "--out", str(folder)]
    assert cli.main([*base, "--count", "70", "--shard", "20", *words]) == 0
    return json.loads((folder / "record.json").read_text())


def test_pages_show_the_images_of_the_shards(tiny_ladder, tmp_path):
    record = sampled(tiny_ladder, tmp_path, "--threads", "1", "--seed", "5")
    images = load_images(tmp_path)
    assert record["pages"] == ["samples_000005.png", "samples_000069.png"]
    for name, part in zip(record["pages"], images.split(64), strict=True):
        page = np.array(Image.open(tmp_path / name))
        assert np.array_equal(page, image_grid(part, scale=16).numpy())
    assert (record["computed"], record["seeds"]) == (70, [5, 75])
    assert record["job"] == read_manifest(tmp_path)["digest"]
    assert load_file(tmp_path / "shard_000000065.safetensors")["images"].shape == (10, 1, 4, 4)


@pytest.mark.parametrize(("most", "pages"), [(0, []), (1, ["samples_000000.png"])])
def test_pages_can_be_limited(tiny_ladder, tmp_path, most, pages):
    assert sampled(tiny_ladder, tmp_path, "--pages", str(most))["pages"] == pages
    assert [path.name for path in tmp_path.glob("*.png")] == pages


def test_a_run_that_continues_takes_the_threads_of_the_first(tiny_ladder, tmp_path, monkeypatch, capsys):
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1] if threads else 4)
    sampled(tiny_ladder, tmp_path, "--threads", "3")
    threads.append(1)
    assert sampled(tiny_ladder, tmp_path)["computed"] == 0
    assert read_manifest(tmp_path)["job"]["threads"] == threads[-1] == 3
    assert "70 of them were there" in capsys.readouterr().out


def test_threads_are_set_for_the_sampling_only(tiny_ladder, monkeypatch):
    seen = []
    task = job(tiny_ladder, threads=2)
    monkeypatch.setattr(
        "multilevel_diffusion.job.sample", lambda *a, **k: seen.append(torch.get_num_threads()) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        task.sample(task.shards[0])
    assert seen == [2]
    assert torch.get_num_threads() == 1


# -- the page ----------------------------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[1] / "docs" / "scale.md").read_text(encoding="utf-8")


def test_the_examples_of_the_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    reading, running = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    names: dict = {}
    exec(running, names)
    exec(reading, names)
    assert capsys.readouterr().out.splitlines() == [
        "96 completed",
        *(f"range({first}, {first + 32}) torch.Size([32, 1, 8, 8])" for first in (0, 32, 64)),
    ]
    assert names["images"].shape == (96, 1, 8, 8)


def test_the_commands_of_the_page_are_understood():
    said = re.findall(r"^(?:multilevel-sde|torchrun .* -m multilevel_sde) (sample .*)$", PAGE, flags=re.MULTILINE)
    jobs = [cli.build_parser().parse_args(line.split()) for line in said]
    assert [(arguments.count, arguments.device) for arguments in jobs] == [(100_000, "cpu")] * 2 + [(100_000, "cuda")]
