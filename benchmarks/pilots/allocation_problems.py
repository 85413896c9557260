"""The problems of bench_allocation: ladders with their pilots and their paths from seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

import multilevel_sde as mls
from multilevel_diffusion import Process, load_ladder, shipped_ladder, stored_pilot, uniform
from multilevel_diffusion.process import MODES
from multilevel_sde.times import thinned

__all__ = ["PROBLEMS", "Problem"]

PILOTED, CANDIDATES = 3 * 10**6, 100  # first seed of the pilots of toy problems, and their candidate steps


@dataclass(frozen=True)
class Problem:
    """A ladder with its paths from seeds, its finest grid and its pilot."""

    ladder: mls.Ladder
    fine: Tensor
    pilot: mls.Pilot
    gamma: float
    start: Callable[[Sequence[int]], Tensor]
    step: mls.Step
    diffusion: float | None
    noise: Callable[[Sequence[int]], mls.BrownianPath] | None
    derivative: Callable

    def grid(self, steps: int) -> Tensor:
        """Return about equally spaced steps of the finest grid."""
        return self.fine[thinned(len(self.fine) - 1, steps)]

    @property
    def arguments(self) -> dict:
        """What `learn` and `best_plan` want to know."""
        return {"step": self.step, "diffusion": self.diffusion, "brownian_source": self.noise}

    def solve(self, seeds: Sequence[int], times: Tensor, plan: mls.Plan) -> Tensor:
        """Return the final states."""
        noise = None if self.noise is None else self.noise(seeds)
        return mls.solve(
            self.ladder, self.start(seeds), times, plan, step=self.step, diffusion=self.diffusion, brownian=noise
        ).y


def toy(problem: mls.problems.Problem, gamma: float) -> Problem:
    """A toy problem with a pilot of 16 samples."""
    fine, ladder = problem.times(400), problem.ladder
    noise = None if problem.diffusion is None else partial(mls.BrownianPath, grid=fine)

    def start(seeds: Sequence[int]) -> Tensor:
        return problem.y0(len(seeds), seed=seeds[0])

    seeds = range(PILOTED, PILOTED + 16)
    brownian = None if noise is None else noise(seeds)
    pilot = mls.pilot(ladder, start(seeds), fine, diffusion=problem.diffusion, brownian=brownian, candidates=CANDIDATES)
    derivative = mls.forward_mode
    return Problem(ladder, fine, pilot, gamma, start, mls.euler_maruyama, problem.diffusion, noise, derivative)  # type: ignore[arg-type]


def networks(name: str, mode: str) -> Problem:
    """A shipped ladder with the pilot stored beside it."""
    stored = load_ladder(shipped_ladder(name))
    pilot = stored_pilot(stored, mode)
    if pilot is None:
        raise ValueError(f"the ladder {name} has no pilot for {mode}; write one with multilevel-sde pilot --save")
    process = Process(stored.schedule, MODES[mode], uniform(stored.schedule, 1000))
    noise = None if MODES[mode] == 0 else lambda seeds: process.arguments(seeds)["brownian"]
    return Problem(
        stored.ladder,
        process.fine_times,
        pilot,
        pilot.rates.cost_exponent,
        lambda seeds: process.start(seeds, stored.image_shape),
        process.arguments([0])["step"],
        None if noise is None else 1.0,
        noise,
        mls.central_difference,  # torch has no forward derivative of channels-last group norms
    )


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "scaling_law_2.5": lambda: toy(mls.problems.scaling_law(2.5, levels=4, diffusion=0.5), 2.5),
    "scaling_law_3": lambda: toy(mls.problems.scaling_law(3.0, levels=4, diffusion=0.5), 3.0),
    "scaling_law_4": lambda: toy(mls.problems.scaling_law(4.0, levels=4, diffusion=0.5), 4.0),
    "quadrature": lambda: toy(mls.problems.quadrature(5, (1, 2, 4)), 2.5),
    "digits_ddpm": lambda: networks("digits", "ddpm"),
    "digits_ddim": lambda: networks("digits", "ddim"),
    "deadleaves32_ddpm": lambda: networks("deadleaves32", "ddpm"),
    "deadleaves32_ddim": lambda: networks("deadleaves32", "ddim"),
}
