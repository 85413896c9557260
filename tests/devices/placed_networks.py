"""Three small networks, a ladder of them and its solves: what the tests of placement share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import multilevel_sde as mls

TIMES = torch.linspace(0.0, 1.0, 17)


class Net(nn.Module):
    """A small network with what real ones have: channels last, a buffer, tied weights, a number that no file has."""

    def __init__(self, width: int, seed: int):
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.last = nn.Conv2d(width, 1, 3, padding=1)
        self.tied = self.last
        self.register_buffer("shift", torch.tensor(0.25), persistent=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        self.to(memory_format=torch.channels_last).eval().requires_grad_(False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.tied(self.norm(self.first(x)).tanh()) + self.shift * t


def nets() -> list[Net]:
    return [Net(2, 0), Net(4, 1), Net(8, 2)]


def ladder_of(drifts) -> mls.Ladder:
    return mls.Ladder(drifts, costs=[1.0, 4.0, 16.0])


def plan_of(seed: int = 0, samples: int | None = None) -> mls.Plan:
    p = torch.tensor([1.0, 0.4, 0.2]).expand(len(TIMES) - 1, 3)
    return mls.draw_plan(p, mls.independent, generator=torch.Generator().manual_seed(seed), samples=samples)


def solved(ladder: mls.Ladder, plan: mls.Plan, **arguments) -> Tensor:
    y0 = torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(7))
    noise = mls.BrownianPath(seeds=range(3))
    return mls.solve(ladder, y0, TIMES, plan, diffusion=0.2, brownian=noise, gradients=False, **arguments).y
