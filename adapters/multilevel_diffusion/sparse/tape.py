"""What is stored of the reference: for every evaluation a tape of slots, in the order of the network's operations.

A slot holds the pixels of a tensor, rows (B H W, C), or its sums for group normalisation. A whole tape serves every
edit. A trimmed one serves one mask: it holds the few pixels around the active tiles that are read, and the sums over
the inactive tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from multilevel_diffusion.sparse.layout import Layout

__all__ = ["Moments", "Recording", "Slot", "Tape", "Trimming", "shifted_sums", "size_in_bytes"]


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over a tensor's tiles for group normalisation, around the reference's mean, float64.

    Attributes:
        mean: Mean of each image and group of the reference, (B, G).
        sums: Sums of v - mean and (v - mean)^2 over each tile, (B, T, G, 2), or all inactive ones, (B, G, 2).
        total: Sums over all tiles, (B, G, 2).
    """

    mean: Tensor
    sums: Tensor
    total: Tensor

    @classmethod
    def of(cls, values: Tensor, groups: int, tile: int) -> Moments:
        """Return the sums over each tile of side b of values (B, C, H, W)."""
        batch, channels, height, width = values.shape
        mean = values.reshape(batch, groups, -1).double().mean(2)
        tiles = values.view(batch, channels, height // tile, tile, width // tile, tile).permute(0, 2, 4, 1, 3, 5)
        tiles = tiles.reshape(-1, channels, tile, tile)
        sums = shifted_sums(tiles, mean.repeat_interleave(len(tiles) // batch, 0)).view(batch, -1, groups, 2)
        return cls(mean, sums, sums.sum(1))


Slot = Tensor | Moments


class Tape:
    """Slots to be read, as trimmed ones are.

    Arguments:
        slots: Number -> what it holds.
    """

    def __init__(self, slots: Mapping[int, Slot]):
        self.slots = dict(slots)

    def keep(self, number: int, content: Callable[[], Slot]) -> None:
        """Store what a slot holds, where this tape records."""

    def halo(self, number: int, index: Tensor) -> Tensor:
        """Return the rows of a slot's tensor at an index, (len(index), C)."""
        return self._rows(number)

    def moments(self, number: int, layout: Layout) -> Moments:
        """Return a slot's sums over the inactive tiles of a layout."""
        return self._moments(number)

    def _rows(self, number: int) -> Tensor:
        slot = self.slots[number]
        assert isinstance(slot, Tensor)
        return slot

    def _moments(self, number: int) -> Moments:
        slot = self.slots[number]
        assert isinstance(slot, Moments)
        return slot


class Recording(Tape):
    """An empty tape that stores whole tensors."""

    def __init__(self):
        super().__init__({})

    def keep(self, number: int, content: Callable[[], Slot]) -> None:
        """Store what a slot holds."""
        self.slots[number] = content()


class Trimming(Tape):
    """A whole tape that notes in `read` what of it is read: all that runs with the same mask need."""

    def __init__(self, slots: Mapping[int, Slot]):
        super().__init__(slots)
        self.read: dict[int, Slot] = {}

    def halo(self, number: int, index: Tensor) -> Tensor:
        """Return the rows of a slot's tensor at an index, and note them."""
        self.read[number] = rows = self._rows(number).index_select(0, index)
        return rows

    def moments(self, number: int, layout: Layout) -> Moments:
        """Return a slot's sums over the inactive tiles, and note them."""
        whole = self._moments(number)
        reference = layout.places[: len(whole.mean)]  # images repeat with the period of the reference
        inactive = (reference[:, :: layout.tile, :: layout.tile] < 0).flatten(1)
        self.read[number] = trimmed = Moments(whole.mean, (whole.sums * inactive[:, :, None, None]).sum(1), whole.total)
        return trimmed


def shifted_sums(values: Tensor, mean: Tensor) -> Tensor:
    """Return the sums of v - mean and (v - mean)^2 over each group of channels, float64 (N, G, 2).

    Arguments:
        values: Tiles (N, C, b, b).
        mean: Around what to sum, (N, G); sums around 0 would lose digits where the mean is large.

    Example:
        >>> shifted_sums(torch.full((1, 2, 2, 2), 3.0), torch.tensor([[1.0, 3.0]]).double()).tolist()
        [[[8.0, 16.0], [0.0, 0.0]]]
    """
    rows = values.permute(0, 2, 3, 1).reshape(len(values), -1, mean.shape[1], values.shape[1] // mean.shape[1])
    variance, centre = torch.var_mean(rows, dim=(1, 3), correction=0)
    distance, count = centre.double() - mean, rows.shape[1] * rows.shape[3]
    return count * torch.stack([distance, variance.double() + distance.square()], dim=-1)


def size_in_bytes(slots: Mapping[int, Slot]) -> int:
    """Return the memory that slots take.

    Example:
        >>> size_in_bytes({0: torch.zeros(10, 3)})
        120
    """
    tensors = []
    for slot in slots.values():
        tensors += [slot] if isinstance(slot, Tensor) else [slot.mean, slot.sums, slot.total]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
