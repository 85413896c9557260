"""Expectations with known values: what `mls.expectation` is given, and the truth.

    ornstein_uhlenbeck  E y(1)^2 for dy = -y dt + 0.5 dW
    call                e^-r E (S - K)+              of dS = r S dt + sigma S dW, r = 0.05, sigma = 0.2, S(0) = K = 100
    digital             10 e^-r P(S > K)
    lookback            e^-r E (S - min S)           the minimum between the steps drawn from the bridge
    barrier             e^-r E (S - K)+ 1[min S > 85]  the chance to survive between the steps by the bridge
    langevin            E q(2)^2 in equilibrium, force -q - q^3, by BAOAB; the lower level has a linear force
    particles           E mean x_i(1)^2 of 16 particles, dx_i = -x_i dt - 0.3 mean_j (x_i - x_j) dt + 0.5 dW_i; in the
                        lower levels they attract each other within cutoffs only

References:
    Giles, "Multilevel Monte Carlo path simulation", Operations Research 56, 2008 (the options);
    Glasserman, "Monte Carlo Methods in Financial Engineering", 2004 (the bridge).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch import Tensor

import multilevel_sde as mls

__all__ = ["RATE", "SIGMA", "STRIKE", "Case", "cases", "option_ladder"]

RATE, SIGMA, STRIKE, BARRIER = 0.05, 0.2, 100.0, 85.0
DISCOUNT = math.exp(-RATE)


@dataclass(frozen=True)
class Case:
    """What `mls.expectation` is given, and the truth.

    Attributes:
        truth: E[phi].
        tolerance: A moderate one.
        phi, ladder, start, times: As for `mls.expectation`.
        options: The rest of its arguments.
    """

    truth: float
    tolerance: float
    phi: Callable[..., Tensor]
    ladder: mls.Ladder
    start: Callable[..., Tensor]
    times: Tensor
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, tolerance: float | None = None, seed: int = 0, **more: Any) -> mls.Expectation:
        """Return the estimate."""
        return mls.expectation(
            self.phi,
            self.ladder,
            self.start,
            self.times,
            tolerance=self.tolerance if tolerance is None else tolerance,
            seed=seed,
            **{**self.options, **more},
        )


def option_ladder() -> mls.Ladder:
    """Return the drift of geometric Brownian motion."""
    return mls.Ladder([lambda s, t: RATE * s], costs=[1.0])


def _unit(steps: int, end: float = 1.0) -> Tensor:
    return torch.linspace(0.0, end, steps + 1, dtype=torch.float64)


def call(s: Tensor) -> Tensor:
    """Discounted payoff of a call."""
    return DISCOUNT * (s - STRIKE).clamp_min(0.0)


def lookback(path: Tensor, times: Tensor, seeds: range) -> Tensor:
    """Discounted payoff of a lookback option whose strike is the minimum, drawn between the steps."""
    lowest = -mls.running_maximum(-path, times, SIGMA * path[:-1], seeds)[-1]
    return DISCOUNT * (path[-1] - lowest)


def barrier(path: Tensor, times: Tensor) -> Tensor:
    """Discounted payoff of a down-and-out call, times the chance that the bridges between the steps stay above."""
    above = (path - BARRIER).clamp_min(0.0)
    variance = (SIGMA * path[:-1]).square() * times.diff().to(path)[:, None]
    return call(path[-1]) * (-torch.expm1(-2 * above[:-1] * above[1:] / variance)).prod(0)


def _options() -> dict[str, Case]:
    d1 = (RATE + SIGMA**2 / 2) / SIGMA
    d2, n = d1 - SIGMA, norm.cdf
    vanilla = STRIKE * n(d1) - STRIKE * DISCOUNT * n(d2)
    ratio = SIGMA**2 / (2 * RATE)
    a3 = (SIGMA**2 / 2 - RATE) / SIGMA
    floating = STRIKE * (n(d1) - ratio * n(-d1)) - STRIKE * DISCOUNT * (n(d2) - ratio * n(-a3))
    power, below = (RATE + SIGMA**2 / 2) / SIGMA**2, BARRIER / STRIKE
    y = 2 * math.log(below) / SIGMA + power * SIGMA
    knocked = STRIKE * below ** (2 * power) * n(y) - STRIKE * DISCOUNT * below ** (2 * power - 2) * n(y - SIGMA)
    truths = {
        "call": (vanilla, 0.1, call, False),
        "digital": (10 * DISCOUNT * n(d2), 0.05, lambda s: 10 * DISCOUNT * (s > STRIKE).double(), False),
        "lookback": (floating, 0.1, lookback, True),
        "barrier": (vanilla - knocked, 0.1, barrier, True),
    }
    ladder, times = option_ladder(), _unit(1024)

    def start(seeds: range) -> Tensor:
        return torch.full((len(seeds),), STRIKE, dtype=torch.float64)

    return {
        name: Case(
            truth, tolerance, phi, ladder, start, times, {"diffusion": lambda s, t: SIGMA * s, "save": path}
        )
        for name, (truth, tolerance, phi, path) in truths.items()
    }  # fmt: skip


def _langevin() -> Case:
    def density(q: float) -> float:
        return math.exp(-(q**2) / 2 - q**4 / 4)

    whole = quad(density, -8, 8)[0]
    truth = quad(lambda q: q * q * density(q), -8, 8)[0] / whole
    points = torch.linspace(-6.0, 6.0, 20001, dtype=torch.float64)
    weights = (-(points**2) / 2 - points**4 / 4).exp()
    below = torch.cumulative_trapezoid(weights, points) / torch.trapezoid(weights, points)

    def start(seeds: range) -> Tensor:
        z = mls.seeded_normal(seeds, (2, 1), dtype=torch.float64)
        q = points[1:][torch.searchsorted(below, torch.special.ndtr(z[:, 0])).clamp_max(len(below) - 1)]
        return torch.stack((q, z[:, 1]), 1)

    ladder = mls.Ladder([lambda q, t: -2.0 * q, lambda q, t: -q - q * q * q], costs=[1.0, 16.0])
    options = {"step": mls.BAOAB(temperature=1.0, friction=1.0), "diffusion": 1.0, "coarsest": 4}
    return Case(truth, 0.003, lambda y: y[:, 0, 0].square(), ladder, start, _unit(256, 2.0), options)


def _particles() -> Case:
    count, sigma, pull = 16, 0.5, 0.3
    begin = torch.linspace(-1.0, 1.0, count, dtype=torch.float64)

    def attraction(cutoff: float) -> Callable[[Tensor, Tensor], Tensor]:
        def force(x: Tensor, t: Tensor) -> Tensor:
            apart = x[:, :, None] - x[:, None, :]
            return -x - pull * (apart * (1 + (cutoff - apart.abs()) / 0.1).clamp(0.0, 1.0)).mean(2)

        return force

    def whole(x: Tensor, t: Tensor) -> Tensor:
        return pull * x.mean(1, keepdim=True) - (1 + pull) * x

    centre, decay = math.exp(-2.0), math.exp(-2.0 * (1 + pull))
    spread = decay * float(begin.square().sum()) + (count - 1) * sigma**2 * (1 - decay) / (2 * (1 + pull))
    truth = sigma**2 / count * (1 - centre) / 2 + spread / count
    ladder = mls.Ladder([attraction(0.15), attraction(0.7), whole], costs=[16.0, 80.0, 256.0])
    phi, times = (lambda x: x.square().mean(1)), _unit(256)
    return Case(truth, 0.0007, phi, ladder, lambda s: begin.expand(len(s), count).clone(), times, {"diffusion": sigma})


@cache
def cases() -> dict[str, Case]:
    """Return the cases by name."""
    square = Case(
        math.exp(-2.0) + (1 - math.exp(-2.0)) / 8,
        0.004,
        lambda y: y[:, 0].square(),
        mls.Ladder([lambda y, t: -y], costs=[1.0]),
        lambda seeds: torch.ones(len(seeds), 1, dtype=torch.float64),
        _unit(1024),
        {"diffusion": 0.5},
    )
    return {"ornstein_uhlenbeck": square, **_options(), "langevin": _langevin(), "particles": _particles()}
