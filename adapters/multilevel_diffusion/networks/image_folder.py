"""Folders of image files as sources of training images, with their subfolders as classes, and as plain tensors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from multilevel_diffusion.networks.data import from_bytes
from multilevel_diffusion.networks.variations import groups, varied

__all__ = ["CelebA", "ImageFolder", "common_side", "image_files", "image_sizes", "read_images"]

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_BROKEN = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what PIL raises for broken files


def image_files(path: str | Path) -> list[Path]:
    """Return the image files below a folder, in order of their names.

    Raises:
        ValueError: There is no such folder.

    Example:
        >>> import tempfile
        >>> image_files(tempfile.mkdtemp())
        []
    """
    root = Path(path)
    if not root.is_dir():
        raise ValueError(f'"path" is {str(path)!r}, which is no folder; give the folder of the images')
    return sorted(file for file in root.rglob("*") if file.suffix.lower() in SUFFIXES)


def image_sizes(path: str | Path) -> dict[Path, tuple[int, int]]:
    """Return the size (width, height) of each image file below a folder; broken files are skipped.

    Raises:
        ValueError: There is no such folder, or no readable image in it.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (20, 10)).save(folder / "a.png")
        >>> {file.name: size for file, size in image_sizes(folder).items()}
        {'a.png': (20, 10)}
    """
    sizes, files = {}, image_files(path)
    for file in files:
        try:
            with Image.open(file) as image:  # reads the header only
                sizes[file] = image.size
        except _BROKEN:
            continue
    if not sizes:
        raise ValueError(
            f'"path" is {str(path)!r}, which holds no readable image among {len(files)} files; give another folder'
        )
    return sizes


def common_side(path: str | Path) -> int:
    """Return the side to which all images below a folder can be brought without being enlarged.

    That is the smallest of their shorter sides, for images of one size their own. Broken files are skipped.

    Raises:
        ValueError: There is no such folder, or no readable image in it.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (20, 10)).save(folder / "a.png")
        >>> common_side(folder)
        10
    """
    return min(min(size) for size in image_sizes(path).values())


def read_images(path: str | Path, shape: Sequence[int]) -> tuple[Tensor, list[str]]:
    """Return all images below a folder as a tensor in [-1, 1], and their names without suffix, in order of the files.

    Arguments:
        path: The folder.
        shape: (C, H, W) with C = 1 (grey) or 3 and H = W: the central square of each image is brought to this size.

    Raises:
        ValueError: There is no such folder, no readable image in it, or the shape is not that of such images.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("L", (8, 8), 255).save(folder / "white.png")
        >>> images, names = read_images(folder, (1, 4, 4))
        >>> images.shape, float(images.min()), names
        (torch.Size([1, 1, 4, 4]), 1.0, ['white'])
    """
    channels, height, width = shape
    if channels not in (1, 3) or height != width:
        raise ValueError(f'"shape" is {tuple(shape)}, expected (1 or 3, side, side); files of images have no other')
    files = image_files(path)
    images, kept = _decode(files, lambda image: _central_square(image, None, height, "L" if channels == 1 else "RGB"))
    if not kept:
        raise ValueError(f'"path" is {str(path)!r}, which holds no readable image; give another folder')
    return from_bytes(images), [files[index].stem for index in kept]


class ImageFolder:
    """All images below a folder, cropped to the central square and resized with antialiasing.

    Files are decoded once, in order of their names, and kept in memory as bytes. Those that cannot be read are skipped,
    counted in `skipped` and reported on stderr. Every twentieth image is held out; files of one folder whose names are
    the same up to a `+` are near copies and count as one in that. Training images are mirrored at random.

    Arguments:
        path: The folder; its subfolders are searched too.
        size: Side to which images are resized.
        crop: Side of the central square that is kept, in pixels of the file; None is the largest that fits.
        mirror: Whether to mirror training images at random.
        vary: Whether to move training images by a pixel and to turn their hues a little, at random (:func:`.varied`).
        labelled: Whether the folder's own subfolders are classes, named as they are; every image must lie in one.

    Attributes:
        skipped: Number of files that could not be read.
        classes: Names of the classes in their order, empty without labels.

    Raises:
        ValueError: The folder is missing, or holds no readable image, or only one; with labels, fewer than two
            subfolders with images, or an image beside them.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("cat", "dog"):
        ...     (folder / name).mkdir()
        ...     Image.new("RGB", (20, 10), "white").save(folder / name / "1.png")
        >>> source = ImageFolder(folder, 8, labelled=True)
        >>> source.batch(3, torch.Generator().manual_seed(0)).unique(), source.classes
        (tensor([1.]), ('cat', 'dog'))
    """

    def __init__(
        self,
        path: str | Path,
        size: int = 64,
        *,
        crop: int | None = None,
        mirror: bool = True,
        vary: bool = False,
        labelled: bool = False,
    ):
        root, files = Path(path), image_files(path)
        if size < 1:
            raise ValueError(f'"size" is {size}, expected a positive side; give one')
        self.image_shape, self.mirror, self.vary, self._root, self._crop = (3, size, size), mirror, vary, root, crop
        images, read = _decode(files, lambda image: _central_square(image, crop, size))
        self.skipped = len(files) - len(read)
        if self.skipped:
            print(f"{root}: skipped {self.skipped} of {len(files)} files that could not be read", file=sys.stderr)
        if len(images) < 2:
            raise ValueError(
                f'"path" is {str(path)!r}, which holds {len(images)} readable images and {self.skipped} unreadable '
                "ones, expected at least 2; give another folder"
            )
        self.classes, labels = _classes(root, [files[index] for index in read]) if labelled else ((), [0] * len(read))
        kept, every = groups([files[index] for index in read]) % 20 == 0, torch.tensor(labels)
        self._train, self._held_out = images[~kept], images[kept]
        self._train_labels, self._held_out_labels = every[~kept], every[kept]

    def batch(self, n: int, generator: torch.Generator) -> Tensor:
        """Return n training images (n, 3, size, size)."""
        return self.labelled_batch(n, generator)[0]

    def labelled_batch(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return n training images and their classes, int64 (n,), all 0 without labels."""
        index = torch.randint(len(self._train), (n,), generator=generator)
        images, labels = from_bytes(self._train[index]), self._train_labels[index]
        if self.mirror:
            mirrored = torch.randint(2, (n, 1, 1, 1), generator=generator).bool()
            images = torch.where(mirrored, images.flip(3), images)
        return varied(images, generator) if self.vary else images, labels

    def held_out(self, n: int) -> Tensor:
        """Return the first n of the held-out images, (n, 3, size, size)."""
        return from_bytes(self._held_out[:n])

    def held_out_labels(self, n: int) -> Tensor:
        """Return the classes of the first n of the held-out images."""
        return self._held_out_labels[:n]

    def describe(self) -> dict[str, Any]:
        """Return where the folder is, how many images it has and how they are prepared."""
        return {
            "data": "folder",
            "folder": self._root.name,
            "path": str(self._root.resolve()),
            "images": len(self._train) + len(self._held_out),
            "skipped": self.skipped,
            "crop": self._crop,
            "size": self.image_shape[-1],
            "mirror": self.mirror,
            **({"vary": True} if self.vary else {}),
            **({"classes": list(self.classes)} if self.classes else {}),
        }


