r"""Sampling steps: from x_t to x_s, exact in everything but the estimate of x_0.

For every tau >= 0 the process run from noise to data by

    dx = [ f x - (1 + tau^2) / 2 g^2 grad log p_t(x) ] dt + tau g dW,    f = (log alpha)',  g^2 = -2 sigma^2 lambda',

has the same marginals p_t (tau = 0: probability-flow ODE, tau = 1: the reverse SDE). With grad log p_t(x) =
(alpha x_0-hat - x) / sigma^2, and x_0-hat held fixed over the step from t to s, its exact solution is

    x_s = e^{-tau^2 h} (sigma_s / sigma_t) x_t + alpha_s (1 - e^{-(1 + tau^2) h}) x_0-hat
          + sigma_s sqrt(1 - e^{-2 tau^2 h}) xi,    xi ~ N(0, I),

with lambda = log(alpha / sigma) and h = lambda_s - lambda_t > 0. tau = 0 is DDIM, tau = 1 is DDPM with the posterior
variance beta-tilde, and both are Euler-Maruyama up to O(beta^2) per step. The step is affine in x_0-hat, with
coefficients that do not depend on the level, so the multilevel estimate of x_0 can be put in its place; it is never
clipped (see `denoisers`).

Holding the noise eps-hat = (x - alpha x_0-hat) / sigma fixed instead gives

    x_s = (alpha_s / alpha_t) x_t - (1 + tau^2) alpha_s (sigma_t / alpha_t) (1 - e^{-h}) eps-hat
          + tau alpha_s (sigma_t / alpha_t) sqrt(1 - e^{-2h}) xi,

the same as above for tau = 0, and much larger noise in large steps for tau > 0.

Use: `multilevel_sde.solve(ladder_of_denoisers, x, times, plan, step=DDIM(schedule))` for the ODE, and for the SDE
`step=DDPM(schedule), diffusion=1.0, brownian=coupled_noise(schedule, seeds, times)`.

References:
    Song, Meng, Ermon 2021, DDIM (arXiv 2010.02502), equation 12; Ho, Jain, Abbeel 2020, DDPM (arXiv 2006.11239),
    equations 6-7; Xue et al. 2023, SA-Solver (arXiv 2309.05019), proposition 4.1, for general tau.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from multilevel_diffusion.process.schedule_base import NoiseSchedule
from multilevel_sde.arguments import as_number

__all__ = ["DDIM", "DDPM", "ExponentialStep", "NoiseExponentialStep", "StepCoefficients"]


@dataclass(frozen=True)
class StepCoefficients:
    """The numbers of x_s = state x_t + data estimate + deviation xi, xi ~ N(0, I).

    Attributes:
        state: e^{-tau^2 h} sigma_s / sigma_t.
        data: alpha_s (1 - e^{-(1 + tau^2) h}), of the estimate of x_0; for `NoiseExponentialStep` of that of eps.
        deviation: sigma_s sqrt(1 - e^{-2 tau^2 h}).
    """

    state: float
    data: float
    deviation: float


@dataclass(frozen=True)
class _AffineStep(ABC):
    """x_s = state x_t + data estimate + noise, coefficients computed once per pair (t, s), in float64 on the host."""

    schedule: NoiseSchedule
    tau: float | Callable[[float], float] = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, NoiseSchedule):
            raise TypeError(f'"schedule" is a {type(self.schedule).__name__}, expected a NoiseSchedule.')
        if not callable(self.tau):
            _checked(self.tau)

    @cached_property
    def _known(self) -> dict[tuple[float, float], StepCoefficients]:
        """Coefficients computed so far: trajectories repeat their times."""
        return {}

    @abstractmethod
    def _exact(self, t: float, s: float, tau: float, h: float) -> StepCoefficients:
        """Return the coefficients of the step from t, where sigma > 0, to s."""

    def tau_at(self, t: float) -> float:
        """Return the tau of a step that starts from time t.

        Raises:
            ValueError: a callable `tau` returned something negative or not finite.

        Example:
            >>> from multilevel_diffusion.process.schedules import CosineSchedule
            >>> ExponentialStep(CosineSchedule(), tau=lambda t: 1.0 if t < 0.8 else 0.0).tau_at(0.9)
            0.0
        """
        return _checked(self.tau(t) if callable(self.tau) else self.tau)

    def coefficients(self, t: float, s: float) -> StepCoefficients:
        """Return the coefficients of the step from t to s.

        Example:
            >>> from multilevel_diffusion.process.schedules import RectifiedFlowSchedule
            >>> ExponentialStep(RectifiedFlowSchedule()).coefficients(0.5, 0.25)
            StepCoefficients(state=0.5, data=0.5, deviation=0.0)
        """
        found = self._known.get((t, s))
        if found is None:
            tau = self.tau_at(t)
            if self.schedule.sigma(t) == 0:
                raise ValueError(f'"t" is {t}, where sigma = 0: a step starts where there is noise.')
            h = self.schedule.log_snr(s) - self.schedule.log_snr(t)
            if tau > 0 and h < 0:
                raise ValueError(f'"s" is {s}, noisier than "t" = {t}: only tau = 0 runs from data to noise.')
            found = self._known[t, s] = self._exact(t, s, tau, h)
        return found

    def __call__(self, y: Tensor, estimate: Tensor, t: float, s: float, noise: Tensor | None) -> Tensor:
        """Return x_s, shaped and typed like y.

        Arguments:
            y: x_t, any shape.
            estimate: what the step holds fixed, shaped like y.
            t: time of y.
            s: time to go to.
            noise: increment of variance |s - t|, shaped like y; may be None where tau = 0.
        """
        c = self.coefficients(t, s)
        x = (y * c.state).add(estimate, alpha=c.data)
        if c.deviation == 0:
            return x
        if noise is None:
            raise ValueError('"noise" is None but tau > 0: pass diffusion=1.0 and a brownian to solve.')
        return x.add(noise, alpha=c.deviation / math.sqrt(abs(s - t)))


@dataclass(frozen=True)
class ExponentialStep(_AffineStep):
    """x_s = e^{-tau^2 h} (sigma_s / sigma_t) x_t + alpha_s (1 - e^{-(1 + tau^2) h}) x_0-hat + noise.

    A `step=` of `multilevel_sde.solve` whose estimate is that of x_0. The noise it is given has the variance |s - t| of
    a Brownian increment and is brought to sigma_s^2 (1 - e^{-2 tau^2 h}); with `noise.coupled_noise` the paths of
    different step counts are then driven by the same Brownian motion.

    Coefficients are computed once per pair (t, s), in float64 on the host; the state keeps its dtype.

    Arguments:
        schedule: the noise schedule.
        tau: amount of noise, a number >= 0, or a callable tau(t) of the time the step starts from.

    Raises:
        TypeError: if `schedule` is no NoiseSchedule.
        ValueError: if `tau` is negative or not finite; on a step, if it starts where there is no noise, if it needs
            noise and got none, or if it goes towards the noise with tau > 0.

    References:
        Xue et al. 2023, SA-Solver (arXiv 2309.05019): its one-step predictor in data prediction.

    Example:
        >>> import torch
        >>> from multilevel_diffusion.process.schedules import CosineSchedule
        >>> step = ExponentialStep(CosineSchedule())
        >>> step(torch.ones(2), torch.full((2,), 0.5), 0.5, 0.0, None)  # a step to the data returns the estimate
        tensor([0.5000, 0.5000])
    """

    def _exact(self, t: float, s: float, tau: float, h: float) -> StepCoefficients:
        sigma_t, sigma_s = self.schedule.sigma(t), self.schedule.sigma(s)
        # h is infinite where a step ends at the data or starts from alpha = 0; tau = 0 then means tau^2 h = 0.
        damping = tau**2 * h if tau > 0 else 0.0
        return StepCoefficients(
            state=math.exp(-damping) * sigma_s / sigma_t,
            data=self.schedule.alpha(s) * -math.expm1(-(h + damping)),
            deviation=sigma_s * math.sqrt(-math.expm1(-2.0 * damping)),
        )


@dataclass(frozen=True)
class NoiseExponentialStep(_AffineStep):
    """x_s = (alpha_s / alpha_t) x_t - (1 + tau^2) alpha_s (sigma_t / alpha_t) (1 - e^{-h}) eps-hat + noise.

    A `step=` of `multilevel_sde.solve` for a ladder of networks that predict the noise eps. For tau = 0 it is
    `ExponentialStep` with the eps that belongs to its x_0. For tau > 0 it adds
    tau^2 alpha_s^2 (sigma_t / alpha_t)^2 (1 - e^{-2h}) in variance, more than `ExponentialStep`; it does not keep the
    marginals in large steps, and is here because SA-Solver has it. Prefer `ExponentialStep`.

    Arguments:
        schedule: the noise schedule.
        tau: amount of noise, a number >= 0, or a callable tau(t) of the time the step starts from.

    Raises:
        TypeError: if `schedule` is no NoiseSchedule.
        ValueError: as `ExponentialStep`, and on a step from alpha = 0, where eps says nothing about the data.

    Reference:
        Xue et al. 2023, SA-Solver (arXiv 2309.05019): its one-step predictor in noise prediction.

    Example:
        >>> import torch
        >>> from multilevel_diffusion.process.schedules import EDMSchedule
        >>> NoiseExponentialStep(EDMSchedule())(torch.tensor([3.0]), torch.tensor([0.5]), 2.0, 1.0, None)
        tensor([2.5000])
    """

    def _exact(self, t: float, s: float, tau: float, h: float) -> StepCoefficients:
        alpha_t, alpha_s = self.schedule.alpha(t), self.schedule.alpha(s)
        if alpha_t == 0:
            raise ValueError(f'"t" is {t}, where alpha = 0: a step that predicts the noise starts where there is data.')
        scale = alpha_s * self.schedule.sigma(t) / alpha_t
        return StepCoefficients(
            state=alpha_s / alpha_t,
            data=(1 + tau**2) * scale * math.expm1(-h),
            deviation=tau * scale * math.sqrt(-math.expm1(-2.0 * h)) if tau > 0 else 0.0,
        )


def DDIM(schedule: NoiseSchedule) -> ExponentialStep:  # noqa: N802  # a name of the literature
    """Return the deterministic step, tau = 0: x_s = alpha_s x_0-hat + sigma_s eps-hat.

    Arguments:
        schedule: the noise schedule.

    Reference:
        Song, Meng, Ermon 2021, Denoising Diffusion Implicit Models (arXiv 2010.02502), equation 12 with eta = 0.

    Example:
        >>> from multilevel_diffusion.process.schedules import CosineSchedule
        >>> DDIM(CosineSchedule()).tau
        0.0
    """
    return ExponentialStep(schedule, tau=0.0)


def DDPM(schedule: NoiseSchedule) -> ExponentialStep:  # noqa: N802  # a name of the literature
    """Return the ancestral step, tau = 1: a draw from q(x_s | x_t, x_0-hat), with the posterior variance beta-tilde.

    Arguments:
        schedule: the noise schedule.

    Reference:
        Ho, Jain, Abbeel 2020, Denoising Diffusion Probabilistic Models (arXiv 2006.11239), equations 6 and 7.

    Example:
        >>> from multilevel_diffusion.process.schedules import CosineSchedule
        >>> DDPM(CosineSchedule()).tau
        1.0
    """
    return ExponentialStep(schedule, tau=1.0)


def _checked(tau: float) -> float:
    """Return tau as a float, or raise ValueError."""
    if not (math.isfinite(as_number("tau", tau)) and tau >= 0):
        raise ValueError(f'"tau" is {tau!r}, expected a finite number of at least 0 (0: ODE, 1: reverse SDE).')
    return float(tau)
