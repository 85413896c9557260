"""What a pilot warns of: drifts that are random or depend on the batch, and samples that do not agree."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from multilevel_sde.conditions import some_rows
from multilevel_sde.pilots.trial import Trial
from multilevel_sde.times import device_dtype

__all__ = ["OTHER_ROWS", "disagreement", "warn_of_batches", "warn_of_random"]

OTHER_ROWS = "the pilot calls drifts with parts of the batch and with copies of it"

_APART = 3.0  # how far two halves of the samples may disagree without a warning
_ALONE = 0.03  # of its largest value is how much a value may depend on the batch: other kernels round otherwise
_CALLER = 3  # of the stack: whoever called the pilot


def warn_of_random(levels: Sequence[int]) -> None:
    """Warn of levels, from 0, that gave another value at the same states."""
    if levels:
        warnings.warn(
            f"level {_named(levels)} gave another value when it was evaluated again at the same states; corrections of "
            "a random drift do not cancel: is there dropout in it? call eval() on networks",
            stacklevel=_CALLER,
        )


def warn_of_batches(trial: Trial, time: float, random_levels: Sequence[int]) -> None:
    """Evaluate every level on every second sample alone, and warn of those that gave other values than in the batch.

    Arguments:
        trial: The problem.
        time: When.
        random_levels: Levels that are not asked, as they give other values anyway.
    """
    rows, device, found = slice(1, None, 2), trial.seen.device, []
    when = torch.full((), time, dtype=device_dtype(torch.float64, device), device=device)
    some, told = trial.seen[rows], some_rows(trial.conditions, rows)
    pairs = zip(trial.ladder.drifts, trial.ladder.drifts, strict=True)  # made anew where they remember
    for level, (together, alone) in enumerate(pairs):
        if level not in random_levels:
            whole = together(trial.seen.detach(), when, **trial.conditions).detach()
            part = alone(some, when, **told).detach()
            trial.charge(trial.ladder.costs[level] * (len(trial) + len(some)))
            if float((part - whole[rows]).abs().max()) > _ALONE * float(whole.abs().max()):
                found.append(level)
    if found:
        warnings.warn(
            f"level {_named(found)} gave samples another value when it was called with every second one alone; "
            f"{OTHER_ROWS}: what belongs to a sample, such as its label, goes into conditions=",
            stacklevel=_CALLER,
        )


def disagreement(responses: Tensor) -> float:
    """Ratio of the mean squared responses of half of the samples to those of the others, at least 1; warns above 3.

    Arguments:
        responses: (rows, corrections, samples, numbers of the state).
    """
    order = torch.randperm(responses.shape[2], generator=torch.Generator().manual_seed(0))  # labels may take turns
    parts = [responses[:, :, order[half::2].to(responses.device)] for half in (0, 1)]
    halves = [float(part.to(device_dtype(torch.float64, part.device)).square().mean()) for part in parts]
    ratio = max(halves) / max(min(halves), 1e-300)
    if ratio > _APART:
        warnings.warn(
            f"two halves of the {responses.shape[2]} samples disagree by a factor {ratio:.3g} on how much corrections "
            "matter; predictions are no better than that: take more samples",
            stacklevel=_CALLER,
        )
    return ratio


def _named(levels: Sequence[int]) -> str:
    return ", ".join(str(level + 1) for level in levels)
