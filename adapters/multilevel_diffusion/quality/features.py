"""Distances of images in the features of a network: Inception's FID, a network of your own, random features.

References:
    Heusel et al. 2017 (arXiv 1706.08500): FID.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from multilevel_diffusion.quality.distances import frechet_distance

__all__ = ["RandomFeatures", "fid", "in_batches", "inception_fid"]


def in_batches(features: Callable[[Tensor], Tensor], images: Tensor, batch: int = 256) -> Tensor:
    """Return the features of images (N, d), computed some at a time and without gradients.

    Example:
        >>> in_batches(lambda x: x.flatten(1).mean(1, keepdim=True), torch.ones(5, 3, 4, 4), batch=2).shape
        torch.Size([5, 1])
    """
    with torch.no_grad():
        return torch.cat([features(part).flatten(1) for part in images.split(batch)])


def fid(samples: Tensor, reference: Tensor, features: Callable[[Tensor], Tensor], *, batch: int = 256) -> float:
    """Return the Fréchet distance in the features of a network of your own.

    Arguments:
        samples: Images (N, C, H, W).
        reference: Real images (M, C, H, W).
        features: From images (B, C, H, W) to (B, d), such as a network without its last layer, in evaluation mode.
        batch: Images at a time.

    Raises:
        ValueError: As :func:`frechet_distance`.

    Example:
        >>> images = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> round(fid(images, images + 1, lambda x: x.mean((2, 3))), 4)
        1.0
    """
    return frechet_distance(in_batches(features, samples, batch), in_batches(features, reference, batch))


def inception_fid(samples: Tensor, reference: Tensor, *, metric: Any = None, batch: int = 64) -> float:
    """Return the FID as torchmetrics computes it, by default in the 2048 features of Inception v3.

    Needs `pip install torchmetrics torch-fidelity`. The weights of Inception are downloaded at the first use to torch
    hub's folder; without internet, put the file of the weights on disk and give
    `metric=FrechetInceptionDistance(feature=2048, feature_extractor_weights_path=...)`.

    Arguments:
        samples: Images (N, 1 or 3, H, W) in [-1, 1]; they are clipped and rounded to bytes, and grey ones repeated.
        reference: Real images likewise; FIDs are published for 10,000 to 50,000 of each.
        metric: A `torchmetrics.image.fid.FrechetInceptionDistance`, on the device of the images; it is reset.
        batch: Images at a time.

    Raises:
        ImportError: torchmetrics, torch-fidelity or the weights are missing.
        ValueError: Images of another number of channels.

    Example:
        >>> from types import SimpleNamespace
        >>> seen = []
        >>> fake = SimpleNamespace(reset=seen.clear, update=lambda x, real: seen.append(x), compute=lambda: 1.5)
        >>> inception_fid(torch.zeros(4, 1, 8, 8), torch.ones(4, 1, 8, 8), metric=fake), seen[1].shape, seen[1].max()
        (1.5, torch.Size([4, 3, 8, 8]), tensor(128, dtype=torch.uint8))
    """
    for name, images in (("samples", samples), ("reference", reference)):
        if images.dim() != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f'"{name}" must have shape (N, 1 or 3, H, W), got {tuple(images.shape)}; give images')
    if metric is None:
        metric = _inception(samples.device)
    metric.reset()
    for images, real in ((reference, True), (samples, False)):
        for part in images.split(batch):
            pixels = ((part.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
            metric.update(pixels.expand(-1, 3, -1, -1), real=real)
    return float(metric.compute())


def _inception(device: torch.device) -> Any:
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance

        return FrechetInceptionDistance(feature=2048).to(device)
    except (ModuleNotFoundError, OSError) as error:  # a missing package; weights that cannot be downloaded
        raise ImportError(
            f'"metric" was not given and Inception cannot be loaded ({error}); pip install torchmetrics '
            "torch-fidelity, or give a FrechetInceptionDistance with features of your own"
        ) from None


class RandomFeatures(nn.Module):
    """Features of two convolutional layers with random weights: logarithms of the mean and deviation of the last maps.

    Stands in for a trained network where there is none for the kind of image. The filters of the first layer have mean
    zero, so it sees edges and textures, and neither objects nor colours.

    Arguments:
        channels: Of the images.
        width: Maps of each layer; there are 2 x width features.
        seed: Of the weights.

    Example:
        >>> RandomFeatures(3, width=8)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 16])
    """

    def __init__(self, channels: int, width: int = 16, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        first = torch.randn(width, channels, 3, 3, generator=generator)
        first = first - first.mean((2, 3), keepdim=True)
        second = torch.randn(width, width, 3, 3, generator=generator)
        self.register_buffer("first", first * (2 / first[0].numel()) ** 0.5)
        self.register_buffer("second", second * (2 / second[0].numel()) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (B, 2 width) of images (B, channels, H, W)."""
        for weight in (self.get_buffer("first"), self.get_buffer("second")):
            x = torch.relu(nn.functional.conv2d(x, weight, stride=2))
        return torch.log(torch.cat([x.mean((2, 3)), x.std((2, 3))], 1) + 0.01)
