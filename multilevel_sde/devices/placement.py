"""Ladders that do not fit one device: each level where its weights are, and only the state moves.

A drift is evaluated on a device of its own: the state x and the time t go there, the value comes back. That is
numel(x) numbers each way for an evaluation, against the weights of a network; an expensive level is evaluated rarely,
so its device may even be a slow one. Levels on two GPUs run at the same time, as a GPU does not make the host wait.

Where there is one device only, keep the expensive levels' weights off it with :class:`multilevel_sde.Offload`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multilevel_sde.arguments import check_drift
from multilevel_sde.cost import Drift, GivenCost
from multilevel_sde.ladder import Ladder
from multilevel_sde.times import device_dtype

__all__ = ["OnDevice", "place"]


@dataclass(frozen=True)
class OnDevice:
    """A drift that is evaluated on a device of its own: x and t are moved there, the value is moved back.

    Arguments:
        drift: The drift f(x, t); its weights must already be on `device`.
        device: Where to evaluate it.

    Raises:
        TypeError: `drift` is not callable.

    Example:
        >>> drift = OnDevice(lambda x, t: -x, "cpu")
        >>> drift(torch.ones(2), torch.tensor(0.0))
        tensor([-1., -1.])
    """

    drift: Drift
    device: torch.device | str

    def __post_init__(self) -> None:
        check_drift(self.drift)
        object.__setattr__(self, "device", torch.device(self.device))

    def __call__(self, x: Tensor, t: Tensor, /, **conditions: Tensor) -> Tensor:
        """Return f(x, t, **conditions) on the device of x."""
        moved = {name: _moved(value, self.device) for name, value in conditions.items()}
        return _moved(self.drift(_moved(x, self.device), _moved(t, self.device), **moved), x.device)


def place(ladder: Ladder, devices: Sequence[torch.device | str | None]) -> Ladder:
    """Return the ladder with every level evaluated on a device of its own.

    The weights are not moved: do that first, as in `network.to("cuda:1")`. The solve is that of the ladder without
    placement, bit for bit where the devices compute alike.

    Arguments:
        ladder: K levels.
        devices: One for each level; None evaluates the level where the state is.

    Raises:
        ValueError: There is not one device for each level.

    Example:
        >>> import multilevel_sde as mls
        >>> mls.place(mls.Ladder([lambda x, t: -x, lambda x, t: -x.sin()], [1.0, 8.0]), [None, "cpu"])
        Ladder(2 levels, costs=[1.0, 8.0] units)
    """
    if len(devices) != len(ladder):
        raise ValueError(f'"devices" has {len(devices)} entries for {len(ladder)} levels; give one device or None each')
    drifts = [
        drift if device is None else OnDevice(drift, device)
        for drift, device in zip(ladder.drifts, devices, strict=True)
    ]
    return Ladder(drifts, GivenCost(ladder.costs, ladder.unit))


def _moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    # A copy to the host must be complete when it is read; on a GPU the order of its stream sees to that.
    device = torch.device(device)
    if device_dtype(tensor.dtype, device) != tensor.dtype:
        tensor = tensor.float()
    return tensor.to(device, non_blocking=device.type != "cpu")
