r"""Plans of one block of steps, repeated without a seam for as long as a run lasts.

A block is a :class:`multilevel_sde.Plan` of L rows, and force n of a run is estimated by row n mod L. :func:`impulses`
evaluates the correction of level k at every P_k-th position with the weight P_k, which is r-RESPA for several levels,

    F(q_n) = f^b(q_n) + sum_{k : P_k divides n} P_k (f^k - f^{k-1})(q_n).

The map of a block is symplectic and the same backwards, so that nothing heats until P_k h comes near half the shortest
period of what the correction acts on, where impulses resonate. `multilevel_sde.hold` makes the plan that uses a
correction until the next one: its force comes late, by (P - 1) h / 2 in the mean, which acts as a negative friction of
that time times the correction's stiffness over the mass. It heats, and :func:`pilot` predicts by how much.

Draws at uneven times heat too: a force error of variance V at each step, independent of the last, adds
h V / (2 m gamma k_B) to the temperature. They are refused unless asked for.

References:
    Tuckerman, Berne and Martyna, J. Chem. Phys. 97, 1992 (r-RESPA); arXiv 2411.01762 (random forces heat).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

import multilevel_sde as mls
from multilevel_forces.force_ladder import ForceError, Forces
from multilevel_forces.systems import Systems
from multilevel_sde.arguments import as_integer, as_items

__all__ = ["Estimates", "check_block", "impulses"]


def impulses(periods: Sequence[int]) -> mls.Plan:
    """Return the block that evaluates level k at every periods[k]-th position, with that weight.

    Arguments:
        periods: One a level, cheapest first; the first is 1, and each is a multiple of the one before. All 1 is the top
            level alone.

    Raises:
        TypeError, ValueError: No such list of whole numbers.

    Example:
        >>> plan = impulses([1, 2, 4])
        >>> plan.evaluations, plan.weights[:, 2]
        (tensor([4, 2, 1]), tensor([4., 0., 0., 0.], dtype=torch.float64))
    """
    each = [as_integer("periods", period) for period in as_items("periods", periods, "whole numbers")]
    if not each or each[0] != 1 or min(each) < 1 or any(high % low for low, high in pairwise(each)):
        raise ValueError(
            f'"periods" must begin with 1 and each be a multiple of the one before, such as [1, 2, 8], got {each}'
        )
    weights = torch.zeros(each[-1], len(each), dtype=torch.float64)
    for level, period in enumerate(each):
        weights[::period, level] = period
    return mls.Plan(weights != 0, weights)


def check_block(plan: mls.Plan, levels: int, allow_heating: bool = False) -> mls.Plan:
    """Return a block that can be repeated for long.

    Arguments:
        plan: One block of rows, repeated.
        levels: Of the ladder.
        allow_heating: Let corrections be at uneven places.

    Raises:
        TypeError: It is no plan.
        ValueError: Another number of levels; draws per sample; a correction that is at uneven places, or does not count
            once in the mean, so that averages would be those of no level.

    Example:
        >>> p, chance = torch.tensor([1.0, 0.25]).expand(16, 2), torch.Generator().manual_seed(0)
        >>> check_block(mls.draw_plan(p, mls.independent, generator=chance), 2)
        Traceback (most recent call last):
        ...
        ValueError: "plan" evaluates level 2 at uneven places (3 to 7 steps apart), as a random draw does, and that ...
    """
    if not isinstance(plan, mls.Plan):
        raise TypeError(f'"plan" must be a multilevel_sde.Plan, such as impulses([1, 4]), got {type(plan).__name__}')
    if plan.levels != levels:
        raise ValueError(f'"plan" is for {plan.levels} levels, the ladder has {levels}; make one for this ladder')
    if plan.samples is not None:
        raise ValueError('"plan" has a draw for each sample, expected one block for all systems')
    if allow_heating:
        return plan
    hits, shares = plan.hits, plan.coefficients.sum(0)  # of each f^k in a block
    for _, level, _, value in () if plan.recall is None else plan.recall.entries:
        shares[level] += value
    counts = shares.flip(0).cumsum(0).flip(0) / plan.steps  # of each f^k - f^{k-1}, in the mean
    for level in range(1, levels):
        places = hits[:, level].nonzero()[:, 0].tolist()
        gaps = [b - a for a, b in pairwise([*places, *(place + plan.steps for place in places[:1])])]
        if gaps and max(gaps) - min(gaps) > 1:
            raise ValueError(
                f'"plan" evaluates level {level + 1} at uneven places ({min(gaps)} to {max(gaps)} steps apart), as a '
                "random draw does, and that heats the system; take impulses([...]) or a pilot's plan, or pass "
                "allow_heating=True"
            )
    off = [level for level in range(levels) if abs(float(counts[level]) - 1) > 1e-6]
    if off:
        raise ValueError(
            f'"plan" counts the correction of level {off[0] + 1} {float(counts[off[0]]):.4g} times in the mean, '
            "expected once, or averages are those of no level; take impulses([...]) or a pilot's plan"
        )
    return plan


class Estimates:
    """The estimates of a repeated block, one position after another, and the values that it remembers.

    Arguments:
        ladder: Of forces.
        plan: The block.
        systems: For the names in messages.
    """

    def __init__(self, ladder: mls.Ladder, plan: mls.Plan, systems: Systems):
        self.ladder, self.plan, self.systems = ladder, plan, systems
        self.kept: dict[tuple[int, int], Tensor] = {}  # (row, level) -> value
        # Energy and stress of the base level, and each known difference to the level below; NaN where not given.
        self.readings = np.zeros((plan.levels, len(systems), 7))
        self._rows = plan.coefficients.tolist()
        self._needed = [row.nonzero()[:, 0].tolist() for row in plan.needed]
        recall = plan.recall
        self._recalled = [[] if recall is None else recall.at(row) for row in range(plan.steps)]
        self._remembered = None if recall is None else recall.sources(plan.steps, plan.levels)
        self._base = min(min(row) for row in self._needed)

    def __call__(self, n: int, q: Tensor) -> Tensor:
        """Return the estimate of the forces at position n of the run, eV / Angstrom.

        Raises:
            ForceError: A force is NaN or infinite, or could not be had.
        """
        row = n % self.plan.steps
        values = {level: self._force(n, level, q) for level in self._needed[row]}
        total = torch.zeros_like(q)
        only = [level for level in values if self._rows[row][level] != 0]
        if len(only) == 1 and self._rows[row][only[0]] == 1.0 and not self._recalled[row]:
            total = values[only[0]]
        else:
            for level in only:
                total = torch.add(total, values[level], alpha=self._rows[row][level])
            for level, source, coefficient in self._recalled[row]:
                total = torch.add(total, self.kept[source, level], alpha=coefficient)
        if self._remembered is not None:
            if row == 0:
                self.kept.clear()
            self.kept.update({(row, level): f for level, f in values.items() if self._remembered[row, level]})
        self._note_readings(values)
        return total

    def _force(self, n: int, level: int, q: Tensor) -> Tensor:
        try:
            force = self.ladder.drifts[level](q, 0.0)
        except ForceError as error:
            raise ForceError(f"at step {n} {error}") from error.__cause__
        if not bool(force.isfinite().all()):
            system, atom = (~force.isfinite()).any(-1).nonzero()[0].tolist()
            drift = self.ladder.drifts[level]
            raise ForceError(
                f"the force of level {level + 1} ({getattr(drift, 'name', 'a function')}) was not finite at step {n}, "
                f"system {system + 1}, atom {self.systems.name(atom)}; look at the structure there, or take smaller "
                "steps or periods"
            )
        return force

    @property
    def energy(self) -> np.ndarray:
        """Of the base level, eV (systems,), and the last known difference of each level above to the one below."""
        return self.readings[..., 0].sum(0)

    @property
    def stress(self) -> np.ndarray:
        """The same for the stress, eV / Angstrom^3, (systems, 6) in ASE's order."""
        return self.readings[..., 1:].sum(0)

    def _note_readings(self, values: dict[int, Tensor]) -> None:
        levels = sorted(values)
        known = [self._reading(level) for level in levels]
        if levels[0] == self._base:
            self.readings[self._base] = known[0]
        for high, (below, here) in zip(levels[1:], pairwise(known), strict=True):
            self.readings[high] = here - below

    def _reading(self, level: int) -> np.ndarray:
        drift = self.ladder.drifts[level]
        if not isinstance(drift, Forces):
            return np.full((len(self.systems), 7), np.nan)
        return np.concatenate([drift.energy[:, None], drift.stress], 1)
