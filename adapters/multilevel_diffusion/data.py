"""Sources of training images: each gives batches in [-1, 1] and images it keeps for testing.

A source is any object with `image_shape`, `batch(n, generator)`, `held_out(n)` and `describe()` (see `Source`). Batches
are drawn with replacement, so a batch depends on the generator's state and on nothing else: a training run that is
stopped and resumed sees the images it would have seen.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Digits", "Source"]


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
