r"""What a pilot knows: predictions, plans and advice.

The predicted mean squared error of a plan to the path of the top level on the finest grid is

    tail (level error + step error),    level error = q(e) e,  e = (w - 1)' G (w - 1),

with the plan's weights w, the Gram matrix G of the responses (see :mod:`multilevel_sde.pilot`; off-diagonal entries
shrunk by 5%), q the measured ratio of typical to first-order error, interpolated in the logarithm, the typical step
error, and the tail, the measured ratio of mean to typical error.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from multilevel_sde.allocate import Allocation, allocate, shrink
from multilevel_sde.draw import Draw, independent, systematic
from multilevel_sde.files import write_atomically
from multilevel_sde.ladder import Ladder
from multilevel_sde.plan import Plan, draw_plan
from multilevel_sde.schedule import scale_to_budget

__all__ = ["Advice", "Pilot", "PilotPlan", "Prediction", "Rate", "Rates"]

SHRINKAGE = 0.05
_FORMAT, _VERSION = "multilevel_sde.pilot", 1
_DRAWS = 64  # draws over which the error of random plans is averaged


@dataclass(frozen=True)
class Prediction:
    """Expected error and cost of one trajectory.

    Attributes:
        mse: Mean squared error per number against the top level's path on the finest grid.
        level_mse: The part that comes from leaving out corrections.
        step_mse: The part that comes from the number of steps.
        typical: Mean squared error with each sample's cut at 10 times the median: what most samples show.
        cost: In the ladder's unit.
        seconds: By the measured time of each level.
    """

    mse: float
    level_mse: float
    step_mse: float
    typical: float
    cost: float
    seconds: float


@dataclass(frozen=True)
class PilotPlan:
    """A plan with the grid it is for.

    Attributes:
        plan: Hits and weights for the whole ladder (a level that is left out is never evaluated).
        times: The grid.
        levels: The levels that are evaluated, 0-based.
        predicted: What to expect.
    """

    plan: Plan
    times: Tensor
    levels: tuple[int, ...]
    predicted: Prediction


@dataclass(frozen=True)
class Rate:
    """A regression slope with its 95% confidence interval (infinite with two points)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Rates:
    """Exponents per level, in powers of two, and what they mean.

    Attributes:
        alpha: Decay of the RMS distance of level k to the top one.
        beta: Decay of V_k = E||f^k - f^{k-1}||^2.
        gamma: Growth of the cost.
        cost_exponent: gamma against the RMS error, 2 gamma / beta: the paper's gamma.
        harder_than_monte_carlo: Whether it is above 2, where the multilevel method gains a power.
    """

    alpha: Rate
    beta: Rate
    gamma: Rate
    cost_exponent: float
    harder_than_monte_carlo: bool


@dataclass(frozen=True)
class Advice:
    """What to use at a budget.

    Attributes:
        pays: Whether the multilevel plan is predicted to need less than 0.9 of the cost of the best single level.
        text: The advice in words.
        best: The multilevel plan at the budget.
        em_cost: Cost at which EM on the top level reaches the same error.
        single_cost: Cost at which the best single level (the top one included) reaches it.
        em_steps: Steps of EM on the top level for the same budget.
    """

    pays: bool
    text: str
    best: PilotPlan
    em_cost: float
    single_cost: float
    em_steps: int


