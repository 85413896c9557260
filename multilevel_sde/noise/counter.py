"""Counter-based normal numbers: the value depends on (seed, node, element) only, not on what was drawn before.

That is what makes a sample's noise the same whatever the batch, its split, its order or the step size, with no
generator state to keep and one vectorised computation for all samples. A well-mixed key of (seed, node) and one of the
element, joined by exclusive or, go through the finaliser of SplitMix64; its first shift is left out, being linear in
exclusive ors of keys that have been through it. Box-Muller turns two words of 32 bits into two normals.

References:
    Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014 (SplitMix64);
    Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (counter-based generators).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["CounterNormals", "hash_seeds"]

_GAMMA = 0x9E3779B97F4A7C15
_M1 = 0xBF58476D1CE4E5B9
_M2 = 0x94D049BB133111EB
_BLOCK = 1 << 16  # pairs of normals computed at a time on a CPU, so that what lies between stays in its cache
_KEPT = 1 << 22  # pairs of a sample on a CPU up to which the keys of its elements are kept: they take half its memory


def _signed(value: int) -> int:
    """Two's complement of a 64-bit word, since torch multiplies int64 modulo 2^64."""
    value &= 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >= 1 << 63 else value


def _mix_(z: Tensor) -> Tensor:
    """SplitMix64's finaliser, in place."""
    for bits, factor in ((30, _M1), (27, _M2), (31, 1)):
        shifted = torch.bitwise_right_shift(z, bits).bitwise_and_((1 << (64 - bits)) - 1)  # no sign is dragged along
        z.bitwise_xor_(shifted).mul_(_signed(factor))
    return z


