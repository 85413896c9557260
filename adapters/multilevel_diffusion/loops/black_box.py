r"""A pilot for samplers that cannot be looked into: only their calls of the network and their final states are seen.

The sampler runs once with the top level's outputs; every level is evaluated at its states x_n, and the corrections
D_k(n) = f^k - f^{k-1} are kept. Then, for every call n and level k, it runs with

    F(m) = f^K(x_m) for m < n,    f^K(x_n) + D_k(n) for m = n,    f^1(x'_m) + f^K(x_m) - f^1(x_m) for m > n,

the cheapest level around the recorded path, perturbed once. The change of the final state is the response R_k(n) of
:mod:`multilevel_sde.pilots.allocation`, with the sampler's own coefficients in it, whatever its order and
parameterisation. Two sizes of plans, made from one half of the samples and judged on the other, calibrate the
prediction.

The sampler must repeat its noise in every run, and make the same calls.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

import multilevel_sde as mls
from multilevel_diffusion.loops.rows import PlannedRows, combine
from multilevel_sde.pilots.answers import Calibration, Form, Single
from multilevel_sde.pilots.trial import typical

__all__ = ["Answer", "black_box_pilot", "planned"]

Answer = Callable[[int, Callable[[int], Tensor]], Tensor]
"""answer(n, evaluate) -> what the network is said to return at call n; evaluate(k) is the output of level k there."""

_CALIBRATED = (0.1, 0.3)  # cost of the corrections in the plans that are run, relative to the top level at every call
_LEAST_CALLS = 8


def black_box_pilot(
    run: Callable[[Answer], Tensor], ladder: mls.Ladder, *, candidates: int | None = None, progress: bool = False
) -> mls.Pilot:
    """Measure a ladder inside a sampler.

    Arguments:
        run: Runs the sampler, always with the same noise, each of its calls of the network answered by the argument;
            returns the final states of at least 2 samples, (S, ...).
        ladder: The costs of K levels; the levels themselves are reached through `evaluate`.
        candidates: Perturb so many calls only; the responses in between are interpolated. By default all.
        progress: Show a progress bar.

    Returns:
        A pilot whose times are the numbers of the calls. Plans for fewer calls were not measured and are not proposed.

    Raises:
        ValueError: Fewer than 2 levels, 2 samples, 2 candidates or 8 calls; equal levels; a state that is not finite;
            a sampler whose calls differ from run to run.

    Example:
        >>> ladder = mls.Ladder([lambda x: -0.9 * x, lambda x: -x], costs=[1.0, 10.0])
        >>> def euler(answer):
        ...     x = torch.linspace(1.0, 2.0, 4)[:, None]
        ...     for n in range(20):
        ...         x = x + 0.05 * answer(n, lambda level, x=x: ladder.drifts[level](x))
        ...     return x
        >>> pilot = black_box_pilot(euler, ladder)
        >>> pilot.steps, pilot.plan(budget=60.0).plan.evaluations.tolist()
        (20, [20, 4])
    """
    if len(ladder) < 2:
        raise ValueError('"ladder" has one level; a pilot needs at least 2, one of them cheaper')
    if candidates is not None and candidates < 2:
        raise ValueError(f'"candidates" must be at least 2, got {candidates}')
    record = _Record(len(ladder))
    final = _checked(run(record))
    visited = sorted({call.index for call in record.calls})
    steps = visited[-1] + 1 if visited else 0
    if len(visited) < _LEAST_CALLS:
        raise ValueError(f"the sampler makes {len(visited)} calls, a pilot needs at least {_LEAST_CALLS}; take more")
    chosen = torch.linspace(0, len(visited) - 1, min(candidates or len(visited), len(visited))).round().long().tolist()
    perturbed = [visited[place] for place in chosen]
    responses, replayed = _responses(run, record.calls, perturbed, final, progress)
    spread = _interpolation(visited, perturbed, len(ladder) - 1)
    grams = [spread @ _gram(responses[:, half::2]) @ spread.T for half in (0, 1)]
    share = len(final[0::2]) / len(final)
    gram = share * grams[0] + (1 - share) * grams[1]
    if float(gram.diagonal().max()) == 0:
        raise ValueError('"ladder" has levels that are equal along the path; there is nothing to correct')
    variances, kurtosis = record.moments(steps)
    pilot = mls.Pilot(
        costs=ladder.costs,
        unit=ladder.unit,
        seconds=tuple(seconds / (len(visited) * len(final)) for seconds in record.seconds),
        times=torch.arange(steps + 1, dtype=torch.float64),
        coefficients=torch.ones(steps, dtype=torch.float64),
        gram=gram,
        variances=variances,
        kurtosis=kurtosis,
        random_levels=(),
        fine_times=torch.arange(steps + 1, dtype=torch.float64),
        singles=(Single(len(ladder) - 1, steps, False, 0.0, 1.0),),
        calibration=(),
        cost=len(final) * (len(visited) * sum(ladder.costs) + replayed * ladder.costs[0]),
        samples=len(final),
    )
    return _calibrated(run, ladder, pilot, grams, final)


def planned(pilot: mls.Pilot, ladder: mls.Ladder, budget_fraction: float) -> mls.Plan:
    """Return the pilot's plan at a fraction of the cost of the top level at every call, by the ladder's costs."""
    priced = replace(pilot, costs=ladder.costs, unit=ladder.unit)
    return priced.plan(budget=budget_fraction * pilot.steps * ladder.costs[-1], memory=False).plan


@dataclass(frozen=True)
class _Call:
    """A call of the network in the recorded run; tensors on the CPU, in float32 or more."""

    index: int
    top: Tensor
    differences: Tensor  # (K - 1, ...)
    device: torch.device
    dtype: torch.dtype


class _Record:
    """Answers with the top level and keeps what every level said."""

    def __init__(self, levels: int):
        self.calls: list[_Call] = []
        self.seconds = [0.0] * levels

    def __call__(self, index: int, evaluate: Callable[[int], Tensor]) -> Tensor:
        values, output = [], torch.empty(0)
        for level in range(len(self.seconds)):
            start = time.perf_counter()
            output = evaluate(level).detach()
            values.append(output.cpu().to(torch.promote_types(output.dtype, torch.float32)))
            self.seconds[level] += time.perf_counter() - start
        stacked = torch.stack(values)
        self.calls.append(_Call(index, values[-1], stacked[1:] - stacked[:-1], output.device, output.dtype))
        return output

    def moments(self, steps: int) -> tuple[Tensor, tuple[float, ...]]:
        """V_k(n), (steps, K - 1), and the kurtosis of every difference."""
        sums = torch.zeros(2, steps, len(self.seconds) - 1, dtype=torch.float64)
        counts = torch.zeros(steps, dtype=torch.float64)
        for call in self.calls:
            values = call.differences.double().flatten(1)
            sums[:, call.index] += torch.stack([values.pow(power).mean(1) for power in (2, 4)])
            counts[call.index] += 1
        variance, fourth = sums / counts.clamp_min(1)[:, None]
        kurtosis = fourth.mean(0) / variance.mean(0).clamp_min(1e-300).square()
        return variance, tuple(kurtosis.tolist())


class _Replay:
    """Answers with the cheapest level around the recorded path, with one correction added once."""

    def __init__(self, calls: list[_Call], perturbed: int, level: int):
        self._calls, self._perturbed, self._level = iter(calls), perturbed, level
        self.evaluated: set[int] = set()

    def __call__(self, index: int, evaluate: Callable[[int], Tensor]) -> Tensor:
        call = next(self._calls, None)
        if call is None or call.index != index:
            raise ValueError(
                "the sampler did not make the same calls in two runs; give it a fixed number of steps and seeds"
            )
        if index < self._perturbed:
            value = call.top
        elif index == self._perturbed:
            value = call.top + call.differences[self._level]
        else:
            self.evaluated.add(index)
            value = call.differences.sum(0).to(call.device) + evaluate(0)
        return value.to(call.device, call.dtype)


def _checked(final: Tensor) -> Tensor:
    if len(final) < 2:
        raise ValueError(f"the sampler returned {len(final)} samples, a pilot needs at least 2 (better 8)")
    if not bool(final.isfinite().all()):
        raise ValueError("the sampler's final states are not finite with the top level; check its weights and dtype")
    return final.detach().cpu().double()


def _responses(
    run: Callable[[Answer], Tensor], calls: list[_Call], perturbed: list[int], final: Tensor, progress: bool
) -> tuple[Tensor, int]:
    """R_k(n) for the perturbed calls, index k M + n, (., S, dim), and how often the cheapest level was evaluated."""
    levels = len(calls[0].differences)
    responses = torch.empty(levels * len(perturbed), len(final), final[0].numel())
    evaluations = 0
    jobs = list(itertools.product(range(levels), perturbed))
    for row, (level, index) in enumerate(tqdm(jobs, desc="pilot", unit="run", disable=not progress)):
        replay = _Replay(calls, index, level)
        responses[row] = (_checked(run(replay)) - final).flatten(1)
        evaluations += len(replay.evaluated)
    return responses, evaluations


def _gram(responses: Tensor) -> Tensor:
    """Mean inner products, float64 (n, n)."""
    total = torch.zeros(len(responses), len(responses), dtype=torch.float64)
    for rows in responses.unbind(1):
        total += rows.double() @ rows.double().T
    return total / responses[0].numel()


def _interpolation(visited: list[int], perturbed: list[int], levels: int) -> Tensor:
    """From the perturbed calls to all, for every level; calls that were not made have no response."""
    weights = torch.zeros(visited[-1] + 1, len(perturbed), dtype=torch.float64)
    for column, unit in enumerate(np.eye(len(perturbed))):
        weights[visited, column] = torch.as_tensor(np.interp(visited, perturbed, unit))
    return torch.kron(torch.eye(levels, dtype=torch.float64), weights)


def _calibrated(
    run: Callable[[Answer], Tensor], ladder: mls.Ladder, pilot: mls.Pilot, grams: list[Tensor], final: Tensor
) -> mls.Pilot:
    """Run plans made from one half of the samples and compare the other half with the prediction."""
    found, cost = [], pilot.cost
    for part in _CALIBRATED:
        budget = pilot.steps * (ladder.costs[0] + part * ladder.costs[-1])
        promised, predicted, errors = 0.0, 0.0, []
        for half, gram in enumerate(grams):
            trial = replace(pilot, gram=gram)
            plan = trial.plan(budget=budget, memory=False).plan
            rows = PlannedRows(plan)
            end = _checked(run(lambda index, evaluate, rows=rows: combine(rows[index], evaluate)))
            errors.append((end - final).square().flatten(1).mean(1)[1 - half :: 2])
            promised += trial.responses(plan.steps).error(plan.weights) / len(grams)
            predicted += trial.first_order(plan) / len(grams)
            cost += len(final) * plan.cost(ladder)
        both = torch.cat(errors)
        usual = typical(both)
        tail = float(both.mean()) / usual if usual > 0 else 1.0
        found.append(Calibration(pilot.rows, Form.PLAIN, promised, predicted, usual, tail))
    return replace(pilot, calibration=tuple(found), cost=cost)
