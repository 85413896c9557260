r"""Train one denoising network; a run killed at any moment resumes where its last checkpoint is, bit for bit.

The loss is the paper's,

.. math:: \mathbb{E}\, \| \hat\epsilon(\alpha_t x_0 + \sigma_t \epsilon, t) - \epsilon \|^2 / \dim ,
          \qquad t \sim U(t_{min}, 1) ,

with the times of a batch evenly spaced behind one uniform phase (each is uniform, the batch's loss varies less).
Adam, a linear warm-up, a cosine decay, and an exponential moving average of the weights, which is the result.

A checkpoint is one safetensors file, written atomically: weights, average, Adam's moments, the states of both random
generators and the losses as tensors, everything else as JSON in its header. Nothing is pickled.

References:
    Ho, Jain, Abbeel, "Denoising Diffusion Probabilistic Models", 2020 (arXiv 2006.11239): the loss.
    Kingma et al., "Variational Diffusion Models", 2021 (arXiv 2107.00630), appendix I.1: times with one phase.
"""

from __future__ import annotations

import io
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
from tqdm import tqdm

from multilevel_diffusion.data import Source
from multilevel_diffusion.schedules import NoiseSchedule
from multilevel_diffusion.unet import UNet, UNetConfig
from multilevel_sde.files import write_atomically

__all__ = ["TrainSettings", "Trained", "train"]

FORMAT = 1


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
        if self.checkpoint_every % self.log_every:
            raise ValueError(
                f'"checkpoint_every" is {self.checkpoint_every}, expected a multiple of "log_every" = '
                f"{self.log_every}; round it"
            )

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warm = min(1.0, (step + 1) / (self.warmup + 1))
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))


@dataclass(frozen=True)
class Trained:
    """The result of `train`.

    Arguments:
        network: The network with averaged weights, float32, on the CPU, in evaluation mode.
        losses: Mean loss of every `log_every` steps, float64.
        seconds: Wall time spent training, over all resumptions.
    """

    network: UNet
    losses: Tensor
    seconds: float


