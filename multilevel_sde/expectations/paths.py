"""Values of phi on paths: one seed a sample, the same seed on the same path at every level and step size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, distributed
from tqdm.auto import tqdm

from multilevel_sde.arguments import required_arguments
from multilevel_sde.errors import NonFiniteError
from multilevel_sde.expectations.grids import Grids
from multilevel_sde.expectations.terms import Index, Term
from multilevel_sde.ladder import Ladder
from multilevel_sde.noise.brownian import Brownian, BrownianPath
from multilevel_sde.noise.counter import hash_seeds
from multilevel_sde.noise.diffusion import Diffusion
from multilevel_sde.plans.drawing import em_plan
from multilevel_sde.plans.plan import Plan
from multilevel_sde.solver.integrate import solve
from multilevel_sde.solver.noise_along import increments_along
from multilevel_sde.solver.seeds import check_noise_source, check_states, near
from multilevel_sde.steps.rules import Step, StepRule

__all__ = ["LARGEST", "Paths", "seeds_of"]

_HUGE = 1e15  # a state that is as good as infinite
LARGEST = 1e60  # of phi: its fourth power is summed
_ELEMENTS, _SAVED = 1 << 18, 1 << 22  # numbers of the states of a batch, and of all its saved states


def seeds_of(seed: int, stream: int, first: int, count: int) -> range:
    """Return the seeds of samples first ... first + count - 1 of a stream.

    Streams begin at places that a hash chooses among 2^61, so that they do not meet.

    Example:
        >>> seeds_of(0, 1, 0, 10)[4] == seeds_of(0, 1, 4, 2)[0], seeds_of(0, 1, 0, 1) == seeds_of(0, 2, 0, 1)
        (True, False)
    """
    (key,) = hash_seeds([seed]).tolist()
    (begin,) = hash_seeds([key + stream]).tolist()
    begin = (begin & ((1 << 61) - 1)) + first
    return range(begin, begin + count)


@dataclass
class Paths:
    """What samples are made of.

    Arguments:
        phi: phi(states), phi(states, times) or phi(states, times, seeds) -> (n,) or (n, m).
        ladder: K levels.
        start: start(seeds) -> states.
        grids: From coarse to fine.
        step: As for `solve`.
        diffusion: The same.
        brownian_source: brownian_source(seeds) -> noise.
        batch: Samples of one solve, or None.
        antithetic: Whether fine paths come in pairs.
        ranks: Whether the processes of torch.distributed share the samples.
    """

    phi: Callable[..., Tensor]
    ladder: Ladder
    start: Callable[[Sequence[int]], Tensor]
    grids: Grids
    step: Step | StepRule
    diffusion: Diffusion | None
    brownian_source: Callable[[Sequence[int]], Brownian | BrownianPath] | None
    batch: int | None = None
    antithetic: bool = False
    ranks: bool = False
    scalar: bool | None = None  # whether phi gives one number a sample; known after the first call
    outputs: int = 0
    bar: tqdm | None = None  # which is told what every batch cost
    _plans: dict[Index, tuple[Ladder, Plan]] = field(default_factory=dict)
    _takes: int = 0
    _numel: int | None = None

    def __post_init__(self) -> None:
        self._takes = required_arguments(self.phi) or 1

    def cost(self, index: Index) -> float:
        """Return the cost of one path."""
        return self.grids.cost(self.ladder, index[0], index[1])

    def of_term(self, term: Term, seeds: range) -> Tensor:
        """Return samples of a term, float64 (n, m)."""
        values = self.at([index for index, _ in term.parts], seeds)
        return sum(sign * value for (_, sign), value in zip(term.parts, values, strict=True))  # type: ignore[return-value]

    def at(self, indices: Sequence[Index], seeds: range) -> list[Tensor]:
        """Return the values of phi at every index for the same seeds, float64 (n, m) each."""
        if not self.ranks:
            return self._here(indices, seeds)
        rank, world = distributed.get_rank(), distributed.get_world_size()
        cut = [len(seeds) * part // world for part in range(world + 1)]
        mine: Any = None
        try:
            mine = self._here(indices, seeds[cut[rank] : cut[rank + 1]])
        except Exception as error:  # the others wait for this rank: they must hear of it
            mine = error
        parts: list[Any] = [None] * world
        distributed.all_gather_object(parts, mine)
        for part in parts:
            if isinstance(part, Exception):
                raise part
        parts = [part for part in parts if part]
        return [torch.cat([part[n] for part in parts]) for n in range(len(indices))]

    def _here(self, indices: Sequence[Index], seeds: range) -> list[Tensor]:
        found: list[list[Tensor]] = [[] for _ in indices]
        first = 0
        while first < len(seeds):
            some = seeds[first : first + self._size(indices)]
            y0 = self._states(some)
            new, self._numel = self._numel is None, max(1, y0[0].numel())
            noise = None if self.brownian_source is None else self.brownian_source(some)
            for values, index in zip(found, indices, strict=True):
                values.append(self._value(index, y0, noise, some))
            if new:
                self._check_seeds(some, y0)
            if self.bar is not None:
                world = distributed.get_world_size() if self.ranks else 1
                self.bar.update(world * len(some) * sum(map(self.cost, indices)))
            first += len(some)
        return [torch.cat(values) for values in found] if len(seeds) else []

    def _size(self, indices: Sequence[Index]) -> int:
        """Return how many samples to take at a time, once a first batch has shown how large a state is."""
        if self.batch is not None or self._numel is None:
            return self.batch or 256
        kept = max(self.grids.saved(index[1]) for index in indices)
        return max(1, min(1 << 16, _ELEMENTS // self._numel, _SAVED // (self._numel * kept)))

    def _states(self, seeds: Sequence[int]) -> Tensor:
        y0 = self.start(seeds)
        if not isinstance(y0, Tensor) or y0.dim() == 0 or len(y0) != len(seeds):
            got = f"shape {tuple(y0.shape)}" if isinstance(y0, Tensor) else type(y0).__name__
            raise ValueError(
                f'"start" must return a Tensor with one state for each of {len(seeds)} seeds, got {got}; for example '
                "lambda seeds: torch.ones(len(seeds), 2)"
            )
        if not y0.is_floating_point():
            raise TypeError(f'"start" must return floating-point states, got {y0.dtype}; for example with .double()')
        return y0

    def _check_seeds(self, seeds: range, y0: Tensor) -> None:
        check_states("start", self._states, seeds, y0)
        if self.brownian_source is not None and self.diffusion is not None:
            check_noise_source(self.brownian_source, self.step, self.diffusion, self.grids.times[0], seeds, y0)

    @torch.no_grad()
    def _value(self, index: Index, y0: Tensor, noise: Brownian | BrownianPath | None, seeds: range) -> Tensor:
        level, grid = index[:2]
        times, kept = self.grids.times[grid], self.grids.kept[grid]
        if index[:2] not in self._plans:
            ladder = self.ladder.subset(range(level + 1))  # errors then name the level by its own number
            self._plans[index[:2]] = ladder, em_plan(ladder, times, step=self.step)
        ladder, plan = self._plans[index[:2]]
        if len(index) == 3 and noise is not None and self.diffusion is not None:
            source = increments_along(self.step, self.diffusion, noise, times, y0)
            turned = _reversed_inside(source, self.grids.inside(grid, index[2]))
            noise = lambda t, s: next(turned)  # noqa: E731 - a callable of an interval, asked in order
        given: dict[str, Any] = {"step": self.step, "diffusion": self.diffusion, "brownian": noise, "save": kept}
        solution = solve(ladder, y0, times, plan, gradients=False, **given)
        states = solution.y if kept is False else solution.ys
        part = None
        if self.scalar is None:  # a first call: is a value that of its own sample?
            part = (states[::2] if kept is False else states[:, ::2]).clone()
        value = self.phi(*(states, solution.times, seeds)[: self._takes])
        largest = float(states.abs().max()) if states.numel() else 0.0
        good = largest <= _HUGE or not isinstance(value, Tensor) or value.is_complex()
        if not good and not bool((value.double().abs() <= LARGEST).all()):
            raise NonFiniteError(len(times) - 2, float(times[-2]), None, [])  # the path is to blame, not phi
        table = self._checked(value, index, seeds)
        if part is not None:
            again = self._checked(self.phi(*(part, solution.times, seeds[::2])[: self._takes]), index, seeds[::2])
            if not near(again, table[::2]):
                raise ValueError(
                    f'"phi" gave other values when it saw {len(again)} of the {len(seeds)} samples again; each value '
                    "must follow from the states of its own sample, and random numbers in it from its third argument, "
                    "the seeds"
                )
        return table

    def _checked(self, value: Any, index: Index, seeds: range) -> Tensor:
        n = len(seeds)
        good = isinstance(value, Tensor) and not value.is_complex() and value.dim() in (1, 2) and len(value) == n
        if not good or (value.dim() == 2 and not value.shape[1]):
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            got = "complex numbers" if isinstance(value, Tensor) and value.is_complex() else got
            raise ValueError(
                f'"phi" must return a real Tensor of shape ({n},) or ({n}, m) for {n} samples, got {got}; reduce what '
                "belongs to one sample, such as y.flatten(1).sum(1)"
            )
        scalar = value.dim() == 1
        table = value.detach().reshape(n, -1).to("cpu", torch.float64)
        if self.scalar is None:
            self.scalar, self.outputs = scalar, table.shape[1]
        elif scalar != self.scalar or table.shape[1] != self.outputs:
            expected = f"({n},)" if self.scalar else f"({n}, {self.outputs})"
            raise ValueError(f'"phi" must return the same shape always, got {tuple(value.shape)} after {expected}')
        if not math.isfinite(float(table.sum())) and not bool(table.isfinite().all()):
            bad = int((~table.isfinite().all(1)).nonzero()[0, 0])
            raise ValueError(
                f'"phi" returned {float(table[bad][~table[bad].isfinite()][0])} for the sample of seed {seeds[bad]} at '
                f"level {index[0] + 1} with {self.grids.steps(index[1])} steps; make it finite, or look at that path "
                f"with start([{seeds[bad]}])"
            )
        if float(table.abs().max()) > LARGEST:
            raise ValueError(
                f'"phi" returned {float(table.abs().max()):.3g}, and the fourth powers of its values must be numbers, '
                f"up to {LARGEST:.0e}; give it in another unit"
            )
        return table


def _reversed_inside(source: Iterator[Tensor], counts: Sequence[int]) -> Iterator[Tensor]:
    """The increments of a grid, in reversed order inside each step of a coarser one, which takes so many."""
    for count in counts:
        yield from reversed(list(islice(source, count)))
