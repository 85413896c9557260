r"""The gradient of a multilevel path's error in its probabilities, at constant memory.

With p_k(n) = sigmoid(s_k(n)), s_k(n) = sum_m phi_m(n) theta_mk for k >= 2 (the lowest level always runs), independent
hits B_k(n) and y the multilevel path, x the path of f^K with the same noise, let F = ||y - x||^2 / d for d elements of
a sample. F depends on theta twice: through the law of the hits, whose derivative is a score function, bounded because
p' = p (1 - p) cancels the denominators, and through the weights 1 / p at fixed hits. The second part is the
derivative along one random direction v per sample, E[v v'] = I, carried forwards along the path:

    dE[F] / dtheta_mk = E[ (F - b) sum_n phi_m(n) (B_k(n) - p_k(n)) + (dF/dtheta . v) v_mk ],
    dF/dtheta . v = 2 <y - x, y'> / d,      y' = 0 at the start,      w_k' = - w_k (1 - p_k) sum_m phi_m v_mk,

and y' follows the tangent of each step. b is any number that is independent of the sample's own hits: the mean of F
over the rest of the batch. Nothing of the path is kept, so memory does not grow with the number of steps.

References:
    Jacot 2026, section 3.1; Williams, "Simple statistical gradient-following algorithms", 1992 (score function);
    Baydin et al., "Gradients without Backpropagation", 2022 (arXiv 2202.08587; forward gradient).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from multilevel_sde.conditions import Conditioned, Conditions, as_conditions, some_rows
from multilevel_sde.cost import Drift
from multilevel_sde.ladder import Ladder
from multilevel_sde.noise.brownian import Brownian, BrownianPath, increments
from multilevel_sde.noise.diffusion import Diffusion, as_noise
from multilevel_sde.solver.evaluate import in_float32
from multilevel_sde.steps.rules import Step, euler_maruyama
from multilevel_sde.steps.sums import at_least_float32
from multilevel_sde.times import as_times, device_dtype

__all__ = ["Derivative", "PathGradient", "central_difference", "cost_gradient", "forward_mode", "path_gradient"]

Derivative = Callable[[Drift, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def forward_mode(drift: Drift, x: Tensor, t: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Return f(x, t) and its exact directional derivative, both shaped like x, by forward-mode differentiation.

    Raises:
        RuntimeError: An operation of the drift has no forward derivative; :func:`central_difference` needs none.

    Example:
        >>> forward_mode(lambda x, t: x**2, torch.tensor([3.0]), torch.tensor(0.0), torch.tensor([1.0]))
        (tensor([9.]), tensor([6.]))
    """
    try:
        return _jvp(lambda z: drift(z, t), (x,), (direction,))
    except RuntimeError as error:
        raise RuntimeError(
            f"a drift cannot be differentiated in forward mode ({error}); pass derivative=multilevel_sde."
            "central_difference, which only evaluates it"
        ) from error


