"""The same fixed-step Euler solve by hand, by this library and by its peers, for bench_overhead.py.

Every function takes a :class:`Case` and returns a dict of runs: name -> callable that solves once and returns the last
state. What does not depend on the solve (a plan, an SDE object, a compiled function) is made before and is not timed.
Names that begin with the same library up to a comma are settings of one peer.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torchsde
from scipy.integrate import RK23, solve_ivp
from torch import Tensor

import multilevel_sde as mls

# Read when jax is imported: one thread, like everyone here.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

__all__ = ["SIGMA", "Case", "Runs", "by_hand", "diffrax_runs", "ladder_runs", "ours", "scipy_runs", "torchdiffeq_runs"]
__all__ += ["torchsde_runs"]

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


# -- torchsde: SDEs only ----------------------------------------------------------------------------------------------


class _OrnsteinUhlenbeck:
    """As torchsde's documentation writes an SDE."""

    noise_type, sde_type = "diagonal", "ito"

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return -y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.full_like(y, SIGMA)


class _Tuned(_OrnsteinUhlenbeck):
    """With the product of g and dW given, which saves a tensor a step."""

    def f_and_g_prod(self, t: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return -y, SIGMA * v


class _Stored(torchsde.BaseBrownian):
    """Stored increments in the order of the steps."""

    levy_area_approximation = "none"
    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, increments: tuple[Tensor, ...]):
        self.next = iter(increments).__next__
        self._shape = increments[0].shape

    @property
    def shape(self) -> torch.Size:
        return self._shape

    def __call__(self, ta, tb=None, return_U=False, return_A=False):
        return self.next()

    def __repr__(self) -> str:
        return "_Stored()"


def torchsde_runs(case: Case) -> Runs:
    """Torchsde as it comes, and its settings that are fast for Euler's method on a known grid."""
    if not case.noisy:
        return {}
    dt = 1 / case.steps
    # Where t + dt + dt + ... ends, so that no sliver of a step is left: kinder than a user would think of.
    ends = torch.tensor([0.0, functools.reduce(lambda t, _: t + dt, range(case.steps), 0.0)], dtype=torch.float64)
    plain, tuned = _OrnsteinUhlenbeck(), _Tuned()

    def run(make: Callable[[], object]) -> Callable[[], Tensor]:
        def solve() -> Tensor:
            with torch.no_grad():
                return torchsde.sdeint(tuned, case.y0, ends, bm=make(), method="euler", dt=dt)[-1]

        return solve

    def default() -> Tensor:
        with torch.no_grad():
            return torchsde.sdeint(plain, case.y0, torch.tensor([0.0, 1.0]), method="euler", dt=dt)[-1]

    if case.stored:
        return {"torchsde, stored increments": run(lambda: _Stored(case.increments))}
    interval = functools.partial(torchsde.BrownianInterval, 0.0, float(ends[-1]), size=case.shape)
    return {
        "torchsde, default": default,
        "torchsde, dt given": run(lambda: interval(dt=dt)),
        "torchsde, dt given, all cached": run(lambda: interval(dt=dt, cache_size=None)),
        "torchsde, all cached": run(lambda: interval(cache_size=None)),
        "torchsde, BrownianPath": run(lambda: torchsde.BrownianPath(0.0, torch.zeros(case.shape))),
    }


# -- torchdiffeq, scipy: ODEs only ------------------------------------------------------------------------------------


def torchdiffeq_runs(case: Case) -> Runs:
    """Torchdiffeq's Euler with a step size, and on a grid of all times."""
    if case.noisy:
        return {}
    from torchdiffeq import odeint

    ends, grid = case.times[[0, -1]].float(), case.times.float()

    def run(times: Tensor, **options: dict) -> Tensor:
        with torch.no_grad():
            return odeint(lambda t, y: -y, case.y0, times, method="euler", **options)[-1]

    return {
        "torchdiffeq, step_size": lambda: run(ends, options={"step_size": 1 / case.steps}),
        "torchdiffeq, grid": lambda: run(grid),
    }


class _Euler(RK23):
    """Euler's method in scipy's framework of Runge-Kutta pairs: one new evaluation a step, no error estimate."""

    order, error_estimator_order, n_stages = 1, 0, 1
    A, B, C = np.zeros((1, 1)), np.ones(1), np.zeros(1)
    E, P = np.zeros(2), np.array([[1.0], [0.0]])


def scipy_runs(case: Case) -> Runs:
    """solve_ivp in float64: Euler's tableau at the same step, and its own RK23 with as many evaluations."""
    if case.noisy:
        return {}
    y0 = case.y0.double().numpy().ravel()

    def run(method: type[RK23], h: float) -> Tensor:
        found = solve_ivp(
            lambda t, y: -y, (0.0, 1.0), y0, method, t_eval=(1.0,), first_step=h, max_step=h, rtol=1e9, atol=1e9
        )
        return torch.from_numpy(found.y[:, -1]).reshape(case.shape)

    return {
        "scipy, Euler tableau": lambda: run(_Euler, 1 / case.steps),
        "scipy, RK23 of 3 evaluations a step": lambda: run(RK23, min(1.0, 3 / case.steps)),
    }


# -- diffrax: compiled, another framework -----------------------------------------------------------------------------


def diffrax_runs(case: Case) -> Runs:
    """Diffrax's Euler, compiled before, with the cheapest adjoint (none) and no interpolation."""
    import diffrax
    import jax
    import jax.numpy as jnp
    import lineax

    h, y0 = 1 / case.steps, jnp.asarray(case.y0.numpy())
    drift = diffrax.ODETerm(lambda t, y, args: -y)
    sigma = lineax.DiagonalLinearOperator(jnp.full(case.shape, SIGMA))

    class Stored(diffrax.AbstractPath):
        """Stored increments, found by the time."""

        increments: jax.Array
        t0: float = 0.0
        t1: float = 1.0

        def evaluate(self, t0, t1=None, left=True, use_jump=True):
            return self.increments[jnp.round(t0 / h).astype(int)]

    def solve(y, path):
        control = [] if path is None else [diffrax.ControlTerm(lambda t, y, args: sigma, path)]
        return diffrax.diffeqsolve(
            diffrax.MultiTerm(drift, *control) if control else drift,
            diffrax.Euler(),
            0.0,
            1.0,
            h,
            y,
            adjoint=diffrax.ForwardMode(),
            max_steps=None,
            throw=False,
        ).ys[0]

    def run(path: object) -> Callable[[], Tensor]:
        compiled = jax.jit(solve)
        return lambda: torch.from_numpy(np.array(compiled(y0, path)))

    if not case.noisy:
        return {"diffrax": run(None)}
    if case.stored:
        return {"diffrax": run(Stored(jnp.asarray(torch.stack(case.increments).numpy())))}
    key = jax.random.key(0)
    return {
        "diffrax, VirtualBrownianTree": run(diffrax.VirtualBrownianTree(0.0, 1.0, h / 2, case.shape, key)),
        "diffrax, UnsafeBrownianPath": run(diffrax.UnsafeBrownianPath(case.shape, key)),
    }
