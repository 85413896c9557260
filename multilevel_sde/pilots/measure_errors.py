"""The other runs of a pilot: the target on the finest grid, single levels against it, and plans on samples kept out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from multilevel_sde.errors import NonFiniteError
from multilevel_sde.ladder import Ladder
from multilevel_sde.pilots.answers import Form, Single
from multilevel_sde.pilots.curves import allocate_levels, plan_of
from multilevel_sde.pilots.grids import refined
from multilevel_sde.pilots.measure_responses import Walk
from multilevel_sde.pilots.responses import SHRINKAGE, Responses
from multilevel_sde.pilots.tracking import total_weights, track
from multilevel_sde.pilots.trial import Trial, squared, typical
from multilevel_sde.plans.memory import multistep
from multilevel_sde.plans.plan import Plan

__all__ = [
    "Finals",
    "Run",
    "calibration_budgets",
    "grids_of_plans",
    "kept_out_runs",
    "single_runs",
    "single_steps",
    "target_runs",
]

_SHARES = (0.015, 0.04, 0.12, 0.3, 0.5)  # of what lies between a grid's cheapest plan and the top level at every step
_COARSE_SHARES = (0.04, 0.1, 0.35, 0.8)  # the same on coarser grids, whose plans soon run the top level everywhere
_FEWEST = 8  # steps of a coarser grid
_ALIKE = 0.5  # and its inverse: between them the top level's change is like that of a level, by regression
Run = tuple[int, Form, float, float, Tensor]  # steps, form, promised, first order, squared errors of all samples


class Finals:
    """Where single levels end, by level, number of steps and method; every run is made once.

    Arguments:
        trial: The problem.
        fine: The finest grid.
        grid: The candidates.
        others: Steps -> other grids for single levels.
    """

    def __init__(self, trial: Trial, fine: Tensor, grid: Tensor, others: Mapping[int, Tensor] | None = None):
        self.trial, self.fine, self.grid, self.others = trial, fine, grid, others or {}
        self.known: dict[tuple[int, int, bool, bool], Tensor] = {}

    def of(self, level: int, steps: int, *, one_step: bool = False, elsewhere: bool = False) -> Tensor:
        """The final states of a level with so many steps."""
        one_step = one_step and self.trial.coefficients is not None
        place = (level, steps, one_step, elsewhere)
        if place not in self.known:
            grid = self.others[steps] if elsewhere else refined(self.fine, self.grid, steps)
            self.known[place] = self.trial.run(grid, self.trial.alone(grid, level, one_step=one_step))
        return self.known[place]

    def target(self) -> Tensor:
        """Where the top level ends on the finest grid, as nearly as is cheap.

        The top level is run with twice the candidates. What more steps change is that of the next level, as far as
        those cost no more than the candidates of the top level, then that of the one below, and so on: with the same
        noise the changes of neighbouring levels differ by little. A level whose change between the candidates and twice
        as many is not that of the top level is passed over. What no level says is extrapolated from the top level's own
        last changes, by the order that they show.
        """
        finest, count = len(self.fine) - 1, len(self.grid) - 1
        twice, top = min(finest, 2 * count), len(self.trial.ladder) - 1
        end, reached = self.of(top, twice), twice
        if twice == finest:
            return end
        change = (end - self.of(top, count)).cpu().double()
        for level, steps in target_runs(self.trial.ladder, finest, count):
            own = (self.of(level, twice) - self.of(level, count)).cpu().double()
            share = float((change * own).sum() / own.square().sum().clamp_min(1e-300))
            if steps > reached and _ALIKE < share < 1 / _ALIKE:
                end = end + min(1.0, share) * (self.of(level, steps) - self.of(level, reached))
                reached = steps
        return end + (self._rest(reached, change) * change).to(end) if reached < finest else end

    def _rest(self, reached: int, change: Tensor) -> float:
        """What the finest grid changes beyond so many steps, over the change from the candidates to twice as many."""
        finest, count, top = len(self.fine) - 1, len(self.grid) - 1, len(self.trial.ladder) - 1
        if count < 2:
            return 0.0
        before = typical(squared(self.of(top, count), self.of(top, count // 2)))
        after = typical(change.square().reshape(len(change), -1).mean(1).cpu())
        order = 0.5 * math.log2(before / after) if before > 0 and after > 0 else 1.0
        order = min(4.0, max(0.5, order))
        whole = count**-order - min(finest, 2 * count) ** -order
        return (reached**-order - finest**-order) / whole


def target_runs(ladder: Ladder, finest: int, candidates: int) -> Iterator[tuple[int, int]]:
    """Yield the lower levels and with how many steps each may say what the finest grid changes."""
    for level in reversed(range(len(ladder) - 1)):
        yield level, finest if level == 0 else min(finest, int(candidates * ladder.costs[-1] / ladder.costs[level]))


def single_steps(ladder: Ladder, level: int, finest: int, candidates: int, multistep: bool) -> list[tuple[int, bool]]:
    """With how many steps a level is run alone, and whether one step at a time.

    The most are twice the candidates for the top level, and what those candidates cost for the others. Half as many
    follow, and so on; where there is a multistep method, every second time one step at a time too.
    """
    top = level == len(ladder) - 1
    most = min(finest, 2 * candidates if top else int(candidates * ladder.costs[-1] / ladder.costs[level]))
    halves = [most >> j for j in range(most.bit_length())]
    own = [candidates // j for j in (1, 2, 4) if top and candidates % j == 0]
    if not multistep:
        return [(steps, True) for steps in sorted({*halves, *own})]
    return sorted({(n, False) for n in (*halves, *own)} | {(n, True) for n in (1, *halves[1::2], *own)})


def single_runs(finals: Finals, target: Tensor) -> Iterator[tuple[Single, Tensor]]:
    """Run every level alone, by the pilot's method and one step at a time; yield squared errors of all samples.

    On the other grids too, with numbers of steps for which there is one. Numbers of steps with which a level diverges
    are left out, and so is the run from which the target was made.
    """
    ladder, finest, candidates = finals.trial.ladder, len(finals.fine) - 1, len(finals.grid) - 1
    for level in range(len(ladder)):
        for steps, one_step in single_steps(ladder, level, finest, candidates, finals.trial.coefficients is not None):
            for elsewhere in (False, True):
                if (
                    steps not in finals.others
                    if elsewhere
                    else level == len(ladder) - 1 and candidates < steps < finest
                ):
                    continue
                try:
                    errors = squared(finals.of(level, steps, one_step=one_step, elsewhere=elsewhere), target)
                except NonFiniteError:
                    continue  # too few steps for this level
                yield Single(level, steps, not one_step, 0.0, 1.0, elsewhere), errors


def grids_of_plans(steps: int, coarse: bool) -> list[int]:
    """The numbers of steps that plans may have."""
    strides = (1, 2, 4) if coarse else (1,)
    return [steps // j for j in strides if steps % j == 0 and (j == 1 or steps // j >= _FEWEST)]


def calibration_budgets(costs: Sequence[float], steps: int, *, coarse: bool) -> list[float]:
    """What the corrections of the plans may cost that are run on samples kept out, in the ladder's unit."""
    room = steps * (costs[-1] - costs[0])
    return [share * room for share in (_COARSE_SHARES if coarse else _SHARES) if share * room > costs[1]]


