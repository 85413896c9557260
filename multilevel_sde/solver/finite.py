"""Where a state became NaN or infinite, found without looking at every step.

A look costs a reduction and, on a GPU, a wait for the device. So small states are kept for a few steps and looked at
together; of states on a GPU only the largest absolute value is kept, for a few steps more.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from multilevel_sde.errors import NonFiniteError
from multilevel_sde.steps.sums import transformed

__all__ = ["FiniteWatch", "is_finite"]

_GPU_STEPS = 32
_SMALL_STEPS = 32
_SMALL = 4096  # elements of a state on a CPU up to which a look costs more than a step


class FiniteWatch:
    """Looks at the states of a solve now and then, and finds the step, level and samples where NaN or infinity began.

    Arguments:
        y0: The initial state; its device and size say how often it pays to look.
        dtype: The dtype in which the states must be finite, if not their own.

    Raises:
        NonFiniteError: At a note or a look; see there.

    Example:
        >>> watch = FiniteWatch(torch.zeros(2))
        >>> watch.note(0, 0.0, {1: torch.ones(2)}, torch.ones(2))
        >>> watch.note(1, 0.5, {1: torch.tensor([1.0, torch.inf])}, torch.tensor([1.0, torch.inf]))
        >>> watch.look()
        Traceback (most recent call last):
        ...
        multilevel_sde.errors.NonFiniteError: the drift of level 2 was not finite at step 1, time 0.5, samples [1]; ...
    """

    def __init__(self, y0: Tensor, dtype: torch.dtype | None = None):
        self.host, self.dtype = _on_host(y0), dtype
        self.every = _GPU_STEPS if not self.host else _SMALL_STEPS if y0.numel() <= _SMALL else 1
        self.seen: list[tuple[int, float, dict[int, Tensor]]] = []
        self.states: list[Tensor] = []
        self.latest = y0

    def note(self, n: int, t: float, values: dict[int, Tensor], y: Tensor) -> None:
        """Take note of the drifts' values at step n, time t, and of the state y after it; look if it is time to."""
        if self.dtype is not None:
            y = y.to(self.dtype)
        if not self.host and y.numel():  # keep one number of each, not the states: the largest; NaN after a NaN
            self.latest = y
            values = {level: _largest(value) for level, value in values.items()}
            y = _largest(y)
        self.seen.append((n, t, values))
        self.states.append(y)
        if len(self.states) == self.every:
            self.look()

    def look(self) -> None:
        """Raise NonFiniteError at the first state since the last look that is not finite."""
        seen, states, self.seen, self.states = self.seen, self.states, [], []
        if not seen or math.isfinite(_sum(states)):
            return
        for (n, t, values), y in zip(seen, states, strict=True):  # unless it was only the sum that overflowed
            if not is_finite(y):
                bad = [level for level, value in values.items() if not is_finite(value)]
                finite = (y if self.host else self.latest).detach().isfinite()
                per_sample = finite.reshape(len(finite), -1).all(1) if finite.dim() else finite.reshape(1)
                raise NonFiniteError(n, float(t), bad[0] if bad else None, (~per_sample).nonzero()[:, 0].tolist())


def _on_host(y: Tensor) -> bool:
    return y.device.type == "cpu"


def _largest(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x.detach(), math.inf)


def is_finite(x: Tensor) -> bool:
    """Whether all numbers are finite. A finite sum says so without the copies that `isfinite` makes of a large state.

    Example:
        >>> is_finite(torch.tensor([3e38, 3e38])), is_finite(torch.tensor([1.0, torch.nan]))
        (True, False)
    """
    return math.isfinite(_sum([x])) or bool(x.detach().isfinite().all())


def _sum(states: list[Tensor]) -> float:
    if any(state.shape != states[0].shape for state in states):  # a force is no state of positions and momenta
        states = [torch.cat([state.reshape(-1) for state in states])]
    together = states[0] if len(states) == 1 else torch.stack(states)
    total = (together.detach() if together.requires_grad else together).sum()
    try:
        return total.item()
    except RuntimeError:
        if not transformed():
            raise
        raise ValueError(
            '"check_finite" cannot look at numbers inside torch.vmap; pass check_finite=False, and look at the result'
        ) from None
