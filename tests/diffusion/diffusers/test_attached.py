"""A ladder as a hook: the images of the wrapper, a pipeline that keeps its model, one network alone, fits, advice."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

diffusers = pytest.importorskip("diffusers")

import multilevel_sde as mls  # noqa: E402
from multilevel_diffusion.diffusers import MultilevelUNet, attach  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:levels . and . differ"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

COSTS = (1.0, 8.0)
TRAILING = {"timestep_spacing": "trailing"}


def images(pipe: Any, steps: int = 8, seed: int = 0, count: int = 4) -> Tensor:
    generators = [torch.Generator().manual_seed(seed + n) for n in range(count)]
    return torch.as_tensor(
        pipe(batch_size=count, generator=generators, num_inference_steps=steps, output_type="np").images
    )


@pytest.mark.parametrize("name", ["dit", "sd3", "flux"])
def test_a_hook_gives_the_images_of_the_wrapper(transformer_pipeline, name: str):
    """Bit for bit; guidance in a doubled batch and in two calls. Detached, the pipeline is as before."""
    levels, pipe, run = transformer_pipeline(name)
    plain = run()
    with attach(pipe, levels[:-1], budget_fraction=0.5, costs=COSTS) as ladder:
        hooked = run()
        assert pipe.transformer is levels[-1]
        calls = ladder.stats.trajectory
    assert not torch.equal(hooked, plain)
    assert torch.equal(run(), plain)
    wrapper = MultilevelUNet(levels, budget_fraction=0.5, costs=COSTS).install(pipe)
    assert torch.equal(run(), hooked)
    assert wrapper.stats.trajectory == calls


def test_unet_pipelines_too(conditional, stable_diffusion, guided):
    scheduler = diffusers.DPMSolverMultistepScheduler()
    pipe = stable_diffusion(conditional(8), scheduler)
    plain = guided(pipe)
    ladder = attach(pipe, [conditional(4)], budget_fraction=0.6, costs=COSTS)
    hooked = guided(pipe)
    names = "UNet2DConditionModel < UNet2DConditionModel"
    assert repr(ladder) == f"Attached({names}; a call costs [1.0, 8.0] {ladder.costs.unit}; not calibrated)"
    ladder.detach()
    ladder.detach()
    assert torch.equal(guided(pipe), plain)
    MultilevelUNet([conditional(4), pipe.unet], budget_fraction=0.6, costs=COSTS).install(pipe)
    assert torch.equal(guided(pipe), hooked)


def test_the_pipeline_keeps_its_model(unet, ddim, tmp_path):
    """Its class, config, processors and files; other hooks still see every evaluation of the model itself."""
    from diffusers.hooks.hooks import HookRegistry, ModelHook

    pipe = ddim(unet(8), **TRAILING)
    seen = []

    class Watch(ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            seen.append(module)
            return args, kwargs

    HookRegistry.check_if_exists_or_initialize(pipe.unet).register_hook(Watch(), "watch")
    ladder = attach(pipe, [unet(4)], budget_fraction=0.5, costs=COSTS)
    images(pipe)
    assert len(seen) == ladder.stats.trajectory.evaluations[1] < 8
    assert type(pipe.unet).__name__ == "UNet2DModel"
    pipe.save_pretrained(tmp_path)
    again = diffusers.DDIMPipeline.from_pretrained(tmp_path)
    ladder.detach()
    again.set_progress_bar_config(disable=True)
    assert torch.equal(images(again), images(pipe))


def test_what_is_refused_leaves_the_pipeline_unchanged(unet, ddim):
    pipe = ddim(unet(8))
    with attach(pipe, [unet(4)], costs=COSTS), pytest.raises(ValueError, match="has a ladder attached already"):
        attach(pipe, [unet(4)], costs=COSTS)
    plain = images(pipe)
    with pytest.raises(ValueError, match="\"slot\" is 'transformer_2', which DDIMPipeline does not have"):
        attach(pipe, [unet(4)], slot="transformer_2")
    pipe.scheduler.register_to_config(clip_sample=True)
    with pytest.raises(ValueError, match="clip_sample=True"):
        attach(pipe, [unet(4)], costs=COSTS)
    pipe.scheduler.register_to_config(clip_sample=False)
    assert torch.equal(images(pipe), plain)


def test_lower_levels_follow_the_pipeline_to_another_dtype(unet, ddim):
    pipe, lower = ddim(unet(8)), unet(4)
    attach(pipe, [lower], budget_fraction=0.5, costs=COSTS)
    pipe.to(torch.float64)
    images(pipe)
    assert lower.dtype == torch.float64


def test_one_network_is_itself_until_it_is_calibrated(unet, ddim):
    pipe = ddim(unet(8), **TRAILING)
    plain = images(pipe, 10)
    ladder = attach(pipe)
    assert torch.equal(images(pipe, 10), plain)
    pilot = ladder.calibrate(pipe, num_inference_steps=10, progress=False)
    assert pilot.multistep[10].shape == (10, 3)
    assert pilot.cost == 4 * 10 * ladder.costs.costs[0]
    moved = images(pipe, 10)
    assert not torch.equal(moved, plain)
    assert ladder.stats.trajectory.evaluations == (10,)
    carried = images(pipe, 12)  # its method at other calls
    ladder.detach()
    assert not torch.equal(images(pipe, 12), carried)
    assert torch.equal(images(pipe, 10), plain)


class Smooth(diffusers.UNet2DModel):
    """x_0 of Gaussian data with a wave: smooth as a trained network is, in the place of one with random weights."""

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        table = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
        square = float(table[int(timestep)])
        data = 0.25 * square**0.5 * sample / (0.25 * square + 1 - square)
        data = data + 0.3 * (1 - square) ** 0.5 * torch.sin(2 * sample + self.shift)
        output = (sample - square**0.5 * data) / (1 - square) ** 0.5
        return diffusers.models.unets.unet_2d.UNet2DOutput(sample=output) if return_dict else (output,)


def smooth(shift: float) -> Any:
    model = Smooth(
        sample_size=8,
        block_out_channels=(4, 4),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    model.shift = shift
    return model.eval().requires_grad_(False)


def errors(pipe: Any, steps: int, fine: Tensor) -> float:
    return float((images(pipe, steps, seed=100) - fine).square().mean())


def test_a_fit_brings_one_network_nearer_to_its_fine_path(ddim):
    """On noise that took no part: the multistep method at most 0.6 of DDIM's error, its fit at most 0.6 of that."""
    pipe = ddim(smooth(0.0), **TRAILING)
    fine = images(pipe, 1000, seed=100)
    plain = errors(pipe, 10, fine)
    ladder = attach(pipe, costs=[1.0])
    ladder.calibrate(pipe, num_inference_steps=10, progress=False)
    method = errors(pipe, 10, fine)
    ladder.calibrate(pipe, num_inference_steps=10, samples=8, fit=True, progress=False)
    fitted = errors(pipe, 10, fine)
    assert method < 0.6 * plain
    assert fitted < 0.6 * method
    assert ladder.stats.trajectory.evaluations == (10,)
    assert ladder.advise().text.startswith("Keep the fitted plan: mean squared error ")
    assert " Without a fit: Use 10 steps" in ladder.advise().text  # no word of a ladder
    with pytest.warns(
        UserWarning, match="at other noise levels than in the calibration, so the plan is carried over, w"
    ):
        unfitted = errors(pipe, 14, fine)
    assert errors(pipe, 10, fine) == fitted
    ladder.allocate(budget_fraction=1.0)
    assert errors(pipe, 14, fine) == unfitted
    assert "fitted" not in ladder.advise().text
    assert errors(pipe, 10, fine) == method
    carried = errors(pipe, 14, fine)  # its method at other calls
    ladder.detach()
    assert carried < 0.6 * errors(pipe, 14, fine)


