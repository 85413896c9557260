"""Are states and noise those of their seeds? They are asked for again before anything expensive relies on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from multilevel_sde.noise.brownian import Brownian, BrownianPath
from multilevel_sde.noise.diffusion import Diffusion
from multilevel_sde.solver.noise_along import increments_along
from multilevel_sde.steps.rules import Step, StepRule

__all__ = ["check_noise", "check_noise_source", "check_states", "near"]


def check_states(name: str, source: Callable[[Sequence[int]], Tensor], seeds: Sequence[int], y0: Tensor) -> None:
    """Ask for the states of every other seed again.

    Raises:
        ValueError: A state is not that of its seed.
    """
    again = source(seeds[::2])
    if not isinstance(again, Tensor) or not near(again.detach(), y0[::2].detach()):
        raise ValueError(
            f'"{name}" gave other states when it was asked for {len(seeds[::2])} of the {len(seeds)} seeds again; '
            "each state must follow from its own seed, as in lambda seeds: mls.seeded_normal(seeds, (2,))"
        )


def check_noise(ask: Callable[[], Iterator[Any]]) -> None:
    """Ask a `brownian` for its first increment twice.

    Raises:
        ValueError: They differ.
    """
    if not near(_first(ask()), _first(ask())):
        raise ValueError(
            '"brownian" gave other noise when it was asked for the same interval again; all runs must see one path, '
            "as of mls.BrownianPath(seeds)"
        )


def check_noise_source(
    source: Callable[[Sequence[int]], Brownian | BrownianPath],
    step: Step | StepRule,
    diffusion: Diffusion,
    grid: Tensor,
    seeds: Sequence[int],
    y0: Tensor,
) -> None:
    """Ask a source of noise again, for the same seeds and for others.

    Raises:
        ValueError: The noise is not that of the seeds, or is the same for other seeds.
    """

    def first(part: slice) -> Tensor:
        return _first(increments_along(step, diffusion, source(seeds[part]), grid, y0[part]))

    everyone = slice(None)
    if not near(first(everyone), first(everyone)):
        raise ValueError(
            '"brownian_source" gave other noise when it was asked for the same seeds again; noise must follow from '
            "the seeds, as in lambda seeds: mls.BrownianPath(seeds, grid=times)"
        )
    if len(seeds) < 2:
        return
    even, odd = first(slice(0, None, 2)), first(slice(1, None, 2))
    if odd.any() and torch.equal(even[: len(odd)], odd):
        raise ValueError(
            '"brownian_source" gave the same noise for other seeds; pass on the seeds that it is given, as in '
            "lambda seeds: mls.BrownianPath(seeds, grid=times)"
        )


def near(again: Tensor, first: Tensor) -> bool:
    """Whether they are the same, but for how another batch is rounded.

    Example:
        >>> near(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.001])), near(torch.ones(2), torch.zeros(2))
        (True, False)
    """
    if again.shape != first.shape:
        return False
    rounding = 1e-3 * float(first.abs().max()) if first.numel() else 0.0
    return torch.allclose(again, first, rtol=0.0, atol=rounding, equal_nan=True)


def _first(increments: Iterator[Any]) -> Tensor:
    found = next(increments)
    return found[0] if isinstance(found, tuple) else found
