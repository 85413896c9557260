"""Plans: which level is evaluated at which step, and with which weight, decided before the solve.

A plan holds for each step n and level k a hit B_k(n) and a weight w_k(n); the estimate of f^K at step n is

    F(n) = sum_k w_k(n) (f^k - f^{k-1}),    f^0 := 0,

with w = B / p for random draws. Networks are evaluated at most once a step, and only where their own coefficient
w_k - w_{k+1} is not zero (see :mod:`multilevel_sde.ladder`), or where a later step recalls their value
(:mod:`multilevel_sde.recall`).
"""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from multilevel_sde.arguments import as_tensor
from multilevel_sde.draw import Draw, systematic
from multilevel_sde.files import write_atomically
from multilevel_sde.ladder import Ladder
from multilevel_sde.plan_file import decode, encode
from multilevel_sde.recall import Recall
from multilevel_sde.steps import Step, StepRule, euler_maruyama, plan_rows

__all__ = ["Plan", "check_probabilities", "draw_plan", "em_plan", "expected_cost", "mean_cost"]


class Plan:
    """Hits and weights of every step and level; immutable.

    Arguments:
        hits: Bool, shape (N, K), or (N, B, K) where every one of B samples has its own.
        weights: Floats of the same shape, zero where there is no hit.
        truncated: Whether some step leaves out the top levels on purpose, which is biased.
        recall: Coefficients on values of earlier steps; not with a draw per sample.

    Raises:
        ValueError: Shapes differ or are not 2- or 3-dimensional, a weight is not finite, or non-zero without a hit; a
            step that evaluates nothing; a recall of steps or levels that do not exist.
        TypeError: `recall` is not a :class:`Recall`; hits or weights that are no numbers.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder = mls.Ladder([torch.sin, torch.cos], costs=[1.0, 8.0])
        >>> hits = torch.tensor([[True, True], [True, False]])
        >>> plan = mls.Plan(hits, torch.tensor([[1.0, 2.0], [1.0, 0.0]]))
        >>> plan.evaluations, plan.cost(ladder)
        (tensor([2, 1]), 10.0)
    """

    __slots__ = ("_hits", "_needed", "_recall", "_truncated", "_weights")

    def __init__(self, hits: Tensor, weights: Tensor, *, truncated: bool = False, recall: Recall | None = None):
        hits = as_tensor("hits", hits).cpu().bool().clone()
        weights = as_tensor("weights", weights).to("cpu", torch.float64).clone()
        if hits.shape != weights.shape or hits.dim() not in (2, 3) or 0 in hits.shape:
            raise ValueError(
                '"hits" and "weights" must both have shape (steps, levels) or (steps, samples, levels), got '
                f"{tuple(hits.shape)} and {tuple(weights.shape)}"
            )
        if not weights.isfinite().all():
            step = int((~weights.isfinite()).nonzero()[0, 0])
            raise ValueError(f'"weights" must be finite, got NaN or infinity at step {step}')
        if (weights[~hits] != 0).any():
            step = int(((weights != 0) & ~hits).nonzero()[0, 0])
            raise ValueError(f'"weights" must be zero where there is no hit, got a non-zero weight at step {step}')
        self._hits, self._weights, self._truncated = hits, weights, bool(truncated)
        self._recall = _checked(recall, weights)
        self._needed = self.coefficients != 0
        if self._recall is not None:
            self._needed |= self._recall.sources(self.steps, self.levels)
        idle = ~self._needed.any(-1)
        if idle.any():
            raise ValueError(
                f'"weights" must leave a drift to evaluate at every step, got none at step '
                f"{int(idle.nonzero()[0, 0])}; "
                "the lowest level is usually hit with weight 1"
            )

    @property
    def hits(self) -> Tensor:
        """Bool (N, K) or (N, B, K); a copy."""
        return self._hits.clone()

    @property
    def weights(self) -> Tensor:
        """Float64 (N, K) or (N, B, K); a copy."""
        return self._weights.clone()

    @property
    def truncated(self) -> bool:
        """Whether top levels are left out on purpose somewhere, so that the solution is biased."""
        return self._truncated

    @property
    def recall(self) -> Recall | None:
        """Coefficients on values of earlier steps, or None where nothing is remembered."""
        return self._recall

    @property
    def steps(self) -> int:
        """Number of steps N."""
        return self._weights.shape[0]

    @property
    def levels(self) -> int:
        """Number of levels K."""
        return self._weights.shape[-1]

    @property
    def samples(self) -> int | None:
        """Number of samples B with their own draws, or None where one draw is shared by the batch."""
        return self._weights.shape[1] if self._weights.dim() == 3 else None

    @property
    def coefficients(self) -> Tensor:
        """Coefficient w_k - w_{k+1} of every f^k of the step itself, float64 (N, K) or (N, B, K)."""
        coefficients = self._weights.clone()
        coefficients[..., :-1] -= self._weights[..., 1:]
        return coefficients

    @property
    def needed(self) -> Tensor:
        """Which f^k are evaluated: where the coefficient is not zero, or a later step recalls it; a bool copy."""
        return self._needed.clone()

    @property
    def evaluations(self) -> Tensor:
        """How often a trajectory evaluates each level, int64 (K,), or (B, K) where every sample has its own draw."""
        return self._needed.sum(0)

    def cost(self, ladder: Ladder) -> float:
        """Cost of one trajectory (the mean over samples with their own draws), in the ladder's unit.

        Raises:
            ValueError: The ladder has another number of levels.
        """
        self.check_ladder(ladder)
        return mean_cost(self.evaluations, ladder)

    def check_ladder(self, ladder: Ladder) -> None:
        """Raise ValueError where the ladder has another number of levels than the plan."""
        if len(ladder) != self.levels:
            raise ValueError(
                f'"plan" was made for {self.levels} levels, the ladder has {len(ladder)}; draw a plan for this ladder'
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plan):
            return NotImplemented
        return (
            self._truncated == other._truncated
            and self._recall == other._recall
            and torch.equal(self._hits, other._hits)
            and torch.equal(self._weights, other._weights)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shared = "shared" if self.samples is None else f"{self.samples} samples"
        memory = "" if self._recall is None else f"{len(self._recall)} recalled, "
        return (
            f"Plan({self.steps} steps, {self.levels} levels, {shared}, {memory}evaluations={self.evaluations.tolist()})"
        )

    def save(self, path: str | os.PathLike[str], times: Tensor | None = None) -> None:
        """Write the plan atomically as safetensors with a format version.

        Arguments:
            path: The file.
            times: The grid that the plan is for, (N + 1,), to be kept with it.

        Raises:
            ValueError: Another number of times.
            ModuleNotFoundError: safetensors is not installed.
            OSError: The file cannot be written.
        """
        write_atomically(path, encode(self, times))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan written by :meth:`save`, without its times.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is damaged, not a plan, or written by a newer version.
        """
        return cls.load_with_times(path)[0]

    @classmethod
    def load_with_times(cls, path: str | os.PathLike[str]) -> tuple[Plan, Tensor | None]:
        """Read a plan and its grid, None where none was saved with it.

        Raises:
            FileNotFoundError, ValueError: As :meth:`load`.
        """
        contents, times = decode(path)
        plan = cls(**contents)
        if times is not None and len(times) != plan.steps + 1:
            raise ValueError(f'"{path}" holds {len(times)} times for {plan.steps} steps; save the plan again')
        return plan, times


def mean_cost(evaluations: Tensor, ladder: Ladder) -> float:
    """Return the cost of a trajectory that evaluates each level so often, (K,), or the mean of several, (B, K).

    Example:
        >>> mean_cost(torch.tensor([[2, 1], [4, 1]]), Ladder([torch.sin, torch.cos], costs=[1.0, 8.0]))
        11.0
    """
    counts = evaluations if evaluations.dim() == 1 else evaluations.double().mean(0)
    return float(sum(map(operator.mul, counts.tolist(), ladder.costs)))


def _checked(recall: Recall | None, weights: Tensor) -> Recall | None:
    """Return the recall if it fits, None where it is empty."""
    if recall is not None and not isinstance(recall, Recall):
        raise TypeError(f'"recall" must be a multilevel_sde.Recall or None, got {type(recall).__name__}')
    if recall is None or len(recall) == 0:
        return None
    if weights.dim() == 3:
        raise ValueError('"recall" needs one draw for the batch, got weights per sample; draw without "samples"')
    steps, levels = weights.shape
    last, highest, _ = recall.places.max(0).values.tolist()
    if last >= steps or highest >= levels:
        raise ValueError(
            f'"recall" names step {last} and level {highest}, the plan has steps 0..{steps - 1} and levels '
            f"0..{levels - 1}"
        )
    return recall


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
        ValueError: "probabilities" must lie in (0, 1], got 1.5 at step 0, level 1
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
            f"level {level}{hint}"
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
        draw: `independent`, `nested` or `systematic` (see :mod:`multilevel_sde.draw`).
        generator: Source of the draws, apart from that of the noise.
        samples: Draw for each of so many samples; by default one draw is shared by the batch, which is what makes a
            hit-free step cheap for the whole batch.
        truncate: Allow p = 0, which is biased on purpose.

    Returns:
        A :class:`Plan` with weights of shape (N, K), or (N, samples, K).

    Raises:
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
        draw: The way of drawing; only how two neighbouring levels hang together matters.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder = mls.Ladder([torch.sin, torch.cos], costs=[1.0, 8.0])
        >>> mls.expected_cost(ladder, torch.tensor([[1.0, 0.25]]))
        3.0
        >>> mls.expected_cost(ladder, torch.tensor([[1.0, 1.0]]))
        8.0
    """
    table = check_probabilities(probabilities, truncate=True)
    above = torch.cat([table[:, 1:], torch.zeros_like(table[:, :1])], dim=1)
    either = draw.either(table, above)
    both = table + above - either
    needed = either - torch.where(1 / table == 1 / above, both, 0.0)
    return float((needed @ torch.tensor(ladder.costs, dtype=torch.float64)).sum())
