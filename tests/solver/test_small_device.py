"""No float64 number is made on the device of a state, as Apple's GPUs have none: every public loop on one that refuses.

Each is run on the host too, with the same result to rounding.
"""

from functools import partial

import pytest
import torch
from small_device import DEVICE, OnSmallDevice, small_device

import multilevel_sde as mls
from multilevel_diffusion import (
    DDIM,
    DDPM,
    CosineSchedule,
    DataDenoiser,
    EDMSchedule,
    EpsilonDenoiser,
    ForwardValue,
    LinearSchedule,
    MultilevelDenoiser,
    RectifiedFlowSchedule,
    SASolver,
    TableSchedule,
    coupled_noise,
    uniform,
)
from multilevel_sde.learning import gradients

DOUBLE = torch.float64
TIMES = torch.linspace(0.0, 1.0, 17, dtype=DOUBLE)
TABLE = torch.tensor([1.0, 0.5]).expand(16, 2)
LADDER = mls.Ladder([lambda y, t: -y + 0.1 * t, lambda y, t: -torch.sin(y) + 0.1 * t], costs=[1.0, 8.0])


def states(device, count=8, dtype=torch.float32):
    return torch.linspace(0.2, 2.0, 2 * count).reshape(count, 2).to(dtype).to(device)


def generator():
    return torch.Generator().manual_seed(0)


def drawn(**options):
    return mls.draw_plan(TABLE, generator=generator(), **options)


def solved(device, plan=None, step=mls.euler_maruyama, times=TIMES, ladder=LADDER, dtype=torch.float32, **options):
    plan = drawn() if plan is None else plan
    return mls.solve(ladder, states(device, dtype=dtype), times, plan, step=step, **options).y


def noise(diffusion=0.5, **options):
    return {"diffusion": diffusion, "brownian": mls.BrownianPath(range(8), **options)}


def remembered():
    return mls.remember(drawn(), TABLE, coefficient=lambda level, n, h: 0.5)


LABELLED = mls.Ladder([lambda y, t, shift: shift - y, lambda y, t, shift: shift - torch.sin(y)], costs=[1.0, 8.0])

SOLVES = {
    "Euler": solved,
    "conditions": lambda device: solved(device, ladder=LABELLED, conditions={"shift": states(device)}),
    "a draw per sample": lambda device: solved(device, drawn(samples=8)),
    "memory": lambda device: solved(device, remembered()),
    "multistep": lambda device: solved(device, mls.multistep(drawn(), mls.adams_bashforth_weights(TIMES, 2))),
    "Heun": lambda device: solved(device, mls.em_plan(LADDER, TIMES, step=mls.Heun()), mls.Heun()),
    "Midpoint": lambda device: solved(device, mls.em_plan(LADDER, TIMES, step=mls.Midpoint()), mls.Midpoint()),
    "AdamsBashforth": lambda device: solved(
        device, mls.em_plan(LADDER, TIMES, step=mls.AdamsBashforth(3)), mls.AdamsBashforth(3)
    ),
    "noise": lambda device: solved(device, **noise()),
    "noise of a NumPy number": lambda device: solved(device, **noise(torch.tensor(0.5, dtype=DOUBLE))),
    "noise on a grid": lambda device: solved(device, **noise(grid=TIMES)),
    "noise sigma(t)": lambda device: solved(device, **noise(lambda t: t)),
    "noise g(y, t)": lambda device: solved(device, **noise(lambda y, t: y * t)),
    "NoiseTerm": lambda device: solved(device, **noise(mls.NoiseTerm(lambda y, t, dW: y * dW))),
    "16 bits": lambda device: solved(device, dtype=torch.bfloat16, **noise()),
    "saved states": lambda device: mls.solve(LADDER, states(device), TIMES, drawn(), save=True).ys,
    "seeded_normal": lambda device: mls.seeded_normal(range(3), (2,), device=device),
    "levels elsewhere": lambda device: mls.solve(
        mls.place(LADDER, [None, device]), states("cpu"), TIMES, drawn()
    ).y.to(device),
}  # fmt: skip


def gaussian(schedule):
    """The exact denoiser of data N(0, 0.5^2), and a rough one; its coefficients are those of tensors of times."""

    def exact(x, t):
        alpha, sigma = (f(t.expand(len(x)))[:, None].to(x.dtype) for f in (schedule.alpha, schedule.sigma))
        return 0.25 * alpha * x / (0.25 * alpha**2 + sigma**2)

    def eps(x, t):
        alpha, sigma = (f(t)[:, None].to(x.dtype) for f in (schedule.alpha, schedule.sigma))
        return sigma * x / (0.25 * alpha**2 + sigma**2)

    return mls.Ladder(
        [DataDenoiser(lambda x, t: 0.9 * exact(x, t[0]), schedule), EpsilonDenoiser(eps, schedule)], [1, 8]
    )


def sampled(device, schedule, step, stochastic=False):
    times = uniform(schedule, 8) if step is not None else None
    ladder = gaussian(schedule)
    plan = mls.em_plan(ladder, times, step=step)
    options = {"diffusion": 1.0, "brownian": coupled_noise(schedule, range(8), times)} if stochastic else {}
    return mls.solve(ladder, states(device), times, plan, step=step, **options).y


def edm(device):
    schedule = EDMSchedule(0.02, 20.0)
    exact = lambda x, sigma: x / (1 + sigma.reshape(-1, 1) ** 2)  # noqa: E731
    model = MultilevelDenoiser(
        mls.Ladder([lambda x, sigma: 0.9 * exact(x, sigma), exact], costs=[1.0, 8.0]), budget_fraction=0.4
    )
    x = states(device)
    for sigma, following in [(8.0, 4.0), (4.0, 1.0), (1.0, 0.0)]:
        x = x + (following - sigma) * (x - model(x, torch.full((8,), sigma, device=device))) / sigma
    assert schedule.alpha(torch.tensor(1.0)) == 1
    return x


