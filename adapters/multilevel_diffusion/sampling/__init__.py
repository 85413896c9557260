"""Sampling: one call for a batch of seeds, and jobs of many images that survive being killed.

Rooms:
    samples           sample(): one image a seed, in batches.
    stored            pilots and plans that lie beside a ladder.
    pilots_and_fits   run_pilot(), fit(): make them.
    plan_origin       what a plan file says it was made for, and the check of it.
    job, job_folder   which images are to be sampled; running that into a folder.
    continuing        whether a folder holds the same job, a shorter one, or another.
    shards            what lies in such a folder.
    distributed       one job on several processes.
    pictures          pages of images as PNG.
"""

from multilevel_diffusion.sampling.job import Job
from multilevel_diffusion.sampling.pilots_and_fits import fit, run_pilot
from multilevel_diffusion.sampling.samples import Samples, batch_for, sample
from multilevel_diffusion.sampling.stored import stored_pilot, stored_plan

__all__ = ["Job", "Samples", "batch_for", "fit", "run_pilot", "sample", "stored_pilot", "stored_plan"]
