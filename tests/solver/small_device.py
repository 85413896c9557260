"""A device without float64, as Apple's GPUs are: tensors on the host that say they are elsewhere and refuse float64.

Inside `small_device()` every tensor of DEVICE is such a tensor, and making one of float64 is an error.
"""

from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

DEVICE = torch.device("lazy")  # the one kind beside "meta" that every build of torch can name


class OnSmallDevice(torch.Tensor):
    """A tensor that is computed on the host."""

    @staticmethod
    def __new__(cls, inner):
        if inner.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=DEVICE, requires_grad=False
        )
        made.inner = inner
        return made

    def __repr__(self):
        return f"small({self.inner})"

    def tolist(self):
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Makes tensors where they are asked for on DEVICE."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


def _is_small(value):
    return isinstance(value, OnSmallDevice)


def _run(function, args, kwargs):
    from torch.utils._pytree import tree_leaves

    leaves = tree_leaves((args, kwargs))
    small = [leaf for leaf in leaves if _is_small(leaf)]
    wanted = kwargs.get("device")
    if function is torch.ops.aten._to_copy.default or wanted is not None:
        there = torch.device(wanted) == DEVICE if wanted is not None else bool(small)
    else:
        there = bool(small)
        others = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and not _is_small(leaf) and leaf.dim()]
        if small and others and function not in _ACROSS:
            raise RuntimeError(f"{function} got tensors of two devices")
    if function in (torch.ops.aten.copy_.default,):
        there = _is_small(args[0])
    inner = lambda value: value.inner if _is_small(value) else value  # noqa: E731
    plain = {name: value for name, value in kwargs.items() if name != "device" or wanted is None}
    plain = tree_map(inner, plain)
    if wanted is not None:
        plain["device"] = torch.device("cpu") if torch.device(wanted) == DEVICE else wanted
    result = function(*tree_map(inner, args), **plain)
    if function._schema.is_mutable:  # in place: the tensor that was given
        for argument, value in zip(function._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write and _is_small(value):
                return value
        if "out" in kwargs:
            return kwargs["out"]
    return tree_map(lambda value: OnSmallDevice(value) if there and type(value) is torch.Tensor else value, result)


_ACROSS = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}


@contextmanager
def small_device():
    """Inside, DEVICE works and has no float64."""
    with _Factories():
        yield DEVICE
