"""The Ray recipe on a local cluster: the bytes of one process, and a worker that is killed."""

import importlib.util
import json
import os
import subprocess
import sys
import time

import psutil
import pytest
from places import EXAMPLES

import multilevel_sde as mls
from multilevel_diffusion.networks.store import load_ladder, shipped_ladder
from multilevel_diffusion.process.grids import uniform
from multilevel_diffusion.sampling.job import Job
from multilevel_diffusion.sampling.shards import read_manifest
from multilevel_sde import cli

pytest.importorskip("ray", reason="the extra `cluster` is not installed")

SCRIPT = EXAMPLES / "ray_sampling.py"


def kill_a_worker(driver, out):
    """Wait for five shards, kill an actor by SIGKILL, and return whether the job was still running."""
    while len(list(out.glob("shard_*"))) < 5:
        assert driver.poll() is None
        time.sleep(0.01)
    family = psutil.Process(driver.pid).children(recursive=True)
    workers = [process for process in family if " ".join(process.cmdline()).startswith("ray::MapWorker")]
    workers[0].kill()
    return read_manifest(out)["shards"] == []


@pytest.mark.slow
def test_a_cluster_writes_the_bytes_of_one_process_though_a_worker_is_killed(tiny_ladder, tmp_path):
    images = load_ladder(tiny_ladder)
    times = uniform(images.schedule, 20)
    mls.em_plan(images.ladder, times).save(tmp_path / "plan.safetensors", times)
    words = ["--ladder", str(tiny_ladder), "--plan", str(tmp_path / "plan.safetensors"), "--count", "200"]
    words += ["--batch", "2", "--shard", "2", "--threads", "1"]
    out, log = tmp_path / "ray", tmp_path / "log"
    with log.open("w") as said:
        driver = subprocess.Popen(
            [sys.executable, str(SCRIPT), *words, "--workers", "2", "--out", str(out)],
            stdout=said, stderr=said, env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
        )  # fmt: skip
        try:
            assert kill_a_worker(driver, out)
            assert driver.wait(240) == 0, log.read_text()
        finally:
            driver.kill()
            driver.wait()
    assert "200 images written to " in log.read_text()
    assert cli.main(["sample", *words, "--pages", "0", "--out", str(tmp_path / "whole")]) == 0
    for path in (tmp_path / "whole").glob("shard_*"):
        assert (out / path.name).read_bytes() == path.read_bytes()
    mine, theirs = (read_manifest(folder) for folder in (tmp_path / "whole", out))
    assert (mine["job"], mine["shards"]) == (theirs["job"], theirs["shards"])
    assert cli.main(["sample", *words, "--pages", "0", "--out", str(out)]) == 0  # nothing is left to do
    assert json.loads((out / "record.json").read_text())["computed"] == 0
    (out / "record.json").unlink()
    assert len(list(out.iterdir())) == 102  # the manifest, the plan, the shards, nothing else


def test_the_estimate_of_a_large_job():
    spec = importlib.util.spec_from_file_location("ray_sampling", SCRIPT)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    images = load_ladder(shipped_ladder("deadleaves32"))
    times = uniform(images.schedule, 2)
    job = Job(images, times, mls.em_plan(images.ladder, times), range(1))
    said = recipe.estimate(0.0036, job, units=100)
    assert said.startswith("3.6 ms of a core per image; 1e+09 images: 1,000 core-hours, 10.0 hours on 100 cores")
    assert said.endswith(", 12.3 TB of float32")
