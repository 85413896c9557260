"""Pilots on disk: safetensors with the small numbers, and what the pilot is of, as JSON in its metadata.

The last is any JSON values that the writer wants to find again, such as a digest of the ladder; the core gives them no
meaning.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from multilevel_sde.files import checksum, made_for_text, read_made_for, read_tensors
from multilevel_sde.pilots.answers import Calibration, Form, Single

__all__ = ["decode", "encode", "read_origin"]

_VERSION = 5
_TENSORS = ("times", "fine_times", "coefficients", "gram", "variances")
_TUPLES = ("costs", "seconds", "kurtosis", "random_levels")
_MAPPINGS = ("multistep", "other_multistep", "other_grids")  # of steps to tensors
_SCALARS = ("unit", "cost", "samples", "disagreement")


def encode(fields: Mapping[str, Any], made_for: Mapping[str, Any] | None = None) -> bytes:
    """Return the fields of a pilot as the content of a file; the Gram matrix is kept in float32.

    Arguments:
        fields: The attributes of :class:`multilevel_sde.Pilot` by name.
        made_for: What it is of, as JSON values.

    Raises:
        ValueError: `made_for` is not what JSON can hold.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {name: fields[name].cpu().contiguous() for name in _TENSORS}
    tensors["gram"] = tensors["gram"].float()
    for name in _MAPPINGS:
        tensors |= {f"{name}_{steps}": table.cpu().contiguous() for steps, table in fields[name].items()}
    values = {name: fields[name] for name in (*_TUPLES, *_SCALARS, "singles")}
    values["calibration"] = [[one.steps, one.form.value, *one[2:]] for one in fields["calibration"]]
    written = json.dumps(values)
    metadata = {"format": "multilevel_sde.pilot", "version": str(_VERSION), "values": written}
    if made_for:
        metadata["made_for"] = made_for_text(made_for)
    return save(tensors, metadata | {"sha256": _checksum(tensors, metadata)})


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    names = sorted(tensors)
    texts = [metadata.get("values", ""), *([metadata["made_for"]] if "made_for" in metadata else [])]
    return checksum([*texts, *[f"{name} {tensors[name].dtype}" for name in names]], [tensors[name] for name in names])


def decode(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the fields that a file holds.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, not a pilot, or of another version.
    """
    tensors, metadata = _read(path)
    try:
        values = json.loads(metadata["values"])
        fields: dict[str, Any] = {name: tensors[name].double() for name in _TENSORS}
        fields |= {name: tuple(values[name]) for name in _TUPLES} | {name: values[name] for name in _SCALARS}
        for kind in _MAPPINGS:
            tables = {name: value for name, value in tensors.items() if name.startswith(f"{kind}_")}
            fields[kind] = {int(name.removeprefix(f"{kind}_")): table.double() for name, table in tables.items()}
        fields["singles"] = tuple(
            Single(int(k), int(n), bool(m), float(e), float(tail), bool(other))
            for k, n, m, e, tail, other in values["singles"]
        )
        fields["calibration"] = tuple(
            Calibration(int(steps), Form(form), *map(float, rest)) for steps, form, *rest in values["calibration"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'"{path}" is damaged ({error}); run the pilot again') from None
    _check(path, fields)
    return fields


def read_origin(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what a pilot is of, empty where its file does not say.

    Raises:
        FileNotFoundError, ValueError: As :func:`decode`.
    """
    return read_made_for(path, "pilot", _read(path)[1])


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a pilot of this version whose checksum fits."""
    tensors, metadata = read_tensors(path, "pilot")
    if metadata.get("version") != str(_VERSION):
        raise ValueError(f'"{path}" is not a pilot of version {_VERSION}; run the pilot again')
    if metadata.get("sha256") != _checksum(tensors, metadata):
        raise ValueError(f'"{path}" is damaged, its checksum does not fit; run the pilot again')
    return tensors, metadata


def _check(path: str | os.PathLike[str], fields: Mapping[str, Any]) -> None:
    steps, levels = len(fields["coefficients"]), len(fields["costs"])
    whole, part = divmod(steps, max(1, len(fields["times"]) - 1))
    shapes = {
        "coefficients": (steps,),
        "gram": (steps * (levels - 1),) * 2,
        "variances": (steps, levels - 1),
    }
    wrong = [name for name, shape in shapes.items() if tuple(fields[name].shape) != shape]
    wrong += [
        name
        for name, times in zip(_MAPPINGS, (0, 0, 1), strict=True)
        for size, table in fields[name].items()
        if len(table) != size + times or not bool(torch.isfinite(table).all())
    ]
    wrong += ["times"] if part or not whole else []
    wrong += [name for name in _TENSORS if not bool(torch.isfinite(fields[name]).all())]
    if wrong:
        raise ValueError(f'"{path}" is damaged (its {wrong[0]} does not fit the rest); run the pilot again')
