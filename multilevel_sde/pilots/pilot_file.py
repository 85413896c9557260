"""Pilots on disk: safetensors with the small numbers as JSON in its metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multilevel_sde.files import checksum
from multilevel_sde.pilots.answers import Calibration, Form, Single

__all__ = ["decode", "encode"]

_FORMAT, _VERSION = "multilevel_sde.pilot", 4
_TENSORS = ("times", "fine_times", "coefficients", "gram", "variances")
_TUPLES = ("costs", "seconds", "kurtosis", "random_levels")
_SCALARS = ("unit", "cost", "samples", "disagreement")


def encode(fields: Mapping[str, Any]) -> bytes:
    """Return the fields of a pilot as the content of a file; the Gram matrix is kept in float32.

    Arguments:
        fields: The attributes of :class:`multilevel_sde.Pilot` by name.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {name: fields[name].cpu().contiguous() for name in _TENSORS}
    tensors["gram"] = tensors["gram"].float()
    tensors |= {f"multistep_{steps}": table.cpu().contiguous() for steps, table in fields["multistep"].items()}
    values = {name: fields[name] for name in (*_TUPLES, *_SCALARS, "singles")}
    values["calibration"] = [[one.steps, one.form.value, *one[2:]] for one in fields["calibration"]]
    written = json.dumps(values)
    metadata = {"format": _FORMAT, "version": str(_VERSION), "values": written, "sha256": _checksum(tensors, written)}
    return save(tensors, metadata)


def _checksum(tensors: Mapping[str, Tensor], values: str) -> str:
    names = sorted(tensors)
    return checksum([values, *[f"{name} {tensors[name].dtype}" for name in names]], [tensors[name] for name in names])


def decode(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the fields that a file holds.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, not a pilot, or of another version.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f'no pilot file at "{path}"')
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        if metadata.get("format") != _FORMAT or metadata.get("version") != str(_VERSION):
            raise ValueError(f'"{path}" is not a pilot of version {_VERSION}; run the pilot again')
        if metadata.get("sha256") != _checksum(tensors, metadata["values"]):
            raise ValueError(f'"{path}" is damaged, its checksum does not fit; run the pilot again')
        values = json.loads(metadata["values"])
        fields: dict[str, Any] = {name: tensors[name].double() for name in _TENSORS}
        fields |= {name: tuple(values[name]) for name in _TUPLES} | {name: values[name] for name in _SCALARS}
        tables = {name: value for name, value in tensors.items() if name.startswith("multistep_")}
        fields["multistep"] = {int(name.removeprefix("multistep_")): table.double() for name, table in tables.items()}
        fields["singles"] = tuple(
            Single(int(k), int(n), bool(m), float(e), float(tail)) for k, n, m, e, tail in values["singles"]
        )
        fields["calibration"] = tuple(
            Calibration(int(steps), Form(form), *map(float, rest)) for steps, form, *rest in values["calibration"]
        )
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError) and str(path) in str(error):
            raise
        raise ValueError(f'"{path}" is damaged ({error}); run the pilot again') from None
    _check(path, fields)
    return fields


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
        "multistep"
        for size, table in fields["multistep"].items()
        if len(table) != size or not bool(torch.isfinite(table).all())
    ]
    wrong += ["times"] if part or not whole else []
    wrong += [name for name in _TENSORS if not bool(torch.isfinite(fields[name]).all())]
    if wrong:
        raise ValueError(f'"{path}" is damaged (its {wrong[0]} does not fit the rest); run the pilot again')
