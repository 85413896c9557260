"""Langevin dynamics in the units of the field: K, fs and 1/fs outside, ASE's units inside.

    dq = p/m dt,   dp = f(q) dt - gamma p dt + sqrt(2 gamma m k_B T) dW

| symbol | name | unit |
|---|---|---|
| T | temperature | K |
| gamma | friction | 1/fs |
| h | timestep | fs |
| q | positions | Angstrom |
| m | masses | amu |
| f | forces | eV / Angstrom |

The rules are those of the core: :class:`multilevel_sde.BAOAB` and, where only the positions are left,
:class:`multilevel_sde.OverdampedLangevin`. Both take one force a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ase import units
from torch import Tensor

import multilevel_sde as mls
from multilevel_sde.arguments import as_number

__all__ = ["Langevin", "Overdamped"]


@dataclass(frozen=True, kw_only=True)
class Langevin:
    """Langevin dynamics by BAOAB: averages of positions right to order h^2, exact for harmonic forces.

    Arguments:
        temperature: In K, at least 0.
        friction: gamma in 1/fs; 0 leaves Newton's equations by velocity Verlet. A usual value is 0.002 to 0.01.
        timestep: In fs.

    Raises:
        TypeError, ValueError: A value that is no number, not finite or below 0, a step of 0.

    Reference:
        Leimkuhler and Matthews, Appl. Math. Res. Express, 2013.

    Example:
        >>> dynamics = Langevin(temperature=300, friction=0.01, timestep=2.0)
        >>> round(dynamics.thermal, 4), round(dynamics.h, 4)  # k_B T in eV, and h in Angstrom sqrt(amu / eV)
        (0.0259, 0.1965)
    """

    temperature: float
    friction: float = 0.01
    timestep: float = 1.0

    def __post_init__(self) -> None:
        for name in ("temperature", "friction", "timestep"):
            value = as_number(name, getattr(self, name))
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f'"{name}" must be a finite number of at least 0, got {value}')
            object.__setattr__(self, name, value)
        if self.timestep == 0:
            raise ValueError('"timestep" must be above 0 fs, got 0')
        if self.timestep > 100:
            raise ValueError(
                f'"timestep" must be at most 100 fs, got {self.timestep:g}, far above any vibration; give femtoseconds '
                "as a plain number, such as 2.0"
            )

    @property
    def h(self) -> float:
        """The step in ASE's unit of time."""
        return self.timestep * units.fs

    @property
    def gamma(self) -> float:
        """The friction in ASE's units."""
        return self.friction / units.fs

    @property
    def thermal(self) -> float:
        """k_B T in eV."""
        return self.temperature * units.kB

    def rule(self, masses: Tensor) -> mls.StepRule:
        """Return the core's rule for masses in amu, (atoms, 1)."""
        return mls.BAOAB(temperature=self.thermal, friction=self.gamma, mass=masses)


@dataclass(frozen=True, kw_only=True)
class Overdamped(Langevin):
    """Positions alone, dq = f / (gamma m) dt + sqrt(2 k_B T / (gamma m)) dW; arguments and errors as of Langevin.

    Reference:
        Leimkuhler and Matthews 2013, section 4.

    Example:
        >>> Overdamped(temperature=300, friction=0.1, timestep=2.0).friction
        0.1
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.friction == 0:
            raise ValueError('"friction" must be above 0 for Overdamped, got 0')

    def rule(self, masses: Tensor) -> mls.StepRule:
        """Return the core's rule for masses in amu, (atoms, 1)."""
        return mls.OverdampedLangevin(temperature=self.thermal, friction=self.gamma, mass=masses)
