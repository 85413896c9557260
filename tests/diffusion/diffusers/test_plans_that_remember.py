"""Laws of plans with stored values in stock loops: those of `mls.solve`, and of the top network's multistep method."""

from __future__ import annotations

import math
import weakref
from dataclasses import replace
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
from multilevel_diffusion.diffusers.scheduler_grid import (  # noqa: E402
    base_coefficients,
    data_maps,
    signal_levels,
)
from multilevel_diffusion.diffusers.wrapper import MultilevelUNet  # noqa: E402
from multilevel_diffusion.loops.memory import DataMap, Memory  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:levels . and . differ")

SHAPE = (3, 3, 2, 2)
COSTS = (1.0, 3.0, 9.0)


class Wave(ModelMixin, ConfigMixin):
    """A smooth function of state and time, for any prediction type."""

    @register_to_config
    def __init__(self, shift: float = 0.0, in_channels: int = 3, out_channels: int = 3):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(0.4, dtype=torch.float64), requires_grad=False)

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> Any:
        time = torch.as_tensor(timestep, dtype=torch.float64) / 1000
        value = torch.tanh(self.slope * sample.double() + self.config["shift"]) * (1 + time) + 0.2 * time
        return UNet2DOutput(sample=value) if return_dict else (value,)


class Loop(diffusers.DiffusionPipeline):
    """The loop of a stock pipeline, with guidance in one doubled batch or in two calls if asked for."""

    def __init__(self, unet: Any, scheduler: Any):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self, start: Tensor, steps: int, *, guidance: str = "", stop: int | None = None, **given: Any
    ) -> Tensor:
        self.scheduler.set_timesteps(steps)
        state = start * self.scheduler.init_noise_sigma
        for n, t in enumerate(self.scheduler.timesteps):
            if n == stop:
                break
            shown = self.scheduler.scale_model_input(state, t)
            if guidance == "doubled":
                cond, uncond = self.unet(torch.cat([shown, shown]), t).sample.chunk(2)
                output = uncond + 3.0 * (cond - uncond)
            elif guidance == "two calls":
                cond, uncond = self.unet(shown, t).sample, self.unet(shown, t).sample
                output = uncond + 3.0 * (cond - uncond)
            else:
                output = self.unet(shown, t).sample
            state = self.scheduler.step(output, t, state, **given)[0]
        return state


def start(seed: int = 0) -> Tensor:
    return randn_tensor(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def levels() -> list[Wave]:
    return [Wave(0.1), Wave(0.3), Wave(0.5)]


def exact(scheduler: Any) -> Any:
    """The scheduler with its table in float64, so that its own rounding is that of float64."""
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    return scheduler


def plans(steps: int, base: Tensor) -> dict[str, mls.Plan]:
    """One of every kind."""
    p = torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64).expand(steps, -1)
    drawn = mls.draw_plan(p, mls.systematic, generator=torch.Generator().manual_seed(0))
    held = mls.hold(drawn, torch.arange(steps + 1.0), order=2)
    entries = [(n, n % 3, n - 1 - n % 2, 0.1 * (-1) ** n) for n in range(2, steps)]
    top = mls.em_plan(mls.Ladder([lambda y, t: y] * 3, COSTS), torch.arange(steps + 1.0))
    return {
        "drawn": drawn,
        "multistep base": mls.multistep(drawn, base),
        "held": held,
        "remembered": mls.remember(drawn, p, lambda level, n, h: 0.5),
        "any coefficients": mls.Plan(drawn.hits, 1.1 * drawn.weights, recall=mls.Recall(entries)),
        "top": mls.multistep(top, base),
    }


def solved(scheduler: Any, plan: mls.Plan, tau: float = 0.0, noises: list[Tensor] | None = None) -> Tensor:
    """`mls.solve` with the exponential step on the scheduler's own (alpha, sigma), written down anew."""
    alphas, sigmas = signal_levels(scheduler)
    maps, times = data_maps(scheduler), scheduler.timesteps
    ladder = mls.Ladder(
        [lambda y, n, model=model: maps[int(n)].data(y, model(y, times[int(n)]).sample) for model in levels()], COSTS
    )

    def step(y: Tensor, estimate: Tensor, n: float, m: float, noise: Tensor | None) -> Tensor:
        (a, b), (s, r) = (alphas[int(n)], alphas[int(m)]), (sigmas[int(n)], sigmas[int(m)])
        ratio = r * a / (s * b)  # e^{-h}
        kept = r / s * ratio ** (tau**2)
        y = kept * y + b * (1 - ratio ** (1 + tau**2)) * estimate
        return y if noise is None else y + r * math.sqrt(1 - ratio ** (2 * tau**2)) * noise

    steps = len(times)
    given: dict[str, Any] = {}
    if noises is not None:
        given = {"diffusion": 1.0, "brownian": lambda n, m: noises[int(n)]}
    grid = torch.arange(steps + 1, dtype=torch.float64)
    first = torch.as_tensor(scheduler.init_noise_sigma, dtype=torch.float64)
    shown = first * alphas[0] if float(first) != 1.0 else first
    return mls.solve(ladder, start() * shown, grid, plan, step=step, **given).y


