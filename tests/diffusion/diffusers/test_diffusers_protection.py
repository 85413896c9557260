"""Bad input and bad settings: one sentence each, before anything is sampled or written."""

from __future__ import annotations

import json
import re
import warnings

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

import multilevel_sde as mls  # noqa: E402
from multilevel_diffusion.diffusers.checks import is_affine  # noqa: E402
from multilevel_diffusion.diffusers.wrapper import MultilevelUNet, multilevel  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:levels . and . differ"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


COSTS = (1.0, 4.0)


def fails(message: str, kind: type[Exception] = ValueError):
    return pytest.raises(kind, match=re.escape(message))


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("DDIMScheduler", {}, "DDIMScheduler has clip_sample=True"),
        ("DDPMScheduler", {}, "DDPMScheduler has clip_sample=True"),
        ("DPMSolverMultistepScheduler", {"thresholding": True}, "has thresholding=True"),
        ("DDIMScheduler", {"clip_sample": False, "prediction_type": "noise"}, "unknown prediction_type 'noise'"),
        ("DDPMScheduler", {"clip_sample": False, "variance_type": "learned_range"}, "has variance_type=learned_range"),
        (
            "DDIMScheduler",
            {"clip_sample": False, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
            "has rescale_betas_zero_snr=True, so that no signal is left at the first call",
        ),
        ("CMStochasticIterativeScheduler", {}, "is not affine in the model's output"),
    ],
)
def test_schedulers_that_bias_are_refused_and_the_pipeline_unchanged(unet, ddim, name, config, message):
    top = unet(8)
    pipe = ddim(top)
    pipe.scheduler = getattr(diffusers, name)(**config)
    with fails(message):
        multilevel(pipe, [unet(4)], budget_fraction=0.5, costs=COSTS)
    assert pipe.unet is top
    with fails(message):
        MultilevelUNet([unet(4), top], budget_fraction=0.5, costs=COSTS).check(pipe)


def test_the_advice_on_clipping_works(unet, ddim):
    pipe = ddim(unet(8), clip_sample=True)
    with fails("pipe.scheduler.register_to_config(clip_sample=False)"):
        multilevel(pipe, [unet(4)], budget_fraction=0.5, costs=COSTS)
    pipe.scheduler.register_to_config(clip_sample=False)
    multilevel(pipe, [unet(4)], budget_fraction=0.5, costs=COSTS)


def test_a_scheduler_swapped_in_later_is_checked_when_it_runs(unet, ddim):
    pipe = ddim(unet(8))
    multilevel(pipe, [unet(4)], budget_fraction=0.5, costs=COSTS)
    pipe.scheduler.register_to_config(clip_sample=True)
    with fails("DDIMScheduler has clip_sample=True"):
        pipe(num_inference_steps=3, output_type="np")
    pipe.scheduler = diffusers.DDPMScheduler()
    with fails("DDPMScheduler has clip_sample=True"):
        pipe(num_inference_steps=3, output_type="np")


def test_without_a_spread_nothing_is_refused(unet, ddim):
    pipe = ddim(unet(8), clip_sample=True)
    multilevel(pipe, [unet(4)], budget_fraction=1.0, costs=COSTS)
    pipe(num_inference_steps=3, output_type="np")


def test_clipping_is_found_by_trial_where_no_setting_names_it():
    class Clipping(diffusers.EulerDiscreteScheduler):
        def step(self, model_output, *args, **kwargs):
            return super().step(model_output.clamp(-1, 1), *args, **kwargs)

    assert is_affine(diffusers.EulerDiscreteScheduler(), channels=3) is True
    assert is_affine(Clipping(), channels=3) is False


def test_a_scheduler_that_cannot_be_tried_is_warned_about(unet, ddim):
    pipe = ddim(unet(8))
    pipe.scheduler = diffusers.KarrasVeScheduler()
    with pytest.warns(UserWarning, match="KarrasVeScheduler could not be tried"):
        multilevel(pipe, [unet(4)], budget_fraction=0.5, costs=COSTS)


def test_a_ladder_that_does_not_know_its_pipeline_says_so_once(unet, ddim):
    pipe = ddim(unet(8))
    pipe.unet = MultilevelUNet([unet(4), unet(8)], budget_fraction=0.5, costs=COSTS)
    with pytest.warns(UserWarning, match=r"put it in with ladder\.install\(pipe\)"):
        pipe(num_inference_steps=2, output_type="np")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe(num_inference_steps=2, output_type="np")


