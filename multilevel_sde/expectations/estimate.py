r"""E[phi(y)] by multilevel Monte Carlo, over the ladder and over the step size at once.

    E[P] = sum_l E[P_{a_l} - P_{a_{l-1}}] + what the steps of the finest grid leave

for indices a_l = (level, grid) from cheap to expensive. Both paths of a difference have the same start and noise, so
that it varies little and needs few samples; most samples are of the cheapest paths. For root mean squared error e the
work is of order e^-2 where the variance of the differences falls faster than their cost rises (beta > gamma), and
e^-2 log(e)^2 where it falls as fast. The ladder's top level is taken as the truth: what it errs is not seen.

References:
    Giles, "Multilevel Monte Carlo path simulation", Operations Research 56, 2008;
    Haji-Ali, Nobile and Tempone, "Multi-index Monte Carlo", Numerische Mathematik 132, 2016;
    Giles and Szpruch, Annals of Applied Probability 24, 2014 (antithetic pairs).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from torch import Tensor
from torch import distributed as processes
from tqdm.auto import tqdm

from multilevel_sde.arguments import as_integer, as_number, required_arguments
from multilevel_sde.expectations.grids import Grids
from multilevel_sde.expectations.paths import LARGEST, Paths
from multilevel_sde.expectations.result import Expectation, Facts, expectation_of
from multilevel_sde.expectations.sampling import BIAS_SHARE, LEAST, Run, check_bias
from multilevel_sde.expectations.trial import Trial
from multilevel_sde.ladder import Ladder
from multilevel_sde.noise.brownian import Brownian, BrownianPath
from multilevel_sde.noise.diffusion import Diffusion
from multilevel_sde.steps.rules import Step, StepRule, euler_maruyama

__all__ = ["expectation"]

_GRIDS = 4  # that the trial measures if there are as many
_TRIAL_SHARE = 0.05  # of the work, that one more grid of the trial may cost
_MORE_SHARE, _MOST_MORE = 0.05, 16  # of the work, up to which the trial gets more paths, and how many times as many
_BUDGET_SHARE = 0.3  # of a budget, for the whole trial


def expectation(
    phi: Callable[..., Tensor],
    ladder: Ladder,
    start: Callable[[Sequence[int]], Tensor],
    times: Tensor | Sequence[float],
    *,
    tolerance: float | None = None,
    budget: float | None = None,
    diffusion: Diffusion | None = None,
    brownian_source: Callable[[Sequence[int]], Brownian | BrownianPath] | None = None,
    step: Step | StepRule = euler_maruyama,
    save: bool | Sequence[float] = False,
    confidence: float = 0.95,
    seed: int = 0,
    coarsest: int = 1,
    trial: int = 256,
    batch: int | None = None,
    antithetic: bool = False,
    distributed: bool = False,
    progress: bool | None = None,
) -> Expectation:
    """Estimate E[phi] at a root mean squared error or at a cost, multilevel in the ladder and in the steps.

    A trial of `trial` paths chooses the terms, a chain of differences of neighbouring paths or a rectangle of mixed
    ones; other paths then make the estimate. Equal seeds give equal results, whatever the batch and the processes, if
    the drifts' values of a sample do not depend on the rest of the batch.

    Arguments:
        phi: phi(states) -> (n,) or (n, m) for n samples; of the last states (n, ...), or with `save` of the saved ones
            (S, n, ...). It may also take their times and seeds: phi(states, times), phi(states, times, seeds).
        ladder: K levels; the top one is the truth. Its costs decide, in their unit; a path costs that of its drifts.
        start: start(seeds) -> initial states, one per seed, such as `lambda seeds: torch.ones(len(seeds), 2)`.
        times: The finest grid. Coarser ones have about a half, a quarter, ... of its steps, and only those that are
            needed are used.
        tolerance: The root mean squared error that is wanted, bias and all; of each output of phi.
        budget: Instead: a cost in the ladder's unit, trial included.
        diffusion: As for `solve`.
        brownian_source: brownian_source(seeds) -> noise as for `solve`, on every grid the same path; by default
            `lambda seeds: BrownianPath(seeds, grid=times)`.
        step: As for `solve`.
        save: Which states phi sees: True for all of each grid, or times of the finest grid (or their indices), in the
            order of `times`.
        confidence: Of the interval.
        seed: Of everything.
        coarsest: Steps of the coarsest grid. With as many as `times` has, there is one grid only, and the expectation
            is that of its paths.
        trial: Paths of the trial on coarse grids; finer grids get fewer.
        batch: Samples of one solve; the result does not depend on it.
        antithetic: Whether differences of grids take pairs of fine paths, with the increments in each coarse step in
            turn and turned around. With :class:`Milstein` for noise that does not commute, variances then fall as
            steps^-2 instead of steps^-1 for a smooth phi. The steps inside a coarse one must be equal.
        distributed: Whether all processes of `torch.distributed` call this together and share the work.
        progress: Show a progress bar with the expected time; by default where this takes more than two seconds.

    Returns:
        An :class:`Expectation`.

    Raises:
        TypeError, ValueError: An argument of another kind or out of range; phi returns another shape, NaN or numbers
            above 1e60 or all below 1e-60; `start`, `brownian_source` or phi do not answer by the seeds; a tolerance
            that the finest grid's bias does not allow; a budget that pays no trial.
        NonFiniteError: A path became infinite on a grid that is needed; coarser ones are then left out by the trial.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder = mls.Ladder([lambda y, t: -y + 0.1, lambda y, t: -y], costs=[1.0, 8.0])
        >>> result = mls.expectation(lambda y: y[:, 0] ** 2, ladder, lambda seeds: torch.ones(len(seeds), 1),
        ...     torch.linspace(0.0, 1.0, 129), diffusion=0.5, tolerance=0.01)
        >>> abs(result.value - 0.2434) < 0.03  # exp(-2) + (1 - exp(-2)) / 8
        True
        >>> [row.samples for row in result.rows][0] > [row.samples for row in result.rows][-1]
        True
    """
    began = time.perf_counter()
    _check(phi, ladder, start, brownian_source, distributed)
    goal, price = _goal(tolerance, budget)
    confidence = as_number("confidence", confidence)
    if not 0 < confidence < 1:
        raise ValueError(f'"confidence" must lie between 0 and 1, got {confidence}')
    for name, value, least in (("trial", trial, 32), ("batch", 1 if batch is None else batch, 1)):
        if as_integer(name, value) < least:
            raise ValueError(f'"{name}" must be at least {least}, got {value}')
    grids = Grids.of(times, save, step, as_integer("coarsest", coarsest))
    if diffusion is not None and brownian_source is None:
        brownian_source = _paths_on(grids.times[-1])
    if diffusion is None and brownian_source is not None:
        raise ValueError('"brownian_source" was given without "diffusion"; pass both or neither')
    if antithetic and (diffusion is None or getattr(step, "area", False)):
        raise ValueError('"antithetic" needs a "diffusion" and a step without areas; leave it out')
    for grid in range(1, len(grids) if antithetic else 0):
        grids.inside(grid, grid - 1)
    paths = Paths(phi, ladder, start, grids, step, diffusion, brownian_source, batch, antithetic, distributed)
    seed, silent = as_integer("seed", seed), progress is False or (distributed and processes.get_rank() > 0)
    shown = {"disable": silent, "delay": 0 if progress else 2, "unit": f" {ladder.unit}", "unit_scale": True}
    with tqdm(desc="expectation", total=price, **shown) as bar:
        paths.bar = bar
        first = Trial(paths, seed, trial)
        last = _explore(first, goal, price)
        _check_size(first)
        run = Run(paths, first, first.scheme(last), last, first.seed)
        if goal is not None:
            run.until(goal)
        else:
            run.within(price - first.cost)
    return expectation_of(run, Facts(confidence, goal, time.perf_counter() - began))


def _explore(trial: Trial, goal: float | None, price: float) -> int:
    """Measure grids, coarse to fine, until the last one to use is known; return it.

    Raises:
        ValueError: The tolerance is below the bias of the finest grid; the budget pays no trial.
    """
    grids = trial.paths.grids
    for grid in range(len(grids)):
        if goal is None and trial.cost + trial.price(grid) > _BUDGET_SHARE * price:
            break
        if len(trial.top_grids) >= min(_GRIDS, len(grids)):
            last, work = _last(trial, goal, price - trial.cost)
            if last <= trial.top_grids[-1] or trial.price(grid) > _TRIAL_SHARE * work:
                break
        trial.measure(grid)
    if not trial.top_grids or (len(trial.top_grids) < 2 and len(grids) > 1):
        needed = sum(trial.price(grid) for grid in range(min(2, len(grids)))) / _BUDGET_SHARE
        raise ValueError(
            f'"budget" of {price:.6g} {trial.paths.ladder.unit} pays no trial of {trial.samples} paths on two grids; '
            f"give at least {needed:.3g}, or fewer paths with trial="
        )
    last, work = _last(trial, goal, price - trial.cost)
    more = min(_MOST_MORE, int(_MORE_SHARE * work / trial.cost))
    if more > 1:
        trial.enlarge(more)
        last, _ = _last(trial, goal, price - trial.cost)
    if goal is not None:
        check_bias(trial.decay(), grids.steps(len(grids) - 1), goal)
    return last


def _last(trial: Trial, goal: float | None, left: float) -> tuple[int, float]:
    """Return the last grid to use, for what is known, and what the estimate will cost."""
    decay, grids = trial.decay(), trial.paths.grids
    measured = trial.top_grids
    refined = measured[min(2, len(measured) - 1) :]  # twice at least
    possible = [*refined, *range(measured[-1] + 1, len(grids))]
    if decay is None:
        last = measured[-1]
        return last, left if goal is None else trial.scheme(last).work / goal**2
    if goal is not None:
        fine = [grid for grid in possible if float(decay.likely_beyond(grids.steps(grid)).max()) <= BIAS_SHARE * goal]
        last = fine[0] if fine else possible[-1]
        return last, trial.scheme(last).work / ((1 - BIAS_SHARE**2) * goal**2)
    errors = {}
    for grid in possible:
        scheme = trial.scheme(grid)
        if not errors or LEAST * sum(scheme.costs) <= left / 2:  # else its terms would have too few samples
            errors[grid] = float(decay.likely_beyond(grids.steps(grid)).max()) ** 2 + scheme.work / left
    return min(errors, key=errors.__getitem__), left


def _check(phi: object, ladder: object, start: object, brownian_source: object, shared: bool) -> None:
    if not isinstance(ladder, Ladder):
        raise TypeError(f'"ladder" must be a multilevel_sde.Ladder, got {type(ladder).__name__}')
    if not callable(phi):
        raise TypeError(f'"phi" must be a function of states, got {type(phi).__name__}; for example lambda y: y[:, 0]')
    needed = required_arguments(phi) or 1
    if needed > 3:
        raise TypeError(f'"phi" must take states, and may take times and seeds, got a function of {needed} arguments')
    if not callable(start):
        raise TypeError(
            f'"start" must be a function of seeds, got {type(start).__name__}; for example '
            "lambda seeds: torch.ones(len(seeds), 2)"
        )
    if brownian_source is not None and (not callable(brownian_source) or isinstance(brownian_source, BrownianPath)):
        raise TypeError(
            f'"brownian_source" must be a function of seeds, got {type(brownian_source).__name__}; for example '
            "lambda seeds: BrownianPath(seeds, grid=times)"
        )
    if shared and not processes.is_initialized():
        raise ValueError('"distributed" needs torch.distributed.init_process_group first')


def _check_size(trial: Trial) -> None:
    largest = max(float(values.abs().max()) for values in trial.values.values())
    if 0 < largest < 1 / LARGEST:
        raise ValueError(
            f'"phi" returned values of at most {largest:.3g}, and their fourth powers must be numbers, from '
            f"{1 / LARGEST:.0e} on; give it in another unit"
        )


def _goal(tolerance: float | None, budget: float | None) -> tuple[float | None, float]:
    """Return the tolerance, or None and the budget."""
    if (tolerance is None) == (budget is None):
        raise ValueError(
            f'give exactly one of "tolerance" and "budget", got {"neither" if tolerance is None else "both"}'
        )
    name, value = ("tolerance", tolerance) if budget is None else ("budget", budget)
    number = as_number(name, value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f'"{name}" must be a positive number, got {number}')
    if budget is None and not 1 / LARGEST < number < LARGEST:
        raise ValueError(
            f'"tolerance" must lie between {1 / LARGEST:.0e} and {LARGEST:.0e}, so that its powers are numbers, got '
            f"{number}; give phi in another unit"
        )
    return (number, math.inf) if budget is None else (None, number)


def _paths_on(times: Tensor) -> Callable[[Sequence[int]], BrownianPath]:
    return lambda seeds: BrownianPath(seeds, grid=times)
