"""Cost against error of Euler-Maruyama (EM) and multilevel Euler-Maruyama (ML-EM), measured and predicted.

The problem is :func:`multilevel_sde.rates.problems.scaling_law`, the prediction that of
:mod:`multilevel_sde.rates.first_order`: its three constants are measured on paths of the true drift, so it knows
nothing of the multilevel runs.

References:
    Jacot 2026, Theorem 1.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO

import numpy as np
from tqdm import tqdm

from multilevel_sde.files import write_atomically
from multilevel_sde.rates.first_order import (
    Constants,
    Point,
    exponent,
    limits,
    predict_em,
    predict_multilevel,
    theorem_steps,
)
from multilevel_sde.rates.problem_parts import check_at_least, check_positive
from multilevel_sde.rates.problems import scaling_law
from multilevel_sde.rates.runs import FINE_STEPS, Experiment, measure, measure_on

__all__ = ["Constants", "Point", "RatesResult", "exponent", "measure", "measure_rates"]


@dataclass(frozen=True)
class RatesResult:
    """Measured and predicted cost-error curves of EM and ML-EM at one gamma.

    Attributes:
        gamma: Cost exponent of the ladder.
        diffusion: Noise sigma of the problem, 0 for the ODE.
        samples: Paths averaged over, each with its own draws.
        constants: What the prediction used.
        em: Measured points of EM.
        em_predicted: Their prediction.
        multilevel: Measured points of ML-EM.
        multilevel_predicted: Their prediction.
        limits: (K, EM's exponent, ML-EM's exponent) between K - 1 and K levels up to K = 40, predicted, not run.
    """

    gamma: float
    diffusion: float
    samples: int
    constants: Constants
    em: tuple[Point, ...]
    em_predicted: tuple[Point, ...]
    multilevel: tuple[Point, ...]
    multilevel_predicted: tuple[Point, ...]
    limits: tuple[tuple[int, float, float], ...]

    def table(self) -> str:
        """Return the points and the exponents as text."""
        kind = f"SDE, sigma = {self.diffusion:g}" if self.diffusion else "ODE"
        lines = [f"gamma = {self.gamma:g}, {kind}, {self.samples} paths; cost in units of 2^(gamma k) for level k", ""]
        lines.append("            K   steps   cost measured  predicted   RMS error measured  predicted")
        for name, measured, predicted in self._curves():
            for a, b in zip(measured, predicted, strict=True):
                lines.append(
                    f"{name:<9}{a.levels:4d}{a.steps:8g}{a.cost:16.4g}{b.cost:11.4g}{a.error:21.3e}{b.error:11.3e}"
                )
        lines += ["", "exponent of cost against 1/error   measured  predicted   40 levels   theory"]
        theory = (self.gamma + 1, max(2.0, self.gamma))
        for index, (name, measured, predicted) in enumerate(self._curves()):
            limit = self.limits[-1][1 + index]
            lines.append(
                f"{name:<33}{exponent(measured):10.2f}{exponent(predicted):11.2f}{limit:12.2f}{theory[index]:9.2f}"
            )
        fine = max(min(point.error for point in points) for points in (self.em, self.multilevel))
        coarse = min(max(point.error for point in points) for points in (self.em, self.multilevel))
        if fine < coarse:
            lines += ["", "measured cost of ML-EM over that of EM at equal error: "]
            lines[-1] += ", ".join(f"{self.cost_ratio(error):.2g} at {error:.2g}" for error in (coarse, fine))
        return "\n".join(lines)

    def cost_ratio(self, error: float) -> float:
        """Return the measured cost of ML-EM over that of EM at an equal error, log-log interpolated.

        Raises:
            ValueError: The error is not within both measured curves.
        """
        logs = []
        for points in (self.em, self.multilevel):
            ordered = sorted(points, key=lambda point: point.error)
            if not ordered[0].error <= error <= ordered[-1].error:
                raise ValueError(
                    f'"error" must lie within both measured curves, got {error:.3g} outside '
                    f"{ordered[0].error:.3g} ... {ordered[-1].error:.3g}"
                )
            errors, costs = zip(*((math.log(point.error), math.log(point.cost)) for point in ordered), strict=True)
            logs.append(float(np.interp(math.log(error), errors, costs)))
        return math.exp(logs[1] - logs[0])

    def _curves(self) -> list[tuple[str, tuple[Point, ...], tuple[Point, ...]]]:
        return [("EM", self.em, self.em_predicted), ("ML-EM", self.multilevel, self.multilevel_predicted)]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything, with the exponents, as JSON."""
        content = asdict(self)
        content["exponents"] = {
            name: {"measured": exponent(measured), "predicted": exponent(predicted)}
            for name, measured, predicted in self._curves()
        }
        write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Write a PNG: cost against error, both logarithmic; points measured, lines predicted.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.0, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for (name, measured, predicted), color, marker in zip(self._curves(), ("C1", "C0"), "so", strict=True):
            axes.loglog([p.error for p in predicted], [p.cost for p in predicted], color=color, linewidth=1)
            label = f"{name}: exponent {exponent(measured):.2f}, predicted {exponent(predicted):.2f}"
            axes.loglog([p.error for p in measured], [p.cost for p in measured], marker, color=color, label=label)
        axes.invert_xaxis()
        axes.set_xlabel("RMS error (points measured, lines predicted)")
        axes.set_ylabel("cost of a trajectory")
        kind = f"SDE, $\\sigma$ = {self.diffusion:g}" if self.diffusion else "ODE"
        axes.set_title(f"$\\gamma$ = {self.gamma:g}, {kind}")
        axes.grid(which="major", alpha=0.3)
        axes.legend(loc="upper left")
        buffer = BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        write_atomically(path, buffer.getvalue())


