"""Pipelines of diffusers: a ladder on `pipe.unet` or `pipe.transformer`.

Rooms:
    attached      attach(pipe, ...): a hook on the pipeline's own model.
    wrapper       MultilevelUNet: a model in the place of it, which is saved with the pipeline.
    allocating    allocate, stats: what is chosen and counted, on both.
    controls      calibrate, scheduler, advise: what is measured, on both.
    answering     what both answer at a call: the plan of a run, its scheduler.
    following     what is changed on the top model reaches the levels below it.
    handed_on     what a pipeline hands on to its scheduler.
    options       what can be chosen.
    clock         where a pipeline is in its trajectory.
    checks        what must hold for levels and schedulers, checked before any sampling.
    calls         one call: its arguments by name, and what can be wrong with them.
    costs         FLOPs of a call, counted without running it.
    one_step_schedulers   first_order(scheduler), under which plans bring the multistep method.
    calibration   a pilot inside a pipeline, comparisons and fits.
    scheduler_choice   which noise levels suit a number of steps.
    scheduler_grid   noise levels of a scheduler's calls, and a multistep base on them.
    store         ladders of diffusers models on disk.
"""

from multilevel_diffusion.diffusers.attached import Attached, attach
from multilevel_diffusion.diffusers.one_step_schedulers import first_order
from multilevel_diffusion.diffusers.wrapper import MultilevelUNet, multilevel

__all__ = ["Attached", "MultilevelUNet", "attach", "first_order", "multilevel"]
