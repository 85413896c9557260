"""A pilot inside pipelines: exact where the first order is, better than fixed probabilities, and leaving no trace."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

diffusers = pytest.importorskip("diffusers")

from diffusers.configuration_utils import ConfigMixin, register_to_config  # noqa: E402
from diffusers.models.modeling_utils import ModelMixin  # noqa: E402
from diffusers.models.unets.unet_2d import UNet2DOutput  # noqa: E402
from diffusers.utils.torch_utils import randn_tensor  # noqa: E402

import multilevel_sde as mls  # noqa: E402
from multilevel_diffusion.diffusers.wrapper import MultilevelUNet, multilevel  # noqa: E402
from multilevel_diffusion.loops.black_box import black_box_pilot  # noqa: E402
from multilevel_sde.pilots.answers import Form  # noqa: E402
from multilevel_sde.pilots.responses import Responses  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:levels . and . differ"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

COSTS = (1.0, 8.0)


class Affine(ModelMixin, ConfigMixin):
    """0.1 x + shift (1 + t / 1000): levels that differ by numbers that do not depend on the state."""

    @register_to_config
    def __init__(self, shift: float = 0.0, in_channels: int = 3, out_channels: int = 3):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(0.1, dtype=torch.float64), requires_grad=False)

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> Any:
        value = self.slope * sample + self.config["shift"] * (1 + timestep / 1000)
        return UNet2DOutput(sample=value) if return_dict else (value,)


class Sampler(diffusers.DiffusionPipeline):
    """A user's own pipeline, which returns the state."""

    def __init__(self, unet: Any, scheduler: Any):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def __call__(self, batch_size: int = 1, generator: Any = None, num_inference_steps: int = 10) -> Tensor:
        self.scheduler.set_timesteps(num_inference_steps)
        state = randn_tensor((batch_size, 3, 2, 2), generator=generator, dtype=torch.float64)
        state = state * self.scheduler.init_noise_sigma
        for t in self.progress_bar(self.scheduler.timesteps):
            output = self.unet(self.scheduler.scale_model_input(state, t), t).sample
            state = self.scheduler.step(output, t, state).prev_sample
        return state


def exact_error(gram: torch.Tensor, plan: mls.Plan) -> float:
    """The first-order error by the measured matrix itself, without shrinkage."""
    return Responses(gram, gram, gram, torch.ones(plan.steps, plan.levels - 1)).error(plan.weights)


def generators(samples: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + sample) for sample in range(samples)]


