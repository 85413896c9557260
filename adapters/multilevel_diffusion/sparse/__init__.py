"""Sparse inference: a cheap level that recomputes only where an edited image differs from its original.

Rooms:
    drift             SparseDrift: the level.
    editing           editing by noise, densely, sparsely and multilevel.
    tile_operations   running a network on active tiles, operation by operation.
    layout            which tiles those are at every resolution.
    tape              what is stored of the original.
"""

from multilevel_diffusion.sparse.drift import Reference, SparseDrift, changed_region
from multilevel_diffusion.sparse.editing import Edit, EditRow, compare, paint

__all__ = ["Edit", "EditRow", "Reference", "SparseDrift", "changed_region", "compare", "paint"]