def measure_rates(
    gamma: float,
    *,
    levels: Sequence[int] = tuple(range(3, 10)),
    samples: int = 256,
    diffusion: float = 0.5,
    seed: int = 0,
    progress: bool = False,
) -> RatesResult:
    """Run EM and ML-EM on the scaling-law problem, against a fine EM path of the true drift with the same noise.

    EM takes level K and N = 2^K steps. ML-EM takes levels 1 ... K, independent draws per path, and the steps of
    :func:`theorem_steps`, rounded up to a power of two and kept between 4 2^K (step error a quarter of EM's) and 2048.

    Arguments:
        gamma: Cost exponent, positive, at most 20.
        levels: The K to run, at least two, increasing, between 2 and 9.
        samples: Paths, at least 2.
        diffusion: Noise sigma, 0 for the ODE.
        seed: Seed of the initial states, the noise and the draws.
        progress: Show a progress bar.

    Raises:
        ValueError: An argument out of range.

    Example:
        >>> result = measure_rates(3.0, levels=(2, 3), samples=4)
        >>> [point.steps for point in result.em], [point.cost for point in result.em]
        ([4, 8], [256.0, 4096.0])
    """
    chosen = _check(gamma, levels, samples, diffusion)
    problem = scaling_law(gamma, chosen[-1], diffusion=diffusion or None)
    experiment = Experiment(problem, gamma, samples, seed)
    constants = measure_on(problem, experiment.y0, experiment.brownian)
    fine_step = constants.duration / FINE_STEPS
    em: list[Point] = []
    multilevel: list[Point] = []
    predicted: list[tuple[Point, Point]] = []
    for K in tqdm(chosen, unit="level", disable=not progress):
        unclipped = 2 ** math.ceil(math.log2(theorem_steps(gamma, constants, K)))
        steps = min(max(unclipped, 4 * 2**K), FINE_STEPS)
        expected, scale = predict_multilevel(gamma, constants, K, steps, reference_step=fine_step)
        predicted.append((predict_em(gamma, constants, K, 2**K, reference_step=fine_step), expected))
        em.append(experiment.em(K, 2**K))
        multilevel.append(experiment.multilevel(K, steps, scale))
    em_predicted, multilevel_predicted = zip(*predicted, strict=True)
    return RatesResult(
        gamma,
        diffusion,
        samples,
        constants,
        em=tuple(em),
        em_predicted=em_predicted,
        multilevel=tuple(multilevel),
        multilevel_predicted=multilevel_predicted,
        limits=limits(gamma, constants),
    )


def _check(gamma: float, levels: Sequence[int], samples: int, diffusion: float) -> list[int]:
    check_positive(gamma=gamma)
    check_at_least(2, samples=samples)
    if gamma > 20:
        raise ValueError(f'"gamma" must be at most 20, got {gamma}: the cost of 40 levels would overflow')
    chosen = list(levels)
    if len(chosen) < 2 or chosen != sorted(set(chosen)) or chosen[0] < 2 or chosen[-1] > 9:
        raise ValueError(f'"levels" must be at least two increasing numbers between 2 and 9, got {chosen}')
    if not (math.isfinite(diffusion) and diffusion >= 0):
        raise ValueError(f'"diffusion" must be a number that is not negative, got {diffusion}')
    return chosen
