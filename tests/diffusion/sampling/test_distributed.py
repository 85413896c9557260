"""Jobs on several processes: the bytes of one process, whatever their number, and what happens when one fails."""

import signal
import subprocess
import sys

import pytest
from job_processes import child, command, die, fill, group, hang, ranks, run_and_read

from multilevel_diffusion.sampling.distributed import gather, place, process_group
from multilevel_diffusion.sampling.shards import load_images
from multilevel_sde import cli


def words(ladder, folder, *more, count=40):
    sizes = ["--count", str(count), "--batch", "2", "--shard", "4", "--fine", "12", "--threads", "1", "--pages", "1"]
    base = ["sample", "--ladder", str(ladder), "--method", "em", "--budget", "3", *sizes]
    return [*base, "--out", str(folder), *more]


def contents(folder, pattern="[ms]*"):
    """The manifest, the shards and the pages."""
    return {path.name: path.read_bytes() for path in folder.glob(pattern)}


def codes(processes):
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


@pytest.fixture(scope="module")
def whole(tiny_ladder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "out"
    assert codes([child(command, words(tiny_ladder, folder))]) == [0]
    return contents(folder)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_any_number_of_processes_writes_the_bytes_of_one(tiny_ladder, tmp_path, whole, world):
    out, logs = tmp_path / "out", tmp_path / "logs"
    assert codes(ranks(world, words(tiny_ladder, out), logs)) == [0] * world
    assert contents(out) == whole
    assert not list(out.glob(".*"))
    assert sum("40 images by Euler-Maruyama" in log.read_text() for log in logs.iterdir()) == 1  # one of them reports


def test_torchrun(tiny_ladder, tmp_path, whole):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.run([*torchrun, "-m", "multilevel_sde", *words(tiny_ladder, tmp_path / "out")], timeout=300)
    assert run.returncode == 0
    assert contents(tmp_path / "out") == whole


def test_missing_shards_are_dealt_out_anew(tiny_ladder, tmp_path, whole):
    """A restart shares out what is missing, also where all of it was one process's share."""
    out, logs = tmp_path / "out", tmp_path / "logs"
    assert codes([child(command, words(tiny_ladder, out))]) == [0]
    for shard in sorted(out.glob("shard_*"))[::2]:  # the shards of rank 0 of 2
        shard.unlink()
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("shard_*")}
    assert codes(ranks(2, words(tiny_ladder, out), logs, fault=fill)) == [2, 2]  # rank 1 has work, and a full disk
    assert len(list(out.glob("shard_*"))) == 5 + 3 + 1  # rank 0's three of the five, and rank 1's first
    assert codes(ranks(2, words(tiny_ladder, out), logs)) == [0, 0]
    assert contents(out) == whole
    assert {name: (out / name).stat().st_mtime_ns for name in times} == times


@pytest.mark.parametrize(
    ("fault", "status", "said"),
    [(die, -signal.SIGKILL, ""), (fill, 2, "No space left on device; finished shards are kept"), (hang, None, "")],
)
def test_when_one_process_fails_the_others_stop_and_a_restart_completes(
    tiny_ladder, tmp_path, whole, fault, status, said
):
    out, logs = tmp_path / "out", tmp_path / "logs"
    patience = "8" if fault is hang else "600"
    processes = ranks(3, words(tiny_ladder, out, "--timeout", patience), logs, fault)
    assert codes([processes[0], processes[2]]) == [2, 2]
    if status is None:
        processes[1].kill()
        status = -signal.SIGKILL
    assert codes([processes[1]]) == [status]
    assert said in (logs / "1.log").read_text()
    for rank in (0, 2):
        error = (logs / f"{rank}.log").read_text().splitlines()[-1]
        assert error.startswith("multilevel-sde sample: another process of this job has died or did not answer in time")
        assert error.endswith("finished shards are kept, start the same command again")
    shards = contents(out, "shard_*")
    assert len(shards) == 4 + 1 + 3  # all of ranks 0 and 2, the first of rank 1
    assert all(whole[name] == content for name, content in shards.items())
    with pytest.raises(ValueError, match="holds no finished job"):
        load_images(out)
    assert codes(ranks(2, words(tiny_ladder, out), logs)) == [0, 0]
    assert contents(out) == whole


def test_every_process_finds_the_job_finished_when_its_run_returns(tiny_ladder, tmp_path):
    assert codes(group(3, run_and_read, tiny_ladder, tmp_path)) == [0, 0, 0]


def test_processes_that_would_sample_different_jobs_stop(tiny_ladder, tmp_path, monkeypatch):
    monkeypatch.setattr("multilevel_diffusion.sampling.job_folder.gather", lambda value: [value, "another"])
    assert cli.main(words(tiny_ladder, tmp_path / "out")) == 2
    assert not (tmp_path / "out").exists()


def test_a_process_alone_is_a_group_of_one(monkeypatch):
    with process_group("cpu") as device:
        assert (device.type, place(), gather(3)) == ("cpu", (0, 1), [3])
    monkeypatch.setenv("WORLD_SIZE", "4")  # as batch systems set it: without the rest it is not torchrun
    with process_group("cuda:1") as device:
        assert (device.index, place()) == (1, (0, 1))
    error = pytest.raises(ValueError, match='"timeout" must be a positive number of seconds, got 0')
    with error, process_group("cpu", timeout=0):
        pass


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    error = pytest.raises(ValueError, match='"device" is "cuda", but this is process 2 of a machine with 1 of them')
    with error, process_group("cuda"):
        pass
