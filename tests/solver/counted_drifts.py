"""A ladder whose drifts count their calls, and plans drawn for it: what the tests of the loop share."""

import torch

import multilevel_sde as mls

DOUBLE = torch.float64
TIMES = torch.linspace(0.0, 1.0, 21, dtype=DOUBLE)
TABLE = torch.tensor([1.0, 0.5, 0.5, 0.1])


class Counted:
    """A drift a sin(b x) - t that counts its calls and the samples it saw."""

    def __init__(self, a, b=1.0):
        self.a, self.b, self.calls, self.samples = a, b, 0, []

    def __call__(self, x, t):
        self.calls += 1
        self.samples.append(len(x) if x.dim() else 1)
        return self.a * torch.sin(self.b * x) - t.to(x)


def ladder_of(levels=4):
    return mls.Ladder(
        [Counted(1.0 + 0.5**k, 1.0 + 0.3**k) for k in range(levels)], costs=[4.0**k for k in range(levels)]
    )


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(draw=mls.systematic, seed=0, samples=None, table=TABLE, steps=20):
    return mls.draw_plan(table.expand(steps, -1), draw, generator=generator(seed), samples=samples)
