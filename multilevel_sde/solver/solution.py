"""What a solve returns: the states, and what they took."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Solution", "Stats"]


@dataclass(frozen=True)
class Stats:
    """What a solve did.

    Attributes:
        evaluations: How often a trajectory evaluated each level, int64 (K,), or (B, K) with a draw per sample.
        calls: Calls of each drift; with a draw per sample a call is on the samples that need it.
        cost: Cost of one trajectory (mean over samples) in the ladder's unit.
        seconds: Wall-clock time of the whole solve (on a GPU until the host was done, unless `check_finite`).
        steps: Number of steps.
    """

    evaluations: Tensor
    calls: tuple[int, ...]
    cost: float
    seconds: float
    steps: int


@dataclass(frozen=True)
class Solution:
    """The result of a solve.

    Attributes:
        y: State at the last time, shaped like y0.
        ys: Saved states, (S, *y0.shape); only the last one, in the memory of `y`, unless `save` asked for more.
        times: The times of the saved states, (S,).
        stats: What it took.
        status: One sentence: "completed", and whether the plan is biased on purpose.
    """

    y: Tensor
    ys: Tensor
    times: Tensor
    stats: Stats
    status: str
