"""Digests of what objects hold, so that the same networks are known again and others are told from them."""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["as_bytes", "fingerprint"]


def as_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor's elements in order, without a copy where they lie so on the CPU already.

    Example:
        >>> bytes(as_bytes(torch.tensor([1, 2], dtype=torch.uint8)))
        b'\\x01\\x02'
    """
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def fingerprint(value: Any) -> str:
    """Return the SHA-256 of the tensors, modules, numbers and texts that an object holds, directly or inside others.

    Functions count by their names, what they close over, and the modules and tensors that they name; their code is not
    looked at. Modules count by their weights and buffers. What has no content counts by the name of its type. The order
    of a mapping's keys does not matter.

    Arguments:
        value: Anything: a callable, a module, a sequence of them.

    Example:
        >>> fingerprint(lambda x: x + 1) == fingerprint(lambda x: x + 2), fingerprint([1.0]) == fingerprint([2.0])
        (True, False)
    """
    content = hashlib.sha256()
    for part in _parts(value, {}):
        content.update(b"\0")
        content.update(part)
    return content.hexdigest()


def _parts(value: Any, seen: dict[int, Any]) -> Iterator[bytes | memoryview]:
    """What an object holds, in a fixed order; an object that was met before is not entered again."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype | torch.device):
        yield repr(value).encode()
        return
    if id(value) in seen:
        yield b"again"
        return
    seen[id(value)] = value  # kept, so that no other object takes its place in memory
    if isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        yield as_bytes(value)
        return
    yield _name(value).encode()
    for name, inner in _inside(value):
        yield name.encode()
        yield from _parts(inner, seen)


def _inside(value: Any) -> Iterator[tuple[str, Any]]:
    """The named things that an object holds."""
    if isinstance(value, nn.Module):
        yield from value.state_dict().items()
    elif isinstance(value, functools.partial):
        yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
    elif isinstance(value, types.MethodType):
        yield from (("self", value.__self__), ("func", value.__func__))
    elif isinstance(value, types.FunctionType):
        yield from zip(value.__code__.co_freevars, _cells(value), strict=True)
        yield from (("defaults", value.__defaults__), ("keywords", value.__kwdefaults__))
        named = ((name, value.__globals__.get(name)) for name in sorted(value.__code__.co_names))
        yield from ((name, inner) for name, inner in named if isinstance(inner, nn.Module | Tensor))
    elif isinstance(value, Mapping):
        yield from sorted(((str(key), inner) for key, inner in value.items()), key=lambda item: item[0])
    elif isinstance(value, list | tuple | set | frozenset):
        ordered = value if isinstance(value, list | tuple) else sorted(value, key=repr)
        yield from ((str(index), inner) for index, inner in enumerate(ordered))
    elif not isinstance(value, type | types.ModuleType):
        held = getattr(value, "__dict__", {}).items()
        cached = [name for name, _ in held if isinstance(getattr(type(value), name, None), functools.cached_property)]
        yield from sorted(((name, inner) for name, inner in held if name not in cached), key=lambda item: item[0])
        slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()) if name != "__dict__"]
        yield from ((name, getattr(value, name)) for name in sorted(set(slots)) if hasattr(value, name))


def _cells(function: types.FunctionType) -> list[Any]:
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # a name that is bound later
            found.append(None)
    return found


def _name(value: Any) -> str:
    named = value if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType) else type(value)
    return f"{named.__module__}.{named.__qualname__}"
