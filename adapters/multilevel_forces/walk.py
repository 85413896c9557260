"""A walk: the state of a run, one step after another, which can be stored and gone on with to the same bits.

A walk is `multilevel_sde.solve` with a repeated block of a plan, for runs whose end is not known: the rule is the
core's, the noise of step n depends on the seed and n alone, and the state is positions, momenta, the last force and
what the plan remembers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ase import units
from torch import Tensor

import multilevel_sde as mls
from multilevel_forces.blocks import Estimates, check_block
from multilevel_forces.langevin import Langevin, Overdamped
from multilevel_forces.systems import Systems
from multilevel_sde.arguments import as_integer, as_items
from multilevel_sde.steps.step_noise import StepNoise

__all__ = ["Walk", "systems_of"]

_CHUNK = 256  # steps whose noise is drawn at a time


def systems_of(ladder: mls.Ladder) -> Systems:
    """Return the systems that a ladder of forces was made for.

    Raises:
        TypeError: It was not made by :func:`ladder`.
    """
    found = getattr(ladder.drifts[0], "systems", None) if isinstance(ladder, mls.Ladder) else None
    if not isinstance(found, Systems):
        raise TypeError(f'"ladder" must be made by multilevel_forces.ladder(calculators, atoms), got {ladder!r}')
    return found


class Walk:
    """A run of several systems by a plan that is repeated.

    Arguments:
        ladder: Of :func:`ladder`; the run begins at its atoms, with their momenta.
        dynamics: :class:`Langevin` or :class:`Overdamped`: K, fs, 1/fs.
        plan: One block, such as `impulses([1, 4])`; see :func:`.blocks.check_block`.
        seeds: One a system.
        allow_heating: Take a plan with corrections at uneven places too.

    Raises:
        TypeError, ValueError: A ladder that is no ladder of forces; a plan that cannot be repeated; another number of
            seeds than of systems.
        ForceError: A force cannot be had or is not finite; the step is not made, and the walk stays where it was.

    Attributes:
        n: Steps made.
        q, p: Positions in Angstrom and momenta in ASE's units, (systems, free atoms, 3).
        force: The estimate at q, eV / Angstrom.

    Example:
        >>> from ase.build import bulk
        >>> from multilevel_forces.blocks import impulses
        >>> from multilevel_forces.force_ladder import ladder
        >>> well = ladder([lambda x: -x, lambda x: -torch.sin(x)], bulk("Cu"), prices=[1, 8])
        >>> walk = Walk(well, Langevin(temperature=300, friction=0.01, timestep=1.0), impulses([1, 4]), seeds=[0])
        >>> walk.step(), walk.step(), walk.n, walk.q.shape
        (None, None, 2, torch.Size([1, 1, 3]))
    """

    def __init__(
        self,
        ladder: mls.Ladder,
        dynamics: Langevin,
        plan: mls.Plan,
        seeds: Sequence[int],
        *,
        allow_heating: bool = False,
    ):
        self.systems = systems_of(ladder)
        if not isinstance(dynamics, Langevin):
            raise TypeError(f'"dynamics" must be Langevin(...) or Overdamped(...), got {type(dynamics).__name__}')
        each = [as_integer("seeds", seed) for seed in as_items("seeds", seeds, "integers")]
        if len(each) != len(self.systems):
            raise ValueError(f'"seeds" must be one a system, got {len(each)} for {len(self.systems)}')
        self.ladder, self.dynamics, self.plan = ladder, dynamics, check_block(plan, len(ladder), allow_heating)
        self.estimates = Estimates(ladder, plan, self.systems)
        self.q, self.p, self.n = self.systems.positions(), self.systems.momenta(), 0
        self.force: Tensor | None = None
        shape = tuple(self.q.shape[1:])
        self._path = mls.BrownianPath(each, unit=dynamics.h, shape=shape, dtype=torch.float64)
        self._drawn: tuple[int, list[Tensor]] = (-1, [])
        self._inertial = not isinstance(dynamics, Overdamped)
        self._restart()

    def _restart(self) -> None:
        """Begin the rule anew, which then asks for the force at the state that it is at."""
        rule = self.dynamics.rule(self.systems.masses)
        self._advance: Any = rule.start(torch.tensor([0.0, self.dynamics.h]))  # type: ignore[attr-defined]
        self._begun = False

    def begin(self) -> Tensor:
        """Return the estimate of the force at the present positions, made if it was not."""
        if self.force is None:
            self.force = self.estimates(self.n, self.q)
        return self.force

    def step(self) -> None:
        """Make one step: one estimate of the force, and the estimate at the start before the first."""
        force, n, h = self.begin(), self.n, self.dynamics.h
        found = force

        def estimate(q: Tensor, time: float) -> Tensor:
            nonlocal found
            if not self._begun:  # of the rule, not of the run
                self._begun = True
                return force
            found = self.estimates(n + 1, q)
            return found

        noise = self._noise(n)
        if self._inertial:
            y = self._advance(torch.stack((self.q, self.p), 1), estimate, 0.0, h, noise)
            self.q, self.p = y.unbind(1)
            self.force, self.n = found, n + 1
        else:
            self._begun = False
            self.q = self._advance(self.q, estimate, 0.0, h, noise)
            self.force, self.n = None, n + 1
            self.begin()

    def _noise(self, n: int) -> StepNoise | None:
        if not self.dynamics.friction * self.dynamics.temperature > 0:
            return None
        first = n // _CHUNK * _CHUNK
        if self._drawn[0] != first:
            grid = torch.arange(first, first + _CHUNK + 1, dtype=torch.float64) * self.dynamics.h
            self._drawn = first, list(self._path.increments(grid))
        return StepNoise(self._drawn[1][n - first], _plain, float, diagonal=True, additive=True)  # type: ignore[arg-type]

    def thermalize(self, seed: int) -> None:
        """Draw momenta of the temperature, where a system has none: normals of variance m k_B T."""
        chance = torch.Generator().manual_seed(seed % 2**64)  # any whole number, as for noise
        normals = torch.randn(self.p.shape, generator=chance, dtype=self.p.dtype)
        still = ~self.p.flatten(1).any(1)[:, None, None]
        self.p = torch.where(still, normals * (self.systems.masses * self.dynamics.thermal).sqrt(), self.p)

    def temperature(self) -> np.ndarray:
        """Return the kinetic temperature of each system in K, sum p^2 / m over 3 k_B times the free atoms."""
        twice = (self.p.square() / self.systems.masses).sum((1, 2)).numpy()
        return twice / (3 * self.q.shape[1] * units.kB)

    def state(self) -> dict[str, Tensor]:
        """Return all that the run goes on from, as tensors."""
        kept = {f"kept {row} {level}": value for (row, level), value in self.estimates.kept.items()}
        force, readings = self.begin(), torch.from_numpy(self.estimates.readings.copy())
        n = torch.tensor(self.n)
        return {"q": self.q, "p": self.p, "force": force, "n": n, "readings": readings, **kept}

    def go_on(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a stored state, to the same bits as if the run had not stopped.

        Raises:
            ValueError: It is of another run.
        """
        if not {"q", "p", "force", "n", "readings"} <= set(state) or state["q"].shape != self.q.shape:
            raise ValueError('"state" must be of a walk of the same atoms; begin anew')
        self.q, self.p, self.force, self.n = state["q"], state["p"], state["force"], int(state["n"])
        self.estimates.readings = state["readings"].numpy().copy()
        kept = [(name.split(), value) for name, value in state.items() if name.startswith("kept ")]
        self.estimates.kept = {(int(row), int(level)): value for (_, row, level), value in kept}
        self._restart()
        if not self._inertial and self.n:  # the rule remembers the last increment
            self._advance(self.q, lambda q, time: self.force, 0.0, self.dynamics.h, self._noise(self.n - 1))


def _plain(y: Tensor, time: object, v: Tensor) -> Tensor:
    return v
