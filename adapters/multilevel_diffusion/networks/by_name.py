"""What a person names at the command line: a ladder, a source of images, a preset of networks and steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from multilevel_diffusion.networks.data import CelebA, DeadLeaves, Digits, ImageFolder, Source
from multilevel_diffusion.networks.store import DiffusionLadder, load_ladder, shipped_ladder, shipped_ladders
from multilevel_diffusion.networks.unet import UNetConfig, dead_leaves_ladder, digits_ladder, paper_ladder

__all__ = ["PRESETS", "SOURCES", "Preset", "open_ladder", "open_source", "preset_for"]


@dataclass(frozen=True)
class Preset:
    """A ladder's networks and how long to train each of them."""

    configs: Callable[[], list[UNetConfig]]
    steps: tuple[int, ...]
    batch_size: int = 128
    learning_rate: float = 2e-3


PRESETS = {
    "digits": Preset(digits_ladder, (8000, 8000, 8000, 4500, 3500)),
    "deadleaves32": Preset(dead_leaves_ladder, (6000, 4000, 2500, 2500), batch_size=32),
    "paper": Preset(paper_ladder, (100_000,) * 5, learning_rate=1e-3),
}

SOURCES: dict[str, Callable[[str, int], Source]] = {
    "digits": lambda path, size: Digits(),
    "deadleaves": lambda path, size: DeadLeaves(size),
    "folder": lambda path, size: ImageFolder(path, size),
    "celeba": lambda path, size: CelebA(path, size),
}
"""What --data may name: how to make the source from what follows the colon and the side."""


def open_source(spec: str, size: int) -> Source:
    """Return the source of images that a --data argument names.

    Arguments:
        spec: "digits", "deadleaves", "folder:PATH" or "celeba:PATH".
        size: Side of the images; digits have their own.

    Raises:
        ValueError: The name is unknown, or a path is missing or not expected.

    Example:
        >>> open_source("digits", 8).image_shape
        (1, 8, 8)
    """
    name, _, path = spec.partition(":")
    if name not in SOURCES:
        raise ValueError(f'"--data" is {spec!r}, expected digits, deadleaves, folder:PATH or celeba:PATH; choose one')
    if (name in ("folder", "celeba")) != bool(path):
        wanted = f"{name}:PATH" if not path else name
        raise ValueError(f'"--data" is {spec!r}, expected {wanted}; write it so')
    return SOURCES[name](path, size)


def open_ladder(name: str, device: str | torch.device = "cpu") -> DiffusionLadder:
    """Return a shipped ladder by its name, or the one in a folder.

    Arguments:
        name: One of `shipped_ladders()`, or a folder.
        device: Where to put its weights.

    Raises:
        ValueError: There is no such ladder.

    Example:
        >>> open_ladder("digits").image_shape
        (1, 8, 8)
    """
    if name in shipped_ladders():
        return load_ladder(shipped_ladder(name), device=device)
    if not Path(name).is_dir():
        raise ValueError(
            f'"--ladder" is {name!r}, expected a folder or one of {", ".join(shipped_ladders())}; give one'
        )
    return load_ladder(name, device=device)


def preset_for(image_shape: tuple[int, int, int]) -> Preset | None:
    """Return the preset for images of a shape, None where there is none.

    Example:
        >>> preset_for((1, 8, 8)) is PRESETS["digits"]
        True
    """
    return next((preset for preset in PRESETS.values() if preset.configs()[0].image_shape == image_shape), None)
