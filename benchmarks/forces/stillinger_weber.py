"""Stillinger and Weber's potential of silicon (Phys. Rev. B 31, 1985) as a function of positions, in torch.

    V = sum_pairs eps A (B (s/r)^4 - 1) exp(s / (r - a s))
      + sum_triplets eps lambda (cos theta + 1/3)^2 exp(gamma s / (r_ij - a s) + gamma s / (r_ik - a s))

A cheap level for silicon: parameters are those of the paper, none was fitted to the levels above it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

__all__ = ["stillinger_weber"]

_EPS, _SIGMA, _A, _BIG_A, _B, _LAMBDA, _GAMMA = 2.1683, 2.0951, 1.8, 7.049556277, 0.6022245584, 21.0, 1.2


def stillinger_weber(atoms: Atoms) -> Callable[[Tensor], Tensor]:
    """Return forces in eV / Angstrom at positions in Angstrom, (systems, atoms, 3), in the periodic cell of atoms."""
    reach = _A * _SIGMA
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
        d = apart[i, j, image]
        r = d.norm(dim=1)
        inner = _SIGMA / (r - reach)
        pairs = 0.5 * _EPS * _BIG_A * (_B * (_SIGMA / r) ** 4 - 1) * torch.exp(inner)
        screen, unit = torch.exp(_GAMMA * inner), d / r[:, None]
        cosines = unit @ unit.T
        same = (i[:, None] == i[None]) & ~torch.eye(len(i), dtype=torch.bool)
        triplets = 0.5 * _EPS * _LAMBDA * (cosines + 1 / 3) ** 2 * screen[:, None] * screen[None] * same
        return pairs.sum() + triplets.sum()

    def forces(q: Tensor) -> Tensor:
        with torch.enable_grad():
            x = q.clone().requires_grad_(True)
            energy = torch.stack([of_system(one) for one in x]).sum()
            return -torch.autograd.grad(energy, x)[0]

    forces.__name__ = "Stillinger-Weber"
    return forces
