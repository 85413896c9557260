"""Commands of the diffusion adapter: `multilevel-sde train` and `multilevel-sde measure`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import multilevel_sde as mls
from multilevel_diffusion.networks.data import CelebA, DeadLeaves, Digits, ImageFolder, Source
from multilevel_diffusion.networks.scaling import Scaling, measure_errors
from multilevel_diffusion.networks.store import DiffusionLadder, load_ladder, shipped_ladder, shipped_ladders
from multilevel_diffusion.networks.training import train_ladder
from multilevel_diffusion.networks.training_state import TrainSettings
from multilevel_diffusion.networks.unet import UNetConfig, dead_leaves_ladder, digits_ladder, paper_ladder
from multilevel_diffusion.process.schedules import CosineSchedule

__all__ = ["open_ladder", "open_source", "register"]


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

# What --data may name: how to make the source from what follows the colon and the side.
SOURCES: dict[str, Callable[[str, int], Source]] = {
    "digits": lambda path, size: Digits(),
    "deadleaves": lambda path, size: DeadLeaves(size),
    "folder": lambda path, size: ImageFolder(path, size),
    "celeba": lambda path, size: CelebA(path, size),
}


def register(subparsers) -> None:
    """Add the commands to an argparse subparsers object.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> register(parser.add_subparsers())
        >>> parser.parse_args(["measure", "--ladder", "digits"]).draws
        16
    """
    train = subparsers.add_parser("train", help="train the networks of a ladder", description=_train.__doc__)
    train.add_argument("--data", required=True, metavar="SPEC", help="digits, deadleaves, folder:PATH or celeba:PATH")
    train.add_argument("--out", required=True, type=Path, help="folder of the ladder; a stopped run resumes from it")
    train.add_argument("--size", type=int, default=64, help="side of the images (digits are 8x8) [%(default)s]")
    train.add_argument("--preset", choices=PRESETS, help="networks and steps known to work together")
    train.add_argument(
        "--levels",
        nargs="+",
        metavar="DIM:BOTTOM:MID",
        help="networks instead of a preset's: base width, bottom depth, depth at the other scales; cheapest first",
    )
    train.add_argument("--halvings", type=int, help="with --levels: how often the side is halved [to 4 pixels]")
    train.add_argument("--steps", type=int, nargs="+", help="optimiser steps, one number or one per network")
    train.add_argument("--batch", type=int, help="images a step")
    train.add_argument("--learning-rate", type=float, help="peak rate of Adam")
    train.add_argument("--seed", type=int, default=0, help="network k is trained with seed + k [0]")
    train.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="[%(default)s]")
    train.add_argument("--threads", type=int, help="CPU threads; 1 makes a run reproducible to the bit")
    train.set_defaults(run=_train)

    measure = subparsers.add_parser(
        "measure", help="plot a ladder's error against its cost and fit gamma", description=_measure.__doc__
    )
    measure.add_argument("--ladder", required=True, help="folder of a ladder, or the name of a shipped one")
    measure.add_argument("--data", metavar="SPEC", help="as for train; default: what the ladder was trained on")
    measure.add_argument("--out", type=Path, default=Path("scaling"), help="folder for scaling.json and .png [scaling]")
    measure.add_argument("--images", type=int, default=500, help="held-out images, at most [500]")
    measure.add_argument("--draws", type=int, default=16, help="noisy versions of each image [16]")
    measure.add_argument("--batch", type=int, default=64, help="batch whose seconds are measured [64]")
    measure.add_argument("--seed", type=int, default=0, help="seed of the noise [0]")
    measure.add_argument("--device", default=train.get_default("device"), help="[%(default)s]")
    measure.add_argument("--threads", type=int, help="CPU threads")
    measure.set_defaults(run=_measure)


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


def open_ladder(name: str, device: str = "cpu") -> DiffusionLadder:
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


def _train(arguments: argparse.Namespace) -> int:
    """Train the networks of a ladder, one after the other; started again, it resumes where it was stopped."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    source = open_source(arguments.data, arguments.size)
    preset = PRESETS.get(arguments.preset or _preset_for(source))
    if arguments.levels:
        configs = [_parse_level(text, arguments.halvings, source) for text in arguments.levels]
    elif preset is not None:
        configs = preset.configs()
    else:
        raise ValueError(f'"--levels" is missing and no preset has images {source.image_shape}; give --levels')
    steps = arguments.steps or (preset.steps if preset is not None and not arguments.levels else None)
    if steps is None:
        raise ValueError('"--steps" is missing, expected a number with --levels; try 20000')
    steps = list(steps) * len(configs) if len(steps) == 1 else list(steps)
    if len(steps) != len(configs):
        raise ValueError(f'"--steps" has {len(steps)} numbers for {len(configs)} networks; give one, or one each')
    settings = [
        TrainSettings(
            steps=count,
            batch_size=arguments.batch or (preset.batch_size if preset else 128),
            learning_rate=arguments.learning_rate or (preset.learning_rate if preset else 2e-3),
            seed=arguments.seed + level,
        )
        for level, count in enumerate(steps)
    ]
    ladder = train_ladder(configs, source, CosineSchedule(), arguments.out, settings, device=arguments.device)
    for level, entry in enumerate(ladder.record["levels"]):
        size = f"{entry['parameters']} parameters, {entry['flops']:.3g} FLOPs"
        print(f"level {level}: {size}, held-out loss {entry['error']['loss']:.5f}")
    print(f"ladder written to {arguments.out}")
    return 0


