"""Means of few samples: a run's own where they are sure of it, that of all runs where a few decide."""

import math

import pytest
import torch

import multilevel_sde as mls
from multilevel_sde.pilots import run_pilot
from multilevel_sde.pilots.isotone import calibrated, tails
from multilevel_sde.pilots.trial import typical


def with_one_astray(size, far, n=32):
    """Squared errors that are equal but for one sample."""
    errors = torch.full((n,), size, dtype=torch.float64)
    errors[0] = far
    return errors


def test_runs_that_are_sure_keep_their_means():
    """Tails of 1.2 and 1.8 from many samples each, at typical errors between those of the others."""
    generator = torch.Generator().manual_seed(0)
    runs = [
        size * torch.exp(width * torch.randn(4096, generator=generator, dtype=torch.float64))
        for size in (1e-4, 1e-3, 1e-2, 1e-1)
        for width in (0.6, 1.3)
    ]
    for run, tail in zip(runs, tails(runs), strict=True):
        assert tail == pytest.approx(float(run.mean()) / typical(run), rel=0.03)


def test_a_sample_that_is_far_off_in_one_run_counts_little_there():
    """Of nine runs one has a sample with 32 times the error of all others together; all are of one kind."""
    runs = [with_one_astray(size, size) for size in torch.logspace(-3, -1, 9, dtype=torch.float64)]
    own = tails(runs)
    assert own == pytest.approx([1.0] * 9)
    runs[4] = with_one_astray(0.01, 0.32 * 32)
    usual = typical(runs[4])
    assert float(runs[4].mean()) / usual > 20
    assert tails(runs)[4] < 10


def test_a_mean_counts_by_how_sure_it_is_beside_how_runs_differ():
    """Means of 2 and 1/2 where typical errors rise share the mean 1; the first hangs on one sample, the other not."""
    falling = [torch.tensor([0.1, 0.1, 0.1, 7.7]), torch.tensor([0.5, 0.5, 0.5, 0.5])]  # typically 0.325 and 1/2
    spread = (4 * (3 * 0.1**2 + 7.7**2) / 8.0**2 - 1) / 4
    apart = (2 * math.log(2.0) ** 2 - spread) / 2
    share = apart / (apart + spread)
    assert tails(falling) == pytest.approx([2.0**share / typical(falling[0]), 1.0], rel=1e-6)


def test_what_is_common_to_runs_is_kept():
    """The same sample is off by as much in all runs: the smaller the typical error, the larger the tail."""
    sizes = torch.logspace(-3, -1, 9, dtype=torch.float64)
    runs = [with_one_astray(size, 1.0) for size in sizes]
    found = tails(runs)
    assert found == sorted(found, reverse=True)
    for run, tail in zip(runs, found, strict=True):
        assert tail == pytest.approx(float(run.mean()) / typical(run), rel=1e-6)


def test_runs_without_errors_have_none():
    assert tails([torch.zeros(4), torch.zeros(4)]) == [1.0, 1.0]
    assert tails([torch.zeros(4), torch.full((4,), 2.0)]) == pytest.approx([1.0, 1.0])


def test_a_run_that_nearly_diverged_disturbs_no_other():
    runs = [with_one_astray(0.1, 0.1), with_one_astray(1.0, math.inf), with_one_astray(1e200, 1e250)]
    assert tails(runs)[:2] == [1.0, 1.0]


def test_means_do_not_fall_as_typical_errors_grow():
    assert calibrated(2.0, [(1.0, 8.0), (4.0, 2.0)]) == pytest.approx(4.0)
    assert calibrated(8.0, [(1.0, 8.0), (4.0, 2.0)]) == pytest.approx(8.0)
    assert calibrated(0.5, [(1.0, 8.0), (4.0, 2.0)]) == pytest.approx(2.0)
    assert calibrated(0.0, [(1.0, 8.0)]) == 0.0
    assert calibrated(3.0, [(1.0, 0.0), (0.0, 1.0)]) == 3.0


def test_every_run_of_a_pilot_gets_its_own(monkeypatch):
    """Single levels come first, then the plans on samples kept out; each with the errors of all samples."""
    asked = []

    def counted(runs):
        asked.extend(runs)
        return [float(place) for place in range(len(runs))]

    monkeypatch.setattr(run_pilot, "tails", counted)
    ladder = mls.Ladder([lambda y, t: -y, lambda y, t: -torch.sin(y)], [1.0, 30.0])
    y0, times = torch.linspace(0.2, 2.0, 8, dtype=torch.float64)[:, None], torch.linspace(0, 1, 65)
    pilot = mls.pilot(ladder, y0, times, candidates=16)
    found = [*pilot.singles, *pilot.calibration]
    assert [one.tail for one in found] == list(range(len(found)))
    errors = [one.error for one in pilot.singles] + [one.measured for one in pilot.calibration]
    assert errors == [typical(run) for run in asked]
