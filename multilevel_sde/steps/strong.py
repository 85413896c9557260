r"""Rules of higher strong order, and rules for Stratonovich SDEs: they ask for g at other states or for the areas.

With h = s - t, g = g(y, t), and F(x, time) an estimate of the drift,

    Milstein              y + h F(y, t) + g dW + 1/2 sum_jk (Dg_k g_j)(dW_j dW_k - h 1[j = k])
    EulerHeun             y + h F(y, t) + (g dW + g(y + g dW, s) dW) / 2
    StratonovichHeun      y' = y + h F(y, t) + g dW,        y + (h F(y, t) + h F(y', s) + g dW + g(y', s) dW) / 2
    StratonovichMidpoint  y' = y + (h F(y, t) + g dW) / 2,  y + h F(y', m) + g(y', m) dW,  m = (t + s)/2
    SRA1                  y' = y + 3/4 h F(y, t) + 3/2 g(s) V,   V = dW/2 + H
    and then              y + h/3 F(y, t) + 2/3 h F(y', t + 3/4 h) + g(t) V + g(s) (dW - V)

Milstein solves the Ito SDE, or with `stratonovich=True` the Stratonovich one, whose last term has no h. EulerHeun and
the two rules after it solve the Stratonovich SDE. SRA1 is for noise that does not depend on the state.

Strong orders, measured in docs/orders: Milstein, EulerHeun, StratonovichHeun and StratonovichMidpoint 1 where the noise
commutes (Dg_k g_j = Dg_j g_k: diagonal, scalar and additive noise, and some matrices), 1/2 otherwise; SRA1 3/2.

Ladders. Milstein and EulerHeun are affine in the estimate, which enters as h F(y, t): they take every plan that
Euler-Maruyama takes, with one row a step. The other three evaluate twice a step, so a plan has two rows a step, and the
second estimate is at a state that the first one moved: a plan is unbiased for them to first order only, as for Heun.
With weights 1 every rule is that of the top level alone.

References:
    Kloeden and Platen, "Numerical Solution of Stochastic Differential Equations", 1992, sections 10.3, 11.1, 15.5;
    Burrage, Burrage and Tian, Proc. R. Soc. Lond. A 460, 2004 (Stratonovich Heun and midpoint);
    Roessler, SIAM J. Numer. Anal. 48, 2010 (SRA1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from multilevel_sde.steps.rules import Estimate
from multilevel_sde.steps.step_noise import NoiseAdvance, NoiseRule, StepNoise, along, check_elements, diagonal_square

__all__ = ["SRA1", "EulerHeun", "Milstein", "StratonovichHeun", "StratonovichMidpoint"]

_COUPLED = (
    "give NoiseTerm.of_matrix(lambda y, t: torch.diag_embed(g(y, t)), motions=d), or take mls.euler_maruyama",
    "take mls.EulerHeun(), or mls.Milstein(stratonovich=True, gradient_free=True)",
)


@dataclass(frozen=True)
class Milstein(NoiseRule):
    """y + h F + g dW + 1/2 sum_jk (Dg_k g_j)(dW_j dW_k - h 1[j = k]): strong order 1, one evaluation a step.

    For diagonal noise, g(y, t) of which element i depends on element i of the state, and for matrices and operators
    whose noise commutes. The derivatives of g are automatic, one or two passes for diagonal and scalar noise and about
    2 m for m Brownian motions; or differences of g at y + sqrt(h) g_j (Ito) or
    y + g dW (Stratonovich), without derivatives.

    Arguments:
        stratonovich: Solve the Stratonovich SDE.
        gradient_free: Take differences of g.

    Raises:
        ValueError: On the first step, diagonal noise of which an element depends on other elements (as in Heston's
            model), which is no diagonal noise in this sense.

    Reference:
        Kloeden and Platen 1992, (10.3.1), (10.3.16) for commutative noise, (11.1.3) without derivatives.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder, times = mls.Ladder([lambda y, t: 0 * y], [1.0]), [0.0, 0.25]
        >>> mls.solve(ladder, torch.ones(1, 1), times, mls.em_plan(ladder, times), step=mls.Milstein(),
        ...           diffusion=lambda y, t: y, brownian=lambda t, s: torch.tensor([[0.5]])).y  # dW^2 = h
        tensor([[1.5000]])
    """

    stratonovich: bool = False
    gradient_free: bool = False

    def evaluations(self, times: Tensor) -> list[int]:
        """One in every step."""
        return [1] * (len(times) - 1)

    def start(self, times: Tensor) -> NoiseAdvance:
        """Return the step, which looks once whether elements of diagonal noise depend on one another."""
        checked = self.gradient_free and self.stratonovich  # right for all noise

        def advance(y: Tensor, F: Estimate, t: float, s: float, noise: StepNoise | None) -> Tensor:
            nonlocal checked
            if not checked and noise is not None and noise.diagonal and not noise.additive:
                check_elements(noise, y, t, abs(s - t), _COUPLED[self.stratonovich])
            checked = True
            return self._advance(y, F, t, s, noise)

        return advance

    def _advance(self, y: Tensor, F: Estimate, t: float, s: float, noise: StepNoise | None) -> Tensor:
        following = torch.add(y, F(y, t), alpha=s - t)
        if noise is None:
            return following
        if noise.additive:
            return following + noise(y, t)
        h = abs(s - t)
        if noise.diagonal and not self.gradient_free:
            square = noise.dW * noise.dW - (0.0 if self.stratonovich else h)
            g, term = diagonal_square(lambda x: noise(x, t, torch.ones_like(noise.dW)), y, square)
            return following + (g * noise.dW + 0.5 * term)
        term = (self._by_differences if self.gradient_free else self._by_derivatives)(y, t, h, noise)
        return torch.add(following + noise(y, t), term, alpha=0.5)

    def _by_derivatives(self, y: Tensor, t: float, h: float, noise: StepNoise) -> Tensor:
        dW, variance = noise.dW, 0.0 if self.stratonovich else h
        if _motions(dW) == 1:  # one derivative for the square and its mean together
            return along(lambda x: noise(x, t, dW * dW - variance), y, noise(y, t, torch.ones_like(dW)))
        term = along(lambda x: noise(x, t), y, noise(y, t))
        if variance:
            for unit in _units(dW):
                term = term - h * along(lambda x, v=unit: noise(x, t, v), y, noise(y, t, unit))
        return term

    def _by_differences(self, y: Tensor, t: float, h: float, noise: StepNoise) -> Tensor:
        if self.stratonovich:  # at y + g dW: at y + sqrt(h) g the error would have a mean, and the order would be 1/2
            first = noise(y, t)
            return noise(y + first, t) - first
        dW, root = noise.dW, math.sqrt(h)
        if noise.diagonal or _motions(dW) == 1:
            v, ones = dW * dW - h, torch.ones_like(dW)
            moved = torch.add(y, noise(y, t, ones), alpha=root)
            return (noise(moved, t, v) - noise(y, t, v)) / root
        term = torch.zeros_like(y)
        for unit in _units(dW):
            v = (dW * unit).sum(tuple(range(1, dW.dim())), keepdim=True) * dW - h * unit
            moved = torch.add(y, noise(y, t, unit), alpha=root)
            term = term + (noise(moved, t, v) - noise(y, t, v)) / root
        return term


@dataclass(frozen=True)
class EulerHeun(NoiseRule):
    """y + h F(y, t) + (g dW + g(y + g dW, s) dW) / 2 for Stratonovich SDEs: one evaluation a step.

    Strong order 1 where the noise commutes, without derivatives of g. The estimate enters as in Euler-Maruyama.

    Reference:
        Kloeden and Platen 1992, section 15.5 (Heun's rule for the noise).

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder, times = mls.Ladder([lambda y, t: 0 * y], [1.0]), [0.0, 0.25]
        >>> mls.solve(ladder, torch.ones(1), times, mls.em_plan(ladder, times), step=mls.EulerHeun(),
        ...           diffusion=lambda y, t: y, brownian=lambda t, s: torch.tensor([0.5])).y  # 1 + (0.5 + 0.75)/2
        tensor([1.6250])
    """

    stratonovich = True

    def evaluations(self, times: Tensor) -> list[int]:
        """One in every step."""
        return [1] * (len(times) - 1)

    def start(self, times: Tensor) -> NoiseAdvance:
        """Return the step, which remembers nothing."""
        return _euler_heun


def _euler_heun(y: Tensor, F: Estimate, t: float, s: float, noise: StepNoise | None) -> Tensor:
    following = torch.add(y, F(y, t), alpha=s - t)
    if noise is None:
        return following
    first = noise(y, t)
    return torch.add(following, first + noise(y + first, s), alpha=0.5)


@dataclass(frozen=True)
class StratonovichHeun(NoiseRule):
    """y' = y + h F(y, t) + g dW, then the mean of both ends, for Stratonovich SDEs: two evaluations a step.

    Strong order 1 where the noise commutes; order 2 for ODEs.

    Reference:
        Burrage, Burrage and Tian 2004.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder, times = mls.Ladder([lambda y, t: -y], [1.0]), [0.0, 0.5]
        >>> step = mls.StratonovichHeun()
        >>> mls.solve(ladder, torch.ones(1), times, mls.em_plan(ladder, times, step=step), step=step,
        ...           diffusion=lambda y, t: y, brownian=lambda t, s: torch.tensor([0.5])).y  # they cancel
        tensor([1.])
    """

    stratonovich = True

    def evaluations(self, times: Tensor) -> list[int]:
        """Two in every step."""
        return [2] * (len(times) - 1)

    def start(self, times: Tensor) -> NoiseAdvance:
        """Return the step, which remembers nothing."""
        return _stratonovich_heun


def _stratonovich_heun(y: Tensor, F: Estimate, t: float, s: float, noise: StepNoise | None) -> Tensor:
    change = (s - t) * F(y, t)
    if noise is not None:
        change = change + noise(y, t)
    moved = y + change
    change = torch.add(change, F(moved, s), alpha=s - t)
    if noise is not None:
        change = change + noise(moved, s)
    return torch.add(y, change, alpha=0.5)


@dataclass(frozen=True)
class StratonovichMidpoint(NoiseRule):
    """y' = y + (h F(y, t) + g dW) / 2, then drift and noise from there, for Stratonovich SDEs: two evaluations a step.

    Strong order 1 where the noise commutes; order 2 for ODEs.

    Reference:
        Burrage, Burrage and Tian 2004.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder, times = mls.Ladder([lambda y, t: 0 * y], [1.0]), [0.0, 0.25]
        >>> step = mls.StratonovichMidpoint()
        >>> mls.solve(ladder, torch.ones(1), times, mls.em_plan(ladder, times, step=step), step=step,
        ...           diffusion=lambda y, t: y, brownian=lambda t, s: torch.tensor([0.5])).y  # 1 + 1.25/2
        tensor([1.6250])
    """

    stratonovich = True

    def evaluations(self, times: Tensor) -> list[int]:
        """Two in every step."""
        return [2] * (len(times) - 1)

    def start(self, times: Tensor) -> NoiseAdvance:
        """Return the step, which remembers nothing."""
        return _stratonovich_midpoint


def _stratonovich_midpoint(y: Tensor, F: Estimate, t: float, s: float, noise: StepNoise | None) -> Tensor:
    middle = (t + s) / 2
    half = torch.add(y, F(y, t), alpha=(s - t) / 2)
    if noise is not None:
        half = torch.add(half, noise(y, t), alpha=0.5)
    following = torch.add(y, F(half, middle), alpha=s - t)
    return following if noise is None else following + noise(half, middle)


@dataclass(frozen=True)
class SRA1(NoiseRule):
    """Roessler's stochastic Runge-Kutta rule for additive noise: strong order 3/2, two evaluations a step.

    y' = y + 3/4 h F(y, t) + 3/2 g(s) V, then y + h/3 F(y, t) + 2/3 h F(y', t + 3/4 h) + g(t) V + g(s) (dW - V) with
    V = dW/2 + H, where h V is the integral of W(u) - W(t) over the step. It needs a path with areas H:
    `BrownianPath(seeds, grid=times)`, with the finest times of all its runs.

    Reference:
        Roessler 2010, table 6.1 (SRA1).

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder, times = mls.Ladder([lambda y, t: -y], [1.0]), torch.linspace(0.0, 1.0, 9)
        >>> plan, path = mls.em_plan(ladder, times, step=mls.SRA1()), mls.BrownianPath(seeds=range(3), grid=times)
        >>> mls.solve(ladder, torch.ones(3), times, plan, step=mls.SRA1(), diffusion=0.5, brownian=path).y.shape
        torch.Size([3])
    """

    area, only_additive = True, True

    def evaluations(self, times: Tensor) -> list[int]:
        """Two in every step."""
        return [2] * (len(times) - 1)

    def start(self, times: Tensor) -> NoiseAdvance:
        """Return the step, which remembers nothing."""
        return _sra1


def _sra1(y: Tensor, F: Estimate, t: float, s: float, noise: StepNoise | None) -> Tensor:
    h = s - t
    first = F(y, t)
    moved = torch.add(y, first, alpha=0.75 * h)
    if noise is None:
        following = torch.add(y, first, alpha=h / 3)
        return torch.add(following, F(moved, t + 0.75 * h), alpha=2 * h / 3)
    assert noise.H is not None
    mean = torch.add(noise.H, noise.dW, alpha=0.5)
    moved = torch.add(moved, noise(y, s, mean), alpha=1.5)
    following = torch.add(y, first, alpha=h / 3)
    following = torch.add(following, F(moved, t + 0.75 * h), alpha=2 * h / 3)
    return following + (noise(y, t, mean) + noise(y, s, noise.dW - mean))


def _motions(dW: Tensor) -> int:
    """How many Brownian motions a sample has."""
    return dW[0].numel() if dW.dim() > 1 and len(dW) else 1


def _units(dW: Tensor) -> Iterator[Tensor]:
    """The unit vectors of the Brownian motions of a sample, each for all samples."""
    for j in range(_motions(dW)):
        unit = torch.zeros(_motions(dW), dtype=dW.dtype, device=dW.device)
        unit[j] = 1.0
        yield unit.reshape(1, *dW.shape[1:]).expand_as(dW)
