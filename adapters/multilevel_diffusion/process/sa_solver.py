r"""SA-Solver: stochastic Adams steps in the log signal-to-noise ratio, with a predictor and a corrector.

The predictor of order p puts the polynomial in lambda through the last p estimates in the place of the one that
`ExponentialStep` holds fixed (`multistep`): Adams-Bashforth. The corrector of order c repeats the step, from the same
state and with the same noise, with a polynomial that passes through the estimate at the predicted point too:
Adams-Moulton, with c nodes of which the predicted point is one.

    PEC     predict x_s, evaluate there, correct x_s; the next step goes on with that evaluation: one a step
    PECE    predict x_s, evaluate there, correct x_s, and evaluate again at the corrected point: two a step

With PEC the last point is a predicted one, as there is no evaluation to correct it with.

At tau = 0 a predictor has order p and a corrector order min(c, p + 1); at tau > 0 the noise adds an error of strong
order 1 which grows with tau. The first steps have fewer estimates and a lower order; from pure noise that costs
little, as the estimate hardly changes there.

What differs from other code. diffusers' SASolverScheduler takes tau at the time a step starts from, as is done here;
the authors' code takes it at the time it goes to. Both apply `rescaled_moments` at order 2; diffusers always does, here
it is an argument. diffusers ends at the noise level of its time step 0; here the grid says where to end, and a step to
the data returns the estimate itself.

Reference:
    Xue et al. 2023, SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models (arXiv 2309.05019).
"""

import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from multilevel_diffusion.process.multistep import Moments, exact_moments, polynomial_weights
from multilevel_diffusion.process.schedule_base import NoiseSchedule
from multilevel_diffusion.process.steps import ExponentialStep, NoiseExponentialStep
from multilevel_sde.steps.adams import check_order, mixture
from multilevel_sde.steps.rules import Advance, Estimate, StepRule

__all__ = ["SASolver"]

Node = tuple[float, Tensor]  # lambda, estimate
Prediction = tuple[Tensor, float, float, Tensor | None]  # x_t, t, s, noise


@dataclass(frozen=True)
class SASolver(StepRule):
    """A `step=` of `multilevel_sde.solve` for a ladder of denoisers (x_t, t) -> x_0-hat.

    Arguments:
        schedule: the noise schedule.
        tau: amount of noise, a number >= 0, or a callable tau(t) of the time a step starts from: 0 is the
            probability-flow ODE, 1 the reverse SDE. With tau > 0 pass `diffusion=1.0` and a `brownian` to `solve`.
        predictor: order of the predictor, 1 to 4.
        corrector: order of the corrector, 1 to 4, or 0 for none.
        evaluate_corrected: evaluate again at the corrected point (PECE), at twice the cost.
        moments: `exact_moments`; `rescaled_moments` for few steps at order 2; `midpoint_moments` with predictor=2,
            corrector=0 and tau=0 is DPM-Solver++(2M).
        lower_order_final: limit the orders near the end, predictor N - n and corrector N - n + 1 in step n.
        predict_noise: put the polynomial through the noises eps-hat that belong to the estimates, not through the
            estimates of x_0. The published results prefer the data.

    Raises:
        TypeError, ValueError: an argument is not what is described here; on a step as `ExponentialStep`.

    Reference:
        Xue et al. 2023, algorithms 1 and 2. Its released settings are predictor 3, corrector 4 without or with little
        guidance, 2 and 2 with strong guidance.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> from multilevel_diffusion import CosineSchedule, uniform
        >>> schedule = CosineSchedule()
        >>> times, step = uniform(schedule, 20), SASolver(schedule, predictor=2, corrector=2)
        >>> def denoise(x, t):  # exact for data N(0, 0.5^2), which the ODE reaches from N(0, 1) by halving x
        ...     return 0.25 * schedule.alpha(t) / (0.25 * schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2) * x
        >>> ladder = mls.Ladder([lambda x, t: 0.5 * x, denoise], costs=[1.0, 8.0])
        >>> solution = mls.solve(ladder, torch.ones(1), times, mls.em_plan(ladder, times, step=step), step=step)
        >>> solution.y, solution.stats.evaluations
        (tensor([0.4997]), tensor([ 0, 20]))
    """

    schedule: NoiseSchedule
    tau: float | Callable[[float], float] = 0.0
    predictor: int = 3
    corrector: int = 4
    evaluate_corrected: bool = False
    moments: Moments = exact_moments
    lower_order_final: bool = True
    predict_noise: bool = False

    def __post_init__(self) -> None:
        check_order(self.predictor, "predictor")
        check_order(self.corrector, "corrector", least=0)
        for name in ("predictor", "corrector"):
            if getattr(self, name) > 4:
                raise ValueError(f'"{name}" must be at most 4, got {getattr(self, name)}')
        if self.evaluate_corrected and self.corrector == 0:
            raise ValueError('"evaluate_corrected" needs a "corrector" of order 1 to 4, got 0')
        if not callable(self.moments):
            raise TypeError(f'"moments" is a {type(self.moments).__name__}, expected a callable as exact_moments.')
        self._step  # noqa: B018  # checks the schedule and tau

    @cached_property
    def _step(self) -> ExponentialStep | NoiseExponentialStep:
        """The step that goes from one time to the next with an effective estimate."""
        return (NoiseExponentialStep if self.predict_noise else ExponentialStep)(self.schedule, self.tau)

    def evaluations(self, times: Tensor) -> list[int]:
        """One in every step; two with `evaluate_corrected`, but for steps to the data or from alpha = 0."""
        correctable = [math.isfinite(self._length(t, s)) for t, s in itertools.pairwise(times.tolist())]
        return [2 if self.evaluate_corrected and possible else 1 for possible in correctable]

    def start(self, times: Tensor) -> Advance:
        """Return the step, with an empty memory."""
        return _Run(self, len(times) - 1).advance

    def _length(self, t: float, s: float) -> float:
        return self.schedule.log_snr(s) - self.schedule.log_snr(t)


