r"""A set of samples against a set of real images in one call, and how many samples that takes.

.. math:: \mathrm{PSNR}(a, b) = 10 \log_{10} \frac{4}{|a - b|^2 / \dim}

for images in [-1, 1], whose range is 2: it compares image by image, such as those of the same seeds from a plan and
from the largest network. The other numbers compare distributions, and say nothing with too few samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from multilevel_diffusion.quality.distances import frechet_distance, sliced_wasserstein, two_sample_classifier
from multilevel_diffusion.quality.features import RandomFeatures, in_batches
from multilevel_diffusion.quality.intervals import Interval, split_halves

__all__ = ["Comparison", "compare", "features_of", "psnr", "samples_needed"]

_PER_FEATURE, _LEAST = 4, 50  # samples for each feature of the Frechet distance, and for the other two
_DIRECTIONS, _MOST_PIXELS, _SMALL = 128, 64, 16


@dataclass(frozen=True)
class Comparison:
    """How near samples are to real images.

    Attributes:
        samples: How many samples.
        reference: How many real images.
        features: What the Fréchet distance compares.
        frechet: The Fréchet distance.
        frechet_floor: What it is for two halves of the reference, with the range of 95% of the halves.
        sliced: The sliced Wasserstein distance.
        sliced_floor: What it is for two halves of the reference.
        told_apart: How often a classifier tells samples and real images apart; 1/2 if they are alike.
    """

    samples: int
    reference: int
    features: str
    frechet: float
    frechet_floor: Interval
    sliced: float
    sliced_floor: Interval
    told_apart: Interval

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON values."""
        return asdict(self)

    def table(self) -> str:
        """Return them as text."""
        rows = [
            ("Frechet distance", f"{self.frechet:.4g}", _words(self.frechet_floor), f"({self.features})"),
            ("sliced Wasserstein", f"{self.sliced:.4g}", _words(self.sliced_floor), ""),
            ("told apart", f"{self.told_apart.estimate:.3f}", "0.5", f"({_ends(self.told_apart)})"),
        ]
        lines = [f"{self.samples} samples against {self.reference} real images", ""]
        lines.append(f"{'':<20}{'samples':>10}  two halves of the real images")
        lines += [f"{name:<20}{value:>10}  {floor:<32}{note}".rstrip() for name, value, floor, note in rows]
        return "\n".join(lines)


def features_of(shape: Sequence[int]) -> tuple[Callable[[Tensor], Tensor], int, str]:
    """Return what the Fréchet distance compares for images of a shape: features, their number, and words for them.

    That is random convolutions, for images of fewer than 16 pixels a side the pixels, averaged until there are at most
    64 numbers where it can be.

    Example:
        >>> features_of((3, 32, 32))[1:], features_of((1, 8, 8))[1:]
        ((32, '32 random features'), (64, '64 pixels'))
    """
    channels, height, width = shape
    if min(height, width) >= _SMALL:
        network = RandomFeatures(channels)
        count = 2 * len(network.get_buffer("second"))
        return network, count, f"{count} random features"
    side = min(height, width, max(1, math.isqrt(_MOST_PIXELS // channels)))
    if (height, width) == (side, side):
        return lambda x: x.flatten(1), channels * side**2, f"{channels * side**2} pixels"
    count = channels * side**2
    return lambda x: torch.nn.functional.adaptive_avg_pool2d(x, side), count, f"{count} averages of pixels"


def samples_needed(shape: Sequence[int]) -> int:
    """Return how many images of a shape :func:`compare` needs in each set: four for each feature, at least 50.

    Example:
        >>> samples_needed((3, 32, 32)), samples_needed((1, 8, 8))
        (128, 256)
    """
    return max(_LEAST, _PER_FEATURE * features_of(shape)[1])


def compare(samples: Tensor, reference: Tensor, *, seed: int = 0) -> Comparison:
    """Compare samples with real images by three distances, beside what two halves of the real images give.

    Arguments:
        samples: (N, C, H, W) in [-1, 1].
        reference: Real images, (M, C, H, W).
        seed: Of the directions, the halves and the folds.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: Shapes differ, or a set has fewer images than :func:`samples_needed` says.

    Example:
        >>> draw = torch.Generator().manual_seed(0)
        >>> found = compare(torch.randn(64, 1, 3, 3, generator=draw), torch.randn(80, 1, 3, 3, generator=draw))
        >>> found.frechet < 3 * found.frechet_floor.high, found.told_apart.low < 0.5
        (True, True)
    """
    if samples.dim() != 4 or samples.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f'"samples" and "reference" must be images of one shape, got {tuple(samples.shape[1:])} and '
            f"{tuple(reference.shape[1:])}; resize one"
        )
    need = samples_needed(samples.shape[1:])
    for name, images in (("samples", samples), ("reference", reference)):
        if len(images) < need:
            raise ValueError(
                f'"{name}" holds {len(images)} images, expected at least {need} of this shape: with fewer, distances '
                f"between distributions show noise; give {need} or more"
            )
    features, _, words = features_of(samples.shape[1:])
    a, b = (in_batches(features, images.float()) for images in (samples, reference))

    def sliced(x: Tensor, y: Tensor) -> float:
        return sliced_wasserstein(x, y, _DIRECTIONS, torch.Generator().manual_seed(seed))

    def draw() -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    return Comparison(
        len(samples),
        len(reference),
        words,
        frechet_distance(a, b),
        split_halves(frechet_distance, b, draw(), splits=20),
        sliced(samples, reference),
        split_halves(sliced, reference, draw(), splits=20),
        two_sample_classifier(samples, reference, draw()),
    )


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of images with their partners, in decibels, float64 (N,).

    Arguments:
        a: Images (N, C, H, W) in [-1, 1]; values outside are clipped.
        b: Their partners, of the same shape.

    Raises:
        ValueError: Shapes differ, or there is no image.

    Example:
        >>> other = torch.tensor([0.2, 0.0])[:, None, None, None].expand(2, 1, 4, 4)
        >>> psnr(torch.zeros(2, 1, 4, 4), other).round().tolist()
        [20.0, inf]
    """
    if a.shape != b.shape or a.dim() != 4 or 0 in a.shape:
        raise ValueError(f'"a" and "b" must be images of one shape, got {tuple(a.shape)} and {tuple(b.shape)}')
    mse = (a.double().clamp(-1, 1) - b.double().clamp(-1, 1)).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / mse)


def _words(floor: Interval) -> str:
    return f"{floor.estimate:.4g} ({_ends(floor)})"


def _ends(interval: Interval) -> str:
    return f"{interval.low:.3g} to {interval.high:.3g}"
