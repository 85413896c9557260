r"""The limit of small steps: corrections at random times, whose number does not depend on the grid.

With p_k = eta lambda_k and step size eta -> 0, the hits of level k become the jumps of a Poisson process of rate
lambda_k(t), and the multilevel path solves

    dy = f^1(y, t) dt + sum_{k>1} (f^k - f^{k-1})(y, t) dN_k(t) / lambda_k(t) + g dW,

so that E[dN_k / lambda_k] = dt: the mean drift is f^K. A trajectory costs int lambda_k dt corrections of level k,
whatever integrates f^1 between them. Two kinds of arrivals are on offer: Poisson, and evenly spread ones, at equal
quantiles of the integrated rate behind a random phase (the systematic draw's limit).

Jump times lie on a finest grid tau_0, tau_1, ... that contains the base grid, by default 1 024 000 equal cells; N_j
jumps fall into cell j, m_j in the mean (the rate in its middle times its length). A jump is paid out by the step from
its cell's start tau_j to the next time s of the united grid, with the weight

    w = N_j (a(tau_j, s) - a(tau_{j+1}, s)) / (m_j a(tau_j, s)),

a(t, s) the step's coefficient of the estimate. The numerator is what the cell alone contributes to the state at s,
where steps compose (Euler: s - t; exponential steps: their coefficient of the data), so that E[N_j] = m_j makes the
mean of the sum over cells exactly that of steps of one cell each. For Euler w = N_j / (lambda |s - tau_j|).

References:
    Jacot 2026, section 2 (the limit of small steps); Paing and Jacot 2026, section 3.1; Cox and Isham,
    "Point Processes", 1980.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multilevel_sde.noise.trees import TICKS
from multilevel_sde.plans.drawing import check_probabilities
from multilevel_sde.plans.plan import Plan
from multilevel_sde.times import as_times, places_on

__all__ = ["Arrivals", "PoissonPlan", "Rate", "even_arrivals", "jump_rates", "poisson_arrivals", "poisson_plan"]

Arrivals = Callable[[float, torch.Generator], Tensor]
Rate = float | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class PoissonPlan:
    """A plan with the grid it is for.

    Attributes:
        plan: Hits and weights on `times`.
        times: The base grid united with the jump times, float64 (N + 1,).
        jumps: The times of the jumps of each correction, in order: f^2 - f^1 first.
    """

    plan: Plan
    times: Tensor
    jumps: tuple[Tensor, ...]


def poisson_arrivals(total: float, generator: torch.Generator) -> Tensor:
    """Return the points of a Poisson process of rate 1 in [0, total), in order, float64.

    Example:
        >>> poisson_arrivals(3.0, torch.Generator().manual_seed(0)).dtype
        torch.float64
    """
    mean = torch.tensor(total, dtype=torch.float64, device=generator.device)
    count = int(torch.poisson(mean, generator=generator))
    return (
        (total * torch.rand(count, generator=generator, dtype=torch.float64, device=generator.device)).cpu().sort()[0]
    )


def even_arrivals(total: float, generator: torch.Generator) -> Tensor:
    """Return u, u + 1, u + 2, ... below `total` for a uniform phase u, float64: between total - 1 and total + 1 points.

    Example:
        >>> even_arrivals(3.0, torch.Generator().manual_seed(0)).diff()
        tensor([1., 1.], dtype=torch.float64)
    """
    phase = float(torch.rand((), generator=generator, dtype=torch.float64, device=generator.device))
    points = phase + torch.arange(int(total) + 1, dtype=torch.float64)
    return points[points < total]


def jump_rates(probabilities: Tensor, times: Tensor | Sequence[float]) -> list[Rate]:
    """Return the rates lambda_k(t) = p_k(n) / |t_{n+1} - t_n| within step n, of a table of probabilities.

    As many corrections are then expected as with draws from the table, sure hits included (which are random here).

    Arguments:
        probabilities: p_k(n), (N, K), from any schedule.
        times: The table's N + 1 times.

    Raises:
        ValueError: See :func:`multilevel_sde.plans.drawing.check_probabilities`; another number of steps than in
            `times`.

    Example:
        >>> rate, = jump_rates(torch.tensor([[1.0, 0.5], [1.0, 0.25]]), [0.0, 0.5, 1.0])
        >>> rate(torch.tensor([0.1, 0.9], dtype=torch.float64))
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    grid, table = as_times(times).double(), check_probabilities(probabilities)
    if len(table) != len(grid) - 1:
        raise ValueError(
            f'"probabilities" has {len(table)} steps, "times" has {len(grid) - 1}; give the table\'s times'
        )
    rates = table[:, 1:] / grid.diff().abs()[:, None]
    return [_StepwiseRate(column.contiguous(), grid) for column in rates.unbind(1)]


@dataclass(frozen=True)
class _StepwiseRate:
    """A rate that is constant within the steps of a grid."""

    values: Tensor
    grid: Tensor

    def __call__(self, t: Tensor) -> Tensor:
        sign = 1.0 if self.grid[1] > self.grid[0] else -1.0
        return self.values[torch.searchsorted(sign * self.grid[1:-1], sign * t, right=True)]


def _duration(t: float, s: float) -> float:
    return s - t


