"""Sampling: one call for a batch of seeds, and jobs of many images that survive being killed.

Rooms:
    samples           sample(): one image a seed, in batches.
    stored            pilots and plans that lie beside a ladder.
    pilots_and_fits   run_pilot(), fit(): make them.
    one_network       fit_alone(): the largest network, or the only one, with a method of its own.
    trajectories      the samples of a fit, and where they should end.
    origins           what a file of a plan or pilot says it was made for, and the check of it.
    prices            seconds of the levels on this device.
    job, job_folder   which images are to be sampled; running that into a folder.
    continuing        whether a folder holds the same job, a shorter one, or another.
    shards            what lies in such a folder.
    distributed       one job on several processes.
    pictures          pages of images as PNG.
"""

from multilevel_diffusion.sampling.job import Job
from multilevel_diffusion.sampling.one_network import fit_alone
from multilevel_diffusion.sampling.pilots_and_fits import fit, run_pilot
from multilevel_diffusion.sampling.prices import in_seconds
from multilevel_diffusion.sampling.samples import Samples, batch_for, sample
from multilevel_diffusion.sampling.stored import stored_pilot, stored_plan

__all__ = [
    "Job",
    "Samples",
    "batch_for",
    "fit",
    "fit_alone",
    "in_seconds",
    "run_pilot",
    "sample",
    "stored_pilot",
    "stored_plan",
]