class CelebA(ImageFolder):
    """CelebA faces: the aligned 178x218 images, central 140x140 square, resized to `size` with antialiasing.

    This is the preprocessing of most 64x64 results; the crop decides the numbers, so it is written down. Get the
    archive `img_align_celeba.zip` from its authors and unpack it; the folder may hold the images or folders of them.

    Arguments:
        path: The folder of the unpacked archive.
        size: Side to which images are resized.

    Raises:
        ValueError: What `ImageFolder` refuses.

    References:
        Liu et al., "Deep Learning Face Attributes in the Wild", 2015 (arXiv 1411.7766).

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in "ab":
        ...     Image.new("RGB", (178, 218), "black").save(folder / f"{name}.jpg")
        >>> CelebA(folder).image_shape
        (3, 64, 64)
    """

    def __init__(self, path: str | Path, size: int = 64):
        super().__init__(path, size, crop=140)

    def describe(self) -> dict[str, Any]:
        """Return what `ImageFolder.describe` does, under the name of the data set."""
        return {**super().describe(), "data": "celeba"}


def _classes(root: Path, files: Sequence[Path]) -> tuple[tuple[str, ...], list[int]]:
    """Return the names of the subfolders that images lie in, and the number of each image's."""
    above = [file.relative_to(root).parts for file in files]
    loose = sum(len(parts) < 2 for parts in above)
    if loose:
        raise ValueError(
            f'"path" is {str(root)!r}, where {loose} images lie beside the subfolders that are the classes; move each '
            "image into the subfolder of its class"
        )
    names = sorted({parts[0] for parts in above})
    if len(names) < 2:
        raise ValueError(
            f'"path" is {str(root)!r}, which has images in {len(names)} subfolder, expected at least 2 classes; train '
            "without classes"
        )
    return tuple(names), [names.index(parts[0]) for parts in above]


def _central_square(image: Image.Image, crop: int | None, size: int, mode: str = "RGB") -> Tensor:
    """Crop an image to its central square, resize it, and return it as bytes (3 or 1, size, size)."""
    side = min(*image.size, crop or sys.maxsize)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Crop first: resize(box=...) would let the pixels outside the box bleed in.
    square = image.convert(mode).crop((left, top, left + side, top + side))
    square = square.resize((size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(square)).reshape(size, size, -1).permute(2, 0, 1)


def _decode(files: list[Path], prepare: Callable[[Image.Image], Tensor]) -> tuple[Tensor, list[int]]:
    """Return the prepared images (n, C, H, W) of the files that can be read, and which files these are."""

    def read(file: Path) -> Tensor | None:
        try:
            with Image.open(file) as image:
                return prepare(image)
        except _BROKEN:
            return None

    with ThreadPoolExecutor(8) as pool:
        decoded = list(tqdm(pool.map(read, files), total=len(files), desc="read images", disable=len(files) < 2000))
    images = [image for image in decoded if image is not None]
    kept = [index for index, image in enumerate(decoded) if image is not None]
    return (torch.stack(images) if images else torch.empty(0)), kept
