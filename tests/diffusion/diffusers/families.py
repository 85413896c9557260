"""Stock pipelines of every family with more than one size, with tiny random models that differ as the real ones do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers as D
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


def unipc() -> Any:
    return D.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


WAN = {"patch_size": (1, 2, 2), "attention_head_dim": 12, "text_dim": 32, "freq_dim": 32, "rope_max_seq_len": 32}


def wan_model(kind: str, heads: int, layers: int, seed: int = 0, **more: Any) -> Any:
    build = getattr(D, kind)
    return seeded(lambda: build(**WAN, num_attention_heads=heads, num_layers=layers, ffn_dim=16 * heads, **more), seed)


def wan_vae() -> Any:
    return D.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1] * 4, num_res_blocks=1, temperal_downsample=[False, True, True]
    ).eval()


def wan(**more: Any) -> Family:
    pipe = D.WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=wan_vae(),
        transformer=wan_model("WanTransformer3DModel", 3, 3),
        scheduler=unipc(),
        **more,
    )
    return Family(quiet(pipe), [wan_model("WanTransformer3DModel", 1, 1)], {**BOTH, **FRAMES})


def wan22(slot: str) -> Family:
    """Two experts; the first runs at 6 of 10 steps here, each with two calls."""
    family = wan(transformer_2=wan_model("WanTransformer3DModel", 3, 3, seed=1), boundary_ratio=0.75)
    family.slot, family.calls = slot, {"transformer": 12, "transformer_2": 8}[slot]
    return family


def vace() -> Family:
    def model(heads: int, layers: int, own: list[int]) -> Any:
        return wan_model("WanVACETransformer3DModel", heads, layers, vace_layers=own, vace_in_channels=96)

    pipe = D.WanVACEPipeline(
        tokenizer=None, text_encoder=None, vae=wan_vae(), transformer=model(3, 4, [0, 2]), scheduler=unipc()
    )
    return Family(quiet(pipe), [model(1, 3, [0, 1, 2])], {**BOTH, **FRAMES})


def skyreels() -> Family:
    pipe = D.SkyReelsV2DiffusionForcingPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=wan_vae(),
        transformer=wan_model("SkyReelsV2Transformer3DModel", 3, 3),
        scheduler=unipc(),
    )
    lower = [wan_model("SkyReelsV2Transformer3DModel", 1, 1)]
    return Family(quiet(pipe), lower, {"prompt": None, **BOTH, **FRAMES})


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


def ltx() -> Family:
    def model(width: int, layers: int) -> Any:
        return seeded(
            lambda: D.LTXVideoTransformer3DModel(
                in_channels=8,
                out_channels=8,
                num_attention_heads=4,
                caption_channels=32,
                num_layers=layers,
                attention_head_dim=width,
                cross_attention_dim=4 * width,
            )
        )

    scheduler = D.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05)
    pipe = D.LTXPipeline(scheduler=scheduler, vae=None, text_encoder=None, tokenizer=None, transformer=model(16, 2))
    given = {
        **BOTH,
        "prompt_attention_mask": torch.ones(1, 6),
        "negative_prompt_attention_mask": torch.ones(1, 6),
        **FRAMES,
        "height": 64,
        "width": 64,
    }
    return Family(quiet(pipe), [model(8, 1)], given, calls=10)


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


def cosmos() -> Family:
    """Without the padding mask that the real ones take, which needs torchvision."""

    class Checker:
        def to(self, *args: Any) -> None:
            pass

        def check_text_safety(self, *args: Any) -> bool:
            return True

        def check_video_safety(self, video: Any) -> Any:
            return video

    def model(heads: int, layers: int) -> Any:
        return seeded(
            lambda: D.CosmosTransformer3DModel(
                in_channels=16,
                out_channels=16,
                num_attention_heads=heads,
                attention_head_dim=16,
                num_layers=layers,
                mlp_ratio=2,
                text_embed_dim=32,
                adaln_lora_dim=4,
                max_size=(4, 32, 32),
                patch_size=(1, 2, 2),
                rope_scale=(2.0, 1.0, 1.0),
                concat_padding_mask=False,
                extra_pos_embed_type=None,
            )
        )

    scheduler = D.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    parts = empty("text_encoder", "tokenizer")
    pipe = D.Cosmos2TextToImagePipeline(
        vae=wan_vae(), transformer=model(3, 2), scheduler=scheduler, safety_checker=Checker(), **parts
    )
    given = {**BOTH, "height": 32, "width": 32, **LATENT}
    return Family(quiet(pipe), [model(1, 1)], given)


def kandinsky5() -> Family:
    def model(width: int, blocks: int) -> Any:
        return seeded(
            lambda: D.Kandinsky5Transformer3DModel(
                in_visual_dim=4,
                out_visual_dim=4,
                in_text_dim=32,
                in_text_dim2=16,
                time_dim=16,
                model_dim=width,
                ff_dim=2 * width,
                num_text_blocks=1,
                num_visual_blocks=blocks,
                axes_dims=(4, 6, 6),
            )
        )

    names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    scheduler = D.FlowMatchEulerDiscreteScheduler(shift=5.0)
    pipe = D.Kandinsky5T2VPipeline(transformer=model(32, 2), vae=None, scheduler=scheduler, **empty(*names))
    given = {
        "prompt_embeds_qwen": text(1, 6, 32),
        "prompt_embeds_clip": text(1, 16),
        "prompt_cu_seqlens": torch.tensor([0, 6]),
        "negative_prompt_embeds_qwen": text(1, 6, 32, seed=1),
        "negative_prompt_embeds_clip": text(1, 16, seed=1),
        "negative_prompt_cu_seqlens": torch.tensor([0, 6]),
        **FRAMES,
        "height": 32,
        "width": 32,
        "num_frames": 5,
    }
    return Family(quiet(pipe), [model(16, 1)], given)


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
