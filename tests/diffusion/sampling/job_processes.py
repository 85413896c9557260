"""A tiny job, and processes to run it in: what the tests of jobs share.

Children come from a process without threads that has imported torch, so that starting one takes no time. They import
this module, not the tests.
"""

import errno
import itertools
import multiprocessing
import os
import signal
import socket
import sys
import time

import torch

import multilevel_sde as mls
from multilevel_diffusion.networks.store import load_ladder
from multilevel_diffusion.process.grids import uniform
from multilevel_diffusion.sampling import job_folder
from multilevel_diffusion.sampling.distributed import process_group
from multilevel_diffusion.sampling.job import Job
from multilevel_diffusion.sampling.job_folder import run
from multilevel_diffusion.sampling.shards import load_images
from multilevel_sde import cli

PROCESSES = multiprocessing.get_context("forkserver")  # children of a process without threads, which has imported torch
# pytest is the main module, which every child imports; the rest are what a run takes, as packages load rooms late.
ROOMS = ["commands.sample", "networks.store", "sampling.distributed", "sampling.job_folder", "sampling.pictures"]
PROCESSES.set_forkserver_preload(["pytest", "torch", "PIL.Image", *(f"multilevel_diffusion.{room}" for room in ROOMS)])


def job(ladder, seeds=range(3, 14), steps=3, **changes):
    images = load_ladder(ladder)
    times = uniform(images.schedule, 12)[:: 12 // steps]
    hits = torch.tensor([True, True]).expand(steps, 2)
    plan = mls.Plan(hits, torch.tensor([1.0, 0.5]).expand(steps, 2))
    return Job(images, times, plan, seeds, **{"fine": 12, "batch": 2, "shard": 4, "threads": 1} | changes)


def child(target, *arguments):
    """Start a function in a process of its own."""
    process = PROCESSES.Process(target=target, args=arguments, daemon=True)  # a test that fails leaves none behind
    process.start()
    return process


def command(words, log=os.devnull):
    """Run the command line, and exit with its status; what it says goes to a file."""
    with open(log, "w") as sys.stdout, sys.stdout as sys.stderr:
        status = cli.main(words)
    os._exit(status)


def group(world, target, *arguments):
    """Start target(*arguments) in processes with the environment that torchrun gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    return [child(member, address | {"RANK": str(rank)}, target, *arguments) for rank in range(world)]


def member(environment, target, *arguments):
    """Run target(*arguments) as one process of a group."""
    os.environ.update(environment)
    target(*arguments)


def ranks(world, words, folder, fault=None):
    """Start the command in a group; the logs go to a folder. In rank 1, `fault` is called before the second shard."""
    folder.mkdir(exist_ok=True)
    return group(world, rank_command, words, str(folder), fault)


def rank_command(words, folder, fault):
    """Run the command as one process of a group."""
    rank = os.environ["RANK"]
    if fault is not None and rank == "1":
        count, sample = itertools.count(1), Job.sample

        def faulty(*arguments):
            if next(count) == 2:
                fault()
            return sample(*arguments)

        Job.sample = faulty  # type: ignore[method-assign]
    command(words, f"{folder}/{rank}.log")


def run_and_read(ladder, folder):
    """Run a job and read its images at once; the first process takes its time to write the manifest."""
    write = job_folder.write_manifest

    def slowly(folder, described, shards, told):
        time.sleep(0.5 if shards else 0)
        write(folder, described, shards, told)

    job_folder.write_manifest = slowly
    with process_group():
        done = run(job(ladder), folder)
        assert (done.images, done.status) == (11, "completed")
        assert load_images(folder).shape == (11, 1, 4, 4)


def die():
    """Die as by the machine's hand."""
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    """Go on for minutes, without an answer."""
    time.sleep(300)


def fill():
    """Let every write fail as on a full disk."""

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    os.fsync = full


class Halves:
    """A file that is written in two halves, with an event between them."""

    def __init__(self, file, event):
        self.file, self.event = file, event
        self.flush, self.fileno = file.flush, file.fileno

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        self.event()
        self.file.write(data[len(data) // 2 :])


def run_until(last, ladder, folder):
    """Run a job and die by SIGKILL at the event number `last`: before, within or after a write to the disk."""
    count = itertools.count(1)

    def event():
        if next(count) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(function):
        def call(*arguments, **options):
            event()
            value = function(*arguments, **options)
            event()
            return value

        return call

    fdopen = os.fdopen
    os.fdopen = lambda *arguments: Halves(fdopen(*arguments), event)
    os.fsync, os.replace = watched(os.fsync), watched(os.replace)
    run(job(ladder, seeds=range(3, 9)), folder)
