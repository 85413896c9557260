r"""Langevin dynamics by splitting: positions and momenta, one force a step, temperatures right to second order.

    dq = p/m dt,   dp = f(q) dt - gamma p dt + sqrt(2 gamma m T) dW        T = k_B times the temperature

A state is positions and momenta stacked in the dimension behind the samples, y = torch.stack((q, p), dim=1) of shape
(B, 2, ...), and q, p = y.unbind(1). The ladder is one of forces f(q, t), shaped like q. The parts of a step are

    B   p + h/2 f(q)        A   q + h/2 p/m        O   c p + sqrt((1 - c^2) m T) xi,   xi = dW / sqrt(h)

`BAOAB` is B A O A B with c = e^{-gamma h}; `OBABO` is O B A A B O with c = e^{-gamma h / 2} and two xi. Where gamma is
large only the positions are left, and BAOAB becomes `OverdampedLangevin`,

    q_{n+1} = q_n + h f(q_n) / (gamma m) + sqrt(2 T / (gamma m)) (dW_{n-1} + dW_n) / 2.

Pass `diffusion=1.0` and a path, whose shape is chosen for you: that of q, or (2, ...) for OBABO.

Bias. Averages are right to order h^2, and for a harmonic force of frequency w the stationary variances are

    BAOAB   <q^2> = T / (m w^2)                        <p^2> = m T (1 - (h w)^2 / 4)
    OBABO   <q^2> = T / (m w^2) / (1 - (h w)^2 / 4)    <p^2> = m T
    overdamped, all positions                          <q^2> = T / (m w^2)

Ladders. The rules are affine in each estimate, and a plan that is no plan of chance is a multiple-time-step method
(r-RESPA): space corrections evenly. Random draws heat. A force error of variance V at each step, independent of the
last, adds h V / (2 m gamma) to the temperature of each coordinate, as noise that no friction belongs to: docs/langevin
has what independent draws were measured to add.

References:
    Leimkuhler and Matthews, Appl. Math. Res. Express, 2013 (BAOAB and its limit);
    Bussi and Parrinello, Phys. Rev. E 75, 2007 (OBABO).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from multilevel_sde.arguments import as_number, as_tensor, multiplies
from multilevel_sde.steps.rules import Estimate
from multilevel_sde.steps.step_noise import NoiseAdvance, NoiseRule, StepNoise

__all__ = ["BAOAB", "OBABO", "OverdampedLangevin"]


@dataclass(frozen=True, eq=False)
class _Langevin(NoiseRule):
    """The arguments that the rules have in common."""

    temperature: float
    friction: float = 1.0
    mass: float | Tensor = 1.0

    only_additive, own_scale = True, True

    def __post_init__(self) -> None:
        for name, least in (("temperature", 0.0), ("friction", 0.0)):
            value = as_number(name, getattr(self, name))
            if not (math.isfinite(value) and value >= least):
                raise ValueError(f'"{name}" must be finite and at least 0, got {value}')
            object.__setattr__(self, name, value)
        if not bool((as_tensor("mass", self.mass) > 0).all()):
            raise ValueError('"mass" must be positive, a number or a tensor that multiplies positions')

    def evaluations(self, times: Tensor) -> list[int]:
        """One in every step, and one more at the start."""
        return [2] + [1] * (len(times) - 2)

    def heating(self, h: float) -> float:
        """h / (2 m gamma), of the lightest mass."""
        lightest = float(self.mass.min()) if isinstance(self.mass, Tensor) else float(self.mass)
        return h / (2 * lightest * self.friction) if self.friction else math.inf

    def _masses(self, q: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """The masses and sqrt(m T)."""
        if not isinstance(self.mass, Tensor):
            return float(self.mass), math.sqrt(self.mass * self.temperature)
        mass = self.mass.to(q)
        if not multiplies(mass, q.shape):
            raise ValueError(
                f'"mass" of shape {tuple(mass.shape)} does not multiply positions of shape {tuple(q.shape)}; give a '
                "number, or one for each coordinate"
            )
        return mass, (mass * self.temperature).sqrt()

    def _parts(
        self, y: Tensor, noise: StepNoise | None, h: float
    ) -> tuple[Tensor, Tensor, Tensor | float, Tensor | float]:
        """Positions, momenta, masses and sqrt(m T)."""
        if y.dim() < 2 or y.shape[1] != 2:
            raise ValueError(
                f'"y0" must hold positions and momenta as torch.stack((q, p), dim=1), of shape (samples, 2, ...), for '
                f"{type(self).__name__}, got {tuple(y.shape)}"
            )
        _check_noise(self, noise, h)
        q, p = y.unbind(1)
        return q, p, *self._masses(q)


def _check_noise(rule: _Langevin, noise: StepNoise | None, h: float) -> None:
    if h < 0:
        raise ValueError(f'"times" must increase for {type(rule).__name__}, as friction has a direction in time')
    if noise is None and rule.friction * rule.temperature > 0:
        raise ValueError(
            f"{type(rule).__name__} at a temperature of {rule.temperature:g} needs noise; pass diffusion=1.0 and "
            "brownian=BrownianPath(seeds), or a temperature or friction of 0"
        )


class BAOAB(_Langevin):
    """B A O A B for Langevin dynamics on (q, p): averages of positions right to order h^2, exact for harmonic forces.

    One force a step: the last one of a step is the first of the next. Only the first step takes two.

    Arguments:
        temperature: T, in the units of energy.
        friction: gamma, one over time.
        mass: m, a number or a tensor that multiplies positions.

    Raises:
        TypeError, ValueError: A temperature or friction below 0, a mass that is not positive; on a step a state that
            is not (samples, 2, ...), times that decrease, a mass of another size, a temperature without
            noise, a diffusion that is another number than 1.

    Reference:
        Leimkuhler and Matthews 2013.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> forces = mls.Ladder([lambda q, t: -q], costs=[1.0])
        >>> times, step = torch.linspace(0.0, 1.0, 11), mls.BAOAB(temperature=0.5)
        >>> y0 = torch.stack((torch.ones(4, 3), torch.zeros(4, 3)), dim=1)
        >>> solution = mls.solve(forces, y0, times, mls.em_plan(forces, times, step=step), step=step,
        ...                      diffusion=1.0, brownian=mls.BrownianPath(seeds=range(4)))
        >>> q, p = solution.y.unbind(1)
        >>> q.shape, solution.stats.evaluations
        (torch.Size([4, 3]), tensor([11]))
    """

    def noise_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """That of the positions."""
        return shape[1:]

    def start(self, times: Tensor) -> NoiseAdvance:
        """Return the step, which remembers the last force."""
        force: Tensor | None = None

        def advance(y: Tensor, F: Estimate, t: float, s: float, noise: StepNoise | None) -> Tensor:
            nonlocal force
            h = s - t
            q, p, mass, thermal = self._parts(y, noise, h)
            p = torch.add(p, F(q, t) if force is None else force, alpha=h / 2)
            q = q + p * (h / 2 / mass)
            p = _thermostat(p, self.friction * h, thermal, None if noise is None else noise(q, t) / math.sqrt(h))
            q = q + p * (h / 2 / mass)
            force = F(q, s)
            return torch.stack((q, torch.add(p, force, alpha=h / 2)), 1)

        return advance


class OBABO(_Langevin):
    """O B A B O for Langevin dynamics on (q, p): velocity Verlet between two thermostats, momenta exact if harmonic.

    One force a step, as for :class:`BAOAB`, whose arguments and errors it has. Its path has the shape (2, ...) a
    sample, one normal for each thermostat.

    Reference:
        Bussi and Parrinello 2007.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> forces = mls.Ladder([lambda q, t: -q], costs=[1.0])
        >>> times, step = torch.linspace(0.0, 1.0, 11), mls.OBABO(temperature=0.5, friction=2.0, mass=3.0)
        >>> y0 = torch.stack((torch.ones(4), torch.zeros(4)), dim=1)
        >>> mls.solve(forces, y0, times, mls.em_plan(forces, times, step=step), step=step,
        ...           diffusion=1.0, brownian=mls.BrownianPath(seeds=range(4))).y.shape
        torch.Size([4, 2])
    """

    def start(self, times: Tensor) -> NoiseAdvance:
        """Return the step, which remembers the last force."""
        force: Tensor | None = None

        def advance(y: Tensor, F: Estimate, t: float, s: float, noise: StepNoise | None) -> Tensor:
            nonlocal force
            h = s - t
            q, p, mass, thermal = self._parts(y, noise, h)
            before, after = (None, None) if noise is None else (noise(y, t) / math.sqrt(h)).unbind(1)
            p = _thermostat(p, self.friction * h / 2, thermal, before)
            p = torch.add(p, F(q, t) if force is None else force, alpha=h / 2)
            q = q + p * (h / mass)
            force = F(q, s)
            p = torch.add(p, force, alpha=h / 2)
            return torch.stack((q, _thermostat(p, self.friction * h / 2, thermal, after)), 1)

        return advance


class OverdampedLangevin(_Langevin):
    """q + h f / (gamma m) + sqrt(2 T / (gamma m)) (dW_{n-1} + dW_n) / 2: positions alone, averages right to order h^2.

    Euler-Maruyama on the same SDE has averages right to order h, at the same cost; but there a path is nearer to the
    exact one. Here the noise comes half a step late: the first step has half of it.

    Arguments and errors are those of :class:`BAOAB`, with a friction above 0, but states are positions only.

    Reference:
        Leimkuhler and Matthews 2013, section 4.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> forces = mls.Ladder([lambda q, t: -q], costs=[1.0])
        >>> times, step = torch.linspace(0.0, 1.0, 11), mls.OverdampedLangevin(temperature=0.5)
        >>> mls.solve(forces, torch.ones(4, 3), times, mls.em_plan(forces, times), step=step,
        ...           diffusion=1.0, brownian=mls.BrownianPath(seeds=range(4))).y.shape
        torch.Size([4, 3])
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.friction > 0:
            raise ValueError('"friction" must be above 0 for OverdampedLangevin, got 0')

    def evaluations(self, times: Tensor) -> list[int]:
        """One in every step."""
        return [1] * (len(times) - 1)

    def start(self, times: Tensor) -> NoiseAdvance:
        """Return the step, which remembers the last increment."""
        last: Tensor | None = None

        def advance(y: Tensor, F: Estimate, t: float, s: float, noise: StepNoise | None) -> Tensor:
            nonlocal last
            _check_noise(self, noise, s - t)
            mobility = 1 / (self.friction * self._masses(y)[0])
            following = y + F(y, t) * ((s - t) * mobility)
            if noise is None:
                return following
            dW = noise(y, t)
            both = dW if last is None else dW + last
            last = dW
            return following + both * ((2 * self.temperature * mobility) ** 0.5 / 2)

        return advance


def _thermostat(p: Tensor, decay: float, thermal: Tensor | float, xi: Tensor | None) -> Tensor:
    """c p + sqrt((1 - c^2) m T) xi with c = e^{-decay}."""
    p = p * math.exp(-decay)
    return p if xi is None else p + xi * (thermal * math.sqrt(-math.expm1(-2 * decay)))
