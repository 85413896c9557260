"""The state of a training run, its checkpoint, and one step of it.

A checkpoint is one safetensors file, written atomically: weights, average, Adam's moments, the states of both random
generators and the losses as tensors, everything else as JSON in its header. Nothing is pickled.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from multilevel_diffusion.networks.data import LabelledSource, Source
from multilevel_diffusion.networks.fingerprints import fingerprint
from multilevel_diffusion.networks.modulated import ModulatedNetwork, NetworkConfig
from multilevel_diffusion.process.schedule_base import NoiseSchedule
from multilevel_sde.files import write_atomically

__all__ = ["Run", "TrainSettings"]

FORMAT = 1
_LEAST_ALPHA = 0.1  # the velocity's loss weighs no error more than a hundredfold


@dataclass(frozen=True)
class TrainSettings:
    """How to train one network.

    Arguments:
        steps: Optimiser steps.
        batch_size: Images a step.
        learning_rate: Adam's peak rate, after the warm-up; it then decays to zero as a half cosine.
        warmup: Steps of linear warm-up.
        ema_decay: Decay of the average of the weights, eased in as (1 + step) / (10 + step).
        clip_norm: Gradients longer than this are shortened to it.
        seed: Seed of the initial weights, the images, the times and the noise.
        log_every: Steps per row of the loss curve.
        checkpoint_every: Steps between checkpoints, a multiple of `log_every`.
        null_share: With classes, the share of images whose class is left out, so that guidance has its other half.
        velocity: Whether the loss is that of the velocity: squared errors of the noise over alpha_t^2, at least 1/100.
        bfloat16: Whether to run the network in bfloat16 autocast on a CPU too, as on a GPU; twice as fast where the CPU
            has instructions for it.

    Raises:
        ValueError: A number is out of range.

    Example:
        >>> TrainSettings(steps=1000).learning_rate_at(0) < TrainSettings(steps=1000).learning_rate_at(100)
        True
    """

    steps: int
    batch_size: int = 128
    learning_rate: float = 2e-3
    warmup: int = 100
    ema_decay: float = 0.999
    clip_norm: float = 1.0
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 500
    null_share: float = 0.1
    velocity: bool = False
    bfloat16: bool = False

    def __post_init__(self):
        for name in ("steps", "batch_size", "log_every", "checkpoint_every"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f'"{name}" is {value!r}, expected a positive integer; give at least 1')
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f'"{name}" is {getattr(self, name)}, expected a positive number; give one')
        if self.warmup < 0:
            raise ValueError(f'"warmup" is {self.warmup}, expected a number of steps; give 0 for none')
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f'"ema_decay" is {self.ema_decay}, expected a number in [0, 1); try 0.999')
        if not 0 <= self.null_share <= 1:
            raise ValueError(f'"null_share" is {self.null_share}, expected a number in [0, 1]; try 0.1')
        if self.checkpoint_every % self.log_every:
            raise ValueError(
                f'"checkpoint_every" is {self.checkpoint_every}, expected a multiple of "log_every" = '
                f"{self.log_every}; round it"
            )

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warm = min(1.0, (step + 1) / (self.warmup + 1))
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))


class Run:
    """The mutable state of a training run; `save` and `restore` know all of it.

    Arguments:
        config: The network.
        source: The images.
        schedule: Noise levels.
        settings: How to train.
        device: Where to train.
        teacher: A trained network eps(x, t), on that device, whose output is learned in place of the noise.

    Attributes:
        step: Optimiser steps done.
        losses: Mean loss of every `log_every` of them.
        seconds: Wall time of these steps.
        lengthened: Steps that were done whenever the run was told to do more, or fewer, than it was meant to.
        meant: Steps that it was told to do when it was saved.

    Raises:
        ValueError: The network was made for classes that the source does not know.
    """

    def __init__(
        self,
        config: NetworkConfig,
        source: Source,
        schedule: NoiseSchedule,
        settings: TrainSettings,
        device: torch.device,
        teacher: ModulatedNetwork | None = None,
    ):
        self.source, self.schedule, self.settings, self.device = source, schedule, settings, device
        self.teacher = teacher
        self.identity: dict[str, Any] = {
            "format": FORMAT,
            "config": config.to_dict(),
            "schedule": schedule.to_dict(),
            "settings": asdict(settings),
            "source": {name: value for name, value in source.describe().items() if name != "path"},  # it may move
            "teacher": None if teacher is None else fingerprint(teacher),
        }
        self.labels: LabelledSource | None = None
        if config.classes:
            if not isinstance(source, LabelledSource) or len(source.classes) != config.classes:
                known = len(getattr(source, "classes", ()))
                raise ValueError(
                    f'"config" is for {config.classes} classes, "source" knows {known}; give a source with labels'
                )
            self.labels = source
        with torch.random.fork_rng(devices=[]):  # torch's initialisers take no generator
            torch.manual_seed(settings.seed)
            self.network = config.build()
        self.network.to(device)
        self.parameters = dict(self.network.named_parameters())
        self.average = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.optimiser = torch.optim.Adam(self.parameters.values(), fused=True)
        self.images = torch.Generator().manual_seed(settings.seed)
        self.noise = torch.Generator(device).manual_seed(settings.seed + 1)
        self.step, self.seconds = 0, 0.0
        self.losses: list[float] = []
        self.lengthened: list[int] = []
        self.meant = settings.steps
        self.window = torch.zeros((), dtype=torch.float64, device=device)

    def advance(self) -> None:
        """Do one optimiser step."""
        start = time.perf_counter()
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.learning_rate_at(self.step)
        loss = self._loss()
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip_norm)
        self.optimiser.step()
        self.step += 1
        decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.parameters.items():
                self.average[name].lerp_(value, 1 - decay)
        self.window += loss.detach()
        if self.step % self.settings.log_every == 0:  # the only place where a GPU is waited for
            mean = float(self.window) / self.settings.log_every
            if not math.isfinite(mean):
                raise ValueError(f'the loss became {mean} before step {self.step}; lower "learning_rate"')
            self.losses.append(mean)
            self.window.zero_()
        self.seconds += time.perf_counter() - start

    def _loss(self) -> Tensor:
        n, low = self.settings.batch_size, self.schedule.t_min
        x0, told = self._batch(n)
        phase = torch.rand((), generator=self.noise, device=self.device)
        t = low + (1 - low) * ((phase + torch.arange(n, device=self.device) / n) % 1)
        noise = torch.randn(x0.shape, generator=self.noise, device=self.device)
        half = self.settings.bfloat16 or self.device.type == "cuda"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
            x_t = self.schedule.perturb(x0, noise, t)
            estimate, target = self.network(x_t, t, **told), noise
            if self.teacher is not None:
                with torch.no_grad():
                    target = self.teacher(x_t, t, **told)
        estimate, target = estimate.float(), target.float()
        if self.settings.velocity:
            scale = self.schedule.alpha(t).to(noise.dtype).clamp(min=_LEAST_ALPHA)[:, None, None, None]
            estimate, target = estimate / scale, target / scale
        return torch.nn.functional.mse_loss(estimate, target)

    def _batch(self, n: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Images and, with classes, their labels, of which some are the null class."""
        if self.labels is None:
            return self.source.batch(n, self.images).to(self.device, non_blocking=True), {}
        images, labels = self.labels.labelled_batch(n, self.images)
        left_out = torch.rand(n, generator=self.images) < self.settings.null_share
        labels = labels.masked_fill(left_out, self.network.config.classes)
        return images.to(self.device, non_blocking=True), {"label": labels.to(self.device)}

    def averaged(self) -> ModulatedNetwork:
        """Return a copy of the network with the averaged weights."""
        with torch.random.fork_rng(devices=[]):
            network = self.network.config.build()
        network.load_state_dict(self.average)
        return network.eval().requires_grad_(False)

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {"rng.images": self.images.get_state(), "rng.noise": self.noise.get_state(), "window": self.window}
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        for name, value in self.parameters.items():
            tensors[f"weight.{name}"], tensors[f"average.{name}"] = value.detach(), self.average[name]
            state = self.optimiser.state[value]
            for moment in ("exp_avg", "exp_avg_sq", "step"):
                tensors[f"adam.{moment}.{name}"] = state[moment]
        return tensors

    def save(self, path: Path) -> None:
        """Write everything to one file, atomically."""
        header = {**self.identity, "step": self.step, "seconds": self.seconds, "lengthened": self.lengthened}
        tensors = {name: value.cpu().contiguous() for name, value in self._tensors().items()}
        write_atomically(path, to_safetensors(tensors, {"run": json.dumps(header)}))

    def restore(self, path: Path) -> None:
        """Read what `save` wrote; refuse another run's file. A run may be given more steps than it was meant to do."""
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get("run", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
        self.meant = _check(path, header, json.loads(json.dumps(self.identity)))
        self.lengthened = list(header.get("lengthened", []))
        if self.meant != self.settings.steps:
            self.lengthened.append(header["step"])
        self.step, self.seconds = header["step"], header["seconds"]
        self.losses = tensors["losses"].tolist()
        self.window.copy_(tensors["window"])
        self.images.set_state(tensors["rng.images"])
        self.noise.set_state(tensors["rng.noise"])
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(tensors[f"weight.{name}"])
                self.average[name].copy_(tensors[f"average.{name}"])
                # Adam's moments have the layout of their weight, as in the run that was not stopped.
                self.optimiser.state[value] = {
                    "step": tensors[f"adam.step.{name}"].to(self.device),
                    "exp_avg": torch.zeros_like(value).copy_(tensors[f"adam.exp_avg.{name}"]),
                    "exp_avg_sq": torch.zeros_like(value).copy_(tensors[f"adam.exp_avg_sq.{name}"]),
                }


def _check(path: Path, header: dict[str, Any], mine: dict[str, Any]) -> int:
    """Refuse a checkpoint of a run with other arguments, and return how many steps that run was meant to do."""
    longer = mine["settings"]["steps"] > (header.get("settings") or {}).get("steps", math.inf)
    for key, value in mine.items():
        found = header.get(key)
        if key == "teacher" and found and value:
            if found == value or longer:  # one that was trained on: its student goes on with it
                continue
            raise ValueError(
                f'"{path.parent}" holds another training run (teacher {found[:8]} against {value[:8]}, another '
                'network, or one that was trained on since); give it more "steps" too, or another folder'
            )
        if isinstance(value, dict) and isinstance(found, dict):
            if key == "settings":
                found = asdict(TrainSettings(1)) | found  # older runs do not name what was added since
            names = [name for name in (*value, *found) if (key, name) != ("settings", "steps")]
            other = [name for name in names if found.get(name) != value.get(name)]
            words = f"{key}: {other[0]} {found.get(other[0])} against {value.get(other[0])}" if other else ""
        else:
            words = f"{key} {found} against {value}" if found != value else ""
        if words:
            raise ValueError(
                f'"{path.parent}" holds another training run ({words}); choose an empty folder, or the arguments of '
                "that run"
            )
    meant, done, asked = header["settings"]["steps"], header["step"], mine["settings"]["steps"]
    if asked < done:
        raise ValueError(f'"steps" is {asked}, but the run in "{path.parent}" has done {done}; give as many or more')
    return meant
