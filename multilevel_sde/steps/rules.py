r"""Steps: how estimates of the drift f^K move the state from one time to the next.

A plain step is a function step(y, estimate, t, s, noise) of one estimate, taken at the start of the step, such as
`euler_maruyama`. A :class:`StepRule` is for everything else: it asks for its estimates itself, several in a step, at
other states or times, and may remember them.

    Heun      y' = y + h F(y, t) + noise,        y_s = y + h/2 (F(y, t) + F(y', s)) + noise
    Midpoint  y' = y + (h F(y, t) + noise) / 2,  y_s = y + h F(y', t + h/2) + noise

with h = s - t; :class:`AdamsBashforth` has a module of its own.

Orders. ODE: 2 for Heun and Midpoint, the given one for Adams-Bashforth, where the drift is smooth. SDE with additive
noise (a number or sigma(t)): strong order 1 for all of them, as Euler-Maruyama has there; their constant is smaller
where the drift makes more of the error than the noise. With noise g(y, t) they solve the Ito SDE as Euler-Maruyama
does, with its strong order 1/2, because the noise is taken at y_n only; the Stratonovich SDE is solved by
:class:`StratonovichHeun` and :class:`StratonovichMidpoint`. What these steps gain they gain on the drift; the random
corrections of a plan are not smooth in time.

References:
    Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", 1993, II.1;
    Kloeden and Platen, "Numerical Solution of Stochastic Differential Equations", 1992, chapter 11.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multilevel_sde.steps.sums import transformed
from multilevel_sde.times import as_times

__all__ = [
    "Advance",
    "Estimate",
    "Heun",
    "Midpoint",
    "Step",
    "StepRule",
    "euler_maruyama",
    "plan_rows",
]

Step = Callable[[Tensor, Tensor, float, float, Tensor | None], Tensor]
Estimate = Callable[[Tensor, float], Tensor]
Advance = Callable[[Tensor, Estimate, float, float, Tensor | None], Tensor]


def euler_maruyama(y: Tensor, estimate: Tensor, t: float, s: float, noise: Tensor | None) -> Tensor:
    """Return y + (s - t) * estimate + noise: one Euler-Maruyama step from t to s (Euler's where noise is None).

    Example:
        >>> euler_maruyama(torch.tensor([1.0]), torch.tensor([-1.0]), 0.0, 0.1, None)
        tensor([0.9000])
    """
    if isinstance(s, Tensor):  # times that require a gradient
        return y + (s - t) * estimate
    following = torch.add(y, estimate, alpha=s - t)
    if noise is None:
        return following
    return torch.add(following, noise) if transformed() else following.add_(noise)


class StepRule(ABC):
    """A step that asks for its own estimates: F(x, time) -> estimate of f^K(x, time), as often as it says.

    Each call of F uses the next row of the plan, so a plan for a rule has sum(evaluations) rows; :func:`plan_rows` says
    which step each belongs to. Objects are immutable: what a rule remembers lives in the function that `start` makes
    anew for every solve.

    Example:
        >>> class ForwardEuler(StepRule):
        ...     def evaluations(self, times):
        ...         return [1] * (len(times) - 1)
        ...     def start(self, times):
        ...         return lambda y, F, t, s, noise: euler_maruyama(y, F(y, t), t, s, noise)
        >>> ForwardEuler().start(torch.linspace(0, 1, 3))(torch.ones(1), lambda x, time: -x, 0.0, 0.5, None)
        tensor([0.5000])

    Attributes:
        stratonovich: Whether the rule solves the Stratonovich SDE, where that is another than the Ito SDE. A rule that
            is given g(y_n, t_n) dW solves the Ito SDE.
    """

    stratonovich: bool = False

    @abstractmethod
    def evaluations(self, times: Tensor) -> Sequence[int]:
        """How often each of the N steps of this grid, (N + 1,), calls F."""

    @abstractmethod
    def start(self, times: Tensor) -> Advance:
        """Begin a solve on this grid: return advance(y, F, t, s, noise) -> y at s, called once a step, in order."""

    def heating(self, h: float) -> float:
        """What an estimate whose error of mean square 1 is drawn anew in each step of length h adds to a temperature.

        0 for rules that have none; rules for Langevin dynamics say it, and :func:`solve` then warns of random draws.
        """
        return 0.0


def plan_rows(step: Step | StepRule, times: Tensor | Sequence[float]) -> Tensor:
    """Return the step n that each row of a plan belongs to, int64 (rows,): n once for each evaluation of step n.

    A table of probabilities p of N steps becomes one for the rows of a rule by p[plan_rows(rule, times)]; a budget for
    the whole trajectory is then to be divided by the evaluations of a step.

    Arguments:
        step: A plain step, which evaluates once, or a rule.
        times: N + 1 monotone times.

    Raises:
        TypeError: `step` is neither a function nor a rule.
        ValueError: `times` are no grid; the rule does not say N counts of at least 0.

    Example:
        >>> import multilevel_sde as mls
        >>> mls.plan_rows(mls.Heun(), [0.0, 0.5, 1.0])
        tensor([0, 0, 1, 1])
        >>> ladder, times = mls.Ladder([torch.sin, torch.cos], costs=[1.0, 8.0]), torch.linspace(0.0, 1.0, 11)
        >>> p = mls.TheoremSchedule(gamma=3.0).probabilities(ladder, times, budget=60.0 / 2)
        >>> mls.draw_plan(p[mls.plan_rows(mls.Heun(), times)], generator=torch.Generator().manual_seed(0))
        Plan(20 steps, 2 levels, shared, evaluations=[20, 5])
    """
    grid = as_times(times)
    steps = torch.arange(len(grid) - 1)
    if not isinstance(step, StepRule):
        if not callable(step) or isinstance(step, type):
            raise TypeError(
                '"step" must be a function step(y, estimate, t, s, noise) or a StepRule such as mls.Heun(), got '
                f"{step!r}"
            )
        return steps
    found = step.evaluations(grid)
    counts = list(found) if isinstance(found, Iterable) else None
    if counts is None or len(counts) != len(steps) or any(type(count) is not int or count < 0 for count in counts):
        raise ValueError(
            f"{type(step).__name__}.evaluations must return {len(steps)} counts of at least 0, one for each step, got "
            f"{found if counts is None else counts if len(counts) < 10 else f'{len(counts)} of them'}"
        )
    return steps.repeat_interleave(torch.tensor(counts))


@dataclass(frozen=True)
class Heun(StepRule):
    """y' = y + h F(y, t) + noise, then y + h/2 (F(y, t) + F(y', s)) + noise: two evaluations a step.

    Order 2 for ODEs; strong order 1 for SDEs with additive noise. With noise g(y, t) it solves the Ito SDE, with strong
    order 1/2: take :class:`Milstein`, or :class:`StratonovichHeun` if the Stratonovich SDE is meant.

    Reference:
        Kloeden and Platen 1992, section 15.1 (the trapezoidal predictor-corrector with additive noise).

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder, times = mls.Ladder([lambda y, t: -y], costs=[1.0]), torch.linspace(0.0, 1.0, 11)
        >>> plan = mls.em_plan(ladder, times, step=mls.Heun())
        >>> mls.solve(ladder, torch.ones(1, dtype=torch.float64), times, plan, step=mls.Heun()).y  # exp(-1) = 0.3679
        tensor([0.3685], dtype=torch.float64)
    """

    def evaluations(self, times: Tensor) -> list[int]:
        """Two in every step."""
        return [2] * (len(times) - 1)

    def start(self, times: Tensor) -> Advance:
        """Return the step, which remembers nothing."""
        return _heun


def _heun(y: Tensor, F: Estimate, t: float, s: float, noise: Tensor | None) -> Tensor:
    first = F(y, t)
    second = F(euler_maruyama(y, first, t, s, noise), s)
    return euler_maruyama(y, 0.5 * (first + second), t, s, noise)


@dataclass(frozen=True)
class Midpoint(StepRule):
    """y' = y + (h F(y, t) + noise) / 2, then y + h F(y', t + h/2) + noise: two evaluations a step.

    Order 2 for ODEs; strong order 1 for SDEs with additive noise. The noise of half a step is taken as half the noise,
    its mean given the whole.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder, times = mls.Ladder([lambda y, t: -y], costs=[1.0]), torch.linspace(0.0, 1.0, 11)
        >>> plan = mls.em_plan(ladder, times, step=mls.Midpoint())
        >>> mls.solve(ladder, torch.ones(1, dtype=torch.float64), times, plan, step=mls.Midpoint()).y
        tensor([0.3685], dtype=torch.float64)
    """

    def evaluations(self, times: Tensor) -> list[int]:
        """Two in every step."""
        return [2] * (len(times) - 1)

    def start(self, times: Tensor) -> Advance:
        """Return the step, which remembers nothing."""
        return _midpoint


def _midpoint(y: Tensor, F: Estimate, t: float, s: float, noise: Tensor | None) -> Tensor:
    middle = (t + s) / 2
    half = euler_maruyama(y, F(y, t), t, middle, None if noise is None else noise / 2)
    return euler_maruyama(y, F(half, middle), t, s, noise)