def kept_out_runs(trial: Trial, grid: Tensor, walk: Walk, grams: list[Tensor], target: Tensor) -> Iterator[Run]:
    """Run plans on samples that they were not made from, in every form and on every grid.

    Arguments:
        trial: The problem.
        grid: The candidates.
        walk: Along them.
        grams: Without each fold of the samples, of which the n-th is every n-th sample.
        target: Where the top level ends on the finest grid.
    """
    rows = len(walk.coefficients)
    plain = rows == len(grid) - 1  # one row a step
    for steps in grids_of_plans(rows, plain):
        coarse = grid[:: rows // steps] if plain else grid
        folds = [_Fold(trial, grid, walk, gram, steps) for gram in grams]
        for budget in calibration_budgets(trial.ladder.costs, steps, coarse=steps < rows):
            promised, predicted, errors = 0.0, 0.0, {}
            for place, fold in enumerate(folds):
                others = slice(place, None, len(folds))
                promise, first_order, forms = fold.within(budget, trial.base(coarse) if trial.coefficients else None)
                promised, predicted = promised + promise / len(folds), predicted + first_order / len(folds)
                for form, plan in forms.items():
                    errors.setdefault(form, []).append(_distance(trial, coarse, plan, others, target))
            for form, found in errors.items():
                if bool(torch.cat(found).isfinite().all()):
                    yield steps, form, promised, predicted, torch.cat(found)


def _distance(trial: Trial, grid: Tensor, plan: Plan, part: slice, target: Tensor) -> Tensor:
    """Squared distances of some samples by a plan to the target, infinite where they diverge."""
    try:
        return squared(trial.run(grid, plan, part), target[part])
    except NonFiniteError:
        return torch.full((len(target[part]),), torch.inf, dtype=torch.float64)


class _Fold:
    """Plans on one grid by the samples without one fold: one greedy allocation, cut where a budget ends."""

    def __init__(self, trial: Trial, grid: Tensor, walk: Walk, gram: Tensor, steps: int):
        costs, stride = trial.ladder.costs, len(walk.coefficients) // steps
        self.responses, self.raw = (
            Responses.measured(gram, walk.coefficients, walk.variances, stride, trial.base(grid), shrinkage=amount)
            for amount in (SHRINKAGE, 0.0)
        )
        parts = [self.responses.merged(k, k + 1) for k in range(len(costs) - 1)]
        most = max(calibration_budgets(costs, steps, coarse=stride > 1), default=0.0)
        self.allocation, self.steps, self.levels = allocate_levels(parts, list(costs), most), steps, len(costs)

    def within(self, budget: float, base: Tensor | None) -> tuple[float, float, dict[Form, Plan]]:
        """What a budget for corrections promises, its first-order error, and its plan in every form."""
        count = self.allocation.count_within(budget)
        plan = plan_of(self.allocation.weights(count), self.steps, self.levels)
        forms = {Form.TRACKED: track(plan, self.responses, base), Form.PLAIN: plan}
        if base is not None:
            forms[Form.BASE] = multistep(plan, base)
        first_order = self.raw.error(total_weights(forms[Form.TRACKED], self.raw))
        return self.allocation.errors[count], first_order, forms
