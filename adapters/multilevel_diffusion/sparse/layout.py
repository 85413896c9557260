"""Which tiles of an image are recomputed at every resolution, and where their inputs lie.

An edit marks pixels. At each resolution that a network passes through, the mask is max-pooled to it, grown by a margin
and cut into square tiles; a tile with a marked pixel is active. Only active tiles are computed. What a convolution
needs around them comes from other active tiles or, outside them, from the reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Gather", "Geometry", "Layout", "Places", "pixels", "tile_at"]

Size = tuple[int, int]
Places = Callable[[Tensor, int], Tensor]


def tile_at(tile: int, size: Size) -> int:
    """Return the side of the tiles at a resolution: the largest divisor of it that divides `tile`.

    Example:
        >>> tile_at(8, (64, 64)), tile_at(8, (12, 12))
        (8, 4)
    """
    return math.gcd(tile, *size)


@dataclass(frozen=True, eq=False)
class Layout:
    """The active tiles of one resolution, N of them.

    Attributes:
        size: (H, W) of the resolution.
        tile: Side b of a tile.
        images: Image of each tile, int64 (N,).
        origins: Top left pixel of each tile, int64 (N, 2).
        places: For every pixel of the batch its row among the active pixels, or -1, int64 (B, H, W).
        share: Active part of all tiles.

    Example:
        >>> mask = torch.zeros(1, 4, 4, dtype=torch.bool)
        >>> mask[0, 1, 3] = True
        >>> layout = Layout.of(mask, 2)
        >>> layout.origins.tolist(), layout.places[0, :2].tolist(), layout.share
        ([[0, 2]], [[-1, -1, 0, 1], [-1, -1, 2, 3]], 0.25)
    """

    size: Size
    tile: int
    images: Tensor
    origins: Tensor
    places: Tensor
    share: float

    @classmethod
    def of(cls, mask: Tensor, tile: int) -> Layout:
        """Return the layout in which every tile of side b with a True of mask (B, H, W) is active."""
        batch, height, width = mask.shape
        found = mask.view(batch, height // tile, tile, width // tile, tile).any(4).any(2)
        images, rows, columns = found.nonzero(as_tuple=True)
        origins = torch.stack([rows, columns], dim=1) * tile
        places = torch.full((batch, height // tile, width // tile), -1, dtype=torch.int64, device=mask.device)
        places[found] = torch.arange(len(images), device=mask.device)
        inside = torch.arange(tile * tile, device=mask.device).view(tile, tile).repeat(height // tile, width // tile)
        places = places.repeat_interleave(tile, 1).repeat_interleave(tile, 2)
        places = torch.where(places >= 0, places * tile**2 + inside, places)
        return cls((height, width), tile, images, origins, places, float(found.double().mean()))


@dataclass(frozen=True, eq=False)
class Gather:
    """Windows of a tensor that is known on active pixels, and by its reference elsewhere.

    Attributes:
        shape: Number of windows, their height and width.
        index: Row of every pixel of the windows in [active pixels; halo; one row of zeros].
        halo: The rows of the reference that are read.
    """

    shape: tuple[int, int, int]
    index: Tensor
    halo: Tensor

    def __call__(self, values: Tensor, halo: Tensor | None) -> Tensor:
        """Return the windows (N, C, h, w), channels last.

        Arguments:
            values: The active pixels, tiles (n, C, b, b) or whole images.
            halo: The reference's rows at `halo`, (len(halo), C); None where nothing is read from it.
        """
        rows = pixels(values)
        parts = [rows] if halo is None else [rows, halo]
        source = torch.cat([*parts, rows.new_zeros(1, rows.shape[1])])
        return source.index_select(0, self.index).view(*self.shape, -1).permute(0, 3, 1, 2)


def pixels(values: Tensor) -> Tensor:
    """Return the pixels of values (N, C, h, w) as rows (N h w, C); a view where they are channels last.

    Example:
        >>> pixels(torch.zeros(2, 3, 4, 4)).shape
        torch.Size([32, 3])
    """
    return values.permute(0, 2, 3, 1).reshape(-1, values.shape[1])


class Geometry:
    """The layouts of all resolutions of one mask, made when they are asked for.

    Arguments:
        mask: Edited pixels, bool (B, H, W).
        images: Images of the reference; image i of the batch is compared with image i mod `images` of it.
        tile: Largest side of a tile.
        margin: By how many pixels the mask is grown, at every resolution.
        dense_above: A resolution with a larger active share is computed as a whole.

    Example:
        >>> mask = torch.zeros(1, 32, 32, dtype=torch.bool)
        >>> mask[0, 5, 5] = True
        >>> geometry = Geometry(mask, images=1, tile=4, margin=0, dense_above=0.6)
        >>> [geometry.layout(size) is None for size in [(32, 32), (8, 8), (4, 4)]], geometry.shares()
        ([False, False, True], {(32, 32): 0.015625, (8, 8): 0.25, (4, 4): 1.0})
    """

    def __init__(self, mask: Tensor, images: int, tile: int, margin: int, dense_above: float):
        self.mask, self.images, self.tile, self.margin, self.dense_above = mask, images, tile, margin, dense_above
        self._layouts: dict[Size, Layout | None] = {}
        self._gathers: dict[object, Gather] = {}

    def layout(self, size: Size) -> Layout | None:
        """Return the layout of a resolution (H, W), or None where it is computed as a whole."""
        if size not in self._layouts:
            mask = F.adaptive_max_pool2d(self.mask[:, None].float(), size)
            mask = F.max_pool2d(mask, 2 * self.margin + 1, stride=1, padding=self.margin)
            layout = Layout.of(mask[:, 0] > 0, tile_at(self.tile, size))
            self._layouts[size] = None if layout.share > self.dense_above else layout
        return self._layouts[size]

    def shares(self) -> dict[Size, float]:
        """Return the active share of every resolution met so far; 1 where it is computed as a whole."""
        return {size: 1.0 if layout is None else layout.share for size, layout in self._layouts.items()}

    def windows(self, source: Size, known: Layout | None, target: Layout, places: Places, key: object) -> Gather:
        """Return where the inputs of the target's tiles lie in a source.

        Arguments:
            source: Resolution of the input.
            known: On which tiles the input is known; None where on all pixels.
            target: Layout of the output.
            places: Maps the first pixel of each tile on an axis, (N,), and the axis to the pixels of the input that the
                tile needs on it, (N, n); pixels outside the image read zero.
            key: What the result depends on besides the layouts, for the memory of results.
        """
        key = (source, known is None, target.size, key)
        if key not in self._gathers:
            axes = (places(target.origins[:, axis], axis) for axis in range(2))
            self._gathers[key] = self._gather(source, known, target.images, *axes)
        return self._gathers[key]

    def whole(self, known: Layout) -> Gather:
        """Return where the pixels of whole images lie."""
        if known.size not in self._gathers:
            images = torch.arange(len(self.mask), device=self.mask.device)
            axes = (torch.arange(n, device=images.device).expand(len(images), n) for n in known.size)
            self._gathers[known.size] = self._gather(known.size, known, images, *axes)
        return self._gathers[known.size]

    def _gather(self, source: Size, known: Layout | None, images: Tensor, rows: Tensor, columns: Tensor) -> Gather:
        height, width = source
        rows, columns, images = rows[:, :, None], columns[:, None, :], images[:, None, None]
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        flat = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
        if known is None:
            place, active = images * (height * width) + flat, len(self.mask) * height * width
            halo = flat.new_empty(0)
        else:
            place, active = known.places.view(len(self.mask), -1)[images, flat], len(known.images) * known.tile**2
            missing = inside & (place < 0)
            # The same rows whatever the batch, as images repeat with the period of the reference.
            halo, order = ((images % self.images) * (height * width) + flat)[missing].unique(return_inverse=True)
            place[missing] = active + order
        place = torch.where(inside, place, active + len(halo))
        return Gather((len(place), place.shape[1], place.shape[2]), place.flatten(), halo)
