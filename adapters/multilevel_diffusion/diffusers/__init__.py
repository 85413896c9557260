"""Pipelines of diffusers: a ladder in the place of `pipe.unet` or `pipe.transformer`.

Rooms:
    wrapper       MultilevelUNet and multilevel(pipe, ...).
    clock         where a pipeline is in its trajectory.
    checks        what must hold for levels and schedulers, checked before any sampling.
    calls         one call: its arguments by name, and what can be wrong with them.
    costs         FLOPs of a call, counted without running it.
    calibration   a pilot inside a pipeline.
    store         ladders of diffusers models on disk.
"""

from multilevel_diffusion.diffusers.wrapper import MultilevelUNet, multilevel

__all__ = ["MultilevelUNet", "multilevel"]
