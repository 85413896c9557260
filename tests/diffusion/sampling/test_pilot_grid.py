"""Candidates of the SDE lie where the cheapest network errs less; single networks are tried elsewhere too."""

import pytest
import torch

from multilevel_diffusion import Process, load_ladder, shipped_ladder, uniform
from multilevel_diffusion.sampling import run_pilot


@pytest.mark.parametrize(("name", "uniform_in_log_snr"), [("emoji32", True), ("digits", False)])
def test_the_grid_is_the_one_that_suits_the_ladder(name, uniform_in_log_snr):
    images = load_ladder(shipped_ladder(name))
    pilot = run_pilot(images, "ddpm", steps=60, samples=2, candidates=24)
    process = Process(images.schedule, 1.0, uniform(images.schedule, 60))
    grids = [process.grid(24), process.log_snr_grid(24)]
    assert torch.equal(pilot.times, grids[uniform_in_log_snr])
    other = [process.grid(12), process.log_snr_grid(12)][not uniform_in_log_snr]
    assert torch.equal(pilot.other_grids[12], other)
    assert {one.elsewhere for one in pilot.singles} == {False, True}


def test_the_ode_has_one_kind_of_grid():
    images = load_ladder(shipped_ladder("digits"))
    pilot = run_pilot(images, "ddim", steps=60, samples=2, candidates=16)
    assert torch.equal(pilot.times, Process(images.schedule, 0.0, uniform(images.schedule, 60)).log_snr_grid(16))
    assert not pilot.other_grids