def test_a_fit_of_a_ladder_keeps_what_is_evaluated_when(ddim):
    pipe = ddim(smooth(0.0), **TRAILING)
    fine = images(pipe, 1000, seed=100)
    ladder = attach(pipe, [smooth(0.1)], budget_fraction=0.4, costs=[1.0, 10.0])
    ladder.calibrate(pipe, num_inference_steps=10, samples=8, progress=False)
    method, plan = errors(pipe, 10, fine), ladder.plan
    ladder.calibrate(pipe, num_inference_steps=10, samples=8, fit=True, progress=False)
    fitted = errors(pipe, 10, fine)
    assert fitted < method
    assert plan is not None
    assert ladder.plan is not None
    assert plan != ladder.plan
    assert ladder.stats.trajectory.fraction <= 0.4


def test_advice_compares_with_fewer_steps(ddim):
    """The text names the best alternative that was measured, and the numbers are those of the runs."""
    pipe = ddim(smooth(0.0), **TRAILING)
    ladder = attach(pipe, [smooth(0.3)], budget_fraction=0.3, costs=[1.0, 100.0])
    with pytest.raises(ValueError, match="the ladder has measured nothing yet"):
        ladder.advise()
    pilot = ladder.calibrate(pipe, num_inference_steps=20, compare=True, progress=False)
    singles = {(one.steps, one.multistep): one.error for one in pilot.singles}
    assert {steps for steps, _ in singles} == {3, 4, 5, 6, 8, 10, 12, 15, 20}
    assert singles[10, True] < singles[10, False]
    advice = ladder.advise()
    assert advice.pays
    assert "Use levels 1, 2 with 20 steps" in advice.text
    assert advice.single.predicted.mse == pytest.approx(singles[5, True])
    assert ladder.advise(0.05).best.predicted.cost <= 1.0
    useless = ddim(smooth(0.0), **TRAILING)
    ladder = attach(useless, [smooth(2.0)], budget_fraction=0.95, costs=[9.0, 10.0])
    ladder.calibrate(useless, num_inference_steps=20, compare=True, progress=False)
    assert "This ladder does not pay here: use level 2 alone with" in ladder.advise().text


