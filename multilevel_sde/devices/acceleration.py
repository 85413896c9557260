"""Drifts made faster one by one: lower precision, compiled, replayed as a CUDA graph. Each takes and gives a drift.

Every level may have its own: the multilevel sum takes values in the state's dtype and does not ask how they were
computed. What a level is replaced by is what the ladder converges to, so a top level in bfloat16 has its rounding in
the result, while that of a lower level is corrected by the levels above. Cost in FLOPs is the same as before; price the
new ladder with :class:`SecondsCost`.

References:
    Micikevicius et al., "Mixed Precision Training", 2018 (arXiv 1710.03740).
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multilevel_sde.arguments import check_drift
from multilevel_sde.cost import Drift

__all__ = ["Autocast", "CudaGraph", "compiled"]

_GPU = "cuda"
_ISOLATES = "isolate_recompiles" in inspect.signature(torch.compile).parameters  # older torch has it not
_WARM_UP = 3  # calls before a graph is captured: libraries choose their kernels in them


@dataclass(frozen=True)
class Autocast:
    r"""A drift whose matrix products and convolutions run in half precision; its value has the state's dtype.

    An operand is rounded by at most 2^-9 (bfloat16) or 2^-11 (float16) of itself, so values agree with those of the
    full precision to about so much, times a constant of the network. float16 overflows above 65504. Weights are cast at
    every call; `multilevel_diffusion.cheap_levels.half_weights` casts them once.

    Arguments:
        drift: The drift f(x, t).
        dtype: torch.bfloat16 or torch.float16.

    Raises:
        TypeError: `drift` is not callable.
        ValueError: Another dtype.

    Example:
        >>> layer = torch.nn.Linear(4, 4)
        >>> drift = Autocast(lambda x, t: layer(x))
        >>> drift(torch.ones(2, 4), torch.tensor(0.0)).dtype
        torch.float32
    """

    drift: Drift
    dtype: torch.dtype = torch.bfloat16

    def __post_init__(self) -> None:
        check_drift(self.drift)
        if self.dtype not in (torch.bfloat16, torch.float16):
            raise ValueError(f'"dtype" is {self.dtype}, expected torch.bfloat16 or torch.float16')

    def __call__(self, x: Tensor, t: Tensor, /, **conditions: Tensor) -> Tensor:
        """Return f(x, t, **conditions), computed in half precision, shaped and typed like x."""
        with torch.autocast(x.device.type, dtype=self.dtype):
            return self.drift(x, t, **conditions).to(x.dtype)


def compiled(drift: Drift, *, fullgraph: bool = False, backend: str | Callable = "inductor") -> Drift:
    """Return the drift compiled by torch for the shapes that it meets, without looking at its values.

    Shapes are static: the first call with each batch size compiles, which takes seconds to minutes, and later calls
    with it are fast. With one draw for the batch a plan asks for one size only; a draw per sample asks for many, and is
    not for compiled drifts. Each drift may be compiled for as many batch sizes as torch allows (8), whatever others of
    its class are; with a torch that has no `isolate_recompiles` they share this number, and what is beyond it runs as
    it is, with a line in torch's log. Values differ from those of the drift by rounding.

    A denoiser of `multilevel_diffusion` is better compiled from within:
    `dataclasses.replace(denoiser, net=compiled(denoiser.net))`.

    Arguments:
        drift: The drift f(x, t).
        fullgraph: Refuse a drift that can only be compiled in parts.
        backend: A backend of `torch.compile`, by its name or as a function; the default needs a C++ compiler or a GPU.

    Raises:
        TypeError: `drift` is not callable.

    Example:
        >>> drift = compiled(lambda x, t: -t * x, backend="eager")
        >>> drift(torch.ones(2), torch.tensor(0.5))
        tensor([-0.5000, -0.5000])
    """
    check_drift(drift)
    options: dict[str, Any] = {"isolate_recompiles": True} if _ISOLATES else {}
    return torch.compile(drift, dynamic=False, fullgraph=fullgraph, backend=backend, **options)


class CudaGraph:
    """A drift that a GPU replays from a recording, so that launching its kernels costs the host nothing.

    Made for cheap levels, whose time on a GPU is mostly launches, in the many steps where only they run. Each shape and
    dtype of a state is recorded at its first call, with buffers of its own; the drift must ask the same kernels of the
    device at every call, must not make the host wait for it, and its weights must stay where they are. Values are
    copied out of the buffers, so they may be kept.

    Away from a GPU, and where a gradient is wanted (with grad mode on, of the state or of parameters of the drift), the
    drift is called as it is; the first such call says so.

    Arguments:
        drift: The drift f(x, t).

    Raises:
        TypeError: `drift` is not callable.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(action="ignore"):
        ...     print(CudaGraph(lambda x, t: -x)(torch.ones(2), torch.tensor(0.0)))
        tensor([-1., -1.])

    References:
        Ng et al., "Accelerating PyTorch with CUDA Graphs", PyTorch blog, 2021.
    """

    def __init__(self, drift: Drift):
        check_drift(drift)
        self.drift = drift
        self._recordings: dict[tuple, _Recording] = {}
        self._wanting: set[tuple] = set()  # shapes of states for which parameters of the drift require a gradient
        self._plain: set[tuple] = set()  # and for which they do not
        self._warned = False

    def __call__(self, x: Tensor, t: Tensor, /, **conditions: Tensor) -> Tensor:
        """Return f(x, t, **conditions)."""
        given = (x, t, *conditions.values())
        key = (tuple(conditions), *((one.shape, one.dtype, one.device) for one in given))
        wanted = torch.is_grad_enabled() and any(one.requires_grad for one in given)
        if x.device.type != _GPU or wanted or (torch.is_grad_enabled() and key in self._wanting):
            self._warn(x)
            return self.drift(x, t, **conditions)
        if torch.is_grad_enabled() and key not in self._plain:
            value = self.drift(x, t, **conditions)
            if value.requires_grad:  # parameters of the drift do
                self._wanting.add(key)
                self._warn(x)
                return value
            self._plain.add(key)
        if key not in self._recordings:
            self._recordings[key] = _record(self.drift, x, t, **conditions)
        return self._recordings[key](*given)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the recordings, which are memory of this process's GPU."""
        return self.__dict__ | {"_recordings": {}}

    def _warn(self, x: Tensor) -> None:
        if not self._warned:
            self._warned = True
            reason = f'the state is on "{x.device}"'
            if x.device.type == _GPU:
                reason = "a gradient is wanted; solve inside torch.no_grad() where none is"
            warnings.warn(f"CudaGraph calls its drift without a graph: {reason}", RuntimeWarning, stacklevel=3)


@dataclass(frozen=True)
class _Recording:
    """The buffers of a recorded call (the state, the time and the conditions), and what replays it."""

    given: tuple[Tensor, ...]
    value: Tensor
    replay: Callable[[], object]

    def __call__(self, *given: Tensor) -> Tensor:
        for buffer, value in zip(self.given, given, strict=True):
            buffer.copy_(value)
        self.replay()
        return self.value.clone()


@torch.no_grad()
def _record(drift: Drift, x: Tensor, t: Tensor, /, **conditions: Tensor) -> _Recording:
    """Record a call on a GPU."""
    x, t, conditions = x.clone(), t.clone(), {name: value.clone() for name, value in conditions.items()}
    stream = torch.cuda.Stream(x.device)
    stream.wait_stream(torch.cuda.current_stream(x.device))
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            drift(x, t, **conditions)
    torch.cuda.current_stream(x.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Of this thread only: an Offload may load weights from its own meanwhile.
    with torch.cuda.device(x.device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        value = drift(x, t, **conditions)
    return _Recording((x, t, *conditions.values()), value, graph.replay)