SMOOTH = (CosineSchedule(), LinearSchedule(), TableSchedule((0.1, 0.2, 0.5, 1.0)), RectifiedFlowSchedule())
SAMPLERS = {"EDM": edm} | {
    f"{name} {type(schedule).__name__}": partial(sampled, schedule=schedule, step=make(schedule), stochastic=stochastic)
    for schedule in (CosineSchedule(), LinearSchedule())
    for name, make, stochastic in (
        ("DDIM", DDIM, False), ("DDPM", DDPM, True), ("ForwardValue", ForwardValue, False),
        ("SASolver", SASolver, False),
    )
}  # fmt: skip


def best(device):
    found = mls.best_plan(
        LADDER, TABLE, lambda seeds: mls.seeded_normal(seeds, (2,), device=device), TIMES, calibration=range(4),
        held_out=range(4, 8), candidates=3, generator=generator(),
    )  # fmt: skip
    return torch.tensor([found.error, *found.calibration_errors])


def _differences(function, at, along):
    """In the place of torch.func.jvp, which does not get along with the pretended device."""
    above, below = (function(*(x + h * v for x, v in zip(at, along, strict=True))) for h in (0.5, -0.5))
    return function(*at), above - below  # exact for steps, which are affine


def learned(device):
    found = mls.learn(
        LADDER, lambda seeds: mls.seeded_normal(seeds, (2,), device=device), TIMES, delta=0.1, regularisation=1e-3,
        budget=60.0, steps=2, batch=6, generator=generator(), derivative=mls.central_difference, diffusion=0.2,
        brownian_source=mls.BrownianPath,
    )  # fmt: skip
    return torch.tensor([error for error, _ in found.history])


def fitted(device):
    y0 = states(device, 12)
    target = mls.solve(LADDER, y0, TIMES, mls.em_plan(LADDER, TIMES)).y
    plans = mls.pilot(LADDER, states(device, 12), TIMES, candidates=16, progress=False).plans(budget=60.0)[:2]
    return torch.tensor(mls.fit_plan(LADDER, y0, plans, target, iterations=2).errors)


def measured(device, ladder=LADDER, dtype=torch.float32, **options):
    found = mls.pilot(ladder, states(device, 12, dtype), TIMES, samples=6, progress=False, **options)
    return torch.cat([found.gram.flatten(), torch.tensor([one.error for one in found.singles])])


PILOTS = {
    "pilot": measured,
    "pilot, noise": lambda device: measured(device, diffusion=0.5, brownian=mls.BrownianPath(range(12))),
    "pilot, noise of all": lambda device: measured(
        device, diffusion=lambda y, t: t * y, brownian=lambda t, s: states(device, 12) * (s - t)
    ),
    "pilot, conditions": lambda device: measured(device, LABELLED, conditions={"shift": states(device, 12)}),
    "pilot, step rule": lambda device: measured(device, step=mls.Heun()),
    "pilot, few candidates": lambda device: measured(device, candidates=4),
    "pilot, multistep": lambda device: measured(device, multistep=partial(mls.adams_bashforth_weights, order=2)),
    "pilot, 16 bits": lambda device: measured(device, dtype=torch.bfloat16),
}


def priced(device):
    mls.SecondsCost(states(device), calls=1)(LADDER.drifts)
    return torch.tensor(1.0)


MEASURES = {
    "best_plan": best,
    "learn": learned,
    "fit_plan": fitted,
    "SecondsCost": priced,
} | PILOTS


@pytest.mark.parametrize("run", [*SOLVES.values(), *SAMPLERS.values()], ids=[*SOLVES, *SAMPLERS])
def test_states_are_computed_without_float64(run):
    expected = run(torch.device("cpu"))
    with small_device():
        found = run(DEVICE)
        assert isinstance(found, OnSmallDevice)
        found = found.cpu()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("run", MEASURES.values(), ids=MEASURES)
@pytest.mark.filterwarnings("ignore:two halves")
def test_measures_are_taken_without_float64(run, monkeypatch):
    monkeypatch.setattr(gradients, "_jvp", _differences)
    expected = run(torch.device("cpu"))
    with small_device():
        found = run(DEVICE)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("schedule", SMOOTH, ids=lambda schedule: type(schedule).__name__)
def test_schedules_of_tensors_there(schedule):
    times = torch.linspace(0.1, 0.9, 5)
    with small_device():
        for name in ("alpha", "sigma", "log_snr"):
            found = getattr(schedule, name)(times.to(DEVICE))
            assert found.device == DEVICE
            torch.testing.assert_close(found.cpu(), getattr(schedule, name)(times))
        assert schedule.time(schedule.log_snr(times.to(DEVICE))).device == DEVICE


def test_the_device_refuses_float64():
    with small_device():
        for make in (
            lambda: torch.ones(2, device=DEVICE).double(),
            lambda: torch.ones(2, dtype=DOUBLE).to(DEVICE),
            lambda: torch.full((), 1.0, dtype=DOUBLE, device=DEVICE),
            lambda: torch.ones(2, device=DEVICE) * torch.ones(2, dtype=DOUBLE).to(DEVICE),
        ):
            with pytest.raises(TypeError, match="float64"):
                make()
        with pytest.raises(RuntimeError, match="two devices"):
            torch.ones(2, device=DEVICE) + torch.ones(2)
