"""Plans: which level is evaluated at which step, and with which weight, decided before the solve.

A plan holds for each step n and level k a hit B_k(n) and a weight w_k(n); the estimate of f^K at step n is

    F(n) = sum_k w_k(n) (f^k - f^{k-1}),    f^0 := 0,

with w = B / p for random draws. Networks are evaluated at most once a step, and only where their own coefficient
w_k - w_{k+1} is not zero (see :mod:`multilevel_sde.ladder`), or where a later step uses their stored
value (:mod:`multilevel_sde.plans.recall`).
"""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from multilevel_sde.arguments import as_tensor
from multilevel_sde.ladder import Ladder
from multilevel_sde.plans.recall import Recall

__all__ = ["Plan", "as_plan", "mean_cost"]


class Plan:
    """Hits and weights of every step and level; immutable.

    A plan knows nothing of its file: `save` and `load` call :mod:`multilevel_sde.plans.plan_file`, which imports this.

    Arguments:
        hits: Bool, shape (N, K), or (N, B, K) where every one of B samples has its own.
        weights: Floats of the same shape, zero where there is no hit.
        truncated: Whether some step leaves out the top levels on purpose, which is biased.
        recall: Coefficients on values of earlier steps; not with a draw per sample.

    Raises:
        ValueError: Shapes differ or are not 2- or 3-dimensional, a weight is not finite, or non-zero without a hit; a
            step that evaluates nothing; a `recall` of steps or levels that do not exist.
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
        """Which f^k are evaluated: where the coefficient is not zero, or a later step uses the value; a bool copy."""
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

    def save(
        self,
        path: str | os.PathLike[str],
        times: Tensor | None = None,
        made_for: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the plan atomically as safetensors with a format version.

        Arguments:
            path: The file.
            times: The grid that the plan is for, (N + 1,), to be kept with it.
            made_for: What else the plan was made for, as JSON values; :meth:`load_made_for` gives it back.

        Raises:
            ValueError: Another number of times; `made_for` is not what JSON can hold.
            ModuleNotFoundError: safetensors is not installed.
            OSError: The file cannot be written.
        """
        from multilevel_sde.plans.plan_file import write_plan

        write_plan(self, path, times, made_for)

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
        from multilevel_sde.plans.plan_file import read_plan

        return read_plan(path)[:2]

    @classmethod
    def load_made_for(cls, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Read what a plan was made for, empty where the file does not say.

        Raises:
            FileNotFoundError, ValueError: As :meth:`load`.

        Example:
            >>> import tempfile, torch
            >>> path = tempfile.mkdtemp() + "/plan.safetensors"
            >>> plan = Plan(torch.ones(2, 1, dtype=torch.bool), torch.ones(2, 1))
            >>> plan.save(path, made_for={"mode": "ddim"})
            >>> Plan.load_made_for(path)
            {'mode': 'ddim'}
        """
        from multilevel_sde.plans.plan_file import read_plan

        return read_plan(path).made_for


def as_plan(value: Any) -> Plan:
    """Return a plan.

    Raises:
        TypeError: It is none; one that comes with its grid holds one as `.plan`.

    Example:
        >>> as_plan("plan.safetensors")
        Traceback (most recent call last):
        ...
        TypeError: "plan" must be a multilevel_sde.Plan, got str
    """
    if isinstance(value, Plan):
        return value
    inner = "; pass its .plan" if isinstance(getattr(value, "plan", None), Plan) else ""
    raise TypeError(f'"plan" must be a multilevel_sde.Plan, got {type(value).__name__}{inner}')


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
            f'"recall" names step {last} and level {highest + 1}, the plan has steps 0..{steps - 1} and '
            f"levels 1..{levels}"
        )
    return recall
