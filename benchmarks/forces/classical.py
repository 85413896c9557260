"""Classical potentials as cheap levels, functions of positions in torch, with the parameters of the papers.

Silicon, Stillinger and Weber (Phys. Rev. B 31, 1985):

    V = sum_pairs eps A (B (s/r)^4 - 1) exp(s / (r - a s))
      + sum_triplets eps lambda (cos theta + 1/3)^2 exp(gamma s / (r_ij - a s) + gamma s / (r_ik - a s))

Sodium chloride, Fumi and Tosi (J. Phys. Chem. Solids 25, 1964), with Coulomb's law damped and shifted at 9 Angstrom, as
Fennell and Gezelter have it (J. Chem. Phys. 124, 2006):

    V = sum_pairs A exp((s - r) / rho) - C / r^6 - D / r^8 + z_i z_j e^2 (erfc(alpha r) / r, shifted in value and force)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

__all__ = ["fumi_tosi", "stillinger_weber"]

_EPS, _SIGMA, _A, _BIG_A, _B, _LAMBDA, _GAMMA = 2.1683, 2.0951, 1.8, 7.049556277, 0.6022245584, 21.0, 1.2
# Of pairs Na-Na, Na-Cl, Cl-Cl, by the number of Cl: eV, Angstrom.
_STRENGTH, _SIZE = torch.tensor([0.2637, 0.2110, 0.1582]).double(), torch.tensor([2.340, 2.755, 3.170]).double()
_C, _D = torch.tensor([1.05, 6.99, 72.4]).double(), torch.tensor([0.499, 8.68, 145.4]).double()
_RHO, _CHARGE, _ALPHA, _REACH = 0.317, 14.39964, 0.2, 9.0


def stillinger_weber(atoms: Atoms) -> Callable[[Tensor], Tensor]:
    """Return forces in eV / Angstrom at positions in Angstrom, (systems, atoms, 3), in the periodic cell of atoms."""

    def energy(i: Tensor, d: Tensor) -> Tensor:
        r = d.norm(dim=1)
        inner = _SIGMA / (r - _A * _SIGMA)
        pairs = 0.5 * _EPS * _BIG_A * (_B * (_SIGMA / r) ** 4 - 1) * torch.exp(inner)
        screen, unit = torch.exp(_GAMMA * inner), d / r[:, None]
        cosines = unit @ unit.T
        same = (i[:, None] == i[None]) & ~torch.eye(len(i), dtype=torch.bool)
        triplets = 0.5 * _EPS * _LAMBDA * (cosines + 1 / 3) ** 2 * screen[:, None] * screen[None] * same
        return pairs.sum() + triplets.sum()

    return _forces(atoms, _A * _SIGMA, lambda i, j, d: energy(i, d), "Stillinger-Weber")


def fumi_tosi(atoms: Atoms) -> Callable[[Tensor], Tensor]:
    """Return forces on Na and Cl, with units and shapes as of :func:`stillinger_weber`."""
    chlorine = torch.from_numpy((atoms.numbers == 17).astype(int))
    whole = math.erfc(_ALPHA * _REACH) / _REACH
    slope = whole / _REACH + 2 * _ALPHA / math.sqrt(math.pi) * math.exp(-((_ALPHA * _REACH) ** 2)) / _REACH

    def energy(i: Tensor, j: Tensor, d: Tensor) -> Tensor:
        r, kind = d.norm(dim=1), chlorine[i] + chlorine[j]
        charges = _CHARGE * (1 - 2 * (kind == 1).double())
        coulomb = charges * (torch.erfc(_ALPHA * r) / r - whole + slope * (r - _REACH))
        near = _STRENGTH[kind] * torch.exp((_SIZE[kind] - r) / _RHO) - _C[kind] / r**6 - _D[kind] / r**8
        return 0.5 * (near + coulomb).sum()

    return _forces(atoms, _REACH, energy, "Fumi-Tosi")


def _forces(atoms: Atoms, reach: float, energy: Callable[[Tensor, Tensor, Tensor], Tensor], name: str):
    """Minus the gradient of energy(i, j, r_j - r_i) of all pairs within reach, both ways, images too."""
    cell = torch.from_numpy(np.asarray(atoms.cell)).double()
    heights = 1 / np.linalg.norm(np.linalg.inv(atoms.cell).T, axis=1)
    counts = [int(np.ceil(reach / height)) for height in heights]
    images = torch.tensor(list(itertools.product(*[range(-one, one + 1) for one in counts])), dtype=torch.float64)
    inverse = torch.linalg.inv(cell)

    def of_system(q: Tensor) -> Tensor:
        wrapped = q - torch.floor(q @ inverse).detach() @ cell
        apart = wrapped[None, :, None] + (images @ cell)[None, None] - wrapped[:, None, None]  # (i, j, image, 3)
        near = apart.norm(dim=-1)
        i, j, image = ((near < reach) & (near > 1e-6)).nonzero().unbind(1)
        return energy(i, j, apart[i, j, image])

    def forces(q: Tensor) -> Tensor:
        with torch.enable_grad():
            x = q.clone().requires_grad_(True)
            return -torch.autograd.grad(torch.stack([of_system(one) for one in x]).sum(), x)[0]

    forces.__name__ = name
    return forces
