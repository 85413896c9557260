"""Settings of all tests: hypothesis draws the same examples, torch keeps to one thread, no plan depends on a clock."""

import pytest
import torch
from hypothesis import HealthCheck, settings

import multilevel_sde as mls
from multilevel_diffusion.networks.store import save_ladder
from multilevel_diffusion.networks.unet import UNet, UNetConfig
from multilevel_diffusion.process.schedules import CosineSchedule

settings.register_profile(
    "repeatable", derandomize=True, deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def steady_clock(monkeypatch):
    """Commands price levels in seconds; here a FLOP takes a nanosecond."""

    def in_seconds(images, process, batch):
        seconds = [1e-9 * cost for cost in images.ladder.costs]
        return mls.Ladder(images.ladder.drifts, mls.GivenCost(seconds, "seconds"))

    monkeypatch.setattr("multilevel_diffusion.sampling.prices.in_seconds", in_seconds)


@pytest.fixture(scope="session")
def tiny_ladder(tmp_path_factory):
    """Folder of a ladder of two untrained networks for images of 4x4."""
    folder = tmp_path_factory.mktemp("tiny_ladder")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = [UNet(UNetConfig(dim, depth, 0, 0, 4, channels=1)) for dim, depth in ((2, 1), (4, 2))]
        for network in networks:
            for weight in network.parameters():
                torch.nn.init.normal_(weight, std=0.2)
    save_ladder(folder, networks, CosineSchedule())
    return folder
