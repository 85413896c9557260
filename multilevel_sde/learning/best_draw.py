r"""Picking a realisation: of several plans with the same probabilities, the one that happens to be good.

The error of a plan that is shared by a batch depends on the plan far more than on the noise, so plans can be ranked on
a small batch and the ranking carries over to new noise. The score of the best on the batch that chose it is too low,
as the smallest of several noisy numbers is; so its error is measured on noise that had no part in the choice, and the
difference (the optimism of the selection) is part of the result.

References:
    Jacot 2026, section 4 (best of 15); Cawley and Talbot, "On over-fitting in model selection", JMLR 11, 2010.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from multilevel_sde.conditions import Conditions, as_conditions, some_rows
from multilevel_sde.errors import NonFiniteError
from multilevel_sde.ladder import Ladder
from multilevel_sde.noise.brownian import Brownian, BrownianPath
from multilevel_sde.noise.diffusion import Diffusion
from multilevel_sde.plans.drawing import draw_plan, em_plan
from multilevel_sde.plans.draws import Draw, systematic
from multilevel_sde.plans.plan import Plan
from multilevel_sde.solver.integrate import solve
from multilevel_sde.solver.seeds import check_noise_source, check_states
from multilevel_sde.steps.rules import Step, euler_maruyama
from multilevel_sde.times import as_times, device_dtype

__all__ = ["BestPlan", "best_plan"]


@dataclass(frozen=True)
class BestPlan:
    """The chosen plan, and what choosing it did.

    Errors are mean squared distances per element to the path of f^K with the same noise, or to the targets given.

    Attributes:
        plan: The plan with the smallest error on the calibration batch.
        index: Which candidate it was.
        calibration_errors: Error of every candidate on the calibration batch, infinite where a path was not finite.
        costs: Cost of every candidate, in the ladder's unit.
        error: Error of the chosen plan on the held-out batch: the figure to report.
        standard_error: Of `error`, from the spread of the held-out samples; the plan is fixed.
        held_out_errors: Error of every candidate on the held-out batch, or empty where only the chosen one was run.

    Example:
        >>> import multilevel_sde as mls
        >>> plan = mls.Plan([[True]], [[1.0]])
        >>> best = BestPlan(plan, 0, (0.01, 0.03), (9.0, 9.0), 0.012, 0.001, (0.012, 0.028))
        >>> print(best)
        candidate 0 of 2: MSE 0.012 ± 0.001 on held-out noise, 0.01 on the noise that chose it (optimism 0.002); cost 9
        candidates on held-out noise: mean 0.02, best 0.012, the chosen one is number 1
    """

    plan: Plan
    index: int
    calibration_errors: tuple[float, ...]
    costs: tuple[float, ...]
    error: float
    standard_error: float
    held_out_errors: tuple[float, ...] = ()

    @property
    def optimism(self) -> float:
        """How much lower the chosen plan's calibration error is than its held-out error."""
        return self.error - self.calibration_errors[self.index]

    @property
    def cost(self) -> float:
        """Cost of one trajectory with the chosen plan, in the ladder's unit."""
        return self.costs[self.index]

    def __str__(self) -> str:
        text = (
            f"candidate {self.index} of {len(self.calibration_errors)}: MSE {self.error:.4g} ± "
            f"{self.standard_error:.2g} on held-out noise, {self.calibration_errors[self.index]:.4g} on the noise that "
            f"chose it (optimism {self.optimism:.2g}); cost {self.cost:.6g}"
        )
        if self.held_out_errors:
            rank = 1 + sum(error < self.held_out_errors[self.index] for error in self.held_out_errors)
            mean = sum(self.held_out_errors) / len(self.held_out_errors)
            text += (
                f"\ncandidates on held-out noise: mean {mean:.4g}, best {min(self.held_out_errors):.4g}, the chosen "
                f"one is number {rank}"
            )
        return text


