"""The buffer in which the weights of offloaded levels take turns (:mod:`multilevel_sde.devices.offload`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from multilevel_sde.ladder import Ladder

__all__ = ["Weights", "checked_weights", "weight_bytes"]

_ALIGNMENT = 256  # bytes, what matrix products on a GPU like best


class Weights:
    """The weights of one level, outside and in the slot."""

    def __init__(self, tensors: dict[str, Tensor], slot: Tensor, file: Path | None):
        self.bytes, self.file = weight_bytes(tensors), file
        places = _views(tensors, slot)
        self.inside = {name: places[id(tensor)] for name, tensor in tensors.items()}
        self._pairs = [(tensor, places[id(tensor)]) for tensor in _distinct(tensors)]
        self._outside: list[Tensor] = []
        if file is not None:
            self.detach()
        else:
            pinned = slot.device.type == "cuda"
            host = torch.empty(self.bytes, dtype=torch.uint8, pin_memory=pinned)
            for tensor, place in zip(_distinct(tensors), _views(tensors, host).values(), strict=True):
                self._outside.append(place.copy_(tensor.detach()))
                tensor.data = tensor.data.new_empty(0, device=slot.device)  # frees it: there are never two copies

    def attach(self) -> None:
        """Let the module compute with what is in the slot."""
        for tensor, place in self._pairs:
            tensor.data = place

    def detach(self) -> None:
        """Take the weights from the module."""
        for tensor, place in self._pairs:
            tensor.data = place.new_empty(0)

    def fill(self) -> None:
        """Copy the weights into the slot."""
        if self.file is None:
            for (_, place), value in zip(self._pairs, self._outside, strict=True):
                place.copy_(value, non_blocking=True)
        else:
            for name, value in _read(self.file).items():
                if name in self.inside:
                    self.inside[name].copy_(value)


def _distinct(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Return every tensor once: some weights have two names."""
    return list({id(tensor): tensor for tensor in tensors.values()}.values())


def _extent(tensor: Tensor) -> int:
    return -(-tensor.numel() * tensor.element_size() // _ALIGNMENT) * _ALIGNMENT


def weight_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return how much of a buffer these weights need."""
    return sum(map(_extent, _distinct(tensors)))


def _views(tensors: Mapping[str, Tensor], buffer: Tensor) -> dict[int, Tensor]:
    """Lay tensors out in a buffer, with their own strides: a convolution may want its channels last."""
    views, start = {}, 0
    for tensor in _distinct(tensors):
        strides = torch.empty_like(tensor, device="meta").stride()
        part = buffer[start : start + tensor.numel() * tensor.element_size()]
        views[id(tensor)] = part.view(tensor.dtype).as_strided(tensor.shape, strides)
        start += _extent(tensor)
    return views


def _read(path: Path) -> dict[str, Tensor]:
    """Map the tensors of a safetensors file into memory; they are read when they are copied."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)


def checked_weights(
    ladder: Ladder, modules: Mapping[int, nn.Module], files: Mapping[int, Path]
) -> dict[int, dict[str, Tensor]]:
    """Return the named weights of every level that is offloaded."""
    if not modules or any(level not in range(len(ladder)) for level in modules):
        raise ValueError(
            f'"modules" must have indices within 0..{len(ladder) - 1} as keys, got {list(modules)}; for example '
            "{1: network}"
        )
    if set(files) - set(modules):
        raise ValueError(f'"files" has the keys {sorted(set(files) - set(modules))}, which "modules" has not')
    found: dict[int, dict[str, Tensor]] = {}
    owner: dict[int, int] = {}
    for level, module in modules.items():
        if not isinstance(module, nn.Module):
            raise TypeError(f'"modules[{level}]" must be a torch.nn.Module, got {type(module).__name__}')
        state = module.state_dict(keep_vars=True)
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        if level in files:
            _check_file(level, tensors, files[level])
        if not tensors:
            raise ValueError(f'"modules[{level}]" has no weights to offload; leave the level out')
        for name, tensor in tensors.items():
            if tensor.requires_grad:
                raise ValueError(
                    f'"modules[{level}]" has weights that require gradients ({name}), offloaded ones cannot be '
                    "trained; call requires_grad_(False) first"
                )
            if owner.setdefault(id(tensor), level) != level:
                raise ValueError(
                    f'"modules[{level}]" shares its weight {name} with "modules[{owner[id(tensor)]}]"; offload one'
                )
        found[level] = tensors
    return found


def _check_file(level: int, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Check that a file holds a module's weights, those with two names under one of them at least."""
    held = {name: value.shape for name, value in _read(path).items()}
    found = {id(tensor) for name, tensor in tensors.items() if name in held}
    for name, tensor in tensors.items():
        if id(tensor) not in found:
            raise ValueError(f'"files[{level}]" {path} does not hold the weight {name}; save the module\'s state_dict')
        if held.get(name, tensor.shape) != tensor.shape:
            raise ValueError(
                f'"files[{level}]" {path} holds {name} of shape {tuple(held[name])}, the module has '
                f"{tuple(tensor.shape)}; save the module's state_dict"
            )
