"""Averages of a run that people look at: g(r), and how far atoms have gone."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.neighborlist import neighbor_list

__all__ = ["radial_distribution", "squared_displacement"]


def radial_distribution(
    atoms: Atoms, positions: np.ndarray, reach: float, bins: int = 100
) -> tuple[np.ndarray, np.ndarray]:
    """Return r in Angstrom at the middle of bins, and g(r): pairs at that distance over those of an ideal gas.

    Arguments:
        atoms: Cell and number of atoms. Without a cell the density is that of the box around the atoms.
        positions: Several configurations, (frames, atoms, 3), Angstrom.
        reach: The largest r, Angstrom; periodic images are counted, however far.
        bins: How many.

    Example:
        >>> from ase.build import bulk
        >>> copper = bulk("Cu", cubic=True)
        >>> r, g = radial_distribution(copper, copper.positions[None], 4.0, 40)
        >>> round(float(r[g.argmax()]), 2)  # the nearest neighbours at 2.55
        2.55
    """
    edges = np.linspace(0.0, reach, bins + 1)
    counts, box = np.zeros(bins), atoms.copy()
    for frame in positions:
        box.positions = frame
        counts += np.histogram(neighbor_list("d", box, reach), edges)[0]
    volume = abs(np.linalg.det(np.asarray(box.cell)))
    if volume < 1e-9:
        volume = float(np.prod(np.maximum(np.ptp(positions, axis=(0, 1)), 1.0)))
    shells = 4 / 3 * np.pi * np.diff(edges**3)
    each = counts / (len(positions) * len(atoms))
    return (edges[:-1] + edges[1:]) / 2, each / (shells * len(atoms) / volume)


def squared_displacement(positions: np.ndarray, lags: int | None = None) -> np.ndarray:
    """Return the mean squared displacement in Angstrom^2 after 0, 1, ... frames, relative to the centre of all atoms.

    Arguments:
        positions: Unwrapped, (frames, atoms, 3), Angstrom.
        lags: How many; by default half the frames.

    Example:
        >>> steady = np.arange(6.0)[:, None, None] * np.array([[[1.0, 0, 0]], [[-1.0, 0, 0]]]).transpose(1, 0, 2)
        >>> squared_displacement(steady)
        array([0., 1., 4.])
    """
    apart = positions - positions.mean(1, keepdims=True)
    count = max(1, len(apart) // 2) if lags is None else min(lags, len(apart))
    moved = [np.square(apart[lag:] - apart[: len(apart) - lag]).sum(2).mean() for lag in range(count)]
    return np.array(moved)