@pytest.mark.filterwarnings("default:levels . and . differ")
def test_levels_that_predict_different_things_are_warned_about(unet):
    top = unet(8)
    weights = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    opposite = unet(4)
    for parameter in opposite.conv_out.parameters():
        parameter.mul_(-20)
    ladder = MultilevelUNet([opposite, top], plan=mls.Plan(weights > 0, weights), costs=COSTS)
    with pytest.warns(UserWarning, match="levels 1 and 2 differ by"):
        ladder(torch.ones(1, 3, 8, 8), 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 4}, '"levels[0]" has in_channels=4, the top level 3'),
        ({"out_channels": 6}, '"levels[0]" has out_channels=6, the top level 3'),
        ({"sample_size": 16}, '"levels[0]" has sample_size=16, the top level 8'),
        ({"num_class_embeds": 10}, '"levels[0]" has num_class_embeds=10, the top level None'),
    ],
)
def test_levels_of_other_shapes_are_refused(unet, options, message):
    with fails(message):
        MultilevelUNet([unet(4, **options), unet(8)], budget_fraction=0.5)


def test_levels_of_other_text_encoders_are_refused(conditional):
    with fails('"levels[0]" has cross_attention_dim=32, the top level 16'):
        MultilevelUNet([conditional(4, cross_attention_dim=32), conditional(8)], budget_fraction=0.5, costs=COSTS)


def test_levels_of_another_family_are_refused(unet, conditional):
    with fails('"levels[0]" is a UNet2DConditionModel and takes other arguments', TypeError):
        MultilevelUNet([conditional(4), unet(8)], budget_fraction=0.5)
    with fails('"levels[0]" must be a diffusers model with a config, got Linear', TypeError):
        MultilevelUNet([torch.nn.Linear(1, 1), unet(8)], budget_fraction=0.5)


def test_levels_saved_with_other_prediction_types_are_refused(unet, ddim, tmp_path):
    ddim(unet(4), prediction_type="v_prediction").save_pretrained(tmp_path / "small")
    ddim(unet(8)).save_pretrained(tmp_path / "large")
    with fails("\"levels\" predict different things, {0: 'v_prediction', 1: 'epsilon'}"):
        MultilevelUNet.from_pretrained([tmp_path / "small", tmp_path / "large"], subfolder="unet", budget_fraction=0.5)
    with fails("predict different things"):
        MultilevelUNet.from_pretrained([tmp_path / "small" / "unet", tmp_path / "large" / "unet"], budget_fraction=0.5)


def test_an_unknown_prediction_type_is_refused(unet, ddim, tmp_path):
    ddim(unet(4), prediction_type="noise").save_pretrained(tmp_path)
    with fails("\"levels[0]\" comes with the unknown prediction type 'noise'"):
        MultilevelUNet.from_pretrained([tmp_path / "unet", unet(8)], budget_fraction=0.5)


def test_other_dtypes_and_sick_weights_are_refused(unet):
    with fails('"levels[0]" is torch.float64 on cpu, the top level torch.float32 on cpu'):
        MultilevelUNet([unet(4).double(), unet(8)], budget_fraction=0.5)
    sick = unet(8)
    sick.conv_in.weight[0, 0, 0, 0] = float("nan")
    with fails('"levels[1]" has NaN or infinite weights in conv_in.weight'):
        MultilevelUNet([unet(4), sick], budget_fraction=0.5)


def test_ladders_of_none_and_of_equals_are_refused(unet):
    model = unet(8)
    with fails('"budget_fraction" must be at least 1'):
        MultilevelUNet([model], budget_fraction=0.5)
    with fails('"levels" is empty, expected models, cheapest first'):
        MultilevelUNet([], budget_fraction=0.5)
    with fails('"levels" has the same model twice'):
        MultilevelUNet([model, model], budget_fraction=0.5)
    with fails('"costs" must strictly increase with the level'):
        MultilevelUNet([unet(8), unet(4)], budget_fraction=0.5)


