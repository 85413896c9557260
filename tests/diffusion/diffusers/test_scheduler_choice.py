"""The scheduler that is proposed: the grid on which the largest network alone errs least, measured independently."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

diffusers = pytest.importorskip("diffusers")

from diffusers.models.unets.unet_2d import UNet2DOutput  # noqa: E402
from families import cosmos, zimage  # noqa: E402

from multilevel_diffusion.diffusers import attach  # noqa: E402
from multilevel_diffusion.diffusers.scheduler_choice import on_other_grids  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SAMPLES = 16


class Bimodal(diffusers.ModelMixin, diffusers.ConfigMixin):
    """What a perfect network says of data at +1 and -1 with deviation 0.2: the velocity of the straight path or eps."""

    config_name = "config.json"

    @diffusers.configuration_utils.register_to_config
    def __init__(self, flow: bool = True, in_channels: int = 1, out_channels: int = 1):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1, dtype=torch.float64), requires_grad=False)
        self.alphas = diffusers.DDIMScheduler().alphas_cumprod.double()

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> Any:
        t = float(timestep)
        alpha, sigma = (1 - t / 1000, t / 1000) if self.config["flow"] else self._levels(t)
        spread = 0.04 * alpha**2 + sigma**2
        data = (0.04 * alpha * sample + sigma**2 * torch.tanh(alpha * sample / spread)) / spread
        said = (sample - alpha * data) / sigma
        return UNet2DOutput(sample=(said - data if self.config["flow"] else said) * self.scale)

    def _levels(self, t: float) -> tuple[float, float]:
        square = float(self.alphas[round(t)])
        return square**0.5, (1 - square) ** 0.5


class Pipe(diffusers.DiffusionPipeline):
    """A loop that returns the state."""

    def __init__(self, unet: Any, scheduler: Any):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def __call__(self, batch_size: int = 1, generator: Any = None, num_inference_steps: int = 8) -> Tensor:
        self.scheduler.set_timesteps(num_inference_steps)
        state = torch.stack([torch.randn(1, 2, 2, generator=one, dtype=torch.float64) for one in generator])
        for t in self.scheduler.timesteps:
            state = self.scheduler.step(self.unet(state, t).sample, t, state).prev_sample
        return state


def generators(first: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + n) for n in range(SAMPLES)]


def flow_pipe(shift: float, euler: bool = True) -> Pipe:
    if euler:
        return Pipe(Bimodal(), diffusers.FlowMatchEulerDiscreteScheduler(shift=shift))
    options = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
    return Pipe(Bimodal(), diffusers.DPMSolverMultistepScheduler(solver_order=1, **options))


def error(pipe: Pipe, steps: int, target: Tensor, *, calibrated: bool = True) -> float:
    """Of other samples, by the multistep method of plans or by the scheduler's own steps."""
    if not calibrated:
        return float((pipe(SAMPLES, generators(500), steps) - target).square().mean())
    with attach(pipe) as ladder:
        ladder.calibrate(pipe, num_inference_steps=steps, progress=False)
        return float((pipe(SAMPLES, generators(500), steps) - target).square().mean())


@pytest.fixture(scope="module")
def target() -> Tensor:
    """Where the exact path ends."""
    return flow_pipe(1.0)(SAMPLES, generators(500), 4000)


@pytest.mark.parametrize("given", [1.0, 5.0])
def test_the_shift_that_errs_least_on_other_samples_is_proposed(given: float, target: Tensor):
    grids = [(shift, euler) for shift in (1.0, 2.0, 3.0, 5.0) for euler in (True, False)]
    errors = {grid: error(flow_pipe(*grid), 10, target) for grid in grids}
    pipe = flow_pipe(given)
    ladder = attach(pipe)
    found = ladder.scheduler(pipe, num_inference_steps=10, samples=SAMPLES, progress=False)
    chosen = (found.config.shift, True) if "shift" in found.config else (found.config.flow_shift, False)
    assert max(errors.values()) > 2 * min(errors.values())
    assert errors[chosen] < 1.1 * min(errors.values())


def test_the_pipeline_is_as_before():
    pipe = flow_pipe(1.0)
    before, scheduler = pipe(SAMPLES, generators(0)), pipe.scheduler
    ladder = attach(pipe)
    ladder.scheduler(pipe, num_inference_steps=6, progress=False)
    assert pipe.scheduler is scheduler
    assert ladder.stats.total.calls == 0
    assert torch.equal(pipe(SAMPLES, generators(0)), before)


def test_a_scheduler_of_noise_is_offered_on_other_grids_too():
    kinds = [type(one).__name__ for one in on_other_grids(diffusers.DDIMScheduler(clip_sample=False))]
    assert kinds == ["DDIMScheduler"] + 4 * ["DPMSolverMultistepScheduler"]
    pipe = Pipe(Bimodal(flow=False), diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing"))
    with attach(pipe) as ladder:
        found = ladder.scheduler(pipe, num_inference_steps=8, samples=SAMPLES, progress=False)
    start, errors = pipe(SAMPLES, generators(500), 1000), []
    for scheduler in (pipe.scheduler, found):
        pipe.scheduler = scheduler
        errors.append(error(pipe, 8, start))
    assert errors[1] <= errors[0]


def test_a_shift_by_the_size_of_the_image_is_the_pipelines():
    given = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    assert list(on_other_grids(given)) == [given]


def test_one_that_adds_noise_is_refused():
    pipe = Pipe(Bimodal(flow=False), diffusers.DDPMScheduler(clip_sample=False))
    with pytest.raises(ValueError, match="DDPMScheduler adds noise, which is another one on another grid"):
        attach(pipe).scheduler(pipe, num_inference_steps=6, progress=False)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_base_does_not_extrapolate_over_the_long_step_before_the_last(shift: float, target: Tensor):
    """FlowMatchEuler's last call is at 0.001: the step to it is five times as long as the others in log-SNR."""
    plain = error(flow_pipe(shift), 8, target, calibrated=False)
    assert error(flow_pipe(shift), 8, target) < plain


def test_a_pipeline_that_changes_its_outputs_gets_one_without_memory():
    """Z-Image's turns the sign of what its model says before the step."""
    family = zimage()
    found = attach(family.pipe, family.lower).scheduler(
        family.pipe, num_inference_steps=8, samples=2, progress=False, **family.call
    )
    assert type(found) is type(family.pipe.scheduler)


def test_a_pipeline_that_takes_no_other_scheduler_says_so():
    """Cosmos gives its scheduler noise levels of its own, in units that have no steps of first order here."""
    family = cosmos()
    with pytest.raises(ValueError, match="runs with no scheduler of first order in the place of its FlowMatchEuler"):
        attach(family.pipe, family.lower).scheduler(
            family.pipe, num_inference_steps=8, samples=2, progress=False, **family.call
        )
