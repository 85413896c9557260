"""Input that is accepted, for tests to spoil in one place, and the refusal they expect."""

import pytest
import torch

import multilevel_sde as mls

NAN, INF = float("nan"), float("inf")
TIMES = [0.0, 0.5, 1.0]


def twin():
    return mls.Ladder([lambda x, t: -x, lambda x, t: -2 * x], costs=[1.0, 8.0])


def generator():
    return torch.Generator().manual_seed(0)


def solve(ladder=None, y0=None, times=TIMES, plan=None, **options):
    ladder = ladder or twin()
    plan = plan or mls.em_plan(ladder, [0.0, 0.5, 1.0])
    return mls.solve(ladder, torch.ones(3) if y0 is None else y0, times, plan, **options)


def refused(message, error: type[Exception] = ValueError):
    return pytest.raises(error, match=message)
