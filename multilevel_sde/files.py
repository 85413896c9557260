"""Files that appear whole or not at all, and digests of what they hold, so that a damaged one never loads."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

__all__ = ["checksum", "is_sealed", "seal", "write_atomically"]

_SEAL = "sha256"


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path` through a temporary file in the same folder, so that a reader never sees half of it.

    Arguments:
        path: Where to write; the folder is made if it is missing.
        data: The whole content.

    Raises:
        OSError: The folder cannot be written to, or the disk is full; the old file is then untouched.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "new" / "a.txt"
        >>> write_atomically(path, b"whole")
        >>> path.read_bytes(), len(list(path.parent.iterdir()))
        (b'whole', 1)
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def checksum(texts: Iterable[str], tensors: Iterable[Tensor]) -> str:
    """Return the SHA-256 of texts, and of shapes and contents of tensors on the CPU, in their order.

    Example:
        >>> import torch
        >>> checksum(["a"], [torch.ones(2)]) == checksum(["a"], [torch.ones(1, 2)])
        False
    """
    parts = list(tensors)
    content = hashlib.sha256(" ".join([*texts, *[str(tuple(tensor.shape)) for tensor in parts]]).encode())
    for tensor in parts:
        content.update(tensor.numpy().tobytes())
    return content.hexdigest()


def seal(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values of a JSON file with the SHA-256 of them all, whatever the order and layout they are written in.

    Example:
        >>> sealed = seal({"b": [1.0, 2.5], "a": "x"})
        >>> is_sealed(sealed), is_sealed({**sealed, "a": "y"})
        (True, False)
    """
    return {**values, _SEAL: _digest(values)}


def is_sealed(values: Mapping[str, Any]) -> bool:
    """Return whether values read from a JSON file are those that were sealed."""
    return values.get(_SEAL) == _digest({name: value for name, value in values.items() if name != _SEAL})


def _digest(values: Mapping[str, Any]) -> str:
    read = json.loads(json.dumps(values))  # as a reader sees them: lists, and keys that are texts
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()
