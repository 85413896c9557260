"""How much memory a call needs: the largest sum of the tensors that are alive in it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["peak_bytes"]


class _Live(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, while they are alive."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._seen(value.untyped_storage())
        return result

    def _seen(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def peak_bytes(call: Callable[[], Any]) -> int:
    """Return the most bytes of tensors that a call holds at once, beside those that were there before.

    Example:
        >>> x = torch.ones(1000)
        >>> 8000 <= peak_bytes(lambda: (x + 1) * 2) <= 12000
        True
    """
    with _Live() as live:
        result = call()
    del result
    return live.peak
