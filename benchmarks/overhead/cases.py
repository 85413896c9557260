"""The same fixed-step Euler solve by hand and by this library, for bench_overhead.py and bench_solve.py.

Every function takes a :class:`Case` and returns a dict of runs: name -> callable that solves once and returns the last
state. What does not depend on the solve (a plan, an SDE object, a compiled function) is made before and is not timed.
Names that begin with the same library up to a comma are settings of one library.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import multilevel_sde as mls

__all__ = ["SIGMA", "Case", "Runs", "by_hand", "ladder_runs", "ours"]

SIGMA = 0.5

Runs = dict[str, Callable[[], Tensor]]


@dataclass(frozen=True)
class Case:
    """dy = drift(y) dt + SIGMA dW from 0 to 1 in equal steps.

    Attributes:
        shape: Of the state, samples first.
        steps: Number of steps.
        noisy: An SDE, else an ODE.
        stored: For an SDE, that every solver is given the same increments, made before; else each draws its own.
        drift: f(y, t), -y unless another is given; peers outside torch always take -y.
    """

    shape: tuple[int, int]
    steps: int
    noisy: bool = False
    stored: bool = False
    drift: Callable[[Tensor, Tensor], Tensor] = lambda y, t: -y

    @functools.cached_property
    def y0(self) -> Tensor:
        """The initial state."""
        return torch.linspace(-1.0, 1.0, self.shape[0] * self.shape[1]).reshape(self.shape)

    @functools.cached_property
    def times(self) -> Tensor:
        """The grid."""
        return torch.linspace(0.0, 1.0, self.steps + 1, dtype=torch.float64)

    @functools.cached_property
    def increments(self) -> tuple[Tensor, ...]:
        """Increments of W over the steps, each in memory of its own."""
        generator = torch.Generator().manual_seed(self.steps)
        return tuple(torch.randn(self.shape, generator=generator) * self.steps**-0.5 for _ in range(self.steps))

    def path(self, on_grid: bool = False) -> mls.BrownianPath:
        """Our noise: one seed a sample."""
        return mls.BrownianPath(range(self.shape[0]), grid=self.times if on_grid else None)

    def drawn(self) -> Iterator[Tensor]:
        """Noise as one writes it, with no seed for a sample."""
        generator = torch.Generator().manual_seed(0)
        return (torch.randn(self.shape, generator=generator).mul_(self.steps**-0.5) for _ in range(self.steps))


# -- by hand ----------------------------------------------------------------------------------------------------------


def _euler(case: Case) -> Tensor:
    y = case.y0
    with torch.no_grad():
        for t, h in zip(case.times.unbind(), case.times.diff().tolist(), strict=False):
            y = torch.add(y, case.drift(y, t), alpha=h)
    return y


def _as_written(case: Case) -> Tensor:
    y, points = case.y0, case.times.tolist()
    with torch.no_grad():
        for n, (t, s) in enumerate(itertools.pairwise(points)):
            y = y + (s - t) * case.drift(y, case.times[n])
    return y


def _euler_maruyama(case: Case, increments: Iterator[Tensor]) -> Tensor:
    y = case.y0
    with torch.no_grad():
        for t, h, dW in zip(case.times.unbind(), case.times.diff().tolist(), increments, strict=False):
            y = torch.add(y, case.drift(y, t), alpha=h).add_(dW, alpha=SIGMA)
    return y


def by_hand(case: Case) -> Runs:
    """The shortest loop that does the same; also as one writes it at first, and with torch.randn."""
    if not case.noisy:
        return {"bare loop": lambda: _euler(case), "bare loop, as one writes it": lambda: _as_written(case)}
    if case.stored:
        return {"bare loop": lambda: _euler_maruyama(case, iter(case.increments))}
    return {
        "bare loop": lambda: _euler_maruyama(case, case.path().like(case.y0).increments(case.times)),
        "bare loop, torch.randn": lambda: _euler_maruyama(case, case.drawn()),
    }


# -- this library -----------------------------------------------------------------------------------------------------


def ours(case: Case) -> Runs:
    """`solve` as it comes, without looking for NaN, and with other noise."""
    ladder = mls.Ladder([case.drift], costs=[1.0])
    plan = mls.em_plan(ladder, case.times)

    def run(brownian: Callable[[], mls.Brownian | mls.BrownianPath] | None, **options: bool) -> Callable[[], Tensor]:
        if brownian is None:
            return lambda: mls.solve(ladder, case.y0, case.times, plan, **options).y
        return lambda: mls.solve(ladder, case.y0, case.times, plan, diffusion=SIGMA, brownian=brownian(), **options).y

    noise: Callable[[], mls.Brownian | mls.BrownianPath] | None = case.path if case.noisy else None
    if case.stored:
        noise = functools.partial(_as_brownian, lambda: iter(case.increments))
    runs = {"solve": run(noise), "solve, check_finite=False": run(noise, check_finite=False)}
    if case.noisy and not case.stored:
        runs["solve, grid=times"] = run(lambda: case.path(on_grid=True))
        runs["solve, torch.randn"] = run(lambda: _as_brownian(case.drawn))
    return runs


def _as_brownian(make: Callable[[], Iterator[Tensor]]) -> mls.Brownian:
    increments = make()
    return lambda t, s: next(increments)


def ladder_runs(case: Case) -> Runs:
    """A ladder of three with a systematic plan: a loop by hand over the plan's coefficients, and `solve`."""
    drifts = [lambda y, t: -0.9 * y, lambda y, t: -0.99 * y, case.drift]
    ladder = mls.Ladder(drifts, costs=[1.0, 4.0, 16.0])
    table = torch.tensor([1.0, 0.3, 0.1], dtype=torch.float64).expand(case.steps, 3)
    plan = mls.draw_plan(table, mls.systematic, generator=torch.Generator().manual_seed(0))
    rows = [[(drifts[k], c) for k, c in enumerate(row) if c] for row in plan.coefficients.tolist()]

    def loop() -> Tensor:
        y, increments = case.y0, iter(case.increments) if case.noisy else None
        with torch.no_grad():
            for t, h, row in zip(case.times.unbind(), case.times.diff().tolist(), rows, strict=False):
                following = y
                for drift, coefficient in row:
                    following = torch.add(following, drift(y, t), alpha=h * coefficient)
                y = following if increments is None else following.add_(next(increments), alpha=SIGMA)
        return y

    def solve(**options: bool) -> Tensor:
        noise = {}
        if case.noisy:
            noise = {"diffusion": SIGMA, "brownian": _as_brownian(lambda: iter(case.increments))}
        return mls.solve(ladder, case.y0, case.times, plan, **noise, **options).y

    return {"bare loop": loop, "solve": solve, "solve, check_finite=False": lambda: solve(check_finite=False)}
