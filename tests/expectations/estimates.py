"""Small estimates that the tests share, and one in a process of a group."""

import math
import os

import torch
from torch import distributed

import multilevel_sde as mls

TIMES = torch.linspace(0.0, 1.0, 257, dtype=torch.float64)
SQUARE = math.exp(-2.0) + (1 - math.exp(-2.0)) / 8  # E y(1)^2 of the top level
OPTIONS = {"diffusion": 0.5}


def two_levels():
    return mls.Ladder([lambda y, t: 0.1 - y, lambda y, t: -y], costs=[1.0, 16.0])


def ones(seeds):
    return torch.ones(len(seeds), 1, dtype=torch.float64)


def square(y):
    return y[:, 0] ** 2


def estimate(ladder=None, phi=square, start=ones, times=TIMES, **options):
    goal = {} if "budget" in options else {"tolerance": 0.01}
    return mls.expectation(phi, ladder or two_levels(), start, times, **{**OPTIONS, **goal, **options})


def numbers(result):
    """Everything of a result but the time that it took."""
    rows = [(row.name, row.samples, row.mean, row.variance, row.kurtosis) for row in result.rows]
    return result.value, result.low, result.high, result.standard_error, result.bias, result.cost, rows


def in_a_group(rank, world, meeting, out):
    """Save the numbers of an estimate that a group of processes makes together."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    torch.set_num_threads(1)
    torch.save(numbers(estimate(distributed=True, batch=50 + rank)), f"{out}.{rank}")
    distributed.destroy_process_group()
