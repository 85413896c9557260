"""Pair potentials in torch, quick enough for long runs: what the tests of forces share."""

import pytest
import torch

COPPER = pytest.importorskip("ase.build").bulk("Cu", cubic=True) * (2, 2, 2)  # 32 atoms


def pair_force(derivative, box):
    """Forces of sum_{pairs} u(r) by u'(r), tapered to 0 at half of a cubic box, nearest images; no box: no period."""

    def force(q):
        apart = q[:, :, None] - q[:, None]
        if box is not None:
            apart = apart - box * torch.round(apart / box)
        r = apart.norm(dim=-1) + 1e6 * torch.eye(q.shape[1], dtype=q.dtype)
        slope = derivative(r)
        if box is not None:
            slope = slope * (1 - ((r - 0.4 * box) / (0.1 * box)).clamp(0, 1) ** 2) ** 2
        return (-slope / r)[..., None].mul(apart).sum(2)

    return force


def morse(depth, r0, steep, box):
    """u = depth (e^2 - 2 e), e = exp(-steep (r / r0 - 1))."""

    def derivative(r):
        e = torch.exp(-steep * (r / r0 - 1))
        return 2 * depth * steep / r0 * (e - e * e)

    return pair_force(derivative, box)


def lennard_jones(depth, sigma, box):
    """u = 4 depth ((sigma / r)^12 - (sigma / r)^6)."""

    def derivative(r):
        sixth = (sigma / r) ** 6
        return -24 * depth / r * (2 * sixth * sixth - sixth)

    return pair_force(derivative, box)


BOX = float(COPPER.cell[0, 0])
TOP = morse(0.35, 2.6, 5.0, BOX)
MIDDLE = morse(0.34, 2.61, 4.8, BOX)
CHEAP = morse(0.30, 2.66, 4.2, BOX)
