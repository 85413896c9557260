r"""Random plans that look like a given one: hits where it has them, shifted by a phase, and unbiased over the phase.

The plan of a pilot is deterministic, so its error does not average out over plans. Here its weights become a density
of hits: a hit of weight w stands for w steps, so that about 1 / w hits belong on each step near it,

    p_k(n) = min(1, kappa_k / w_k(n)),

with w_k(n) interpolated geometrically between the plan's hits, constant outside them, and kappa_k such that the
expected number of hits is the plan's own. A plan that remembers spreads a hit's weight over later steps; their sum
counts. For a phase u the plan hits level k at step n where the running sum
u + p_k(1) + ... + p_k(n) passes an integer, with weight 1 / p_k(n). As u is uniform,

    E_u[w_k(n; u)] = 1    at every step of every level,

exactly, and the number of hits of a level is that of the plan whatever the phase (plus or minus one where the sum does
not come out even). One phase serves all levels, so that levels the plan skips stay skipped.

References:
    Madow, "On the theory of systematic sampling", Ann. Math. Stat. 20, 1949 (random phase).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from multilevel_sde.ladder import Ladder
from multilevel_sde.pilots.answers import PilotPlan
from multilevel_sde.plans.drawing import check_probabilities
from multilevel_sde.plans.plan import Plan

__all__ = ["PhasePlans", "phase_plans"]


@dataclass(frozen=True)
class PhasePlans:
    """A family of plans, one for each phase in [0, 1), whose mean weight over the phase is 1 everywhere.

    Arguments:
        probabilities: p_k(n), (N, K), entries in (0, 1], the lowest level 1.

    Raises:
        ValueError: See :func:`multilevel_sde.plans.drawing.check_probabilities`.

    Example:
        >>> plans = PhasePlans(torch.tensor([[1.0, 0.5]]).expand(4, 2))
        >>> plans.at(0.25).weights[:, 1], plans.at(0.75).weights[:, 1]
        (tensor([0., 2., 0., 2.], dtype=torch.float64), tensor([2., 0., 2., 0.], dtype=torch.float64))
    """

    probabilities: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "probabilities", check_probabilities(self.probabilities).clone())

    def at(self, phase: float) -> Plan:
        """Return the plan of a phase.

        Raises:
            ValueError: The phase is not in [0, 1).
        """
        if not 0.0 <= phase < 1.0:
            raise ValueError(f'"phase" must lie in [0, 1), got {phase}; draw it uniformly')
        passed = torch.cat([torch.zeros(1, self.probabilities.shape[1]).double(), self.probabilities.cumsum(0)])
        passed = (passed + phase).floor()
        hits = (passed[1:] > passed[:-1]) | (self.probabilities == 1)  # rounding must not lose a sure hit
        return Plan(hits, torch.where(hits, 1 / self.probabilities, 0.0))

    def draw(self, generator: torch.Generator) -> Plan:
        """Return the plan of a uniform phase."""
        return self.at(float(torch.rand((), generator=generator, dtype=torch.float64)))

    def pieces(self) -> tuple[list[float], list[float]]:
        """Phases that between them give every plan of the family, and the probability of each: for exact means.

        Example:
            >>> PhasePlans(torch.tensor([[1.0, 0.5]]).expand(4, 2)).pieces()
            ([0.25, 0.75], [0.5, 0.5])
        """
        ends = (-self.probabilities.cumsum(0)).reshape(-1) % 1.0
        ends = torch.cat([ends, torch.tensor([0.0, 1.0], dtype=torch.float64)]).unique()
        lengths = ends.diff()
        wide = lengths > 1e-12  # narrower ones are rounding
        return ((ends[:-1] + ends[1:]) / 2)[wide].tolist(), lengths[wide].tolist()

    def cost(self, ladder: Ladder) -> float:
        """Expected cost of a trajectory over the phase, exact, in the ladder's unit."""
        return sum(length * self.at(phase).cost(ladder) for phase, length in zip(*self.pieces(), strict=True))


def phase_plans(plan: Plan | PilotPlan) -> PhasePlans:
    """Return the family of random-phase plans with the hit density of a deterministic plan.

    For those who need the estimate unbiased over plans: a mean over phases has no bias to first order, where copies of
    one plan share its error. A single plan of the family errs more than the plan itself (docs/learning has figures).
    A level that the plan never hits gets one hit in expectation, without which nothing is unbiased.

    Arguments:
        plan: Shared by the batch, with its lowest level at every step; for example `pilot.plan(...)`. Its memory is not
            taken over: the plans of the family add each correction at its hit, and their base is the step's own.

    Raises:
        ValueError: A plan with a draw per sample, or with a lowest level that does not run at every step.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> weights = torch.tensor([[1.0, 0.0], [1.0, 2.0], [1.0, 0.0], [1.0, 2.0]])
        >>> plans = mls.phase_plans(mls.Plan(weights > 0, weights))
        >>> plans.probabilities[:, 1]
        tensor([0.5000, 0.5000, 0.5000, 0.5000], dtype=torch.float64)
    """
    given = plan.plan if isinstance(plan, PilotPlan) else plan
    remembers = given.recall is not None
    base = int(given.needed.reshape(-1, given.levels).any(0).nonzero()[0, 0]) if remembers else 0
    sure = given.hits[..., : base + 1] if remembers else given.weights[..., 0] == 1
    if given.samples is not None or not bool(sure.all()):
        raise ValueError(
            '"plan" must be shared by the batch and run its lowest level at every step with weight 1, as the plans of '
            "a pilot do"
        )
    totals, hits = given.weights, given.hits
    for _, level, source, value in given.recall.entries if given.recall is not None else ():
        totals[source, : level + 1] += value
    columns = [torch.ones(given.steps, dtype=torch.float64)] * (base + 1)
    columns += [_density(totals[:, k], hits[:, k].nonzero()[:, 0]) for k in range(base + 1, given.levels)]
    return PhasePlans(torch.stack(columns, dim=1))


def _density(weights: Tensor, hits: Tensor) -> Tensor:
    """p(n) of one level, (N,)."""
    steps = len(weights)
    if len(hits) == 0:
        return torch.full_like(weights, 1 / steps)
    logs = weights[hits].abs().clamp_min(1.0).log()
    places = torch.arange(steps)
    after = torch.searchsorted(hits, places).clamp(1, max(1, len(hits) - 1)).clamp_max(len(hits) - 1)
    before = (after - 1).clamp_min(0)
    part = ((places - hits[before]) / (hits[after] - hits[before]).clamp_min(1)).clamp(0.0, 1.0)
    shape = (-logs[before] - part * (logs[after] - logs[before])).exp()
    low, high = 0.0, steps * float(shape.max() / shape.min())
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if float((middle * shape).clamp_max(1.0).sum()) < len(hits) else (low, middle)
    return (high * shape).clamp_max(1.0)
