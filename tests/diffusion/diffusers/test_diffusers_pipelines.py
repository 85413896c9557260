"""Stock pipelines with a ladder in the place of their denoiser: schedulers, guidance, interruption, files."""

from __future__ import annotations

import re

import pytest
import torch
from places import DOCS

diffusers = pytest.importorskip("diffusers")

import multilevel_sde as mls  # noqa: E402
from multilevel_diffusion.diffusers.wrapper import MultilevelUNet, multilevel  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:levels . and . differ"),
    pytest.mark.filterwarnings("ignore:the ladder does not know its pipeline"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

COSTS = (1.0, 4.0)

SCHEDULERS = {
    "DDIMScheduler": {"clip_sample": False},
    "DDPMScheduler": {"clip_sample": False},
    "DEISMultistepScheduler": {},
    "DPMSolverMultistepScheduler": {},
    "DPMSolverSDEScheduler": {"noise_sampler_seed": 0},
    "DPMSolverSinglestepScheduler": {},
    "EDMDPMSolverMultistepScheduler": {},
    "EDMEulerScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "EulerDiscreteScheduler": {},
    "HeunDiscreteScheduler": {},
    "IPNDMScheduler": {},
    "KDPM2AncestralDiscreteScheduler": {},
    "KDPM2DiscreteScheduler": {},
    "LCMScheduler": {},
    "LMSDiscreteScheduler": {},
    "PNDMScheduler": {},
    "SASolverScheduler": {},
    "TCDScheduler": {},
    "UniPCMultistepScheduler": {},
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_fixed_step_scheduler(conditional, stable_diffusion, guided, name: str):
    """The top model at p = 1; below it the calls, the draw and the image are the same in every run, linked or not."""
    levels = [conditional(4), conditional(8)]
    pipe = stable_diffusion(levels[1], getattr(diffusers, name)(**SCHEDULERS[name]))
    plain = guided(pipe)
    ladder = multilevel(pipe, [levels[0]], budget_fraction=1.0, costs=COSTS, draw=mls.systematic)
    assert torch.equal(guided(pipe), plain)
    ladder.allocate(budget_fraction=0.6)
    first = guided(pipe)
    calls = ladder.stats.trajectory
    assert calls.calls == len(pipe.scheduler.timesteps)
    assert 0 < calls.evaluations[1] < calls.calls
    assert first.isfinite().all()
    assert not torch.equal(first, plain)
    assert torch.equal(guided(pipe), first)
    unlinked = MultilevelUNet(levels, budget_fraction=0.6, costs=COSTS, draw=mls.systematic)
    pipe.unet = unlinked
    assert torch.equal(guided(pipe), first)
    assert unlinked.stats.trajectory == calls


@pytest.mark.parametrize("name", ["dit", "sd3", "flux"])
def test_transformer_pipelines(transformer_pipeline, name: str):
    levels, pipe, run = transformer_pipeline(name)
    plain = run()
    ladder = multilevel(pipe, levels[:-1], budget_fraction=1.0, costs=COSTS, draw=mls.systematic)
    assert torch.equal(run(), plain)
    ladder.allocate(budget_fraction=0.6)
    first = run()
    assert torch.equal(run(), first)
    assert not torch.equal(first, plain)
    halves = 2 if name == "flux" else 1  # Flux asks twice a step, on one state: the halves share the draw
    stats = ladder.stats.trajectory
    assert stats.calls == 6 * halves
    assert all(n % halves == 0 for n in stats.evaluations)
    pipe.transformer = unlinked = MultilevelUNet(levels, budget_fraction=0.6, costs=COSTS, draw=mls.systematic)
    assert torch.equal(run(), first)
    assert unlinked.stats.trajectory == stats


def test_flow_matching_heun(transformer_pipeline):
    levels, pipe, run = transformer_pipeline("sd3")
    pipe.scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    ladder = multilevel(pipe, levels[:-1], budget_fraction=0.6, costs=COSTS)
    first = run()
    assert ladder.stats.trajectory.calls == 11
    assert torch.equal(run(), first)


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("name", ["DDIMScheduler", "HeunDiscreteScheduler"])
def test_an_interrupted_run_leaves_nothing_behind(conditional, stable_diffusion, guided, name: str, linked: bool):
    pipe = stable_diffusion(conditional(8), getattr(diffusers, name)(clip_sample=False))
    ladder = MultilevelUNet([conditional(4), conditional(8)], budget_fraction=0.6, costs=COSTS)
    if linked:
        ladder.install(pipe)
    else:
        pipe.unet = ladder
    first = guided(pipe)
    for last in (0, 1, 3):

        def stop(pipe, step, t, kwargs, last=last):
            if step == last:
                raise KeyboardInterrupt
            return kwargs

        with pytest.raises(KeyboardInterrupt):
            guided(pipe, callback_on_step_end=stop)
        assert torch.equal(guided(pipe), first)


def test_ddpm_pipeline(unet):
    pipe = diffusers.DDPMPipeline(unet(8), diffusers.DDPMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    ladder = multilevel(pipe, [unet(4)], budget_fraction=0.5)
    assert pipe(num_inference_steps=7, output_type="np").images.shape == (1, 8, 8, 3)
    assert ladder.stats.trajectory.calls == 7


def test_a_plan_runs_only_with_its_number_of_calls(unet, ddim):
    pipe = ddim(unet(8))
    weights = torch.tensor([[1.0, 2.0], [1.0, 0.0], [1.0, 2.0], [1.0, 0.0]], dtype=torch.float64)
    ladder = multilevel(pipe, [unet(4)], plan=mls.Plan(weights > 0, weights), costs=COSTS)
    pipe(num_inference_steps=4, output_type="np")
    assert ladder.stats.trajectory.evaluations == (4, 2)
    with pytest.raises(ValueError, match='"plan" has 4 steps, the scheduler makes 5 calls'):
        pipe(num_inference_steps=5, output_type="np")


def test_a_plan_is_read_from_where_image_to_image_begins(conditional, stable_diffusion):
    """Half the strength runs the second half of the timesteps, hence of the plan."""
    levels = [conditional(4), conditional(8)]
    for scheduler in (diffusers.DDIMScheduler(clip_sample=False), diffusers.EulerDiscreteScheduler()):
        text_to_image = stable_diffusion(levels[1], scheduler)
        parts = dict(text_to_image.components)
        pipe = diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        weights = torch.tensor([[1.0, 1.0]] * 3 + [[1.0, 2.0], [1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
        ladder = multilevel(pipe, levels[:1], plan=mls.Plan(weights > 0, weights), costs=COSTS)
        pipe(
            image=torch.zeros(1, 3, 16, 16),
            strength=0.5,
            prompt_embeds=torch.zeros(1, 5, 16),
            negative_prompt_embeds=torch.zeros(1, 5, 16),
            num_inference_steps=6,
            output_type="latent",
        )
        assert ladder.stats.trajectory.evaluations == (3, 1)


def images(pipe) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.as_tensor(pipe(num_inference_steps=6, output_type="np", generator=generator).images)


def assert_same_but_for_alignment(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Loaded weights lie at other addresses in a mapped file, and some processors' kernels then round differently."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("draw", [mls.systematic, mls.independent])
def test_save_and_load_with_the_pipeline(unet, ddim, tmp_path, draw: mls.Draw):
    pipe = ddim(unet(12))
    ladder = multilevel(pipe, [unet(4), unet(8)], budget_fraction=0.5, draw=draw, seed=3)
    before = images(pipe)
    pipe.save_pretrained(tmp_path)
    again = diffusers.DDIMPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert isinstance(again.unet, MultilevelUNet)
    assert_same_but_for_alignment(images(again), before)
    assert again.unet.stats.trajectory == ladder.stats.trajectory
    assert (again.unet.costs, again.unet.seed) == (ladder.costs, 3)


def test_save_and_load_stable_diffusion_with_a_plan(conditional, stable_diffusion, guided, tmp_path):
    pipe = stable_diffusion(conditional(8), diffusers.DDIMScheduler(clip_sample=False))
    weights = torch.tensor([[1.0, 3.0], [1.0, 0.0], [1.0, 0.0]] * 2, dtype=torch.float64)[:4]
    multilevel(pipe, [conditional(4)], plan=mls.Plan(weights > 0, weights), costs=COSTS)
    before = guided(pipe)
    pipe.save_pretrained(tmp_path)
    again = diffusers.StableDiffusionPipeline.from_pretrained(
        tmp_path, safety_checker=None, text_encoder=None, tokenizer=None, feature_extractor=None
    )
    again.set_progress_bar_config(disable=True)
    assert torch.equal(guided(again), before)
    assert torch.equal(again.unet.plan.weights, weights)


def test_save_and_load_flux(transformer_pipeline, tmp_path):
    levels, pipe, run = transformer_pipeline("flux")
    multilevel(pipe, levels[:-1], budget_fraction=0.6, costs=COSTS)
    before = run()
    pipe.save_pretrained(tmp_path)
    MultilevelUNet.from_pretrained(tmp_path, subfolder="transformer").install(pipe)
    assert_same_but_for_alignment(run(), before)


def test_folders_and_models_make_a_ladder(unet, ddim, tmp_path):
    unet(4).save_pretrained(tmp_path / "small")
    ddim(unet(8)).save_pretrained(tmp_path / "pipeline")
    ladder = MultilevelUNet.from_pretrained(
        [tmp_path / "small", str(tmp_path / "pipeline" / "unet"), unet(12)],
        budget_fraction=0.5,
        seed=4,
        costs=[1.0, 4.0, 9.0],
    )
    models = MultilevelUNet([unet(4), unet(8), unet(12)], budget_fraction=0.5, seed=4, costs=[1.0, 4.0, 9.0])
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for t in (900, 600, 300):
        assert_same_but_for_alignment(ladder(x.clone(), t).sample, models(x.clone(), t).sample)


def test_a_saved_ladder_takes_a_new_budget(unet, tmp_path):
    MultilevelUNet([unet(4), unet(8)], budget_fraction=0.5, costs=[1.0, 4.0]).save_pretrained(tmp_path)
    ladder = MultilevelUNet.from_pretrained(tmp_path, budget_fraction=0.75, seed=9)
    assert ladder.probabilities.tolist() == pytest.approx([1.0, 0.5])
    assert (ladder.costs.costs, ladder.seed) == ([1.0, 4.0], 9)
    assert MultilevelUNet.from_pretrained(tmp_path, torch_dtype=torch.float16).dtype == torch.float16


def test_lower_levels_from_folders_follow_the_pipelines_dtype(unet, ddim, tmp_path):
    unet(4).save_pretrained(tmp_path)
    pipe = ddim(unet(8).to(torch.bfloat16))
    ladder = multilevel(pipe, [tmp_path], budget_fraction=0.5)
    assert {level.dtype for level in ladder.levels} == {torch.bfloat16}


class Bimodal(diffusers.ModelMixin, diffusers.ConfigMixin):
    """The exact noise prediction for data at +1 and -1 with deviation 0.2, off by a smooth error."""

    config_name = "config.json"

    @diffusers.configuration_utils.register_to_config
    def __init__(self, error: float = 0.0, in_channels: int = 1):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1, dtype=torch.float64), requires_grad=False)
        self.alphas = diffusers.DDIMScheduler().alphas_cumprod.double()

    def forward(self, sample, timestep, return_dict: bool = True):
        alpha = self.alphas[int(timestep)]
        spread = 0.04 * alpha + 1 - alpha
        mean = alpha.sqrt() * torch.tanh(alpha.sqrt() * sample / spread)
        noise = (1 - alpha).sqrt() * (sample - mean) / spread + self.config["error"] * torch.sin(3 * sample)
        return (noise * self.scale,)


def test_clipping_is_as_harmful_as_the_refusal_says():
    """Mean squared error to the top model with the same clipping, p = 0.1, 200 DDIM steps, mean over 8 draws."""
    levels = [Bimodal(error=0.1), Bimodal()]
    x0 = torch.randn(256, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def run(model, clip: bool) -> torch.Tensor:
        scheduler, x = diffusers.DDIMScheduler(clip_sample=clip), x0
        scheduler.set_timesteps(200)
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t, return_dict=False)[0], t, x).prev_sample
        return x

    def error(clip: bool) -> float:
        top = run(levels[1], clip)
        ladder = MultilevelUNet(levels, probabilities=[1.0, 0.1], draw=mls.independent, costs=COSTS)
        errors = []
        for ladder.seed in range(8):
            errors.append(float((run(ladder, clip) - top).square().mean()))
        return sum(errors) / len(errors)

    assert error(clip=True) > 100 * error(clip=False)


def test_the_example_of_the_documentation_runs(tmp_path, monkeypatch, capsys):
    page = DOCS / "diffusers.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    expected = re.search(r"```text\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert expected is not None
    monkeypatch.chdir(tmp_path)
    exec("\n".join(blocks), {})
    assert capsys.readouterr().out == expected.group(1)
