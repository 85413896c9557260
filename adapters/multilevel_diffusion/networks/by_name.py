"""What a person names at the command line: a ladder, a source of images, a preset of networks and steps."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from multilevel_diffusion.networks.data import DeadLeaves, Digits, Source
from multilevel_diffusion.networks.image_folder import CelebA, ImageFolder, common_side
from multilevel_diffusion.networks.image_ladders import DiffusionLadder, OwnLadder
from multilevel_diffusion.networks.modulated import NetworkConfig
from multilevel_diffusion.networks.patches import emoji_ladder
from multilevel_diffusion.networks.store import load_ladder, shipped_ladder, shipped_ladders
from multilevel_diffusion.networks.unet import UNetConfig, dead_leaves_ladder, digits_ladder, paper_ladder

__all__ = [
    "PRESETS",
    "SOURCES",
    "Preset",
    "default_preset",
    "halvings_for",
    "open_any",
    "open_ladder",
    "open_source",
    "preset_for",
    "spec_of",
]

_LARGEST = 256  # images of a larger side are not taken as they are


@dataclass(frozen=True)
class Preset:
    """A ladder's networks and how long to train each of them."""

    configs: Callable[[], Sequence[NetworkConfig]]
    steps: tuple[int, ...]
    batch_size: int = 128
    learning_rate: float = 2e-3
    velocity: bool = False
    teacher: bool = False


PRESETS = {
    "digits": Preset(digits_ladder, (8000, 8000, 8000, 4500, 3500)),
    "deadleaves32": Preset(dead_leaves_ladder, (6000, 4000, 2500, 2500), batch_size=32),
    "emoji32": Preset(emoji_ladder, (24_000, 12_000, 8000, 14_000), 32, 1.5e-3, velocity=True, teacher=True),
    "paper": Preset(paper_ladder, (100_000,) * 5, learning_rate=1e-3),
}

SOURCES: dict[str, Callable[..., Source]] = {
    "digits": lambda path, size, **_: Digits(),
    "deadleaves": lambda path, size, **_: DeadLeaves(size or 64),
    "folder": lambda path, size, **known: ImageFolder(path, size or _own_side(path), **known),
    "celeba": lambda path, size, **_: CelebA(path, size or 64),
}
"""What --data may name: how to make the source from what follows the colon, the side, and for a folder more."""


def open_source(spec: str, size: int | None = None, *, labelled: bool = False, vary: bool = False) -> Source:
    """Return the source of images that a --data argument names.

    Arguments:
        spec: "digits", "deadleaves", "folder:PATH" or "celeba:PATH".
        size: Side of the images; digits have their own. None is the images' own side for a folder, 64 for the others.
        labelled: Whether the subfolders of a folder are classes.
        vary: Whether training images of a folder are moved and changed in hue a little.

    Raises:
        ValueError: The name is unknown, digits are to have another size, a path is missing or not expected, labels or
            variations are asked of what is no folder, or the images of a folder are too large to be taken as they are.

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
    if labelled and name != "folder":
        raise ValueError(f'"--classes" is subfolders, which needs --data folder:PATH, got {spec!r}; leave it out')
    if vary and name != "folder":
        raise ValueError(f'"--vary" needs --data folder:PATH, got {spec!r}; leave it out')
    if name == "digits" and size not in (None, 8):
        raise ValueError(f'"--size" is {size}, but digits are 8x8; leave it out')
    return SOURCES[name](path, size, labelled=labelled, vary=vary)


def spec_of(record: Mapping[str, Any]) -> str:
    """Return the --data argument of the images that a ladder was trained on, by what its `ladder.json` says of them.

    Raises:
        ValueError: They were not named, or lay in a folder that is not kept or not there.

    Example:
        >>> spec_of({"data": "digits", "shift": True})
        'digits'
    """
    name, path = record.get("data", ""), record.get("path")
    if name not in ("folder", "celeba"):
        return str(name)
    if path is None:
        raise ValueError(f'"--data" is missing: the ladder does not say where its images lie; give {name}:PATH')
    if not Path(path).is_dir():
        raise ValueError(
            f'"--data" is missing: the ladder\'s images were in {path}, which is not there; give {name}:PATH'
        )
    return f"{name}:{path}"


def open_any(name: str, device: str | torch.device = "cpu") -> DiffusionLadder | OwnLadder:
    """Return the ladder that a --ladder argument names: a shipped one, a folder, or `module:function` of yours.

    Arguments:
        name: One of `shipped_ladders()`, a folder, or a module that can be imported from here and a function in it that
            returns an :class:`OwnLadder` (or a `DiffusionLadder`); it is called with device=..., where it takes that.
        device: Where to put its weights.

    Raises:
        ValueError: There is no such ladder; what the function returns is none.

    Example:
        >>> open_any("digits").image_shape
        (1, 8, 8)
    """
    module, colon, function = name.rpartition(":")
    if not colon or name in shipped_ladders() or Path(name).is_dir():
        return open_ladder(name, device)
    make = _function(name, module, function)
    takes_device = "device" in inspect.signature(make).parameters
    found = make(device=torch.device(device)) if takes_device else make()
    if not isinstance(found, DiffusionLadder | OwnLadder):
        raise ValueError(f'"--ladder" is {name!r}, which returned {type(found).__name__}; let it return an OwnLadder')
    return found


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


def halvings_for(size: int) -> int:
    """Return how often a side is halved, until it is odd or 4 pixels are left.

    Example:
        >>> [halvings_for(size) for size in (64, 12, 7)]
        [4, 1, 0]
    """
    return max(n for n in range(size.bit_length()) if size % 2**n == 0 and (n == 0 or size >> n >= 4))


def default_preset(image_shape: tuple[int, int, int]) -> Preset:
    """Return networks for images of any shape, about a factor 7 in cost apart, where there is no preset.

    Example:
        >>> [config.base_dim for config in default_preset((3, 24, 24)).configs()]
        [8, 16, 32, 64]
    """
    channels, size, _ = image_shape
    shapes, halvings = [(8, 1, 1), (16, 2, 1), (32, 3, 2), (64, 4, 2)], halvings_for(size)

    def configs() -> list[UNetConfig]:
        return [UNetConfig(*shape, levels=halvings, image_size=size, channels=channels) for shape in shapes]

    return Preset(configs, (20_000,) * len(shapes))


def _own_side(path: str) -> int:
    side = common_side(path)
    if side > _LARGEST:
        raise ValueError(
            f'"--size" is missing and the smallest side of the images in {path!r} is {side}, more than {_LARGEST}; '
            "give one, such as 64"
        )
    return side


def _function(name: str, module: str, function: str) -> Callable[..., Any]:
    """Import module:function, from the folder where one stands too, as python -m does."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise ValueError(
            f'"--ladder" is {name!r}, but no module {module!r} is found; give a folder, or module:function from the '
            "folder where the module lies"
        ) from None
    except ValueError:
        found = None
    if found is None:
        raise ValueError(f'"--ladder" is {name!r}, but module {module!r} has no function {function!r}; give one')
    if not callable(found):
        raise ValueError(
            f'"--ladder" is {name!r}, which is not callable but of type {type(found).__name__}; name a function that '
            "returns an OwnLadder"
        )
    return found
