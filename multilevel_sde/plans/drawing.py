"""From probabilities to a plan: the weights B / p of random hits, and what they cost in expectation.

This file decides the weight of a randomly drawn correction; which corrections are drawn together is the draw's
(:mod:`multilevel_sde.plans.draws`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from multilevel_sde.arguments import as_tensor
from multilevel_sde.ladder import Ladder
from multilevel_sde.plans.draws import Draw, check_draw, systematic
from multilevel_sde.plans.plan import Plan
from multilevel_sde.steps.rules import Step, StepRule, euler_maruyama, plan_rows

__all__ = ["check_probabilities", "draw_plan", "em_plan", "expected_cost"]


def check_probabilities(probabilities: Tensor, *, truncate: bool = False) -> Tensor:
    """Check a table of probabilities and return it as float64 on the CPU.

    Arguments:
        probabilities: Shape (N, K), entries in (0, 1], the lowest level 1.
        truncate: Allow 0, which drops a level and must then drop all above it at that step: biased on purpose.

    Raises:
        ValueError: Wrong shape, NaN, an entry outside (0, 1], a lowest level below 1, or a gap below a kept level.

    Example:
        >>> check_probabilities(torch.tensor([[1.0, 1.5]]))
        Traceback (most recent call last):
        ...
        ValueError: "probabilities" must lie in (0, 1], got 1.5 at step 0, level 2
    """
    table = as_tensor("probabilities", probabilities).to("cpu", torch.float64)
    if table.dim() != 2 or 0 in table.shape:
        raise ValueError(f'"probabilities" must have shape (steps, levels), got {tuple(table.shape)}')
    inside = ((table >= 0) if truncate else (table > 0)) & (table <= 1)
    if not inside.all():
        step, level = (~inside).nonzero()[0].tolist()
        hint = "; a level is dropped only with truncate=True" if table[step, level] == 0 else ""
        raise ValueError(
            f'"probabilities" must lie in (0, 1], got {table[step, level].item():.6g} at step {step}, '
            f"level {level + 1}{hint}"
        )
    if (table[:, 0] != 1).any():
        step = int((table[:, 0] != 1).nonzero()[0, 0])
        raise ValueError(
            f'"probabilities" of the lowest level must be 1, got {table[step, 0].item():.6g} at step {step}; '
            "leave the level out of the ladder instead"
        )
    if ((table[:, :-1] == 0) & (table[:, 1:] > 0)).any():
        step = int(((table[:, :-1] == 0) & (table[:, 1:] > 0)).nonzero()[0, 0])
        raise ValueError(f'"probabilities" at step {step} drop a level but keep one above it; drop all above it too')
    return table


def draw_plan(
    probabilities: Tensor,
    draw: Draw = systematic,
    *,
    generator: torch.Generator,
    samples: int | None = None,
    truncate: bool = False,
) -> Plan:
    """Draw a plan: hits with the given marginals and weights B / p, so that E[w_k] = 1 and E[F] = f^K.

    Arguments:
        probabilities: p_k(n), shape (N, K), entries in (0, 1], the lowest level 1.
        draw: `independent`, `nested` or `systematic` (see :mod:`multilevel_sde.plans.draws`).
        generator: Source of the draws, apart from that of the noise.
        samples: Draw for each of so many samples; by default one draw is shared by the batch, which is what makes a
            hit-free step cheap for the whole batch.
        truncate: Allow p = 0, which is biased on purpose.

    Returns:
        A :class:`Plan` with weights of shape (N, K), or (N, samples, K).

    Raises:
        TypeError: `generator` or `draw` is none.
        ValueError: See :func:`check_probabilities`; `samples` below 1.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> p = torch.tensor([1.0, 0.25]).expand(1000, 2)
        >>> plan = mls.draw_plan(p, mls.systematic, generator=torch.Generator().manual_seed(0))
        >>> plan.evaluations
        tensor([1000,  250])
    """
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f'"generator" must be a torch.Generator, got {type(generator).__name__}; '
            "for example torch.Generator().manual_seed(0)"
        )
    if samples is not None and not (isinstance(samples, int) and samples >= 1):
        raise ValueError(f'"samples" must be at least 1, got {samples}; leave it out to share one draw over the batch')
    check_draw(draw)
    table = check_probabilities(probabilities, truncate=truncate)
    hits = draw(table, generator, samples)
    marginals = table if samples is None else table[:, None].expand_as(hits)
    weights = torch.where(hits, 1 / marginals, 0.0)
    return Plan(hits, weights, truncated=bool((table == 0).any()))


def em_plan(ladder: Ladder, times: Tensor | Sequence[float], *, step: Step | StepRule = euler_maruyama) -> Plan:
    """Return the plan of plain Euler-Maruyama on f^K: all probabilities 1, so that only the top level is evaluated.

    Arguments:
        ladder: K levels.
        times: N + 1 times.
        step: The step of the solve; a rule may evaluate several times in a step, and has a row for each.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder = mls.Ladder([torch.sin, torch.cos], costs=[1.0, 8.0])
        >>> mls.em_plan(ladder, torch.linspace(0.0, 1.0, 11)).evaluations
        tensor([ 0, 10])
    """
    shape = (len(plan_rows(step, times)), len(ladder))
    return Plan(torch.ones(shape, dtype=torch.bool), torch.ones(shape, dtype=torch.float64))


def expected_cost(ladder: Ladder, probabilities: Tensor, draw: Draw = systematic) -> float:
    r"""Expected cost of one trajectory under a draw, every network counted at most once a step.

    f^k is needed where w_k != w_{k+1}: where one of both hits, except where both hit with equal weights 1/p and the
    network cancels,

        E[cost] = sum_n sum_k T_k ( P[B_k or B_{k+1}] - 1[p_k = p_{k+1}] P[B_k and B_{k+1}] ),    p_{K+1} := 0.

    Arguments:
        ladder: K levels.
        probabilities: p_k(n), shape (N, K); zeros (truncation) are allowed.
        draw: The way of drawing; only how two neighbouring levels depend on each other matters.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder = mls.Ladder([torch.sin, torch.cos], costs=[1.0, 8.0])
        >>> mls.expected_cost(ladder, torch.tensor([[1.0, 0.25]]))
        3.0
        >>> mls.expected_cost(ladder, torch.tensor([[1.0, 1.0]]))
        8.0
    """
    check_draw(draw)
    table = check_probabilities(probabilities, truncate=True)
    above = torch.cat([table[:, 1:], torch.zeros_like(table[:, :1])], dim=1)
    either = draw.either(table, above)
    both = table + above - either
    needed = either - torch.where(1 / table == 1 / above, both, 0.0)
    return float((needed @ torch.tensor(ladder.costs, dtype=torch.float64)).sum())
