"""Running a sampling job into a folder, on any number of processes, so that it survives being killed.

- Finished shards are never computed again, and a run that was killed continues where it was.
- One process, many processes (:mod:`multilevel_diffusion.sampling.distributed`) and interrupted runs give the same
  bytes.
- A shard that was deleted or changed is computed again.
- A job with more seeds goes on where a shorter one ended; the images of the shorter one stay as they are.
- A folder that holds another job is refused.

:func:`run` does all of it in one process or in a process group. Engines that hand out work themselves use its three
parts: :func:`open_folder`, :func:`finish` for every shard, anywhere and in any order, and :func:`close_folder`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import multilevel_sde as mls
from multilevel_diffusion.networks.image_ladders import ImageLadder
from multilevel_diffusion.sampling.continuing import as_continued, told_of
from multilevel_diffusion.sampling.distributed import gather, place
from multilevel_diffusion.sampling.job import Job
from multilevel_diffusion.sampling.origins import made_for
from multilevel_diffusion.sampling.shards import PLAN, Shard, read_manifest, remove_temporary_files, write_manifest
from multilevel_sde.files import write_atomically

__all__ = ["Result", "close_folder", "finish", "open_folder", "run", "stored_job"]


@dataclass(frozen=True)
class Result:
    """What a run did.

    Attributes:
        images: Images that were computed now, by all processes; the others were there.
        seconds: Wall-clock time of solving, the sum over all processes.
        status: The solver's; "nothing to do" where no image was computed.
    """

    images: int
    seconds: float
    status: str


def run(job: Job, folder: str | Path, *, arguments: Mapping[str, Any] | None = None, progress: bool = False) -> Result:
    """Sample a job into a folder, alone or with the other processes of the default process group.

    Every process looks through its share of the shards; those that are missing or not intact are then dealt out in
    turn. The first process writes the manifest when all have finished.

    Arguments:
        job: What to sample; the same in every process.
        folder: Where, seen by all processes; made if it is missing.
        arguments: The arguments of a command that the job came from, as JSON values: they are written into the
            manifest, and a message names those in which another job differs.
        progress: Show a progress bar over the images of the first process.

    Raises:
        ValueError: The folder holds another job, or a damaged manifest.
        OSError: A file cannot be written. Finished shards are kept.
        ConnectionError: Another process has died or did not answer in time. Finished shards are kept.

    Example:
        >>> import tempfile
        >>> from multilevel_diffusion.process.grids import uniform
        >>> from multilevel_diffusion.sampling.shards import load_images
        >>> from multilevel_diffusion.networks.store import load_ladder, shipped_ladder
        >>> digits, folder = load_ladder(shipped_ladder("digits")), tempfile.mkdtemp()
        >>> times = uniform(digits.schedule, 2)
        >>> job = Job(digits, times, mls.em_plan(digits.ladder, times), range(3), fine=2)
        >>> run(job, folder).images, run(job, folder).images, load_images(folder).shape
        (3, 0, torch.Size([3, 1, 8, 8]))
    """
    folder, (rank, world) = Path(folder), place()
    job = as_continued(job, folder, arguments)
    if len(set(gather(job.digest))) > 1:  # and all have looked before anything is written
        raise ValueError('"job" differs between the processes; start them all with the same arguments and versions')
    if rank == 0:
        open_folder(job, folder, arguments)
    shards, silent = job.shards, not progress or rank > 0
    check = tqdm(shards[rank::world], desc="checking", unit="shard", disable=silent, delay=2)
    found = [entry for shard in check if (entry := shard.find(folder)) is not None]
    entries = list(itertools.chain.from_iterable(gather(found)))
    finished = {entry["file"] for entry in entries}
    missing = [shard for shard in shards if shard.name not in finished]
    written, done = _sample(job, folder, missing[rank::world], silent)
    parts = gather((written, done))
    if rank == 0:
        close_folder(job, folder, [*entries, *itertools.chain.from_iterable(part for part, _ in parts)])
    gather(None)  # nobody leaves before the manifest is there
    images, seconds = (sum(values) for values in zip(*((done.images, done.seconds) for _, done in parts), strict=True))
    return Result(images, seconds, max(done.status for _, done in parts) or "nothing to do")


def open_folder(job: Job, folder: str | Path, arguments: Mapping[str, Any] | None = None) -> Job:
    """Make a folder a job's: write its plan and its manifest, remove what killed writers have left.

    Returns the job as it goes on in this folder, with a cut where a shorter one ended: take its shards.

    Raises:
        ValueError, OSError: As :func:`run`.
    """
    folder = Path(folder)
    job = as_continued(job, folder, arguments)
    remove_temporary_files(folder)
    with _explained(folder):
        job.plan.save(folder / PLAN, job.times, made_for(job.images, job.process))
        manifest = read_manifest(folder)
        if manifest is None or manifest["job"] != job.description:
            write_manifest(folder, job.description, [], told_of(job, arguments))
    return job


def finish(job: Job, folder: str | Path, shard: Shard) -> dict[str, Any]:
    """Make sure that a shard is in the folder, and return its entry for the manifest.

    Raises:
        OSError: The file cannot be written.
    """
    return shard.find(Path(folder)) or _write(Path(folder), shard, job.sample(shard)[0])


def close_folder(job: Job, folder: str | Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Write the manifest with the entries of all shards.

    Raises:
        ValueError: There is not one entry for every shard.
        OSError: The file cannot be written.
    """
    entries = sorted(entries, key=lambda entry: entry["seeds"])
    if [entry["file"] for entry in entries] != [shard.name for shard in job.shards]:
        raise ValueError(f'"entries" must name each of the {len(job.shards)} shards once, got {len(entries)} entries')
    remove_temporary_files(Path(folder))
    told = (read_manifest(folder) or {}).get("told")
    with _explained(Path(folder)):
        write_manifest(Path(folder), job.description, entries, told or told_of(job))