def test_a_scheduler_that_begins_elsewhere_with_more_steps_has_no_fine_path(ddim):
    pipe = ddim(smooth(0.0), timestep_spacing="leading")
    ladder = attach(pipe, costs=[1.0])
    with pytest.raises(ValueError, match='so there is no fine path to compare with; set timestep_spacing="trailing"'):
        ladder.calibrate(pipe, num_inference_steps=10, fit=True, progress=False)
    with pytest.raises(ValueError, match='"samples" is 4, expected at least 8'):
        ladder.calibrate(pipe, num_inference_steps=10, samples=4, fit=True, progress=False)


def test_noise_is_the_same_in_all_runs_of_a_pilot(ddim, unet):
    """DDPM and DDIM with eta: the pilot's prediction of the plan that adds every correction is no error at all."""
    pipe = ddim(smooth(0.0), **TRAILING)
    ladder = attach(pipe, [smooth(0.1)], budget_fraction=0.5, costs=[1.0, 10.0])
    pilot = ladder.calibrate(pipe, num_inference_steps=12, eta=1.0, progress=False)
    errors = [one.measured for one in pilot.calibration]
    assert errors[1] < errors[0]  # more corrections err less, which runs with other noise would hide
    assert pilot.multistep[12].shape == (12, 2)  # the predictor alone, as for an SDE


def test_copies_of_a_pipeline_do_not_share_a_ladder(unet, ddim):
    pipe = ddim(unet(8), **TRAILING)
    ladder = attach(pipe, [unet(4)], budget_fraction=0.5, costs=COSTS)
    hooked = images(pipe)
    ladder.detach()
    other = copy.deepcopy(pipe)
    attach(other, [unet(4)], budget_fraction=0.5, costs=COSTS)
    assert torch.equal(images(other), hooked)
    assert not torch.equal(images(pipe), hooked)


def test_plans_of_solve_are_followed(unet, ddim):
    """A plan of one's own is taken as for the wrapper, and one for another number of levels refused."""
    pipe = ddim(unet(8), **TRAILING)
    plan = mls.Plan(torch.ones(8, 3, dtype=torch.bool), torch.ones(8, 3))
    with pytest.raises(ValueError, match="3 levels"):
        attach(pipe, [unet(4)], plan=plan, costs=COSTS)
