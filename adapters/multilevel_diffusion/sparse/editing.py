r"""Editing by noise (SDEdit), densely, sparsely and by the multilevel sum of both.

An image with something painted on it is noised to a middle time t_m and denoised again, which makes the paint part of
the scene:

    x(t_m) = alpha(t_m) edited + sigma(t_m) eps,    then the reverse SDE or ODE from t_m to 0.

The original image takes the same path with the same eps and the same Brownian motion; that is the reference of a
:class:`~multilevel_diffusion.sparse.drift.SparseDrift`. How near does each method come to the dense network's path?

References:
    Meng et al. 2022, SDEdit: Guided Image Synthesis and Editing with SDEs (arXiv 2108.01073).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

import multilevel_sde as mls
from multilevel_diffusion.process.noise import coupled_noise
from multilevel_diffusion.process.schedule_base import NoiseSchedule
from multilevel_diffusion.process.steps import ExponentialStep
from multilevel_diffusion.sparse.drift import Reference, SparseDrift, changed_region
from multilevel_sde.cost import Drift
from multilevel_sde.times import thinned

__all__ = ["Edit", "EditRow", "compare", "paint"]


def paint(images: Tensor, area: float, seed: int = 0) -> Tensor:
    """Paint a disc on every image, of its own place and colour.

    Arguments:
        images: (B, C, H, W) in [-1, 1].
        area: Its part of the image, in (0, 1/2].
        seed: Of places and colours.

    Returns:
        The painted images, the same shape. Where no pixel's centre lies in a disc, the nearest one is painted.

    Raises:
        ValueError: `area` is out of range.

    Example:
        >>> painted = paint(torch.zeros(2, 3, 32, 32), 0.05)
        >>> [int(n) for n in (painted != 0).any(1).sum((1, 2))]
        [52, 52]
    """
    if not 0 < area <= 0.5:
        raise ValueError(f'"area" is {area}, expected a part of the image in (0, 0.5]; 0.05 is usual')
    batch, channels, height, width = images.shape
    generator = torch.Generator().manual_seed(seed)
    radius = math.sqrt(area * height * width / math.pi)
    draw = torch.rand(batch, 2 + channels, generator=generator).to(images)
    sides = torch.tensor([height, width]).to(images)
    inner = (sides - 2 * radius).clamp_min(0)  # discs lie inside where they can
    centre = (sides - inner) / 2 + draw[:, :2] * inner
    rows, columns = (torch.arange(n).to(images) + 0.5 for n in (height, width))
    down, right = rows - centre[:, :1], columns - centre[:, 1:2]
    distance = down[:, :, None].square() + right[:, None, :].square()
    disc = distance <= distance.flatten(1).min(1).values.clamp_min(radius**2)[:, None, None]
    colour = torch.where(draw[:, 2:] < 0.5, -0.9, 0.9)[:, :, None, None]
    return torch.where(disc[:, None], colour, images)


@dataclass(frozen=True, eq=False)
class Edit:
    """An edit of images, to be finished by a denoiser.

    Arguments:
        denoiser: Callable (x_t, t) -> estimate of x_0, made of one network.
        schedule: Its noise schedule.
        original: Images (B, C, H, W).
        edited: The same with something painted on them.
        middle: Time to which they are noised: later ones keep less of the paint.
        steps: Steps back to 0.
        tau: 1 for the reverse SDE, 0 for its ODE.
        seeds: One seed per image, of its noise.

    Raises:
        ValueError: Nothing is painted, the middle is no time, or there is not one seed per image.

    Example:
        >>> from multilevel_diffusion import CosineSchedule
        >>> image = torch.zeros(1, 3, 16, 16)
        >>> edit = Edit(lambda x, t: 0 * x, CosineSchedule(), image, paint(image, 0.1), 0.5, 10, 1.0, [0])
        >>> edit.run(edit.edited, *edit.dense()).y.abs().max()
        tensor(0.)
    """

    denoiser: Drift = field(repr=False)
    schedule: NoiseSchedule
    original: Tensor = field(repr=False)
    edited: Tensor = field(repr=False)
    middle: float
    steps: int
    tau: float
    seeds: Sequence[int]

    def __post_init__(self) -> None:
        if not 0 < self.middle <= self.schedule.t_max:
            raise ValueError(f'"middle" is {self.middle}, expected a time in (0, {self.schedule.t_max}]; 0.4 is usual')
        if self.steps < 1:
            raise ValueError(f'"steps" is {self.steps}, expected at least 1; 50 is usual')
        if len(self.seeds) != len(self.original):
            raise ValueError(
                f'"seeds" has {len(self.seeds)} entries, expected one for each of {len(self.original)} images'
            )
        if not self.region.flatten(1).any(1).all():
            raise ValueError('"edited" equals "original" in some image, expected a change in each; paint on it')

    @cached_property
    def region(self) -> Tensor:
        """Where the images were edited, bool (B, H, W)."""
        return changed_region(self.original, self.edited)

    @cached_property
    def times(self) -> Tensor:
        """Equal steps from the middle to 0, float64 (steps + 1,)."""
        return torch.linspace(self.middle, 0.0, self.steps + 1, dtype=torch.float64)

    def dense(self, steps: int | None = None) -> tuple[mls.Ladder, Tensor, mls.Plan]:
        """Return the ladder of the denoiser alone, about `steps` of the times, and the plan of plain steps."""
        ladder = mls.Ladder([self.denoiser], mls.GivenCost([1.0], "dense evaluations"))
        times = self.times
        if steps is not None:
            times = times[thinned(self.steps, steps)]
        return ladder, times, mls.em_plan(ladder, times)

    def noised(self, images: Tensor) -> Tensor:
        """Return the images at the middle time."""
        noise = mls.seeded_normal(self.seeds, images.shape[1:], dtype=images.dtype, device=images.device)
        return self.schedule.alpha(self.middle) * images + self.schedule.sigma(self.middle) * noise

    def run(
        self, images: Tensor, ladder: mls.Ladder, times: Tensor, plan: mls.Plan, *, save: bool = False
    ) -> mls.Solution:
        """Noise and denoise images; all runs of an edit see the same noise."""
        noise = coupled_noise(self.schedule, self.seeds, self.times, self.tau) if self.tau > 0 else None
        diffusion = 1.0 if self.tau > 0 else None
        step, start = ExponentialStep(self.schedule, self.tau), self.noised(images)
        return mls.solve(ladder, start, times, plan, step=step, diffusion=diffusion, brownian=noise, save=save)

    def reference(self, *, tile: int = 4, keep: bool = True, progress: bool = False) -> Reference:
        """Run the original and store the denoiser's tensors along its path; see :class:`Reference`."""
        path = self.run(self.original, *self.dense(), save=True)
        return Reference(self.denoiser, self.times[:-1], path.ys[:-1], tile=tile, keep=keep, progress=progress)

    def ladder(self, sparse: SparseDrift) -> mls.Ladder:
        """Return the sparse and the dense denoiser, with costs in dense evaluations, by FLOPs."""
        flops = mls.FlopCost(self.noised(self.edited), t=self.middle)([sparse, self.denoiser])
        costs = mls.GivenCost([flops[0] / flops[1], 1.0], "dense evaluations")
        return mls.Ladder([sparse, self.denoiser], costs)


