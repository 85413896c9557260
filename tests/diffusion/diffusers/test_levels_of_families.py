"""What a family's levels cost, which errors inside them are left as they are, and how their files are loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from families import FAMILIES, quiet, unet_model  # noqa: E402

from multilevel_diffusion.diffusers import MultilevelUNet, attach  # noqa: E402
from multilevel_diffusion.diffusers.checks import check_levels  # noqa: E402
from multilevel_diffusion.diffusers.costs import count_costs  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:levels . and . differ"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def video(width: int) -> Any:
    return diffusers.UNet3DConditionModel(
        sample_size=8,
        block_out_channels=(width, width),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    ).eval()


def notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


@pytest.mark.filterwarnings("ignore:the ladder does not know its pipeline")
def test_errors_inside_a_level_stay_what_they_are():
    """Channels of a video are on axis 1; what is not certain is not said."""
    levels = [video(8), video(16)]
    ladder = MultilevelUNet(levels, budget_fraction=0.6, costs=[1.0, 5.0])
    x, words = torch.randn(1, 4, 3, 8, 8), torch.ones(1, 5, 16)
    assert ladder(x, 10, encoder_hidden_states=words).sample.shape == x.shape
    with pytest.raises(RuntimeError, match="cannot be multiplied") as caught:
        ladder(x, 10, encoder_hidden_states=torch.ones(1, 5, 12))
    assert notes(caught.value) == []
    with pytest.raises(RuntimeError) as caught:
        ladder(torch.randn(1, 5, 3, 8, 8), 10, encoder_hidden_states=words)
    said = 'the input of shape (1, 5, 3, 8, 8) has 5 channels, "levels[0]" takes 4'
    assert notes(caught.value) == [said]

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4 GiB")

    levels[0].conv_in.register_forward_pre_hook(full)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate 4 GiB") as caught:
        ladder(torch.randn(1, 5, 3, 8, 8), 10, encoder_hidden_states=words)
    assert notes(caught.value) == []


# -- prices ----------------------------------------------------------------------------------------------------------

CONDITIONS: dict[str, dict[str, Any]] = {
    "AudioLDM": {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 8},
    "Stable unCLIP": {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 8},
    "Kandinsky 2.2": {"addition_embed_type": "image", "encoder_hid_dim": 16, "encoder_hid_dim_type": "image_proj"},
    "Kandinsky 2.1": {
        "addition_embed_type": "text_image",
        "encoder_hid_dim": 16,
        "encoder_hid_dim_type": "text_image_proj",
    },
    "IF super resolution": {"class_embed_type": "timestep"},
    "IF": {"addition_embed_type": "text", "encoder_hid_dim": 16, "addition_embed_type_num_heads": 2},
    "no size": {"sample_size": None},
    "LCM": {"time_cond_proj_dim": 16},
}
CALLS: dict[str, dict[str, Any]] = {
    "AudioLDM": {"class_labels": torch.ones(1, 8)},
    "Stable unCLIP": {"class_labels": torch.ones(1, 8)},
    "Kandinsky 2.2": {"added_cond_kwargs": {"image_embeds": torch.ones(1, 16)}},
    "Kandinsky 2.1": {
        "added_cond_kwargs": {"image_embeds": torch.ones(1, 32), "text_embeds": torch.ones(1, 32)},
        "encoder_hidden_states": torch.ones(1, 4, 16),
    },
}


@pytest.mark.filterwarnings("ignore:the ladder does not know its pipeline")
@pytest.mark.parametrize("name", CONDITIONS)
def test_conditions_are_priced_at_once_or_at_the_first_call(name: str, capfd):
    levels = [unet_model(**CONDITIONS[name], block_out_channels=(8, width)) for width in (8, 16)]
    ladder = MultilevelUNet(levels, budget_fraction=0.9)
    assert ladder.costs.unit == ("parameters" if name in CALLS else "FLOPs")
    if name in CALLS:
        call = {"encoder_hidden_states": torch.ones(1, 4, 32), **CALLS[name]}
        ladder(torch.ones(1, 4, 8, 8), 5, **call)
        assert ladder.costs.unit == "FLOPs"
    assert ladder.costs.costs[0] < ladder.costs.costs[1]
    assert capfd.readouterr().err == ""


def test_a_budget_that_flops_do_not_pay_is_refused_at_the_first_call():
    """And one that only parameters do not pay is none at all."""
    family = FAMILIES["wan 2.1"]()
    attach(family.pipe, family.lower, budget_fraction=0.05)
    with pytest.raises(ValueError, match=r'"budget_fraction" must be at least 0\.0'):
        family.run()


# -- loading ----------------------------------------------------------------------------------------------------------


def audio(heads: int) -> Any:
    return diffusers.AudioLDM2UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=([None, 16, 16], [None, 16, 16]),
        attention_head_dim=heads,
    ).eval()


def test_audioldm2_loads(tmp_path: Path):
    audio(8).save_pretrained(tmp_path / "small")

    class Pipe:
        unet, scheduler = audio(4), diffusers.DDIMScheduler(clip_sample=False)

    ladder = attach(Pipe(), [tmp_path / "small"], costs=[1.0, 2.0], budget_fraction=0.8)
    assert type(ladder.levels[0]).__name__ == "AudioLDM2UNet2DConditionModel"


@pytest.mark.parametrize("saved", ["fp16", None])
def test_ladders_of_a_variant_load_with_their_pipeline(unet, ddim, tmp_path: Path, saved: str | None):
    pipe = ddim(MultilevelUNet([unet(4), unet(8)], budget_fraction=0.5, costs=[1.0, 4.0]))
    pipe.save_pretrained(tmp_path, variant=saved)
    again = diffusers.DDIMPipeline.from_pretrained(tmp_path, variant=saved)
    assert len(again.unet.levels) == 2
    with pytest.raises(NotImplementedError, match="cannot be spread by device_map="):
        diffusers.DDIMPipeline.from_pretrained(tmp_path, variant=saved, device_map="balanced")


def test_a_pipeline_that_was_spread_over_devices_takes_a_ladder(unet, ddim, tmp_path: Path):
    ddim(unet(8)).save_pretrained(tmp_path)
    pipe = quiet(diffusers.DDIMPipeline.from_pretrained(tmp_path, device_map="balanced"))
    ladder = attach(pipe, [unet(4)], budget_fraction=0.5, costs=[1.0, 4.0])
    pipe(num_inference_steps=4, output_type="np")
    assert ladder.stats.trajectory.calls == 4


REAL = {
    "wan 2.1 at 480p": (
        "WanTransformer3DModel",
        {"attention_head_dim": 128, "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads"},
        [
            {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960},
            {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824},
        ],
        {"hidden_states": (1, 16, 21, 60, 104), "timestep": (1,), "encoder_hidden_states": (1, 512, 4096)},
        (0.17, 0.10),
    ),
    "sana at 1024": (
        "SanaTransformer2DModel",
        {"attention_head_dim": 32, "caption_channels": 2304, "sample_size": 32},
        [
            {
                "num_attention_heads": 36,
                "num_cross_attention_heads": 16,
                "cross_attention_head_dim": 72,
                "cross_attention_dim": 1152,
                "num_layers": 28,
            },
            {
                "num_attention_heads": 70,
                "num_cross_attention_heads": 20,
                "cross_attention_head_dim": 112,
                "cross_attention_dim": 2240,
                "num_layers": 60,
                "qk_norm": "rms_norm_across_heads",
            },
        ],
        {"hidden_states": (1, 32, 32, 32), "timestep": (1,), "encoder_hidden_states": (1, 300, 2304)},
        (0.13, 0.125),
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_real_configurations_are_priced_by_a_call(name: str):
    """The ratio of the smallest to the largest is that of the table of families, not that of their parameters."""
    kind, shared, sizes, shapes, (ratio, by_parameters) = REAL[name]
    with torch.device("meta"):
        models = [getattr(diffusers, kind)(**shared, **size) for size in sizes]
        call = {argument: torch.zeros(shape) for argument, shape in shapes.items()}
    costs, counted = count_costs(models, call)
    assert counted
    assert costs.costs[0] / costs.costs[1] == pytest.approx(ratio, rel=0.05)
    parameters = [model.num_parameters() for model in models]
    assert parameters[0] / parameters[1] == pytest.approx(by_parameters, rel=0.05)


def cogvideox(heads: int, *, rotary: bool) -> Any:
    return diffusers.CogVideoXTransformer3DModel(
        attention_head_dim=16,
        num_attention_heads=heads,
        num_layers=1,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=32,
        sample_width=4,
        sample_height=4,
        sample_frames=9,
        temporal_compression_ratio=4,
        max_text_seq_length=6,
        use_rotary_positional_embeddings=rotary,
    ).eval()


@pytest.mark.parametrize(
    ("rotary", "shift", "scale", "said"),
    [
        (False, 1.0, 0.7, "has use_rotary_positional_embeddings=False, the top level True"),
        (True, 3.0, 0.7, "was saved with a scheduler that has snr_shift_scale=3.0, the top level's has 1.0"),
        (True, 1.0, 1.15, "was saved with a vae that has scaling_factor=1.15, the top level's has 0.7"),
        (True, 1.0, 0.7, None),
    ],
)
def test_cogvideox_2b_under_5b_is_refused_by_what_differs(tmp_path: Path, rotary, shift, scale, said):
    class Part:
        def __init__(self, **config: Any):
            self.config = config

    cogvideox(1, rotary=rotary).save_pretrained(tmp_path / "transformer")
    diffusers.CogVideoXDDIMScheduler(snr_shift_scale=shift).save_pretrained(tmp_path / "scheduler")
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(f'{{"scaling_factor": {scale}}}')
    low = diffusers.CogVideoXTransformer3DModel.from_pretrained(tmp_path / "transformer")
    pipe = Part()
    pipe.scheduler = diffusers.CogVideoXDDIMScheduler(snr_shift_scale=1.0)  # type: ignore[attr-defined]
    pipe.vae = Part(scaling_factor=0.7)  # type: ignore[attr-defined]
    levels = [low, cogvideox(2, rotary=True)]
    if said is None:
        check_levels(levels, pipe)
    else:
        with pytest.raises(ValueError, match=re.escape(said)):
            check_levels(levels, pipe)