@pytest.mark.parametrize("fraction", [0.0, -1.0, 1.5, float("nan"), True])
def test_budget_fractions_outside_the_interval_are_refused(unet, fraction):
    with fails(f'"budget_fraction" must be in (0, 1], got {fraction}'):
        MultilevelUNet([unet(4), unet(8)], budget_fraction=fraction, costs=COSTS)


def test_other_budgets_that_cannot_be_met_are_refused(unet):
    levels = [unet(4), unet(8)]
    with fails('"budget_fraction" must be at least 0.25, what the cheapest level costs'):
        MultilevelUNet(levels, budget_fraction=0.1, costs=[1.0, 4.0])
    with fails('give exactly one of "budget_fraction", "probabilities" and "plan"'):
        MultilevelUNet(levels, costs=COSTS)
    with fails('give exactly one of "budget_fraction", "probabilities" and "plan"'):
        MultilevelUNet(levels, budget_fraction=0.5, probabilities=[1.0, 0.5], costs=COSTS)
    with fails('"probabilities" has shape (3,), expected (2,)'):
        MultilevelUNet(levels, probabilities=[1.0, 0.5, 0.1], costs=COSTS)
    with fails('"probabilities" must lie in (0, 1]'):
        MultilevelUNet(levels, probabilities=[1.0, 1.5], costs=COSTS)
    with fails('"plan" was made for 3 levels, the ladder has 2'):
        MultilevelUNet(levels, plan=mls.Plan(torch.ones(4, 3), torch.ones(4, 3)), costs=COSTS)
    with fails('"schedule" must be a schedule with a scale', TypeError):
        MultilevelUNet(levels, budget_fraction=0.5, schedule=mls.SwitchSchedule([0.5]), costs=COSTS)
    with fails('"costs" has 3 entries for 2 drifts'):
        MultilevelUNet(levels, budget_fraction=0.5, costs=[1.0, 2.0, 3.0])


@pytest.mark.filterwarnings("ignore:the ladder does not know its pipeline")
def test_inputs_that_do_not_fit_are_named(unet):
    ladder = MultilevelUNet([unet(4), unet(8)], budget_fraction=0.5, costs=COSTS)
    with fails('the input of shape (1, 4, 8, 8) has 4 channels, "levels[0]" takes 3', RuntimeError):
        ladder(torch.zeros(1, 4, 8, 8), 5)
    with fails('the input is torch.float64, "levels[0]" torch.float32', RuntimeError):
        ladder(torch.zeros(1, 3, 8, 8).double(), 5)
    with fails("the input of shape (1, 3, 9, 9) must have a height and width that are multiples of 2", RuntimeError):
        ladder(torch.zeros(1, 3, 9, 9), 5)
    with fails('the model needs "sample" and "timestep", got sample', TypeError):
        ladder(torch.zeros(1, 3, 8, 8))


@pytest.mark.filterwarnings("ignore:the ladder does not know its pipeline")
def test_residuals_for_another_width_are_refused(conditional):
    ladder = MultilevelUNet([conditional(4), conditional(8)], budget_fraction=0.5, costs=COSTS)
    with fails('"mid_block_additional_residual" has the shapes of the top level'):
        ladder(
            torch.zeros(1, 4, 8, 8), 5, torch.zeros(1, 5, 16), mid_block_additional_residual=torch.zeros(1, 16, 4, 4)
        )


def test_pipelines_without_a_place_are_refused(unet, ddim):
    ladder = MultilevelUNet([unet(4), unet(8)], budget_fraction=0.5, costs=COSTS)
    with fails("\"slot\" is 'transformer', which DDIMPipeline does not have"):
        ladder.install(ddim(unet(8)), "transformer")
    with fails("has none of unet, transformer, transformer_2, decoder, prior"):
        ladder.install(object())
    pipe = ddim(ladder)
    with fails("the pipeline's unet is a ladder already"):
        multilevel(pipe, [unet(4)], budget_fraction=0.5, costs=COSTS)


