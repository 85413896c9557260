"""`multilevel-sde train`: the networks of a ladder, one after the other."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from multilevel_diffusion.commands.options import (
    add_device,
    add_seed,
    add_threads,
    at_least,
    duration,
    folder,
    number,
    prepare,
)

if TYPE_CHECKING:
    from multilevel_diffusion.networks.by_name import Preset
    from multilevel_diffusion.networks.data import Source
    from multilevel_diffusion.networks.modulated import NetworkConfig
    from multilevel_diffusion.networks.training_state import TrainSettings

__all__ = ["register"]


def register(subparsers) -> None:
    """Add the command to an argparse subparsers object.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> register(parser.add_subparsers())
        >>> parser.parse_args(["train", "--data", "digits", "--out", "mine"]).size is None
        True
    """
    parser = subparsers.add_parser("train", help="train the networks of a ladder", description=_run.__doc__)
    parser.add_argument("--data", required=True, metavar="SPEC", help="digits, deadleaves, folder:PATH or celeba:PATH")
    parser.add_argument("--out", required=True, type=folder, help="folder of the ladder; a stopped run resumes from it")
    parser.add_argument(
        "--size",
        type=at_least(4),
        help="side of the images [that of the images in a folder; 64 for deadleaves and celeba]",
    )
    parser.add_argument("--classes", choices=["subfolders"], help="train on labels too: a folder's subfolders")
    # The names in multilevel_diffusion.networks.by_name.PRESETS, which a test compares.
    presets = ["digits", "deadleaves32", "emoji32", "paper"]
    parser.add_argument("--preset", choices=presets, help="networks and steps known to work together")
    parser.add_argument(
        "--levels",
        nargs="+",
        metavar="A:B:C",
        help="networks instead of a preset's, cheapest first: base width, bottom depth, depth at the other scales; or, "
        "with four numbers, side of a patch, width, inner and outer layers",
    )
    parser.add_argument(
        "--halvings", type=at_least(0), help="with --levels: how often the side is halved [to 4 pixels]"
    )
    parser.add_argument(
        "--steps",
        type=at_least(1),
        nargs="+",
        help="optimiser steps, one number or one per network; more than before goes on",
    )
    parser.add_argument(
        "--teacher", action="store_true", help="each network learns what the next larger one says, the largest first"
    )
    parser.add_argument("--velocity", action="store_true", help="weigh errors by 1/alpha^2: the velocity's loss")
    parser.add_argument("--vary", action="store_true", help="move images of a folder and turn their hues a little")
    parser.add_argument("--bfloat16", action="store_true", help="on a CPU too; faster where it has instructions for it")
    parser.add_argument("--batch", type=at_least(1), help="images a step")
    parser.add_argument("--learning-rate", type=number(above=0), help="peak rate of Adam")
    add_seed(parser, "seed of the first network; each takes the next one")
    add_device(parser, "where to train")
    add_threads(parser, "1 makes a run reproducible to the bit")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    """Train the networks of a ladder, one after the other; started again, it resumes where it was stopped."""
    from multilevel_diffusion.networks.by_name import PRESETS, default_preset, open_source, preset_for
    from multilevel_diffusion.networks.training import train_ladder
    from multilevel_diffusion.networks.training_order import seconds_left
    from multilevel_diffusion.process.schedules import CosineSchedule

    device = prepare(arguments)
    source = open_source(arguments.data, arguments.size, labelled=arguments.classes is not None, vary=arguments.vary)
    preset = PRESETS[arguments.preset] if arguments.preset else preset_for(source.image_shape)
    if arguments.levels:
        configs = [_parse_level(text, arguments.halvings, source) for text in arguments.levels]
    else:
        preset = preset or default_preset(source.image_shape)
        configs = preset.configs()
    if arguments.classes:
        configs = [replace(config, classes=len(source.classes)) for config in configs]  # type: ignore[attr-defined]
    if configs[0].image_shape != tuple(source.image_shape):
        raise ValueError(
            f'"--preset" {arguments.preset} is for images {configs[0].image_shape}, got {tuple(source.image_shape)}; '
            f"give --size {configs[0].image_size}, or leave it out"
        )
    settings = _settings(arguments, preset, len(configs))
    schedule = CosineSchedule()
    known = {"device": device, "teacher": arguments.teacher or (preset is not None and preset.teacher)}
    left = seconds_left(configs, source, schedule, arguments.out, settings, **known)
    print(_intention(arguments, source, configs, settings, left), flush=True)
    ladder = train_ladder(configs, source, schedule, arguments.out, settings, **known)
    for level, entry in enumerate(ladder.record["levels"], start=1):
        size = f"{entry['parameters']} parameters, {entry['flops']:.3g} FLOPs"
        print(f"level {level}: {size}, held-out loss {entry['error']['loss']:.5f}")
    print(f"ladder written to {arguments.out}")
    return 0


def _intention(
    arguments: argparse.Namespace,
    source: Source,
    configs: Sequence[NetworkConfig],
    settings: Sequence[TrainSettings],
    left: Sequence[float],
) -> str:
    """What will be trained, and how long it will take."""
    told, classes = source.describe(), getattr(source, "classes", ())
    count = f"{told['images']} images" if "images" in told else "images"
    lines = [f"{count} of {'x'.join(map(str, source.image_shape))} from {arguments.data}"]
    if classes:
        lines[0] += f", classes {', '.join(classes)}"
    for level, (config, setting, seconds) in enumerate(zip(configs, settings, left, strict=True), start=1):
        rest = f"about {duration(seconds)}" if seconds else "trained already"
        lines.append(f"network {level}: {config.shape}, {setting.steps} steps of {setting.batch_size} images, {rest}")
    lines.append(f"in all about {duration(sum(left))}, by the time of a few steps; a stopped run resumes")
    return "\n".join(lines)


def _settings(arguments: argparse.Namespace, preset: Preset | None, networks: int) -> list[TrainSettings]:
    """How to train each of the networks."""
    from multilevel_diffusion.networks.training_state import TrainSettings

    steps = arguments.steps or (preset.steps if preset is not None and not arguments.levels else None)
    if steps is None:
        raise ValueError('"--steps" is missing, expected a number with --levels; try 20000')
    steps = list(steps) * networks if len(steps) == 1 else list(steps)
    if len(steps) != networks:
        raise ValueError(f'"--steps" has {len(steps)} numbers for {networks} networks; give one, or one each')
    return [
        TrainSettings(
            steps=count,
            batch_size=arguments.batch or (preset.batch_size if preset else 128),
            learning_rate=arguments.learning_rate or (preset.learning_rate if preset else 2e-3),
            seed=arguments.seed + index,
            velocity=arguments.velocity or (preset is not None and preset.velocity),
            bfloat16=arguments.bfloat16,
        )
        for index, count in enumerate(steps)
    ]


def _parse_level(text: str, halvings: int | None, source: Source) -> NetworkConfig:
    """Read DIM:BOTTOM:MID or PATCH:WIDTH:INNER:OUTER."""
    from multilevel_diffusion.networks.by_name import halvings_for
    from multilevel_diffusion.networks.patches import PatchConfig
    from multilevel_diffusion.networks.unet import UNetConfig

    channels, size, _ = source.image_shape
    numbers = [int(number) if number.isdecimal() else -1 for number in text.split(":")]
    if len(numbers) == 4 and -1 not in numbers:
        return PatchConfig(*numbers, image_size=size, channels=channels)
    if len(numbers) != 3 or -1 in numbers:
        raise ValueError(
            f'"--levels" has {text!r}, expected DIM:BOTTOM:MID such as 32:3:2, or PATCH:WIDTH:INNER:OUTER such as '
            "4:64:2:0; write it so"
        )
    return UNetConfig(
        *numbers, levels=halvings_for(size) if halvings is None else halvings, image_size=size, channels=channels
    )
