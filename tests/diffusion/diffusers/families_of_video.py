"""Stock pipelines of the families that make video, with tiny random models that differ as the real ones do."""

from __future__ import annotations

from typing import Any

import diffusers as D
import torch
from one_family import BOTH, FRAMES, LATENT, Family, empty, quiet, seeded, text


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
