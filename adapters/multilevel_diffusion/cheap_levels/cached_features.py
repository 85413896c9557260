r"""A cheap level that keeps the deep features of an earlier evaluation and recomputes the shallow layers only.

The features deep inside a denoiser change slowly along a trajectory. `cached_ladder` names the modules whose outputs
are kept (for our UNet `deep_modules`); a cheap evaluation puts the kept outputs in their places and runs the rest on
the present state and time. DeepCache alone is the cheap level of such a ladder by itself; the multilevel sum corrects
what the stale features do.

**When the features are renewed** is what makes f^1 a drift with memory, and there are two ways:

- `every=N`: the cheap level renews them itself, at every N-th of its steps, whatever the plan does. f^1 then depends on
  the path so far and on nothing else, so E[F | path] = f^2 for every way of drawing that has it for levels without
  memory. Its price is the mean of a full evaluation and N - 1 shallow ones.
- `every=None`: they are those of the most recent evaluation of the full network f^2, which costs nothing extra. f^1 now
  depends on when the plan hit before. With **independent** draws a hit does not depend on earlier ones, so still
  E[F | path] = f^2. With **systematic** draws and planned hits it does: a correction is then taken only where the
  features are oldest, and stands for steps where they are younger. The sum is **biased**, towards over-correction.
  The first step needs a full evaluation: make p = 1 there, or the cheap level makes one that no plan counts.

Within one step the cheap level is asked first, so a correction compares the new full evaluation with what the cheap
level made of the *old* features; the other order would make every correction zero. `multilevel_sde.solve` asks in this
order. A memory belongs to one trajectory of one batch (see `MemoryLadder`); plans with a draw for each sample evaluate
parts of a batch, whose features cannot be told, and are refused. A pilot measures f^1 along the full network's path, so
it needs `every=N` too: with `every=None` what f^1 is depends on the plan that the pilot is to find.

References:
    Ma, Fang, Wang 2023, DeepCache: Accelerating Diffusion Models for Free (arXiv 2312.00858).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import multilevel_sde as mls
from multilevel_diffusion.cheap_levels.memory_ladder import MemoryLadder
from multilevel_diffusion.cheap_levels.wrapped_networks import answer_with, check_names, network_of, twin, with_network
from multilevel_diffusion.networks.unet import UNet
from multilevel_sde.cost import CostModel, Drift

__all__ = ["cached_ladder", "deep_modules"]


def deep_modules(net: UNet, depth: int = 1) -> list[str]:
    """Return the modules of our UNet that lie below a scale: what `cached_ladder` is to keep.

    Arguments:
        net: The network.
        depth: How many scales are recomputed, from the full side down; at least 1 and at most net.config.levels.

    Raises:
        ValueError: There are not so many scales.

    Example:
        >>> from multilevel_diffusion.networks.store import load_ladder, shipped_ladder
        >>> deep_modules(load_ladder(shipped_ladder("digits")).networks[1])
        ['bottom.0', 'shrink.0', 'grow.0']
    """
    levels = net.config.levels
    if not 1 <= depth <= levels:
        raise ValueError(f'"depth" is {depth}, expected 1 to {levels}: a scale below it must be left to be kept')
    stacks = [*(f"down.{level}" for level in range(depth, levels)), "bottom"]
    stacks += [f"up.{level}" for level in range(depth, levels)]
    # The layers, not their stacks: a stack takes its layers' modulations from an iterator, in order.
    layers = [f"{stack}.{layer}" for stack in stacks for layer, _ in net.get_submodule(stack).named_children()]
    return layers + [f"{part}.{level}" for part in ("shrink", "grow") for level in range(depth - 1, levels)]


def cached_ladder(
    drift: Drift,
    names: Sequence[str],
    x: Tensor,
    t: float = 0.5,
    *,
    every: int | None = None,
    costs: Callable[[Tensor, float], CostModel] = mls.FlopCost,
) -> MemoryLadder:
    """Return the ladder of f^1, the network with kept deep features, and f^2, the network.

    Arguments:
        drift: A module called as net(x, t), or a denoiser around one.
        names: Modules whose outputs are kept, as in net.named_modules(); each must be evaluated once per call.
        x: An example state, with which the levels are priced (one sample, to price one sample).
        t: Its time.
        every: Renew the features at every so many steps of the cheap level; by default at evaluations of f^2 only.
        costs: Cost model of (x, t): `mls.FlopCost` or `mls.SecondsCost`.

    Raises:
        TypeError: There is no module in the drift.
        ValueError: A name is unknown, lies inside another, or is not evaluated once per call; `every` is below 2;
            keeping these features saves nothing.

    Example:
        >>> from multilevel_diffusion.networks.store import load_ladder, shipped_ladder
        >>> digits = load_ladder(shipped_ladder("digits"))
        >>> deep = deep_modules(digits.networks[-1])
        >>> ladder = cached_ladder(digits.denoisers[-1], deep, torch.zeros(1, 1, 8, 8), every=4)
        >>> [round(cost / ladder.costs[-1], 3) for cost in ladder.costs]
        [0.595, 1.0]
    """
    if every is not None and (not isinstance(every, int) or every < 2):
        raise ValueError(f'"every" is {every!r}, expected an integer of at least 2, or None to renew at hits only')
    net = network_of(drift)
    check_names(net, names)

    def make() -> list[Drift]:
        memory = _Memory(every)
        renewing = _Renewing(with_network(drift, _recording(net, names, memory)), memory)
        cheap = _Cheap(with_network(drift, _recalling(net, names, memory)), renewing, memory)
        return [cheap, renewing if every is None else drift]

    priced = _Memory(None)
    with torch.no_grad():
        full = with_network(drift, _recording(net, names, priced))
        priced.renew(full, x, torch.tensor(t, dtype=torch.float64, device=x.device))
    missing = [name for name in names if priced.counts.get(name) != 1]
    if missing:
        raise ValueError(
            f'"names" has {missing[0]!r}, which is evaluated {priced.counts.get(missing[0], 0)} times in a call, '
            "expected once; name other modules"
        )
    model = costs(x, t)
    shallow, whole = model([with_network(drift, _recalling(net, names, priced)), drift])
    cheap = shallow if every is None else (whole + (every - 1) * shallow) / every
    if cheap >= whole:
        raise ValueError(
            f'"names" keeps features that save nothing: {cheap:.4g} against {whole:.4g} {model.unit}; name modules '
            "that cost more"
        )
    return MemoryLadder(make, mls.GivenCost([cheap, whole], model.unit))


@dataclass(eq=False)
class _Memory:
    """The kept features of one trajectory, and how old they are."""

    every: int | None
    features: dict[str, Any] = field(default_factory=dict)
    recorded: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    samples: int = 0
    asked: int = 0  # samples of the present call, a multiple of those kept
    time: Tensor | None = None  # of the cheap level's last step; known by identity, which needs no wait for a GPU
    age: int = 0  # its steps since the features were renewed

    def renew(self, full: Drift, x: Tensor, t: Tensor) -> Tensor:
        """Evaluate the full network and keep its features."""
        self._check(len(x), exactly=True)
        self.recorded, self.counts = {}, {}
        value = full(x, t)
        self.features, self.age = self.recorded, 0
        self.samples = self.asked = len(x)
        return value

    def due(self, x: Tensor, t: Tensor) -> bool:
        """Note a call of the cheap level, and tell whether it is to renew the features."""
        again, self.time = t is self.time, t
        if not self.features:
            return True
        self._check(len(x), exactly=self.every is None)
        self.asked = len(x)
        self.age += not again  # the pilot asks at the same time for perturbed copies
        return self.every is not None and self.age >= self.every

    def _check(self, samples: int, *, exactly: bool) -> None:
        if self.samples and (samples != self.samples if exactly else samples % self.samples):
            raise ValueError(
                f"features are kept for {self.samples} samples, {samples} were asked for: draw one plan for the batch "
                "instead of one per sample, and give every= to a ladder that a pilot is to measure"
            )


@dataclass(frozen=True, eq=False)
class _Renewing:
    """The full network, which leaves its features in the memory."""

    full: Drift
    memory: _Memory

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.memory.renew(self.full, x, t)


@dataclass(frozen=True, eq=False)
class _Cheap:
    """f^1, on kept features."""

    shallow: Drift
    renewing: _Renewing
    memory: _Memory

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.renewing(x, t) if self.memory.due(x, t) else self.shallow(x, t)


def _recording(net: nn.Module, names: Sequence[str], memory: _Memory) -> nn.Module:
    """Return a twin that writes the outputs of the named modules into the memory."""
    recording = twin(net)
    for name in names:

        def keep(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
            memory.recorded[name] = output
            memory.counts[name] = memory.counts.get(name, 0) + 1

        recording.get_submodule(name).register_forward_hook(keep)
    return recording


def _recalling(net: nn.Module, names: Sequence[str], memory: _Memory) -> nn.Module:
    """Return a twin whose named modules answer from the memory."""
    recalling = twin(net)
    for name in names:

        def recall(*_: Any, name: str = name, **__: Any) -> Any:
            return _tiled(memory.features[name], memory.asked // memory.samples)

        answer_with(recalling.get_submodule(name), recall)
    return recalling


def _tiled(features: Any, copies: int) -> Any:
    """Repeat the samples of kept features, for a batch of several perturbed copies."""
    if copies == 1:
        return features
    if isinstance(features, Tensor):
        return features.repeat(copies, *[1] * (features.dim() - 1))
    if isinstance(features, dict):
        return {key: _tiled(value, copies) for key, value in features.items()}
    if isinstance(features, (tuple, list)):
        return type(features)(_tiled(value, copies) for value in features)
    return features
