"""What the cheap levels share: the network inside a drift, and a copy of it that may change but has the same weights.

A drift here is a plain `torch.nn.Module` called as net(x, t), or one of the package's denoisers around such a module.
Whatever a cheap level changes, it changes in a twin: a copy of the module tree that holds the same parameters, so it
costs no memory and the network it came from is never touched.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor, nn

from multilevel_diffusion.networks.denoisers import DataDenoiser, EDMDenoiser, EpsilonDenoiser, FlowDenoiser, VDenoiser
from multilevel_sde.cost import Drift

__all__ = ["AnyDrift", "answer_with", "check_names", "network_of", "relative_difference", "twin", "with_network"]

_DENOISERS = (DataDenoiser, EDMDenoiser, EpsilonDenoiser, FlowDenoiser, VDenoiser)

AnyDrift = TypeVar("AnyDrift", bound=Drift)


def network_of(drift: Drift) -> nn.Module:
    """Return the network of a drift: a module itself, or the one inside a denoiser.

    Arguments:
        drift: An `nn.Module` called as net(x, t), or a denoiser of `multilevel_diffusion` whose `net` is one.

    Raises:
        TypeError: There is no module to be found.

    Example:
        >>> net = nn.Bilinear(2, 2, 2)
        >>> network_of(net) is net
        True
    """
    net = drift.net if isinstance(drift, _DENOISERS) else drift
    if isinstance(net, nn.Module):
        return net
    raise TypeError(
        f'"drift" is a {type(drift).__name__}, expected an nn.Module called as net(x, t) or a denoiser such as '
        "EpsilonDenoiser around one; write a function around a network as an nn.Module"
    )


def with_network(drift: AnyDrift, net: nn.Module) -> AnyDrift:
    """Return the drift with another network: the network itself, or the denoiser around it.

    Arguments:
        drift: As for `network_of`.
        net: The module to use instead.

    Raises:
        TypeError: There is no module in the drift.

    Example:
        >>> with_network(nn.Bilinear(2, 2, 2), nn.Identity())
        Identity()
    """
    network_of(drift)
    return replace(drift, net=net) if isinstance(drift, _DENOISERS) else net  # type: ignore[return-value]


def twin(net: nn.Module) -> nn.Module:
    """Return a copy of the module tree with the same parameters and buffers, not copies of them.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> twin(net).weight is net.weight, twin(net) is net
        (True, False)
    """
    return copy.deepcopy(net, {id(tensor): tensor for tensor in [*net.parameters(), *net.buffers()]})


def answer_with(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Let one module of a twin answer with another function; all its other attributes stay readable."""
    vars(module)["forward"] = forward


def check_names(net: nn.Module, names: Sequence[str]) -> None:
    """Raise ValueError unless these are names of different submodules, none of them inside another."""
    known = dict(net.named_modules())
    if isinstance(names, str) or not names:
        raise ValueError(f'"names" is {names!r}, expected a list of names of submodules, as in net.named_modules()')
    for name in names:
        if name not in known or not name:
            raise ValueError(f'"names" has {name!r}, which is no submodule; take names from net.named_modules()')
        outer = [other for other in names if name.startswith(other + ".")]
        if outer or list(names).count(name) > 1:
            raise ValueError(f'"names" has {name!r}, which is named twice or lies inside {outer}; name it once')


def relative_difference(value: Tensor, reference: Tensor) -> float:
    """Return mean |value - reference|^2 / mean |reference|^2.

    Example:
        >>> import torch
        >>> relative_difference(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]))
        0.25
    """
    square = reference.double().square().mean()
    return float((value.double() - reference.double()).square().mean() / square)
