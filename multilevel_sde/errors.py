"""Errors that name where a computation went wrong; bad arguments raise ValueError or TypeError."""

from __future__ import annotations

__all__ = ["NonFiniteError"]


class NonFiniteError(ArithmeticError):
    """The state became NaN or infinite during a solve.

    Attributes:
        step: Index n of the step from times[n] to times[n + 1].
        time: times[n].
        level: The index of the level, from 0, whose drift was not finite, or None where the drifts were finite and the
            update (noise, diffusion, overflow) was not.
        samples: Indices along the first dimension of the state that are not finite.

    Example:
        >>> import torch, multilevel_sde as mls
        >>> ladder, times = mls.Ladder([lambda x, t: x / 0.0], costs=[1.0]), torch.linspace(0.0, 1.0, 5)
        >>> mls.solve(ladder, torch.ones(2), times, mls.em_plan(ladder, times))
        Traceback (most recent call last):
        ...
        multilevel_sde.errors.NonFiniteError: the drift of level 1 was not finite at step 0, time 0, samples [0, 1]; ...
    """

    def __init__(self, step: int, time: float, level: int | None, samples: list[int]):
        self.step, self.time, self.level, self.samples = step, time, level, samples
        shown = f"{samples[:8]}".replace("]", ", ...]") if len(samples) > 8 else f"{samples}"
        who = "the state" if level is None else f"the drift of level {level + 1}"
        what = f"{who} was not finite {'after' if level is None else 'at'}"
        super().__init__(
            f"{what} step {step}, time {time:.6g}, samples {shown}; check the drift there, or take smaller steps"
        )

    def __reduce__(self) -> tuple[type[NonFiniteError], tuple[int, float, int | None, list[int]]]:
        """Keep what it was made of: an exception's own way gives the message alone, which hangs a pool of processes."""
        return type(self), (self.step, self.time, self.level, self.samples)
