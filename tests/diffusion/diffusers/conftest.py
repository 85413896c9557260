"""Tiny diffusers models with random weights, and the stock pipelines around them; plans do not depend on a clock."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch

collect_ignore_glob = []
if find_spec("diffusers") and find_spec("transformers"):
    import diffusers
else:
    collect_ignore_glob.append("test_*.py")

Build = Callable[..., Any]


@pytest.fixture(autouse=True)
def prices_as_counted(monkeypatch):
    """The default of calibrate(price=) is to leave costs as they are."""
    from multilevel_diffusion.diffusers.controls import Controls

    monkeypatch.setitem(Controls.calibrate.__kwdefaults__, "price", "given")


def seeded(build: Build) -> Build:
    """A builder whose random weights depend on its arguments and `weights` alone."""

    def wrapped(width: int = 8, weights: int = 0, **options: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1000 * weights + width)
            return build(width, **options).eval().requires_grad_(False)

    return wrapped


@seeded
def build_unet(width: int, **options: Any) -> Any:
    settings = {
        "sample_size": 8,
        "block_out_channels": (width, 2 * width),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
    }
    return diffusers.UNet2DModel(**{**settings, **options})


@seeded
def build_conditional(width: int, **options: Any) -> Any:
    settings = {
        "sample_size": 8,
        "block_out_channels": (width, 2 * width),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    return diffusers.UNet2DConditionModel(**{**settings, **options})


@seeded
def build_dit(width: int, **options: Any) -> Any:
    return diffusers.DiTTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=width,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
        attention_bias=True,
        activation_fn="gelu-approximate",
        norm_elementwise_affine=False,
        **options,
    )


@seeded
def build_sd3(width: int, **options: Any) -> Any:
    return diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=width,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=2 * width,
        pooled_projection_dim=16,
        **options,
    )


@seeded
def build_flux(width: int, **options: Any) -> Any:
    return diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=width // 4,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
        **options,
    )


@pytest.fixture(scope="session")
def unet() -> Build:
    return build_unet


@pytest.fixture(scope="session")
def conditional() -> Build:
    return build_conditional


def build_vae(channels: int) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 4),
        latent_channels=channels,
        norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def ddim() -> Callable[[Any], Any]:
    """A DDIMPipeline without clipping around a denoiser."""

    def build(model: Any, **config: Any) -> Any:
        return quiet(diffusers.DDIMPipeline(model, diffusers.DDIMScheduler(**{"clip_sample": False, **config})))

    return build


@pytest.fixture
def stable_diffusion() -> Callable[..., Any]:
    """A StableDiffusionPipeline that is given embeddings, and a function that runs it with guidance."""

    def build(model: Any, scheduler: Any) -> Any:
        pipe = diffusers.StableDiffusionPipeline(
            vae=build_vae(4),
            text_encoder=None,
            tokenizer=None,
            unet=model,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        return quiet(pipe)

    return build


@pytest.fixture
def guided() -> Callable[..., torch.Tensor]:
    """Run a StableDiffusionPipeline on fixed embeddings with guidance 3 and return its latents."""

    def run(pipe: Any, steps: int = 4, **options: Any) -> torch.Tensor:
        source = torch.Generator().manual_seed(5)
        embeddings = [torch.randn(1, 5, 16, generator=source) for _ in range(2)]
        return pipe(
            prompt_embeds=embeddings[0],
            negative_prompt_embeds=embeddings[1],
            num_inference_steps=steps,
            guidance_scale=3.0,
            height=16,
            width=16,
            output_type="latent",
            generator=torch.Generator().manual_seed(7),
            **options,
        ).images

    return run


@pytest.fixture
def transformer_pipeline() -> Callable[[str], tuple[list[Any], Any, Callable[..., torch.Tensor]]]:
    """Two levels, a pipeline around the top one, and a function that runs it, for DiT, SD3 and Flux."""

    def build(name: str) -> tuple[list[Any], Any, Callable[..., torch.Tensor]]:
        source = torch.Generator().manual_seed(5)
        text, pooled = torch.randn(2, 1, 5, 16, generator=source), torch.randn(2, 1, 16, generator=source)
        flow = diffusers.FlowMatchEulerDiscreteScheduler()
        empty = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
        given = {
            "prompt_embeds": text[0],
            "pooled_prompt_embeds": pooled[0],
            "negative_prompt_embeds": text[1],
            "negative_pooled_prompt_embeds": pooled[1],
            "height": 16,
            "width": 16,
            "output_type": "latent",
        }
        if name == "dit":
            levels = [build_dit(4), build_dit(8)]
            vae = build_vae(4)
            pipe = diffusers.DiTPipeline(levels[-1], vae, diffusers.DDIMScheduler(clip_sample=False))
            given = {"class_labels": [1, 2], "guidance_scale": 3.0, "output_type": "np"}
        elif name == "sd3":
            levels = [build_sd3(4), build_sd3(8)]
            empty |= dict.fromkeys(("text_encoder_3", "tokenizer_3"))
            pipe = diffusers.StableDiffusion3Pipeline(levels[-1], flow, build_vae(4), **empty)
            given["guidance_scale"] = 3.0
        else:
            levels = [build_flux(8), build_flux(16)]
            pipe = diffusers.FluxPipeline(flow, build_vae(1), transformer=levels[-1], **empty)
            given["true_cfg_scale"] = 3.0

        def run(**options: Any) -> torch.Tensor:
            generator = torch.Generator().manual_seed(7)
            images = pipe(num_inference_steps=6, generator=generator, **{**given, **options}).images
            return torch.as_tensor(images)

        return levels, quiet(pipe), run

    return build
