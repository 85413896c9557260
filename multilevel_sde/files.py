"""Files that appear whole or not at all, and digests of what they hold, so that a damaged one never loads."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

from torch import Tensor

__all__ = [
    "briefly",
    "checksum",
    "is_sealed",
    "made_for_text",
    "read_made_for",
    "read_tensors",
    "seal",
    "write_atomically",
]

_SEAL = "sha256"
_READERS = {"plan": "multilevel_sde.Plan.load", "pilot": "multilevel_sde.Pilot.load"}
_AGAIN = {"plan": "save the plan again", "pilot": "run the pilot again"}


def briefly(error: BaseException) -> str:
    """What an error says in one line of at most 200 characters: that of a damaged file may quote all that it holds.

    Example:
        >>> briefly(ValueError("bad " * 100))[-9:]
        'd bad ...'
    """
    return shorten(str(error), 200, placeholder=" ...")


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path` through a temporary file in the same folder, so that a reader never sees half of it.

    Arguments:
        path: Where to write; the folder is made if it is missing.
        data: The whole content.

    Raises:
        OSError: The folder cannot be written to, or the disk is full; the old file is then untouched. `path` is a
            folder.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "new" / "a.txt"
        >>> write_atomically(path, b"whole")
        >>> path.read_bytes(), len(list(path.parent.iterdir()))
        (b'whole', 1)
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f'"{path}" is a folder; add the name of the file')
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


def read_tensors(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file of this package.

    Arguments:
        path: The file.
        kind: What it is to hold, "plan" or "pilot"; its metadata say "format": "multilevel_sde.KIND".

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or holds something else.

    Example:
        >>> read_tensors("/", "plan")
        Traceback (most recent call last):
        ...
        FileNotFoundError: no plan file at "/", which is a folder; give the file in it
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        folder = ", which is a folder; give the file in it" if Path(path).is_dir() else ""
        raise FileNotFoundError(f'no {kind} file at "{path}"{folder}')
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise ValueError(f'"{path}" is damaged or not a safetensors file ({briefly(error)}); {_AGAIN[kind]}') from None
    found = metadata.get("format", "").removeprefix("multilevel_sde.")
    if found in _READERS and found != kind:
        raise ValueError(f'"{path}" holds a {found}, not a {kind}; read it with {_READERS[found]}')
    if found != kind:
        raise ValueError(f'"{path}" is not a {kind} of multilevel_sde; {_AGAIN[kind]}')
    return tensors, metadata


def made_for_text(made_for: Mapping[str, Any] | None) -> str:
    """Return as JSON what a file was made for, any values that its writer wants to find again.

    Raises:
        ValueError: It is not what JSON can hold.
    """
    try:
        return json.dumps(dict(made_for or {}), sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f'"made_for" must be a mapping that JSON can hold, got {error}') from None


def read_made_for(path: str | os.PathLike[str], kind: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return what a file was made for, empty where it does not say.

    Raises:
        ValueError: It is no JSON object.
    """
    try:
        found = json.loads(metadata.get("made_for", "{}"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f'"{path}" is damaged: what it was made for is no JSON object; {_AGAIN[kind]}')
    return found


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