def poisson_plan(
    rates: Sequence[Rate],
    times: Tensor | Sequence[float],
    *,
    generator: torch.Generator,
    arrivals: Arrivals = poisson_arrivals,
    coefficient: Callable[[float, float], float] = _duration,
    finest: Tensor | Sequence[float] | None = None,
) -> PoissonPlan:
    """Draw a plan whose corrections come at random times, and the grid for it.

    The lowest level runs at every time of the united grid. One draw is shared by the batch. With a
    :class:`multilevel_sde.BrownianPath` on [0, 1] the default resolution is that of its stated grid, so every plan sees
    the same path; otherwise give the noise's grid as `finest`, or the noise `grid=` the times of the plan. For a step
    rule with several evaluations a step, repeat the plan's rows: `Plan(plan.hits[rows], plan.weights[rows])` with
    `rows = plan_rows(rule, times)`.

    Arguments:
        rates: lambda_k of the corrections k = 2 ... K, each a number or a function of a float64 tensor of times, in
            jumps per unit of time; positive, or the correction would be left out there.
        times: The base grid, N + 1 monotone times.
        generator: Source of the jumps.
        arrivals: `poisson_arrivals`, or `even_arrivals` with much less variance.
        coefficient: a(t, s), how much of the estimate enters the state in a step from t to s; by default Euler's s - t.
            For an exponential step `lambda t, s: step.coefficients(t, s).data`.
        finest: Monotone times that jumps may lie on, among them all of `times`; by default 1 024 000 equal cells.

    Returns:
        A :class:`PoissonPlan`.

    Raises:
        TypeError: `generator` is no generator.
        ValueError: No rates; a rate that is not positive and finite, or of another shape than its times; a base grid
            that is not part of `finest`, or too fine for the default cells; a coefficient that does not grow.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder = mls.Ladder([lambda y, t: -y, lambda y, t: -torch.sin(y)], costs=[1.0, 8.0])
        >>> drawn = mls.poisson_plan([23.0], torch.linspace(0.0, 1.0, 11), arrivals=mls.even_arrivals,
        ...                          generator=torch.Generator().manual_seed(0))
        >>> drawn.plan.evaluations, len(drawn.jumps[0])
        (tensor([33, 23]), 23)
        >>> mls.solve(ladder, torch.ones(4), drawn.times, drawn.plan, diffusion=0.1,
        ...           brownian=mls.BrownianPath(range(4))).y.shape
        torch.Size([4])
    """
    if not isinstance(generator, torch.Generator):
        raise TypeError(f'"generator" must be a torch.Generator, got {type(generator).__name__}; make one with a seed')
    if not len(rates):
        raise ValueError('"rates" is empty; give one rate for each level above the lowest')
    fine, base = _finest(as_times(times).double(), finest)
    middles, lengths = 0.5 * (fine[1:] + fine[:-1]), fine.diff().abs()
    means = [_checked_rate(rate, middles, k) * lengths for k, rate in enumerate(rates)]
    cells = []
    for mean in means:
        sums = mean.cumsum(0)
        points = arrivals(float(sums[-1]), generator)
        cells.append(torch.searchsorted(sums, points, right=True).clamp_max(len(mean) - 1))
    united = torch.cat([base, *cells]).unique()
    weights = torch.ones(len(united) - 1, 1 + len(rates), dtype=torch.float64)
    for k, (mean, jumps) in enumerate(zip(means, cells, strict=True), start=1):
        hit, counts = jumps.unique(return_counts=True)
        rows = torch.searchsorted(united, hit)
        moments = zip(fine[hit].tolist(), fine[hit + 1].tolist(), fine[united[rows + 1]].tolist(), strict=True)
        paid = torch.tensor([_paid(coefficient, *three) for three in moments], dtype=torch.float64)
        weights[:, k] = 0.0
        weights[rows, k] = paid * counts / mean[hit]
    return PoissonPlan(Plan(weights != 0, weights), fine[united], tuple(fine[jumps] for jumps in cells))


def _finest(grid: Tensor, finest: Tensor | Sequence[float] | None) -> tuple[Tensor, Tensor]:
    """Return the cells' ends in the order of the grid, and the base grid's places among them."""
    sign = 1.0 if grid[1] > grid[0] else -1.0
    up = sign * grid
    if finest is None:
        fine = torch.linspace(float(up[0]), float(up[-1]), TICKS + 1, dtype=torch.float64)
        base = ((up - up[0]) * (TICKS / (up[-1] - up[0]))).round().long()
        if not bool(base.diff().all()):
            raise ValueError(
                f'"times" has steps below {float(fine[1] - fine[0]):.3g}, a {TICKS}th of their whole length; give a '
                'grid of cells as "finest"'
            )
        fine[base] = up
        return sign * fine, base
    given = as_times(finest).double()
    fine = sign * given if (given[1] > given[0]) == (sign > 0) else (sign * given).flip(0)
    base = places_on(fine, up)
    return sign * fine[base[0] : base[-1] + 1], base - base[0]


def _checked_rate(rate: Rate, times: Tensor, k: int) -> Tensor:
    found = torch.as_tensor(rate(times) if callable(rate) else rate, dtype=torch.float64)
    if found.dim() and found.shape != times.shape:
        raise ValueError(
            f'"rates[{k}]" must return one rate for each of {len(times)} times, got shape {tuple(found.shape)}'
        )
    if not 0.0 < float(found.min()) <= float(found.max()) < float("inf"):
        raise ValueError(
            f'"rates[{k}]" must be positive and finite, got {float(found.min())} to {float(found.max())}; a small rate '
            "costs next to nothing"
        )
    return found


def _paid(coefficient: Callable[[float, float], float], start: float, end: float, following: float) -> float:
    """The part of a step from `start` to `following` that is due to its first cell."""
    whole = float(coefficient(start, following))
    rest = float(coefficient(end, following)) if end != following else 0.0
    part = (whole - rest) / whole if whole else float("nan")
    if not 0.0 < part < float("inf"):
        raise ValueError(
            f'"coefficient" is {whole:.6g} from {start:.6g} to {following:.6g} and {rest:.6g} from {end:.6g}, expected '
            "it to grow with the step and keep its sign; give the step's own coefficient of the estimate"
        )
    return part
