"""Class `ForcePilot`: what a short run of all levels measured, the plan that follows from it, and what it will save.

Paths of molecular dynamics diverge, so that what is predicted for long runs are averages: the kinetic temperature, the
spread of positions in vibrations, the energy drift without friction, and the force error averaged over a block.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

import multilevel_sde as mls
from multilevel_forces.blocks import impulses
from multilevel_forces.langevin import Langevin
from multilevel_forces.observables import radial_distribution
from multilevel_forces.spectra import Spectrum
from multilevel_forces.walk import systems_of

__all__ = ["Expected", "ForcePilot"]

_PERIODS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)
_PAYS = 0.9  # of the best single level's seconds is the most that a plan may take and be said to pay
_ODD = 0.3  # relative difference of the run's temperature to the bath's that is said
_DAY = 86_400.0
_REACH = 6.0  # of g(r), Angstrom


@dataclass(frozen=True)
class Expected:
    """What is expected of a long run by a plan.

    Attributes:
        levels: Which levels of the pilot run, lowest first, from 0.
        periods: Steps between two forces of each of them.
        temperature: Kinetic temperature over that of the top level alone at the same step.
        spread: Mean squared displacement in vibrations over that of the top level alone.
        drift: Growth of the energy without friction, a fraction per ps.
        seconds: Of one step of all systems.
    """

    levels: tuple[int, ...]
    periods: tuple[int, ...]
    temperature: float
    spread: float
    drift: float
    seconds: float

    @property
    def off(self) -> float:
        """The larger of the two relative errors."""
        return max(abs(self.temperature - 1), abs(self.spread - 1))


@dataclass(frozen=True)
class ForcePilot:
    """Measurements of :func:`pilot` and the plan that follows from them.

    Attributes:
        levels: All levels that were measured and not dropped, cheapest first, with prices in seconds.
        names: Of the levels.
        dynamics: K, fs, 1/fs.
        spectrum: Modes, and the corrections' shares in them.
        force: Root mean square force of the top level, eV / Angstrom.
        force_errors: Root mean square distance of each level's force to the top's, eV / Angstrom.
        correlation_times: Of each correction, fs.
        temperature: Mean kinetic temperature of the run in K.
        tolerance: Largest relative error of temperature and spread that a plan may be expected to have.
        steps: Steps of the run.
        dropped: What was left out before, one sentence each.
        history: Positions of the run of the top level, (steps, systems, atoms, 3), Angstrom.
        forces: Of each level along it, (levels, steps, systems, atoms, 3), eV / Angstrom.
    """

    levels: mls.Ladder
    names: tuple[str, ...]
    dynamics: Langevin
    spectrum: Spectrum
    force: float
    force_errors: tuple[float, ...]
    correlation_times: tuple[float, ...]
    temperature: float
    tolerance: float
    steps: int
    dropped: tuple[str, ...]
    history: np.ndarray
    forces: np.ndarray

    def expect(self, periods: tuple[int, ...], levels: tuple[int, ...] | None = None, hold: bool = False) -> Expected:
        """Return what is expected of a plan.

        Arguments:
            periods: As for :func:`impulses`, one for each of the levels.
            levels: Which; by default the last so many.
            hold: Use each correction until the next one, in place of impulses.

        Raises:
            ValueError: Periods that make no plan, levels that are none or lack the top.
        """
        count = len(self.levels)
        chosen = tuple(range(count - len(periods), count)) if levels is None else tuple(levels)
        if len(chosen) != len(periods) or self.levels.subset(chosen).costs[-1] != self.levels.costs[-1]:
            raise ValueError(
                f'"levels" must be one a period, the last {count - 1}, the top, got {list(chosen)} for {list(periods)}'
            )
        plan = impulses(periods)
        if hold:
            plan = mls.hold(plan, np.arange(plan.steps + 1.0))  # type: ignore[arg-type]
        return self._expected(plan, chosen, tuple(periods))

    def _expected(self, plan: mls.Plan, levels: tuple[int, ...], periods: tuple[int, ...]) -> Expected:
        friction, h = max(self.dynamics.friction, 1e-4), self.dynamics.timestep
        temperature, spread, growth = self.spectrum.expect(plan, levels, friction, h)
        seconds = sum(
            cost * float(count) / plan.steps
            for cost, count in zip(self.levels.subset(levels).costs, plan.evaluations, strict=True)
        )
        own, own_spread = self._top
        return Expected(levels, periods, temperature / own, spread / own_spread, 1000 * growth, seconds)

    def force_error(self, plan: mls.Plan, levels: tuple[int, ...]) -> float:
        """Return the root mean square force error of a plan, averaged over blocks of the pilot's run, eV / Angstrom.

        Infinite where the run was shorter than a block.
        """
        blocks = self.steps // plan.steps
        if blocks == 0:
            return np.inf
        counts = plan.coefficients.numpy().copy()  # of the value of level k at row m, over the whole block
        for _, level, source, value in () if plan.recall is None else plan.recall.entries:
            counts[source, level] += value
        counts[:, -1] -= 1.0
        used = self.forces[list(levels), : blocks * plan.steps]
        rows = used.reshape(len(levels), blocks, plan.steps, -1)
        return float(np.sqrt(np.square(np.einsum("mk,kbmx->bx", counts, rows) / plan.steps).mean()))

    @cached_property
    def _top(self) -> tuple[float, float]:
        """Temperature and spread of the top level alone at this step, over k_B T."""
        friction, top = max(self.dynamics.friction, 1e-4), (len(self.levels) - 1,)
        return self.spectrum.expect(impulses([1]), top, friction, self.dynamics.timestep)[:2]

    @cached_property
    def best(self) -> Expected:
        """The cheapest plan whose temperature and spread are expected within the tolerance of the top's."""
        for _, levels, periods in sorted(self._candidates()):
            found = self._expected(impulses(periods), levels, periods)
            if found.off <= self.tolerance:
                return found
        return self.expect((1,))

    def _candidates(self) -> Iterator[tuple[float, tuple[int, ...], tuple[int, ...]]]:
        top = len(self.levels) - 1
        for size in range(top + 1):
            for below in itertools.combinations(range(top), size):
                levels = (*below, top)
                costs = self.levels.subset(levels).costs
                for periods in itertools.product(_PERIODS, repeat=size):
                    each = (1, *periods)
                    if all(high > low and high % low == 0 for low, high in itertools.pairwise(each)):
                        yield sum(cost / period for cost, period in zip(costs, each, strict=True)), levels, each

    @cached_property
    def single(self) -> tuple[str, float]:
        """The best single level within the tolerance and its seconds for one step of this length.

        A level of its own is good enough where its spread is; the top level may take longer steps, as far as its
        temperature allows.
        """
        top, h = len(self.levels) - 1, self.dynamics.timestep
        friction, longest = max(self.dynamics.friction, 1e-4), h
        for factor in (1.25, 1.5, 2.0, 2.5, 3.0, 4.0):
            temperature, spread, _ = self.spectrum.expect(impulses([1]), (top,), friction, factor * h)
            if max(abs(temperature - 1), abs(spread - 1)) > self.tolerance:
                break
            longest = factor * h
        words = f"{self.names[top]} alone" + (f" in steps of {longest:g} fs" if longest > h else "")
        found = [(self.levels.costs[top] * h / longest, words)]
        for level in range(top):
            if abs(self.spectrum.alone(level) - 1) <= self.tolerance:
                found.append((self.levels.costs[level], f"{self.names[level]} alone"))
        seconds, words = min(found)
        return words, seconds

    @property
    def pays(self) -> bool:
        """Whether the plan is expected to be faster than the best single level, by a tenth at least."""
        return len(self.best.levels) > 1 and self.best.seconds <= _PAYS * self.single[1]

    @property
    def ladder(self) -> mls.Ladder:
        """The levels that the plan runs."""
        return self.levels.subset(self.best.levels)

    @property
    def plan(self) -> mls.Plan:
        """The block of the best plan, of `ladder`."""
        return impulses(self.best.periods)

    def ns_per_day(self, seconds: float) -> float:
        """Return the nanoseconds of a day at so many seconds a step."""
        return self.dynamics.timestep * 1e-6 * _DAY / seconds

    def resonates(self, level: int) -> int | None:
        """Return the least period at which the correction of a level (from 1) is expected to resonate, None to 64.

        The level stands on the one below alone, as impulses; modes without friction.
        """
        shares, deviations = self.spectrum.shares[:, level - 1], self.spectrum.deviations[:, level - 1]
        only = Spectrum(self.spectrum.w, self.spectrum.weight, shares[:, None], deviations[:, None])
        for period in range(2, 65):
            growth = only.expect(impulses([1, period]), (0, 1), 1e-3, self.dynamics.timestep)[2]
            if growth > 1e-9:
                return period
        return None

    @cached_property
    def text(self) -> str:
        """The table and the advice, as people read them."""
        lines = [f"{self.steps} steps of {self.dynamics.timestep:g} fs with all levels, {self.temperature:.0f} K"]
        lines.append(f"{'level':<24}{'s a force':>11}{'force error':>16}{'corr. time':>14}{'resonates at':>14}")
        for k, name in enumerate(self.names):
            late = "" if k == 0 else _fs(self.correlation_times[k - 1], self.steps * self.dynamics.timestep / 2)
            period = None if k == 0 else self.resonates(k)
            when = "" if k == 0 else "above 64" if period is None else f"{period} steps"
            error = f"{self.force_errors[k]:.2g} eV/A"
            lines.append(f"{k + 1} {name[:21]:<22}{self.levels.costs[k]:>11.3g}{error:>16}{late:>14}{when:>14}")
        return "\n".join([*lines, *self.dropped, *self._caution(), self.advice])

    def _caution(self) -> list[str]:
        """What is odd about the run."""
        wanted = self.dynamics.temperature
        if wanted == 0 or abs(self.temperature / wanted - 1) < _ODD:
            return []
        why = "give a structure that was equilibrated, or more steps"
        if self.temperature > wanted:
            why = "the structure is far from equilibrium, or the step is too long even for the top level"
        return [f"Caution: the run was at {self.temperature:.3g} K, not {wanted:g}: {why}."]

    @property
    def advice(self) -> str:
        """What to run, in a sentence or two."""
        best, (words, seconds) = self.best, self.single
        if not self.pays:
            return (
                f"A plan does not pay: none that keeps temperature and spread within {self.tolerance:.1%} is a tenth "
                f"faster than {words} ({seconds:.3g} s a step of {self.dynamics.timestep:g} fs)."
            )
        each = ", ".join(
            f"{self.names[level]} every {'step' if period == 1 else f'{period} steps'}"
            for level, period in zip(best.levels, best.periods, strict=True)
        )
        return (
            f"Run {each}: {best.seconds:.3g} s a step, {self.ns_per_day(best.seconds):.3g} ns/day, "
            f"{seconds / best.seconds:.1f}x faster than {words}. Expected: temperature {best.temperature - 1:+.2%}, "
            f"spread {best.spread - 1:+.2%} against the top level, a force error of "
            f"{self.force_error(self.plan, best.levels):.2g} eV/A averaged over a block, energy drift without friction "
            f"{max(best.drift, 0.0):.1g} of itself a ps."
        )

    def __str__(self) -> str:
        return self.text

    def as_json(self) -> dict[str, Any]:
        """Return what a report needs: words, names, prices, what is expected, g(r) of the run of the top level."""
        atoms = systems_of(self.levels).atoms[0]
        r, g = radial_distribution(atoms, self.history[len(self.history) // 4 :, 0], _REACH)
        return {
            "text": self.text,
            "names": list(self.names),
            "seconds": list(self.levels.costs),
            "temperature": self.best.temperature,
            "spread": self.best.spread,
            "r": r.round(4).tolist(),
            "g": g.round(4).tolist(),
        }


def _fs(time: float, longest: float) -> str:
    return f"{time:.0f} fs" if time < longest else f"above {longest:.0f} fs"
