"""Is a sampler Euler's method? Then a multistep base on its noise levels may take its place, call by call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from multilevel_diffusion.process.multistep import REACH, corrected_table

__all__ = ["Seen", "euler_base"]

Seen = tuple[float, Tensor, Tensor]
"""(sigma, state, answer) of a call of a denoiser."""

_SAME = 1e-4  # relative difference of a state and Euler's


def euler_base(calls: Sequence[Seen], final: Tensor) -> Tensor | None:
    """Return the coefficients of SA-Solver's base of order 2 where every step was Euler's, else None.

    Euler's step from sigma to s of dx = (x - D) / sigma dsigma is x + (s - sigma) (x - D) / sigma, with s = 0 at the
    end.

    Arguments:
        calls: Of one trajectory.
        final: The state at its end.

    Returns:
        Float64 (N, 3), or None.

    Example:
        >>> import torch
        >>> calls, x = [], torch.ones(1)
        >>> for sigma, following in pairwise([4.0, 2.0, 1.0, 0.0]):
        ...     calls.append((sigma, x, 0.5 * x))
        ...     x = x + (following - sigma) * (x - 0.5 * x) / sigma
        >>> euler_base(calls, x).shape, euler_base(calls, x + 1)
        (torch.Size([3, 3]), None)
    """
    sigmas = [*(sigma for sigma, _, _ in calls), 0.0]
    states = [*(state for _, state, _ in calls), final]
    for n, (sigma, state, answer) in enumerate(calls):
        step = state + (sigmas[n + 1] - sigma) * (state - answer) / sigma
        if sigma <= sigmas[n + 1] or step.shape != states[n + 1].shape:
            return None
        if float((step - states[n + 1]).abs().max()) > _SAME * float(states[n + 1].abs().max() + state.abs().max()):
            return None
    places = [-math.log(sigma) if sigma > 0 else math.inf for sigma in sigmas]
    lengths = [after - before for before, after in pairwise(places)]
    steps = [(math.exp(-h), -math.expm1(-h)) for h in lengths]
    return corrected_table(places, lengths, steps, 2, 2, reach=REACH)
