r"""What a repeated plan does to vibrations, exactly: the stationary temperature and spread of a harmonic mode by BAOAB.

A mode of frequency w has the force -w^2 q (mass 1) at the top level, of which the correction of level k makes the share
s_k, so that level k's own force is -(1 - s_{k+1} - ... - s_K) w^2 q. The estimates of a block are linear in the
positions of its rows, so a block maps

    (q, p)  ->  M (q, p) + N (xi_1, ..., xi_L),        S = M S M^T + N N^T

with the 2 x 2 matrix M, the block's L normals and the stationary covariance S. Temperature is <p^2> / k_B T and spread
w^2 <q^2> / k_B T, both 1 where the plan does no harm, in the mean over the block's rows. Where the spectral radius of M
is 1 or more the block resonates or heats for ever. Without friction only the radius says something: energy grows by
2 log(radius) a block.

It is the linear analysis of r-RESPA, for any plan: impulses, held corrections, several levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import multilevel_sde as mls

__all__ = ["Response", "response"]


@dataclass(frozen=True)
class Response:
    """What a block does to each of several modes, arrays of one number a mode.

    Attributes:
        temperature: <p^2> / k_B T; infinite where the block is unstable, NaN without friction.
        spread: w^2 <q^2> / k_B T, likewise.
        growth: log of the spectral radius over the time of a block, in 1 / the unit of h: of amplitudes; energy grows
            twice as fast.
    """

    temperature: np.ndarray
    spread: np.ndarray
    growth: np.ndarray


def response(plan: mls.Plan, w: np.ndarray, shares: np.ndarray, gamma: float, h: float) -> Response:
    """Return the response of modes to a block.

    Arguments:
        plan: L rows of K levels, with or without recall.
        w: Frequencies in radians a unit of time, (modes,), above 0.
        shares: s_k of the corrections of levels 2 ... K in the top's force, (modes, K - 1), of any sign.
        gamma: Friction in 1 / the unit of time.
        h: The step.

    Example:
        >>> from multilevel_forces.blocks import impulses
        >>> top = response(impulses([1, 1]), np.array([0.4]), np.array([[0.3]]), 0.1, 1.0)
        >>> top.temperature.round(6), top.spread.round(6)  # 1 - (h w)^2 / 4, and exact
        (array([0.96]), array([1.]))
    """
    steps, modes = plan.steps, len(w)
    shares = np.reshape(shares, (modes, plan.levels - 1))
    stiffness = _stiffness(np.asarray(w, dtype=float), shares)  # of each level, (modes, K)
    rows = np.zeros((modes, steps, steps))  # force at row n = -sum_m rows[n, m] q_m
    for n, row in enumerate(plan.coefficients.numpy()):
        rows[:, n, n] = stiffness @ row
    for n, level, m, value in () if plan.recall is None else plan.recall.entries:
        rows[:, n, m] += stiffness[:, level] * value
    c = np.exp(-gamma * h)
    kick = np.sqrt(1 - c * c)
    q, p = np.zeros((2, modes, 2 + steps))  # of (q, p) at the start, before its kick, and the block's normals
    q[:, 0], p[:, 1] = 1.0, 1.0
    places, on_step = [], []
    for n in range(steps):
        places.append(q)
        force = -np.einsum("im,mij->ij", rows[:, n, : n + 1], np.stack(places))
        on_step.append(p + h / 2 * force)
        p = p + h * force
        q = q + h / 2 * p
        p = c * p
        p[:, 2 + n] += kick
        q = q + h / 2 * p
    ends = np.stack([q, p], 1)
    block, noise = ends[:, :, :2], ends[:, :, 2:]
    radius = np.abs(np.linalg.eigvals(block)).max(1)
    growth = np.log(radius) / (steps * h)
    if gamma == 0:
        unknown = np.full(modes, np.nan)
        return Response(unknown, unknown, growth)
    with np.errstate(over="ignore", invalid="ignore"):
        whole = _stationary(block, noise @ noise.transpose(0, 2, 1), radius)
        mean = [np.mean([_variance(whole, one) for one in each], 0) for each in (on_step, places)]
    unstable = radius >= 1
    temperature, spread = (np.where(unstable, np.inf, one) for one in (mean[0], mean[1] * np.square(w)))
    return Response(temperature, spread, growth)


def _stiffness(w: np.ndarray, shares: np.ndarray) -> np.ndarray:
    above = np.cumsum(shares[:, ::-1], 1)[:, ::-1]  # of level k's correction and all above it
    return np.square(w)[:, None] * np.concatenate([1 - above, np.ones((len(w), 1))], 1)


def _stationary(block: np.ndarray, noise: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """S = M S M^T + noise for each mode, (modes, 2, 2)."""
    safe = np.where((radius < 1)[:, None, None], block, 0.0)
    pairs = np.einsum("nij,nkl->nikjl", safe, safe).reshape(-1, 4, 4)
    return np.linalg.solve(np.eye(4) - pairs, noise.reshape(-1, 4, 1)).reshape(-1, 2, 2)


def _variance(stationary: np.ndarray, of: np.ndarray) -> np.ndarray:
    """The variance of a number that is linear in the start and the normals of a block."""
    start, normals = of[:, :2], of[:, 2:]
    return np.einsum("ni,nij,nj->n", start, stationary, start) + np.square(normals).sum(1)
