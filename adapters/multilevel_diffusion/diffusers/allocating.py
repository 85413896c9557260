"""What a user chooses of a ladder in a pipeline, and what is counted: budgets, probabilities, plans, prices, calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import multilevel_sde as mls
from multilevel_diffusion.diffusers.answering import INVERSE_COST, Answering
from multilevel_diffusion.diffusers.checks import uncompiled
from multilevel_diffusion.diffusers.costs import count_costs
from multilevel_diffusion.loops.black_box import plans_at
from multilevel_diffusion.loops.rows import step_probabilities
from multilevel_diffusion.loops.trajectory import Meter, Stats

__all__ = ["Allocating", "Priced"]


class Priced(Exception):  # noqa: N818
    """Ends a pipeline's run that is only for the prices of its levels."""


class Allocating(Answering):
    """Which level is evaluated when, in a pipeline, and what it costs."""

    _pricing = False

    def _begin_with(
        self,
        models: Sequence[nn.Module],
        costs: Sequence[float] | mls.GivenCost | None,
        draw: mls.Draw | None,
        seed: int,
    ) -> None:
        """Take the levels; costs that are not given are counted, at the first call where not before."""
        self._counted = costs is not None
        counted = isinstance(costs, mls.GivenCost) and costs.unit in ("FLOPs", "parameters", "seconds")
        self._given = self._counted and not counted  # by the user, in a unit of theirs
        if costs is None:
            costs, self._counted = count_costs([uncompiled(model) for model in models])
        elif not isinstance(costs, mls.GivenCost):
            costs = mls.GivenCost(list(costs))
        self._set_up(models, costs, draw, seed)

    def _price(self, call: Mapping[str, Any]) -> None:
        if self._counted:
            return
        self._counted = True
        costs, _ = count_costs([uncompiled(level) for level in self.levels], call)
        self._ladder = mls.Ladder(list(self.levels), costs)
        self._settings, self._meter = replace(self._settings, costs=costs), Meter(costs.costs)
        if self._settings.budget is not None:
            self.allocate(budget_fraction=self._settings.budget, schedule=self._schedule)
        if self._pricing:
            raise Priced

    def allocate(
        self,
        *,
        budget_fraction: float | None = None,
        probabilities: Tensor | Sequence[float] | None = None,
        plan: mls.Plan | None = None,
        schedule: mls.Schedule | None = None,
    ) -> None:
        """Choose anew which level is evaluated when; the arguments are those of the class.

        After `calibrate`, `budget_fraction` without `schedule` means the pilot's plan.
        """
        given = [value is not None for value in (budget_fraction, probabilities, plan)]
        if sum(given) != 1:
            raise ValueError(
                'give exactly one of "budget_fraction", "probabilities" and "plan", got '
                f"budget_fraction={budget_fraction}, probabilities={probabilities}, plan={plan}"
            )
        table, held, asked, self._schedule = None, None, budget_fraction, schedule
        if budget_fraction is not None:
            draw = self._settings.draw or mls.systematic
            if not self._counted:  # until the first call prices the levels
                budget_fraction = max(budget_fraction, self._ladder.costs[0] / self._ladder.costs[-1])
            table = step_probabilities(self._ladder, budget_fraction, schedule or INVERSE_COST, draw)
            if schedule is None and self._settings.draw is None and budget_fraction < 1:
                held = budget_fraction
            pilot = self._settings.pilot
            if pilot is not None and schedule is None and (budget_fraction < 1 or len(self._ladder) == 1):
                table, held, plan = None, None, plans_at(pilot, self._ladder, budget_fraction)[0].plan
        elif probabilities is not None:
            table = torch.as_tensor(probabilities, dtype=torch.float64)
            if table.shape[-1:] != (len(self._ladder),):
                raise ValueError(
                    f'"probabilities" has shape {tuple(table.shape)}, expected {(len(self._ladder),)} or one such row '
                    f"for each call: one number for each of the {len(self._ladder)} levels"
                )
        elif plan is not None:
            plan.check_ladder(self._ladder)
        chosen = {"probabilities": table, "plan": plan, "held": held, "budget": asked, "fitted": None}
        self._follow(replace(self._settings, **chosen))

    @property
    def probabilities(self) -> Tensor | None:
        """p_k, shape (K,), or p_k(n), shape (N, K); None where a plan was given."""
        table = self._settings.probabilities
        return None if table is None else table.clone()

    @property
    def plan(self) -> mls.Plan | None:
        """The plan, None where probabilities were given."""
        return self._settings.plan

    @property
    def costs(self) -> mls.GivenCost:
        """Cost of one call of each level, and its unit."""
        return self._settings.costs

    @property
    def seed(self) -> int:
        """Seed of the draw; every trajectory has the same draw until it is changed."""
        return self._settings.seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self._follow(replace(self._settings, seed=int(seed)))

    @property
    def stats(self) -> Stats:
        """Evaluations of each level and their cost relative to the top model, in the last trajectory and in total."""
        return self._meter.stats

    def reset_stats(self) -> None:
        """Begin counting anew."""
        self._meter.reset()

    def _fraction(self) -> float:
        """Expected cost of a call relative to the top model's."""
        plan, table = self._settings.plan, self._settings.probabilities
        if plan is not None:
            cost = plan.cost(self._ladder) / plan.steps
        else:
            assert table is not None
            rows = table.reshape(-1, len(self._ladder))
            cost = mls.expected_cost(self._ladder, rows, self._settings.draw or mls.systematic) / len(rows)
        return min(1.0, max(cost, self._ladder.costs[0]) / self._ladder.costs[-1])