def _measure(arguments: argparse.Namespace) -> int:
    """Measure the error of every level on held-out images, plot it against FLOPs and seconds, and fit gamma."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    ladder = open_ladder(arguments.ladder, arguments.device)
    source = open_source(arguments.data or ladder.record["data"].get("data", ""), ladder.image_shape[-1])
    if tuple(source.image_shape) != ladder.image_shape:
        raise ValueError(f'"--data" gives images {source.image_shape}, expected {ladder.image_shape}; give other data')
    errors = measure_errors(
        ladder.networks,
        ladder.schedule,
        source.held_out(arguments.images),
        draws=arguments.draws,
        seed=arguments.seed,
        device=arguments.device,
        progress=True,
    )
    batch = torch.zeros(arguments.batch, *ladder.image_shape, device=arguments.device)
    seconds = mls.SecondsCost(batch, calls=20)(ladder.networks)
    scaling = Scaling(
        errors,
        [sum(parameter.numel() for parameter in network.parameters()) for network in ladder.networks],
        {"FLOPs": list(ladder.ladder.costs), "seconds": [value / arguments.batch for value in seconds]},
    )
    scaling.save(arguments.out)
    print(scaling.table())
    print(f"\nwritten to {arguments.out / 'scaling.json'} and {arguments.out / 'scaling.png'}")
    return 0


def _preset_for(source: Source) -> str:
    """Return the name of the preset for a source's images, or an empty string."""
    shapes = {preset.configs()[0].image_shape: name for name, preset in PRESETS.items()}
    return shapes.get(source.image_shape, "")


def _parse_level(text: str, halvings: int | None, source: Source) -> UNetConfig:
    """Read DIM:BOTTOM:MID."""
    try:
        dim, bottom, mid = (int(number) for number in text.split(":"))
    except ValueError:
        raise ValueError(f'"--levels" has {text!r}, expected DIM:BOTTOM:MID such as 32:3:2; write it so') from None
    channels, size, _ = source.image_shape
    if halvings is None:
        halvings = max(n for n in range(size.bit_length()) if size % 2**n == 0 and (n == 0 or size >> n >= 4))
    return UNetConfig(dim, bottom, mid, levels=halvings, image_size=size, channels=channels)
