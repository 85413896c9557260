"""Dear levels whose weights are on the device only around their hits, loaded ahead because the plan is known.

All offloaded levels share one buffer on the device, as large as the largest of them: the slot. The weights wait in host
memory (pinned where the device is a GPU) or in a safetensors file; an evaluation of a level finds them in the slot. A
generic offloader must guess what comes next. A plan says it before the solve: as soon as a level was evaluated, the
weights of the next offloaded level that the plan hits are loaded by a thread, on a stream of their own, while the cheap
levels run. With hits m steps apart the transfer is hidden where m evaluations of what stays resident take as long.

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

import torch
from torch import Tensor, nn

from multilevel_sde.cost import Drift, GivenCost
from multilevel_sde.ladder import Ladder
from multilevel_sde.plan import Plan
from multilevel_sde.slot import Weights, checked_weights, weight_bytes

__all__ = ["Offload", "OffloadStats"]


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
        >>> class Dear(nn.Linear):
        ...     def forward(self, x, t):
        ...         return super().forward(x)
        >>> dear = Dear(4, 4).requires_grad_(False)
        >>> ladder = mls.Ladder([lambda x, t: -x, dear], costs=[1.0, 16.0])
        >>> times = torch.linspace(0.0, 1.0, 9)
        >>> plan = mls.draw_plan(torch.tensor([1.0, 0.25]).expand(8, 2), generator=torch.Generator().manual_seed(0))
        >>> expected = mls.solve(ladder, torch.ones(2, 4), times, plan).y
        >>> offload = mls.Offload(ladder, {1: dear})
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
        order = _Order([] if plan is None else _sequence(plan, self._weights))
        drifts = [
            _OffloadedDrift(self, level, drift, order) if level in self._weights else drift
            for level, drift in enumerate(self._ladder.drifts)
        ]
        return Ladder(drifts, GivenCost(self._ladder.costs, self._ladder.unit))

    @property
    def stats(self) -> OffloadStats:
        """What was loaded so far; on a GPU this waits for the device."""
        if self._stalls:
            torch.cuda.synchronize(self._device)
            self._waited += sum(before.elapsed_time(after) for before, after in self._stalls) / 1000
            self._stalls.clear()
        return OffloadStats(self._loads, self._prefetched, self._loaded, self._waited)

    def _evaluate(self, level: int, drift: Drift, order: _Order, x: Tensor, t: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError(
                f"level {level} is offloaded and cannot be differentiated: its weights are gone when the gradient is "
                "taken; solve with gradients=False, or leave the level out of the Offload"
            )
        with self._lock:
            self._bring(level)
            value = drift(x, t)
            self._free = self._now()
            following = order.after(level)
            if following is not None and following != level:
                self._start(following)
        return value

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
            if self._pending is not None:
                self._pending[1].exception()  # another level is on its way: let it finish, whatever becomes of it
            self._start(level)
        assert self._pending is not None
        (_, load), self._pending = self._pending, None
        begin = time.perf_counter()
        arrived = load.result()
        self._waited += time.perf_counter() - begin
        if arrived is not None:
            self._wait_for(arrived)
        self._weights[level].attach()
        self.resident = level
        self._loads += 1
        self._prefetched += ahead
        self._loaded += self._weights[level].bytes

    def _wait_for(self, arrived: torch.cuda.Event) -> None:
        """Let the current stream wait, and note how long it does."""
        stream = torch.cuda.current_stream(self._device)
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record(stream)
        stream.wait_event(arrived)
        after.record(stream)
        self._stalls.append((before, after))

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

    def __init__(self, offload: Offload, level: int, drift: Drift, order: _Order):
        self._parts = offload, level, drift, order

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        offload, level, drift, order = self._parts
        return offload._evaluate(level, drift, order, x, t)


class _Order:
    """The offloaded levels in the order in which a plan evaluates them, over and over."""

    def __init__(self, levels: Sequence[int]):
        self.levels, self.place = levels, 0

    def after(self, level: int) -> int | None:
        """Return what follows the next evaluation of a level, None where the plan does not evaluate it."""
        count = len(self.levels)
        for ahead in range(count):
            place = (self.place + ahead) % count
            if self.levels[place] == level:
                self.place = (place + 1) % count
                return self.levels[self.place]
        return None


def _sequence(plan: Plan, levels: Mapping[int, object]) -> list[int]:
    needed = plan.needed if plan.samples is None else plan.needed.any(1)
    return [level for row in needed.tolist() for level, need in enumerate(row) if need and level in levels]
