"""What does a fluid's trajectory cost when its short-range force answers most calls, and its long tail few?

    python examples/langevin.py --out DIR        # prints the tables, writes DIR/langevin.png; about a minute

Overdamped Langevin dynamics dx = F(x) dt + sqrt(2 kT) dW of charged colloids in a periodic square: a Lennard-Jones
potential with a softened core, and a screened Coulomb repulsion. In units of the former's depth and size,

    u(r) = 4 (g^2 - g) + A exp(-kappa s) / s,    g = 1 / (a + r^6),    s = sqrt(r^2 + b^2).

The ladder is one of cutoffs: 1.3 and 3 by cell lists, and half the box over all pairs. A cost is the number of
distances computed for one system; the tables divide it by that of the full force (`docs/langevin.md`).

References:
    Tuckerman, Berne, Martyna, J. Chem. Phys. 97, 1992 (multiple time steps, r-RESPA);
    Allen and Tildesley, "Computer Simulation of Liquids", 2017 (cell lists, nearest images, the virial).
"""

import argparse
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import multilevel_sde as mls

CORE, SMEAR, CHARGE, SCREENING = 0.2, 0.5, 2.0, 0.4  # a, b, A, kappa
DENSITY, TEMPERATURE = 0.5, 0.7
NOISE = math.sqrt(2 * TEMPERATURE)
CUTOFFS = (1.3, 3.0)  # below the full one
FINE = 2.5e-4  # step of the finest grid
COARSE = 1.25e-3  # step of long runs; the full force alone becomes unstable at three times as much
SMALL = 100  # particles in the box of the pilot
DRAWS = 8  # of random plans
FULL = "full force"