class _Run:
    """One solve: the last estimates, and what the corrector has to repeat."""

    def __init__(self, rule: SASolver, steps: int):
        self.rule, self.steps, self.n = rule, steps, 0
        # Newest first; the predictor uses p of them, the corrector c - 1 and a new one.
        self.known: deque[Node] = deque(maxlen=max(rule.predictor, rule.corrector - 1))
        self.last: Prediction | None = None

    def advance(self, y: Tensor, F: Estimate, t: float, s: float, noise: Tensor | None) -> Tensor:
        """Return x_s: the predicted point with PEC, the corrected one with PECE."""
        here = self._evaluate(y, F, t)
        if self.last is not None and not self.rule.evaluate_corrected:
            y = self._corrected(y, here, self.n - 1, self.last)
        self.known.appendleft(here)
        following = self._move(list(self.known)[: self._order(self.n)], y, t, s, noise)
        self.last = (y, t, s, noise)
        if self.rule.evaluate_corrected and math.isfinite(self.rule._length(t, s)):
            following = self._corrected(following, self._evaluate(following, F, s), self.n, self.last)
        self.n += 1
        return following

    def _evaluate(self, x: Tensor, F: Estimate, t: float) -> Node:
        """Return lambda and the estimate, of the data or of the noise."""
        schedule, data = self.rule.schedule, F(x, t)
        if self.rule.predict_noise:
            data = (x - data * schedule.alpha(t)) / schedule.sigma(t)
        return schedule.log_snr(t), data

    def _order(self, n: int) -> int:
        """Order of the predictor in step n, as far as the number of steps limits it."""
        return min(self.rule.predictor, self.steps - n) if self.rule.lower_order_final else self.rule.predictor

    def _corrected(self, predicted: Tensor, ahead: Node, n: int, last: Prediction) -> Tensor:
        """Return x_s from the step that predicted it, with the estimate at the predicted point."""
        order = self.rule.corrector
        if self.rule.lower_order_final:
            order = min(order, self.steps - n + 1)
        if order == 0 or not math.isfinite(self.rule._length(*last[1:3])):
            return predicted
        return self._move([ahead, *self.known][:order], *last)

    def _move(self, nodes: Sequence[Node], x: Tensor, t: float, s: float, noise: Tensor | None) -> Tensor:
        """Return x_s with the polynomial through the nodes."""
        rule, step = self.rule, self.rule._step
        h = rule._length(t, s)
        z = -h if rule.predict_noise else (1 + step.tau_at(t) ** 2) * h
        start = rule.schedule.log_snr(t)
        weights = polynomial_weights(start, start + h, [place for place, _ in nodes], z, rule.moments)
        return step(x, mixture(weights, [value for _, value in nodes][: len(weights)]), t, s, noise)
