r"""A learned schedule: p_k(t) = sigmoid(alpha_k log(t + delta) + beta_k), two numbers per level.

Adding one number to all beta_k multiplies all odds p / (1 - p) by the same factor. One learned schedule thus gives a
whole curve of error against cost, and meets any budget.

References:
    Jacot 2026, section 3.1.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor

from multilevel_sde.arguments import as_items, as_number
from multilevel_sde.files import is_sealed, seal, write_atomically
from multilevel_sde.ladder import Ladder
from multilevel_sde.plans.drawing import check_probabilities, expected_cost
from multilevel_sde.plans.draws import Draw
from multilevel_sde.plans.schedules import Schedule
from multilevel_sde.times import as_times

__all__ = ["LearnedSchedule", "log_times"]

_FORMAT = "multilevel_sde.learned_schedule"
_VERSION = 2
_READABLE = (1, 2)  # version 1 had no checksum
_FIELDS = ("alphas", "betas", "delta", "regularisation", "history")
_OF_VERSION_1 = {"format", "version", *_FIELDS}
_LARGEST = 1e100  # of a parameter, so that sums and products of them are numbers
_FAR = 500.0  # a shift of the logits that makes every probability 0 or 1 to rounding


def log_times(times: Tensor | Sequence[float], delta: float) -> Tensor:
    """Return log(t + delta) at the start of every step, float64 (N,).

    Raises:
        ValueError: t + delta is not positive somewhere, or delta is not finite.

    Example:
        >>> log_times([1.0, 0.5, 0.0], delta=0.5)
        tensor([0.4055, 0.0000], dtype=torch.float64)
    """
    starts = as_times(times).double()[:-1]
    if not math.isfinite(delta) or bool((starts + delta <= 0).any()):
        raise ValueError(
            f'"delta" must be a finite number above {-float(starts.min()):.6g}, so that log(t + delta) exists at every '
            f"step, got {delta}; for example {max(0.0, -float(starts.min())) + 0.01:.6g}"
        )
    return (starts + delta).log()


@dataclass(frozen=True)
class LearnedSchedule(Schedule):
    """p_k(t) = sigmoid(alpha_k log(t + delta) + beta_k) for k = 2 ... K; the lowest level always runs.

    `probabilities` returns them as learned. One shift of all beta_k meets a budget; a scale is a factor for all odds.

    Arguments:
        alphas: alpha_2 ... alpha_K.
        betas: beta_2 ... beta_K.
        delta: Keeps the logarithm finite; t + delta must be positive at all times used.
        regularisation: The lambda it was learned with, for the record.
        history: Mean squared error and expected cost at every step of learning, for the record.

    Raises:
        ValueError: Numbers that are not finite, or not as many alphas as betas.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder = mls.Ladder([torch.sin, torch.cos], costs=[1.0, 8.0])
        >>> schedule = mls.LearnedSchedule(alphas=(1.0,), betas=(0.0,), delta=0.5)
        >>> schedule.probabilities(ladder, [0.5, 0.0])  # odds t + delta = 1
        tensor([[1.0000, 0.5000]], dtype=torch.float64)
        >>> schedule.probabilities(ladder, [0.5, 0.0], budget=3.0)
        tensor([[1.0000, 0.2500]], dtype=torch.float64)
    """

    _complete = True

    alphas: tuple[float, ...]
    betas: tuple[float, ...]
    delta: float
    regularisation: float = 0.0
    history: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        for name in ("alphas", "betas"):
            values = as_items(name, getattr(self, name), "numbers")
            object.__setattr__(self, name, tuple(as_number(name, value) for value in values))
        for name in ("delta", "regularisation"):
            object.__setattr__(self, name, as_number(name, getattr(self, name)))
        rows = [as_items("history", row, "pairs") for row in as_items("history", self.history, "pairs")]
        if any(len(row) != 2 for row in rows):
            raise ValueError('"history" must hold pairs (error, cost), got rows of another length')
        object.__setattr__(self, "history", tuple((float(error), float(cost)) for error, cost in rows))
        if not self.alphas or len(self.alphas) != len(self.betas):
            raise ValueError(
                '"alphas" and "betas" must have one number for each level above the lowest, got '
                f"{len(self.alphas)} and {len(self.betas)}"
            )
        if not all(abs(value) <= _LARGEST for value in (*self.alphas, *self.betas, self.delta)):
            raise ValueError(
                f'"alphas", "betas" and "delta" must be finite and at most {_LARGEST:g}, got '
                f"{list(self.alphas)}, {list(self.betas)} and {self.delta}"
            )

    @classmethod
    def fit(cls, table: Tensor, times: Tensor | Sequence[float], delta: float) -> LearnedSchedule:
        """Return the member of the family closest to a table, such as a pilot's: a start for learning.

        It keeps the expected number of hits of each level (a probability of 1 counts as 0.99), and applies to other
        grids of the same times too.

        Arguments:
            table: p_k(n), (N, K), K >= 2.
            times: The table's N + 1 times.
            delta: See :class:`LearnedSchedule`.

        Raises:
            ValueError: A table that is not one of probabilities (see
                :func:`multilevel_sde.plans.drawing.check_probabilities`), has one level, or does not fit the times; a
                delta for which log(t + delta) does not exist.

        Example:
            >>> times = [0.5, 0.25, 0.0]
            >>> table = LearnedSchedule((1.0,), (0.5,), 0.1).shape(Ladder([torch.sin, torch.cos], [1.0, 8.0]), times)
            >>> fitted = LearnedSchedule.fit(table, times, delta=0.1)
            >>> [round(value, 6) for value in (*fitted.alphas, *fitted.betas)]
            [1.0, 0.5]
        """
        logs = log_times(times, delta)
        checked = check_probabilities(table)
        if len(checked) != len(logs) or checked.shape[1] < 2:
            raise ValueError(
                f'"table" must have shape (steps, levels) with {len(logs)} steps, as "times" has, and at least 2 '
                f"levels, got {tuple(checked.shape)}"
            )
        centre, spread = logs.mean(), logs.std(correction=0).clamp_min(torch.finfo(torch.float64).tiny)
        varies = float(spread) > 1e-12
        features = torch.stack([(logs - centre) / spread, torch.ones_like(logs)], dim=1)
        theta = _fit_logits(features if varies else features[:, 1:], checked[:, 1:])
        alphas = theta[0] / spread if varies else torch.zeros_like(theta[0])
        return cls(tuple(alphas.tolist()), tuple((theta[-1] - alphas * centre).tolist()), delta)

    def shape(self, ladder: Ladder, times: Tensor) -> Tensor:
        """Return the probabilities as learned, float64 (N, K)."""
        if len(ladder) != len(self.alphas) + 1:
            raise ValueError(
                f'"ladder" has {len(ladder)} levels, the schedule was learned for {len(self.alphas) + 1}; '
                "use the ladder it was learned on"
            )
        logits = log_times(times, self.delta)[:, None] * torch.tensor(self.alphas, dtype=torch.float64)
        p = torch.sigmoid(logits + torch.tensor(self.betas, dtype=torch.float64))
        return torch.cat([torch.ones(len(p), 1, dtype=torch.float64), p], dim=1).clamp_min(
            torch.finfo(torch.float64).tiny
        )

    def shifted(self, delta_beta: float) -> LearnedSchedule:
        """Return the schedule with delta_beta added to every beta_k: all odds times e^delta_beta.

        Example:
            >>> LearnedSchedule((1.0,), (0.5,), 0.1).shifted(-1.0).betas
            (-0.5,)
        """
        return replace(self, betas=tuple(beta + delta_beta for beta in self.betas))

    def _scaled(self, ladder: Ladder, grid: Tensor, scale: float) -> Tensor:
        return self.shifted(math.log(scale)).shape(ladder, grid)

    def _within(self, ladder: Ladder, grid: Tensor, budget: float, draw: Draw) -> Tensor:
        steps, budget = len(grid) - 1, as_number("budget", budget)
        low, high = steps * ladder.costs[0], steps * ladder.costs[-1]
        if not low < budget <= high * (1 + 1e-12):
            raise ValueError(
                f'"budget" must lie above {low:.6g} (every step on the lowest level) and up to {high:.6g} (every step '
                f"on the top level) {ladder.unit} for {steps} steps, got {budget}; change the budget, the steps or the "
                "ladder"
            )
        if budget >= high:
            return torch.ones(steps, len(ladder), dtype=torch.float64)
        reach = _FAR + max(abs(b) + abs(a) * float(log_times(grid, self.delta).abs().max()) for a, b in self._pairs())
        below, above = -reach, reach
        for _ in range(100):
            middle = 0.5 * (below + above)
            if expected_cost(ladder, self.shifted(middle).shape(ladder, grid), draw) > budget:
                above = middle
            else:
                below = middle
        return self.shifted(below).shape(ladder, grid)

    def _pairs(self) -> list[tuple[float, float]]:
        return list(zip(self.alphas, self.betas, strict=True))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the schedule atomically as JSON.

        Raises:
            OSError: The file cannot be written.
        """
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "delta": self.delta,
            "alphas": self.alphas,
            "betas": self.betas,
            "regularisation": self.regularisation,
            "history": self.history,
        }
        write_atomically(path, (json.dumps(seal(content), indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LearnedSchedule:
        """Read a schedule written by :meth:`save`.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is damaged, not a learned schedule, or of another version.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f'no schedule file at "{path}"')
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f'"{path}" is damaged or not JSON ({error}); save the schedule again') from None
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(f'"{path}" is not a learned schedule; write it with LearnedSchedule.save')
        if content.get("version") not in _READABLE:
            raise ValueError(
                f'"{path}" has version {content.get("version")!r}, this release reads versions {_READABLE}; '
                "upgrade multilevel-sde or learn again"
            )
        if (content["version"] != 1 or set(content) - _OF_VERSION_1) and not is_sealed(content):
            raise ValueError(f'"{path}" is damaged, its checksum does not fit; save the schedule again')
        try:
            fields = {name: content[name] for name in _FIELDS}
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise ValueError(f'"{path}" lacks a part of a schedule ({error}); save it again') from None

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Write a PNG of the history: the error, lambda times the cost, and their sum at every step of learning.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
            ValueError: The schedule has no history.
        """
        from matplotlib.figure import Figure

        if not self.history:
            raise ValueError('"history" is empty: only a schedule that was learned has one')
        figure = Figure(figsize=(6.0, 4.0), layout="constrained")
        axes = figure.add_subplot()
        steps = range(1, len(self.history) + 1)
        errors = [error for error, _ in self.history]
        prices = [self.regularisation * cost for _, cost in self.history]
        axes.semilogy(steps, [e + c for e, c in zip(errors, prices, strict=True)], color="C0", label="loss")
        axes.semilogy(steps, errors, color="C1", label="mean squared error")
        if self.regularisation > 0:
            axes.semilogy(steps, prices, color="C2", label=r"$\lambda$ × expected cost")
        axes.set_xlabel("step of learning, each on a batch of its own")
        axes.grid(which="major", alpha=0.3)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
        buffer = BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        write_atomically(path, buffer.getvalue())


def _fit_logits(features: Tensor, wanted: Tensor) -> Tensor:
    """Logistic regression by Newton: theta (M, K - 1), which with a column of ones keeps the expected hits."""
    wanted = wanted.clamp(1e-6, 0.99)  # a probability of 1 would leave no gradient to learn from
    theta = torch.zeros(features.shape[1], wanted.shape[1], dtype=torch.float64)
    theta[-1] = wanted.mean(0).logit()
    ridge = 1e-9 * torch.eye(features.shape[1], dtype=torch.float64)
    for _ in range(50):
        p = torch.sigmoid(features @ theta)
        gradient = features.T @ (wanted - p)
        hessian = torch.einsum("nk,ni,nj->kij", p * (1 - p), features, features) + ridge
        theta = theta + torch.linalg.solve(hessian, gradient.T).T.clamp(-1.0, 1.0)
    return theta
