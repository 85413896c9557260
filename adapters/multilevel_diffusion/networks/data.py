"""Sources of training images: each gives batches in [-1, 1] and images it keeps for testing.

A source is any object with `image_shape`, `batch(n, generator)`, `held_out(n)` and `describe()` (see `Source`). Batches
are drawn with replacement, so a batch depends on the generator's state and on nothing else: a training run that is
stopped and resumed sees the images it would have seen.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from multilevel_diffusion.networks.dead_leaves_images import dead_leaves

__all__ = ["DeadLeaves", "Digits", "LabelledSource", "Source", "from_bytes", "to_bytes"]

HELD_OUT_SEED = 10**9  # training images of DeadLeaves have seeds far below


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


@runtime_checkable
class LabelledSource(Protocol):
    """A source that knows the class of each of its images."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty where images have none."""
        ...

    def labelled_batch(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the images that `batch` returns, and their classes, int64 (n,)."""
        ...

    def held_out_labels(self, n: int) -> Tensor:
        """Return the classes of the images that `held_out` returns."""
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
        return to_bytes(dead_leaves(seeds, size, channels, progress=self._count * size**2 > 10**6))

    def batch(self, n: int, generator: torch.Generator) -> Tensor:
        """Return n training images (n, channels, size, size)."""
        images = from_bytes(self._pool[torch.randint(self._count, (n,), generator=generator)])
        turn, vertical, horizontal = torch.randint(2, (3, n, 1, 1, 1), generator=generator).bool()
        images = torch.where(turn, images.transpose(2, 3), images)
        images = torch.where(vertical, images.flip(2), images)
        return torch.where(horizontal, images.flip(3), images)

    def held_out(self, n: int) -> Tensor:
        """Return n images of seeds that the pool does not have."""
        channels, size, _ = self.image_shape
        return from_bytes(to_bytes(dead_leaves(range(HELD_OUT_SEED, HELD_OUT_SEED + n), size, channels)))

    def describe(self) -> dict[str, Any]:
        """Return the size, the pool and its seed."""
        return {"data": "deadleaves", "shape": list(self.image_shape), "pool": self._count, "seed": self._seed}


def to_bytes(images: Tensor) -> Tensor:
    """Return images in [-1, 1] as bytes 0 ... 255.

    Example:
        >>> to_bytes(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([  0, 128, 255], dtype=torch.uint8)
    """
    return ((images + 1) * 127.5).round().to(torch.uint8)


def from_bytes(images: Tensor) -> Tensor:
    """Return bytes 0 ... 255 as float32 in [-1, 1].

    Example:
        >>> from_bytes(torch.tensor([0, 255], dtype=torch.uint8))
        tensor([-1.,  1.])
    """
    return images.float() / 127.5 - 1
