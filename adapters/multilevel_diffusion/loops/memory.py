r"""A plan that remembers, carried out in a foreign sampling loop.

A plan's stored values are used at other states and noise levels than those at which they were computed, so they are
kept as estimates of the data x_0, in which they mean the same everywhere. At one call of the loop the network's output
F, the state x and x_0 are related by

    x_0 = a x + b F,

with numbers a and b of the noise level alone (for eps: 1 / alpha and -sigma / alpha). The plan is followed in x_0, and
the loop gets the F that belongs to the result. Linear rules that the loop applies to F with weights of sum 1, such as
classifier-free guidance, then act on x_0 alike.

It keeps one state for each value that a later step uses, until its last use (:class:`multilevel_sde.Recall`), in
float32 at least, and one set of them for each of the calls that the loop makes at one step (guidance in two calls).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

import multilevel_sde as mls
from multilevel_sde.solver.estimators import Combine, Telescoping

__all__ = ["DataMap", "Memory", "Streams", "in_data"]


@dataclass(frozen=True)
class DataMap:
    """x_0 = state x + output F at one noise level.

    Attributes:
        state: a.
        output: b, not zero.
        aim: (p, q): the loop is given the output of p x + q x_0 for x_0, where its own step ends beside the next call's
            noise level (DDIM with a number of steps that does not divide that of its table).

    Example:
        >>> eps = DataMap.of("epsilon", 0.8, 0.6)
        >>> x, F = torch.tensor([1.0]), torch.tensor([0.5])
        >>> eps.data(x, F), eps.prediction(x, eps.data(x, F))
        (tensor([0.8750]), tensor([0.5000]))
    """

    state: float
    output: float
    aim: tuple[float, float] = (0.0, 1.0)

    @classmethod
    def of(cls, prediction: str, alpha: float, sigma: float) -> DataMap:
        """Return the map of a network that is shown alpha x_0 + sigma eps.

        Arguments:
            prediction: "epsilon", "v_prediction" (alpha eps - sigma x_0), "sample" (x_0) or "flow_prediction"
                (eps - x_0).
            alpha: Of the state.
            sigma: Of the state.

        Raises:
            ValueError: An unknown prediction, or one that says nothing about x_0 at this noise level.
        """
        numbers = {
            "epsilon": (1.0, -sigma, alpha),
            "v_prediction": (alpha, -sigma, alpha**2 + sigma**2),
            "sample": (0.0, 1.0, 1.0),
            "flow_prediction": (1.0, -sigma, alpha + sigma),
        }
        if prediction not in numbers:
            raise ValueError(f'"prediction" is {prediction!r}, expected one of {", ".join(numbers)}')
        state, output, scale = numbers[prediction]
        if scale == 0 or output == 0:
            where = f"alpha {alpha:g} and sigma {sigma:g}"
            raise ValueError(f"a network that predicts {prediction!r} says nothing about the data at {where}")
        return cls(state / scale, output / scale)

    def data(self, state: Tensor, output: Tensor) -> Tensor:
        """Return the x_0 of an output, shaped like it, in float32 at least.

        Channels that only one of the two has (masks beside the state, variances beside the output) have no x_0: those
        of the state are left out, those of the output are left as they are.
        """
        wide = output.to(torch.promote_types(output.dtype, torch.float32))
        return self._mapped(state, wide, self.state, self.output)

    def prediction(self, state: Tensor, data: Tensor) -> Tensor:
        """Return the output of an x_0: the inverse of :meth:`data`, but for `aim`."""
        if self.aim != (0.0, 1.0):
            data = self._mapped(state, data, *self.aim)
        return self._mapped(state, data, -self.state / self.output, 1 / self.output)

    def _mapped(self, state: Tensor, value: Tensor, a: float, b: float) -> Tensor:
        if state.shape == value.shape:
            return (value * b).add_(state, alpha=a) if a else value * b
        axis = next(axis for axis in range(value.dim()) if state.shape[axis] != value.shape[axis])
        count = min(state.shape[axis], value.shape[axis])
        both = self._mapped(state.narrow(axis, 0, count), value.narrow(axis, 0, count), a, b)
        return torch.cat([both, value.narrow(axis, count, value.shape[axis] - count)], axis)


def in_data(
    here: DataMap | None,
    state: Tensor,
    evaluate: Callable[[int], Tensor],
    answer: Callable[[Callable[[int], Tensor]], Tensor],
) -> Tensor:
    """Let `answer` work with estimates of the data, where these are known, and return the output that it means.

    Arguments:
        here: The map at this call, or None.
        state: That the network is shown.
        evaluate: evaluate(k) is the output of level k.
        answer: answer(evaluate) -> estimate, of the data where there is a map.

    Example:
        >>> eps, x = DataMap.of("epsilon", 0.8, 0.6), torch.tensor([1.0])
        >>> in_data(eps, x, lambda k: torch.tensor([0.5]), lambda data: 1.1 * data(0))
        tensor([0.3833])
    """
    if here is None:
        return answer(evaluate)
    dtype = state.dtype

    def as_data(level: int) -> Tensor:
        nonlocal dtype
        output = evaluate(level)
        dtype = output.dtype
        return here.data(state, output)

    return here.prediction(state, answer(as_data)).to(dtype)


@dataclass
class Streams:
    """Number the calls that a loop makes at one step: 0, 1, ...

    Example:
        >>> streams = Streams()
        >>> [streams.at(n) for n in (0, 0, 1, 1, 2)]
        [0, 1, 0, 1, 0]
    """

    last: int = -1
    stream: int = 0

    def at(self, position: int) -> int:
        """Return the number of this call among those of its step."""
        self.stream = self.stream + 1 if position == self.last else 0
        self.last = position
        return self.stream


@dataclass
class Memory:
    """The stored values of one trajectory by a plan.

    Arguments:
        plan: One draw for the batch, with or without :class:`multilevel_sde.Recall`.

    Example:
        >>> plan = mls.Plan(torch.tensor([[True], [True]]), torch.ones(2, 1), recall=mls.Recall([(1, 0, 0, -0.5)]))
        >>> memory = Memory(plan)
        >>> memory.estimate(0, lambda k: torch.tensor(3.0)), memory.estimate(1, lambda k: torch.tensor(5.0))
        (tensor(3.), tensor(3.5000))
    """

    plan: mls.Plan
    _streams: Streams = field(default_factory=Streams)
    _begun: dict[int, Combine] = field(default_factory=dict)
    _position: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._needed = [torch.nonzero(row)[:, 0].tolist() for row in self.plan.needed]

    def estimate(self, position: int, evaluate: Callable[[int], Tensor]) -> Tensor:
        """Return the estimate of x_0 at a call.

        Arguments:
            position: The row of the plan, one more at each step.
            evaluate: evaluate(k) is the x_0 of level k at this call.

        Raises:
            ValueError: A call at this step that was not made at the step before, or a step that is left out or made
                twice.
        """
        stream = self._streams.at(position)
        made = self._position.get(stream, -1)
        if position != made + 1:
            which = "" if stream == 0 else f" number {stream + 1} of its step"
            raise ValueError(
                f"the plan remembers earlier steps, but a call{which} at step {position + 1} follows one at step "
                f"{made + 1}; take a plan without memory, such as pilot.plan(..., memory=False)"
            )
        if stream not in self._begun:
            self._begun[stream] = Telescoping().start(self.plan)
        self._position[stream] = position
        return self._begun[stream](position, {level: evaluate(level) for level in self._needed[position]})