@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler", "HeunDiscreteScheduler"])
def test_the_prediction_is_exact_where_levels_differ_by_constants(name: str):
    """Plans with weights of any kind, also for schedulers with memory or two calls a step: equal to rounding."""
    options = {"clip_sample": False} if name == "DDIMScheduler" else {}
    pipe = Sampler(Affine(0.5), getattr(diffusers, name)(**options))
    ladder = multilevel(pipe, [Affine(0.1), Affine(0.3)], budget_fraction=1.0, costs=(1.0, 3.0, 9.0))
    exact = pipe(4, generators(4), 10)
    pilot = ladder.calibrate(pipe, num_inference_steps=10, samples=4, progress=False)
    weights = torch.rand(pilot.steps, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights[:, 0] = 1.0
    weights[1::3, 1] = weights[::2, 2] = 0.0
    plan = mls.Plan(weights != 0, weights)
    ladder.allocate(plan=plan)
    measured = float((pipe(4, generators(4), 10) - exact).square().mean())
    assert measured > 1e-4
    assert exact_error(pilot.gram, plan) == pytest.approx(measured, rel=1e-5)  # responses are kept in float32


def linear(steps: int, slope: float, shifts: tuple[float, float]) -> Any:
    """Euler for dx = slope x + shift over [0, 1], as a sampler that asks for its drift."""

    def run(answer: Any) -> Tensor:
        x = torch.linspace(-1.0, 1.0, 4, dtype=torch.float64)[:, None]
        for n in range(steps):
            x = x + answer(n, lambda level, x=x: slope * x + shifts[level]) / steps
        return x

    return run


def ladder_of_two() -> mls.Ladder:
    return mls.Ladder([lambda x, t: x, lambda x, t: x], costs=[1.0, 10.0])  # only the costs are used


def test_responses_are_those_of_the_linear_recursion():
    """R(n) = h D (1 + h a)^(M - 1 - n) for Euler's step h and slope a; every call costs what it evaluates."""
    steps, slope = 12, -1.5
    pilot = black_box_pilot(linear(steps, slope, (0.2, 0.9)), ladder_of_two())
    response = 0.7 / steps * (1 + slope / steps) ** torch.arange(steps - 1, -1, -1, dtype=torch.float64)
    torch.testing.assert_close(pilot.gram, torch.outer(response, response), rtol=1e-6, atol=0)
    torch.testing.assert_close(pilot.variances, torch.full((steps, 1), 0.49, dtype=torch.float64))
    spent = 4 * (steps * 11.0 + steps * (steps - 1) / 2)
    assert spent < pilot.cost <= spent + 4 * steps * (2 * 1.0 + (0.1 + 0.3) * 10.0)


def test_candidates_are_interpolated():
    """Without a slope the responses of all calls are equal, so three candidates give the matrix of all."""
    every, few = (black_box_pilot(linear(12, 0.0, (0.2, 0.9)), ladder_of_two(), candidates=n) for n in (None, 3))
    torch.testing.assert_close(few.gram, every.gram, rtol=1e-6, atol=0)
    assert few.cost < every.cost


def test_the_plan_beats_fixed_probabilities_within_the_budget(unet, ddim):
    """On held-out noise, against the mean over 4 systematic draws with p = C/T at the same budget: less than half."""
    pipe = ddim(unet(8))
    options = {"num_inference_steps": 12, "output_type": "np", "batch_size": 4}

    def run() -> Tensor:
        return torch.as_tensor(pipe(generator=generators(4, seed=100), **options).images)

    plain = run()
    ladder = multilevel(pipe, [unet(4)], budget_fraction=0.5, costs=COSTS)
    ladder.calibrate(pipe, num_inference_steps=12, samples=4, progress=False)
    for budget in (0.35, 0.6):
        drawn = []
        ladder.allocate(budget_fraction=budget, schedule=mls.InverseCostSchedule())
        for seed in range(4):
            ladder.seed = seed
            drawn.append(float((run() - plain).square().mean()))
        ladder.allocate(budget_fraction=budget)
        planned = float((run() - plain).square().mean())
        assert ladder.stats.trajectory.fraction <= budget
        assert planned < 0.5 * sum(drawn) / len(drawn)


def test_files_keep_plan_and_pilot(unet, ddim, tmp_path: Path):
    pipe = ddim(unet(8))
    ladder = multilevel(pipe, [unet(4)], budget_fraction=0.5, costs=COSTS)
    pilot = ladder.calibrate(pipe, num_inference_steps=10, samples=2, progress=False)
    ladder.save_pretrained(tmp_path)
    assert (tmp_path / "pilot.safetensors").is_file()
    loaded = MultilevelUNet.from_pretrained(tmp_path)
    assert loaded.plan is not None
    assert loaded.plan == ladder.plan
    for other in (loaded, MultilevelUNet.from_pretrained(tmp_path, budget_fraction=0.3)):
        other.allocate(budget_fraction=0.3)
        assert other.plan is not None
        assert other.plan.evaluations.tolist() == pilot.plan(budget=0.3 * 80).plan.evaluations.tolist()
    fixed = MultilevelUNet.from_pretrained(tmp_path, budget_fraction=0.3, schedule=mls.InverseCostSchedule())
    assert fixed.plan is None
    loaded.allocate(budget_fraction=1.0)
    assert loaded.probabilities is not None
    assert bool((loaded.probabilities == 1).all())
    (tmp_path / "pilot.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no pilot"):
        MultilevelUNet.from_pretrained(tmp_path)


def test_nothing_is_left_behind(conditional, stable_diffusion, guided):
    """Images with another seed than the pilot's, statistics, global numbers and the pipeline, also after a failure."""
    pipe = stable_diffusion(conditional(8), diffusers.DDPMScheduler(clip_sample=False))
    ladder = multilevel(pipe, [conditional(4)], budget_fraction=0.6, costs=COSTS, draw=mls.systematic)
    first = guided(pipe, steps=10)
    stats, table = ladder.stats, ladder.probabilities
    bar, numbers = copy.copy(pipe._progress_bar_config), torch.random.get_rng_state()
    text = torch.randn(2, 1, 5, 16, generator=torch.Generator().manual_seed(5))
    given = {"prompt_embeds": text[0], "negative_prompt_embeds": text[1], "height": 16, "width": 16}
    seen = []

    def stop(pipe, step, t, kwargs):
        seen.append(step)
        if len(seen) == 35:
            raise KeyboardInterrupt
        return kwargs

    options = {"num_inference_steps": 10, "samples": 2, "guidance_scale": 3.0, "progress": False, **given}
    with pytest.raises(KeyboardInterrupt):
        ladder.calibrate(pipe, callback_on_step_end=stop, **options)

    def check() -> None:
        assert ladder.stats == stats
        assert pipe._progress_bar_config == bar
        assert torch.equal(torch.random.get_rng_state(), numbers)
        assert "step" not in vars(pipe.scheduler)

    check()
    assert ladder.plan is None
    pilot = ladder.calibrate(pipe, **options)
    check()
    assert ladder.plan is not None
    assert ladder.plan.steps == 10
    assert pilot.cost > 0
    ladder.allocate(probabilities=table)
    assert torch.equal(guided(pipe, steps=10), first)


@pytest.mark.parametrize("name", ["dit", "sd3", "flux"])
def test_transformer_pipelines(transformer_pipeline, name: str):
    """Guidance in a doubled batch or in two calls, schedulers without a generator: plans that remember are run."""
    levels, pipe, _ = transformer_pipeline(name)
    if name == "dit":
        pipe.scheduler = diffusers.DDPMScheduler(clip_sample=False)
        given = {"class_labels": [1, 2], "guidance_scale": 2.0}
    else:
        text = torch.randn(2, 4, 5, 16, generator=torch.Generator().manual_seed(5))
        pooled = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(6))
        given = {"prompt_embeds": text[0], "pooled_prompt_embeds": pooled[0], "height": 16, "width": 16}
        given |= {"negative_prompt_embeds": text[1], "negative_pooled_prompt_embeds": pooled[1]}
        given |= {"guidance_scale": 3.0} if name == "sd3" else {"true_cfg_scale": 3.0}
    ladder = multilevel(pipe, levels[:-1], budget_fraction=0.5, costs=COSTS)
    pilot = ladder.calibrate(pipe, num_inference_steps=8, samples=4, progress=False, **given)
    assert pilot.samples == 4
    assert pilot.steps == 8
    assert ladder.plan is not None
    assert float(ladder.plan.evaluations.double() @ torch.tensor(COSTS, dtype=torch.float64)) <= 0.5 * 8 * COSTS[-1]
    assert {one.form for one in pilot.calibration} == {Form.TRACKED}


