"""Every family in its own pipeline: attached, run, counted, priced by FLOPs; what is special in some of them."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from families import FAMILIES, Family, quiet, sd, skyreels, text, vace, zimage  # noqa: E402

import multilevel_sde as mls  # noqa: E402
from multilevel_diffusion.diffusers import attach, multilevel  # noqa: E402
from multilevel_diffusion.diffusers.calibration import PipelineRun  # noqa: E402
from multilevel_diffusion.diffusers.checks import is_affine  # noqa: E402

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
