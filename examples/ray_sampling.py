"""Sample a large job on a Ray cluster: Ray Data's map_batches over a pool of actors, each of which holds the ladder.

    pip install multilevel-sde[diffusion,cluster]
    multilevel-sde plan --ladder digits --budget 5 -o plan.safetensors
    python examples/ray_sampling.py --ladder digits --plan plan.safetensors --count 1000000 --out /shared/images

Without --address it starts Ray on this machine. The folder must be seen by all machines, and the ladder be found by its
name or path on each. What is written are the shards of `multilevel-sde sample`, byte for byte, and its manifest (less
the arguments of that command), so either of them may continue what the other began. A worker that dies is replaced and
its shard computed again; start the same command again after anything worse.

The last line says what 10^9 such images would take, from the processor time (on GPUs: the time) of this run's workers.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import ray

import multilevel_sde as mls
from multilevel_diffusion.networks.by_name import open_ladder
from multilevel_diffusion.process import MODES
from multilevel_diffusion.sampling import Job, batch_for
from multilevel_diffusion.sampling.job_folder import close_folder, finish, open_folder, stored_job


class ShardWriter:
    """An actor: reads the job from its folder, takes indices of shards, and sees to it that they are written."""

    def __init__(self, folder: str, ladder: str, device: str):
        images = open_ladder(ladder)
        for network in images.networks:
            network.to(device)
        self.folder, self.job = folder, stored_job(folder, images)
        self.shards = self.job.shards
        self.clock = time.perf_counter if device == "cuda" else time.process_time

    def __call__(self, batch: dict) -> dict:
        """Map {"index": indices} to the manifest's entries, as JSON, and the images and seconds that were computed."""
        rows = {"entry": [], "images": [], "seconds": []}
        for index in batch["index"]:
            shard, start = self.shards[index], self.clock()
            found = shard.find(Path(self.folder))
            rows["entry"].append(json.dumps(found or finish(self.job, self.folder, shard)))
            rows["images"].append(0 if found else len(shard.seeds))
            rows["seconds"].append(0.0 if found else self.clock() - start)
        return rows


def run(job: Job, folder: str, ladder: str, *, workers: int, gpus: float = 0.0) -> tuple[int, float]:
    """Sample a job with Ray Data; return how many images were computed now, and the workers' seconds for them."""
    job = open_folder(job, folder)  # as it goes on there, where a shorter one was
    shards = [{"index": index} for index in range(len(job.shards))]
    # From items, not from range: the tasks of a range would wait for CPUs that the actors hold.
    work = ray.data.from_items(shards, override_num_blocks=min(len(shards), 16 * workers))
    rows = work.map_batches(
        ShardWriter,
        fn_constructor_kwargs={"folder": folder, "ladder": ladder, "device": "cuda" if gpus else "cpu"},
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=job.threads,
        num_gpus=gpus or None,
    ).take_all()
    close_folder(job, folder, [json.loads(row["entry"]) for row in rows])
    return sum(row["images"] for row in rows), sum(row["seconds"] for row in rows)


def estimate(seconds: float, job: Job, unit: str = "core", images: int = 10**9, units: int = 1000) -> str:
    """Say what many images would take, at a core's or a GPU's seconds per image: time, and room for the shards."""
    room = images * 4 * math.prod(job.images.image_shape)
    hours = images * seconds / 3600
    return (
        f"{seconds * 1e3:.3g} ms of a {unit} per image; {images:.0e} images: {hours:,.0f} {unit}-hours, "
        f"{hours / units:,.1f} hours on {units} {unit}s, {room / 1e12:.3g} TB of float32"
    )


def main(words: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ladder", required=True, help="folder of a ladder, or the name of a shipped one")
    parser.add_argument("--plan", required=True, type=Path, help="written by `multilevel-sde plan`")
    parser.add_argument("--mode", choices=MODES, default="ddpm", help="what the plan is for [%(default)s]")
    parser.add_argument("--count", type=int, required=True, help="images, of the seeds 0, 1, ...")
    parser.add_argument("--batch", type=int, help="images at a time; default: by memory")
    parser.add_argument("--shard", type=int, help="images in a file; default: four batches")
    parser.add_argument("--out", type=Path, required=True, help="folder; a stopped run continues")
    parser.add_argument("--workers", type=int, default=2, help="actors [%(default)s]")
    parser.add_argument("--gpus", type=float, default=0.0, help="GPUs of an actor [%(default)g]")
    parser.add_argument("--threads", type=int, default=1, help="CPUs of an actor [%(default)s]")
    parser.add_argument("--address", help="of the cluster, as ray.init takes it; default: this machine")
    arguments = parser.parse_args(words)
    images = open_ladder(arguments.ladder)
    for network in images.networks:
        network.to("cuda" if arguments.gpus else "cpu")
    plan, times = mls.Plan.load_with_times(arguments.plan)
    if times is None:
        parser.error('"--plan" holds no times; write it with `multilevel-sde plan`')
    batch = arguments.batch or batch_for(images.image_shape)
    job = Job(
        images, times, plan, range(arguments.count), tau=MODES[arguments.mode],
        batch=batch, shard=arguments.shard or 4 * batch, threads=arguments.threads,
    )  # fmt: skip
    options = {} if arguments.address else {"num_cpus": arguments.workers * arguments.threads}
    ray.init(address=arguments.address, log_to_driver=False, **options)
    folder = str(arguments.out.absolute())
    computed, seconds = run(job, folder, arguments.ladder, workers=arguments.workers, gpus=arguments.gpus)
    unit = "GPU worker" if arguments.gpus else "core"
    said = estimate(seconds / computed, job, unit) if computed else "nothing to do"
    print(f"{arguments.count} images written to {arguments.out}/; {said}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
