"""The solves of cases.py by other libraries: torchsde, torchdiffeq, scipy, diffrax."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

import numpy as np
import torch
import torchsde
from scipy.integrate import RK23, solve_ivp
from torch import Tensor

from benchmarks.overhead.cases import SIGMA, Case, Runs

# Read when jax is imported: one thread, like everyone here.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

__all__ = ["diffrax_runs", "scipy_runs", "torchdiffeq_runs", "torchsde_runs"]


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
