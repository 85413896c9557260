r"""How near a set of samples is to a set of real images: distances between distributions.

All functions take two sets, as images (N, C, H, W) or features (N, d), of which only the distribution matters: the
samples need not be near any path. Each distance has a noise floor, what it gives for two sets of real images
(:func:`~multilevel_diffusion.quality.intervals.split_halves`, or real images in place of the samples), and an interval
(:func:`~multilevel_diffusion.quality.intervals.bootstrap`).

References:
    Heusel et al. 2017 (arXiv 1706.08500): the Fréchet distance; Chong and Forsyth 2020 (arXiv 1911.07023): its bias.
    Rabin et al., "Wasserstein Barycenter and Its Application to Texture Mixing", 2011: sliced Wasserstein.
    Lopez-Paz and Oquab 2017 (arXiv 1610.06545): classifier two-sample tests.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from multilevel_diffusion.quality.intervals import Interval

__all__ = ["frechet_distance", "sliced_wasserstein", "two_sample_classifier"]


def frechet_distance(a: Tensor, b: Tensor) -> float:
    r"""Return the Fréchet distance of the Gaussians with the means m and covariances S of two sets,

    .. math:: |m_a - m_b|^2 + \mathrm{tr}\, S_a + \mathrm{tr}\, S_b - 2\, \mathrm{tr} (S_a^{1/2} S_b S_a^{1/2})^{1/2} .

    It is too large by about a constant over N, which grows with the number of features: compare only distances of the
    same sizes, and with the noise floor of those sizes; take many more samples than features.

    Arguments:
        a: (N, ...), what follows the first dimension is one vector.
        b: (M, ...) of the same shape but for M.

    Raises:
        ValueError: Shapes differ, a set of fewer than two, or numbers that are not finite.

    Example:
        >>> a = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
        >>> round(frechet_distance(a, a), 9), round(frechet_distance(a, a + torch.tensor([3.0, 0.0, 4.0])), 4)
        (0.0, 25.0)
    """
    a, b = _flat(a, b)
    # With (x - mean) / sqrt(N - 1) = Q R, S = R^T R, and the trace of the root is that of R_a R_b^T's singular values.
    roots = []
    for x in (a, b):
        roots.append(torch.linalg.qr((x - x.mean(0)) / (len(x) - 1) ** 0.5, mode="r")[1])
    cross = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    spread = roots[0].square().sum() + roots[1].square().sum() - 2 * cross
    return float((a.mean(0) - b.mean(0)).square().sum() + spread.clamp(min=0.0))


def sliced_wasserstein(a: Tensor, b: Tensor, directions: int, generator: torch.Generator) -> float:
    r"""Return the mean over random unit vectors v of the Wasserstein-1 distance of the projections,

    .. math:: E_v \int_0^1 |F_{v \cdot a}^{-1}(u) - F_{v \cdot b}^{-1}(u)|\, du .

    Arguments:
        a: (N, ...), what follows the first dimension is one vector.
        b: (M, ...) of the same shape but for M; M may differ from N.
        directions: Number of vectors v.
        generator: Draws them; the same state gives the same vectors.

    Raises:
        ValueError: No directions, shapes that differ, a set of fewer than two, or numbers that are not finite.

    Example:
        >>> a = torch.tensor([[0.0], [1.0], [3.0]])
        >>> sliced_wasserstein(a, a + 2, 4, torch.Generator().manual_seed(0))
        2.0
    """
    if directions < 1:
        raise ValueError(f'"directions" is {directions}, expected at least 1; take 100 or more')
    a, b = _flat(a, b)
    v = torch.randn(a.shape[1], directions, generator=generator, dtype=a.dtype)
    v = (v / v.norm(dim=0)).to(a.device)
    # Both quantile functions are constant between consecutive multiples of 1/N and 1/M.
    n, m = len(a), len(b)
    ends = torch.cat([torch.arange(n + 1) * m, torch.arange(1, m) * n]).unique().to(a.device)  # in units of 1 / (N M)
    left, width = ends[:-1], ends.diff().to(a.dtype) / (n * m)
    gap = (a @ v).sort(0).values[left // m] - (b @ v).sort(0).values[left // n]
    return float((width @ gap.abs()).mean())


def two_sample_classifier(
    a: Tensor,
    b: Tensor,
    generator: torch.Generator,
    *,
    classifier: Any = None,
    folds: int = 5,
    level: float = 0.95,
) -> Interval:
    """Return how often a classifier tells the sets apart on samples that it has not seen: 1/2 if they are alike.

    The larger set is reduced to the size of the other one, and the accuracy is that of cross-validation. The interval
    is Wilson's for as many independent trials as there are samples; those of one fold share a classifier, which it
    leaves out.

    Arguments:
        a: (N, ...), what follows the first dimension is one vector. No sample may occur twice.
        b: (M, ...) of the same shape but for M.
        generator: Draws the subsets and the folds.
        classifier: One of scikit-learn; by default a support vector machine with a Gaussian kernel, which on a few
            hundred images sees more than a small network and a forest (it is fast, and has no seed).
        folds: Parts of the cross-validation.
        level: Of the interval.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: Shapes differ, a set smaller than `folds`, or numbers that are not finite.

    Example:
        >>> a = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        >>> two_sample_classifier(a, a + 9, torch.Generator().manual_seed(0)).estimate
        1.0
    """
    try:
        from sklearn.model_selection import StratifiedKFold, cross_val_predict
        from sklearn.svm import SVC
    except ImportError:
        raise ImportError(
            "two_sample_classifier needs scikit-learn; install it with: pip install scikit-learn"
        ) from None
    from scipy.stats import binomtest

    a, b = _flat(a, b)
    size = min(len(a), len(b))
    if not 2 <= folds <= size:
        raise ValueError(f'"folds" is {folds}, expected from 2 to the size of the smaller set, {size}; change it')
    parts = [x.cpu()[torch.randperm(len(x), generator=generator)[:size]] for x in (a, b)]
    seed = int(torch.randint(2**31, (), generator=generator))
    classifier = SVC(C=10.0) if classifier is None else classifier
    points, labels = torch.cat(parts).numpy(), np.repeat([0, 1], size)
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    told: Any = cross_val_predict(classifier, points, labels, cv=split)
    right = int((told == labels).sum())
    ends = binomtest(right, 2 * size).proportion_ci(level, method="wilson")
    accuracy = right / (2 * size)
    return Interval(accuracy, float(ends.low), float(ends.high), accuracy)


def _flat(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Check two sets and return them as vectors in float64."""
    if a.dim() < 2 or a.shape[1:] != b.shape[1:]:
        raise ValueError(
            f'"a" and "b" must be sets of vectors or images of one shape, got {tuple(a.shape)} and {tuple(b.shape)}; '
            "resize one, or compute features"
        )
    for name, x in (("a", a), ("b", b)):
        if len(x) < 2 or not bool(torch.isfinite(x).all()):
            raise ValueError(f'"{name}" must hold at least two samples of finite numbers, got {len(x)}; check it')
    return a.detach().flatten(1).double(), b.detach().flatten(1).double()
