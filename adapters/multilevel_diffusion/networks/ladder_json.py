"""The JSON files of a ladder on disk (:mod:`multilevel_diffusion.networks.store`): written, read and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multilevel_sde.files import is_sealed

__all__ = ["FORMAT", "SHARED", "check_keys", "read_json", "read_record", "to_json"]

FORMAT = 2  # format 1 had no checksum of ladder.json and of the configurations
SHARED = ("schedule", "parameterisation", "image_shape")


def read_record(path: Path) -> dict[str, Any]:
    """Return what a ladder.json says, after its format and its checksum were checked.

    Raises:
        ValueError: It is missing, no ladder.json, of a newer format, or damaged.
    """
    record = read_json(path, ["format"])
    if not isinstance(record["format"], int) or record["format"] < 1:
        raise ValueError(f"{path} has the format {record['format']!r}, expected a number; write it with save_ladder")
    if record["format"] > FORMAT:
        raise ValueError(
            f'"path" holds a ladder of format {record["format"]}, newer than {FORMAT}; update multilevel-sde to read it'
        )
    marked = "sha256" in record or "config_sha256" in str(record.get("levels"))  # as from format 2 on
    if (record["format"] > 1 or marked) and not is_sealed(record):
        raise ValueError(f"{path} is damaged or was changed by hand, its checksum does not fit; copy the ladder again")
    check_keys(record, [*SHARED, "clip", "levels"], path)
    return record


def to_json(values: Mapping[str, Any]) -> bytes:
    """Return the content of a JSON file.

    Example:
        >>> to_json({"format": 2})
        b'{\\n "format": 2\\n}\\n'
    """
    return (json.dumps(values, indent=1) + "\n").encode()


def read_json(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Return the values of a JSON file that must have these keys.

    Raises:
        ValueError: There is no such file, it is not JSON, or a key is missing.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f'"path" has no file {path}; give the folder of a ladder') from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable as JSON ({error}); copy the ladder again") from None
    check_keys(values, keys, path)
    return values


def check_keys(values: Any, keys: Sequence[str], path: Path) -> None:
    """Raise ValueError where values of a file are no mapping with these keys.

    Example:
        >>> check_keys({}, ["format"], Path("ladder.json"))
        Traceback (most recent call last):
        ...
        ValueError: ladder.json has no entry "format"; write it with save_ladder
    """
    for key in keys:
        if not isinstance(values, dict) or key not in values:
            raise ValueError(f'{path} has no entry "{key}"; write it with save_ladder')
