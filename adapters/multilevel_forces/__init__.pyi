"""The public names and the rooms that they live in; a room is imported when a name of it is first used."""

from .blocks import impulses
from .force_ladder import ForceError, ladder
from .langevin import Langevin, Overdamped
from .walk import Walk

__all__ = [
    "ForceError",
    "Langevin",
    "Overdamped",
    "Walk",
    "impulses",
    "ladder",
]
