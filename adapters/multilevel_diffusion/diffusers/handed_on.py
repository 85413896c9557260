"""What a pipeline hands on to its scheduler: watched steps.

Stored values mean the same at every call only if the scheduler gets what the model said, or a weighted mean of it
(guidance). Some pipelines turn its sign or make something else of it, which the first step shows.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["ChangedOutputError", "HandedOn", "watched_step"]

_MOST = 4  # answers of one step that guidance combines
_LEAST = 0.5  # weight of the answers in what is handed on, and share of it that they explain


class ChangedOutputError(ValueError):
    """A scheduler gets something else than its model's output."""


class _Step:
    """The step of a scheduler that tells what it took and made; copies of the scheduler have their own, unwatched."""

    def __init__(self, scheduler: Any, tell: Callable[[Tensor, Tensor], None]):
        self._scheduler, self._step, self._tell = scheduler, scheduler.step, tell
        self._own = "step" in vars(scheduler)
        functools.update_wrapper(self, self._step, updated=())  # pipelines ask for the signature
        scheduler.step = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self._step(*args, **kwargs)
        self._tell(args[0] if args else kwargs["model_output"], result[0])
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo[id(self._scheduler)]
        return functools.partial(type(copied).step, copied)

    def remove(self) -> None:
        """Leave the scheduler as it was."""
        if vars(self._scheduler).get("step") is not self:
            return
        if self._own:
            self._scheduler.step = self._step
        else:
            del self._scheduler.step


@contextlib.contextmanager
def watched_step(scheduler: Any) -> Iterator[list[Tensor]]:
    """A list that holds the state after the last step that the scheduler made."""
    state: list[Tensor] = []
    step = _Step(scheduler, lambda _, made: state.__setitem__(slice(None), [made]))
    try:
        yield state
    finally:
        step.remove()


class HandedOn:
    """Check at the first step of a scheduler that it gets a weighted mean of the answers noted before it.

    Arguments:
        scheduler: Its next step is watched.

    Attributes:
        changed: Whether it got something else.

    Example:
        >>> from diffusers import EulerDiscreteScheduler
        >>> scheduler, x = EulerDiscreteScheduler(), torch.randn(1, 3, 4, 4)
        >>> scheduler.set_timesteps(2)
        >>> handed = HandedOn(scheduler)
        >>> handed.note(x)
        >>> state = scheduler.step(-x, scheduler.timesteps[0], x)
        Traceback (most recent call last):
        ...
        multilevel_diffusion.diffusers.handed_on.ChangedOutputError: the pipeline makes something else of its model's...
    """

    def __init__(self, scheduler: Any):
        self._name, self._answers, self.changed = type(scheduler).__name__, [], False
        self._step = _Step(scheduler, self._check)

    def note(self, answer: Tensor) -> None:
        """Keep an answer of the first step."""
        if len(self._answers) < _MOST:
            self._answers.append(answer)

    def end(self) -> None:
        """Watch no longer."""
        self._answers = []
        self._step.remove()

    def _check(self, taken: Tensor, _: Tensor) -> None:
        answers = self._answers
        self.end()
        shape = taken.squeeze().shape  # Z-Image's answers have an axis of one frame more
        parts = [part for answer in answers for part in answer.split(len(taken)) if part.squeeze().shape == shape]
        if not parts:
            return
        columns = torch.stack([part.flatten() for part in parts]).float()
        products, aim = (columns @ columns.T).double().cpu(), (columns @ taken.flatten().float()).double().cpu()
        weights = torch.linalg.pinv(products, hermitian=True) @ aim
        explained = float(weights @ aim) / max(float(taken.double().square().sum()), 1e-300)
        if float(weights.sum()) < _LEAST or explained < _LEAST:
            self.changed = True
            raise ChangedOutputError(
                f"the pipeline makes something else of its model's output before the step of {self._name}, so that "
                "plans that remember would store wrong values; run it again, from now on they are not used"
            )