def train(
    config: UNetConfig,
    source: Source,
    schedule: NoiseSchedule,
    folder: str | Path,
    settings: TrainSettings,
    *,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Trained:
    """Train a network, or resume or reload the run that `folder` holds.

    The folder gets `checkpoint.safetensors`, `log.csv` (step, loss, learning rate) and `loss.png`. On a GPU the network
    runs in bfloat16 autocast; on the CPU in float32, where one thread gives the same numbers on every run.

    Arguments:
        config: The network.
        source: The images; their shape must be the network's.
        schedule: Noise levels, with times in [0, 1].
        folder: Where the run lives; made if missing.
        settings: How to train.
        device: Where to train.
        progress: Whether to show a progress bar on stderr.

    Raises:
        ValueError: Shapes differ, the schedule's times do not end at 1, `folder` holds a run with other settings, or
            the loss is not finite.

    Example:
        >>> import tempfile
        >>> from multilevel_diffusion.data import Digits
        >>> from multilevel_diffusion.schedules import CosineSchedule
        >>> config = UNetConfig(base_dim=4, bottom_depth=1, mid_depth=0, levels=1, image_size=8, channels=1)
        >>> settings = TrainSettings(steps=20, batch_size=8)
        >>> trained = train(config, Digits(), CosineSchedule(), tempfile.mkdtemp(), settings, progress=False)
        >>> trained.losses.shape
        torch.Size([2])
    """
    if tuple(source.image_shape) != config.image_shape:
        raise ValueError(
            f'"source" gives images of shape {tuple(source.image_shape)}, expected {config.image_shape} of "config"; '
            "change one of them"
        )
    if schedule.t_max != 1:
        raise ValueError(f'"schedule" ends at time {schedule.t_max}, expected 1; train with one whose times are [0, 1]')
    folder = Path(folder)
    run = _Run(config, source, schedule, settings, torch.device(device))
    checkpoint = folder / "checkpoint.safetensors"
    if checkpoint.exists():
        run.restore(checkpoint)
    bar = tqdm(
        total=settings.steps * settings.batch_size,
        initial=run.step * settings.batch_size,
        unit="image",
        unit_scale=True,
        desc=f"train {folder.name}",
        disable=not progress,
    )
    with bar:
        while run.step < settings.steps:
            run.advance()
            bar.update(settings.batch_size)
            if run.step % settings.log_every == 0:
                bar.set_postfix(loss=f"{run.losses[-1]:.4f}", refresh=False)
            if run.step % settings.checkpoint_every == 0 or run.step == settings.steps:
                run.save(checkpoint)
                _write_log(folder / "log.csv", run.losses, settings)
    losses = torch.tensor(run.losses, dtype=torch.float64)
    _plot_losses(folder / "loss.png", losses, settings)
    return Trained(run.averaged(), losses, run.seconds)


class _Run:
    """The mutable state of a training run; `save` and `restore` know all of it."""

    def __init__(self, config: UNetConfig, source: Source, schedule: NoiseSchedule, settings: TrainSettings, device):
        self.source, self.schedule, self.settings, self.device = source, schedule, settings, device
        self.identity: dict[str, Any] = {
            "format": FORMAT,
            "config": config.to_dict(),
            "schedule": schedule.to_dict(),
            "settings": asdict(settings),
            "source": source.describe(),
        }
        with torch.random.fork_rng(devices=[]):  # torch's initialisers take no generator
            torch.manual_seed(settings.seed)
            self.network = UNet(config)
        self.network.to(device)
        self.parameters = dict(self.network.named_parameters())
        self.average = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.optimiser = torch.optim.Adam(self.parameters.values(), fused=True)
        self.images = torch.Generator().manual_seed(settings.seed)
        self.noise = torch.Generator(device).manual_seed(settings.seed + 1)
        self.step, self.seconds = 0, 0.0
        self.losses: list[float] = []
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
        x0 = self.source.batch(n, self.images).to(self.device, non_blocking=True)
        phase = torch.rand((), generator=self.noise, device=self.device)
        t = low + (1 - low) * ((phase + torch.arange(n, device=self.device) / n) % 1)
        noise = torch.randn(x0.shape, generator=self.noise, device=self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            estimate = self.network(self.schedule.perturb(x0, noise, t), t)
        return torch.nn.functional.mse_loss(estimate.float(), noise)

    def averaged(self) -> UNet:
        """Return a copy of the network with the averaged weights."""
        with torch.random.fork_rng(devices=[]):
            network = UNet(self.network.config)
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
        header = {**self.identity, "step": self.step, "seconds": self.seconds}
        tensors = {name: value.cpu().contiguous() for name, value in self._tensors().items()}
        write_atomically(path, to_safetensors(tensors, {"run": json.dumps(header)}))

    def restore(self, path: Path) -> None:
        """Read what `save` wrote; refuse another run's file."""
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get("run", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
        for key, value in self.identity.items():
            if header.get(key) != json.loads(json.dumps(value)):
                raise ValueError(
                    f'"folder" holds a training run whose {key} is {header.get(key)}, expected {value}; '
                    "choose an empty folder, or the arguments of that run"
                )
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


def _write_log(path: Path, losses: list[float], settings: TrainSettings) -> None:
    steps = [settings.log_every * (row + 1) for row in range(len(losses))]
    rows = [
        f"{step},{loss:.9g},{settings.learning_rate_at(step - 1):.6g}" for step, loss in zip(steps, losses, strict=True)
    ]
    write_atomically(path, ("\n".join(["step,loss,learning_rate", *rows]) + "\n").encode())


def _plot_losses(path: Path, losses: Tensor, settings: TrainSettings) -> None:
    """Plot the loss curve and its running mean; without matplotlib there is no plot."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="optimiser step", ylabel="denoising loss", yscale="log")
    steps = settings.log_every * torch.arange(1, len(losses) + 1)
    axes.plot(steps, losses, color="0.75", linewidth=0.8, label=f"mean of {settings.log_every} steps")
    width = max(1, len(losses) // 40)
    smooth = losses.unfold(0, width, 1).mean(dim=1)
    axes.plot(steps[width - 1 :], smooth, label=f"mean of {width * settings.log_every} steps")
    axes.legend()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_atomically(path, content.getvalue())
