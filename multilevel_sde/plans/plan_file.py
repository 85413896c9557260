"""The file of a plan: safetensors with a format version, a checksum, and what the plan was made for.

The last is any JSON values that the writer wants to find again, such as a digest of the ladder; the core gives them no
meaning. Nothing is unpickled.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from multilevel_sde.files import checksum, made_for_text, read_made_for, read_tensors, write_atomically
from multilevel_sde.plans.plan import Plan
from multilevel_sde.plans.recall import Recall
from multilevel_sde.times import as_times

__all__ = ["StoredPlan", "read_plan", "write_plan"]

_VERSION = 3
_READABLE = (1, 2, 3)  # version 1 knew no recall, version 2 not what the plan was made for
_ALWAYS = {"hits": torch.bool, "weights": torch.float64}
_REMEMBERED = {"recall_places": torch.int64, "recall_coefficients": torch.float64}
_DTYPES = _ALWAYS | _REMEMBERED | {"times": torch.float64}


class StoredPlan(NamedTuple):
    """What a file holds: the plan, its times or None, and what it was made for (empty where that is not known)."""

    plan: Plan
    times: Tensor | None
    made_for: dict[str, Any]


def write_plan(
    plan: Plan, path: str | os.PathLike[str], times: Tensor | None, made_for: Mapping[str, Any] | None = None
) -> None:
    """Write a plan, the grid that it is for, and what it was made for, atomically.

    Raises:
        ValueError: Another number of times; `made_for` is not what JSON can hold.
        ModuleNotFoundError: safetensors is not installed.
        OSError: The file cannot be written.
    """
    from safetensors.torch import save

    tensors = {"hits": plan.hits, "weights": plan.weights}
    if plan.recall is not None:
        tensors |= {"recall_places": plan.recall.places, "recall_coefficients": plan.recall.coefficients}
    if times is not None:
        if len(times) != plan.steps + 1:
            raise ValueError(f'"times" must be the {plan.steps + 1} times of the plan, got {len(times)}')
        tensors["times"] = as_times(times).detach().to("cpu", torch.float64).contiguous()
    metadata = {"format": "multilevel_sde.plan", "version": str(_VERSION), "truncated": str(int(plan.truncated))}
    metadata["made_for"] = made_for_text(made_for)
    metadata["sha256"] = _checksum(tensors, metadata)
    write_atomically(path, save(tensors, metadata))


def read_plan(path: str | os.PathLike[str]) -> StoredPlan:
    """Return the plan in a file, its times, None where none are in it, and what it was made for.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, not a plan, or of a version that is not read.
    """
    tensors, metadata = read_tensors(path, "plan")
    if set(tensors) - {"times"} not in (set(_ALWAYS), {*_ALWAYS, *_REMEMBERED}):
        raise ValueError(f'"{path}" is not a plan of multilevel_sde; save the plan again')
    version = metadata.get("version", "")
    if not version.isdecimal() or int(version) not in _READABLE:
        raise ValueError(
            f'"{path}" has plan format version {version!r}, this release reads versions {_READABLE}; '
            "upgrade multilevel-sde or save the plan again"
        )
    if any(tensor.dtype != _DTYPES[name] for name, tensor in tensors.items()):
        raise ValueError(f'"{path}" holds hits or weights of another dtype; save the plan again')
    if metadata.get("sha256") != _checksum(tensors, metadata):
        raise ValueError(f'"{path}" is damaged, its checksum does not fit; save the plan again')
    truncated = metadata.get("truncated") == "1"
    plan = Plan(tensors["hits"], tensors["weights"], truncated=truncated, recall=_recall(path, tensors))
    times = as_times(tensors["times"]) if "times" in tensors else None
    if times is not None and len(times) != plan.steps + 1:
        raise ValueError(f'"{path}" holds {len(times)} times for {plan.steps} steps; save the plan again')
    return StoredPlan(plan, times, read_made_for(path, "plan", metadata))


def _recall(path: str | os.PathLike[str], tensors: dict[str, Tensor]) -> Recall | None:
    if "recall_places" not in tensors:
        return None
    places, values = tensors["recall_places"], tensors["recall_coefficients"]
    if values.dim() != 1 or places.shape != (len(values), 3):
        raise ValueError(f'"{path}" does not hold a recall: its tables do not fit; save the plan again')
    return Recall((*place, value) for place, value in zip(places.tolist(), values.tolist(), strict=True))


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    texts = [metadata.get("truncated", ""), *([metadata["made_for"]] if "made_for" in metadata else [])]
    return checksum(texts, [tensors[name] for name in _DTYPES if name in tensors])
