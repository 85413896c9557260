"""Where a pipeline is in its trajectory: asked of its scheduler where one is known, else guessed from the calls.

A diffusers pipeline tells its denoiser neither the step nor where a trajectory begins. Its scheduler knows: every
`set_timesteps` makes a new tensor `timesteps`, and most schedulers count their steps in `step_index`, a Python integer
that costs no wait for a GPU. The others (DDPM, DDIM, PNDM) repeat a time only where they step, so the time of the call
decides; reading it waits for a GPU once a call, as those schedulers do themselves.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor

from multilevel_diffusion.loops.trajectory import Trajectory

__all__ = ["PipelineClock"]


class PipelineClock:
    """Number the calls of a pipeline's denoiser.

    Arguments:
        rise: See :class:`Trajectory`.

    Example:
        >>> from diffusers import EulerDiscreteScheduler
        >>> class Pipe:
        ...     scheduler = EulerDiscreteScheduler()
        >>> import torch
        >>> pipe, clock, x = Pipe(), PipelineClock(), torch.zeros(1, 1)
        >>> clock.link(pipe)
        >>> pipe.scheduler.set_timesteps(3)
        >>> for t in pipe.scheduler.timesteps:
        ...     scaled = pipe.scheduler.scale_model_input(x, t)
        ...     print(clock.visit(t, scaled), end=" ")
        ...     x = pipe.scheduler.step(scaled, t, x).prev_sample
        0 1 2
    """

    def __init__(self, rise: float = 1.001):
        self._trajectory = Trajectory(rise)
        self._pipe: Callable[[], Any] = lambda: None
        self._slot: str | None = None
        self.reset()

    @property
    def pipe(self) -> Any:
        """The linked pipeline, None without one."""
        return self._pipe()

    @property
    def scheduler(self) -> Any:
        """The scheduler of the linked pipeline, None without one."""
        return getattr(self.pipe, "scheduler", None)

    @property
    def number(self) -> int:
        """Trajectories begun so far."""
        return self._trajectory.number

    @property
    def calls(self) -> int | None:
        """Calls of a whole trajectory of the linked scheduler, None where not known."""
        return None if self._timesteps is None else len(self._timesteps)

    @property
    def calls_of_slot(self) -> int | None:
        """Calls of the linked slot from where this run begins: a part, or one of two experts (Wan 2.2)."""
        if self._timesteps is None:
            return None
        left, pipe = self._timesteps[self.offset :], self.pipe
        share = getattr(pipe, "config", {}).get("boundary_ratio") if pipe is not None else None
        if share is not None and self._slot == "transformer" and getattr(pipe, "transformer_2", None) is not None:
            return int((left >= share * self.scheduler.config.num_train_timesteps).sum())
        return len(left)

    @property
    def made(self) -> int:
        """Calls of the present trajectory so far; several at one step count once."""
        return self._trajectory.position + 1

    def link(self, pipe: Any, slot: str | None = None) -> None:
        """Ask the scheduler of this pipeline, held weakly, from now on; None forgets it."""
        self._pipe = (lambda: None) if pipe is None else weakref.ref(pipe)
        self._slot = slot
        self.reset()

    def reset(self) -> None:
        """Make the next call the first of a trajectory."""
        self._timesteps: Tensor | None = None
        self._time: Tensor | float | None = None
        self.offset = 0
        self._trajectory.reset()

    def visit(self, time: Tensor | float, state: Tensor) -> int:
        """Return the position of this call in its trajectory, 0, 1, ...

        Where the trajectory is a later part of the scheduler's timesteps (image to image), `offset` says where in them
        it began.
        """
        scheduler = self.scheduler
        timesteps = getattr(scheduler, "timesteps", None)
        begins = timesteps is not self._timesteps
        if begins:
            self.reset()
            self._timesteps = timesteps
        if hasattr(scheduler, "step_index"):
            index = scheduler.step_index
            if index is None:
                index = getattr(scheduler, "begin_index", None) or 0
            if begins:
                self.offset = index
            position = index - self.offset
            if begins or position != self._trajectory.position or _number(time) == _number(self._time):
                self._time = time
                return self._trajectory.place(position)
            warnings.warn(
                "the pipeline that the ladder is installed in is not the one that calls it: its scheduler stands still "
                "while the timesteps go on; install the ladder in the pipeline that runs",
                stacklevel=2,
            )
            self.link(None)
        value = _number(time)
        if begins and timesteps is not None:
            found = (timesteps == value).nonzero()
            self.offset = int(found[0, 0]) if len(found) else 0
        return self._trajectory.visit(value, state)


def _number(time: Tensor | float | None) -> float:
    """A time as a number; of the entries of a batch, which share it, the first."""
    if isinstance(time, Tensor):
        return float(time.flatten()[0])
    return math.nan if time is None else float(time)