def test_bad_input(unet, ddim):
    pipe = ddim(unet(8))
    ladder = MultilevelUNet([unet(4), unet(8)], budget_fraction=0.5, costs=COSTS)
    with pytest.raises(ValueError, match="not the pipeline that the ladder is in, nor has it its model"):
        ladder.calibrate(pipe, num_inference_steps=10)
    ladder.install(pipe)
    options = {"progress": False, "samples": 2}
    with pytest.raises(ValueError, match='"generator" is set by the pilot'):
        ladder.calibrate(pipe, num_inference_steps=10, generator=torch.Generator(), **options)
    with pytest.raises(ValueError, match="makes 4 calls, a pilot needs at least 8"):
        ladder.calibrate(pipe, num_inference_steps=4, **options)
    with pytest.raises(ValueError, match="returned 1 samples"):
        ladder.calibrate(pipe, num_inference_steps=10, samples=1, progress=False)
    with pytest.raises(ValueError, match='"candidates" must be at least 2'):
        ladder.calibrate(pipe, num_inference_steps=10, candidates=1, **options)
    same = MultilevelUNet([unet(4), unet(4)], budget_fraction=0.9, costs=COSTS).install(pipe)
    with pytest.raises(ValueError, match="levels that are equal"):
        same.calibrate(pipe, num_inference_steps=10, **options)
    pipe.scheduler = diffusers.DDIMScheduler(clip_sample=True)
    ladder = MultilevelUNet([unet(4), unet(8)], budget_fraction=1.0, costs=COSTS).install(pipe)
    with pytest.raises(ValueError, match="clip_sample"):
        ladder.calibrate(pipe, num_inference_steps=10, **options)
    calls = iter([12, 11])
    with pytest.raises(ValueError, match="did not make the same calls"):
        black_box_pilot(lambda answer: linear(next(calls, 13), 0.0, (0.1, 0.2))(answer), ladder_of_two())
