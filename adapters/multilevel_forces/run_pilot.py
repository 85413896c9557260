"""pilot(): a short run of the top level on which every level is evaluated, and what follows from it for long runs."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence

import numpy as np
from ase import Atoms
from tqdm.auto import tqdm

import multilevel_sde as mls
from multilevel_forces.blocks import impulses
from multilevel_forces.force_ladder import Forces, Levels, as_prices, levels_of
from multilevel_forces.force_pilot import ForcePilot
from multilevel_forces.langevin import Langevin, Overdamped
from multilevel_forces.spectra import correlation_time, spectrum
from multilevel_forces.systems import Systems
from multilevel_forces.walk import Walk
from multilevel_sde.arguments import as_integer, as_number

__all__ = ["pilot"]

_LEAST_STEPS = 32


def pilot(
    atoms: Atoms | Sequence[Atoms],
    calculators: Levels,
    dynamics: Langevin,
    *,
    steps: int = 256,
    prices: Sequence[float] | None = None,
    tolerance: float = 0.01,
    seed: int = 0,
    progress: bool = False,
) -> ForcePilot:
    """Run the top level for some steps with all levels, and choose levels and periods for a long run.

    Arguments:
        atoms: One system or several, near equilibrium: forces are measured along a run that begins there. Without
            momenta they get those of the temperature.
        calculators: ASE calculators or functions of positions, as for :func:`ladder`, in any order but for the last,
            the top level, whose averages are wanted.
        dynamics: :class:`Langevin`: K, fs, 1/fs.
        steps: Of the run; a few periods of the slowest vibration are enough. It costs as many forces of each level.
        prices: Seconds of one force of all systems; by default the medians of those of the run.
        tolerance: Relative error of temperature and spread that a plan may be expected to have.
        seed: Of momenta and noise.
        progress: Show a bar.

    Returns:
        A :class:`ForcePilot`, which prints as a table with the advice; `.ladder` and `.plan` are what to run. A level
        that is not cheaper than a more accurate one is dropped, and said.

    Raises:
        TypeError, ValueError: Arguments that are none, overdamped dynamics (paths there are short: take
            `multilevel_sde.pilot` with the ladder), fewer than 32 steps.
        ForceError: A calculator failed, or the run blew up.

    Example:
        >>> import torch
        >>> from ase.build import bulk
        >>> copper = bulk("Cu", cubic=True) * (2, 1, 1)
        >>> copper.rattle(0.05, seed=0)
        >>> def bonds(strength):
        ...     start = torch.from_numpy(bulk("Cu", cubic=True).repeat((2, 1, 1)).positions)
        ...     return lambda q: -strength * (q - start)
        >>> found = pilot(copper, [bonds(4.0), bonds(5.0)], Langevin(temperature=300, timestep=2.0),
        ...               steps=64, prices=[0.001, 0.1])
        >>> found.pays, found.best.periods[0], found.best.periods[1] > 4
        (True, 1, True)
    """
    if not isinstance(dynamics, Langevin) or isinstance(dynamics, Overdamped):
        raise TypeError(
            f'"dynamics" must be Langevin(...), got {type(dynamics).__name__}; for overdamped runs take '
            "multilevel_sde.pilot with the ladder"
        )
    count, tolerance = as_integer("steps", steps), as_number("tolerance", tolerance)
    if count < _LEAST_STEPS:
        raise ValueError(f'"steps" must be at least {_LEAST_STEPS}, got {count}; the default is 256')
    if not 0 < tolerance < 1:
        raise ValueError(f'"tolerance" must be between 0 and 1, such as 0.01, got {tolerance}')
    systems = Systems(atoms)
    levels = levels_of(calculators, systems)
    given = None if prices is None else as_prices(prices, len(levels))
    velocities, forces, history, temperature, taken = _run(systems, levels, dynamics, count, seed, progress)
    seconds = taken if given is None else given
    errors = [float(np.sqrt(np.square(one - forces[-1]).mean())) for one in forces]
    kept, dropped = _worth(levels, seconds, errors)
    found = forces[kept]
    return ForcePilot(
        mls.Ladder([levels[k] for k in kept], mls.GivenCost([seconds[k] for k in kept], "s")),
        tuple(levels[k].name for k in kept),
        dynamics,
        spectrum(velocities, found, systems.masses.numpy(), dynamics.timestep),
        float(np.sqrt(np.square(forces[-1]).mean())),
        tuple(errors[k] for k in kept),
        tuple(correlation_time(found[k + 1] - found[k], dynamics.timestep) for k in range(len(kept) - 1)),
        temperature,
        tolerance,
        count,
        tuple(dropped),
        history,
        found,
    )


def _run(
    systems: Systems,
    levels: list[Forces],
    dynamics: Langevin,
    steps: int,
    seed: int,
    progress: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, list[float]]:
    """Velocities, forces of every level, positions, the mean temperature of the second half, seconds of each level."""
    top = mls.Ladder(levels[-1:], mls.GivenCost([1.0], "s"))
    walk = Walk(top, dynamics, impulses([1]), [seed + system for system in range(len(systems))])
    walk.thermalize(seed)
    velocities, history, temperatures = [], [], []
    forces: list[list[np.ndarray]] = [[] for _ in levels]
    taken: list[list[float]] = [[] for _ in levels]
    walk.begin()
    for _ in tqdm(range(steps), unit="step", disable=not progress, desc="pilot"):
        begin = time.perf_counter()
        walk.step()
        taken[-1].append(time.perf_counter() - begin)
        velocities.append((walk.p / systems.masses).numpy())
        history.append(walk.q.numpy())
        temperatures.append(float(walk.temperature().mean()))
        for level, one in enumerate(levels[:-1]):
            begin = time.perf_counter()
            forces[level].append(one(walk.q).numpy())
            taken[level].append(time.perf_counter() - begin)
        forces[-1].append(walk.begin().numpy())
    mean, seconds = float(np.mean(temperatures[steps // 2 :])), [statistics.median(one) for one in taken]
    return np.stack(velocities), np.stack([np.stack(one) for one in forces]), np.stack(history), mean, seconds


def _worth(levels: list[Forces], seconds: list[float], errors: list[float]) -> tuple[list[int], list[str]]:
    """The levels that are cheaper than every more accurate one, cheapest first, and what is said of the others."""
    top, kept, dropped = len(levels) - 1, [], []
    for k in sorted(range(top), key=lambda k: seconds[k]):
        better = [j for j in (*kept, top) if seconds[j] <= seconds[k] and errors[j] <= errors[k]]
        if not math.isfinite(errors[k]):
            dropped.append(f"Left out: {levels[k].name}, whose forces were not finite.")
        elif better:
            dropped.append(
                f"Left out: {levels[k].name} ({seconds[k]:.3g} s a force), no cheaper than {levels[better[0]].name} "
                f"({seconds[better[0]]:.3g} s), which is no less accurate."
            )
        else:
            kept.append(k)
    return [*kept, top], dropped
