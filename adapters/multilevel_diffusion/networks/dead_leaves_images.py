r"""Dead leaves: procedural images that share the statistics of photographs and need no download.

Shapes fall on one another from a random place each, until nothing of the ground is left; what is seen is the last one.
With radii r of density :math:`r^{-3}` the picture looks the same at every scale, as natural scenes do: occlusion gives
sharp edges, T-junctions, long correlations and power spectra near 1/f^2. Here the shapes are ellipses, rectangles and
polygons of any orientation and aspect, each shaded and some striped, their colours drawn around an image's own palette
with more variation in luminance than in hue. Edges are antialiased by the distance to the outline.

Every image has a seed of its own: it is the same whatever else is rendered with it. No direction is preferred, so that
turned and mirrored images are as likely as the originals.

References:
    Lee, Mumford, Huang, "Occlusion Models for Natural Images", International Journal of Computer Vision 41, 2001.
    Baradad et al., "Learning to See by Looking at Noise", 2021 (arXiv 2106.05963): training on dead leaves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

__all__ = ["dead_leaves"]

SHAPES = 64  # per image, back to front
SMALLEST, LARGEST = 0.1, 0.6  # radii, in sides of the image
CHUNK = 256  # images rendered together
# Luminance and two chroma axes, orthonormal: photographs vary mostly along the first.
AXES = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
AXES = AXES / AXES.norm(dim=1, keepdim=True)


def dead_leaves(seeds: Sequence[int] | range, size: int, channels: int = 3, *, progress: bool = False) -> Tensor:
    """Render dead leaves.

    Arguments:
        seeds: One seed per image.
        size: Side of the images.
        channels: 3 for colour, 1 for grey.
        progress: Whether to show a progress bar on stderr.

    Returns:
        The images (len(seeds), channels, size, size) in [-1, 1], float32.

    Raises:
        ValueError: `size` is below 4, or `channels` is neither 1 nor 3.

    Example:
        >>> images = dead_leaves(range(3), 16)
        >>> images.shape, bool((images[1] == dead_leaves([1], 16)[0]).all())
        (torch.Size([3, 3, 16, 16]), True)
    """
    if size < 4:
        raise ValueError(f'"size" is {size}, expected at least 4; render larger images')
    if channels not in (1, 3):
        raise ValueError(f'"channels" is {channels}, expected 1 (grey) or 3 (colour); choose one')
    images = torch.empty(len(seeds), channels, size, size)
    with tqdm(total=len(seeds), desc="render", unit="image", disable=not progress) as bar:
        for start in range(0, len(seeds), CHUNK):
            chunk = seeds[start : start + CHUNK]
            images[start : start + len(chunk)] = _render(chunk, size, channels)
            bar.update(len(chunk))
    return images


def _render(seeds: Sequence[int] | range, size: int, channels: int) -> Tensor:
    generator = torch.Generator()
    uniform = torch.stack([torch.rand(SHAPES + 1, 16, generator=generator.manual_seed(seed)) for seed in seeds])
    palette, shapes = uniform[:, 0], uniform[:, 1:].unbind(dim=1)
    pixel = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(pixel, pixel, indexing="ij")
    canvas = _colour(palette, palette).expand(-1, -1, size, size).clone()
    for shape in shapes:
        cover, texture = _shape(shape, x, y, 1 / size)
        canvas += cover[:, None] * (_colour(palette, shape) + texture[:, None] - canvas)
    canvas = canvas.clamp(-1, 1)
    return canvas if channels == 3 else canvas.mean(dim=1, keepdim=True)


def _colour(palette: Tensor, shape: Tensor) -> Tensor:
    """Return a colour (B, 3, 1, 1) near the palette's mean, from the last uniform numbers of a shape (B, 16)."""
    mean = (2 * palette[:, :3] - 1) * torch.tensor([0.7, 0.5, 0.25])
    spread = torch.tensor([1.5, 0.5, 0.25]) * (0.5 + palette[:, 3:4])
    return ((mean + spread * (shape[:, 13:] - 0.5) * 2) @ AXES)[:, :, None, None]


def _shape(u: Tensor, x: Tensor, y: Tensor, pixel: float) -> tuple[Tensor, Tensor]:
    """Return each pixel's cover and shading, both (B, H, W), from the uniform numbers (B, 16) of B shapes."""

    def column(i: int) -> Tensor:
        return u[:, i, None, None]

    radius = (LARGEST**-2 + column(0) * (SMALLEST**-2 - LARGEST**-2)) ** -0.5  # density r^-3
    aspect = 0.4 + 0.6 * column(1)
    angle = 2 * math.pi * column(2)
    # Centres up to a radius outside, so that the border is like the inside.
    dx, dy = x - (column(3) * (1 + 2 * radius) - radius), y - (column(4) * (1 + 2 * radius) - radius)
    a = (dx * angle.cos() + dy * angle.sin()) / radius
    b = (dy * angle.cos() - dx * angle.sin()) / (radius * aspect)
    length = (a.square() + b.square()).sqrt()
    corners = (3 + 4 * column(6)).floor()
    sector = math.pi / corners
    outlines = torch.stack(
        [
            length,
            torch.maximum(a.abs(), b.abs()) * 1.2,
            length * torch.cos((torch.atan2(b, a) % (2 * sector)) - sector) / torch.cos(sector * 0.6),
        ]
    )
    kind = torch.bucketize(u[:, 5].contiguous(), torch.tensor([0.45, 0.75]))
    outline = outlines[kind, torch.arange(len(u))]
    # Distance to the outline: exact along the long axis, too small by the aspect across it.
    cover = (0.5 + (1 - outline) * radius * aspect.sqrt() / pixel).clamp(0, 1)
    direction = 2 * math.pi * column(7)
    along = a * direction.cos() + b * direction.sin()
    stripes = (2 * math.pi * (2 + 3 * column(8)) * (a * column(9) + b * (1 - column(9)))).sin()
    striped = (column(10) < 0.25) & (radius > 6 * pixel)
    return cover, 0.25 * column(11) * along + 0.15 * (0.5 + column(12)) * stripes * striped
