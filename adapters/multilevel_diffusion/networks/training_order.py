"""Where the training runs of a ladder live, in which order they go, and how long the rest of them will take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from multilevel_diffusion.networks.data import Source
from multilevel_diffusion.networks.modulated import NetworkConfig
from multilevel_diffusion.networks.training_state import Run, TrainSettings
from multilevel_diffusion.process.schedule_base import NoiseSchedule

__all__ = ["in_turn", "run_folders", "seconds_left"]


def run_folders(folder: str | Path, networks: int) -> list[Path]:
    """Return where the runs of a ladder's networks live.

    Example:
        >>> [path.name for path in run_folders("mine", 2)]
        ['level_1', 'level_2']
    """
    place = Path(folder) / "training"
    first = 0 if (place / "level_0").is_dir() else 1  # begun when folders counted from 0
    return [place / f"level_{level}" for level in range(first, first + networks)]


def in_turn(networks: int, teacher: bool) -> range:
    """The order in which networks are trained: cheapest first, or last where each has the next one as its teacher.

    Example:
        >>> list(in_turn(3, teacher=True))
        [2, 1, 0]
    """
    return range(networks - 1, -1, -1) if teacher else range(networks)


def seconds_left(
    configs: Sequence[NetworkConfig],
    source: Source,
    schedule: NoiseSchedule,
    folder: str | Path,
    settings: Sequence[TrainSettings],
    *,
    teacher: bool = False,
    device: str | torch.device = "cpu",
    steps: int = 3,
) -> list[float]:
    """Return the seconds that the rest of each network's training will take, by the time of a few steps of it.

    The steps are done on copies that are thrown away. A network that is trained already takes none.

    Arguments:
        configs, source, schedule, folder, settings, teacher, device: As for :func:`train_ladder`.
        steps: Steps whose time is taken, after one that is not.

    Raises:
        ValueError: `folder` holds a run with other settings, or a teacher is to be trained on and its student is not;
            as `train`.

    Example:
        >>> import tempfile
        >>> from multilevel_diffusion.networks.data import Digits
        >>> from multilevel_diffusion.networks.unet import digits_ladder
        >>> from multilevel_diffusion.process.schedules import CosineSchedule
        >>> settings = [TrainSettings(steps=1000, batch_size=8)]
        >>> seconds_left(digits_ladder()[:1], Digits(), CosineSchedule(), tempfile.mkdtemp(), settings)[0] > 0
        True
    """
    left, places, above = {}, run_folders(folder, len(configs)), None
    for level in in_turn(len(configs), teacher):
        run = Run(configs[level], source, schedule, settings[level], torch.device(device), above)
        checkpoint = places[level] / "checkpoint.safetensors"
        if checkpoint.exists():
            run.restore(checkpoint)
            if teacher and settings[level].steps <= run.meant and any(left.values()):
                raise ValueError(
                    f'"steps" of network {level + 1} is {settings[level].steps}, as before, but its teacher is '
                    "trained on; give it more too, or leave those of larger networks"
                )
        above = run.averaged().to(device) if teacher else None
        rest, count, start = settings[level].steps - run.step, 0, 0.0
        while rest and count <= steps:
            if count == 1:
                _wait(run.device)
                start = time.perf_counter()
            run.advance()
            count += 1
        _wait(run.device)
        left[level] = rest * (time.perf_counter() - start) / steps if rest else 0.0
    return [left[level] for level in range(len(configs))]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
