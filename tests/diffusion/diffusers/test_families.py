"""Every family in its own pipeline: attached, run, counted, priced by FLOPs; what is special in some of them."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from families import FAMILIES, Family, quiet, sd, skyreels, text, unet_model, vace, zimage  # noqa: E402

import multilevel_sde as mls  # noqa: E402
from multilevel_diffusion.diffusers import MultilevelUNet, attach, multilevel  # noqa: E402
from multilevel_diffusion.diffusers.calibration import PipelineRun  # noqa: E402
from multilevel_diffusion.diffusers.checks import check_levels, is_affine  # noqa: E402
from multilevel_diffusion.diffusers.costs import count_costs  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:levels . and . differ"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

BUDGET = 0.7


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_runs_at_its_budget(name: str):
    """One trajectory a run, all its calls, FLOPs, at most the budget; detached, the pipeline's own images."""
    family = FAMILIES[name]()
    plain = family.run()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ladder = attach(family.pipe, family.lower, slot=family.slot, budget_fraction=BUDGET)
        first = family.run()
    assert not [w for w in caught if "could not be tried" in str(w.message) or "does not know" in str(w.message)]
    assert ladder.costs.unit == "FLOPs"
    use = ladder.stats.trajectory
    assert (use.calls, ladder.stats.trajectories) == (family.calls, 1)
    assert 0.4 < use.fraction <= BUDGET + 1e-9
    assert torch.equal(family.run(), first)
    assert ladder.stats.trajectories == 2
    assert not torch.equal(first, plain)
    ladder.detach()
    assert torch.equal(family.run(), plain)


@pytest.mark.parametrize("name", ["vace", "skyreels forcing", "sd with pag", "stable cascade"])
def test_the_wrapper_gives_the_images_of_the_hook(name: str):
    family = FAMILIES[name]()
    with attach(family.pipe, family.lower, slot=family.slot, budget_fraction=BUDGET) as ladder:
        hooked, use = family.run(), ladder.stats.trajectory
    wrapper = multilevel(family.pipe, family.lower, slot=family.slot, budget_fraction=BUDGET)
    assert torch.equal(family.run(), hooked)
    assert wrapper.stats.trajectory == use


def test_both_experts_at_once():
    """One small model under both; each ladder counts its own calls and spends its own budget."""
    family = FAMILIES["wan 2.2, first expert"]()
    ladders = [attach(family.pipe, family.lower, slot=slot) for slot in ("transformer", "transformer_2")]
    for ladder, budget in zip(ladders, (0.6, 0.8), strict=True):
        ladder.allocate(budget_fraction=budget)
    for run in (1, 2):
        family.run()
        assert [ladder.stats.trajectory.calls for ladder in ladders] == [12, 8]
        assert [ladder.stats.trajectories for ladder in ladders] == [run, run]
        assert ladders[0].stats.trajectory.fraction <= 0.6
        assert ladders[1].stats.trajectory.fraction <= 0.8


@pytest.mark.parametrize(
    "name", ["wan 2.2, first expert", "skyreels forcing", "cosmos", "ltx", "stable cascade", "kandinsky 5"]
)
def test_calibration_with_one_prompt(name: str):
    """Two samples of one prompt, a plan for the calls that happen, within the budget; FLOPs are counted before."""
    family = FAMILIES[name]()
    ladder = attach(family.pipe, family.lower, slot=family.slot, budget_fraction=BUDGET)
    pilot = ladder.calibrate(
        family.pipe, num_inference_steps=24, samples=2, candidates=3, progress=False, **family.call
    )
    assert pilot.unit == "FLOPs"
    family.run(num_inference_steps=24)
    streams = 2 if family.calls > family.steps else 1
    assert ladder.stats.trajectory.calls == streams * pilot.steps
    assert ladder.stats.trajectory.fraction <= BUDGET + 1e-9


# -- budgets of parts --------------------------------------------------------------------------------------------------


def image_to_image(family: Family, strength: float) -> Family:
    pipe = family.pipe
    family.pipe = quiet(diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False))
    call = {**family.call, "image": text(1, 4, 8, 8), "strength": strength}
    family.call = {name: value for name, value in call.items() if name not in ("height", "width")}
    return family


