"""A stock pipeline with its smaller models, and what all families are made of: seeded models, texts, short runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Family:
    """A pipeline and what it takes.

    Attributes:
        pipe: The pipeline; its own model is the largest.
        lower: The smaller models.
        call: Arguments of the pipeline for one prompt.
        slot: Of the model.
        calls: Calls of the model in a run.
        steps: Steps of a run.
    """

    pipe: Any
    lower: list[Any]
    call: dict[str, Any]
    slot: str = "transformer"
    calls: int = 20
    steps: int = 10

    def run(self, **more: Any) -> Tensor:
        given = {"num_inference_steps": self.steps, "generator": torch.Generator().manual_seed(0), **self.call, **more}
        return torch.as_tensor(self.pipe(**given)[0])


def seeded(build: Callable[[], Any], seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval().requires_grad_(False)


def text(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def empty(*names: str) -> dict[str, None]:
    return dict.fromkeys(names)


LATENT = {"output_type": "latent"}
FRAMES = {"height": 16, "width": 16, "num_frames": 9, **LATENT}
BOTH = {"prompt_embeds": text(1, 6, 32), "negative_prompt_embeds": text(1, 6, 32, seed=1)}
