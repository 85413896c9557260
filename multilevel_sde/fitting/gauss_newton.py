r"""Fitting the coefficients of a plan to the path of the top level.

A pilot's plan is optimal to first order along the path of the top level. What is left comes from its own path, which
deviates, and from its steps. Both depend on the coefficients of the plan (how much of which remembered value each step
adds), and the final state is differentiable in them, so they can be fitted: minimise the distance to the target over
sample trajectories by damped Gauss-Newton steps (Levenberg-Marquardt),

    delta = (R R' + mu diag(R R'))^{-1} R (target - y),

where the rows of R are the responses of the final state to each coefficient, found by carrying a perturbed copy of the
path for each to the end on the base level, all in one batch. Which networks run at which step does not change, nor does
the cost. The coefficients that move are those of the multistep base, a(n, j) - a(n, 0), and at every hit of a
correction those of its last values.

A plan that was fitted knows the ladder, the grid and the process; it is reported by its error on samples that took no
part in the fit.

References:
    Levenberg 1944; Marquardt 1963; for fitted coefficients of samplers of one network: Zheng et al. 2023,
    DPM-Solver-v3 (arXiv 2310.13268); docs/theory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

from multilevel_sde.arguments import as_integer, as_items
from multilevel_sde.conditions import Conditions, as_conditions
from multilevel_sde.errors import NonFiniteError
from multilevel_sde.fitting.perturbed_runs import Direction, FitRun, Parts
from multilevel_sde.ladder import Ladder
from multilevel_sde.noise.brownian import Brownian, BrownianPath
from multilevel_sde.noise.diffusion import Diffusion
from multilevel_sde.pilots.answers import PilotPlan
from multilevel_sde.pilots.trial import typical
from multilevel_sde.plans.plan import Plan
from multilevel_sde.solver.evaluate import in_float32
from multilevel_sde.solver.noise_along import increments_along
from multilevel_sde.solver.seeds import check_noise
from multilevel_sde.steps.rules import Step, StepRule, euler_maruyama
from multilevel_sde.steps.sums import at_least_float32

__all__ = ["FittedPlan", "Run", "fit_plan", "fitted"]

_DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class FittedPlan:
    """A plan with fitted coefficients.

    Attributes:
        plan: Who is evaluated when, and all coefficients.
        times: Its grid.
        levels: The levels that it evaluates.
        errors: Typical squared error (each sample's cut at 10 times the median) on the fitted samples, before and after
            every iteration that was kept.
        held_out: The same on the samples that were kept out of the fit, before the first and after the last.
        mean: Mean squared error on the samples kept out, after the last.
        cost: What the fit cost in the ladder's unit.
    """

    plan: Plan
    times: Tensor
    levels: tuple[int, ...]
    errors: tuple[float, ...]
    held_out: tuple[float, float]
    mean: float
    cost: float


def fit_plan(
    ladder: Ladder,
    y0: Tensor,
    candidates: PilotPlan | Sequence[PilotPlan],
    target: Tensor,
    *,
    step: Step = euler_maruyama,
    diffusion: Diffusion | None = None,
    brownian: Brownian | BrownianPath | None = None,
    conditions: Conditions | None = None,
    order: int = 1,
    tried: int = 3,
    iterations: int = 5,
    progress: bool = False,
) -> FittedPlan:
    """Fit the coefficients of the best of some plans.

    All candidates are run, the best few fitted once, the best of those to the end. Of candidates with the same levels
    and grid, which a fit brings to about the same, only the best counts.

    Arguments:
        ladder: The drifts.
        y0: Initial states, at least 8 samples; every fourth is kept out of the fit.
        candidates: Plans with their grids, such as `pilot.plans(budget=...)`, or those of one level alone,
            :func:`single_plans`.
        target: The final states to be near, shaped like y0: usually those of the top level on a fine grid with the same
            noise.
        step, diffusion, brownian: As for :func:`solve`; a step that is affine in its estimate, no step rule.
        conditions: As for :func:`solve`, with one row for each sample of y0.
        order: How many of its last values the base may use at least, also where the candidates use fewer.
        tried: How many candidates are fitted once. Which is best before a fit need not be best after it.
        iterations: Gauss-Newton steps at most.
        progress: Show a progress bar.

    Returns:
        A :class:`FittedPlan` of the cost of the candidate it came from.

    Raises:
        TypeError: A step rule; candidates or a target of another kind; an order, iterations or number tried that is no
            integer; conditions that are no mapping of names to tensors.
        ValueError: Fewer than 8 samples, no candidates, or one for another number of levels, a target of another shape
            or not finite, an order, iterations or number tried below 1; conditions without one row a sample; a
            `brownian` that does not repeat itself.
        NonFiniteError: No candidate gives a finite state.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder = mls.Ladder([lambda y, t: -y, lambda y, t: -torch.sin(y)], costs=[1.0, 30.0])
        >>> y0, times = torch.linspace(0.2, 2.0, 16)[:, None], torch.linspace(0.0, 1.0, 201)
        >>> pilot = mls.pilot(ladder, y0, times, candidates=40)
        >>> exact = 2 * torch.atan(torch.tan(y0 / 2) / torch.e)
        >>> fitted = mls.fit_plan(ladder, y0, pilot.plans(budget=150.0), exact)
        >>> fitted.held_out[1] < 0.2 * fitted.held_out[0], fitted.plan.cost(ladder) <= 150
        (True, True)
    """
    plans = [candidates] if isinstance(candidates, PilotPlan) else _plans(candidates)
    for name, value in (("order", order), ("tried", tried), ("iterations", iterations)):
        if as_integer(name, value) < 1:
            raise ValueError(f'"{name}" must be at least 1, got {value}')
    _check(ladder, y0, plans, target, step)
    given = as_conditions(conditions, y0)
    ladder, y0, target = in_float32(ladder, y0.dtype), at_least_float32(y0), at_least_float32(target)
    held = torch.arange(len(y0)) % 4 == 3
    if diffusion is not None and brownian is not None:
        check_noise(lambda: increments_along(step, diffusion, brownian, plans[0].times[:2], y0))
    fits = []
    for candidate in plans:
        run = FitRun(ladder, y0, candidate.times, target, held, step, diffusion, brownian, given)
        fits.append((candidate, Parts.of(candidate.plan).padded(order), run))
    return fitted(fits, tried=tried, iterations=iterations, progress=progress)


class Run(Protocol):
    """The runs that a fit asks for; :class:`.perturbed_runs.FitRun` is one with drifts.

    Attributes:
        held: Which samples are kept out of the fit, bool (B,).
        cost: What was spent, in the ladder's unit over all samples.
    """

    held: Tensor
    cost: float

    def errors(self, parts: Parts) -> Tensor:
        """Mean squared distance of every sample to its target, (B,)."""
        ...

    def normal_equations(self, parts: Parts) -> tuple[list[Direction], Tensor, Tensor]:
        """The coefficients that can move, R R' and R (target - y) over the samples of the fit."""
        ...


def fitted(
    candidates: Sequence[tuple[PilotPlan, Parts, Run]],
    *,
    tried: int = 3,
    iterations: int = 5,
    progress: bool = False,
) -> FittedPlan:
    """Fit plans whose runs are given: the best few, each of other levels or another grid, once, the best to the end.

    Raises:
        NonFiniteError: No candidate gives a finite state.
    """
    fits = [_Fit(candidate, run, parts) for candidate, parts, run in candidates]
    with tqdm(total=iterations + min(tried, len(fits)), desc="fitting", unit="step", disable=not progress) as bar:
        kinds: dict[tuple[object, ...], _Fit] = {}
        for fit in sorted(_finite(fits), key=lambda fit: fit.errors[-1]):
            kinds.setdefault((fit.candidate.levels, *fit.candidate.times.tolist()), fit)
        semifinalists = list(kinds.values())[:tried]
        for fit in semifinalists:
            fit.improve()
            bar.update()
        best = min(semifinalists, key=lambda fit: typical(fit.last))  # those kept out count too
        for _ in range(iterations - 1):
            if not best.improve():
                break
            bar.update()
    runs = {id(fit.run): fit.run.cost for fit in fits}
    return replace(best.result(), cost=sum(runs.values()))


class _Fit:
    """One candidate: its present coefficients and errors."""

    def __init__(self, candidate: PilotPlan, run: Run, parts: Parts):
        self.candidate, self.run, self.parts = candidate, run, parts
        squared = run.errors(parts)
        self.errors = [typical(squared[~run.held])]
        self.first, self.last = squared, squared
        self.improving = True

    def improve(self) -> bool:
        """Take the Gauss-Newton step with the damping that helps most; return False where none does by 1%."""
        self.improving = self.improving and self._step()  # once none helps, none will
        return self.improving

    def _step(self) -> bool:
        directions, gram, right = self.run.normal_equations(self.parts)
        if not directions:
            return False
        best, found = self.parts, None
        for damping in _DAMPINGS:
            matrix = gram + damping * torch.diag(gram.diagonal().clamp_min(1e-300))
            changed = self.parts.moved(directions, torch.linalg.solve(matrix, right))
            squared = self.run.errors(changed)
            if bool(squared.isfinite().all()) and (
                found is None or typical(squared[~self.run.held]) < typical(found[~self.run.held])
            ):
                best, found = changed, squared
        if found is None or typical(found[~self.run.held]) >= 0.99 * self.errors[-1]:
            return False
        if typical(found[self.run.held]) > typical(self.last[self.run.held]):
            return False  # from here on it learns its own samples
        self.parts, self.last = best, found
        self.errors.append(typical(found[~self.run.held]))
        return True

    def result(self) -> FittedPlan:
        """Return the plan with what is known of its error."""
        held, parts, plan = self.run.held, self.parts, self.candidate.plan
        return FittedPlan(
            plan=parts.plan(plan.levels, truncated=plan.truncated),
            times=self.candidate.times,
            levels=self.candidate.levels,
            errors=tuple(self.errors),
            held_out=(typical(self.first[held]), typical(self.last[held])),
            mean=float(self.last[held].mean()),
            cost=self.run.cost,
        )


def _finite(fits: list[_Fit]) -> list[_Fit]:
    finite = [fit for fit in fits if bool(fit.first.isfinite().all())]
    if not finite:
        lost, grid = (~fits[0].first.isfinite()).nonzero()[:, 0].tolist(), fits[0].candidate.times
        raise NonFiniteError(len(grid) - 2, float(grid[-2]), None, lost)
    return finite


def _plans(candidates: Sequence[PilotPlan]) -> list[PilotPlan]:
    what = "plans of a pilot, such as pilot.plans(budget=...)"
    plans = as_items("candidates", candidates, what)
    for plan in plans:
        if not isinstance(plan, PilotPlan):
            raise TypeError(f'"candidates" must be {what}, got {type(plan).__name__}')
    return plans


def _check(ladder: Ladder, y0: Tensor, plans: list[PilotPlan], target: Tensor, step: Step) -> None:
    if isinstance(step, StepRule):
        raise TypeError(
            f'"step" must be a function step(y, estimate, t, s, noise) for a fit, got the rule {type(step).__name__}; '
            "use the pilot's plan as it is"
        )
    if not isinstance(y0, Tensor):
        raise TypeError(f'"y0" must be a Tensor of initial states, got {type(y0).__name__}')
    if y0.dim() == 0 or len(y0) < 8:
        raise ValueError(f'"y0" must hold at least 8 samples (better 32), got shape {tuple(y0.shape)}')
    if not plans:
        raise ValueError('"candidates" must hold at least one plan, such as pilot.plans(budget=...)')
    for best in plans:
        if best.plan.levels != len(ladder):
            raise ValueError(
                f'"candidates" has a plan for {best.plan.levels} levels, the ladder has {len(ladder)}; take the plans '
                "of a pilot of this ladder"
            )
    if not isinstance(target, Tensor):
        raise TypeError(f'"target" must be a Tensor shaped like "y0", got {type(target).__name__}')
    if target.shape != y0.shape:
        raise ValueError(f'"target" must have the shape of "y0", {tuple(y0.shape)}, got {tuple(target.shape)}')
    if not bool(target.isfinite().all()):
        raise ValueError('"target" must be finite, got NaN or infinity')