@dataclasses.dataclass(frozen=True)
class PairForce:
    """The force -grad sum u(r) over pairs nearer than a cutoff.

    Arguments:
        box: Side of the periodic square.
        cutoff: At most half of it, so that the nearest image of a pair is the only one.

    Raises:
        ValueError: The cutoff is not positive or more than half the box.
    """

    box: float
    cutoff: float

    def __post_init__(self) -> None:
        if not 0 < self.cutoff <= self.box / 2:
            raise ValueError(f'"cutoff" must be positive and at most half the box of {self.box:g}, got {self.cutoff}')

    def __call__(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """Return the forces on the particles of every system, (B, n, 2) as the positions."""
        blocks = []
        for part in x.split(len(x) if self._cells else 1):  # all pairs of one system stay in the cache
            force, _, apart = self._pairs(part)
            blocks.append(torch.stack([(force * d).sum(-1) for d in apart], -1))
        return torch.cat(blocks)

    def virial(self, x: Tensor) -> Tensor:
        """Return the sum of r F(r) over pairs, (B,)."""
        force, squared, _ = self._pairs(x)
        return (force * squared).double().sum((1, 2)) / 2

    def distances(self, x: Tensor) -> float:
        """Return how many distances one force computes for one system: its cost."""
        return self._pairs(x)[1].numel() / len(x)

    @property
    def _cells(self) -> int:
        """Cells a side, or 0 where they would spare nothing."""
        cells = int(self.box / self.cutoff)
        return cells if cells > 3 else 0

    def _pairs(self, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """F(r) / r, r^2 and the components of r, each of shape (B, n, candidates)."""
        if self._cells:
            near = self._candidates(x)
            apart = [v[..., None] - v.flatten()[near] for v in x.unbind(-1)]
        else:
            apart = [v[:, :, None] - v[:, None, :] for v in x.unbind(-1)]
        apart = [d - self.box * (d / self.box).round() for d in apart]  # to the nearest image
        squared = apart[0] * apart[0] + apart[1] * apart[1]
        return self._over_distance(squared), squared, apart

    def _over_distance(self, squared: Tensor) -> Tensor:
        """F(r) / r, finite at r = 0, where a particle meets itself, tapered over the last fifth of the cutoff."""
        fourth = squared * squared
        g, s = 1 / (CORE + fourth * squared), (squared + SMEAR**2).sqrt()
        force = 24 * fourth * g * g * (2 * g - 1) + CHARGE * torch.exp(-SCREENING * s) * (1 + SCREENING * s) / s**3
        part = ((1 - squared / self.cutoff**2) / (1 - 0.8**2)).clamp(0, 1)
        return force * (part * part * (3 - 2 * part))

    def _candidates(self, x: Tensor) -> Tensor:
        """Indices (B, n, 9 capacity) of what is in a particle's cell and the eight around it, filled up with itself."""
        cells, own = self._cells, torch.arange(x.shape[0] * x.shape[1])
        place = ((x / self.box) % 1 * cells).long().clamp_(max=cells - 1)
        first = torch.arange(len(x))[:, None] * cells**2  # of a system's cells
        cell = (first + place[..., 0] * cells + place[..., 1]).flatten()
        order = cell.argsort()
        cell, counts = cell[order], torch.bincount(cell, minlength=len(x) * cells**2)
        members = torch.full((len(counts), int(counts.max())), -1)
        members[cell, own - (counts.cumsum(0) - counts)[cell]] = order
        around = (place[:, :, None] + torch.cartesian_prod(torch.arange(-1, 2), torch.arange(-1, 2))) % cells
        near = members[first[..., None] + around[..., 0] * cells + around[..., 1]].flatten(2)
        return torch.where(near < 0, own.view(x.shape[0], -1, 1), near)


def ladder_of(x: Tensor) -> mls.Ladder:
    """Return the ladder of cutoffs for systems (B, n, 2) at the density, priced in distances."""
    box = math.sqrt(x.shape[1] / DENSITY)
    forces = [PairForce(box, cutoff) for cutoff in (*CUTOFFS, box / 2)]
    return mls.Ladder(forces, mls.GivenCost([force.distances(x) for force in forces], unit="distances"))


def grid(start: float, steps: int, step: float) -> Tensor:
    """Return the times from `start` on, float64 (steps + 1,)."""
    return start + step * torch.arange(steps + 1, dtype=torch.float64)


def impulses(steps: int, periods: Sequence[int]) -> mls.Plan:
    """Return r-RESPA as a plan: level k + 1 is corrected every periods[k - 1] steps, with that weight."""
    hits = torch.tensor([[n % period == 0 for period in (1, *periods)] for n in range(steps)])
    return mls.Plan(hits, hits * torch.tensor([1.0, *map(float, periods)]))


def run(
    ladder: mls.Ladder, x: Tensor, times: Tensor, plan: mls.Plan, save: bool | Sequence[int] = False
) -> mls.Solution:
    """Solve; the noise is that of the system and the time, whatever the ladder and the grid."""
    noise = mls.BrownianPath(range(len(x)), unit=1.28)
    return mls.solve(ladder, x, times, plan, diffusion=NOISE, brownian=noise, save=save)


def equilibrated(systems: int, particles: int, steps: int) -> Tensor:
    """Return systems that started on a square lattice, (B, n, 2); `particles` is a square number."""
    side = math.isqrt(particles)
    spacing = torch.arange(side) / math.sqrt(DENSITY)
    x = torch.cartesian_prod(spacing, spacing).repeat(systems, 1, 1)
    times = grid(0.0, steps, COARSE)
    return run(ladder_of(x), x, times, mls.hold(impulses(steps, (3, 12)), times)).y


def radial_distribution(x: Tensor, box: float, bins: int = 50, reach: float = 5.0) -> Tensor:
    """Return g(r), the density of pairs over that of an ideal gas, in equal bins up to `reach`, (B, bins)."""
    apart = x[:, :, None] - x[:, None]
    distances = (apart - box * (apart / box).round()).norm(dim=-1)
    counts = torch.stack([torch.histc(system, bins, 0.0, reach) for system in distances])
    counts[:, 0] -= x.shape[1]  # of a particle to itself
    areas = math.pi * torch.linspace(0.0, reach, bins + 1).square().diff()
    return counts * box**2 / (x.shape[1] ** 2 * areas)


class Row(NamedTuple):
    """One run against the path of the full force on the finest grid: cost in full forces, error of every system."""

    method: str
    cost: float
    errors: Tensor
    seconds: float


def path_errors(
    x: Tensor, small: Tensor, start: float, steps: int, budgets: Sequence[float]
) -> tuple[list[Row], mls.Pilot]:
    """Measure cost and error of every way to spend forces over `steps` fine steps, and the pilot of small systems."""
    ladder, fine = ladder_of(x), grid(start, steps, FINE)
    full, noise = ladder.costs[-1], mls.BrownianPath(range(100, 100 + len(small)), unit=1.28)
    measured = mls.pilot(ladder_of(small), small, fine, diffusion=NOISE, brownian=noise, candidates=steps // 2)
    pilot = dataclasses.replace(measured, costs=ladder.costs)  # measured in a small box, priced for the large one
    target, rows = run(ladder.top(), x, fine, mls.em_plan(ladder.top(), fine)).y, []

    def add(method: str, levels: Sequence[int], times: Tensor, *plans: mls.Plan) -> None:
        done = [run(ladder.subset(levels), x, times, plan) for plan in plans]
        errors = torch.stack([(solution.y - target).double().square().mean((1, 2)) for solution in done]).mean(0)
        cost, seconds = (sum(s.stats.cost for s in done), sum(s.stats.seconds for s in done))
        rows.append(Row(method, cost / full / len(done), errors, seconds / len(done)))

    for stride in (1, 2, 4, 8):
        times, count = fine[::stride], steps // stride
        for level, name in enumerate((*(f"cutoff {cutoff}" for cutoff in CUTOFFS), FULL)):
            if level < 2 or stride > 1:
                add(name, [level], times, mls.em_plan(ladder.top(), times))
        if 1 < stride < 8:
            for periods in ((2, 8), (4, 16)):
                add("r-RESPA", [0, 1, 2], times, impulses(count, periods))
            table = mls.InverseCostSchedule().probabilities(
                ladder, times, budget=count * max(0.16 * full, 1.5 * ladder.costs[0])
            )
            generator = torch.Generator().manual_seed(0)
            add("systematic, 1/T", [0, 1, 2], times, *(mls.draw_plan(table, generator=generator) for _ in range(DRAWS)))
    for budget in budgets:
        best = pilot.plan(budget=budget * full)
        add("pilot's plan", [0, 1, 2], best.times, best.plan)
    return rows, pilot


def cost_at(rows: Sequence[Row], method: str, error: float, system: int) -> float:
    """Return the cost at which a method has an error on one system, NaN outside of what was run."""
    points = sorted((math.log(float(row.errors[system])), math.log(row.cost)) for row in rows if row.method == method)
    return math.exp(float(np.interp(math.log(error), *zip(*points, strict=True), left=math.nan, right=math.nan)))


def structure(x: Tensor, start: float, steps: int) -> dict[str, tuple[Tensor, Tensor, float, float]]:
    """Return g(r) (B, bins) of the last half of a long run, pressure (B,) by its own top force, cost and seconds."""
    ladder, times, found = ladder_of(x), grid(start, steps, COARSE), {}
    kept = range(steps // 2, steps + 1, max(1, steps // 32))
    held, whole = mls.hold(impulses(steps, (3, 12)), times), mls.em_plan(ladder.top(), times)
    ways = {FULL: ([2], whole), "cheap force": ([0], whole), "multilevel": ([0, 1, 2], held)}
    for name, (levels, plan) in ways.items():
        force = ladder.drifts[levels[-1]]
        solution = run(ladder.subset(levels), x, times, plan, save=kept)
        g = torch.stack([radial_distribution(y, force.box) for y in solution.ys]).mean(0)
        virial = torch.stack([force.virial(y) for y in solution.ys]).mean(0)
        pressure = DENSITY * TEMPERATURE + virial / (2 * force.box**2)
        found[name] = (g, pressure, solution.stats.cost / ladder.costs[-1], solution.stats.seconds)
    return found


def spread(values: Tensor) -> str:
    """Return the mean over systems and its standard error."""
    return f"{float(values.mean()):.3g} ± {float(values.std()) / len(values) ** 0.5:.1g}"


def figure(x: Tensor, rows: Sequence[Row], found: dict, path: Path) -> None:
    """Draw a system, g(r), and error against cost."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle

    fig = Figure(figsize=(13, 4.2), layout="constrained")
    picture, left, right = fig.subplots(1, 3)
    box = math.sqrt(x.shape[1] / DENSITY)
    picture.scatter(*(x[0] % box).T, s=14)
    for cutoff in (*CUTOFFS, box / 2):
        picture.add_patch(Circle((box / 2, box / 2), cutoff, fill=False))
    picture.set(title="one system, and the three cutoffs", xlim=(0, box), ylim=(0, box), aspect="equal")
    for (name, (g, *_)), style in zip(found.items(), ("k-", "C3-", "C0o"), strict=True):
        left.plot(torch.arange(0.05, 5.0, 0.1), g.mean(0), style, ms=3, label=name)
    left.set(title="radial distribution", xlabel="r", ylabel="g(r)")
    for method in dict.fromkeys(row.method for row in rows):
        chosen = sorted((row.cost, float(row.errors.mean())) for row in rows if row.method == method)
        right.loglog(*zip(*chosen, strict=True), "o-", label=method)
    right.set(title="error of the path", xlabel="cost, in full forces", ylabel="mean squared error", ylim=(1e-6, 1e-2))
    left.legend()
    right.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("langevin"), help="folder of the figure [%(default)s]")
    parser.add_argument("--particles", type=int, default=400, help="a square number, of one system [%(default)s]")
    parser.add_argument("--systems", type=int, default=4, help="[%(default)s]")
    parser.add_argument("--steps", type=int, default=256, help="of the finest grid [%(default)s]")
    parser.add_argument("--long", type=int, default=512, help="steps of the runs for g(r) [%(default)s]")
    parser.add_argument("--before", type=int, default=800, help="steps from the lattice on, not measured [%(default)s]")
    parser.add_argument("--budgets", type=float, nargs="+", default=[8, 12, 16, 24, 40], help="in full forces")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    x, small = (equilibrated(args.systems, n, args.before) for n in (args.particles, SMALL))
    ladder = ladder_of(x)
    print("cutoff                 " + "".join(f"{force.cutoff:12.3g}" for force in ladder.drifts))
    print("distances for one force" + "".join(f"{cost:12.0f}" for cost in ladder.costs))
    print("seconds for one force  " + "".join(f"{second:12.2g}" for second in mls.SecondsCost(x)(ladder.drifts)))
    rows, pilot = path_errors(x, small, 1.0, args.steps, args.budgets)
    print("\n" + pilot.advise(budget=args.budgets[len(args.budgets) // 2] * ladder.costs[-1]).text)
    second = np.median([row.seconds / row.cost for row in rows if row.method == FULL])
    print("\nmethod            cost   mean squared error   seconds   speed-up over the full force: by cost, by seconds")
    for row in rows:
        needed = torch.tensor([cost_at(rows, FULL, float(error), b) for b, error in enumerate(row.errors)])
        print(f"{row.method:<15}{row.cost:7.1f}{spread(row.errors):>21}{row.seconds:10.2f}", end="")
        print(f"{spread(needed / row.cost):>17} x{float(needed.mean()) * second / row.seconds:9.2g} x")
    found = structure(x, 1.0, args.long)
    print("\nlong run       cost  seconds     peak of g(r)   greatest error of g    pressure by its own force")
    for name, (g, own, cost, seconds) in found.items():
        wrong = float((g - found[FULL][0]).mean(0).abs().max())
        print(f"{name:<11}{cost:8.1f}{seconds:9.1f}{spread(g.max(1).values):>17}{wrong:>22.2g}{spread(own):>29}")
    figure(x, rows, found, args.out / "langevin.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
