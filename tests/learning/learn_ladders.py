"""Ladders and starts on which probabilities are learned: what the tests of learning share."""

import torch

import multilevel_sde as mls

TIMES = torch.linspace(0.0, 1.0, 17, dtype=torch.float64)


def nonlinear_ladder(levels: int) -> mls.Ladder:
    def drift(k: int):
        return lambda x, t: torch.sin((1 + k) * x + t) + 0.5 * k * x * torch.roll(x, 1, -1).cos()

    return mls.Ladder([drift(k) for k in range(levels)], [4.0**k for k in range(levels)])


def seeded(seeds):
    return mls.seeded_normal(seeds, (2,), dtype=torch.float64)


def early_ladder() -> mls.Ladder:
    """The correction matters late and not at all early, so that a constant probability is far from the best."""
    return mls.Ladder([lambda x, t: -x, lambda x, t: -x + 2 * t**3 * torch.cos(3 * x)], [1.0, 8.0])
