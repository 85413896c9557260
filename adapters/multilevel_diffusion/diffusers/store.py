"""Ladders of diffusers models on disk: one ordinary model folder a level, and one small configuration.

    unet/config.json           costs, probabilities or the plan's name, draw, seed; written last
    unet/level_1/              an ordinary diffusers model folder, loadable on its own; level_1.fp16 of that variant
    unet/level_2/
    unet/plan.safetensors      only with a plan
    unet/pilot.safetensors     only after a pilot

A folder without config.json is no ladder: it is removed first and written last, atomically, so that an interrupted save
never loads. Weights are safetensors; nothing is unpickled. Format 1 numbered the folders from 0.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import diffusers
import torch
from diffusers.models.auto_model import AutoModel
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError
from torch import nn

import multilevel_sde as mls
from multilevel_diffusion.diffusers.checks import SLOTS
from multilevel_sde.files import write_atomically

__all__ = ["DRAWS", "Settings", "Source", "load_ladder", "load_models", "save_ladder"]

DRAWS: Mapping[str, mls.Draw] = {"independent": mls.independent, "nested": mls.nested, "systematic": mls.systematic}
"""The draws that a file can name."""

Source: TypeAlias = str | os.PathLike[str] | nn.Module
"""What a model comes from."""

_CONFIG, _PLAN, _PILOT, _FORMAT = "config.json", "plan.safetensors", "pilot.safetensors", 2


@dataclass(frozen=True)
class Settings:
    """What a ladder needs beside its models.

    Attributes:
        costs: Cost of one evaluation of each level, with their unit.
        probabilities: p_k, shape (K,), or p_k(n), shape (N, K); None with a plan.
        plan: The plan, None with probabilities.
        draw: The way of drawing, None where none was asked for.
        seed: Seed of the draw.
        pilot: What a pilot in the ladder's pipeline measured, None without one.
        held: Cost of a call relative to the top model's where nothing was measured and no draw asked for: a plan
            for the scheduler's calls is then made when they are known (:func:`.loops.held.held_plan`), instead of a
            draw.
        budget: Cost of a call relative to the top model's, that was asked for; None where a table or plan was given.
        places: Half log-SNR of the pilot's calls and of its end (:func:`.scheduler_grid.half_log_snr`), by which its
            plans are carried to other numbers of calls; empty where they are not known.
        given: What the calibration gave to the scheduler's steps, such as eta.
        fitted: Mean squared error of a fitted plan on samples kept out; None where the plan is not fitted.
        aimed: Whether steps without noise are made to end where the next call is (:func:`.scheduler_grid.aimed`).
    """

    costs: mls.GivenCost
    probabilities: torch.Tensor | None = None
    plan: mls.Plan | None = None
    draw: mls.Draw | None = None
    seed: int = 0
    pilot: mls.Pilot | None = None
    aimed: bool = False
    held: float | None = None
    budget: float | None = None
    places: tuple[float, ...] = ()
    given: Mapping[str, float] = field(default_factory=dict)
    fitted: float | None = None


def load_models(sources: Source | Iterable[Source], **options: Any) -> list[nn.Module]:
    """Load diffusers models from folders, or from the hub where there is no such folder; models are passed on.

    Arguments:
        sources: For each level a model folder, a pipeline folder with `subfolder=`, a hub id, or a model; or one.
        options: Passed on to diffusers, for example torch_dtype.

    Raises:
        TypeError: A source of another kind, such as a pipeline.
        FileNotFoundError: A folder has no model, or there is neither a folder nor a model on the hub.
        ValueError: A model is damaged or incomplete, or of a class that diffusers does not have.
    """
    if isinstance(sources, str | os.PathLike | nn.Module):
        sources = [sources]
    known = list(sources) if isinstance(sources, Iterable) else [sources]
    for level, source in enumerate(known):
        if not isinstance(source, str | os.PathLike | nn.Module):
            slots = [name for name in SLOTS if getattr(source, name, None) is not None]
            advice = f"give its model, .{slots[0]}" if slots else "for one model alone leave it out"
            raise TypeError(
                f'"levels[{level}]" must be a model of diffusers, its folder or a hub id, got {type(source).__name__}; '
                f"{advice}"
            )
    return [
        source if isinstance(source, nn.Module) else _load_model(source, level, **options)
        for level, source in enumerate(known)
    ]


def _load_model(source: str | os.PathLike[str], level: int, **options: Any) -> nn.Module:
    name = f'"levels[{level}]" at "{os.fspath(source)}"'
    options["use_safetensors"] = True if options.get("use_safetensors") is None else options["use_safetensors"]
    try:
        if not Path(source).is_dir():
            return AutoModel.from_pretrained(os.fspath(source), **options)  # type: ignore[return-value]
        folder = Path(source) / (options.get("subfolder") or "")
        config = folder / _CONFIG
        if not config.is_file():
            hint = "; it is a pipeline, add subfolder=" if (folder / "model_index.json").is_file() else ""
            raise FileNotFoundError(f"{name} has no {_CONFIG}, expected a folder written by save_pretrained{hint}")
        kind = getattr(diffusers, str(json.loads(config.read_text(encoding="utf-8")).get("_class_name")), None)
        if not (isinstance(kind, type) and issubclass(kind, ModelMixin)):
            raise ValueError("its configuration names no model class of diffusers")
        model, info = kind.from_pretrained(os.fspath(source), output_loading_info=True, **options)  # type: ignore[misc]
    except FileNotFoundError:
        raise
    except OSError as error:
        if not Path(source).is_dir():
            raise FileNotFoundError(f"{name} is neither a folder nor a model that can be fetched") from error
        raise ValueError(f"{name} cannot be read ({_first_line(error)}); save it again") from error
    except (ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{name} cannot be loaded ({_first_line(error)}); save it again") from error
    missing = [*info.get("missing_keys", []), *info.get("mismatched_keys", [])]
    if missing:
        raise ValueError(f"{name} lacks {len(missing)} of its weights, such as {missing[0]}; save it again")
    return model


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def save_ladder(folder: str | os.PathLike[str], models: Sequence[Any], settings: Settings, **options: Any) -> None:
    """Write the levels, the plan if there is one, and then config.json.

    Arguments:
        folder: Where to; made if missing.
        models: The levels, not compiled.
        settings: Costs, probabilities or plan, draw, seed.
        options: Passed on to diffusers for each model.

    Raises:
        ValueError: A level's class is not one of diffusers, or the draw is not one that a file can name; nothing is
            written then.
    """
    for level, model in enumerate(models):
        if getattr(diffusers, type(model).__name__, None) is not type(model):
            raise ValueError(
                f'"levels[{level}]" is a {type(model).__name__}, which is not a class of diffusers and could not be '
                "loaded again; save the levels yourself and build the ladder from the models"
            )
    config = {
        "_class_name": "MultilevelUNet",
        "_diffusers_version": diffusers.__version__,
        "format": _FORMAT,
        "levels": [type(model).__name__ for model in models],
        "costs": list(settings.costs.costs),
        "cost_unit": settings.costs.unit,
        "probabilities": None if settings.probabilities is None else settings.probabilities.tolist(),
        "plan": None if settings.plan is None else _PLAN,
        "pilot": None if settings.pilot is None else _PILOT,
        "draw": _name_of(settings.draw),
        "seed": settings.seed,
        "aimed": settings.aimed,
        "held": settings.held,
        "budget": settings.budget,
        "places": [place if math.isfinite(place) else None for place in settings.places],
        "given": dict(settings.given),
        "fitted": settings.fitted,
    }
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    (target / _CONFIG).unlink(missing_ok=True)
    for level, model in enumerate(models):
        model.save_pretrained(_level_folder(target, level + 1, options.get("variant")), **options)
    if settings.plan is not None:
        settings.plan.save(target / _PLAN)
    if settings.pilot is not None:
        settings.pilot.save(target / _PILOT)
    write_atomically(target / _CONFIG, (json.dumps(config, indent=2) + "\n").encode())


def _level_folder(folder: Path, number: int, variant: str | None) -> Path:
    """The name that diffusers needs to see the variant in."""
    return folder / (f"level_{number}.{variant}" if variant else f"level_{number}")


def _name_of(draw: mls.Draw | None) -> str | None:
    """Return the name of a draw in files."""
    if draw is None:
        return None
    for name, known in DRAWS.items():
        if draw == known:
            return name
    raise ValueError(f'"draw" is none of {", ".join(DRAWS)} and cannot be saved; save the plan that it draws instead')


def load_ladder(folder: str | os.PathLike[str], **options: Any) -> tuple[list[nn.Module], Settings]:
    """Read what :func:`save_ladder` wrote.

    Arguments:
        folder: Where it was written.
        options: Passed on to diffusers for each model.

    Raises:
        FileNotFoundError: There is no ladder, or a level is missing.
        ValueError: It is damaged, not a ladder, or of another format.
    """
    settings, folders = _load_settings(Path(folder), options.get("variant"))
    return load_models(folders, **options), settings


def _load_settings(folder: Path, variant: str | None) -> tuple[Settings, list[Path]]:
    path = folder / _CONFIG
    if not path.is_file():
        raise FileNotFoundError(f'no ladder at "{folder}" ({_CONFIG} is missing); was its save interrupted?')
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if config["_class_name"] != "MultilevelUNet":
            raise ValueError(f"it is a single {config['_class_name']}; pass a list of models, cheapest first")
        if config["format"] not in (1, _FORMAT):
            raise ValueError(f"format {config['format']}, this release reads 1 and {_FORMAT}; upgrade multilevel-sde")
        table = config["probabilities"]
        settings = Settings(
            mls.GivenCost([float(cost) for cost in config["costs"]], str(config["cost_unit"])),
            None if table is None else torch.tensor(table, dtype=torch.float64),
            None if config["plan"] is None else mls.Plan.load(folder / _PLAN),
            None if config["draw"] is None else DRAWS[config["draw"]],
            int(config["seed"]),
            None if config.get("pilot") is None else mls.Pilot.load(folder / _PILOT),
            bool(config.get("aimed", False)),
            config.get("held"),
            config.get("budget"),
            tuple(math.inf if place is None else float(place) for place in config.get("places", ())),
            config.get("given", {}),
            config.get("fitted"),
        )
        if settings.pilot is not None and settings.pilot.levels != len(settings.costs.costs):
            raise ValueError(f"its pilot is of {settings.pilot.levels} levels; run calibrate again")
        first = 0 if config["format"] == 1 else 1
        if variant and not _level_folder(folder, first, variant).is_dir():
            variant = None
        return settings, [_level_folder(folder, n, variant) for n, _ in enumerate(config["levels"], start=first)]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'"{path}" is not the configuration of a ladder ({error!r}); save it again') from None
    except ValueError as error:
        raise ValueError(f'"{path}" cannot be read ({_first_line(error)})') from None
