"""What the quality of sampled digits is measured with: real digits in three parts, and a small classifier's features.

The reference are the 300 digits that no network was trained on (`Digits.held_out`). Of the others, which the ladder was
trained on, a third trains the classifier; the rest, which the classifier has not seen either, stands for a perfect
sampler and gives the noise floor. Training of the ladder moved half of the images by a pixel to a side, so the same is
done to the reference and the floor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from multilevel_diffusion.networks.data import Digits

__all__ = ["DigitSets", "digit_classifier", "digit_sets", "grey_levels"]


@dataclass(frozen=True)
class DigitSets:
    """Real digits in [-1, 1], moved as in training.

    Attributes:
        held_out: (300, 1, 8, 8), of which no network saw any.
        floor: (998, 1, 8, 8), of which the classifier saw none.
        training: (499, 1, 8, 8), the classifier's.
        labels: Of `training`, int64 (499,).
        held_out_labels: Of `held_out`.
    """

    held_out: Tensor
    floor: Tensor
    training: Tensor
    labels: Tensor
    held_out_labels: Tensor


def digit_sets() -> DigitSets:
    """Return the three parts, each in a fixed random order.

    Raises:
        ImportError: scikit-learn is not installed.

    Example:
        >>> sets = digit_sets()
        >>> len(sets.held_out), len(sets.floor), len(sets.training)
        (300, 998, 499)
    """
    held_out = Digits().held_out(300)
    from sklearn.datasets import load_digits

    pixels, numbers = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1, torch.tensor(numbers)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    images, labels = images[order], labels[order]
    same = (images[:, None] == held_out[None]).flatten(2).all(2)
    rest = (~same.any(1)).nonzero()[:, 0]
    third = len(rest) // 3
    held_out_labels = labels[same.int().argmax(0)]
    training, floor = rest[:third], rest[third:]
    return DigitSets(
        _moved(held_out), _moved(images[floor]), _moved(images[training]), labels[training], held_out_labels
    )


def digit_classifier(sets: DigitSets, seed: int = 0, steps: int = 400) -> nn.Sequential:
    """Train a small convolutional classifier of digits, in seconds; the same seed gives the same weights.

    Arguments:
        sets: Its images and labels.
        seed: Of the weights and the batches.
        steps: Optimiser steps of 64 images.

    Returns:
        The network (B, 1, 8, 8) -> (B, 10), in evaluation mode; without its last two layers it gives 32 features.

    Example:
        >>> sets = digit_sets()
        >>> network = digit_classifier(sets, steps=2)
        >>> network[:-2](sets.held_out).shape
        torch.Size([300, 32])
    """
    with torch.random.fork_rng(devices=[]):  # torch's initialisers take no generator
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 16, 32),
            nn.ReLU(),
            nn.Linear(32, 10),
        )
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.05)
    for _ in range(steps):
        index = torch.randint(len(sets.training), (64,), generator=generator)
        loss = nn.functional.cross_entropy(network(sets.training[index]), sets.labels[index], label_smoothing=0.1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network.eval().requires_grad_(False)


def grey_levels(images: Tensor) -> Tensor:
    """Return images with the 17 grey values of the data, -1 to 1 in steps of 1/8, so that rounding tells nothing.

    Example:
        >>> grey_levels(torch.tensor([-3.0, 0.05, 0.07, 0.99]))
        tensor([-1.0000,  0.0000,  0.1250,  1.0000])
    """
    return ((images.clamp(-1, 1) + 1) * 8).round() / 8 - 1


def _moved(images: Tensor) -> Tensor:
    """Move a quarter of the images by a pixel to the left and a quarter to the right, as training does at random."""
    padded = nn.functional.pad(images, (1, 1), value=-1.0)
    moves = torch.tensor([0, 1, 1, 2])[torch.arange(len(images)) % 4]
    return torch.stack([padded[..., 2:], images, padded[..., :-2]])[moves, torch.arange(len(images))]
