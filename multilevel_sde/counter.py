"""Counter-based normal numbers: the value depends on (seed, node, element) only, not on what was drawn before.

That is what makes a sample's noise the same whatever the batch, its split, its order or the step size, with no
generator state to keep and one vectorised computation for all samples. A 64-bit counter goes through the finaliser of
SplitMix64 and Box-Muller turns its two halves into two normals.

References:
    Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014 (SplitMix64);
    Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (counter-based generators).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["counter_normals", "hash_seeds"]

_GAMMA = 0x9E3779B97F4A7C15
_M1 = 0xBF58476D1CE4E5B9
_M2 = 0x94D049BB133111EB


def _signed(value: int) -> int:
    """Two's complement of a 64-bit word, since torch multiplies int64 modulo 2^64."""
    value &= 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >= 1 << 63 else value


def _mix_(z: Tensor) -> Tensor:
    """SplitMix64's finaliser, in place; the masks turn arithmetic into logical shifts."""
    z ^= (z >> 30) & 0x3FFFFFFFF
    z *= _signed(_M1)
    z ^= (z >> 27) & 0x1FFFFFFFFF
    z *= _signed(_M2)
    z ^= (z >> 31) & 0x1FFFFFFFF
    return z


def hash_seeds(seeds: list[int], device: torch.device | str = "cpu") -> Tensor:
    """Return one well-mixed 64-bit key per seed, int64 (B,); seeds are taken modulo 2^64."""
    return _mix_(torch.tensor([_signed(seed + _GAMMA) for seed in seeds], dtype=torch.int64, device=device))


def counter_normals(keys: Tensor, nodes: Tensor, size: int) -> Tensor:
    """Independent standard normals for every (node, key, element).

    Arguments:
        keys: int64 (B,), from :func:`hash_seeds`.
        nodes: int64 (M,), any distinct numbers.
        size: Number of elements of one sample.

    Returns:
        float32 (M, B, size); each row depends on its node and key only. The largest value is sqrt(66 ln 2) = 6.8.

    Example:
        >>> keys = hash_seeds([7, 8, 9])
        >>> z = counter_normals(keys, torch.arange(4), 5)
        >>> z.shape
        torch.Size([4, 3, 5])
        >>> bool((counter_normals(keys[1:2], torch.tensor([2]), 5) == z[2, 1]).all())
        True
    """
    half = (size + 1) // 2
    streams = _mix_(nodes[:, None] * _signed(_GAMMA) + keys)
    elements = _mix_(torch.arange(1, half + 1, device=keys.device) * _signed(_GAMMA))
    z = _mix_(streams[..., None] + elements)
    radius = ((z >> 32) & 0xFFFFFFFF).to(torch.float32).add_(0.5).mul_(2.0**-32)
    radius.log_().mul_(-2.0).clamp_min_(0.0).sqrt_()
    angle = z.bitwise_and_(0xFFFFFFFF).to(torch.float32).mul_(2 * math.pi * 2.0**-32)
    normals = torch.empty(*z.shape[:2], 2 * half, device=keys.device)
    torch.mul(torch.cos(angle), radius, out=normals[..., :half])
    torch.mul(angle.sin_(), radius, out=normals[..., half:])
    return normals[..., :size]
