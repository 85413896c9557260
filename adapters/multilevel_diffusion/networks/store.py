"""Ladders on disk: a folder of networks, cheapest first, and what is known about them.

    ladder.json             format, schedule, parameterisation, clip, shape, classes, costs, data, training, errors
    level_1/config.json     the network's shape and its own schedule, parameterisation and image shape
    level_1/model.safetensors
    level_2/...

`ladder.json` is written last and holds the checksum of every other file and of itself, so a folder that was copied by
half, damaged or changed by hand is refused (format 1 had checksums of the weights only). It also names the folders,
which older ladders number from 0. Levels only telescope when they estimate the same thing: one schedule, one
parameterisation, one image shape. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors

import multilevel_sde as mls
from multilevel_diffusion.networks.families import config_from_dict
from multilevel_diffusion.networks.image_ladders import DiffusionLadder
from multilevel_diffusion.networks.ladder_json import FORMAT, SHARED, check_keys, read_json, read_record, to_json
from multilevel_diffusion.networks.modulated import ModulatedNetwork
from multilevel_diffusion.process.schedule_base import NoiseSchedule
from multilevel_diffusion.process.schedules import schedule_from_dict
from multilevel_sde.files import briefly, seal, write_atomically

__all__ = ["DiffusionLadder", "load_ladder", "save_ladder", "shipped_ladder", "shipped_ladders"]

PARAMETERISATION = "epsilon"


def shipped_ladders() -> list[str]:
    """Return the names of the ladders that come with the package.

    Example:
        >>> "digits" in shipped_ladders()
        True
    """
    root = resources.files("multilevel_diffusion") / "ladders"
    return sorted(entry.name for entry in root.iterdir() if (entry / "ladder.json").is_file())


def shipped_ladder(name: str) -> Path:
    """Return the folder of a ladder that comes with the package.

    Arguments:
        name: One of `shipped_ladders()`.

    Raises:
        ValueError: There is no such ladder.

    Example:
        >>> shipped_ladder("digits").name
        'digits'
    """
    if name not in shipped_ladders():
        raise ValueError(f'"name" is {name!r}, expected one of {", ".join(shipped_ladders())}; choose one of these')
    return Path(str(resources.files("multilevel_diffusion") / "ladders" / name))


def save_ladder(
    path: str | Path,
    networks: Sequence[ModulatedNetwork],
    schedule: NoiseSchedule,
    *,
    clip: tuple[float, float] | None = (-1.0, 1.0),
    data: Mapping[str, Any] | None = None,
    training: Sequence[Mapping[str, Any]] | None = None,
    errors: Sequence[Mapping[str, Any]] | None = None,
    classes: Sequence[str] = (),
    batch: int = 64,
    dtype: torch.dtype | None = None,
) -> None:
    """Write networks as a ladder, with their costs: FLOPs counted on one image, seconds measured where they are.

    Arguments:
        path: The folder; made if missing, a ladder there is replaced.
        networks: Networks eps(x, t) of one image shape, cheapest first.
        schedule: The noise schedule they were trained with.
        clip: The box to which each level's x_0 is to be clipped, or None.
        data: What they were trained on.
        training: How each was trained.
        errors: What is known about each one's error.
        classes: Names of the classes that all of them can be told, in the order of their labels.
        batch: Images in the batch whose time is measured; the recorded seconds are of one image of it.
        dtype: What the weights are written in, such as torch.float16 for half of the bytes; by default their own.

    Raises:
        ValueError: There is no network, shapes differ, weights are not finite, FLOPs do not increase, a list has not
            one entry per network, or a network was not made for as many classes.

    Example:
        >>> import tempfile
        >>> from multilevel_diffusion import CosineSchedule
        >>> from multilevel_diffusion.networks.unet import UNet, UNetConfig
        >>> config = UNetConfig(base_dim=4, bottom_depth=1, mid_depth=0, levels=1, image_size=8, channels=1)
        >>> folder = tempfile.mkdtemp()
        >>> save_ladder(folder, [UNet(config)], CosineSchedule())
        >>> load_ladder(folder).schedule
        CosineSchedule(offset=0.008, t_min=0.001)
    """
    root = Path(path)
    states = _states(networks, classes, training, errors, dtype)
    device = next(networks[0].parameters()).device
    flops, shape = increasing_flops(networks, device), networks[0].config.image_shape
    seconds = mls.SecondsCost(torch.zeros(batch, *shape, device=device), calls=20)(networks)
    shared = {"schedule": schedule.to_dict(), "parameterisation": PARAMETERISATION, "image_shape": list(shape)}
    levels = []
    for index, (network, state) in enumerate(zip(networks, states, strict=True)):
        name, content = f"level_{index + 1}", to_safetensors(state)
        write_atomically(root / name / "model.safetensors", content)
        config = to_json({"format": FORMAT, "network": network.config.to_dict(), **shared})
        write_atomically(root / name / "config.json", config)
        levels.append(
            {
                "folder": name,
                "flops": flops[index],
                "seconds": seconds[index] / batch,
                "parameters": sum(parameter.numel() for parameter in network.parameters()),
                "sha256": hashlib.sha256(content).hexdigest(),
                "config_sha256": hashlib.sha256(config).hexdigest(),
                **({"training": dict(training[index])} if training else {}),
                **({"error": dict(errors[index])} if errors else {}),
            }
        )
    measured = {"batch": batch, "threads": torch.get_num_threads(), "torch": torch.__version__, "device": str(device)}
    record = {"format": FORMAT, **shared, "clip": clip and list(clip), "data": dict(data or {})}
    if classes:
        record["classes"] = list(classes)
    write_atomically(root / "ladder.json", to_json(seal({**record, "seconds_measured": measured, "levels": levels})))


def _states(
    networks: Sequence[ModulatedNetwork],
    classes: Sequence[str],
    training: Sequence[Mapping[str, Any]] | None,
    errors: Sequence[Mapping[str, Any]] | None,
    dtype: torch.dtype | None,
) -> list[dict[str, torch.Tensor]]:
    """The weights as they are to be written, of networks that make up a ladder."""
    if not networks:
        raise ValueError('"networks" is empty, expected at least one network; train one first')
    for name, entries in (("training", training), ("errors", errors)):
        if entries is not None and len(entries) != len(networks):
            raise ValueError(f'"{name}" has {len(entries)} entries for {len(networks)} networks; give one per network')
    shape, states = networks[0].config.image_shape, []
    for level, network in enumerate(networks):
        if network.config.image_shape != shape:
            raise ValueError(f'"networks[{level}]" has image shape {network.config.image_shape}, expected {shape}')
        if network.config.classes != len(classes):
            raise ValueError(
                f'"networks[{level}]" was made for {network.config.classes} classes, "classes" names {len(classes)}; '
                "levels of one ladder must share them"
            )
        weights = network.state_dict().items()
        states.append({name: value.to("cpu", dtype or value.dtype).contiguous() for name, value in weights})
        _check_finite(states[-1], f"networks[{level}]")
    return states


def load_ladder(
    path: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> DiffusionLadder:
    """Read a ladder that `save_ladder` wrote.

    Arguments:
        path: Its folder.
        dtype: Floating-point type of the weights, hence of the states the networks take.
        device: Where to put the weights.

    Raises:
        ValueError: The folder is no ladder, of a newer format, incomplete, or its levels do not fit together.

    Example:
        >>> load_ladder(shipped_ladder("digits"), torch.float64).networks[0].stem.weight.dtype
        torch.float64
    """
    root = Path(path)
    record = read_record(root / "ladder.json")
    try:
        schedule = schedule_from_dict(record["schedule"])
        networks = tuple(_load_level(root, record, level) for level in range(len(record["levels"])))
        clip = None if record["clip"] is None else (float(record["clip"][0]), float(record["clip"][1]))
    except (TypeError, AttributeError, LookupError, OverflowError, RuntimeError) as error:
        raise ValueError(f'"path" holds what is no ladder ({error}); write it with save_ladder') from None
    if not networks:
        raise ValueError(f'"path" holds a ladder without levels ({root / "ladder.json"}); write it with save_ladder')
    return DiffusionLadder(tuple(network.to(device, dtype) for network in networks), schedule, clip, record, root)


def _load_level(root: Path, record: Mapping[str, Any], level: int) -> ModulatedNetwork:
    entry = record["levels"][level]
    check_keys(entry, ["folder", "flops", "seconds", "sha256"], root / "ladder.json")
    folder = root / entry["folder"]
    values = read_json(folder / "config.json", [*SHARED, "network"])
    if record["format"] > 1 and hashlib.sha256((folder / "config.json").read_bytes()).hexdigest() != entry.get(
        "config_sha256"
    ):
        raise ValueError(f"{folder / 'config.json'} is not the file that ladder.json describes; copy the ladder again")
    for key in SHARED:
        if values[key] != record[key]:
            raise ValueError(
                f'level {level + 1} of "path" has {key} {values[key]}, expected {record[key]} as in ladder.json; '
                "levels of one ladder must share it"
            )
    if record["parameterisation"] != PARAMETERISATION:
        raise ValueError(
            f'"path" holds networks of parameterisation {record["parameterisation"]!r}, expected {PARAMETERISATION!r}; '
            "wrap them in a denoiser by hand"
        )
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise ValueError(f'"path" has no file {weights}; copy the whole ladder folder')
    content = weights.read_bytes()
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise ValueError(f"{weights} is truncated or not the file that ladder.json describes; copy the ladder again")
    try:
        state = from_safetensors(content)
    except SafetensorError as error:
        raise ValueError(f"{weights} is not a safetensors file ({briefly(error)}); copy the ladder again") from None
    _check_finite(state, str(weights))
    with torch.random.fork_rng(devices=[]):  # building a network draws weights that are replaced at once
        network = config_from_dict(values["network"]).build()
    if list(network.config.image_shape) != values["image_shape"]:
        raise ValueError(
            f"{folder / 'config.json'} says image_shape {values['image_shape']} but describes a network for "
            f"{list(network.config.image_shape)}; write it with save_ladder"
        )
    if network.config.classes != len(record.get("classes") or ()):
        raise ValueError(
            f"{folder / 'config.json'} describes a network for {network.config.classes} classes, ladder.json names "
            f"{len(record.get('classes') or ())}; write it with save_ladder"
        )
    try:
        network.load_state_dict(state)
    except RuntimeError:
        raise ValueError(f"{weights} does not fit the network in its config.json; copy the ladder again") from None
    return network.eval().requires_grad_(False)


def increasing_flops(networks: Sequence[ModulatedNetwork], device: torch.device) -> list[float]:
    """Return the FLOPs of one image of each network.

    Raises:
        ValueError: They do not increase.
    """
    flops = mls.FlopCost(torch.zeros(1, *networks[0].config.image_shape, device=device))(networks)
    if any(a >= b for a, b in pairwise(flops)):
        raise ValueError(f'"networks" cost {flops} FLOPs, expected increasing costs; put the cheapest first')
    return flops


def _check_finite(state: Mapping[str, torch.Tensor], what: str) -> None:
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{what} has weights that are not finite ({name}); train it again")