def central_difference(drift: Drift, x: Tensor, t: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Return f(x, t) and (f(x + h v, t) - f(x - h v, t)) / 2h, for drifts without a forward derivative.

    The step is the cube root of the dtype's resolution, in units of the sample's size; relative error about 1e-4 in
    float32 and 1e-10 in float64. All three evaluations are one call.

    Arguments:
        drift: f(x, t).
        x: (B, ...).
        t: 0-d.
        direction: v, shaped like x.

    Example:
        >>> x, v = torch.tensor([[3.0]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
        >>> value, slope = central_difference(lambda x, t: x**2, x, torch.tensor(0.0), v)
        >>> round(float(slope), 6)
        6.0
    """
    per_sample = (-1, *[1] * (x.dim() - 1))
    size = x.reshape(len(x), -1).square().mean(1).sqrt().clamp_min(1e-3).view(per_sample)
    length = direction.reshape(len(x), -1).square().mean(1).sqrt().view(per_sample)
    unit = torch.where(length > 0, direction / length, 0.0)
    h = torch.finfo(x.dtype).eps ** (1 / 3) * size
    of_three = drift.copies(3) if isinstance(drift, Conditioned) else drift
    value, above, below = of_three(torch.cat([x, x + h * unit, x - h * unit]), t).detach().chunk(3)
    return value, (above - below) * (length / (2 * h))


@dataclass(frozen=True)
class PathGradient:
    """What every sample of a batch says about the gradient of E[F].

    Attributes:
        errors: F, float64 (B,).
        slopes: dF/dtheta . v, float64 (B,).
        scores: sum_n phi_m(n) (B_k(n) - p_k(n)), float64 (B, M, K - 1).
        directions: v, float64 (B, M, K - 1).
    """

    errors: Tensor
    slopes: Tensor
    scores: Tensor
    directions: Tensor

    def samples(self, *, baseline: bool = True) -> Tensor:
        """Return each sample's estimate of the gradient, (B, M, K - 1); their mean is the batch's.

        Arguments:
            baseline: Subtract the mean error of the other samples, which needs at least two.
        """
        errors = self.errors
        if baseline:
            errors = (errors - errors.mean()) * (len(errors) / (len(errors) - 1))
        return errors[:, None, None] * self.scores + self.slopes[:, None, None] * self.directions


def path_gradient(
    ladder: Ladder,
    y0: Tensor,
    times: Tensor,
    hits: Iterable[Tensor],
    theta: Tensor,
    features: Tensor,
    directions: Tensor,
    *,
    step: Step = euler_maruyama,
    diffusion: Diffusion | None = None,
    brownian: Brownian | BrownianPath | None = None,
    conditions: Conditions | None = None,
    derivative: Derivative = forward_mode,
) -> PathGradient:
    """Run the multilevel path, its tangent and the path of f^K side by side.

    Arguments:
        ladder: K levels.
        y0: Initial states (B, ...).
        times: N + 1 times.
        hits: For each step a bool tensor (B, K), the first column true; any iterable, so that it can be drawn on the
            way.
        theta: Parameters, float64 (M, K - 1).
        features: phi, float64 (N, M).
        directions: v, float64 (B, M, K - 1).
        step: As for `solve`; differentiable in the state and the estimate.
        diffusion: As for `solve`.
        brownian: As for `solve`.
        conditions: As for `solve`.
        derivative: How drifts are differentiated; a network is only evaluated on the samples that need it.

    Example:
        >>> import multilevel_sde as mls
        >>> ladder = mls.Ladder([lambda x, t: 0 * x, lambda x, t: x], costs=[1.0, 8.0])
        >>> hits, phi = torch.tensor([[[True, True], [True, False]]]), torch.ones(1, 1, dtype=torch.float64)
        >>> theta, v = torch.zeros(1, 1, dtype=torch.float64), torch.ones(2, 1, 1, dtype=torch.float64)
        >>> path_gradient(ladder, torch.ones(2, 1), [0.0, 1.0], hits, theta, phi, v).errors  # y = 3 or 1, x = 2
        tensor([1., 1.], dtype=torch.float64)
    """
    grid = as_times(times)
    p = torch.cat([torch.ones(len(features), 1, dtype=torch.float64), torch.sigmoid(features @ theta)], dim=1)
    slopes = torch.nn.functional.pad(torch.einsum("nm,bmk->nbk", features, directions), (1, 0))
    noise_of = None if diffusion is None else as_noise(diffusion)
    given, ladder, y0 = as_conditions(conditions, y0), in_float32(ladder, y0.dtype), at_least_float32(y0.detach())
    noise_increments = increments(brownian, grid, y0)
    x = y = y0.contiguous()  # an expanded tensor cannot carry a tangent
    tangent = torch.zeros_like(y)
    scores = torch.zeros_like(directions)
    points, on_device = grid.tolist(), grid.to(y0.device, device_dtype(grid.dtype, y0.device)).unbind()
    for n, drawn in enumerate(hits):
        t, s, time_n = points[n], points[n + 1], on_device[n]
        row = drawn.double()
        scores += features[n][:, None] * (row[:, 1:] - p[n, 1:])[:, None]
        weights = row / p[n]
        changes = -weights * (1 - p[n]) * slopes[n]
        terms = _Terms(_telescoped(weights), _telescoped(changes))
        estimate, change = terms.estimate(ladder, y, tangent, time_n, derivative, given)
        dw = None if noise_of is None else next(noise_increments)

        def advance(y: Tensor, estimate: Tensor, t=t, s=s, time_n=time_n, dw=dw) -> Tensor:
            return step(y, estimate, t, s, None if noise_of is None or dw is None else noise_of(y, time_n, dw))

        x = advance(x, ladder.drifts[-1](x, time_n, **given)).detach()
        y, tangent = (value.detach() for value in _jvp(advance, (y, estimate), (tangent, change)))
    wide = device_dtype(torch.float64, y.device)
    distance = (y - x).to(wide).unsqueeze(-1).flatten(1)
    errors = distance.square().mean(1)
    along = 2 * (distance * tangent.to(wide).unsqueeze(-1).flatten(1)).mean(1)
    return PathGradient(errors.cpu().double(), along.cpu().double(), scores, directions)


def _jvp(function: Callable[..., Tensor], at: tuple[Tensor, ...], along: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    result = torch.func.jvp(function, at, along)
    return result[0], result[1]


def _telescoped(weights: Tensor) -> Tensor:
    """Coefficients w_k - w_{k+1} of f^k."""
    return weights - torch.nn.functional.pad(weights[:, 1:], (0, 1))


@dataclass(frozen=True)
class _Terms:
    """Coefficients of every level's drift and their derivatives along v, float64 (B, K)."""

    values: Tensor
    changes: Tensor

    def estimate(
        self, ladder: Ladder, y: Tensor, tangent: Tensor, t: Tensor, derivative: Derivative, conditions: Conditions
    ) -> tuple[Tensor, Tensor]:
        """Return the estimate of f^K and its derivative; each drift sees only the samples that need it."""
        total, change = torch.zeros_like(y), torch.zeros_like(y)
        per_sample = (-1, *[1] * (y.dim() - 1))
        for level, drift in enumerate(ladder.drifts):
            chosen = ((self.values[:, level] != 0) | (self.changes[:, level] != 0)).nonzero()[:, 0]
            if len(chosen) == 0:
                continue
            rows = chosen.to(y.device)
            seen = Conditioned(drift, some_rows(conditions, chosen)) if conditions else drift
            value, slope = (part.detach() for part in derivative(seen, y[rows], t, tangent[rows]))
            c = self.values[chosen, level].to(y).view(per_sample)
            dc = self.changes[chosen, level].to(y).view(per_sample)
            total.index_add_(0, rows, c * value)
            change.index_add_(0, rows, c * slope + dc * value)
        return total, change


def cost_gradient(ladder: Ladder, theta: Tensor, features: Tensor) -> Tensor:
    r"""Return the gradient of the expected cost of independent draws, float64 (M, K - 1).

    f^k runs where B_k or B_{k+1} hits, so that

        dcost / dp_k(n) = T_k (1 - p_{k+1}(n)) + T_{k-1} (1 - p_{k-1}(n)),      p_1 = 1,  p_{K+1} = 0.

    Example:
        >>> import multilevel_sde as mls
        >>> ladder = mls.Ladder([torch.sin, torch.cos], costs=[1.0, 8.0])
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> cost_gradient(ladder, 0 * one, one)  # p = 1/2, p (1 - p) T_2
        tensor([[2.]], dtype=torch.float64)
    """
    p = torch.sigmoid(features @ theta)
    above = torch.nn.functional.pad(p[:, 1:], (0, 1))
    below = torch.cat([torch.ones_like(p[:, :1]), p[:, :-1]], dim=1)
    costs = torch.tensor(ladder.costs, dtype=torch.float64)
    slope = costs[1:] * (1 - above) + costs[:-1] * (1 - below)
    return features.T @ (p * (1 - p) * slope)