def stored_job(
    folder: str | Path, images: ImageLadder, conditions: Mapping[str, Tensor] | None = None, fine: Tensor | None = None
) -> Job:
    """Return the job of a folder that was opened, for a process that has only the folder and the ladder.

    Arguments:
        folder: The folder.
        images: The job's ladder, on the device where it is to run.
        conditions: The job's, where it has some.
        fine: The finest grid of its process, where it is not uniform in time.

    Raises:
        ValueError: The folder holds no job, or one of another ladder, grid, kind of device or version, or with other
            conditions.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise ValueError(f'"folder" is {str(folder)!r}, which holds no job; open it first')
    plan, times = mls.Plan.load_with_times(Path(folder) / PLAN)
    if times is None:
        raise ValueError(f'"folder" is {str(folder)!r}, whose {PLAN} holds no times; open it again')
    said = manifest["job"]
    sizes: dict[str, Any] = {key: said[key] for key in ("tau", "batch", "shard")} | {
        "fine": said["fine"] if fine is None else fine
    }
    if isinstance(sizes["fine"], str):
        raise ValueError(f'"fine" is missing: the job in {str(folder)!r} has a finest grid of its own; give it')
    threads = said["threads"] or torch.get_num_threads()
    cuts = tuple(said.get("cuts", ()))
    job = Job(images, times, plan, range(*said["seeds"]), threads=threads, conditions=conditions, cuts=cuts, **sizes)
    return as_continued(job, folder)


def _sample(job: Job, folder: Path, shards: Sequence[Shard], silent: bool) -> tuple[list[dict[str, Any]], Result]:
    entries, images, seconds, status = [], 0, 0.0, ""
    total = sum(len(shard.seeds) for shard in shards)
    with tqdm(total=total, desc="sampling", unit="image", disable=silent or not total) as bar:
        for shard in shards:
            sampled, spent, status = job.sample(shard, bar)
            entries.append(_write(folder, shard, sampled))
            images, seconds = images + len(sampled), seconds + spent
    return entries, Result(images, seconds, status)


def _write(folder: Path, shard: Shard, images: Tensor) -> dict[str, Any]:
    content = shard.encode(images)
    with _explained(folder):
        write_atomically(folder / shard.name, content)
    return shard.entry(content)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Say what an error of the file system means for the job."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f'cannot write to "{folder}": {error.strerror}; finished shards are kept, mend it and start the same '
            "command again",
        ) from error