def test_missing_and_damaged_files_are_named(unet, ddim, tmp_path):
    def load(path):
        return MultilevelUNet.from_pretrained([path, unet(8)], budget_fraction=0.5)

    unet(4).save_pretrained(tmp_path / "model")
    (tmp_path / "empty").mkdir()
    with fails("has no config.json, expected a folder written by save_pretrained", FileNotFoundError):
        load(tmp_path / "empty")
    ddim(unet(4)).save_pretrained(tmp_path / "pipe")
    with fails("it is a pipeline, add subfolder=", FileNotFoundError):
        load(tmp_path / "pipe")
    weights = tmp_path / "model" / "diffusion_pytorch_model.safetensors"
    data = weights.read_bytes()
    for length in (0, 5, 100, len(data) // 2, len(data) - 1):
        weights.write_bytes(data[:length])
        with fails(f'"levels[0]" at "{tmp_path / "model"}"'):
            load(tmp_path / "model")
    weights.unlink()
    with fails(f'"levels[0]" at "{tmp_path / "model"}"'):
        load(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{}")
    with fails("names no model class of diffusers"):
        load(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"_class_name":')
    with fails('"levels[0]"'):
        load(tmp_path / "model")


def test_a_checkpoint_that_lacks_weights_is_refused(unet, tmp_path):
    from safetensors.torch import load_file, save_file

    unet(4).save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors.pop("conv_in.weight")
    save_file(tensors, path, metadata={"format": "pt"})
    with fails("lacks 1 of its weights, such as conv_in.weight"):
        MultilevelUNet.from_pretrained([tmp_path, unet(8)], budget_fraction=0.5)


def test_damaged_ladders_never_load(unet, tmp_path):
    MultilevelUNet([unet(4), unet(8)], budget_fraction=0.5, costs=COSTS).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    text = path.read_text()
    config = json.loads(text)
    for length in range(0, len(text) - 2, 25):
        path.write_text(text[:length])
        with fails(f'"{path}"'):
            MultilevelUNet.from_pretrained(tmp_path)
    for change in (
        {"format": 3},
        {"draw": "lucky"},
        {"costs": "many"},
        {"costs": [2.0, 1.0]},
        {"_class_name": "UNet2DModel"},
        {"probabilities": [1.0, 7.0], "held": None},
        {"seed": None},
    ):
        path.write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=re.escape(str(tmp_path)) + "|costs|probabilities"):
            MultilevelUNet.from_pretrained(tmp_path)
    path.unlink()
    with fails("config.json is missing", FileNotFoundError):
        MultilevelUNet.from_pretrained(tmp_path)


def test_folders_are_numbered_from_one_and_those_from_zero_are_read(unet, tmp_path):
    saved = MultilevelUNet([unet(4), unet(8)], budget_fraction=0.5, costs=COSTS)
    saved.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "level_1", "level_2"]
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 1}))
    for level in range(2):
        (tmp_path / f"level_{level + 1}").rename(tmp_path / f"level_{level}")
    read = MultilevelUNet.from_pretrained(tmp_path)
    for one, other in zip(read.levels, saved.levels, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_an_interrupted_save_leaves_no_ladder(unet, tmp_path, monkeypatch):
    ladder = MultilevelUNet([unet(4), unet(8)], budget_fraction=0.5, costs=COSTS)
    ladder.save_pretrained(tmp_path)

    def full(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(ladder.levels[1], "save_pretrained", full)
    with fails("disk full", OSError):
        ladder.save_pretrained(tmp_path)
    with fails("was its save interrupted?", FileNotFoundError):
        MultilevelUNet.from_pretrained(tmp_path)


def test_what_cannot_be_loaded_again_is_not_saved(unet, tmp_path):
    class Own(diffusers.UNet2DModel):
        pass

    own = Own(**{k: v for k, v in unet(8).config.items() if not k.startswith("_")})
    with fails('"levels[1]" is a Own, which is not a class of diffusers'):
        MultilevelUNet([unet(4), own], budget_fraction=0.5).save_pretrained(tmp_path / "a")
    with fails('"safe_serialization" must be True'):
        MultilevelUNet([unet(4), unet(8)], budget_fraction=0.5, costs=COSTS).save_pretrained(tmp_path / "a", False)

    class Lucky:
        def __call__(self, probabilities, generator, samples=None):
            return probabilities > 0

        def either(self, p, q):
            return torch.ones_like(p)

    with fails('"draw" is none of independent, nested, systematic'):
        MultilevelUNet([unet(4), unet(8)], probabilities=[1.0, 0.5], draw=Lucky()).save_pretrained(tmp_path / "a")
    assert not (tmp_path / "a").exists()
