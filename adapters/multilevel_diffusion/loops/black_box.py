r"""A pilot for samplers that cannot be looked into: only their calls of the network and their final states are seen.

The sampler runs once with the top level's values, integrated by a multistep method where its own is of first order,

    F(n) = sum_j a_j(n) f^K(x_{n-j}).

Every level is evaluated at its states x_n, and the corrections D_k(n) = f^k - f^{k-1} are kept. Then, for every call n
and level k, it runs with

    F(m) for m < n,    F(n) + D_k(n) for m = n,    f^1(x'_m) + F(m) - f^1(x_m) for m > n,

the cheapest level around the recorded path, perturbed once. The change of the final state is the response R_k(n) of
:mod:`multilevel_sde.pilots.allocation`, with the sampler's own coefficients in it, whatever its order. Plans of two
sizes, made from one half of the samples and judged on the other, calibrate the prediction.

Values that a plan stores must mean the same at every call: estimates of the data (:mod:`.loops.memory`). The sampler
must repeat its noise in every run, and make the same calls.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

import multilevel_sde as mls
from multilevel_diffusion.loops.memory import Memory
from multilevel_diffusion.loops.recording import Answer, Base, Call, Recorded, Replay
from multilevel_sde.pilots.answers import Calibration, Form, PilotPlan, Single
from multilevel_sde.pilots.trial import squared, typical

__all__ = ["black_box_pilot", "checked", "plans_at"]

_CALIBRATED = (0.1, 0.3)  # cost of the corrections in the plans that are run, relative to the top level at every call
_LEAST_CALLS = 8
_LEAST_RESPONSE = 1e-8  # of the largest, squared: a step of no length (Cosmos ends with one) is not divided by


def black_box_pilot(
    run: Callable[[Answer], Tensor],
    ladder: mls.Ladder,
    *,
    base: Base | None = None,
    memory: Callable[[], bool] | None = None,
    target: Callable[[Tensor, int], Tensor] | None = None,
    candidates: int | None = None,
    progress: bool = False,
) -> mls.Pilot:
    """Measure a ladder inside a sampler.

    Arguments:
        run: Runs the sampler, always with the same noise, each of its calls of the network answered by the argument;
            returns the final states of at least 2 samples, (S, ...).
        ladder: The costs of K levels; the levels themselves are reached through `evaluate`. One level has nothing to
            correct: its pilot knows its plan alone.
        base: Asked at the first call of a run: the multistep coefficients of its calls, where its own steps are of
            first order. By default, the sampler's own method is all.
        memory: Asked after the first run: whether values mean the same at every call, so that plans may use stored
            ones. By default they do.
        target: Asked after the first run, with its final states and its number of calls: the states that plans are
            judged by. By default the same.
        candidates: Perturb so many calls only; the responses in between are interpolated. By default all.
        progress: Show a progress bar.

    Returns:
        A pilot whose times are the numbers of the calls, and whose target is the path of the top level at every call.
        Plans for fewer calls were not measured and are not proposed.

    Raises:
        ValueError: Fewer than 2 samples, 2 candidates or 8 calls; equal levels; a state that is not finite;
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
    if candidates is not None and candidates < 2:
        raise ValueError(f'"candidates" must be at least 2, got {candidates}')
    record = Recorded(len(ladder), base)
    final = checked(run(record))
    calls = record.count
    if calls < _LEAST_CALLS:
        raise ValueError(f"the sampler makes {calls} calls, a pilot needs at least {_LEAST_CALLS}; take more")
    grams, replayed = _grams(run, record, candidates, final, progress)
    share = len(final[0::2]) / len(final)
    gram = share * grams[0] + (1 - share) * grams[1]
    for part in (*grams, gram):
        part.diagonal().clamp_(min=_LEAST_RESPONSE * float(part.diagonal().max()) if len(part) else 0.0)
    if len(ladder) > 1 and float(gram.diagonal().max()) == 0:
        raise ValueError('"ladder" has levels that are equal along the path; there is nothing to correct')
    variances, kurtosis = record.moments()
    pilot = mls.Pilot(
        costs=ladder.costs,
        unit=ladder.unit,
        seconds=tuple(seconds / len(final) for seconds in record.seconds),
        times=torch.arange(calls + 1, dtype=torch.float64),
        coefficients=torch.ones(calls, dtype=torch.float64),
        gram=gram,
        variances=variances,
        kurtosis=kurtosis,
        random_levels=(),
        fine_times=torch.arange(calls + 1, dtype=torch.float64),
        singles=(Single(len(ladder) - 1, calls, record.table is not None, 0.0, 1.0),),
        calibration=(),
        cost=len(final) * (calls * sum(ladder.costs) + replayed * ladder.costs[0]),
        samples=len(final),
        multistep={} if record.table is None else {calls: record.table},
        disagreement=_disagreement(grams),
    )
    aim = final if target is None else checked(target(final, calls))
    if len(ladder) == 1:
        return pilot
    return _calibrated(run, ladder, pilot, grams, aim, memory is None or memory())


