"""Images as PNG files: in grids, in rows, each alone."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from multilevel_sde.files import write_atomically

__all__ = ["image_grid", "save_grid", "save_image", "save_rows"]


def image_grid(images: Tensor, columns: int | None = None, *, scale: int = 1, gap: int = 2) -> Tensor:
    """Lay images out in a grid.

    Arguments:
        images: (B, C, H, W) in [-1, 1] (values outside are clipped), C = 1 or 3.
        columns: Images in a row; about square by default.
        scale: Pixels per pixel.
        gap: White pixels between images.

    Returns:
        uint8 (height, width, 3).

    Raises:
        ValueError: No images, or another number of channels.

    Example:
        >>> image_grid(torch.zeros(4, 1, 8, 8), gap=0).shape
        torch.Size([16, 16, 3])
    """
    if images.dim() != 4 or 0 in images.shape or images.shape[1] not in (1, 3):
        raise ValueError(f'"images" must have shape (B, 1 or 3, H, W), got {tuple(images.shape)}')
    columns = columns or math.ceil(math.sqrt(len(images)))
    pixels = ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    pixels = pixels.expand(-1, 3, -1, -1).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    height, width = pixels.shape[2:]
    rows = math.ceil(len(pixels) / columns)
    page = torch.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=torch.uint8)
    for index, image in enumerate(pixels):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        page[top : top + height, left : left + width] = image.permute(1, 2, 0)
    return page


def save_grid(path: str | os.PathLike[str], images: Tensor, columns: int | None = None, *, scale: int = 1) -> None:
    """Write a grid of images as PNG, whole or not at all; see :func:`image_grid`."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image_grid(images, columns, scale=scale).numpy()).save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())


def save_image(path: str | os.PathLike[str], image: Tensor) -> None:
    """Write one image (1 or 3, H, W) in [-1, 1] as PNG, pixel for pixel, whole or not at all.

    Raises:
        ValueError: Another number of channels.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/grey.png"
        >>> save_image(path, torch.zeros(1, 4, 4))
        >>> from PIL import Image
        >>> Image.open(path).size
        (4, 4)
    """
    from PIL import Image

    pixels, buffer = image_grid(image[None], 1, gap=0).numpy(), io.BytesIO()
    Image.fromarray(pixels[..., 0] if image.shape[0] == 1 else pixels).save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())


def save_rows(path: str | os.PathLike[str], rows: Sequence[tuple[str, Tensor]], title: str, *, scale: int = 5) -> None:
    """Write rows of images, each with its label on the left, as PNG: the same seeds under each other.

    Arguments:
        path: Where to write.
        rows: (label, images (B, C, H, W)) with the same B in each.
        title: Text above.
        scale: Pixels per pixel.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    strips = [image_grid(images, len(images), scale=scale).numpy() for _, images in rows]
    height, width = strips[0].shape[:2]
    dpi, label = 100, 290
    page = max(width + label + 20, 9 * len(title))  # wide enough for the title above few images
    figure = Figure(figsize=(page / dpi, ((height + 8) * len(rows) + 44) / dpi), dpi=dpi)
    figure.text(0.012, 1 - 14 / (figure.get_figheight() * dpi), title, fontsize=11, weight="bold", va="top")
    total = figure.get_figheight() * dpi
    for index, ((name, _), strip) in enumerate(zip(rows, strips, strict=True)):
        bottom = total - 44 - (index + 1) * (height + 8)
        axes = figure.add_axes((label / page, bottom / total, width / page, height / total))
        axes.imshow(strip, interpolation="nearest", aspect="auto")
        axes.axis("off")
        figure.text(0.012, (bottom + height / 2) / total, name, fontsize=9, va="center")
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    write_atomically(path, buffer.getvalue())
