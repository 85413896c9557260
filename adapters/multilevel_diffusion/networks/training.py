r"""Train one denoising network; a run killed at any moment resumes where its last checkpoint is, bit for bit.

The loss is the paper's,

.. math:: \mathbb{E}\, \| \hat\epsilon(\alpha_t x_0 + \sigma_t \epsilon, t) - \epsilon \|^2 / \dim ,
          \qquad t \sim U(t_{min}, 1) ,

with the times of a batch evenly spaced behind one uniform phase (each is uniform, the batch's loss varies less).
Adam, a linear warm-up, a cosine decay, and an exponential moving average of the weights, which is the result.

With a teacher its output takes the place of the noise: a smaller network then learns to be near a larger one, which is
what the corrections of a ladder are made of, from targets without noise.

References:
    Ho, Jain, Abbeel, "Denoising Diffusion Probabilistic Models", 2020 (arXiv 2006.11239): the loss.
    Kingma et al., "Variational Diffusion Models", 2021 (arXiv 2107.00630), appendix I.1: times with one phase.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from multilevel_diffusion.networks.data import LabelledSource, Source
from multilevel_diffusion.networks.modulated import ModulatedNetwork, NetworkConfig
from multilevel_diffusion.networks.scaling import measure_errors
from multilevel_diffusion.networks.store import DiffusionLadder, increasing_flops, load_ladder, save_ladder
from multilevel_diffusion.networks.training_order import in_turn, run_folders
from multilevel_diffusion.networks.training_state import Run, TrainSettings
from multilevel_diffusion.process.schedule_base import NoiseSchedule
from multilevel_sde.files import write_atomically

__all__ = ["TrainSettings", "Trained", "train", "train_ladder"]


@dataclass(frozen=True)
class Trained:
    """The result of `train`.

    Arguments:
        network: The network with averaged weights, float32, on the CPU, in evaluation mode.
        losses: Mean loss of every `log_every` steps, float64.
        seconds: Wall time spent training, over all resumptions.
        lengthened: Steps that were done whenever the run was told to do another number of them.
    """

    network: ModulatedNetwork
    losses: Tensor
    seconds: float
    lengthened: tuple[int, ...] = ()


def train(
    config: NetworkConfig,
    source: Source,
    schedule: NoiseSchedule,
    folder: str | Path,
    settings: TrainSettings,
    *,
    teacher: ModulatedNetwork | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Trained:
    """Train a network, or resume or reload the run that `folder` holds.

    The folder gets `checkpoint.safetensors`, `log.csv` (step, loss, learning rate) and `loss.png`. On a GPU the network
    runs in bfloat16 autocast; on the CPU in float32, where one thread gives the same numbers on every run.

    With more `settings.steps` than the run in the folder was meant to do, it goes on from its last checkpoint, with the
    learning rate that the longer run has at that step. The weights are not those of a run that was meant to be as long
    from its start, whose learning rate was higher before; the result says where it was lengthened.

    Arguments:
        config: The network.
        source: The images; their shape must be the network's.
        schedule: Noise levels, with times in [0, 1].
        folder: Where the run lives; made if missing.
        settings: How to train.
        teacher: A trained network, on the device, whose output is learned in place of the noise; the same on resuming,
            but with more steps it may have been trained on too.
        device: Where to train.
        progress: Whether to show a progress bar on stderr.

    Raises:
        ValueError: Shapes differ, the schedule's times do not end at 1, `folder` holds a run with other settings, or
            the loss is not finite.

    Example:
        >>> import tempfile
        >>> from multilevel_diffusion.networks.data import Digits
        >>> from multilevel_diffusion.networks.unet import UNetConfig
        >>> from multilevel_diffusion.process.schedules import CosineSchedule
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
    run = Run(config, source, schedule, settings, torch.device(device), teacher)
    checkpoint = folder / "checkpoint.safetensors"
    if checkpoint.exists():
        run.restore(checkpoint)
    bar = tqdm(
        total=settings.steps * settings.batch_size,
        initial=run.step * settings.batch_size,
        unit="image",
        unit_scale=True,
        desc=f"train {folder.name.replace('_', ' ')}",
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
    return Trained(run.averaged(), losses, run.seconds, tuple(run.lengthened))


def train_ladder(
    configs: Sequence[NetworkConfig],
    source: Source,
    schedule: NoiseSchedule,
    folder: str | Path,
    settings: Sequence[TrainSettings],
    *,
    teacher: bool = False,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> DiffusionLadder:
    """Train networks one after the other, measure them on held-out images, and store them as a ladder.

    `folder` becomes the ladder; the runs live in `folder/training/level_1` and so on, where they resume from when this
    is called again. Delete `training` when the ladder is done.

    Arguments:
        configs: The networks, cheapest first.
        source: The images.
        schedule: Noise levels, with times in [0, 1].
        folder: Where to write; made if missing.
        settings: One per network.
        teacher: Whether each network but the largest learns the output of the next larger one, which is trained first.
        device: Where to train.
        progress: Whether to show progress bars on stderr.

    Raises:
        ValueError: There is not one of `settings` per network, costs do not increase, or what `train` and `save_ladder`
            refuse.

    Example:
        >>> import tempfile
        >>> from multilevel_diffusion.networks.data import Digits
        >>> from multilevel_diffusion.process.schedules import CosineSchedule
        >>> from multilevel_diffusion.networks.unet import digits_ladder
        >>> configs, settings = digits_ladder()[:2], [TrainSettings(steps=10, batch_size=8)] * 2
        >>> done = train_ladder(configs, Digits(), CosineSchedule(), tempfile.mkdtemp(), settings, progress=False)
        >>> len(done.ladder)
        2
    """
    if len(settings) != len(configs):
        raise ValueError(f'"settings" has {len(settings)} entries for {len(configs)} networks; give one per network')
    with torch.random.fork_rng(devices=[]):
        increasing_flops([config.build() for config in configs], torch.device("cpu"))  # refused before it takes hours
    places, done, above = run_folders(folder, len(configs)), {}, None
    for level in in_turn(len(configs), teacher):
        known = {"teacher": above, "device": device, "progress": progress}
        done[level] = train(configs[level], source, schedule, places[level], settings[level], **known)
        above = done[level].network.to(device) if teacher else None
    runs = [done[level] for level in range(len(configs))]
    networks = [run.network.to(device) for run in runs]
    classes, labels = (), None
    if configs[0].classes and isinstance(source, LabelledSource):
        classes, labels = source.classes, source.held_out_labels(500)
    held_out = source.held_out(500)
    errors = measure_errors(networks, schedule, held_out, labels=labels, device=device, progress=progress)
    training = [
        {
            "settings": asdict(setting),
            "loss": float(run.losses[-max(1, len(run.losses) // 20) :].mean()) if len(run.losses) else None,
            "seconds": run.seconds,
            **({"lengthened": list(run.lengthened)} if run.lengthened else {}),
            **({"teacher": "the next level"} if teacher and run is not runs[-1] else {}),
        }
        for setting, run in zip(settings, runs, strict=True)
    ]
    known = {"data": source.describe(), "training": training, "errors": errors.per_level(), "classes": classes}
    save_ladder(folder, networks, schedule, **known)
    return load_ladder(folder)


def _write_log(path: Path, losses: list[float], settings: TrainSettings) -> None:
    steps = [settings.log_every * (row + 1) for row in range(len(losses))]
    rows = [
        f"{step},{loss:.9g},{settings.learning_rate_at(step - 1):.6g}" for step, loss in zip(steps, losses, strict=True)
    ]
    write_atomically(path, ("\n".join(["step,loss,learning_rate", *rows]) + "\n").encode())


def _plot_losses(path: Path, losses: Tensor, settings: TrainSettings) -> None:
    """Plot the loss curve and its running mean; without matplotlib, or a row of the curve, there is no plot."""
    if not len(losses):
        return
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
