"""Expensive levels whose weights are on the device only around their hits, loaded ahead because the plan is known.

All offloaded levels share one buffer on the device, as large as the largest of them: the slot. The weights wait in host
memory (pinned where the device is a GPU) or in a safetensors file; an evaluation of a level finds them in the slot. A
generic offloader must guess what comes next. A plan says it before the solve: as soon as a level was evaluated, the
weights of the next offloaded level that the plan hits are loaded by a thread, on a stream of their own, while the cheap
levels run. With hits m steps apart the transfer is hidden where m evaluations of what stays resident take as long.
Levels that a step needs together are evaluated most expensive first, so that the loads to be waited for, those within
a step, are of the smaller ones.

Weights are copied, never changed, so a solve gives what it gives without offloading, bit for bit. A plan other than the
announced one costs waiting, not correctness.

References:
    Rajbhandari et al., "ZeRO-Infinity", 2021 (arXiv 2104.07857): weights moved in while others compute.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn

from multilevel_sde.cost import GivenCost
from multilevel_sde.devices.offload_slot import Weights, checked_weights, weight_bytes
from multilevel_sde.ladder import Ladder
from multilevel_sde.plans.plan import Plan

__all__ = ["Offload", "OffloadStats"]

_KEPT = 256  # pairs of events kept before they are read


@dataclass(frozen=True)
class OffloadStats:
    """What an :class:`Offload` did so far.

    Attributes:
        loads: How often weights were loaded into the slot.
        prefetched: How many of these loads had been begun before their level was asked for.
        bytes: Bytes loaded.
        waited: Seconds for which evaluations waited for weights (on a GPU: for which its stream did).
    """

    loads: int
    prefetched: int
    bytes: int
    waited: float


class Offload:
    """Levels of a ladder whose weights take turns in one buffer on the device.

    The modules are changed: their parameters are empty while their weights are not in the slot, so that a use outside
    :meth:`ladder` fails instead of computing with other weights. One solve at a time; others wait at each evaluation.

    Arguments:
        ladder: K levels; the drifts of the offloaded ones compute with their module's weights.
        modules: For each offloaded level (0-based) the module whose parameters and persistent buffers are moved.
            They must not require gradients.
        device: Where the slot is and the modules are evaluated.
        files: For some of these levels a safetensors file of the module's weights, read at every load; the others' are
            kept in host memory.

    Attributes:
        resident: The level whose weights are in the slot, None while there is none or one is being loaded.
        slot_bytes: Size of the slot.

    Raises:
        TypeError: Something in `modules` is no module.
        ValueError: A level does not exist, a module has no weights, has some that require gradients or that another
            level has too; a file does not hold a module's weights.

    Example:
        >>> import multilevel_sde as mls
        >>> class Large(nn.Linear):
        ...     def forward(self, x, t):
        ...         return super().forward(x)
        >>> large = Large(4, 4).requires_grad_(False)
        >>> ladder = mls.Ladder([lambda x, t: -x, large], costs=[1.0, 16.0])
        >>> times = torch.linspace(0.0, 1.0, 9)
        >>> plan = mls.draw_plan(torch.tensor([1.0, 0.25]).expand(8, 2), generator=torch.Generator().manual_seed(0))
        >>> expected = mls.solve(ladder, torch.ones(2, 4), times, plan).y
        >>> offload = mls.Offload(ladder, {1: large})
        >>> torch.equal(mls.solve(offload.ladder(plan), torch.ones(2, 4), times, plan).y, expected), offload.slot_bytes
        (True, 512)
    """

    def __init__(
        self,
        ladder: Ladder,
        modules: Mapping[int, nn.Module],
        *,
        device: torch.device | str = "cpu",
        files: Mapping[int, str | Path] | None = None,
    ):
        self._ladder, self._device = ladder, torch.device(device)
        files = {level: Path(path) for level, path in (files or {}).items()}
        weights = checked_weights(ladder, modules, files)
        self.slot_bytes = max(map(weight_bytes, weights.values()))
        slot = torch.empty(self.slot_bytes, dtype=torch.uint8, device=self._device)
        self._weights: dict[int, Weights] = {}
        for level, tensors in weights.items():
            self._weights[level] = Weights(tensors, slot, files.get(level))
            modules[level].to(self._device)  # what is not in the slot: buffers that no file has
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        if self._stream is not None:
            slot.record_stream(self._stream)  # a load under way keeps the memory when all this is dropped
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="offload")
        self._lock = threading.Lock()
        self._pending: tuple[int, Future[torch.cuda.Event | None]] | None = None
        self._free = self._now()  # when the slot's last user is done
        self._loads = self._prefetched = self._loaded = 0
        self._waited = 0.0
        self._stalls: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self.resident: int | None = None

    def ladder(self, plan: Plan | None = None) -> Ladder:
        """Return the ladder whose offloaded levels load their weights when they are evaluated.

        Arguments:
            plan: What will be solved, any number of times, one after the other; its next hit is loaded ahead. None
                loads on demand only.

        Raises:
            ValueError: The plan has another number of levels.
        """
        if plan is not None:
            plan.check_ladder(self._ladder)
        rows = _Rows([] if plan is None else _dearest_first(plan, self._weights))
        drifts = [
            _OffloadedDrift(self, level, rows) if level in self._weights else drift
            for level, drift in enumerate(self._ladder.drifts)
        ]
        return Ladder(drifts, GivenCost(self._ladder.costs, self._ladder.unit))

    def __reduce__(self) -> NoReturn:
        raise TypeError('"Offload" holds a buffer and a thread of its process; make one in each process')

    @property
    def stats(self) -> OffloadStats:
        """What was loaded so far; on a GPU this waits for the device."""
        self._count_stalls()
        return OffloadStats(self._loads, self._prefetched, self._loaded, self._waited)

    def _evaluate(self, level: int, rows: _Rows, x: Tensor, t: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError(
                f"level {level + 1} is offloaded and cannot be differentiated: its weights are gone when the gradient "
                "is taken; solve with gradients=False, or leave the level out of the Offload"
            )
        with self._lock:
            where = (x, t, *conditions.values())
            value = rows.kept(level, where)
            if value is not None:
                return value
            row, following = rows.next(level)
            values = {}
            for place, now in enumerate(row):
                self._bring(now)
                values[now] = self._ladder.drifts[now](x, t, **conditions)
                self._free = self._now()
                after = row[place + 1] if place + 1 < len(row) else following
                if after is not None and after != now:
                    self._start(after)
            rows.keep(values, level, where)
        return values[level]

    def _now(self) -> torch.cuda.Event | None:
        """Return an event after what the device was asked for so far."""
        if self._stream is None:
            return None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _start(self, level: int) -> None:
        """Begin to load a level into the slot, which nobody needs any more."""
        if self.resident is not None:
            self._weights[self.resident].detach()
            self.resident = None
        self._pending = level, self._thread.submit(self._load, level, self._free)

    def _bring(self, level: int) -> None:
        """Have the weights of a level in the slot."""
        if self.resident == level:
            return
        ahead = self._pending is not None and self._pending[0] == level
        if not ahead:
            self._start(level)  # after what may be on its way: one thread loads one after the other
        assert self._pending is not None
        (_, load), self._pending = self._pending, None
        begin = time.perf_counter()
        arrived = load.result()
        self._waited += time.perf_counter() - begin
        if arrived is not None:
            self._wait_for(arrived)
        self._weights[level].attach()
        self.resident = level
        self._loads, self._prefetched = self._loads + 1, self._prefetched + ahead
        self._loaded += self._weights[level].bytes

    def _wait_for(self, arrived: torch.cuda.Event) -> None:
        """Let the current stream wait, and note how long it does."""
        stream = torch.cuda.current_stream(self._device)
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record(stream)
        stream.wait_event(arrived)
        after.record(stream)
        self._stalls.append((before, after))
        if len(self._stalls) == _KEPT:
            self._count_stalls()

    def _count_stalls(self) -> None:
        """Add up how long the stream waited, which the device must have done first."""
        if self._stalls:
            self._stalls[-1][1].synchronize()
            self._waited += sum(before.elapsed_time(after) for before, after in self._stalls) / 1000
            self._stalls.clear()

    def _load(self, level: int, free: torch.cuda.Event | None) -> torch.cuda.Event | None:
        """Fill the slot; in the thread."""
        if self._stream is None:
            self._weights[level].fill()
            return None
        with torch.cuda.stream(self._stream):
            if free is not None:
                self._stream.wait_event(free)
            self._weights[level].fill()
            arrived = torch.cuda.Event()
            arrived.record(self._stream)
        return arrived


class _OffloadedDrift:
    """A level of an offloaded ladder."""

    def __init__(self, offload: Offload, level: int, rows: _Rows):
        self._parts = offload, level, rows

    def __call__(self, x: Tensor, t: Tensor, /, **conditions: Tensor) -> Tensor:
        offload, level, rows = self._parts
        return offload._evaluate(level, rows, x, t, conditions)


class _Rows:
    """Which offloaded levels a plan evaluates together, row after row, over and over; and values not yet asked for."""

    def __init__(self, rows: Sequence[Sequence[int]]):
        self._rows, self._place = rows, 0
        self._lowest = {row[-1] for row in rows}
        self._together = True
        self._values: dict[int, Tensor] = {}
        self._where: tuple[Tensor, ...] | None = None

    def next(self, level: int) -> tuple[Sequence[int], int | None]:
        """Return the levels of the next row that begins by asking for this one, and what comes after them.

        Where the plan has no such row, that is this level and nothing.
        """
        if self._values:  # they were never asked for: another plan than the announced one, or other states
            self._together = False
        count = len(self._rows)
        for ahead in range(count if level in self._lowest else 0):
            place = (self._place + ahead) % count
            if self._rows[place][-1] == level:
                self._place = (place + 1) % count
                row = self._rows[place] if self._together else [level]
                return row, self._rows[self._place][0 if self._together else -1]
        return [level], None

    def keep(self, values: dict[int, Tensor], level: int, where: tuple[Tensor, ...]) -> None:
        """Keep the values at (x, t, conditions) of all levels but this one."""
        self._values = {other: value for other, value in values.items() if other != level}
        self._where = where if self._values else None

    def kept(self, level: int, where: tuple[Tensor, ...]) -> Tensor | None:
        """Return the value of a level at (x, t, conditions) if it is there, and forget it."""
        if self._where is None or [*map(id, self._where)] != [*map(id, where)]:
            return None
        value = self._values.pop(level, None)
        if not self._values:
            self._where = None
        return value


def _dearest_first(plan: Plan, levels: Mapping[int, object]) -> list[list[int]]:
    """Return the offloaded levels of every row of a plan that has some."""
    needed = plan.needed if plan.samples is None else plan.needed.any(1)
    rows = [[level for level, need in enumerate(row) if need and level in levels][::-1] for row in needed.tolist()]
    if plan.samples is not None:  # each level sees other samples: they cannot be evaluated together
        rows = [[level] for row in rows for level in reversed(row)]
    return [row for row in rows if row]
