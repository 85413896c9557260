r"""A ladder in the place of one denoiser: for the samplers of k-diffusion and of EDM / EDM2, unchanged.

Those samplers call `model(x, sigma, **extra)` for an estimate of x_0. :class:`MultilevelDenoiser` answers with

    sum_k (w_k - w_{k+1}) D^k(x, sigma),    E[w_k] = 1,

the multilevel estimate of the top level D^K, evaluating only the networks whose coefficient is not zero. Denoisers are
affine in eps, v and score with coefficients of (x, sigma) alone, so this is the multilevel estimate of those too, as
long as no clamp is put on the result.

The sampler says nothing about steps. Every call counts as one step of the draw (a second-order sampler makes 2 N - 1
calls for N steps), sigma rising anew is a new trajectory, and every trajectory has a draw of its own seed. See
:mod:`multilevel_diffusion.loops.trajectory` for the rules.

Adaptive step sizes are not for random drifts: a correction looks like a local error, so the steps in which one is
evaluated are rejected and drawn again, and what comes out is the cheap level's answer without a sign of it. Such use is
refused where it makes more calls than planned, and warned of where sigma goes back to where it was before.

References:
    Karras et al. 2022 (arXiv 2206.00364), algorithms 1 and 2, and NVlabs/edm, NVlabs/edm2 (`net(x, sigma, labels)`);
    crowsonkb/k-diffusion (`model(x, sigma, **extra_args)`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

import multilevel_sde as mls
from multilevel_diffusion.loops.black_box import black_box_pilot, plans_at
from multilevel_diffusion.loops.euler_base import Seen, euler_base
from multilevel_diffusion.loops.memory import Memory
from multilevel_diffusion.loops.recording import Answer
from multilevel_diffusion.loops.rows import DrawnRows, PlannedRows, combine, step_probabilities
from multilevel_diffusion.loops.trajectory import Meter, Stats, Trajectory, Turns

__all__ = ["MultilevelDenoiser"]

_RISE = 1.5  # EDM's churn raises sigma by up to sqrt(2) between two calls


class MultilevelDenoiser(nn.Module):
    """Answer `model(x, sigma, ...)` with the multilevel estimate of the top level of a ladder of denoisers.

    Attributes that samplers read (`img_channels`, `img_resolution`, `label_dim`, `sigma_min`, `sigma_max`,
    `sigma_data`, `round_sigma`, ...) are those of the top level; `to`, `eval` and the like act on all levels that are
    modules. Each call reads sigma on the host, which waits for a GPU once.

    Arguments:
        ladder: K denoisers D^k(x, sigma, ...) -> x_0-hat shaped like x, and their costs.
        budget_fraction: expected cost of a call relative to the top level, in (0, 1]; any number of calls.
        plan: instead, the hits and weights of a trajectory of known length, one row per call, shared by the batch and
            the same for every trajectory.
        probabilities: instead, p_k of every call, (K,), or p_k(n) of a trajectory of N calls, (N, K).
        schedule: how `budget_fraction` is spread over the levels.
        draw: the way of drawing from probabilities.
        seed: trajectory number n = 1, 2, ... draws with seed + n.

    Raises:
        TypeError: if `ladder` or `plan` is not one, or the schedule does not scale to a budget.
        ValueError: unless exactly one of `budget_fraction`, `plan` and `probabilities` is given, and fits the ladder;
            on a call, if the trajectory is longer than planned, or the samples have different sigmas.

    Example:
        >>> import multilevel_sde as mls
        >>> exact = lambda x, sigma: x / (1 + sigma.reshape(-1, 1) ** 2)
        >>> ladder = mls.Ladder([lambda x, sigma: 0.9 * exact(x, sigma), exact], costs=[1.0, 8.0])
        >>> model = MultilevelDenoiser(ladder, budget_fraction=0.4)
        >>> x, sigmas = 10 * torch.ones(4, 2), torch.linspace(10.0, 0.0, 41)
        >>> for sigma, following in zip(sigmas[:-1], sigmas[1:]):  # Euler, as in k-diffusion
        ...     x = x + (following - sigma) * (x - model(x, sigma * x.new_ones(4))) / sigma
        >>> model.stats.trajectory.calls
        40
    """

    def __init__(
        self,
        ladder: mls.Ladder,
        *,
        budget_fraction: float | None = None,
        plan: mls.Plan | None = None,
        probabilities: Tensor | Sequence[float] | None = None,
        schedule: mls.Schedule = mls.InverseCostSchedule(),  # noqa: B008 - immutable
        draw: mls.Draw = mls.systematic,
        seed: int = 0,
    ):
        super().__init__()
        if not isinstance(ladder, mls.Ladder):
            raise TypeError(f'"ladder" must be a multilevel_sde.Ladder of denoisers, got {type(ladder).__name__}')
        if sum(source is not None for source in (budget_fraction, plan, probabilities)) != 1:
            raise ValueError('give exactly one of "budget_fraction", "plan" and "probabilities"')
        if plan is not None:
            if not isinstance(plan, mls.Plan):
                raise TypeError(f'"plan" must be a multilevel_sde.Plan, got {type(plan).__name__}; see draw_plan')
            plan.check_ladder(ladder)
        elif budget_fraction is not None:
            probabilities = step_probabilities(ladder, budget_fraction, schedule, draw)
        elif probabilities is not None:
            shape = tuple(torch.as_tensor(probabilities).shape)
            if shape[-1:] != (len(ladder),):
                raise ValueError(
                    f'"probabilities" has shape {shape}, expected one column for each of {len(ladder)} levels'
                )
        self.ladder = ladder
        self.levels = nn.ModuleList(level for level in ladder.drifts if isinstance(level, nn.Module))
        self._plan, self._draw, self._seed = plan, draw, seed
        self._probabilities = None if probabilities is None else torch.as_tensor(probabilities)
        self._answer: Answer | None = None
        self._seen: list[Seen] | None = None
        self.reset()

    def reset(self) -> None:
        """Begin anew: the next call is the first of trajectory number 1, with its seed, and `stats` are empty."""
        self._rows: DrawnRows | PlannedRows = self._new_rows(0)
        self._trajectory: Trajectory = Trajectory(rise=_RISE)
        self._turns = Turns()
        self._meter = Meter(self.ladder.costs)
        self._memory = self._new_memory()

    @property
    def stats(self) -> Stats:
        """What was evaluated in the last trajectory and in total."""
        return self._meter.stats

    def forward(self, x: Tensor, sigma: Tensor | float, *args: Any, **extra: Any) -> Tensor:
        """Return the estimate of x_0, shaped like x.

        Arguments:
            x: noisy samples, (B, ...).
            sigma: their noise level, a number, 0-d, or (B,) with equal entries; the levels get it as it came.
            args: passed on to the levels, such as class labels.
            extra: passed on to the levels by name.
        """
        level = _common(sigma)
        number, made = self._trajectory.number, self._trajectory.position + 1
        position = self._trajectory.visit(level, x)
        self._turns.note(level)
        if self._trajectory.number != number:
            self._check_length(number, made)
            self._rows, self._memory = self._new_rows(self._trajectory.number), self._new_memory()
        levels: tuple[Callable[..., Tensor], ...] = self.ladder.drifts
        evaluated = []

        def evaluate(k: int) -> Tensor:
            evaluated.append(k)
            return levels[k](x, sigma, *args, **extra)

        if self._answer is not None:
            estimate = self._answer(position, evaluate)
        else:
            row = self._rows[position]
            estimate = combine(row, evaluate) if self._memory is None else self._memory.estimate(position, evaluate)
            self._meter.count(evaluated, self._trajectory.number)
        if self._seen is not None:
            self._seen.append((level, x, estimate))
        return estimate

    def calibrate(
        self,
        run: Callable[[Self, Sequence[int]], Tensor],
        *,
        budget_fraction: float,
        seeds: Sequence[int] = range(8),
        candidates: int | None = None,
        progress: bool = True,
    ) -> mls.Pilot:
        """Measure in your own sampler where corrections matter, and follow the best plan for a budget from then on.

        Where the sampler is Euler's method, which one run with the cheapest level tells, the base level is integrated
        by SA-Solver's method of order 2 instead. In every sampler stored corrections are used again (tracked).

        It begins anew (see `reset`) once the plan is made; after an error everything is as before. The evaluations that
        it takes are described in :mod:`multilevel_diffusion.loops.black_box`.

        Arguments:
            run: run(net, seeds) samples with this denoiser, with the same noise for the same seeds, and returns the
                final states, one for each seed; it is called many times.
            budget_fraction: As for the class.
            seeds: At least 2.
            candidates: Perturb so many calls only, to save time; by default all.
            progress: Show a progress bar.

        Returns:
            The pilot: `pilot.plan(budget=...)`, `pilot.advise(budget=...)`, `pilot.cost`.

        Raises:
            ValueError: See the class and :func:`multilevel_diffusion.loops.black_box.black_box_pilot`.

        Example:
            >>> import multilevel_sde as mls
            >>> exact = lambda x, sigma: x / (1 + sigma.reshape(-1, 1) ** 2)
            >>> ladder = mls.Ladder([lambda x, sigma: 0.9 * exact(x, sigma), exact], costs=[1.0, 8.0])
            >>> model = MultilevelDenoiser(ladder, budget_fraction=0.4)
            >>> def sample(net, seeds):
            ...     x = torch.stack([10 * torch.randn(2, generator=torch.Generator().manual_seed(n)) for n in seeds])
            ...     sigmas = torch.linspace(10.0, 0.0, 21)
            ...     for sigma, following in zip(sigmas[:-1], sigmas[1:]):
            ...         x = x + (following - sigma) * (x - net(x, sigma * x.new_ones(len(x)))) / sigma
            ...     return x
            >>> pilot = model.calibrate(sample, budget_fraction=0.4, progress=False)
            >>> states = sample(model, [100, 101])
            >>> model.stats.trajectory.calls, model.stats.trajectory.fraction <= 0.4
            (20, True)
        """
        step_probabilities(self.ladder, budget_fraction, mls.InverseCostSchedule(), self._draw)  # checks the budget
        before = self._rows, self._trajectory, self._turns, self._meter, self._memory

        def answered(answer: Answer) -> Tensor:
            self.reset()
            self._answer = answer
            return run(self, seeds)

        try:
            with torch.no_grad():
                self._seen = []
                final = answered(lambda _, evaluate: evaluate(0))
                (base, self._seen) = (euler_base(self._seen, final), None)
                pilot = black_box_pilot(
                    answered, self.ladder, base=lambda: base, candidates=candidates, progress=progress
                )
            plan = plans_at(pilot, self.ladder, budget_fraction)[0].plan
        finally:
            self._answer = self._seen = None
            self._rows, self._trajectory, self._turns, self._meter, self._memory = before
        self._plan, self._probabilities = plan, None
        self.reset()
        return pilot

    def _new_rows(self, number: int) -> DrawnRows | PlannedRows:
        if self._plan is not None:
            return PlannedRows(self._plan)
        assert self._probabilities is not None
        return DrawnRows(self._probabilities, self._draw, self._seed + number)

    def _new_memory(self) -> Memory | None:
        return None if self._plan is None or self._plan.recall is None else Memory(self._plan)

    def _check_length(self, number: int, made: int) -> None:
        """Warn where the trajectory that has just ended was shorter than planned."""
        planned = self._rows.steps
        if number > 0 and planned is not None and made < planned:
            warnings.warn(
                f'"plan" has {planned} steps, the last trajectory made {made} calls; unless it was interrupted, make '
                "the plan for the number of network calls that this sampler makes",
                stacklevel=5,
            )

    def __getattr__(self, name: str) -> Any:
        """Find what this module does not have itself in the top level."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            ladder = self.__dict__.get("ladder")
            if ladder is None or name.startswith("_"):
                raise
            return getattr(ladder.drifts[-1], name)


def _common(sigma: Tensor | float) -> float:
    """Return the noise level of a call, or raise ValueError where the samples have different ones."""
    if not isinstance(sigma, Tensor):
        return float(sigma)
    low, high = torch.stack(torch.aminmax(sigma.detach())).tolist()
    if low != high:
        raise ValueError(
            f'"sigma" ranges from {low:.6g} to {high:.6g} over the batch, expected one noise level for all samples; '
            "call the levels themselves for training or evaluation"
        )
    return low