@dataclass(frozen=True)
class Pilot:
    """The measurements of :func:`multilevel_sde.pilot`, and what follows from them.

    Attributes:
        costs: Cost of each level.
        unit: Its unit.
        seconds: Seconds of each level per sample.
        times: The candidate grid, M + 1.
        coefficients: The step's coefficient of the estimate, (M,).
        gram: Gram matrix of the responses, index k M + n, ((K - 1) M, (K - 1) M).
        variances: V_k(n), (M, K - 1).
        kurtosis: Of each difference; above 100 a few rare states dominate.
        consistency: |E f^k - E f^{k-1} - E D_k| / |E f^k|, zero to rounding.
        em_errors: Steps -> squared distance of the top level with so many steps to M steps, typical.
        fine_error: The same of M steps to the finest grid, on the cheapest level.
        calibration: Pairs (first-order prediction, measured typical level error).
        tail: Ratio of the mean to the typical squared error.
        cost: What the pilot cost in all, in the ladder's unit.
        samples: Its samples.
    """

    costs: tuple[float, ...]
    unit: str
    seconds: tuple[float, ...]
    times: Tensor
    coefficients: Tensor
    gram: Tensor
    variances: Tensor
    kurtosis: tuple[float, ...]
    consistency: tuple[float, ...]
    em_errors: Mapping[int, float]
    fine_error: float
    calibration: tuple[tuple[float, float], ...]
    tail: float
    cost: float
    samples: int

    # -- facts ----------------------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Number of candidate steps M."""
        return len(self.times) - 1

    @property
    def levels(self) -> int:
        """Number of levels K."""
        return len(self.costs)

    def share(self, samples: int, budget: float) -> float:
        """The pilot's cost as a part of a run of so many samples at a budget each."""
        return self.cost / (samples * budget)

    @cached_property
    def rates(self) -> Rates:
        """Regressions on the level index; the cheapest level's own size does not enter."""
        variances = self.variances.mean(0).clamp_min(1e-300)
        beta = _slope(range(1, self.levels), (-variances.log2()).tolist())
        gamma = _slope(range(self.levels), [math.log2(cost) for cost in self.costs])
        to_top = variances.flip(0).cumsum(0).flip(0)
        alpha = _slope(range(1, self.levels), (-0.5 * to_top.log2()).tolist())
        exponent = 2 * gamma.value / beta.value if beta.value > 0 else math.inf
        return Rates(alpha, beta, gamma, exponent, exponent > 2)

    # -- predictions ----------------------------------------------------------------------------------------------

    def predict(self, what: Plan | PilotPlan | Tensor, draw: Draw = systematic) -> Prediction:
        """Predict error and cost of a plan, or of probabilities (mean over 64 draws).

        Arguments:
            what: A plan, or probabilities (N, K), for N steps that divide M, or N a multiple of M.
            draw: How hits will be drawn from probabilities.

        Raises:
            ValueError: Another number of levels, or of steps.
        """
        if isinstance(what, PilotPlan):
            what = what.plan
        if isinstance(what, Plan):
            if what.samples is not None:
                raise ValueError('"what" is a plan with draws per sample; predict its probabilities instead')
            plans = [what]
        else:
            generator = torch.Generator().manual_seed(0)
            plans = [draw_plan(what, draw, generator=generator, truncate=True) for _ in range(_DRAWS)]
        if plans[0].levels != self.levels:
            raise ValueError(f'"what" has {plans[0].levels} levels, the pilot measured {self.levels}')
        steps = plans[0].steps
        first_order = sum(self.first_order(plan) for plan in plans) / len(plans)
        evaluations = torch.stack([plan.evaluations for plan in plans]).double().mean(0)
        return self._prediction(first_order, steps, evaluations)

    def first_order(self, plan: Plan) -> float:
        """The uncalibrated level error (w - 1)' G (w - 1) of a plan."""
        return first_order_error(shrink(self._gram_for(plan.steps), SHRINKAGE), plan)

    def _prediction(self, first_order: float, steps: int, evaluations: Tensor) -> Prediction:
        level, step = self.tail * self._calibrated(first_order), self.step_error(steps)
        cost = float(evaluations @ torch.tensor(self.costs, dtype=torch.float64))
        seconds = float(evaluations @ torch.tensor(self.seconds, dtype=torch.float64))
        return Prediction(level + step, level, step, (level + step) / self.tail, cost, seconds)

    def step_error(self, steps: int) -> float:
        """Predicted mean squared step error of so many steps of the top level, against the finest grid."""
        known = sorted((n, e) for n, e in self.em_errors.items() if e > 0)
        if steps >= self.steps or not known:
            return self.tail * self.fine_error
        x, y = np.log([n for n, _ in known]), np.log([e for _, e in known])
        return self.tail * (float(np.exp(np.interp(math.log(steps), x, y))) + self.fine_error)

    def _calibrated(self, first_order: float) -> float:
        if not self.calibration or first_order <= 0:
            return first_order
        pairs = sorted((p, m / p) for p, m in self.calibration if p > 0 and m > 0)
        if not pairs:
            return first_order
        ratio = np.interp(math.log(first_order), np.log([p for p, _ in pairs]), np.log([r for _, r in pairs]))
        return first_order * math.exp(float(ratio))

    def _gram_for(self, steps: int) -> Tensor:
        """Gram matrix for a grid of so many steps: a sub-grid of the candidates, or each shared by several steps."""
        if steps % self.steps == 0:
            return self.gram
        if self.steps % steps:
            raise ValueError(
                f'"what" has {steps} steps, the pilot has {self.steps} candidates; one must divide the other'
            )
        stride = self.steps // steps
        coarse = torch.tensor([self._span(n * stride, stride) for n in range(steps)], dtype=torch.float64)
        share = (coarse / self.coefficients[::stride]).repeat(self.levels - 1)
        keep = torch.arange(len(self.gram)).reshape(self.levels - 1, self.steps)[:, ::stride].reshape(-1)
        return self.gram[keep][:, keep] * torch.outer(share, share)

    def _span(self, first: int, stride: int) -> float:
        """Coefficient of a step over several candidates, taken as the sum of theirs."""
        return float(self.coefficients[first : first + stride].sum())

    # -- plans ----------------------------------------------------------------------------------------------------

    def plan(self, *, budget: float | None = None, target_mse: float | None = None) -> PilotPlan:
        """Return the deterministic plan with greedily chosen hits and optimal weights.

        The levels (any that contain the top one) and the number of steps (M, M/2, M/4) are chosen too.

        Arguments:
            budget: Cost of one trajectory in the ladder's unit.
            target_mse: Mean squared error to reach, instead of a budget.

        Raises:
            ValueError: Neither or both; a budget below what the cheapest plan costs, or a target that no budget
                reaches (the message says what is reachable).
        """
        if (budget is None) == (target_mse is None):
            raise ValueError(f'give exactly one of "budget" and "target_mse", got {budget} and {target_mse}')
        if target_mse is not None:
            return self._plan_for(target_mse)
        assert budget is not None
        best: PilotPlan | None = None
        for curve in self._curves:
            plan = curve.within(budget)
            if plan is not None and (best is None or plan.predicted.mse < best.predicted.mse):
                best = plan
        if best is None:
            lowest = min(curve.base_cost for curve in self._curves)
            raise ValueError(f'"budget" must be at least {lowest:.6g} {self.unit}, got {budget}')
        return best

    def _plan_for(self, target: float) -> PilotPlan:
        ceiling = self.steps * self.costs[-1]
        if not target > 0 or self.plan(budget=ceiling).predicted.mse > target:
            raise ValueError(
                f'"target_mse" is {target}, the best reachable with {self.steps} candidate steps is '
                f"{self.plan(budget=ceiling).predicted.mse:.3g}; run a pilot with more candidates"
            )
        low, high = min(curve.base_cost for curve in self._curves), ceiling
        for _ in range(40):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if self.plan(budget=middle).predicted.mse <= target else (middle, high)
        return self.plan(budget=high)

    @cached_property
    def _curves(self) -> list[_Curve]:
        subsets = [
            (*chosen, self.levels - 1)
            for size in range(1, self.levels)
            for chosen in combinations(range(self.levels - 1), size)
        ]
        strides = [stride for stride in (1, 2, 4) if self.steps % stride == 0 and self.steps // stride >= 8]
        return [_Curve(self, subset, self.steps // stride) for stride in strides for subset in subsets]

    def schedule(self, *, budget: float, draw: Draw = systematic) -> Tensor:
        """Return probabilities for `pilot.times`, float64 (M, K), whose expected cost is the budget.

        For independent draws p_k(n) proportional to sqrt(G_k(n, n) / (T_k + T_{k-1})) is optimal. For systematic
        draws what counts is how fast the responses change: a gap of 1/p steps leaves an error that grows with the mean
        squared change q_k(n) per step, which gives p_k(n) proportional to (q_k(n) / (T_k + T_{k-1}))^{1/3}. Both
        shapes and 1/T are tried, and the one with the smallest predicted error for the draw is returned.

        Raises:
            ValueError: The budget cannot be met (see :func:`multilevel_sde.scale_to_budget`).
        """
        ladder = Ladder([_no_drift] * self.levels, self.costs)
        pairs = torch.tensor([a + b for a, b in pairwise(self.costs)], dtype=torch.float64)
        blocks = self.gram.reshape(self.levels - 1, self.steps, self.levels - 1, self.steps)
        power = torch.stack([blocks[k, :, k].diagonal() for k in range(self.levels - 1)], dim=1)
        lag = torch.stack([blocks[k, :, k].diagonal(1) for k in range(self.levels - 1)], dim=1)
        change = (power[1:] + power[:-1] - 2 * lag).clamp_min(0)
        change = torch.cat([change[:1], change])
        floor = 1e-6 * power.max()
        shapes = [((power + floor) / pairs).sqrt()]
        if draw is not independent:
            shapes += [((change + floor) / pairs).pow(1 / 3), (1 / pairs).expand_as(power)]
        tables = [
            scale_to_budget(ladder, torch.cat([torch.ones(self.steps, 1, dtype=torch.float64), shape], 1), budget, draw)
            for shape in shapes
        ]
        return min(tables, key=lambda table: self.predict(table, draw).mse)

    # -- advice ---------------------------------------------------------------------------------------------------

    def em_cost(self, mse: float) -> float:
        """Cost at which Euler-Maruyama on the top level reaches a mean squared error (infinite if never here)."""
        known = sorted((n, self.tail * (e + self.fine_error)) for n, e in self.em_errors.items())
        for (n, e), (m, d) in pairwise(known):
            if d <= mse <= e:
                part = (math.log(e) - math.log(mse)) / max(math.log(e) - math.log(d), 1e-12) if d > 0 else 1.0
                return self.costs[-1] * math.exp(math.log(n) + part * (math.log(m) - math.log(n)))
        return self.costs[-1] * known[0][0] if mse > known[0][1] else math.inf

    def single_cost(self, mse: float) -> float:
        """Cost at which the best single level reaches a mean squared error."""
        best = self.em_cost(mse)
        for level in range(self.levels - 1):
            weights = torch.zeros(self.levels - 1, self.steps, dtype=torch.float64)
            weights[level:] = 1.0
            bias = float(weights.reshape(-1) @ self.gram @ weights.reshape(-1))
            for steps in sorted(self.em_errors):
                if bias + self.step_error(steps) <= mse:
                    best = min(best, steps * self.costs[level])
                    break
        return best

    def advise(self, *, budget: float) -> Advice:
        """Say which levels, steps and plan to use at a budget and what it saves, or that the ladder does not pay."""
        best = self.plan(budget=budget)
        em, single = self.em_cost(best.predicted.mse), self.single_cost(best.predicted.mse)
        steps = max(1, int(budget // self.costs[-1]))
        pays = best.predicted.cost < 0.9 * single
        if pays:
            levels = ", ".join(str(level + 1) for level in best.levels)
            text = (
                f"Use levels {levels} with {best.plan.steps} steps: expected mean squared error "
                f"{best.predicted.mse:.3g} at cost {best.predicted.cost:.3g} {self.unit}; Euler-Maruyama on the "
                f"top level needs {em / best.predicted.cost:.2g} times as much"
                + ("." if single == em else f", the best single level {single / best.predicted.cost:.2g} times.")
            )
        else:
            text = (
                f"This ladder does not pay here: use the best single level, such as f^{self.levels} with {steps} steps."
            )
        return Advice(pays, text, best, em, single, steps)

    # -- files ----------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the pilot atomically as safetensors (needs safetensors)."""
        from safetensors.torch import save

        tensors = {name: getattr(self, name).contiguous() for name in _TENSORS}
        tensors["gram"] = tensors["gram"].float()
        values = {name: getattr(self, name) for name in _VALUES} | {"em_errors": list(self.em_errors.items())}
        write_atomically(
            path, save(tensors, {"format": _FORMAT, "version": str(_VERSION), "values": json.dumps(values)})
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Pilot:
        """Read a pilot written by :meth:`save`.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is damaged, not a pilot, or of another version.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise FileNotFoundError(f'no pilot file at "{path}"')
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata.get("format") != _FORMAT or metadata.get("version") != str(_VERSION):
                raise ValueError(f'"{path}" is not a pilot of version {_VERSION}; run the pilot again')
            values = json.loads(metadata["values"])
            tuples = {name: tuple(values[name]) for name in ("costs", "seconds", "kurtosis", "consistency")}
            scalars = {name: values[name] for name in ("unit", "fine_error", "tail", "cost", "samples")}
            return cls(
                **{name: tensors[name].double() for name in _TENSORS},
                **tuples,
                **scalars,
                em_errors={int(n): float(e) for n, e in values["em_errors"]},
                calibration=tuple((float(p), float(m)) for p, m in values["calibration"]),
            )
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f'"{path}" is damaged ({error}); run the pilot again') from None


_TENSORS = ("times", "coefficients", "gram", "variances")
_VALUES = (
    "costs",
    "unit",
    "seconds",
    "kurtosis",
    "consistency",
    "fine_error",
    "calibration",
    "tail",
    "cost",
    "samples",
)


class _Curve:
    """Error against cost for one choice of levels and steps: one greedy run, cut where a budget ends."""

    def __init__(self, pilot: Pilot, levels: tuple[int, ...], steps: int):
        self.pilot, self.levels, self.steps = pilot, levels, steps
        self.base_cost = steps * pilot.costs[levels[0]]

    @cached_property
    def allocation(self) -> Allocation:
        """The greedy picks up to the cost of the top level at every step."""
        gram = self.pilot._gram_for(self.steps)
        blocks = gram.reshape(self.pilot.levels - 1, self.steps, self.pilot.levels - 1, self.steps)
        merged = [blocks[low:high, :, low:high].sum((0, 2)) for low, high in pairwise(self.levels)]
        needs, prices = adjacent_needs([self.pilot.costs[level] for level in self.levels], self.steps)
        total = self.steps * self.pilot.costs[-1] - self.base_cost
        return allocate(shrink(torch.block_diag(*merged), SHRINKAGE), needs, prices, total)

    def within(self, budget: float) -> PilotPlan | None:
        """The best plan that costs at most the budget."""
        pilot = self.pilot
        if self.base_cost > budget * (1 + 1e-9):
            return None
        count = self.allocation.count_within(budget - self.base_cost)
        few = plan_of(self.allocation.weights(count), self.steps, len(self.levels))
        weights = torch.zeros(self.steps, pilot.levels, dtype=torch.float64)
        weights[:, : self.levels[0] + 1] = 1.0
        for place, (low, high) in enumerate(pairwise(self.levels)):
            weights[:, low + 1 : high + 1] = few.weights[:, place + 1 : place + 2]
        plan = Plan(weights != 0, weights)
        stride = pilot.steps // self.steps
        predicted = pilot._prediction(pilot.first_order(plan), self.steps, plan.evaluations.double())
        return PilotPlan(plan, pilot.times[::stride].clone(), self.levels, predicted)


def adjacent_needs(costs: tuple[float, ...] | list[float], steps: int) -> tuple[Tensor, Tensor]:
    """What observing D_k(n) takes: networks k and k - 1 at step n, the lowest being evaluated anyway.

    Returns:
        needs, int64 ((K - 1) M, 2), and the prices of the K M evaluations, index k M + n.
    """
    levels = len(costs)
    prices = torch.tensor(costs, dtype=torch.float64)[:, None].repeat(1, steps)
    prices[0] = 0.0
    index = torch.arange(levels * steps).reshape(levels, steps)
    return torch.stack([index[1:], index[:-1]], dim=-1).reshape(-1, 2), prices.reshape(-1)


def first_order_error(gram: Tensor, plan: Plan) -> float:
    """(w - 1)' G (w - 1) with index k M + n; where several steps share a response, their weights are averaged."""
    levels = plan.levels - 1
    weights = plan.weights[:, 1:].reshape(len(gram) // levels, -1, levels).mean(1)
    left_out = weights.T.reshape(-1) - 1
    return float(left_out @ gram @ left_out)


def plan_of(weights: Tensor, steps: int, levels: int) -> Plan:
    """The plan with these weights on the corrections, index k M + n, and the lowest level at every step."""
    table = torch.ones(steps, levels, dtype=torch.float64)
    table[:, 1:] = weights.reshape(levels - 1, steps).T
    return Plan(table != 0, table)


def _no_drift(x: Tensor, t: Tensor) -> Tensor:
    return torch.zeros_like(x)


def _slope(x: range, y: list[float]) -> Rate:
    """Least-squares slope with its 95% interval by Student's t."""
    if len(x) < 2:
        return Rate(math.nan, -math.inf, math.inf)
    fit: Any = stats.linregress(list(x), y)
    if len(x) == 2:
        return Rate(float(fit.slope), -math.inf, math.inf)
    half = float(stats.t.ppf(0.975, len(x) - 2) * fit.stderr)
    return Rate(float(fit.slope), float(fit.slope) - half, float(fit.slope) + half)
