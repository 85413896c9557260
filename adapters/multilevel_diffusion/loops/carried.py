r"""A pilot of one number of calls carried to another, by the log-SNR of the calls.

A call at log-SNR lambda_n whose step covers h_n of it has a response that is, for smooth drifts, a density along
lambda times the step's share of the estimate, w_n = 1 - e^{-h_n}:

    R'(m) = w'_m sum_n a_n(lambda'_m) R(n) / w_n,

with a_n the linear interpolation between the calls that were measured; h of the step that ends at the data is infinite.
Beyond the last call that was measured the density falls on as it did between the last two. The Gram matrix of the
responses follows, the corrections' mean squares are interpolated in the logarithm, and what plans err beside the first
order is taken as it was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

import multilevel_sde as mls

__all__ = ["carried"]


def carried(pilot: mls.Pilot, measured: Sequence[float], places: Sequence[float], table: Tensor | None) -> mls.Pilot:
    """Return what the pilot would have measured at other calls.

    Arguments:
        pilot: Of M calls (:func:`.loops.black_box.black_box_pilot`).
        measured: Half log-SNR log(alpha / sigma) of its calls and of its end, (M + 1,), which may be infinite.
        places: The same of the other calls, (N + 1,).
        table: Coefficients (N, order) of the base there; None where the sampler's own method is all.

    Example:
        >>> from multilevel_sde.pilots.answers import Single
        >>> grid, costs, single = torch.arange(5.0), (1.0, 8.0), Single(1, 4, False, 0.0, 1.0)
        >>> gram, variances = torch.eye(4), torch.ones(4, 1)
        >>> pilot = mls.Pilot(
        ...     costs, "FLOPs", costs, grid, torch.ones(4), gram, variances, (3.0,), (), grid, (single,), (), 1.0, 2
        ... )
        >>> few = carried(pilot, [-2.0, -1.0, 0.0, 1.0, math.inf], [-2.0, 0.0, math.inf], None)
        >>> few.steps, [round(value, 2) for value in few.gram.diagonal().tolist()]
        (2, [1.87, 2.5])
    """
    here, shares = _shares(measured)
    there, wanted = _shares(places)
    calls, corrections = len(there), pilot.variances.shape[1]
    size = pilot.gram.double().diagonal().reshape(corrections, len(here)).sum(0).sqrt().numpy() / shares
    falls = max(0.0, math.log(size[-2] / size[-1]) / (here[-1] - here[-2])) if corrections else 0.0
    wanted = wanted * np.exp(-falls * np.maximum(0.0, there - here[-1]))
    spread = np.stack([np.interp(there, here, row / shares) for row in np.eye(len(here))], 1) * wanted[:, None]
    one = torch.block_diag(*[torch.from_numpy(spread)] * corrections) if corrections else pilot.gram[:0, :0]
    logs = pilot.variances.clamp_min(1e-300).log().numpy()
    variances = [np.exp(np.interp(there, here, logs[:, k])) for k in range(corrections)]
    grid = torch.arange(calls + 1, dtype=torch.float64)
    singles = [single._replace(steps=calls) for single in pilot.singles if single.steps == pilot.steps]
    if (table is None) != (not pilot.multistep):  # another method, of which nothing was measured
        singles = [single._replace(multistep=table is not None) for single in singles[-1:]]
    return replace(
        pilot,
        times=grid,
        fine_times=grid,
        coefficients=torch.ones(calls, dtype=torch.float64),
        gram=one @ pilot.gram.double() @ one.T,
        variances=torch.from_numpy(np.stack(variances, 1)) if variances else torch.empty(calls, 0),
        singles=tuple(singles),
        calibration=tuple(run._replace(steps=calls) for run in pilot.calibration),
        multistep={} if table is None else {calls: table},
    )


def _shares(places: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """The calls' places, and the share of the estimate in each step."""
    steps = np.diff(np.asarray(places, dtype=np.float64))
    return np.asarray(places[:-1], dtype=np.float64), np.array([-math.expm1(-max(step, 1e-9)) for step in steps])
