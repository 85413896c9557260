"""Cheap levels for those who have one model: constructors that give f^1 from the large network f^2.

lower resolution    LowResolution           the network on the pooled state, at the right noise level
fewer layers        skip_blocks             named blocks hand their input on
fewer bits          half_weights, int8_weights
deep features kept  cached_ladder           a drift with memory, corrected by the multilevel sum

`level_menu` offers what applies, `survey` measures cost and difference along a path, and `multilevel_sde.pilot` says
what a plan on such a ladder will cost and whether it pays.
"""

from multilevel_diffusion.cheap_levels.cached_features import cached_ladder, deep_modules
from multilevel_diffusion.cheap_levels.low_resolution import LowResolution, bilinear, detail_variance, repeat
from multilevel_diffusion.cheap_levels.memory_ladder import MemoryLadder
from multilevel_diffusion.cheap_levels.menu import CheapLevel, level_menu, survey
from multilevel_diffusion.cheap_levels.reduced_precision import Int8Linear, half_weights, int8_weights
from multilevel_diffusion.cheap_levels.skipped_blocks import BlockEffect, block_effects, choose_blocks, skip_blocks

__all__ = [
    "BlockEffect",
    "CheapLevel",
    "Int8Linear",
    "LowResolution",
    "MemoryLadder",
    "bilinear",
    "block_effects",
    "cached_ladder",
    "choose_blocks",
    "deep_modules",
    "detail_variance",
    "half_weights",
    "int8_weights",
    "level_menu",
    "repeat",
    "skip_blocks",
    "survey",
]
