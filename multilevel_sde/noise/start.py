"""Starting states from seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from multilevel_sde.noise.brownian import BrownianPath

__all__ = ["seeded_normal"]

_FAR = -float(1 << 30)  # an interval of the path that no solve visits


def seeded_normal(
    seeds: Iterable[int],
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return one standard normal sample per seed, for starting states: independent of a path with the same seed.

    Arguments:
        seeds: One integer per sample.
        shape: Shape of one sample.
        dtype: Dtype of the result.
        device: Where it is computed; the same to rounding on every device.

    Returns:
        Shape (B, *shape); a sample depends on its own seed only.

    Raises:
        TypeError, ValueError: Seeds that are no integers, a shape with negative sizes.

    Example:
        >>> x = seeded_normal([3, 4], (2,))
        >>> bool((seeded_normal([4], (2,)) == x[1:]).all())
        True
    """
    return BrownianPath(seeds, shape=shape, dtype=dtype, device=device)(_FAR, _FAR + 1.0)