def hash_seeds(seeds: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Return one well-mixed 64-bit key per seed, int64 (B,); seeds are taken modulo 2^64.

    A range takes no time per seed in Python.

    Example:
        >>> bool((hash_seeds(range(3, 9, 2)) == hash_seeds([3, 5, 7])).all())
        True
    """
    if isinstance(seeds, range) and max(abs(seeds.start), abs(seeds.stop)) < 1 << 62:
        counters = torch.arange(seeds.start, seeds.stop, seeds.step, dtype=torch.int64).add_(_signed(_GAMMA))
    else:
        counters = torch.tensor([_signed(seed + _GAMMA) for seed in seeds], dtype=torch.int64)
    return _mix_(counters.to(device))


class CounterNormals:
    """Independent normals for every (node, key, element).

    Arguments:
        keys: int64 (B,), from :func:`hash_seeds`.
        size: Number of elements of one sample.

    Example:
        >>> keys = hash_seeds([7, 8, 9])
        >>> z = CounterNormals(keys, 5)(torch.arange(4), torch.tensor([1.0, 1.0, 0.5, 0.5]))
        >>> z.shape
        torch.Size([4, 3, 5])
        >>> bool((CounterNormals(keys[1:2], 5)(2, 0.5) == z[2, 1]).all())
        True
    """

    def __init__(self, keys: Tensor, size: int):
        self._keys, self._size, self._half = keys, size, (size + 1) // 2
        self._blocked = keys.device.type == "cpu"
        kept = not self._blocked or self._half <= _KEPT
        self._elements = self._element_keys(0, self._half) if kept else None
        self._scratch = torch.empty(0, dtype=torch.int64, device=keys.device)
        self._rooms: dict[tuple[int, int], tuple[Tensor, ...]] = {}

    def __call__(self, nodes: Tensor | int, scales: Tensor | float, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return (M, B, size) for distinct nodes, int64 (M,); each row depends on its node, scale and key only.

        `scales` are the standard deviations, (M,), of any sign; the largest value is sqrt(62 ln 2) = 6.56 of them. One
        node and its scale may be numbers, which need not be copied to a GPU. The normals are of float32, and scaled in
        `dtype`.
        """
        keys, device = self._keys, self._keys.device
        if isinstance(nodes, Tensor):
            counters = (nodes * _signed(_GAMMA)).to(device, non_blocking=True)
            streams = _mix_(counters[:, None] + keys).flatten()
            scales = torch.as_tensor(scales).to(device, dtype, non_blocking=True)[:, None]
        else:
            streams = _mix_(keys + _signed(nodes * _GAMMA))
            scales = keys.new_full((1, 1), float(scales), dtype=dtype)
        factors = scales if dtype is torch.float32 else torch.ones_like(scales, dtype=torch.float32)
        factors = factors.repeat_interleave(len(keys), 0)
        blocks = max(1, -(-len(streams) * self._half // _BLOCK)) if self._blocked else 1
        rows = -(-len(streams) // blocks)
        columns = max(1, min(self._half, _BLOCK) if self._blocked else self._half)  # a sample may be empty
        normals = torch.empty(len(streams), self._size, dtype=torch.float32, device=device)
        for block in zip(streams.split(rows), factors.split(rows), normals.split(rows), strict=True):
            for first in range(0, self._half, columns):
                self._fill(*block, first, min(first + columns, self._half))
        normals = normals.view(len(scales), len(keys), self._size)
        return normals if dtype is torch.float32 else scales[..., None] * normals

    def _element_keys(self, first: int, last: int) -> Tensor:
        counters = torch.arange(first + 1, last + 1, dtype=torch.int64, device=self._keys.device)
        return _mix_(counters.mul_(_signed(_GAMMA)))

    def _fill(self, streams: Tensor, factors: Tensor, out: Tensor, first: int, last: int) -> None:
        """Compute the pairs from `first` to `last` of some streams: element `first` and that half a sample on, etc."""
        elements = self._element_keys(first, last) if self._elements is None else self._elements[first:last]
        z, shifted, word, radius, angle, cosine = self._room(len(streams), last - first)
        torch.bitwise_xor(streams[:, None], elements, out=z).mul_(_signed(_M1))
        # Shifts drag the sign along: here that makes two words of 2^64 meet, below it is above the bits that are used.
        z.bitwise_xor_(torch.bitwise_right_shift(z, 27, out=shifted)).mul_(_signed(_M2))
        # The angle is made of the high bits, the radius of the low ones: odd numbers below 0 are minus the uniforms in
        # (0, 1), in units of 2^-31.
        torch.bitwise_right_shift(z, 31, out=shifted)
        angle.copy_(word.copy_(shifted)).mul_(math.pi * 2.0**-31)
        word.copy_(z.bitwise_xor_(shifted)).bitwise_or_(-0x7FFFFFFF)
        radius.copy_(word).mul_(-(2.0**-31)).log_().mul_(-2.0).sqrt_().mul_(factors)
        torch.mul(torch.cos(angle, out=cosine), radius, out=out[:, first:last])
        second = min(last, self._size - self._half)  # the last pair of an odd size is cut
        sine = angle.sin_()[:, : second - first]
        torch.mul(sine, radius[:, : second - first], out=out[:, self._half + first : self._half + second])

    def _room(self, rows: int, columns: int) -> tuple[Tensor, ...]:
        """Return memory for a block of pairs, kept from call to call, as new memory costs page faults."""
        pairs, shape = rows * columns, (rows, columns)
        if len(self._scratch) < 3 * pairs:
            self._scratch = torch.empty(3 * pairs, dtype=torch.int64, device=self._keys.device)
            self._rooms.clear()
        if shape not in self._rooms:
            z, shifted, rest = self._scratch[: 3 * pairs].view(3, *shape).unbind(0)
            word, angle = rest.view(torch.int32).view(2, *shape).unbind(0)
            radius, cosine = (part.view(torch.float32).view(2, *shape)[0] for part in (z, shifted))
            self._rooms[shape] = z, shifted, word, radius, angle.view(torch.float32), cosine
        return self._rooms[shape]
