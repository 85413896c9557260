"""The shipped ladders as models of diffusers, and pipelines and references around them."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

import multilevel_sde as mls
from multilevel_diffusion import load_ladder, shipped_ladder

__all__ = ["Shipped", "StatePipeline", "schedule_of", "shipped_models"]


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
    """The loop of DDPMPipeline and DDIMPipeline, which returns the state; scales it where the scheduler wants that."""

    def __init__(self, unet: Any, scheduler: Any, image_shape: tuple[int, ...]):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.image_shape = image_shape
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
        state = torch.stack([torch.randn(self.image_shape, generator=one) for one in generator])
        state = state * self.scheduler.init_noise_sigma
        for t in self.scheduler.timesteps:
            output = self.unet(self.scheduler.scale_model_input(state, t), t).sample
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