@pytest.mark.parametrize("levels", [1, 2])
def test_a_budget_is_of_the_calls_that_happen(levels: int):
    """Calibrated on whole trajectories, then image to image in a pipeline of its parts; the first one is gone."""
    family = sd()
    family.pipe.scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
    ladder = attach(family.pipe, family.lower[: levels - 1], budget_fraction=0.75 if levels > 1 else 1.0)
    ladder.calibrate(family.pipe, num_inference_steps=16, samples=2, progress=False, **family.call)
    family.run(num_inference_steps=16)
    assert ladder.stats.trajectory.calls == 16
    for strength, calls in ((0.5, 8), (0.75, 12)):
        part = image_to_image(sd(), strength)
        part.pipe.register_modules(unet=family.pipe.unet, scheduler=family.pipe.scheduler)
        part.run(num_inference_steps=16)
        assert ladder.stats.trajectory.calls == calls
        assert ladder.stats.trajectory.evaluations[-1] >= 1
        assert ladder.stats.trajectory.fraction <= (0.75 if levels > 1 else 1.0) + 1e-9


def test_a_ladder_is_calibrated_in_a_pipeline_that_shares_its_model():
    """For the calls of image to image, of which the plan then is; another pipeline is refused."""
    family = sd()
    family.pipe.scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
    ladder = attach(family.pipe, family.lower, budget_fraction=0.75)
    image_to_image(family, 0.75)
    pilot = ladder.calibrate(family.pipe, num_inference_steps=16, samples=2, progress=False, **family.call)
    assert pilot.steps == 12
    family.run(num_inference_steps=16)
    assert ladder.stats.trajectory.calls == 12
    assert ladder.stats.trajectory.fraction <= 0.75 + 1e-9
    assert ladder.plan is not None
    with pytest.raises(ValueError, match='"pipe" is not the pipeline that the ladder is'):
        ladder.calibrate(sd().pipe, num_inference_steps=16)


def test_a_plan_of_ones_own_is_read_from_where_a_part_begins_or_refused():
    """In the variable's new pipeline too: corrections of calls 7 and 10 are those of a run of the last six."""
    weights = torch.tensor([[1.0, {6: 3.0, 9: 4.0}.get(n, 0.0)] for n in range(10)])
    plan = mls.Plan(weights > 0, weights)
    family = sd()
    family.pipe.scheduler = diffusers.EulerDiscreteScheduler()
    ladder = attach(family.pipe, family.lower, plan=plan)
    image_to_image(family, 0.6).run()
    assert ladder.stats.trajectory.evaluations == (6, 2)
    ladder.allocate(plan=mls.hold(plan, torch.arange(11.0)))
    with pytest.raises(ValueError, match="of which this run makes the last 6; make a plan for these, by calibrate"):
        family.run()


def test_time_travel_spends_its_budget(unet):
    """RePaint: 100 steps with jumps are 460 calls, of one trajectory."""
    pipe = quiet(diffusers.RePaintPipeline(unet(8), diffusers.RePaintScheduler(clip_sample=False)))
    with pytest.warns(UserWarning, match="RePaintScheduler could not be tried"):
        ladder = attach(pipe, [unet(4)], budget_fraction=0.09, costs=[1.0, 20.0])
    call = {"image": torch.full((1, 3, 8, 8), 0.5), "mask_image": torch.ones(1, 1, 8, 8), "output_type": "np"}
    for seed in range(2):
        ladder.seed = seed
        pipe(num_inference_steps=100, jump_length=10, jump_n_sample=5, **call)
        assert ladder.stats.trajectory.calls == 460
        assert ladder.stats.trajectory.evaluations[1] in (18, 19)


# -- what is refused -----------------------------------------------------------------------------------------------


def test_frames_at_times_of_their_own_are_refused():
    family = skyreels()
    attach(family.pipe, family.lower, budget_fraction=BUDGET)
    with pytest.raises(ValueError, match="run the pipeline with ar_step=0"):
        family.run(num_inference_steps=20, ar_step=5, causal_block_size=1)
    assert family.lower[0].config.num_frame_per_block == 1  # what the pipeline told the top level


def test_vace_scales_that_differ_between_layers_are_refused():
    family = vace()
    attach(family.pipe, family.lower, budget_fraction=BUDGET)
    with pytest.raises(ValueError, match='"conditioning_scale" differs between the 2 VACE layers'):
        family.run(conditioning_scale=[1.0, 0.5])


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


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
        ("CogVideoXDPMScheduler", {"clip_sample": False}),
        ("DDPMWuerstchenScheduler", {}),
    ],
)
def test_schedulers_with_other_arguments_are_tried_too(name: str, config: dict[str, Any]):
    assert is_affine(getattr(diffusers, name)(**config), 4) is True


class Turning(diffusers.DDIMPipeline):
    """Hands on the opposite of what its model says, as the pipelines of Lumina 2 and HiDream do."""

    @torch.no_grad()
    def __call__(self, batch_size=1, generator=None, num_inference_steps=8, output_type="np"):
        many = generator if isinstance(generator, list) else [generator]
        x = torch.cat([torch.randn(1, 3, 8, 8, generator=one) for one in many])
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(-self.unet(x, t).sample, t, x).prev_sample
        return (x,)