@dataclass(frozen=True)
class EditRow:
    """What one method cost and how far from the dense result it ended.

    Attributes:
        method: Its name.
        cost: Of one image, in dense evaluations by FLOPs, without the reference.
        mse: Mean squared distance per pixel to the dense result.
        inside: The same of edited pixels.
        outside: The same of the others.
        seconds: Wall-clock time of all images.
    """

    method: str
    cost: float
    mse: float
    inside: float
    outside: float
    seconds: float


def compare(
    edit: Edit, sparse: SparseDrift, corrections: Sequence[int], *, plan_seed: int = 0
) -> list[tuple[EditRow, Tensor]]:
    """Finish an edit densely, sparsely, by multilevel sums, and by fewer dense steps at their cost.

    Arguments:
        edit: What is to be finished.
        sparse: The sparse denoiser of this edit.
        corrections: Evaluations of the dense denoiser beside the sparse ones, spread evenly over the steps.
        plan_seed: Seed of the plans.

    Returns:
        A row and the images of each method; the dense one first, which the others are compared with.

    Raises:
        ValueError: More corrections than steps, or fewer than one.

    Example:
        >>> from multilevel_diffusion import CosineSchedule
        >>> conv = torch.nn.Conv2d(1, 1, 3, padding=1).requires_grad_(False)
        >>> image = torch.zeros(1, 1, 32, 32)
        >>> edit = Edit(lambda x, t: conv(x), CosineSchedule(), image, paint(image, 0.05), 0.4, 10, 1.0, [0])
        >>> results = compare(edit, SparseDrift(edit.reference(), edit.region), [3])
        >>> [row.method for row, _ in results]
        ['dense', 'sparse only', 'multilevel, 3 corrections', 'dense, 5 steps']
    """
    for count in corrections:
        if not 1 <= count <= edit.steps:
            raise ValueError(f'"corrections" has {count}, expected between 1 and the {edit.steps} steps; change it')
    ladder, generator = edit.ladder(sparse), torch.Generator().manual_seed(plan_seed)
    dense = edit.run(edit.edited, *edit.dense())
    rows = [(_row("dense", dense, dense, edit), dense.y)]

    def add(name: str, *arguments) -> float:
        solution = edit.run(edit.edited, *arguments)
        rows.append((_row(name, solution, dense, edit), solution.y))
        return solution.stats.cost

    alone = ladder.subset([0])
    add("sparse only", alone, edit.times, mls.em_plan(alone, edit.times))
    for count in corrections:
        table = torch.tensor([[1.0, count / edit.steps]], dtype=torch.float64).expand(edit.steps, -1)
        plan = mls.draw_plan(table, mls.systematic, generator=generator)
        cost = add(f"multilevel, {count} corrections", ladder, edit.times, plan)
        fewer = max(1, min(edit.steps, round(cost)))
        add(f"dense, {fewer} steps", *edit.dense(fewer))
    return rows


def _row(method: str, solution: mls.Solution, dense: mls.Solution, edit: Edit) -> EditRow:
    squared = (solution.y - dense.y).double().square().mean(1)
    inside = squared[edit.region].mean(), squared[~edit.region].mean()
    return EditRow(
        method, solution.stats.cost, float(squared.mean()), float(inside[0]), float(inside[1]), solution.stats.seconds
    )