PREDICTIONS = ["epsilon", "v_prediction", "sample"]
KINDS = ["drawn", "multistep base", "held", "remembered", "any coefficients", "top"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_under_ddim_a_plan_gives_what_solve_gives(prediction: str, kind: str):
    """To rounding in float64, for every kind of plan and prediction."""
    scheduler = exact(
        diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing", prediction_type=prediction)
    )
    scheduler.set_timesteps(20)
    base = base_coefficients(scheduler)
    assert base is not None
    plan = plans(20, base)[kind]
    pipe = Loop(levels()[-1], scheduler)
    MultilevelUNet(levels(), plan=plan, costs=COSTS).install(pipe)
    images = pipe(start(), 20)
    torch.testing.assert_close(images, solved(scheduler, plan), rtol=1e-9, atol=1e-9)


def test_ddim_steps_that_end_beside_the_next_call_are_aimed_at_it():
    """DDIM with 28 of 1000 timesteps ends 35 below a call whose next is 36 below: aimed, a plan is that of solve."""
    scheduler = exact(diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing"))
    scheduler.set_timesteps(28)
    base = base_coefficients(scheduler)
    assert base is not None
    plan = plans(28, base)["any coefficients"]
    pipe = Loop(levels()[-1], scheduler)
    ladder = MultilevelUNet(levels(), plan=plan, costs=COSTS).install(pipe)
    beside = pipe(start(), 28)
    expected = solved(scheduler, plan)
    ladder._settings = replace(ladder._settings, aimed=True)  # as a calibration does where steps add no noise
    torch.testing.assert_close(pipe(start(), 28), expected, rtol=1e-9, atol=1e-9)
    assert float((beside - expected).abs().max()) > 1e-3


@pytest.mark.parametrize("kind", ["multistep base", "held"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("EulerDiscreteScheduler", {}),
        ("EulerDiscreteScheduler", {"prediction_type": "v_prediction", "use_karras_sigmas": True}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        ("DPMSolverMultistepScheduler", {"solver_order": 1}),
        (
            "DPMSolverMultistepScheduler",
            {"solver_order": 1, "use_flow_sigmas": True, "prediction_type": "flow_prediction"},
        ),
    ],
)
def test_under_first_order_schedulers_a_plan_gives_what_solve_gives(name: str, options: dict[str, Any], kind: str):
    """To the rounding of the scheduler's own float32."""
    scheduler = getattr(diffusers, name)(**options)
    scheduler.set_timesteps(12)
    base = base_coefficients(scheduler)
    assert base is not None
    plan = plans(12, base)[kind]
    if not hasattr(scheduler, "scale_model_input"):
        scheduler.scale_model_input = lambda state, t: state
        scheduler.init_noise_sigma = 1.0
    pipe = Loop(levels()[-1], scheduler)
    MultilevelUNet(levels(), plan=plan, costs=COSTS).install(pipe)
    torch.testing.assert_close(pipe(start(), 12).double(), solved(scheduler, plan), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "given"), [("DDPMScheduler", {}), ("DDIMScheduler", {"eta": 1.0})])
def test_under_ancestral_schedulers_too_with_their_noise(name: str, given: dict[str, Any], kind: str):
    scheduler = exact(getattr(diffusers, name)(clip_sample=False, timestep_spacing="trailing"))
    scheduler.set_timesteps(20)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    base = base_coefficients(scheduler, given)
    assert base is not None
    plan = plans(20, base)[kind]
    pipe = Loop(levels()[-1], scheduler)
    MultilevelUNet(levels(), plan=plan, costs=COSTS).install(pipe)
    torch.manual_seed(3)
    images = pipe(start(), 20, **given)
    torch.manual_seed(3)
    noises = [torch.randn(SHAPE, dtype=torch.float64) for _ in range(20)]
    torch.testing.assert_close(images, solved(scheduler, plan, 1.0, noises), rtol=1e-6, atol=1e-6)


def test_one_network_by_the_multistep_base_is_dpm_solver():
    """Law 2: a plan of the top level alone under the scheduler of order 1 is its scheduler of order 2."""
    first, second = (
        diffusers.DPMSolverMultistepScheduler(solver_order=order, solver_type="midpoint", lower_order_final=False)
        for order in (1, 2)
    )
    expected = Loop(levels()[-1], second)(start(), 12)
    first.set_timesteps(12)
    alphas, sigmas = signal_levels(first)
    places = [math.log(a / s) if s > 0 else math.inf for a, s in zip(alphas, sigmas, strict=True)]
    base = torch.zeros(12, 2, dtype=torch.float64)
    base[:, 0] = 1.0
    for n in range(1, 12):
        if math.isfinite(places[n + 1]):
            r = 0.5 * (places[n + 1] - places[n]) / (places[n] - places[n - 1])
            base[n] = torch.tensor([1 + r, -r])
    top = mls.em_plan(mls.Ladder([lambda y, t: y] * 3, COSTS), torch.arange(13.0))
    pipe = Loop(levels()[-1], first)
    ladder = MultilevelUNet(levels(), plan=mls.multistep(top, base), costs=COSTS).install(pipe)
    torch.testing.assert_close(pipe(start(), 12), expected, rtol=1e-4, atol=1e-4)
    assert ladder.stats.trajectory.evaluations == (0, 0, 12)


@pytest.mark.parametrize("guidance", ["", "doubled", "two calls"])
def test_interrupted_split_and_repeated_runs_are_the_same_images(guidance: str):
    """Law 3."""
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(12)
    base = base_coefficients(scheduler)
    assert base is not None
    pipe = Loop(levels()[-1], scheduler)
    ladder = MultilevelUNet(levels(), plan=plans(12, base)["multistep base"], costs=COSTS).install(pipe)
    whole = pipe(start(), 12, guidance=guidance)
    assert ladder.stats.trajectory.calls == 12 * (2 if guidance == "two calls" else 1)
    pipe(start(1), 12, guidance=guidance, stop=5)
    assert torch.equal(pipe(start(), 12, guidance=guidance), whole)
    parts = [pipe(part, 12, guidance=guidance) for part in start().split(1)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-12)


def test_guidance_in_one_batch_and_in_two_calls_are_the_same_images():
    images = []
    for guidance in ("doubled", "two calls"):
        scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
        scheduler.set_timesteps(12)
        base = base_coefficients(scheduler)
        assert base is not None
        pipe = Loop(levels()[-1], scheduler)
        MultilevelUNet(levels(), plan=plans(12, base)["held"], costs=COSTS).install(pipe)
        images.append(pipe(start(), 12, guidance=guidance))
    torch.testing.assert_close(images[0], images[1], rtol=1e-12, atol=1e-12)


def test_memory_is_one_state_a_stored_value_and_is_freed(monkeypatch):
    """A plan of lag 1 keeps one value at a time, and none after its last step or a reset."""
    made = []
    plain = DataMap.data

    def watched(self: DataMap, state: Tensor, output: Tensor) -> Tensor:
        value = plain(self, state, output)
        made.append(weakref.ref(value))
        return value

    monkeypatch.setattr(DataMap, "data", watched)
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    top = mls.em_plan(mls.Ladder([lambda y, t: y] * 3, COSTS), torch.arange(13.0))
    table = torch.tensor([[1.0, 0.0]] + [[1.5, -0.5]] * 11, dtype=torch.float64)
    pipe = Loop(levels()[-1], scheduler)
    ladder = MultilevelUNet(levels(), plan=mls.multistep(top, table), costs=COSTS).install(pipe)

    def alive() -> int:
        return sum(one() is not None for one in made)

    pipe(start(), 12, stop=5)
    assert (len(made), alive()) == (5, 1)
    ladder.reset()
    assert alive() == 0
    pipe(start(), 12)
    assert (len(made), alive()) == (17, 0)


def test_a_step_that_is_left_out_or_made_twice_is_refused():
    plan = mls.Plan(torch.ones(3, 1, dtype=torch.bool), torch.ones(3, 1), recall=mls.Recall([(2, 0, 1, 0.5)]))

    def follow(*steps: int) -> None:
        memory = Memory(plan)
        for n in steps:
            memory.estimate(n, lambda level: torch.zeros(1))

    for steps in ([0, 2], [1], [0, 1, 0]):
        with pytest.raises(ValueError, match="the plan remembers earlier steps, but a call at step"):
            follow(*steps)
    with pytest.raises(ValueError, match="a call number 2 of its step at step 3 follows one at step 1"):
        follow(0, 0, 1, 2, 2)


def test_a_scheduler_that_does_not_say_its_noise_levels():
    """Plans with memory are refused in one sentence, others run."""
    plan = plans(10, torch.ones(10, 1, dtype=torch.float64))["held"]
    ladder = MultilevelUNet(levels(), plan=plan, costs=COSTS)
    pipe = Loop(levels()[-1], diffusers.DDIMScheduler(clip_sample=False))
    pipe.unet = ladder
    with pytest.raises(
        ValueError, match="needs the scheduler's noise levels, but the ladder does not know its pipeline"
    ):
        pipe(start(), 10)
