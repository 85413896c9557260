"""What one evaluation of a drift costs: given, counted in FLOPs, or measured in seconds.

A cost model is a callable `model(drifts) -> list of floats`, one positive number per drift. Every budget, plan
and saving in this library is in the unit of the ladder's cost model.

References:
    Jacot, "Polynomial Speedup in Diffusion Models with the Multilevel Euler-Maruyama Method", 2026 (Assumption 1).
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from multilevel_sde.arguments import as_number
from multilevel_sde.conditions import Conditions, as_conditions, naming_arguments
from multilevel_sde.times import device_dtype

__all__ = ["CostModel", "Drift", "FlopCost", "GivenCost", "SecondsCost"]

Drift = Callable[..., Tensor]  # f(x, t) -> Tensor shaped like x, or f(x, t, **conditions)


class CostModel(Protocol):
    """Anything that prices drifts: `model(drifts)` returns one positive number per drift; `unit` names its unit."""

    @property
    def unit(self) -> str:
        """The unit of the numbers, for reports."""
        ...

    def __call__(self, drifts: Sequence[Drift]) -> list[float]:
        """Price every drift."""
        ...


@dataclass(frozen=True)
class GivenCost:
    """Costs that the user knows.

    Arguments:
        costs: One positive number per drift, in any unit.
        unit: The name of that unit, for reports.

    Raises:
        ValueError: The number of costs is not the number of drifts.

    Example:
        >>> GivenCost([1.0, 8.0])([torch.sin, torch.cos])
        [1.0, 8.0]
    """

    costs: Sequence[float]
    unit: str = "units"

    def __call__(self, drifts: Sequence[Drift]) -> list[float]:
        """Return the given costs."""
        if len(self.costs) != len(drifts):
            raise ValueError(
                f'"costs" has {len(self.costs)} entries for {len(drifts)} drifts; give exactly one cost per drift'
            )
        return [as_number(f"costs[{level}]", cost) for level, cost in enumerate(self.costs)]


@dataclass(frozen=True)
class FlopCost:
    """Floating-point operations of one evaluation, counted by torch's `FlopCounterMode`.

    The counter sees matrix products, convolutions and attention (a multiply-add is two operations); a drift made of
    pointwise operations only counts zero and is refused, because its cost is not FLOPs. Attention is counted by its
    matrix products: the counter does not see a CPU's fused kernel.

    Arguments:
        x: An example state; the cost is of one call on it (use a batch of one to price one sample).
        t: The time passed along.
        conditions: As for :func:`solve`, with one row for each sample of x.

    Raises:
        TypeError, ValueError: x is no tensor; a drift has no countable operation; conditions that do not fit x.

    Example:
        >>> layer = torch.nn.Linear(8, 8, bias=False)
        >>> FlopCost(torch.zeros(1, 8))([lambda x, t: layer(x)])
        [128.0]
    """

    x: Tensor
    t: float = 0.5
    conditions: Conditions | None = None

    unit = "FLOPs"

    def __post_init__(self) -> None:
        _check_state(self.x)
        as_conditions(self.conditions, self.x)

    def __call__(self, drifts: Sequence[Drift]) -> list[float]:
        """Count the operations of one call of every drift."""
        t, given = _time_on(self.t, self.x), as_conditions(self.conditions, self.x)
        costs = []
        for level, drift in enumerate(drifts):
            with (
                naming_arguments(level, drift, given),
                sdpa_kernel(SDPBackend.MATH),
                FlopCounterMode(display=False) as counter,
            ):
                drift(self.x, t, **given)
            if counter.get_total_flops() == 0:
                raise ValueError(
                    f'"drifts[{level}]" has no operation that the FLOP counter sees (matrix product, convolution, '
                    "attention); price it with GivenCost or SecondsCost"
                )
            costs.append(float(counter.get_total_flops()))
        return costs


@dataclass(frozen=True)
class SecondsCost:
    """Seconds of one evaluation: the median of timed calls after a warm-up.

    On a GPU the calls are timed with events on the state's device. Seconds depend on the batch, on the machine and on
    whether a graph is made, so measure with the state that will be solved, and inside torch.no_grad() what will be
    solved there.

    Arguments:
        x: An example state, batch included.
        t: The time passed along.
        calls: Number of timed calls.
        warmup: Number of calls before them.
        conditions: As for :func:`solve`, with one row for each sample of x.

    Raises:
        TypeError, ValueError: x is no tensor; `calls` is below 1 or `warmup` below 0; conditions that do not fit x.

    Example:
        >>> layer = torch.nn.Linear(64, 64)
        >>> seconds, = SecondsCost(torch.zeros(4, 64), calls=3)([lambda x, t: layer(x)])
        >>> 0 < seconds < 1
        True
    """

    x: Tensor
    t: float = 0.5
    calls: int = 10
    warmup: int = 3
    conditions: Conditions | None = None

    unit = "seconds"

    def __post_init__(self) -> None:
        _check_state(self.x)
        if self.calls < 1 or self.warmup < 0:
            raise ValueError(
                f'"calls" must be at least 1 and "warmup" at least 0, got calls={self.calls}, warmup={self.warmup}'
            )
        as_conditions(self.conditions, self.x)

    def __call__(self, drifts: Sequence[Drift]) -> list[float]:
        """Time every drift."""
        medians = []
        for level, drift in enumerate(drifts):
            with naming_arguments(level, drift, self.conditions):
                medians.append(self._median(drift))
        return medians

    def _median(self, drift: Drift) -> float:
        t, given = _time_on(self.t, self.x), as_conditions(self.conditions, self.x)
        for _ in range(self.warmup):
            drift(self.x, t, **given)
        if self.x.device.type != "cuda":
            seconds = []
            for _ in range(self.calls):
                start = time.perf_counter()
                drift(self.x, t, **given)
                seconds.append(time.perf_counter() - start)
            return statistics.median(seconds)
        events = [torch.cuda.Event(enable_timing=True) for _ in range(self.calls + 1)]
        events[0].record()
        for event in events[1:]:
            drift(self.x, t, **given)
            event.record()
        torch.cuda.synchronize(self.x.device)
        return statistics.median(a.elapsed_time(b) / 1000 for a, b in itertools.pairwise(events))


def rising(costs: Sequence[float]) -> list[float]:
    """Return costs that strictly increase: a level that is as expensive as a better one gets no cheaper by it.

    Measured costs need not increase. Each is raised to just above the one before, so that no plan uses the level below.

    Example:
        >>> rising([2.0, 1.0, 5.0])
        [2.0, 2.000002, 5.0]
    """
    found = [float(costs[0])]
    for cost in costs[1:]:
        found.append(max(float(cost), found[-1] * (1 + 1e-6)))
    return found


def _check_state(x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f'"x" must be a Tensor, an example of the state, got {type(x).__name__}')


def _time_on(t: float, x: Tensor) -> Tensor:
    return torch.full((), t, dtype=device_dtype(torch.float64, x.device), device=x.device)
