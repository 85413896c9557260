"""Where a pipeline is in its trajectory: asked of its scheduler where one is known, else guessed from the calls.

Most pipelines of diffusers tell their denoiser neither the step nor where a trajectory begins; those that name the step
in `cache_context` are believed. The scheduler knows: every `set_timesteps` makes a new tensor `timesteps`, and most
schedulers count their steps in `step_index`, a Python integer that costs no wait for a GPU. The others (DDPM, DDIM,
PNDM), and those of which a pipeline steps copies (SkyReels), repeat a time only where they step, so the time of the
call decides; reading it waits for a GPU once a call, as those schedulers do themselves. Times may rise within a run
where the scheduler goes back (RePaint).
"""

from __future__ import annotations

import math
import weakref
from typing import Any

import torch
from torch import Tensor

from multilevel_diffusion.loops.trajectory import Trajectory

__all__ = ["PipelineClock"]

_FOREIGN = (
    "the pipeline that the ladder is installed in is not the one that calls it: its scheduler was not set for this "
    "run, or stands still; give both pipelines one scheduler, or detach the ladder and attach it to the one that runs"
)
_TIMES = 2  # different times in a call: of what is made, and of what is given (image to video)


class PipelineClock:
    """Number the calls of a pipeline's denoiser.

    Arguments:
        rise: See :class:`Trajectory`.

    Attributes:
        slot: Name of the denoiser in the linked pipeline.
        offset: Where in the scheduler's timesteps this trajectory began.

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
        self.link(None)

    @property
    def pipe(self) -> Any:
        """The linked pipeline, None without one, and when it is gone."""
        return None if self._pipe is None else self._pipe()

    @property
    def scheduler(self) -> Any:
        """The scheduler of the linked pipeline, None without one; the last one where another pipeline took it over."""
        pipe = self.pipe
        if pipe is not None:
            self._scheduler = getattr(pipe, "scheduler", None)
        return self._scheduler

    @property
    def number(self) -> int:
        """Trajectories begun so far."""
        return self._trajectory.number

    @property
    def calls(self) -> int | None:
        """Calls of a whole trajectory of the linked scheduler, None where not known."""
        return None if self._timesteps is None else self._count(self._timesteps)

    @property
    def calls_of_slot(self) -> int | None:
        """Calls of the linked slot from where this run begins: a part, or one of two experts (Wan 2.2)."""
        if self._timesteps is None:
            return None
        left, pipe = self._timesteps[self.offset :], self.pipe
        share = getattr(pipe, "config", {}).get("boundary_ratio") if pipe is not None else None
        if share is not None and self.slot == "transformer" and getattr(pipe, "transformer_2", None) is not None:
            return int((left >= share * self.scheduler.config.num_train_timesteps).sum())
        return self._count(left)

    @property
    def made(self) -> int:
        """Calls of the present trajectory so far; several at one step count once."""
        return self._trajectory.position + 1

    def link(self, pipe: Any, slot: str | None = None) -> None:
        """Ask the scheduler of this pipeline, held weakly, from now on; None forgets it."""
        self._pipe = None if pipe is None else weakref.ref(pipe)
        self._scheduler = getattr(pipe, "scheduler", None)
        self._used = getattr(self._scheduler, "timesteps", None)
        self.slot = slot
        self.reset()

    def reset(self) -> None:
        """Make the next call the first of a trajectory."""
        self._timesteps: Tensor | None = None
        self._time: Tensor | float | None = None
        self._step = self._first_step = -1
        self._stands = False  # the scheduler, while its copies step
        self._shows = self._doubted = False  # its own timesteps; whose the calls are
        self.offset = 0
        self._trajectory.reset()

    def __getstate__(self) -> dict[str, Any]:
        """Forget the pipeline, which is another one in another process."""
        return self.__dict__ | {"_pipe": None, "_scheduler": None, "_used": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> PipelineClock:
        """Link the clock of a copied pipeline to the copy."""
        new = PipelineClock(self._trajectory.rise)
        memo[id(self)] = new
        new.link(memo.get(id(self.pipe)), self.slot)
        return new

    def visit(self, time: Tensor | float, state: Tensor, step: int | None = None) -> int:
        """Return the position of this call in its trajectory, 0, 1, ...

        Where the trajectory is a later part of the scheduler's timesteps (image to image), `offset` says where in them
        it began.

        Arguments:
            time: Of the call.
            state: What the model is given.
            step: Number of the step in the pipeline's loop, where the pipeline says it.

        Raises:
            ValueError: The linked pipeline is not the one that calls, or parts of the state are at times of their own.
        """
        if isinstance(time, Tensor) and time.dim() > 1 and len(time.unique()) > _TIMES:
            raise ValueError(
                "the frames of a call are at different times (diffusion forcing), for which there are no plans; run "
                "the pipeline with ar_step=0, or detach the ladder"
            )
        number, scheduler = self.number, self.scheduler
        timesteps = getattr(scheduler, "timesteps", None)
        if scheduler is not None and timesteps is None:
            raise ValueError(_FOREIGN)
        position = self._visit(time, state, step, timesteps)
        if isinstance(timesteps, Tensor):
            self._check_caller(time, timesteps, begins=self.number != number)
        return position

    def _visit(self, time: Tensor | float, state: Tensor, step: int | None, timesteps: Tensor | None) -> int:
        scheduler = self._scheduler
        begins = timesteps is not self._timesteps
        if begins:
            self.reset()
            self._timesteps = timesteps
        counts = hasattr(scheduler, "step_index")
        if step is not None:
            if begins or step < self._step:
                self._trajectory.reset()
                self._first_step = step
                self.offset = _index(scheduler) if counts else self._place_of(time)
            self._step = step
            return self._trajectory.place(step - self._first_step)
        if counts and timesteps is not None and not self._stands:
            index = _index(scheduler)
            if begins:
                self.offset = index
            position = index - self.offset
            moves = position != self._trajectory.position or _number(time) == _number(self._time)
            if index < len(timesteps) and (begins or moves):
                self._time = time
                return self._trajectory.place(position)
            if self.offset < index < len(timesteps) or not bool((timesteps == _number(time)).any()):
                raise ValueError(_FOREIGN)
            self._stands = True
            if index < len(timesteps):
                self._trajectory.resume(_number(self._time))
            else:
                self._trajectory.reset()
        number = self._trajectory.number
        position = self._trajectory.visit(_number(time), state, rises=hasattr(scheduler, "undo_step"))
        if self._trajectory.number != number and timesteps is not None:
            self.offset = self._place_of(time)
        return position

    def _check_caller(self, time: Tensor | float, timesteps: Tensor, *, begins: bool) -> None:
        """Refuse calls of a pipeline that has a scheduler of its own, so that the linked one was not set for them.

        A call at a view of the timesteps is none of these. Times are compared in a run at timesteps that a run before
        had, and where those of the first call were a view.
        """
        if begins:
            self._shows = _is_view(time, timesteps)
            self._doubted, self._used = timesteps is self._used, timesteps
        doubted = (self._doubted or self._shows) and not _is_view(time, timesteps)
        if not doubted or hasattr(self._scheduler, "undo_step"):
            return
        place = self.offset + self._trajectory.position
        if place >= len(timesteps) or not _is_time(time, float(timesteps[place])):
            self.reset()
            raise ValueError(_FOREIGN)

    def _place_of(self, time: Tensor | float) -> int:
        """Where a time stands in the timesteps."""
        if self._timesteps is None:
            return 0
        found = (self._timesteps == _number(time)).nonzero()
        return int(found[0, 0]) if len(found) else 0

    def _count(self, timesteps: Tensor) -> int:
        """Calls at these timesteps, the last of a run; where they rise, a scheduler that goes back calls no model."""
        if hasattr(self._scheduler, "undo_step"):
            return 1 + int((timesteps[1:] < timesteps[:-1]).sum())
        ends = "Wuerstchen" in type(self._scheduler).__name__  # the last of its times is where it ends
        return len(timesteps) - ends


def _index(scheduler: Any) -> int:
    """Where a scheduler is that counts its steps."""
    index = scheduler.step_index
    return (getattr(scheduler, "begin_index", None) or 0) if index is None else index


def _is_view(time: Tensor | float, timesteps: Tensor) -> bool:
    """Whether a time is a part of the timesteps, not only a number like one."""
    start = timesteps.data_ptr()
    return isinstance(time, Tensor) and 0 <= time.data_ptr() - start < timesteps.numel() * timesteps.element_size()


def _is_time(time: Tensor | float, expected: float) -> bool:
    """Whether a time is that of a timestep, as it is or in thousands, in the precision that it has."""
    rough = isinstance(time, Tensor) and time.dtype in (torch.float16, torch.bfloat16)
    tolerance = 2.0**-7 if rough else 1e-5
    return any(math.isclose(_number(time), one, rel_tol=tolerance) for one in (expected, expected / 1000))


def _number(time: Tensor | float | None) -> float:
    """A time as a number; of the entries of a batch, which share it, the largest: given frames are at none."""
    if isinstance(time, Tensor):
        return float(time.max())
    return math.nan if time is None else float(time)
