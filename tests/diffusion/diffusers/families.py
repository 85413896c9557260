"""Stock pipelines of every family with more than one size, with tiny random models that differ as the real ones do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers as D
import torch
from families_of_video import cosmos, kandinsky5, ltx, skyreels, vace, wan, wan22
from one_family import BOTH, LATENT, Family, empty, quiet, seeded, text


def sana() -> Family:
    def model(heads: int, layers: int, **more: Any) -> Any:
        return seeded(
            lambda: D.SanaTransformer2DModel(
                in_channels=4,
                out_channels=4,
                attention_head_dim=4,
                num_attention_heads=heads,
                num_cross_attention_heads=2,
                cross_attention_head_dim=2 * heads,
                cross_attention_dim=4 * heads,
                num_layers=layers,
                caption_channels=8,
                sample_size=8,
                **more,
            )
        )

    scheduler = D.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    top = model(4, 3, qk_norm="rms_norm_across_heads")
    pipe = D.SanaPipeline(tokenizer=None, text_encoder=None, vae=None, transformer=top, scheduler=scheduler)
    given = {
        "prompt_embeds": text(1, 6, 8),
        "prompt_attention_mask": torch.ones(1, 6),
        "negative_prompt_embeds": text(1, 6, 8, seed=1),
        "negative_prompt_attention_mask": torch.ones(1, 6),
        "negative_prompt": None,
        "height": 128,
        "width": 128,
        "use_resolution_binning": False,
        **LATENT,
    }
    return Family(quiet(pipe), [model(2, 2), model(4, 1)], given, calls=10)


def sd35() -> Family:
    """Medium has attention in pairs and longer position tables than large."""

    def model(heads: int, layers: int, dual: tuple[int, ...], positions: int) -> Any:
        return seeded(
            lambda: D.SD3Transformer2DModel(
                sample_size=8,
                patch_size=2,
                in_channels=4,
                out_channels=4,
                num_layers=layers,
                attention_head_dim=8,
                num_attention_heads=heads,
                joint_attention_dim=32,
                caption_projection_dim=8 * heads,
                pooled_projection_dim=16,
                qk_norm="rms_norm",
                dual_attention_layers=dual,
                pos_embed_max_size=positions,
            )
        )

    names = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
    scheduler = D.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = D.StableDiffusion3Pipeline(model(4, 3, (), 16), scheduler, None, **empty(*names))
    given = {
        **BOTH,
        "pooled_prompt_embeds": text(1, 16),
        "negative_pooled_prompt_embeds": text(1, 16, seed=1),
        "height": 64,
        "width": 64,
        **LATENT,
    }
    return Family(quiet(pipe), [model(2, 2, (0,), 24)], given, calls=10)


def flux() -> Family:
    """FLUX.1 dev and lite: the same width, fewer double blocks."""

    def model(layers: int) -> Any:
        return seeded(
            lambda: D.FluxTransformer2DModel(
                patch_size=1,
                in_channels=16,
                num_layers=layers,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=32,
                pooled_projection_dim=16,
                axes_dims_rope=(4, 4, 8),
                guidance_embeds=True,
            )
        )

    names = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    scheduler = D.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    pipe = D.FluxPipeline(scheduler, transformer=model(4), **empty(*names))
    given = {
        "prompt_embeds": text(1, 6, 32),
        "pooled_prompt_embeds": text(1, 16),
        "height": 64,
        "width": 64,
        **LATENT,
    }
    return Family(quiet(pipe), [model(1)], given, calls=10)


def unet_model(kind: str = "UNet2DConditionModel", **more: Any) -> Any:
    settings = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 2,
        "norm_num_groups": 4,
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    return seeded(lambda: getattr(D, kind)(**{**settings, **more}))


SMALL = {"layers_per_block": 1, "mid_block_type": None}


def sdxl() -> Family:
    """KOALA: fewer layers, fewer blocks in their transformers, no middle."""
    own = {
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 64,
    }
    top = unet_model(**own, transformer_layers_per_block=(1, 3))
    koala = unet_model(**own, **SMALL, transformer_layers_per_block=(1, 2))
    names = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    pipe = D.StableDiffusionXLPipeline(
        vae=None, unet=top, scheduler=D.EulerDiscreteScheduler(), add_watermarker=False, **empty(*names)
    )
    given = {
        **BOTH,
        "pooled_prompt_embeds": text(1, 16),
        "negative_pooled_prompt_embeds": text(1, 16, seed=1),
        "height": 64,
        "width": 64,
        **LATENT,
    }
    return Family(quiet(pipe), [koala], given, slot="unet", calls=10)


def sd(kind: str = "StableDiffusionPipeline", **more: Any) -> Family:
    """BK-SDM: fewer layers, no middle."""
    names = ("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor", "image_encoder")
    pipe = getattr(D, kind)(
        unet=unet_model(),
        scheduler=D.PNDMScheduler(skip_prk_steps=True, steps_offset=1),
        requires_safety_checker=False,
        **empty(*names),
        **more,
    )
    given = {**BOTH, "height": 64, "width": 64, **LATENT}
    return Family(quiet(pipe), [unet_model(**SMALL)], given, slot="unet", calls=11)


def sd_pag() -> Family:
    """Perturbed attention, on layers that BK-SDM has and on the middle, that it has not."""
    family = sd("StableDiffusionPAGPipeline", pag_applied_layers=["mid", "up"])
    family.call["pag_scale"] = 3.0
    return family


def cascade() -> Family:
    def model(width: int) -> Any:
        return seeded(
            lambda: D.StableCascadeUNet(
                conditioning_dim=width,
                block_out_channels=(width, width),
                num_attention_heads=(2, 2),
                down_num_layers_per_block=(1, 1),
                up_num_layers_per_block=(1, 1),
                switch_level=(False,),
                clip_image_in_channels=16,
                clip_text_in_channels=32,
                clip_text_pooled_in_channels=16,
                timestep_ratio_embedding_dim=16,
            )
        )

    class Encoder:
        dtype = torch.float32

    pipe = D.StableCascadePriorPipeline(
        tokenizer=None, text_encoder=Encoder(), prior=model(32), scheduler=D.DDPMWuerstchenScheduler()
    )
    given = {
        **BOTH,
        "prompt_embeds_pooled": text(1, 1, 16),
        "negative_prompt_embeds_pooled": text(1, 1, 16, seed=1),
        "height": 171,
        "width": 171,
        **LATENT,
    }
    return Family(quiet(pipe), [model(16)], given, slot="prior", calls=10)


def deepfloyd() -> Family:
    """Medium and XL of stage 1: pixels, a variance among the outputs, text through a projection."""
    own = {
        "in_channels": 3,
        "out_channels": 6,
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 2,
        "encoder_hid_dim": 32,
        "encoder_hid_dim_type": "text_proj",
        "act_fn": "gelu",
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "only_cross_attention": (True, True),
        "class_embed_type": None,
        "time_embedding_act_fn": "gelu",
    }
    models = [unet_model(**own, block_out_channels=(w, 2 * w), cross_attention_dim=16 * (w // 8)) for w in (8, 16)]
    names = ("tokenizer", "text_encoder", "safety_checker", "feature_extractor", "watermarker")
    pipe = D.IFPipeline(
        unet=models[-1],
        scheduler=D.DDPMScheduler(clip_sample=False),
        requires_safety_checker=False,
        **empty(*names),
    )
    given = {**BOTH, "output_type": "pt"}
    return Family(quiet(pipe), models[:-1], given, slot="unet", calls=10)


def zimage() -> Family:
    """A list of states and a list of outputs, whose sign the pipeline turns."""

    def model(heads: int, layers: int) -> Any:
        return seeded(
            lambda: D.ZImageTransformer2DModel(
                in_channels=16,
                dim=16 * heads,
                n_layers=layers,
                n_refiner_layers=1,
                n_heads=heads,
                n_kv_heads=heads,
                cap_feat_dim=16,
                axes_dims=[8, 4, 4],
                axes_lens=[64, 32, 32],
            )
        )

    vae = D.AutoencoderKL(latent_channels=16, block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
                          up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=8)  # fmt: skip
    pipe = D.ZImagePipeline(
        scheduler=D.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        transformer=model(3, 3),
    )
    given = {"prompt_embeds": [text(6, 16)], "guidance_scale": 0.0, "height": 32, "width": 32, **LATENT}
    return Family(quiet(pipe), [model(1, 1)], given, calls=10)


FAMILIES: dict[str, Callable[[], Family]] = {
    "wan 2.1": wan,
    "wan 2.2, first expert": lambda: wan22("transformer"),
    "wan 2.2, second expert": lambda: wan22("transformer_2"),
    "vace": vace,
    "skyreels forcing": skyreels,
    "sana": sana,
    "ltx": ltx,
    "sd3.5": sd35,
    "flux": flux,
    "cosmos": cosmos,
    "kandinsky 5": kandinsky5,
    "sdxl": sdxl,
    "sd": sd,
    "sd with pag": sd_pag,
    "stable cascade": cascade,
    "deepfloyd if": deepfloyd,
}
