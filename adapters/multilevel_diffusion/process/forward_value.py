r"""The forward-value sampler: DDIM with the estimate at the next time, taken at a lookahead point.

DDIM goes from t to s with the estimate of x_0 at t. Here one step is

    x'  = (alpha_s / alpha_t) x_t - alpha_s (sigma_t / alpha_t) (1 - e^{-h}) eps,   eps from the last evaluations,
    m   = x_0-hat(x', s),   the one evaluation of the step;   eps_s = (x' - alpha_s m) / sigma_s is kept,
    x_s = (sigma_s / sigma_t) x_t + alpha_s (1 - e^{-h}) m.

It begins with eps = x_t / sigma_t, so N steps evaluate N times. With mu(lambda) the estimate along the solution, the
error of a step is +h^2/2 alpha_s mu' where DDIM's is -h^2/2 alpha_s mu': of first order as well, of equal size, and of
opposite sign; the mean of both solutions is of second order.

A step to the data (sigma_s = 0) has no next noise level at which a network could be evaluated; it is DDIM's.

Reference:
    Jiao, Li, Cai, Li 2025, F-DPMSolver (arXiv 2512.24927); order 1 is its F-DDIM.
"""

from collections import deque
from dataclasses import dataclass

from torch import Tensor

from multilevel_diffusion.process.multistep import exact_moments, polynomial_weights
from multilevel_diffusion.process.schedule_base import NoiseSchedule
from multilevel_diffusion.process.steps import DDIM, NoiseExponentialStep
from multilevel_sde.steps.adams import check_order, mixture
from multilevel_sde.steps.rules import Advance, Estimate, StepRule

__all__ = ["ForwardValue"]


@dataclass(frozen=True)
class ForwardValue(StepRule):
    """A `step=` of `multilevel_sde.solve` for the ODE and a ladder of denoisers (x_t, t) -> x_0-hat.

    Arguments:
        schedule: the noise schedule.
        lookahead: order of the lookahead, the number of kept eps through which it puts a polynomial in lambda. The
            sampler stays of order 1 whatever the lookahead: its error is that of holding m.

    Raises:
        TypeError, ValueError: `schedule` is no NoiseSchedule, `lookahead` no positive integer; a step with noise.

    Reference:
        Jiao, Li, Cai, Li 2025 (arXiv 2512.24927).

    Example:
        >>> import torch, multilevel_sde as mls
        >>> from multilevel_diffusion import CosineSchedule, uniform
        >>> schedule = CosineSchedule()
        >>> times, step = uniform(schedule, 20), ForwardValue(schedule)
        >>> def denoise(x, t):  # exact for data N(0, 0.5^2), which the ODE reaches from N(0, 1) by halving x
        ...     return 0.25 * schedule.alpha(t) / (0.25 * schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2) * x
        >>> ladder = mls.Ladder([denoise], costs=[1.0])
        >>> solution = mls.solve(ladder, torch.ones(1), times, mls.em_plan(ladder, times, step=step), step=step)
        >>> solution.y, solution.stats.evaluations
        (tensor([0.5125]), tensor([20]))
    """

    schedule: NoiseSchedule
    lookahead: int = 1

    def __post_init__(self) -> None:
        check_order(self.lookahead, "lookahead")
        DDIM(self.schedule)  # checks the schedule

    def evaluations(self, times: Tensor) -> list[int]:
        """One in every step."""
        return [1] * (len(times) - 1)

    def start(self, times: Tensor) -> Advance:
        """Return the step, with an empty memory."""
        schedule, final, ahead = self.schedule, DDIM(self.schedule), NoiseExponentialStep(self.schedule)
        known: deque[tuple[float, Tensor]] = deque(maxlen=self.lookahead)  # (lambda, eps), newest first

        def advance(y: Tensor, F: Estimate, t: float, s: float, noise: Tensor | None) -> Tensor:
            if noise is not None:
                raise ValueError("ForwardValue solves the ODE only: leave out diffusion and brownian")
            sigma_t, sigma_s = schedule.sigma(t), schedule.sigma(s)
            if sigma_s == 0:
                return final(y, F(y, t), t, s, None)
            start, end = schedule.log_snr(t), schedule.log_snr(s)
            if known:
                weights = polynomial_weights(start, end, [place for place, _ in known], start - end, exact_moments)
                point = ahead(y, mixture(weights, [eps for _, eps in known][: len(weights)]), t, s, None)
            else:  # eps = y / sigma means x_0 = 0; said so, it holds where alpha = 0 too
                known.appendleft((start, y / sigma_t))
                point = y * (sigma_s / sigma_t)
            data = F(point, s)
            known.appendleft((end, (point - data * schedule.alpha(s)) / sigma_s))
            return final(y, data, t, s, None)

        return advance