def best_plan(
    ladder: Ladder,
    probabilities: Tensor,
    y0_source: Callable[[Sequence[int]], Tensor],
    times: Tensor | Sequence[float],
    *,
    calibration: Sequence[int],
    held_out: Sequence[int],
    generator: torch.Generator,
    step: Step = euler_maruyama,
    diffusion: Diffusion | None = None,
    brownian_source: Callable[[Sequence[int]], Brownian | BrownianPath] | None = None,
    conditions: Conditions | Callable[[Sequence[int]], Conditions] | None = None,
    candidates: int = 15,
    draw: Draw = systematic,
    target_source: Callable[[Sequence[int]], Tensor] | None = None,
    run_all: bool = False,
    progress: bool = False,
) -> BestPlan:
    """Draw plans, score them on a calibration batch, keep the best, and measure it on held-out noise.

    Arguments:
        ladder: K levels.
        probabilities: p_k(n), (N, K).
        y0_source: y0_source(seeds) -> initial states, one per seed.
        times: N + 1 times.
        calibration: Seeds of the batch that chooses.
        held_out: Seeds of the batch that the error is reported on, none of them in `calibration`.
        generator: Source of the draws.
        step: As for `solve`.
        diffusion: As for `solve`.
        brownian_source: brownian_source(seeds) -> noise as for `solve`; needed unless `diffusion` is None.
        conditions: As for `solve`: conditions(seeds) -> a mapping of names to tensors with one row a seed; or such a
            mapping with the rows of `calibration` and then those of `held_out`.
        candidates: Number of plans (the paper: 15).
        draw: How plans are drawn.
        target_source: target_source(seeds) -> final states to be near; by default the path of f^K on these times. Give
            one to use the same targets again, or those of a finer grid.
        run_all: Run every candidate on the held-out batch too, which shows what choosing gained.
        progress: Show a progress bar.

    Returns:
        A :class:`BestPlan`. Where candidates tie the first one wins.

    Raises:
        ValueError: No candidates, no seeds, a seed in both batches, states or noise that do not follow from their
            seeds, or arguments that do not fit `solve`.
        NonFiniteError: The path of f^K, or every candidate, became NaN or infinite.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder = mls.Ladder([lambda x, t: -x, lambda x, t: -torch.sin(x)], costs=[1.0, 8.0])
        >>> times = torch.linspace(0.0, 1.0, 21, dtype=torch.float64)
        >>> p = mls.InverseCostSchedule().probabilities(ladder, times, budget=50.0)
        >>> best = mls.best_plan(ladder, p, lambda seeds: mls.seeded_normal(seeds, (4,)), times, candidates=4,
        ...     calibration=range(8), held_out=range(8, 40), generator=torch.Generator().manual_seed(0))
        >>> len(best.calibration_errors), best.plan.steps
        (4, 20)
    """
    if candidates < 1:
        raise ValueError(f'"candidates" must be at least 1, got {candidates}')
    shared = set(calibration) & set(held_out)
    if not len(calibration) or not len(held_out) or shared:
        what = f"share seed {min(shared)}" if shared else "must not be empty"
        raise ValueError(f'"calibration" and "held_out" {what}; give two ranges of seeds that do not overlap')
    if (diffusion is None) != (brownian_source is None):
        raise ValueError(
            'give both or neither of "diffusion" and "brownian_source"; a step that scales the noise itself takes '
            "diffusion=1.0"
        )
    plans = [draw_plan(probabilities, draw, generator=generator) for _ in range(candidates)]
    source = _conditions_source(conditions, calibration, held_out)
    batches = _Batches(ladder, as_times(times), y0_source, step, diffusion, brownian_source, target_source, source)
    runs = (2 if target_source is None else 0) + candidates + (candidates if run_all else 1)
    with tqdm(total=runs, desc="choosing a plan", unit="run", disable=not progress) as bar:
        score = batches.scorer(calibration, bar)
        errors = [_mean_or_infinity(score, plan) for plan in plans]
        index = min(range(candidates), key=errors.__getitem__)
        score = batches.scorer(held_out, bar)
        if math.isinf(errors[index]):
            score(plans[index])  # raises what went wrong
        chosen = score(plans[index])
        others = [_mean_or_infinity(score, plan) for i, plan in enumerate(plans) if run_all and i != index]
    error = float(chosen.mean())
    if run_all:
        others.insert(index, error)
    spread = float(chosen.std(correction=1)) / math.sqrt(len(chosen)) if len(chosen) > 1 else math.nan
    costs = tuple(plan.cost(ladder) for plan in plans)
    return BestPlan(plans[index], index, tuple(errors), costs, error, spread, tuple(others))


def _mean_or_infinity(score: Callable[[Plan], Tensor], plan: Plan) -> float:
    try:
        return float(score(plan).mean())
    except NonFiniteError:
        return math.inf


@dataclass(frozen=True)
class _Batches:
    """Runs plans against the path of f^K on batches of seeds."""

    ladder: Ladder
    grid: Tensor
    y0_source: Callable[[Sequence[int]], Tensor]
    step: Step
    diffusion: Diffusion | None
    brownian_source: Callable[[Sequence[int]], Brownian | BrownianPath] | None
    target_source: Callable[[Sequence[int]], Tensor] | None
    conditions_source: Callable[[Sequence[int]], Conditions | None]

    def scorer(self, seeds: Sequence[int], bar: tqdm) -> Callable[[Plan], Tensor]:
        """Return score(plan) -> mean squared distance of every sample of a batch, float64 (B,)."""
        y0 = self.y0_source(seeds)
        check_states("y0_source", self.y0_source, seeds, y0)
        brownian = None if self.brownian_source is None else self.brownian_source(seeds)
        if self.brownian_source is not None and self.diffusion is not None:
            check_noise_source(self.brownian_source, self.step, self.diffusion, self.grid[:2], seeds, y0)
        conditions = self.conditions_source(seeds)

        def run(plan: Plan) -> Tensor:
            y = solve(
                self.ladder,
                y0,
                self.grid,
                plan,
                step=self.step,
                diffusion=self.diffusion,
                brownian=brownian,
                conditions=conditions,
                gradients=False,
            ).y
            bar.update()
            return y

        if self.target_source is None:
            target = run(em_plan(self.ladder, self.grid))
        else:
            target = self.target_source(seeds).detach()
            if target.shape != y0.shape:
                raise ValueError(
                    f'"target_source" must return states of shape {tuple(y0.shape)}, got {tuple(target.shape)}'
                )
        wide = device_dtype(torch.float64, y0.device)
        return lambda plan: (run(plan) - target).to(wide).unsqueeze(-1).flatten(1).square().mean(1)


def _conditions_source(
    conditions: Conditions | Callable[[Sequence[int]], Conditions] | None,
    calibration: Sequence[int],
    held_out: Sequence[int],
) -> Callable[[Sequence[int]], Conditions | None]:
    if conditions is None or callable(conditions):
        return (lambda seeds: None) if conditions is None else conditions
    first = len(calibration)
    whole = as_conditions(conditions, torch.empty(first + len(held_out)))
    return lambda seeds: some_rows(whole, slice(first) if seeds is calibration else slice(first, None))
