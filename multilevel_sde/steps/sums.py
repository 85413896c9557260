"""Sums of states: in place where nobody else may look, and in float32 where the numbers have 16 bits."""

from __future__ import annotations

import torch
from torch import Tensor

# Whether a transform of torch.func (grad, vjp, jvp, vmap) is at work; asked at every step, so not behind another call.
from torch._C import _are_functorch_transforms_active as transformed

__all__ = ["HALF", "added", "at_least_float32", "transformed"]

HALF = frozenset((torch.float16, torch.bfloat16))  # sums of these are formed in float32, and rounded once


def added(total: Tensor, value: Tensor, factor: float = 1.0) -> Tensor:
    """Return total + factor value, in the memory of `total`, which must be the caller's own.

    A transform of torch.func forbids that where it watches `value` alone, so there the sum is a new tensor.

    Example:
        >>> added(torch.ones(2), torch.ones(2), 0.5)
        tensor([1.5000, 1.5000])
    """
    if transformed():
        return torch.add(total, value, alpha=factor)
    return total.add_(value, alpha=factor)


def at_least_float32(state: Tensor) -> Tensor:
    """Return the state, in float32 if it has 16 bits.

    Example:
        >>> at_least_float32(torch.ones(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return state.float() if state.dtype in HALF else state
