"""Sources of training images: each gives batches in [-1, 1] and images it keeps for testing.

A source is any object with `image_shape`, `batch(n, generator)`, `held_out(n)` and `describe()` (see `Source`). Batches
are drawn with replacement, so a batch depends on the generator's state and on nothing else: a training run that is
stopped and resumed sees the images it would have seen.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from multilevel_diffusion.networks.dead_leaves_images import dead_leaves

__all__ = ["CelebA", "DeadLeaves", "Digits", "ImageFolder", "Source"]

HELD_OUT_SEED = 10**9  # training images of DeadLeaves have seeds far below
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


class Source(Protocol):
    """Where training images come from."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one image."""
        ...

    def batch(self, n: int, generator: torch.Generator) -> Tensor:
        """Return n training images (n, C, H, W) in [-1, 1], float32, on the CPU."""
        ...

    def held_out(self, n: int) -> Tensor:
        """Return the first n (or all, if fewer) of the images that `batch` never returns, always the same ones."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return what a reader must know to get the same images, as JSON values."""
        ...


class Digits:
    """The 1797 handwritten digits of scikit-learn, 8x8x1, with grey values 0 ... 16 scaled to [-1, 1].

    Every sixth image in a fixed random order is held out. A training image is moved by one pixel to the left or to the
    right with probability 1/4 each (background moves in); not up or down, where most digits fill the frame.

    Arguments:
        shift: Whether to move training images.

    Raises:
        ImportError: scikit-learn is not installed.

    Example:
        >>> source = Digits()
        >>> source.batch(4, torch.Generator().manual_seed(0)).shape
        torch.Size([4, 1, 8, 8])
        >>> len(source.held_out(1000))
        300

    References:
        Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
    """

    image_shape = (1, 8, 8)

    def __init__(self, shift: bool = True):
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise ImportError("Digits needs scikit-learn; install it with: pip install scikit-learn") from None
        images = torch.tensor(load_digits(return_X_y=True)[0], dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
        images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
        kept = torch.arange(len(images)) % 6 == 0
        self.shift = shift
        self._train, self._held_out = images[~kept], images[kept]
        # The same images moved to the left, left alone, and moved to the right: (3, n, 1, 8, 8).
        padded = torch.nn.functional.pad(self._train, (1, 1), value=-1.0)
        self._moved = torch.stack([padded[..., 2:], self._train, padded[..., :-2]])

    def batch(self, n: int, generator: torch.Generator) -> Tensor:
        """Return n training images (n, 1, 8, 8)."""
        image = torch.randint(len(self._train), (n,), generator=generator)
        if not self.shift:
            return self._train[image]
        move = torch.tensor([0, 1, 1, 2])[torch.randint(4, (n,), generator=generator)]
        return self._moved[move, image]

    def held_out(self, n: int) -> Tensor:
        """Return the first n of the 300 held-out images, (n, 1, 8, 8)."""
        return self._held_out[:n]

    def describe(self) -> dict[str, Any]:
        """Return the name of the data and whether images are moved."""
        return {"data": "digits", "shift": self.shift}


class DeadLeaves:
    """Procedural dead leaves (see `dead_leaves`): endless, of which a pool is rendered at first use.

    A batch draws from the pool and turns or mirrors every image at random; all eight ways are equally likely images, so
    the pool stands for eight times as many. Held-out images have other seeds.

    Arguments:
        size: Side of the images.
        channels: 3 for colour, 1 for grey.
        pool: Number of images rendered; 8192 of 32x32 take about half a minute.
        seed: Seed of the pool's first image.

    Raises:
        ValueError: `pool` is not positive, or what `dead_leaves` refuses.

    Example:
        >>> DeadLeaves(16, pool=8).batch(2, torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 16, 16])
    """

    def __init__(self, size: int, channels: int = 3, *, pool: int = 8192, seed: int = 0):
        if pool < 1:
            raise ValueError(f'"pool" is {pool}, expected at least 1; render some images')
        if not 0 <= seed <= HELD_OUT_SEED - pool:
            raise ValueError(f'"seed" is {seed}, expected one in [0, {HELD_OUT_SEED - pool}]; choose another')
        dead_leaves([], size, channels)  # refuses what it cannot render, before training starts
        self.image_shape = (channels, size, size)
        self._count, self._seed = pool, seed

    @cached_property
    def _pool(self) -> Tensor:
        channels, size, _ = self.image_shape
        seeds = range(self._seed, self._seed + self._count)
        return _to_bytes(dead_leaves(seeds, size, channels, progress=self._count * size**2 > 10**6))

    def batch(self, n: int, generator: torch.Generator) -> Tensor:
        """Return n training images (n, channels, size, size)."""
        images = _from_bytes(self._pool[torch.randint(self._count, (n,), generator=generator)])
        turn, vertical, horizontal = torch.randint(2, (3, n, 1, 1, 1), generator=generator).bool()
        images = torch.where(turn, images.transpose(2, 3), images)
        images = torch.where(vertical, images.flip(2), images)
        return torch.where(horizontal, images.flip(3), images)

    def held_out(self, n: int) -> Tensor:
        """Return n images of seeds that the pool does not have."""
        channels, size, _ = self.image_shape
        return _from_bytes(_to_bytes(dead_leaves(range(HELD_OUT_SEED, HELD_OUT_SEED + n), size, channels)))

    def describe(self) -> dict[str, Any]:
        """Return the size, the pool and its seed."""
        return {"data": "deadleaves", "shape": list(self.image_shape), "pool": self._count, "seed": self._seed}


class ImageFolder:
    """All images below a folder, cropped to the central square and resized with antialiasing.

    Files are decoded once, in order of their names, and kept in memory as bytes. Those that cannot be read are skipped,
    counted in `skipped` and reported on stderr. Every twentieth image is held out. Training images are mirrored at
    random.

    Arguments:
        path: The folder; its subfolders are searched too.
        size: Side to which images are resized.
        crop: Side of the central square that is kept, in pixels of the file; None is the largest that fits.
        mirror: Whether to mirror training images at random.

    Attributes:
        skipped: Number of files that could not be read.

    Raises:
        ValueError: The folder is missing, or holds no readable image, or only one.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in "ab":
        ...     Image.new("RGB", (20, 10), "white").save(folder / f"{name}.png")
        >>> ImageFolder(folder, 8).batch(3, torch.Generator().manual_seed(0)).unique()
        tensor([1.])
    """

    def __init__(self, path: str | Path, size: int = 64, *, crop: int | None = None, mirror: bool = True):
        root = Path(path)
        if not root.is_dir():
            raise ValueError(f'"path" is {str(path)!r}, which is no folder; give the folder of the images')
        if size < 1:
            raise ValueError(f'"size" is {size}, expected a positive side; give one')
        files = sorted(file for file in root.rglob("*") if file.suffix.lower() in SUFFIXES)
        self.image_shape, self.mirror, self._name, self._crop = (3, size, size), mirror, root.name, crop
        images, self.skipped = _decode(files, lambda image: _central_square(image, crop, size))
        if self.skipped:
            print(f"{root}: skipped {self.skipped} of {len(files)} files that could not be read", file=sys.stderr)
        if len(images) < 2:
            raise ValueError(
                f'"path" is {str(path)!r}, which holds {len(images)} readable images and {self.skipped} unreadable '
                "ones, expected at least 2; give another folder"
            )
        kept = torch.arange(len(images)) % 20 == 0
        self._train, self._held_out = images[~kept], images[kept]

    def batch(self, n: int, generator: torch.Generator) -> Tensor:
        """Return n training images (n, 3, size, size)."""
        images = _from_bytes(self._train[torch.randint(len(self._train), (n,), generator=generator)])
        if not self.mirror:
            return images
        return torch.where(torch.randint(2, (n, 1, 1, 1), generator=generator).bool(), images.flip(3), images)

    def held_out(self, n: int) -> Tensor:
        """Return the first n of the held-out images, (n, 3, size, size)."""
        return _from_bytes(self._held_out[:n])

    def describe(self) -> dict[str, Any]:
        """Return the folder's name, how many images it has and how they are prepared."""
        return {
            "data": "folder",
            "folder": self._name,
            "images": len(self._train) + len(self._held_out),
            "skipped": self.skipped,
            "crop": self._crop,
            "size": self.image_shape[-1],
            "mirror": self.mirror,
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


def _central_square(image: Image.Image, crop: int | None, size: int) -> Tensor:
    """Crop an image to its central square, resize it, and return it as bytes (3, size, size)."""
    side = min(*image.size, crop or sys.maxsize)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Crop first: resize(box=...) would let the pixels outside the box bleed in.
    square = image.convert("RGB").crop((left, top, left + side, top + side))
    square = square.resize((size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


def _decode(files: list[Path], prepare: Callable[[Image.Image], Tensor]) -> tuple[Tensor, int]:
    """Return the prepared images (n, C, H, W) of the files that can be read, and how many cannot."""

    def read(file: Path) -> Tensor | None:
        try:
            with Image.open(file) as image:
                return prepare(image)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what PIL raises for broken files
            return None

    with ThreadPoolExecutor(8) as pool:
        decoded = list(tqdm(pool.map(read, files), total=len(files), desc="read images", disable=len(files) < 2000))
    images = [image for image in decoded if image is not None]
    return (torch.stack(images) if images else torch.empty(0)), len(files) - len(images)


def _to_bytes(images: Tensor) -> Tensor:
    return ((images + 1) * 127.5).round().to(torch.uint8)


def _from_bytes(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1
