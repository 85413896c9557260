r"""What the corrections are along a short run of all levels: their size, how fast they change, which modes they act on.

Forces and corrections are divided by sqrt(m), so that vibrations of frequency w have a(t) = -w^2 x(t). By Welch's mean
of windowed pieces over all atoms, systems and directions, each frequency has

    weight     w_j = <|v|^2>, the share of the kinetic energy
    share      s_k = Re <D_k a*> / <|a|^2>, how much of the top's force correction k is
    deviation  sqrt(<|D_k|^2> / <|a|^2> - s_k^2), by how much that differs among modes of this frequency

The frequency of modes that are seen at the frequency W is w = sqrt(W |a| / |v|): noise of the thermostat drives modes
beside their own frequency too, where |a| / |v| = w^2 / W. :mod:`.harmonic` says what a plan does to modes of shares s_k
and s_k -+ sqrt(3) deviations (Gauss-Hermite with three points a correction).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from ase import units

import multilevel_sde as mls
from multilevel_forces.harmonic import response

__all__ = ["Spectrum", "correlation_time", "spectrum"]

_UNIT = 1 / units.fs  # fs in a unit of ASE's time
_LEAST = 3e-3  # of the largest weight, below which a frequency is leakage
_NODES, _MASSES = (-math.sqrt(3.0), 0.0, math.sqrt(3.0)), (1 / 6, 2 / 3, 1 / 6)


@dataclass(frozen=True)
class Spectrum:
    """Modes and the shares of the corrections in them.

    Attributes:
        w: Frequencies, radians / fs, (F,).
        weight: Shares of the kinetic energy, (F,), with sum 1.
        shares: s_k, (F, K - 1).
        deviations: (F, K - 1).
    """

    w: np.ndarray
    weight: np.ndarray
    shares: np.ndarray
    deviations: np.ndarray

    def expect(self, plan: mls.Plan, levels: tuple[int, ...], friction: float, h: float) -> tuple[float, float, float]:
        """Return the mean temperature and spread over k_B T, and the growth of energy without friction in 1 / fs.

        Arguments:
            plan: A block of these levels.
            levels: Which of the K, lowest first; the last is the top.
            friction: 1 / fs, above 0.
            h: fs.
        """
        shares, deviations = self._merged(levels)
        found = []
        for choice in itertools.product(range(3), repeat=len(levels) - 1):
            at = shares + deviations * np.array([_NODES[one] for one in choice])
            mass = math.prod(_MASSES[one] for one in choice)
            seen = response(plan, self.w, at, friction, h)
            free = response(plan, self.w, at, 0.0, h)
            found.append([mass * float(self.weight @ one) for one in (seen.temperature, seen.spread, 2 * free.growth)])
        temperature, spread, growth = np.sum(found, 0).tolist()
        return temperature, spread, growth

    def alone(self, level: int) -> float:
        """Return the spread of a level alone over that of the top: mean of 1 / (1 - what is above it)."""
        if level == self.shares.shape[1]:
            return 1.0
        shares, deviations = self._merged((level, self.shares.shape[1]))
        each = [1 / np.clip(1 - shares[:, 0] - node * deviations[:, 0], 1e-9, None) for node in _NODES]
        return float(sum(mass * (self.weight @ one) for mass, one in zip(_MASSES, each, strict=True)))

    def _merged(self, levels: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Shares and deviations of the corrections between the levels that are kept."""
        pairs = list(itertools.pairwise(levels))
        shares = [self.shares[:, low:high].sum(1) for low, high in pairs]
        deviations = [np.sqrt(np.square(self.deviations[:, low:high]).sum(1)) for low, high in pairs]
        return np.stack(shares, 1) if pairs else self.shares[:, :0], (
            np.stack(deviations, 1) if pairs else self.deviations[:, :0]
        )


def spectrum(velocities: np.ndarray, forces: np.ndarray, masses: np.ndarray, h: float) -> Spectrum:
    """Measure the spectrum of a run.

    Arguments:
        velocities: (steps, ..., atoms, 3), in ASE's unit.
        forces: Of each level, (K, steps, ..., atoms, 3), eV / Angstrom.
        masses: (atoms, 1).
        h: fs.

    Example:
        >>> w, t = 2 * np.pi / 32, np.arange(64)[:, None, None] * 2.0  # a period of 32 fs, in steps of 2 fs
        >>> x, v, unit = np.cos(w * t), -w * np.sin(w * t) / units.fs, w**2 / units.fs**2
        >>> found = spectrum(v, np.stack([-0.75 * unit * x, -unit * x]), np.ones((1, 1)), h=2.0)
        >>> peak = found.weight.argmax()
        >>> round(2 * np.pi / float(found.w[peak]), 3), found.shares[peak].round(3)  # a quarter is the correction
        (32.0, array([0.25]))
    """
    size = max(8, len(velocities) // 2)
    root = np.sqrt(masses)
    v = _pieces(velocities * root, size)
    accelerations = [_pieces(force / root, size) for force in forces]
    top, corrections = accelerations[-1], [high - low for low, high in itertools.pairwise(accelerations)]
    weight, power = _mean(v, v), np.maximum(_mean(top, top), 1e-300)
    shares = [_mean(one, top) / power for one in corrections]
    squares = [_mean(one, one) / power for one in corrections]
    at = 2 * np.pi * np.arange(size // 2 + 1) / (size * h)
    w = np.sqrt(at * np.sqrt(_mean(top, top) / np.maximum(weight, 1e-300)) / _UNIT)
    kept = (weight > _LEAST * weight[1:].max()) & (at > 0) & (w > 0)
    if not kept.any():
        kept[1] = True
    deviations = [np.sqrt(np.maximum(square - share**2, 0)) for share, square in zip(shares, squares, strict=True)]
    table = [np.stack(one, 1)[kept] if one else np.zeros((int(kept.sum()), 0)) for one in (shares, deviations)]
    return Spectrum(w[kept], weight[kept] / weight[kept].sum(), *table)


def _pieces(series: np.ndarray, size: int) -> np.ndarray:
    """Fourier transforms of half-overlapping windowed pieces, (pieces, frequencies, numbers)."""
    flat = series.reshape(len(series), -1)
    window = np.hanning(size + 1)[:-1, None]
    starts = range(0, len(flat) - size + 1, max(1, size // 2))
    return np.stack(
        [np.fft.rfft(window * (flat[one : one + size] - flat[one : one + size].mean(0)), axis=0) for one in starts]
    )


def _mean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.real(a * b.conj()).mean((0, 2))


def correlation_time(series: np.ndarray, h: float) -> float:
    """Return the fs after which the autocorrelation of a series, (steps, ...), is below 1/e; infinite if never.

    Example:
        >>> round(correlation_time(np.cos(np.arange(400)[:, None] / 10), 1.0), 1)  # 10 arccos(1/e) = 11.9, over 400
        11.8
    """
    flat = series.reshape(len(series), -1)
    whole = float(np.square(flat).mean())
    before = 1.0
    for lag in range(1, len(flat) // 2):
        now = float((flat[:-lag] * flat[lag:]).mean()) / max(whole, 1e-300)
        if now < 1 / math.e:
            return h * (lag - 1 + (before - 1 / math.e) / max(before - now, 1e-300))
        before = now
    return math.inf
