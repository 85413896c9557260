"""What a pilot's report says, as plain numbers and sentences; the page and the JSON file show the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch

from multilevel_sde.pilots.answers import Calibration, Rate
from multilevel_sde.pilots.pilot_class import Pilot

__all__ = ["facts", "warnings"]

_CURVE_POINTS = 10


def facts(
    pilot: Pilot,
    title: str,
    measured: Iterable[tuple[str, float, float]] = (),
    budgets: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Collect everything a report shows.

    Arguments:
        pilot: The measurements.
        title: Heading of the page.
        measured: Points to draw beside the predictions: (label, cost in the ladder's unit, mean squared error).
        budgets: What to advise on; by default three from tight to generous.

    Returns:
        A dict of numbers, strings, lists and dicts; costs named `cost_in_top` are in evaluations of the top level.
    """
    top = pilot.costs[-1]
    budgets = _budgets(pilot) if budgets is None else list(budgets)
    told = pilot.in_evaluations()
    advice = [told.advise(budget=budget / top) for budget in budgets]
    return {
        "title": title,
        "summary": _summary(pilot),
        "warnings": warnings(pilot),
        "advice": [
            {"budget_in_top": budget / top, "pays": one.pays, "text": one.text}
            for budget, one in zip(budgets, advice, strict=True)
        ],
        "unit": pilot.unit,
        "levels": _levels(pilot),
        "rates": _rates(pilot),
        "times": pilot.times.tolist(),
        "variances": pilot.variances.T.tolist(),
        "responses": torch.diag(pilot.gram).clamp_min(0).sqrt().reshape(pilot.levels - 1, -1).tolist(),
        "plans": [
            {
                "cost_in_top": one.best.predicted.cost,
                "steps": one.best.plan.steps,
                "levels": [level + 1 for level in one.best.levels],
                "predicted_mse": one.best.predicted.mse,
                "times": one.best.times.tolist(),
                "weights": one.best.plan.weights.T.tolist(),
            }
            for one in advice
        ],
        "probabilities": _probabilities(pilot, budgets[len(budgets) // 2]),
        "curve": _curve(pilot),
        "em": [
            {"cost_in_top": float(n), "mse": pilot.step_error(n)}
            for n in pilot.measured_alone(pilot.levels - 1, bool(pilot.multistep))
            if pilot.step_error(n) > 0
        ],
        "measured": [{"label": label, "cost_in_top": cost / top, "mse": mse} for label, cost, mse in measured],
        "calibration": [
            {"first_order": one.first_order, "measured": _level_error(pilot, one)} for one in pilot.calibration
        ],
        "tail": pilot.tail,
        "samples": pilot.samples,
        "cost_in_top": pilot.cost / top,
    }


def warnings(pilot: Pilot) -> list[str]:
    """Return what to be careful about, in sentences.

    Arguments:
        pilot: The measurements.
    """
    found = []
    for k, value in enumerate(pilot.kurtosis):
        if value > 100:
            found.append(
                f"The difference between levels {k + 2} and {k + 1} has kurtosis {value:.0f}: a few rare states "
                f"dominate it, and means over {pilot.samples} samples say little. Take more samples."
            )
    bias = _biases(pilot)
    for k, (below, above) in enumerate(pairwise(bias)):
        if above > 0.9 * below:
            found.append(
                f"Level {k + 2} costs {pilot.costs[k + 1] / pilot.costs[k]:.3g} times level {k + 1} and ends no nearer "
                f"to the top level ({above:.2g} against {below:.2g}). Plans may leave it out; so may you."
            )
    sizes = pilot.variances.mean(0).tolist()
    for k, (below, above) in enumerate(pairwise(sizes)):
        if above > 0.9 * below:
            found.append(
                f"The differences do not shrink: level {k + 3} − {k + 2} has mean square {above:.2g}, level {k + 2} − "
                f"{k + 1} below it {below:.2g}. The expensive corrections are needed as often as the cheap ones."
            )
    found += _clock_warnings(pilot)
    for k in pilot.random_levels:
        found.append(
            f"Level {k + 1} gave another value when it was evaluated again at the same states, so corrections do not "
            "cancel. Is there dropout in it?"
        )
    if pilot.disagreement > 3:
        found.append(
            f"Two halves of the samples disagree by a factor {pilot.disagreement:.2g} on how much corrections matter; "
            "predictions are no better than that. Take more samples."
        )
    if pilot.tail > 3:
        found.append(
            f"Errors have a heavy tail: the mean squared error is {pilot.tail:.1f} times that of a typical sample. "
            "Compare medians as well as means."
        )
    ratios = [_level_error(pilot, one) / one.first_order for one in pilot.calibration if one.first_order > 0]
    if ratios and max(ratios) > 8:
        found.append("The first-order prediction is more than 8 times too small; trust the calibrated figures only.")
    if pilot.samples < 8:
        found.append(f"Only {pilot.samples} samples were used; 32 make the figures on this page reliable.")
    return found


def _level_error(pilot: Pilot, run: Calibration) -> float:
    """What a calibration measured beside the error of its steps."""
    return max(run.measured - pilot.step_error_of(run.steps, run.form), 0.0)


def _clock_warnings(pilot: Pilot) -> list[str]:
    """Where the ladder's costs and the clock disagree by more than 3."""
    told = [pilot.costs[-1] / cost for cost in pilot.costs]
    timed = [pilot.seconds[-1] / seconds for seconds in pilot.seconds]
    apart = [k for k, (a, b) in enumerate(zip(told, timed, strict=True)) if max(a / b, b / a) > 3]
    if not apart:
        return []
    cases = "; ".join(f"level {k + 1} is {told[k]:.3g} times cheaper, by the clock {timed[k]:.2g} times" for k in apart)
    why = (
        "the machine was busy at one of the two times"
        if pilot.unit == "seconds"
        else "small calls have overhead that is no cost, or the machine was busy"
    )
    return [
        f"In {pilot.unit}, compared with the top level: {cases}. Probably {why}; "
        f"savings in {pilot.unit} will not all be savings in time here."
    ]


def _biases(pilot: Pilot) -> list[float]:
    """RMS change of the final state, to first order, from using only level k at every step."""
    result = []
    for level in range(pilot.levels):
        omitted = torch.zeros(pilot.levels - 1, pilot.steps, dtype=torch.float64)
        omitted[level:] = 1.0
        flat = omitted.reshape(-1)
        result.append(math.sqrt(max(0.0, float(flat @ pilot.gram @ flat))))
    return result[:-1]


def _levels(pilot: Pilot) -> list[dict[str, Any]]:
    bias = [*_biases(pilot), 0.0]
    rows = []
    for k in range(pilot.levels):
        row: dict[str, Any] = {
            "level": k + 1,
            "cost": pilot.costs[k],
            "cost_in_top": pilot.costs[k] / pilot.costs[-1],
            "seconds": pilot.seconds[k],
            "seconds_in_top": pilot.seconds[k] / pilot.seconds[-1],
            "alone": bias[k],
        }
        if k:
            row["difference"] = math.sqrt(float(pilot.variances[:, k - 1].mean()))
            row["kurtosis"] = pilot.kurtosis[k - 1]
        rows.append(row)
    return rows


def _rates(pilot: Pilot) -> dict[str, Any]:
    rates = pilot.rates
    return {
        "alpha": _interval(rates.alpha),
        "beta": _interval(rates.beta),
        "gamma": _interval(rates.gamma),
        "cost_exponent": _finite(rates.cost_exponent),
        "harder_than_monte_carlo": rates.harder_than_monte_carlo,
    }


def _interval(rate: Rate) -> dict[str, float | None]:
    return {"value": _finite(rate.value), "low": _finite(rate.low), "high": _finite(rate.high)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _summary(pilot: Pilot) -> str:
    return (
        f"{pilot.levels} levels, followed along {pilot.samples} trajectories at {pilot.steps} candidate steps. "
        f"An evaluation of the top level costs {pilot.costs[-1]:.3g} {pilot.unit}. "
        f"The pilot took {pilot.cost / pilot.costs[-1]:.4g} of them in all. Of 10,000 samples at 10 evaluations each "
        f"that is {100 * pilot.share(10_000, 10 * pilot.costs[-1]):.2g}%."
    )


def _budgets(pilot: Pilot) -> list[float]:
    """Three budgets from tight to generous, in round numbers of evaluations of the top level."""
    top = pilot.costs[-1]
    low, ceiling = pilot.least_budget, pilot.steps * top
    first = max(1.5 * low, 0.05 * ceiling)
    last = max(0.35 * ceiling, math.sqrt(first * ceiling))
    return [top * max(float(f"{b / top:.2g}"), low / top) for b in (first, math.sqrt(first * last), last)]


def _probabilities(pilot: Pilot, budget: float) -> dict[str, Any]:
    """Corrections' probabilities at the budget, or at the nearest that random plans can meet."""
    low, high = pilot.steps * pilot.costs[0] * 1.1, pilot.steps * pilot.costs[-1]
    budget = min(max(budget, low), high)
    table = pilot.schedule(budget=budget)
    return {"budget_in_top": budget / pilot.costs[-1], "values": table.T.tolist()}


def _curve(pilot: Pilot) -> list[dict[str, float]]:
    low, high = pilot.least_budget, 0.7 * pilot.steps * pilot.costs[-1]
    points = []
    for budget in torch.logspace(math.log10(max(1.1 * low, high / 60)), math.log10(high), _CURVE_POINTS).tolist():
        predicted = pilot.plan(budget=max(budget, low)).predicted
        points.append({"cost_in_top": predicted.cost / pilot.costs[-1], "mse": predicted.mse})
    return points
