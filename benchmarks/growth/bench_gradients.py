"""How much memory does a gradient through a solve take, and how much with torch.utils.checkpoint?

    python benchmarks/growth/bench_gradients.py

A network 64-256-256-64 with tanh as the drift, 256 samples in float32, Euler steps, the gradient of its parameters.
Counted are the bytes of all tensors alive at the worst moment of solve and backward, beyond those before: a count, so
it is the same on every machine. The gradients are compared with those without checkpoints.
"""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import multilevel_sde as mls

SAMPLES, SIDE, WIDTH = 256, 64, 256


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside and still alive, and the most there were at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and look at the memory of what it made."""
        before = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = function(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and made.untyped_storage()._cdata not in self._known | before:
                storage = made.untyped_storage()
                self._known.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.now)
        return result

    def _gone(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.now -= size


def peak(
    net: nn.Module, drift: Callable[[Tensor, Tensor], Tensor], steps: int, mode: str
) -> tuple[float, list[Tensor]]:
    """Return the MiB alive at the worst moment, and the gradients."""
    ladder, times = mls.Ladder([drift], costs=[1.0]), torch.linspace(0.0, 1.0, steps + 1)
    y0 = torch.randn(SAMPLES, SIDE, generator=torch.Generator().manual_seed(0))
    net.zero_grad()
    with Alive() as alive:
        if mode == "no_grad":
            with torch.no_grad():
                mls.solve(ladder, y0, times, mls.em_plan(ladder, times))
        else:
            y = mls.solve(ladder, y0, times, mls.em_plan(ladder, times), gradients=None if mode == "grad" else False).y
            if mode == "grad":
                y.square().sum().backward()
    return alive.most / 2**20, [p.grad.clone() for p in net.parameters() if p.grad is not None]


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(SIDE, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, SIDE))
    plain = lambda y, t: net(y)  # noqa: E731
    saving = lambda y, t: checkpoint(net, y, use_reentrant=False)  # noqa: E731
    print("| steps | no graph: `torch.no_grad()` | no graph: `gradients=False` | gradient | gradient, `checkpoint` |")
    print("|---|---|---|---|---|")
    for steps in (10, 100, 1000):
        row = [peak(net, plain, steps, mode)[0] for mode in ("no_grad", "off")]
        whole, exact = peak(net, plain, steps, "grad")
        less, found = peak(net, saving, steps, "grad")
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(exact, found, strict=True))
        print(f"| {steps} | " + " | ".join(f"{value:.2f} MiB" for value in (*row, whole, less)) + " |")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
