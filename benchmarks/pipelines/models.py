"""The networks of the benchmark as models of diffusers, and the pipeline around them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

import multilevel_sde as mls
from multilevel_diffusion import load_ladder, shipped_ladder
from multilevel_diffusion.diffusers.costs import count_costs

__all__ = ["Networks", "Shipped", "StatePipeline", "networks", "schedule_of", "shipped_models"]

DIT_SIZES = ("small", "middle", "large")
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
"""How schedulers of noise are told that a model says the velocity of the straight path."""


class Shipped(ModelMixin, ConfigMixin):
    """A network of a shipped ladder, called like UNet2DModel: eps at the indices 0 ... 999 of its table of betas."""

    @register_to_config
    def __init__(self, ladder: str = "deadleaves32", level: int = 0, in_channels: int = 3, out_channels: int = 3):
        super().__init__()
        images = load_ladder(shipped_ladder(ladder))
        self.network, self.denoiser, self.schedule = images.networks[level], images.denoisers[level], images.schedule

    def forward(self, sample: Tensor, timestep: Any, return_dict: bool = True) -> Any:
        """Return eps of a noisy state at an index of the table."""
        time = (torch.as_tensor(timestep).double().flatten()[:1] + 1) / 1000
        t = float(time)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        data = self.denoiser(sample, torch.tensor(t, dtype=torch.float64))
        eps = (sample - alpha * data) / sigma
        return UNet2DOutput(sample=eps) if return_dict else (eps,)


class StatePipeline(DiffusionPipeline):
    """The loop of DDPMPipeline and DDIMPipeline, which returns the state; scales it where the scheduler wants that.

    Where there are classes, the samples of a batch take turns.
    """

    def __init__(self, unet: Any, scheduler: Any, image_shape: tuple[int, ...], classes: int = 0):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.image_shape, self.classes = image_shape, classes
        self.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: Any = None,
        num_inference_steps: int = 28,
        eta: float | None = None,
    ) -> tuple[Tensor]:
        """Return the final states of samples whose noise comes from their own generators."""
        self.scheduler.set_timesteps(num_inference_steps)
        given = {} if eta is None else {"eta": eta}
        given |= {"generator": generator} if "generator" in type(self.scheduler).step.__code__.co_varnames else {}
        call = {"class_labels": torch.arange(batch_size) % self.classes} if self.classes else {}
        state = torch.stack([torch.randn(self.image_shape, generator=one) for one in generator])
        state = state * getattr(self.scheduler, "init_noise_sigma", 1.0)
        for t in self.scheduler.timesteps:
            scaled = (
                self.scheduler.scale_model_input(state, t) if hasattr(self.scheduler, "scale_model_input") else state
            )
            output = self.unet(scaled, t.expand(batch_size), **call).sample
            state = self.scheduler.step(output, t, state, **given).prev_sample
        return (state,)


def schedule_of(ladder: str) -> list[float]:
    """The table of betas of a shipped ladder's schedule, 1,000 of them."""
    schedule = load_ladder(shipped_ladder(ladder)).schedule
    squares = [1.0, *(schedule.alpha((n + 1) / 1000) ** 2 for n in range(1000))]
    return [min(0.999, 1 - after / before) for before, after in itertools.pairwise(squares)]


def shipped_models(ladder: str) -> tuple[list[Shipped], mls.GivenCost]:
    """The networks of a shipped ladder as models, and their FLOPs."""
    images = load_ladder(shipped_ladder(ladder))
    channels = images.image_shape[0]
    levels = range(len(images.networks))
    models = [Shipped(ladder, level, channels, channels).eval().requires_grad_(False) for level in levels]
    return models, mls.GivenCost(images.ladder.costs, "FLOPs")


@dataclass(frozen=True)
class Networks:
    """A ladder of models and how diffusers' schedulers are to be made for it.

    Attributes:
        models: Cheapest first.
        costs: FLOPs of a call.
        shape: Of an image.
        options: Of every scheduler, by which it knows the noise or the straight path.
        classes: Number of classes, 0 for none.
        flow: Whether models say the velocity of the straight path.
    """

    models: list[Any]
    costs: mls.GivenCost
    shape: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)
    classes: int = 0
    flow: bool = False

    @property
    def relative(self) -> list[float]:
        """Costs in evaluations of the largest network."""
        return [cost / self.costs.costs[-1] for cost in self.costs.costs]

    def pipe(self, kind: str, **options: Any) -> StatePipeline:
        """The largest network under a scheduler of diffusers."""
        own = {} if kind.startswith("FlowMatch") else self.options
        return StatePipeline(self.models[-1], getattr(diffusers, kind)(**own, **options), self.shape, self.classes)


def networks(name: str, folder: Path) -> Networks:
    """A shipped ladder by its name, or the trained transformers: dit_eps, dit_flow.

    Arguments:
        name: Of the ladder.
        folder: Where `train_dit.py` wrote its networks.
    """
    if not name.startswith("dit_"):
        models, costs = shipped_models(name)
        return Networks(
            models, costs, load_ladder(shipped_ladder(name)).image_shape, {"trained_betas": schedule_of(name)}
        )
    kind = name.removeprefix("dit_")
    models = [
        DiTTransformer2DModel.from_pretrained(folder / kind / size).float().eval().requires_grad_(False)
        for size in DIT_SIZES
    ]
    flow, classes = kind == "flow", int(models[0].config["num_embeds_ada_norm"])
    return Networks(models, count_costs(models)[0], (3, 32, 32), FLOW if flow else {}, classes, flow)
