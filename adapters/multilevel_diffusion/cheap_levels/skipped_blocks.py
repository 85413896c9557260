r"""A cheap level with fewer layers: named blocks of a network hand their input on.

A residual block computes h + g(h), so leaving it out is a perturbation by g(h); where the last blocks of a stack are
left out, this is early exit. Which blocks can go is measured: `block_effects` says what leaving out each one saves and
changes, `choose_blocks` leaves out the cheapest in change per operation until enough is saved.

Only blocks whose output has the shape of their first input can be left out, and a block that consumes more than its
input (an iterator, say) makes the network fail or differ wildly; both show in the trial run that `skip_blocks` makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import multilevel_sde as mls
from multilevel_diffusion.cheap_levels.wrapped_networks import (
    AnyDrift,
    answer_with,
    check_names,
    network_of,
    relative_difference,
    twin,
    with_network,
)
from multilevel_sde.cost import Drift

__all__ = ["BlockEffect", "block_effects", "choose_blocks", "skip_blocks"]


@dataclass(frozen=True)
class BlockEffect:
    """What leaving out one block does.

    Attributes:
        name: The submodule.
        saved: Part of the drift's FLOPs that it saves.
        change: Mean squared change of the drift over the mean square of the drift.
    """

    name: str
    saved: float
    change: float


def skip_blocks(drift: AnyDrift, names: Sequence[str], x: Tensor, t: float = 0.5) -> AnyDrift:
    """Return the drift without some blocks of its network; each hands on its first input.

    The network given stays as it is, and shares its weights with the new one.

    Arguments:
        drift: A module called as net(x, t), or a denoiser around one.
        names: Submodules to leave out, as in net.named_modules().
        x: An example state on which both are tried once.
        t: Its time.

    Raises:
        TypeError: There is no module in the drift.
        ValueError: A name is unknown or lies inside another; a block's output is not shaped like its first input; the
            network cannot do without.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> class Timeless(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layers = net
        ...     def forward(self, x, t):
        ...         return self.layers(x)
        >>> x = torch.ones(1, 2)
        >>> cheap = skip_blocks(Timeless(), ["layers.1"], x)
        >>> torch.equal(cheap(x, torch.tensor(0.5)), net[0](x))
        True
    """
    net, time = network_of(drift), torch.tensor(t, dtype=torch.float64, device=x.device)
    seen: dict[str, bool] = {}
    with torch.no_grad():
        expected = with_network(drift, _watched(net, names, seen))(x, time)
        for name in names:
            if not seen.get(name, False):
                raise ValueError(
                    f'"names" has {name!r}, which is not evaluated or whose output is not a tensor like its first '
                    "input; only such blocks can be left out"
                )
        cheap = with_network(drift, _without(net, names))
        try:
            fits = cheap(x, time).shape == expected.shape
        except (RuntimeError, StopIteration, IndexError) as error:
            raise ValueError(f'"names" is {list(names)}, without which the network fails: {error}') from error
    if not fits:
        raise ValueError(f'"names" is {list(names)}, without which the drift has another shape; leave out others')
    return cheap


def block_effects(
    drift: Drift, states: Tensor, times: Tensor, *, names: Sequence[str] | None = None, skipped: Sequence[str] = ()
) -> list[BlockEffect]:
    """Measure what leaving out each block saves and changes, the least change per saved operation first.

    Arguments:
        drift: A module called as net(x, t), or a denoiser around one.
        states: States along a few trajectories, (S, B, ...), for example `solve(..., save=True).ys[:-1]`.
        times: Their times, (S,).
        names: Blocks to try; by default all submodules that can be left out and save anything.
        skipped: Blocks that are left out already.

    Raises:
        TypeError: There is no module in the drift.
        ValueError: A name is unknown, or the states do not fit the times.

    Example:
        >>> from multilevel_diffusion.networks.store import load_ladder, shipped_ladder
        >>> net = load_ladder(shipped_ladder("digits")).networks[0]
        >>> effects = block_effects(net, torch.zeros(1, 2, 1, 8, 8), torch.tensor([0.5]))
        >>> effects[0].name
        'bottom.0'
    """
    if len(states) != len(times) or not len(times):
        raise ValueError(
            f'"states" has {len(states)} times, "times" has {len(times)}; give states (S, B, ...) and (S,)'
        )
    example, moment = states[0, :1], float(times[0])
    known = [name for name, _ in network_of(drift).named_modules() if name]
    flops = mls.FlopCost(example, moment)
    with torch.no_grad():
        targets = torch.stack([drift(x, t) for x, t in zip(states, times, strict=True)])
        full, before = flops([drift, skip_blocks(drift, skipped, example, moment) if skipped else drift])
        effects = []
        for name in known if names is None else names:
            try:
                cheap = skip_blocks(drift, [*skipped, name], example, moment)
            except ValueError:
                if names is not None:
                    raise
                continue
            saved = (before - flops([cheap])[0]) / full
            if saved <= 0 and names is None:
                continue
            values = torch.stack([cheap(x, t) for x, t in zip(states, times, strict=True)])
            effects.append(BlockEffect(name, saved, relative_difference(values, targets)))
    return sorted(effects, key=lambda effect: effect.change / max(effect.saved, 1e-12))


def choose_blocks(drift: Drift, states: Tensor, times: Tensor, *, saving: float) -> list[str]:
    """Return the names of blocks to leave out, one after the other, until a part of the FLOPs is saved.

    Each time it is the block whose removal, on top of those before, changes the drift least per saved operation.

    Arguments:
        drift: A module called as net(x, t), or a denoiser around one.
        states: As for `block_effects`.
        times: As for `block_effects`.
        saving: Part of the FLOPs to save, in (0, 1).

    Raises:
        ValueError: `saving` is outside (0, 1), or cannot be reached.

    Example:
        >>> from multilevel_diffusion.networks.store import load_ladder, shipped_ladder
        >>> net = load_ladder(shipped_ladder("digits")).networks[1]
        >>> states = torch.zeros(1, 2, 1, 8, 8)
        >>> len(choose_blocks(net, states, torch.tensor([0.5]), saving=0.3))
        2
    """
    if not 0 < saving < 1:
        raise ValueError(f'"saving" is {saving}, expected a part of the FLOPs in (0, 1)')
    chosen: list[str] = []
    saved = 0.0
    candidates: list[str] | None = None
    while saved < saving:
        effects = block_effects(drift, states, times, skipped=chosen, names=candidates)
        if candidates is None:
            candidates = [effect.name for effect in effects]
        if not effects:
            raise ValueError(f'"saving" is {saving}, but leaving out all blocks that can be saves {saved:.3f}')
        chosen.append(effects[0].name)
        saved += effects[0].saved
        candidates = [name for name in candidates if not _related(name, effects[0].name)]
    return chosen


def _related(name: str, other: str) -> bool:
    """Whether two submodules are the same, or one lies inside the other."""
    return name == other or name.startswith(other + ".") or other.startswith(name + ".")


def _watched(net: nn.Module, names: Sequence[str], seen: dict[str, bool]) -> nn.Module:
    """Return a twin that notes which named modules ran, with an output like their first input."""
    check_names(net, names)
    watched = twin(net)
    for name in names:

        def note(_: nn.Module, inputs: tuple[Any, ...], output: Any, name: str = name) -> None:
            first = inputs[0] if inputs else None
            seen[name] = (
                isinstance(first, Tensor)
                and isinstance(output, Tensor)
                and (first.shape, first.dtype) == (output.shape, output.dtype)
            )

        watched.get_submodule(name).register_forward_hook(note)
    return watched


def _without(net: nn.Module, names: Sequence[str]) -> nn.Module:
    """Return a twin whose named modules hand on their first input."""
    shorter = twin(net)
    for name in names:
        answer_with(shorter.get_submodule(name), lambda first, *_, **__: first)
    return shorter
