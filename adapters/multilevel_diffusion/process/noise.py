r"""The noise of a diffusion sampler, coupled across step counts.

Over several steps the noise that `steps.ExponentialStep` adds is damped by the steps that follow. What is left at s of
the noise added since t is

    sigma_s e^{-tau^2 lambda_s} (M(v_s) - M(v_t)),    v = e^{2 tau^2 lambda},

with M a Brownian motion in the clock v: its variance sigma_s^2 e^{-2 tau^2 lambda_s} (v_s - v_t) is the step's
sigma_s^2 (1 - e^{-2 tau^2 h}). So a coarse step shares its noise exactly with the fine steps u -> u + 1 inside it if

    xi = sum_u w_u xi_u,    w_u^2 = (v_{u+1} - v_u) / (v_s - v_t),    sum_u w_u^2 = 1,

and a 1000-step and a 50-step path then differ by their step errors alone. (With tau = 1 these are the weights
e^{-(lambda_r - lambda_{u-1})} sqrt(1 - e^{-2 h_u}), normalised.)

M is drawn as any Brownian motion: directly at the ends of the coarse steps, given what was drawn around them
(`multilevel_sde.noise.trees`). The sum above is what that comes to, and its fine steps are not drawn.

As every `brownian` of `multilevel_sde.solve`, the objects here return increments of variance |s - t|, which is
sqrt(|s - t|) xi; the step brings them to its own variance. A plain `BrownianPath` is right in law too, but couples step
counts only approximately, as its clock is the time itself.

A step that ends at the data (sigma = 0) adds no noise, while a finer path goes on adding some until its own last step.
So paths that run to time 0 differ by about sigma(t_{N-1}), the noise level where the coarser one makes its last step;
at any time s > 0 they converge with order one.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from multilevel_diffusion.process.schedule_base import NoiseSchedule
from multilevel_sde.arguments import as_number, as_tensor
from multilevel_sde.noise.brownian import BrownianPath
from multilevel_sde.noise.trees import GridTree, packed
from multilevel_sde.times import as_times, places_on

__all__ = ["ClockedNoise", "coupled_noise"]

_WIDE, _WIDEST = 300.0, 1300.0  # what the logarithms of variances may span in float32 and in float64


class ClockedNoise(BrownianPath):
    """Increments sqrt(|s - t|) (M(v_s) - M(v_t)) / sqrt(|v_s - v_t|) of a Brownian motion M in a clock v.

    One seed per sample: the same seed gives the same M whatever the batch, its split or its order. Where the clock
    stands still they are zeros.

    Arguments:
        seeds: one integer per sample.
        times: the finest times, F + 1, monotone.
        log_variances: log of the clock's increment over each cell, F numbers; -inf is a cell without noise. Where they
            span more than 1300, they are brought closer together.
        shape: shape of one sample; left out, `multilevel_sde.solve` takes it from the state.
        dtype: dtype of the increments; half precisions are computed in float32, clocks that span more than e^300 in
            float64.
        device: where they are computed.

    Raises:
        TypeError: if the times or variances are no numbers.
        ValueError: if the times are not a monotone grid, or there is not one variance below inf per cell; on a call,
            if a time is not on the grid.

    Example:
        >>> noise = ClockedNoise([0], [1.0, 0.5, 0.0], [0.0, 0.0], shape=(), dtype=torch.float64)
        >>> coarse, fine = noise(1.0, 0.0), noise(1.0, 0.5) + noise(0.5, 0.0)
        >>> torch.allclose(coarse, fine)  # equal variances are those of Brownian motion
        True
    """

    def __init__(
        self,
        seeds: Iterable[int],
        times: Tensor | Sequence[float],
        log_variances: Tensor | Sequence[float],
        *,
        shape: Sequence[int] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        wanted = as_times(times)
        super().__init__(seeds, grid=wanted, shape=shape, dtype=dtype, device=device)
        logs = as_tensor("log_variances", log_variances).cpu().double()
        if logs.shape != (len(self._times) - 1,):
            raise ValueError(
                f'"log_variances" has shape {tuple(logs.shape)}, expected one number for each of the '
                f"{len(self._times) - 1} cells of the times."
            )
        if not bool((logs < math.inf).all()):
            raise ValueError('"log_variances" must be finite, or -inf for cells without noise, got NaN or inf.')
        falling = bool(wanted[0] > wanted[-1])
        backwards = bool(logs[0] > logs[-1])  # summed up from its small end, which would be lost beside the large one
        self._flipped = falling != backwards
        logs = logs.flip(0) if backwards else logs
        noisy = logs[logs > -math.inf]
        low, high = (float(end) for end in noisy.aminmax()) if len(noisy) else (0.0, 0.0)
        squeeze = min(1.0, _WIDEST / max(high - low, 1.0))
        variances = torch.exp((logs - (low + high) / 2) * squeeze)
        self._clock = torch.cat([variances.new_zeros(1), variances.cumsum(0)])
        self._tree = GridTree.of(self._clock)
        self._least = torch.float64 if high - low > _WIDE else torch.float32

    def _along(self, grid: Tensor) -> Iterator[Tensor]:
        points = places_on(self._times, grid)
        points = len(self._times) - 1 - points if self._flipped else points
        spans = self._clock[points].diff().abs()
        factors = torch.where(spans > 0, (grid.diff().abs() / spans).sqrt(), 0.0)
        return map(Tensor.mul_, self._between(points), packed(factors, "d"))


def coupled_noise(
    schedule: NoiseSchedule,
    seeds: Iterable[int],
    fine_times: Tensor | Sequence[float],
    tau: float | Callable[[float], float] = 1.0,
) -> ClockedNoise:
    """Return the `brownian` under which an `ExponentialStep` meets the same noise at every sub-grid of `fine_times`.

    With constant tau the coupling is exact: a coarse step's noise is what the fine steps it covers would have left.
    With a callable tau(t), taken at the start of each fine step, it is exact as far as tau is constant over the coarse
    steps; the noise has the right variance in any case.

    Arguments:
        schedule: the noise schedule of the step.
        seeds: one integer per sample.
        fine_times: the finest grid, monotone, containing all times of every solve to be compared.
        tau: the tau of the step, a number > 0 or a callable tau(t).

    Returns:
        A `ClockedNoise` for `solve(..., step=ExponentialStep(schedule, tau), diffusion=1.0, brownian=...)`.

    Raises:
        TypeError: if `schedule` is no `NoiseSchedule`, or tau is or returns no number.
        ValueError: if tau is a number that is not positive, or returns one that is negative or not finite; if the times
            are not monotone, or are none of the schedule.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> from multilevel_diffusion import CosineSchedule, DDPM, uniform
        >>> schedule = CosineSchedule()
        >>> fine, coarse = uniform(schedule, 100), uniform(schedule, 20)
        >>> ladder = mls.Ladder([lambda x, t: 0 * x], costs=[1.0])
        >>> noise = coupled_noise(schedule, range(4), fine)
        >>> for times in (fine, coarse):
        ...     plan, x = mls.em_plan(ladder, times), torch.zeros(4, 2)
        ...     print(mls.solve(ladder, x, times, plan, step=DDPM(schedule), diffusion=1.0, brownian=noise).y.shape)
        torch.Size([4, 2])
        torch.Size([4, 2])
    """
    if not isinstance(schedule, NoiseSchedule):
        raise TypeError(f'"schedule" is a {type(schedule).__name__}, expected a NoiseSchedule.')
    times = as_times(fine_times).double()
    falling = times if times[0] > times[-1] else times.flip(0)
    for end in (falling[0], falling[-1]):
        schedule.sigma(float(end))  # refuses what lies outside
    if not callable(tau) and not (math.isfinite(as_number("tau", tau)) and tau > 0):
        raise ValueError(f'"tau" is {tau!r}, expected a positive number; without noise (tau = 0) leave out "brownian".')
    log_variances = _log_variances(schedule, falling, tau)
    return ClockedNoise(seeds, times, log_variances if falling is times else log_variances.flip(0))


def _log_variances(schedule: NoiseSchedule, times: Tensor, tau: float | Callable[[float], float]) -> Tensor:
    """Return log(v_{u+1} - v_u) of the falling times, with v = e^{2 theta} and theta the integral of tau^2 d lambda.

    The clock is infinite at the data (sigma = 0), where the step multiplies the noise by 0: any value does for the last
    cell. Where alpha = 0 lambda is -inf and v = 0.
    """
    log_snr = schedule.log_snr(times)
    low, high = log_snr[:-1], log_snr[1:]
    known = [as_number("tau", tau(t)) for t in times[:-1].tolist()] if callable(tau) else float(tau)
    taus = torch.tensor(known, dtype=torch.float64)
    if not bool((taus >= 0).all()) or not bool(taus.isfinite().all()):
        raise ValueError('"tau" returned something negative or not finite; return a number of at least 0.')
    inside = (low > -math.inf) & (high < math.inf) & (taus != 0)
    growth = torch.where(inside, taus.square() * (high - low), 0.0)
    theta2 = 2.0 * growth.cumsum(0)
    logs = torch.where(growth > 0, theta2 + torch.log(-torch.expm1(-2.0 * growth)), -math.inf)
    return torch.where((high == math.inf) | (low == -math.inf) & (taus != 0), theta2, logs)