def test_pipelines_that_turn_the_sign_get_plans_without_memory(unet):
    """Found out at the first step, and by a calibration by itself."""
    pipe = Turning(unet(8), diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing"))
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    quiet(pipe)
    ladder = attach(pipe, [unet(4)], budget_fraction=0.5, costs=[1.0, 8.0])
    with pytest.raises(
        ValueError, match="makes something else of its model's output before the step of FlowMatchEuler"
    ):
        pipe(generator=torch.Generator().manual_seed(0))
    pipe(generator=torch.Generator().manual_seed(0))
    assert ladder.plan is None
    assert ladder.stats.trajectory.calls == 8
    ladder.detach()
    ladder = attach(pipe, [unet(4)], budget_fraction=0.5, costs=[1.0, 8.0])
    pilot = ladder.calibrate(pipe, num_inference_steps=8, samples=2, progress=False)
    assert pilot.multistep == {}
    assert ladder.plan is not None
    assert ladder.plan.recall is None


# -- errors inside a level -------------------------------------------------------------------------------------------


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


def test_prompts_are_given_once_for_every_sample():
    """In the order of num_images_per_prompt; what is no prompt is passed on."""
    family = sd()
    image = torch.zeros(2, 4, 8, 8)
    arguments = {"prompt": ["a", "b"], "negative_prompt": "c", "prompt_embeds": torch.tensor([[1.0], [2.0]])}
    asked = {"base": lambda: None, "memory": lambda: False, "expected": lambda: None, "seed": 0}

    def a_run(samples: int, **given: Any) -> PipelineRun:
        return PipelineRun(family.pipe, lambda _: None, samples=samples, arguments=given, **asked)

    run = a_run(4, **arguments, image=image)
    assert run.given["prompt"] == ["a", "a", "b", "b"]
    assert run.given["negative_prompt"] == ["c"] * 4
    assert run.given["prompt_embeds"].flatten().tolist() == [1.0, 1.0, 2.0, 2.0]
    assert run.given["image"] is image
    own = {  # names of Kandinsky 5 and HiDream, and what is not for one prompt
        "prompt_cu_seqlens": torch.tensor([0, 6, 8], dtype=torch.int32),
        "prompt_embeds_llama3": torch.arange(6).reshape(3, 2, 1),
        "prompt_embeds_qwen": torch.tensor([[1.0], [2.0]]),
        "attention_mask": torch.tensor([[1], [0]]),
        "system_prompt": "d",
    }
    found = a_run(4, **own).given
    assert found["prompt_cu_seqlens"].tolist() == [0, 6, 12, 14, 16]
    assert found["prompt_cu_seqlens"].dtype == torch.int32
    assert found["prompt_embeds_llama3"][:, :, 0].tolist() == [[0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 5, 5]]
    assert found["prompt_embeds_qwen"].flatten().tolist() == [1.0, 1.0, 2.0, 2.0]
    assert found["attention_mask"].flatten().tolist() == [1, 1, 0, 0]
    assert found["system_prompt"] == "d"
    with pytest.raises(ValueError, match='"samples" is 3, expected a multiple of the 2 prompts'):
        a_run(3, **arguments)
    with pytest.raises(ValueError, match='"num_images_per_prompt" is set by the pilot'):
        a_run(2, num_images_per_prompt=2)


def test_lists_of_states():
    """Z-Image takes and returns lists, and its pipeline turns the sign of what it hands on: nothing is remembered."""
    family = zimage()
    family.call |= {"guidance_scale": 2.0, "negative_prompt_embeds": [text(6, 16, seed=1)]}
    plain = family.run()
    ladder = attach(family.pipe, family.lower, budget_fraction=0.7)
    with pytest.raises(ValueError, match="something else of its model's output"):
        family.run()
    first = family.run()
    assert torch.equal(family.run(), first)
    ladder.calibrate(
        family.pipe, num_inference_steps=10, samples=2, candidates=3, price="given", progress=False, **family.call
    )
    assert ladder.plan is not None
    assert ladder.plan.recall is None
    family.run()
    assert (ladder.stats.trajectory.calls, ladder.stats.trajectory.fraction <= 0.7) == (10, True)
    ladder.allocate(budget_fraction=1.0)
    assert torch.equal(family.run(), plain)
    states = [torch.zeros(16, 1, 4, 4), torch.zeros(16, 1, 8, 4)]
    with pytest.raises(TypeError, match=r"states \[\(16, 1, 4, 4\), \(16, 1, 8, 4\)\]; a ladder takes .* of one shape"):
        family.pipe.transformer(states, torch.zeros(2), [text(6, 16)] * 2, return_dict=False)
