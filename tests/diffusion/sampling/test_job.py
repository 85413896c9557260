"""Sampling jobs: what they write, the command that runs them, and the page that describes them."""

import hashlib
import json
import re

import numpy as np
import pytest
import torch
from job_processes import job
from PIL import Image
from places import DOCS
from safetensors.torch import load_file

import multilevel_sde as mls
from multilevel_diffusion.networks.store import load_ladder
from multilevel_diffusion.process.grids import uniform
from multilevel_diffusion.process.reverse_process import Process
from multilevel_diffusion.sampling.job import Job
from multilevel_diffusion.sampling.job_folder import run, stored_job
from multilevel_diffusion.sampling.pictures import image_grid
from multilevel_diffusion.sampling.samples import sample
from multilevel_diffusion.sampling.shards import PLAN, load_images, read_manifest, read_shards
from multilevel_sde import cli

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
        "multilevel_diffusion.sampling.job.sample", lambda *a, **k: seen.append(torch.get_num_threads()) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        task.sample(task.shards[0])
    assert seen == [2]
    assert torch.get_num_threads() == 1


# -- the page ----------------------------------------------------------------------------------------------------------

PAGE = (DOCS / "scale.md").read_text(encoding="utf-8")


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
    assert [(arguments.count, arguments.device) for arguments in jobs] == [(100_000, None)] * 2 + [(100_000, "cuda")]
