"""The scaling measurement: errors of networks whose error is known, exponents of laws that are known."""

import json
import math

import numpy as np
import pytest
import torch

from multilevel_diffusion.networks.power import fit_power, fit_power_with_floor
from multilevel_diffusion.networks.scaling import LevelErrors, Scaling, measure_errors
from multilevel_diffusion.process.schedules import CosineSchedule

COSTS = [1e4, 1e5, 1e6, 1e7, 1e8]


def scaled_noise(factor):
    """Return a network that, on the image 0, estimates factor times the noise."""
    schedule = CosineSchedule()
    return lambda x, t: factor * x / schedule.sigma(t)[:, None, None, None]


def test_errors_of_networks_that_are_off_by_a_factor():
    """On x = sigma eps the loss of c eps is (1 - c)^2 E eps^2; the standard error of 20000 squares is about 1 %."""
    images = torch.zeros(100, 1, 5, 10)
    errors = measure_errors(
        [scaled_noise(0.4), scaled_noise(0.9), scaled_noise(1.0)], CosineSchedule(), images, draws=4
    )
    square = 1 + 4 * math.sqrt(2 / 20000) * np.array([-1, 1])
    for measured, factor in [
        (errors.loss[0], 0.6),
        (errors.loss[1], 0.1),
        (errors.to_next[0], 0.5),
        (errors.to_next[1], 0.1),
        (errors.to_top[0], 0.6),
    ]:
        assert square[0] < measured / factor**2 < square[1]
    assert errors.loss[2] < 1e-10
    assert len(errors.to_next) == len(errors.to_top) == 2
    # Each image's loss is a mean of 200 squares of N(0, 0.6^2): its variance is 0.6^4 2 / 200.
    assert errors.loss_error[0] == pytest.approx(0.6**2 * math.sqrt(2 / 200 / 100), rel=0.4)


def test_all_networks_see_the_same_noisy_images():
    seen = {}

    def recorder(name):
        def network(x, t):
            seen.setdefault(name, []).append((x, t))
            return x

        return network

    measure_errors([recorder(0), recorder(1)], CosineSchedule(), torch.rand(10, 1, 4, 4), draws=3, batch=4)
    for (x0, t0), (x1, t1) in zip(seen[0], seen[1], strict=True):
        assert torch.equal(x0, x1)
        assert torch.equal(t0, t1)


def test_batches_do_not_change_the_errors():
    images = torch.rand(10, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    nets = [scaled_noise(0.5), scaled_noise(0.9)]
    small, large = (measure_errors(nets, CosineSchedule(), images, batch=batch) for batch in (3, 100))
    np.testing.assert_allclose(small.loss, large.loss, rtol=1e-6)


@pytest.mark.parametrize("gamma", [1.5, 2.5, 8.0])
def test_exact_laws_are_recovered(gamma):
    squared = [3.0 * cost ** (-2 / gamma) for cost in COSTS]
    fit = fit_power(COSTS, squared)
    assert (fit.gamma, fit.low, fit.high) == pytest.approx((gamma, gamma, gamma), rel=1e-6)
    np.testing.assert_allclose(fit(np.array(COSTS)), squared, rtol=1e-9)
    floor = 2 * squared[-2]
    fit = fit_power_with_floor(COSTS, [floor + value for value in squared])
    assert fit.gamma == pytest.approx(gamma, rel=1e-4)
    assert fit.floor == pytest.approx(floor, rel=1e-4)
    assert fit.low <= gamma * (1 + 1e-6)
    assert fit.high >= gamma * (1 - 1e-6)


def test_nearly_equal_costs_do_not_overflow():
    """Timings of small networks can differ by less than their noise; the law is then absurdly steep, not an error."""
    fit = fit_power([1e-4, 1.001e-4, 1.002e-4], [1.0, 0.5, 0.1])
    assert fit.gamma < 0.01
    assert fit.amplitude == pytest.approx((1.0 * 0.5 * 0.1) ** (1 / 3))
    assert fit_power_with_floor([1e-4, 1.001e-4, 1.002e-4], [1.0, 0.5, 0.1]).gamma > 0


def test_ignoring_the_floor_overestimates_gamma():
    losses = [0.1 + cost**-0.4 for cost in COSTS]
    assert fit_power(COSTS, losses).gamma > 2 * fit_power_with_floor(COSTS, losses).gamma


def test_intervals_cover():
    """With Gaussian scatter of log errors, 95 % of the intervals contain gamma: 400 tries, four standard deviations."""
    rng = np.random.default_rng(0)
    x = np.log(np.array(COSTS))
    hits = 0
    for _ in range(400):
        fit = fit_power(COSTS, np.exp(-0.8 * x + 0.3 * rng.standard_normal(5)).tolist())
        hits += fit.low <= 2.5 <= fit.high
    assert abs(hits / 400 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 400)


def test_too_few_levels_leave_the_interval_open():
    assert fit_power(COSTS[:2], [1.0, 0.1]).high == math.inf
    assert fit_power_with_floor(COSTS[:3], [1.0, 0.5, 0.4]).high == math.inf


def test_an_error_that_grows_has_no_gamma():
    assert fit_power(COSTS, [1.0, 2.0, 3.0, 4.0, 5.0]).gamma == math.inf


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fit_power([1.0], [1.0]), "expected 2 or more pairs"),
        (lambda: fit_power([1.0, 2.0], [1.0]), '"costs" has 2 entries and the errors 1'),
        (lambda: fit_power([1.0, 2.0], [1.0, 0.0]), "must be positive"),
        (lambda: fit_power_with_floor([1.0, 2.0], [1.0, 0.5]), "expected 3 or more pairs"),
        (lambda: measure_errors([], CosineSchedule(), torch.zeros(1, 1, 4, 4)), '"networks" has 0 entries'),
        (lambda: measure_errors([scaled_noise(1)], CosineSchedule(), torch.zeros(0, 1, 4, 4)), '"images" 0'),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_scaling_is_written_as_json_and_plotted(tmp_path):
    errors = LevelErrors([0.5, 0.3, 0.25], [0.01] * 3, [0.2, 0.1], [0.3, 0.1], 10, 2)
    scaling = Scaling(errors, [10, 100, 1000], {"FLOPs": COSTS[:3], "seconds": [1e-4, 2e-4, 4e-4]})
    scaling.save(tmp_path)
    values = json.loads((tmp_path / "scaling.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert values["fits"]["FLOPs"]["difference of neighbours"]["gamma"] == pytest.approx(2 / math.log10(2))
    assert values["fits"]["FLOPs"]["difference of neighbours"]["high"] is None
    assert values["errors"]["loss"] == errors.loss
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
    assert "difference of neighbours" in scaling.table()


def test_one_level_is_a_table_without_laws(tmp_path):
    scaling = Scaling(LevelErrors([0.5], [0.1], [], [], 10, 2), [10], {"FLOPs": [1e4]})
    assert scaling.fits("FLOPs") == {}
    scaling.save(tmp_path)
    assert "0.50000" in scaling.table()
