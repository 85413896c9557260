r"""Small changes of training images, and which images are near copies of each other.

A change of hue turns the colour about the axis of greys, so that greys, and white ground, stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["groups", "varied"]

LARGEST_ANGLE = 0.15  # radians, 9 degrees
_GREYS = torch.ones(3, 3) / 3  # projects onto the axis of greys
_ACROSS = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)


def varied(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images (B, 3, H, W) in [-1, 1], each moved by at most a pixel either way and turned in hue a little.

    What moves in is a copy of the border. All nine moves are equally likely; the angle is uniform, at most 9 degrees.

    Example:
        >>> white = torch.ones(2, 3, 8, 8)
        >>> torch.allclose(varied(white, torch.Generator().manual_seed(0)), white)
        True
    """
    n, height, width = len(images), *images.shape[2:]
    down, right = torch.randint(3, (2, n, 1), generator=generator)
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    moved = padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    angle = LARGEST_ANGLE * (2 * torch.rand(n, 1, 1, generator=generator) - 1)
    turn = angle.cos() * torch.eye(3) + angle.sin() * _ACROSS + (1 - angle.cos()) * _GREYS
    return torch.einsum("bij,bjhw->bihw", turn, moved).clamp(-1, 1)


def groups(files: Sequence[Path]) -> Tensor:
    """Return the number of each file's group, from 0: files of one folder whose names are the same up to a `+`.

    Example:
        >>> groups([Path("a.png"), Path("b+1.png"), Path("c.png"), Path("b.png")]).tolist()
        [0, 1, 2, 1]
    """
    numbers: dict[Path, int] = {}
    return torch.tensor(
        [numbers.setdefault(file.with_name(file.stem.partition("+")[0]), len(numbers)) for file in files]
    )
