r"""A grid chosen once, from the local errors of the top level along its own path, and the same for all samples.

Steps that adapt to a path while it runs bias random draws and the noise: how long a step is must not depend on what is
drawn in it. A grid that is fixed before the run does no harm, and can be as dense as a layer needs. On the path of f^K
along the finest times, a step from t_i to t_j that holds the drift errs by

    E_ij = || int_{t_i}^{t_j} f^K(y(s), s) ds - (t_j - t_i) f^K(y_i, t_i) ||,

a root mean square over samples. Of all grids of so many steps, the one is taken whose largest E_ij is the least, up to
the greedy search that finds it: its errors are about equal.

Reference:
    de Boor, "Good approximation by splines with variable knots II", 1974 (equidistribution).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from multilevel_sde.arguments import as_integer
from multilevel_sde.conditions import some_rows
from multilevel_sde.ladder import Ladder
from multilevel_sde.noise.brownian import BrownianPath
from multilevel_sde.plans.drawing import em_plan
from multilevel_sde.solver.integrate import solve
from multilevel_sde.steps.rules import euler_maruyama
from multilevel_sde.times import as_times, device_dtype, thinned

__all__ = ["EqualErrors"]

_MOST = 2000  # times of the finest grid that are looked at
_HALVINGS = 60


@dataclass(frozen=True)
class EqualErrors:
    """A rule for :func:`multilevel_sde.pilot`: a grid whose steps have about equal errors, dense in layers.

    Arguments:
        steps: How many steps the grid has.
        samples: On how many paths it looks; the first ones.

    Raises:
        ValueError: Fewer than one step or sample; at a call, more steps than the finest grid has.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder = mls.Ladder([lambda y, t: -50.0 * y * torch.exp(-20.0 * t)], costs=[1.0])
        >>> times = torch.linspace(0.0, 1.0, 1001)
        >>> grid = mls.EqualErrors(steps=10)(ladder, torch.ones(4, 1), times)
        >>> len(grid), bool(grid[5] < 0.2), float(grid[-1])
        (11, True, 1.0)
    """

    steps: int
    samples: int = 8

    def __post_init__(self) -> None:
        for name in ("steps", "samples"):
            if as_integer(name, getattr(self, name)) < 1:
                raise ValueError(f'"{name}" must be at least 1, got {getattr(self, name)}')

    def __call__(self, ladder: Ladder, y0: Tensor, times: Tensor | Sequence[float], **arguments: Any) -> Tensor:
        """Return the grid, float64 (steps + 1,), made of `times`.

        Arguments:
            ladder: The top level is run once on `times`, on the first samples.
            y0: Initial states.
            times: The finest grid.
            arguments: `step`, `diffusion`, `brownian` and `conditions` of :func:`solve`, for all of y0.
        """
        fine = as_times(times).double()
        if self.steps > len(fine) - 1:
            raise ValueError(f'"steps" must be at most the {len(fine) - 1} of "times", got {self.steps}')
        y0, arguments = self._few(y0, arguments)
        seen: dict[float, Tensor] = {}
        top = ladder.drifts[-1]

        def recorded(y: Tensor, t: Tensor, /, **conditions: Tensor) -> Tensor:
            value = top(y, t, **conditions)
            seen.setdefault(float(t), value.detach()[: self.samples].double().cpu())
            return value

        one = Ladder([recorded], [1.0])
        plan = em_plan(one, fine, step=arguments.get("step", euler_maruyama))
        solve(one, y0, fine, plan, gradients=False, **arguments)
        places = thinned(len(fine) - 1, max(self.steps, min(_MOST, len(fine) - 1)))
        values = [seen[time] for time in fine.to(device_dtype(fine.dtype, y0.device)).tolist()[:-1]]
        return fine[places][_equidistributed(_local_errors(torch.stack(values), fine, places), self.steps)]

    def _few(self, y0: Tensor, arguments: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The first samples with their noise and conditions; all of them where the noise cannot be split."""
        noise, few = arguments.get("brownian"), range(min(self.samples, len(y0) if y0.dim() else 0))
        if not few or not (noise is None or isinstance(noise, BrownianPath)):
            return y0, arguments
        parts: dict[str, Any] = {"conditions": some_rows(arguments.get("conditions") or {}, few)}
        if noise is not None:
            parts["brownian"] = noise.subset(few)
        return y0[: len(few)], arguments | parts


def _local_errors(values: Tensor, times: Tensor, places: Tensor) -> Tensor:
    """Return E_ij^2 for all pairs of places, float64 (P, P); only those with j > i mean something."""
    flat = values.flatten(1)
    integral = torch.cat([flat.new_zeros(1, flat.shape[1]), (flat * times.diff().abs()[:, None]).cumsum(0)])[places]
    start, span = flat[places.clamp_max(len(flat) - 1)], times[places]
    both, mixed = integral @ integral.T, integral @ start.T
    h = (span[None, :] - span[:, None]).abs()
    moved = both.diagonal()[None, :] + both.diagonal()[:, None] - 2 * both
    held = h.square() * start.square().sum(1)[:, None] - 2 * h * (mixed.T - mixed.diagonal()[:, None])
    return (moved + held).clamp_min(0.0) / max(1, values.shape[1])


def _equidistributed(errors: Tensor, steps: int) -> Tensor:
    """Return `steps` + 1 places whose largest error is about the least, (steps + 1,)."""
    low, high = 0.0, float(errors.triu().max()) * 2 + 1e-300
    best = _greedy(errors, high)
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5 if low > 0 else high * 1e-3
        found = _greedy(errors, middle)
        if len(found) - 1 <= steps:
            high, best = middle, found
        else:
            low = middle
    while len(best) - 1 < steps:  # ties, or steps that cannot be longer: halve the worst one that can be
        pairs = list(pairwise(best))
        i, j = max((pair for pair in pairs if pair[1] - pair[0] > 1), key=lambda pair: float(errors[pair]))
        best = sorted([*best, (i + j) // 2])
    return torch.tensor(best)


def _greedy(errors: Tensor, most: float) -> list[int]:
    """Return the places of steps as long as their error allows, one cell at the least."""
    found, last = [0], len(errors) - 1
    while found[-1] < last:
        i = found[-1]
        beyond = (errors[i, i + 1 :] > most).nonzero()
        found.append(max(i + 1, i + int(beyond[0, 0])) if len(beyond) else last)
    return found