def plans_at(pilot: mls.Pilot, ladder: mls.Ladder, budget_fraction: float, *, memory: bool = True) -> list[PilotPlan]:
    """Return the pilot's plans of as many calls, the best first, at a fraction of the top level's cost at every call.

    Raises:
        ValueError: No plan of so many calls is so cheap.
    """
    priced = replace(pilot, costs=ladder.costs, unit=ladder.unit)
    if pilot.calibration and all(one.form is Form.PLAIN for one in pilot.calibration):
        memory = False  # as it was measured
    budget = budget_fraction * pilot.steps * ladder.costs[-1]
    count = 1 << len(ladder)  # all choices of levels, and some of single ones
    found = [plan for plan in priced.plans(budget=budget, memory=memory, count=count) if plan.plan.steps == pilot.steps]
    if not found:
        raise ValueError(
            f'"budget_fraction" is {budget_fraction:g}, less than the cheapest level costs at {pilot.steps} calls; '
            "raise it or take fewer calls"
        )
    return found


def checked(final: Tensor) -> Tensor:
    """Final states in float64 on the CPU.

    Raises:
        ValueError: Fewer than 2, or some that are not finite.
    """
    if len(final) < 2:
        raise ValueError(f"the sampler returned {len(final)} samples, a pilot needs at least 2 (better 8)")
    if not bool(final.isfinite().all()):
        raise ValueError("the sampler's final states are not finite with the top level; check its weights and dtype")
    return final.detach().cpu().double()


def _grams(
    run: Callable[[Answer], Tensor], record: Recorded, candidates: int | None, final: Tensor, progress: bool
) -> tuple[list[Tensor], int]:
    """The Gram matrices of the responses, of each half of the samples, and how often the cheapest level ran."""
    levels, calls = len(record.calls[0].differences), record.count
    if levels == 0:
        return [torch.zeros(0, 0, dtype=torch.float64)] * 2, 0
    chosen = torch.linspace(0, calls - 1, min(candidates or calls, calls)).round().long().unique().tolist()
    responses, replayed = _responses(run, record.calls, chosen, final, progress)
    spread = _interpolation(calls, chosen, levels)
    return [spread @ _gram(responses[:, half::2]) @ spread.T for half in (0, 1)], replayed


def _responses(
    run: Callable[[Answer], Tensor], calls: list[Call], perturbed: list[int], final: Tensor, progress: bool
) -> tuple[Tensor, int]:
    """R_k(n) for the perturbed calls, index k M + n, (., S, dim), and how often the cheapest level was evaluated."""
    levels = len(calls[0].differences)
    responses = torch.empty(levels * len(perturbed), len(final), final[0].numel())
    evaluations = 0
    jobs = list(itertools.product(range(levels), perturbed))
    for row, (level, index) in enumerate(tqdm(jobs, desc="pilot", unit="run", disable=not progress)):
        replay = Replay(calls, index, level)
        responses[row] = (checked(run(replay)) - final).flatten(1)
        evaluations += len(replay.evaluated)
    return responses, evaluations


def _gram(responses: Tensor) -> Tensor:
    """Mean inner products, float64 (n, n)."""
    total = torch.zeros(len(responses), len(responses), dtype=torch.float64)
    for rows in responses.unbind(1):
        total += rows.double() @ rows.double().T
    return total / responses[0].numel()


def _interpolation(calls: int, perturbed: list[int], levels: int) -> Tensor:
    """From the perturbed calls to all, for every level."""
    weights = torch.zeros(calls, len(perturbed), dtype=torch.float64)
    for column, unit in enumerate(np.eye(len(perturbed))):
        weights[:, column] = torch.as_tensor(np.interp(range(calls), perturbed, unit))
    return torch.kron(torch.eye(levels, dtype=torch.float64), weights)


def _disagreement(grams: list[Tensor]) -> float:
    """Ratio of what two halves of the samples say of the size of all responses."""
    low, high = sorted(float(gram.diagonal().sum()) for gram in grams)
    return high / low if low > 0 else 1.0


def _calibrated(
    run: Callable[[Answer], Tensor],
    ladder: mls.Ladder,
    pilot: mls.Pilot,
    grams: list[Tensor],
    final: Tensor,
    memory: bool,
) -> mls.Pilot:
    """Run plans of two sizes, each made from one half of the samples, and compare it on the other half."""
    found, cost, form = [], pilot.cost, Form.TRACKED if memory else Form.PLAIN
    for half, part in enumerate(_CALIBRATED):
        budget = pilot.steps * (ladder.costs[0] + part * ladder.costs[-1])
        trial = replace(pilot, gram=grams[half])
        plan = plans_at(trial, ladder, budget / (pilot.steps * ladder.costs[-1]), memory=False)[0].plan
        promised = trial.responses(plan.steps).error(plan.weights)
        plan = trial.track(plan) if memory else plan
        errors = squared(checked(run(Memory(plan).estimate)), final)[1 - half :: 2]
        usual = typical(errors)
        tail = float(errors.mean()) / usual if usual > 0 else 1.0
        found.append(Calibration(pilot.rows, form, promised, trial.first_order(plan), usual, tail))
        cost += len(final) * plan.cost(ladder)
    return replace(pilot, calibration=tuple(found), cost=cost)
