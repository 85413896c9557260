"""The public names and the rooms that they live in; a room is imported when a name of it is first used."""

from .ase_dynamics import MultilevelLangevin
from .blocks import impulses
from .force_ladder import ForceError, ladder
from .force_pilot import ForcePilot
from .langevin import Langevin, Overdamped
from .plan_calculator import MultilevelCalculator
from .run_pilot import pilot
from .walk import Walk

__all__ = [
    "ForceError",
    "ForcePilot",
    "Langevin",
    "MultilevelCalculator",
    "MultilevelLangevin",
    "Overdamped",
    "Walk",
    "impulses",
    "ladder",
    "pilot",
]
