"""Laws of the noise schedules: classical tables, inverse, monotony, floats against tensors, JSON."""

import json
import math
import subprocess
import sys

import pytest
import torch

from multilevel_diffusion.process.schedules import (
    CosineSchedule,
    EDMSchedule,
    RectifiedFlowSchedule,
    schedule_from_dict,
)
from multilevel_diffusion.process.tables import LinearSchedule, ScaledLinearSchedule, TableSchedule

VARIANCE_PRESERVING = [
    CosineSchedule(),
    LinearSchedule(),
    ScaledLinearSchedule(),
    TableSchedule((0.1, 0.3, 0.05, 0.6)),
]
ALL = [*VARIANCE_PRESERVING, EDMSchedule(), RectifiedFlowSchedule()]


def names(schedule):
    return type(schedule).__name__


def inner_times(schedule, count=101):
    """Times strictly inside (0, t_max), geometric towards the data and uniform above."""
    low = torch.logspace(-6, -1, count, dtype=torch.float64)
    high = torch.linspace(0.1, 0.9999, count, dtype=torch.float64)[1:]
    return torch.cat([low, high]) * schedule.t_max


@pytest.mark.parametrize("schedule", ALL, ids=names)
def test_log_snr_is_the_log_of_the_ratio_and_falls_strictly(schedule):
    t = inner_times(schedule)
    log_snr = schedule.log_snr(t)
    torch.testing.assert_close(log_snr, torch.log(schedule.alpha(t) / schedule.sigma(t)), rtol=1e-12, atol=1e-12)
    assert (log_snr.diff() < 0).all()


@pytest.mark.parametrize("schedule", VARIANCE_PRESERVING, ids=names)
def test_variance_is_preserved(schedule):
    t = inner_times(schedule)
    torch.testing.assert_close(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones_like(t), rtol=1e-14, atol=0)


@pytest.mark.parametrize("schedule", ALL, ids=names)
def test_time_inverts_log_snr(schedule):
    t = inner_times(schedule)
    log_snr = schedule.log_snr(t)
    torch.testing.assert_close(schedule.time(log_snr), t, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(schedule.log_snr(schedule.time(log_snr)), log_snr, rtol=0, atol=2e-9)
    assert schedule.time(schedule.log_snr(0.7 * schedule.t_max)) == pytest.approx(0.7 * schedule.t_max, rel=1e-12)


@pytest.mark.parametrize("schedule", ALL, ids=names)
def test_both_ends(schedule):
    assert (schedule.alpha(0.0), schedule.sigma(0.0), schedule.log_snr(0.0)) == (1.0, 0.0, math.inf)
    zero = torch.zeros((), dtype=torch.float64)
    assert schedule.sigma(zero) == 0
    assert schedule.log_snr(zero) == math.inf
    assert schedule.time(math.inf) == 0.0
    assert schedule.time(torch.tensor(math.inf, dtype=torch.float64)) == 0.0
    assert schedule.time(schedule.log_snr(schedule.t_max)) == pytest.approx(schedule.t_max, rel=1e-14)


@pytest.mark.parametrize("schedule", ALL, ids=names)
def test_floats_and_tensors_agree_to_rounding(schedule):
    t = inner_times(schedule, 21)
    for method in (schedule.alpha, schedule.sigma, schedule.log_snr):
        floats = torch.tensor([method(value) for value in t.tolist()], dtype=torch.float64)
        torch.testing.assert_close(method(t), floats, rtol=1e-14, atol=1e-14)
    assert schedule.alpha(t.float()).dtype == torch.float32
    assert schedule.log_snr(t.reshape(-1, 1)).shape == (len(t), 1)


@pytest.mark.parametrize("schedule", ALL, ids=names)
def test_json_round_trip(schedule):
    assert schedule_from_dict(json.loads(json.dumps(schedule.to_dict()))) == schedule


def test_cosine_is_the_classical_discrete_schedule():
    """alpha_bar and beta of Nichol and Dhariwal with 1000 steps, the last beta clipped at 0.999."""
    raw = [math.cos((s / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for s in range(1001)]
    alpha_bar = 1.0
    schedule = CosineSchedule()
    for s in range(1, 1001):
        alpha_bar *= 1 - min(1 - raw[s] / raw[s - 1], 0.999)
        assert schedule.alpha(s / 1000) ** 2 == pytest.approx(alpha_bar, rel=1e-10)
    assert schedule.log_snr(1.0) == pytest.approx(0.5 * math.log(alpha_bar / (1 - alpha_bar)), abs=1e-9)


@pytest.mark.parametrize(
    ("schedule", "betas"),
    [
        (LinearSchedule(), torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)),
        (ScaledLinearSchedule(), torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2),
        (TableSchedule((0.1, 0.3, 0.05, 0.6)), torch.tensor([0.1, 0.3, 0.05, 0.6], dtype=torch.float64)),
    ],
    ids=["linear", "scaled-linear", "table"],
)
def test_tables_are_exact_at_their_nodes(schedule, betas):
    nodes = torch.arange(1, len(betas) + 1, dtype=torch.float64) / len(betas)
    torch.testing.assert_close(schedule.alpha(nodes) ** 2, torch.cumprod(1 - betas, 0), rtol=1e-12, atol=0)


def test_sigma_has_no_cancellation_near_the_data():
    """For the cosine, sigma^2 ~ 2 a'(0) tan(a(0)) t as t -> 0: a relative error of order t only."""
    start, slope = 0.008 / 1.008 * math.pi / 2, math.pi / 2 / 1.008
    t = 1e-14
    assert CosineSchedule().sigma(t) ** 2 == pytest.approx(2 * slope * math.tan(start) * t, rel=1e-9)


def test_perturb_takes_one_time_or_one_per_sample():
    schedule = CosineSchedule()
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(3, 2, 2, generator=generator) for _ in range(2))
    t = torch.tensor([0.1, 0.5, 0.9])
    together = schedule.perturb(x0, noise, t)
    assert together.dtype == torch.float32
    for i in range(3):
        alone = schedule.perturb(x0[i], noise[i], t[i])
        assert alone.dtype == torch.float32
        torch.testing.assert_close(together[i], alone, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(schedule.perturb(x0[i], noise[i], float(t[i])), alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CosineSchedule(offset=0.0), '"offset"'),
        (lambda: CosineSchedule(t_min=1.0), '"t_min"'),
        (lambda: LinearSchedule(beta_end=1.0), '"beta_end"'),
        (lambda: LinearSchedule(steps=1), '"steps"'),
        (lambda: TableSchedule((0.1,)), '"betas"'),
        (lambda: EDMSchedule(sigma_min=2.0, sigma_max=1.0), '"sigma_min"'),
        (lambda: CosineSchedule().alpha(1.5), '"t"'),
        (lambda: CosineSchedule().alpha(-0.1), '"t"'),
        (lambda: schedule_from_dict({"schedule": "Cosine"}), '"schedule"'),
        (lambda: schedule_from_dict({"schedule": "CosineSchedule", "steps": 3}), '"steps"'),
    ],
)
def test_errors_name_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_importing_the_adapter_loads_nothing_optional():
    optional = ("matplotlib", "PIL", "sklearn", "safetensors", "diffusers", "transformers")
    code = f"import sys, multilevel_diffusion; print([name for name in {optional} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
