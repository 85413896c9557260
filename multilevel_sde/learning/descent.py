r"""Learning when to run which level: stochastic gradient descent on the probabilities.

The probabilities p_k(t) = sigmoid(alpha_k log(t + delta) + beta_k) minimise

    E||y - x||^2 / d + lambda E[cost],

with y the multilevel path under independent draws, one per sample, and x the path of f^K with the same start and noise.
The first term's gradient is that of :mod:`multilevel_sde.learning.gradients`, the second is exact. Descent takes place
in centred and scaled log(t + delta), which is the same family of schedules and better conditioned.

lambda is the price of accuracy. Near a good schedule the error falls like 1 / p and the cost of the corrections rises
like p, so lambda = (error at the start) / (cost of the corrections at the start) keeps the cost about where it is; it
need not be hit, as a learned schedule is afterwards shifted to any budget.

References:
    Jacot 2026, section 3.1; Kingma and Ba, "Adam", 2015.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from multilevel_sde.conditions import Conditions
from multilevel_sde.ladder import Ladder
from multilevel_sde.learning.descent_problem import ConditionsSource, Problem
from multilevel_sde.learning.descent_state import DivergedError, Run
from multilevel_sde.learning.gradients import Derivative
from multilevel_sde.learning.learned_schedule import LearnedSchedule
from multilevel_sde.noise.brownian import Brownian, BrownianPath
from multilevel_sde.noise.diffusion import Diffusion
from multilevel_sde.plans.drawing import check_probabilities
from multilevel_sde.plans.draws import independent
from multilevel_sde.plans.schedules import InverseCostSchedule
from multilevel_sde.steps.rules import Step, euler_maruyama
from multilevel_sde.times import as_times

__all__ = ["adam", "learn"]

_CHECKPOINT, _RESULT, _PLOT = "learning.safetensors", "schedule.json", "learning.png"


def adam(parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    """Return Adam with learning rate 0.1, the default optimiser: logits move by up to about 0.1 at each step.

    Example:
        >>> adam([torch.zeros(2, requires_grad=True)]).defaults["lr"]
        0.1
    """
    return torch.optim.Adam(parameters, lr=0.1)


def learn(
    ladder: Ladder,
    y0_source: Callable[[Sequence[int]], Tensor],
    times: Tensor | Sequence[float],
    *,
    delta: float,
    regularisation: float,
    generator: torch.Generator,
    step: Step = euler_maruyama,
    diffusion: Diffusion | None = None,
    brownian_source: Callable[[Sequence[int]], Brownian | BrownianPath] | None = None,
    start: Tensor | LearnedSchedule | None = None,
    budget: float | None = None,
    steps: int = 50,
    batch: int = 300,
    first_seed: int = 0,
    conditions: Conditions | ConditionsSource | None = None,
    optimiser: Callable[[Sequence[Tensor]], torch.optim.Optimizer] = adam,
    derivative: Derivative | None = None,
    folder: str | Path | None = None,
    progress: bool = False,
) -> LearnedSchedule:
    """Learn p_k(t) = sigmoid(alpha_k log(t + delta) + beta_k) for a ladder, a grid and a step.

    Step i of learning runs the seeds first_seed + i batch ... first_seed + (i + 1) batch - 1 (about three times the
    cost of as many paths on the top level), so measure the result with others.

    Arguments:
        ladder: K >= 2 levels.
        y0_source: y0_source(seeds) -> initial states, one per seed.
        times: N + 1 times, as for `solve`.
        delta: Keeps log(t + delta) finite at the start of every step (the paper gives no value). A few times the
            smallest t is a choice; where times reach 0 at the end only, 0 is allowed.
        regularisation: lambda >= 0, mean squared error per unit of cost (see the module's rule of thumb). The paper's
            is d times as large, as its error is not a mean over elements.
        generator: Source of hits and directions.
        step: As for `solve`, differentiable.
        diffusion: As for `solve`.
        brownian_source: brownian_source(seeds) -> noise as for `solve`; needed unless `diffusion` is None.
        start: Where to start: a schedule with the same delta, or a table of probabilities (N, K), whose closest member
            of the family is taken (:meth:`LearnedSchedule.fit`). For a pilot on these times:
            `pilot.schedule(budget=..., draw=independent)`; on others: that table fitted to the pilot's times.
        budget: Instead of a start: p_k = min(1, C / T_k) at this expected cost.
        steps: Steps of descent.
        batch: Samples per step, at least 2.
        first_seed: The first seed used.
        conditions: As for `solve`: conditions(seeds) -> a mapping of names to tensors with one row a seed; or such a
            mapping with `batch` rows, the same for every batch.
        optimiser: Makes a torch optimiser of the parameters.
        derivative: `forward_mode` (exact), or `central_difference` for drifts without a forward derivative, such as
            those that differentiate inside; by default the first where all drifts have it.
        folder: Where to keep a checkpoint after every step (a killed run resumes and gives the same result), and
            at the end the schedule as JSON and, where matplotlib is installed, a plot of the loss.
        progress: Show a progress bar.

    Returns:
        A :class:`LearnedSchedule`.

    Raises:
        TypeError: An argument is not callable, or `generator` no generator.
        ValueError: An argument out of range; states or noise that do not follow from their seeds; two levels that are
            equal; a folder that holds another run.
        DivergedError: The loss or the parameters became NaN or infinite; it carries the last good schedule.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder = mls.Ladder([lambda x, t: -x, lambda x, t: -torch.sin(x)], costs=[1.0, 8.0])
        >>> times = torch.linspace(0.0, 1.0, 21, dtype=torch.float64)
        >>> schedule = mls.learn(ladder, lambda seeds: mls.seeded_normal(seeds, (4,)), times, delta=0.05,
        ...     regularisation=1e-3, budget=60.0, steps=3, batch=8, generator=torch.Generator().manual_seed(0))
        >>> schedule.probabilities(ladder, times, budget=50.0).shape
        torch.Size([20, 2])
    """
    grid = as_times(times)
    problem = Problem(ladder, y0_source, grid, step, diffusion, brownian_source, delta, derivative, conditions)
    if not (math.isfinite(regularisation) and regularisation >= 0):
        raise ValueError(f'"regularisation" must be a finite number of at least 0, got {regularisation}')
    for name, value, least in (("steps", steps, 1), ("batch", batch, 2)):
        if value < least:
            raise ValueError(f'"{name}" must be at least {least}, got {value}')
    if not isinstance(generator, torch.Generator):
        raise TypeError(f'"generator" must be a torch.Generator, got {type(generator).__name__}; make one with a seed')
    problem = replace(problem, derivative=problem.check_levels(first_seed))
    theta = problem.from_schedule(_start(problem, start, budget))
    run = Run(problem, theta, regularisation, batch, first_seed, generator, optimiser)
    path = None if folder is None else Path(folder)
    if path is not None and (path / _CHECKPOINT).is_file():
        run.restore(path / _CHECKPOINT)
    with tqdm(total=steps, initial=min(run.iteration, steps), desc="learning", disable=not progress) as bar:
        try:
            while run.iteration < steps:
                run.advance()
                if path is not None:
                    run.save(path / _CHECKPOINT)
                bar.set_postfix(error=f"{run.history[-1][0]:.3g}", cost=f"{run.history[-1][1]:.3g}")
                bar.update()
        except DivergedError as error:
            if path is not None and error.schedule is not None:
                error.schedule.save(path / _RESULT)
            raise
    schedule = run.schedule()
    if path is not None:
        schedule.save(path / _RESULT)
        _plot_if_possible(schedule, path / _PLOT)
    return schedule


def _start(problem: Problem, start: Tensor | LearnedSchedule | None, budget: float | None) -> LearnedSchedule:
    if (start is None) == (budget is None):
        raise ValueError(f'give exactly one of "start" and "budget", got {"neither" if start is None else "both"}')
    if isinstance(start, LearnedSchedule):
        return start
    if start is None:
        table = InverseCostSchedule().probabilities(problem.ladder, problem.grid, budget=budget, draw=independent)
    else:
        table = check_probabilities(start)
    shape = (len(problem.grid) - 1, len(problem.ladder))
    if table.shape != shape:
        raise ValueError(f'"start" must have shape (steps, levels) = {shape}, got {tuple(table.shape)}')
    return LearnedSchedule.fit(table, problem.grid, problem.delta)


def _plot_if_possible(schedule: LearnedSchedule, path: Path) -> None:
    try:
        schedule.plot(path)
    except ModuleNotFoundError:
        return
