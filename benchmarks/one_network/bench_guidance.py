"""Does a fit at one scale of guidance serve at others?

    python -m benchmarks.one_network.bench_guidance          # half a minute of an idle core

One network with classifier-free guidance is fitted at scale 2 in 8 evaluations of the ODE, and used at others. Beside
it stand the best method that is not fitted (of six, on two grids) and a fit at that scale. The "network" is the
posterior mean of scikit-learn's digits with Gaussian noise of 0.3, in a class and in all: no training, and guidance is
exact. Errors are typical squared distances to its own path in 250 steps, on 32 images that no fit saw.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from tqdm import tqdm

import multilevel_sde as mls
from benchmarks.common import parser_of, table, write_json
from multilevel_diffusion import CosineSchedule, OwnLadder, Process, uniform
from multilevel_diffusion.sampling.one_network import alone_plans, fit_alone
from multilevel_diffusion.sampling.trajectories import reference
from multilevel_sde.files import write_atomically
from multilevel_sde.pilots.trial import typical

EVALUATIONS, FITTED_AT, SCALES, FINE, IMAGES, WIDTH = 8, 2.0, (1.0, 1.5, 2.0, 3.0, 4.0), 250, 32, 0.3
SCHEDULE = CosineSchedule()
EVERYTHING = 10  # the label of no class


def posterior_mean(pictures: Tensor, classes: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """E[x_0 | x_t] for pictures with Gaussian noise, among those of a class or of all."""

    def denoise(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        alpha, sigma, flat = SCHEDULE.alpha(float(t)), SCHEDULE.sigma(float(t)), x.flatten(1)
        variance = (WIDTH * alpha) ** 2 + sigma**2
        square = torch.cdist(flat, alpha * pictures).square() / variance
        other = (classes[None] != label[:, None]) & (label[:, None] != EVERYTHING)
        nearest = torch.softmax(square.masked_fill(other, torch.inf) / -2, 1) @ pictures
        return (nearest + WIDTH**2 * alpha / variance * (flat - alpha * nearest)).reshape(x.shape)

    return denoise


def guided(scale: float) -> OwnLadder:
    """One network with guidance."""
    pictures, classes = load_digits(return_X_y=True)
    denoise = posterior_mean(torch.tensor(pictures, dtype=torch.float32) / 8 - 1, torch.tensor(classes))

    def level(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        free = denoise(x, t, torch.full_like(label, EVERYTHING))
        return free + scale * (denoise(x, t, label) - free)

    return OwnLadder(mls.Ladder([level], [1.0]), SCHEDULE, (1, 8, 8), tuple("0123456789"))


def measure(fine: int = FINE, scales: tuple[float, ...] = SCALES) -> list[dict[str, float]]:
    """The errors at each scale."""
    process, seeds = Process(SCHEDULE, 0.0, uniform(SCHEDULE, fine)), range(IMAGES)
    told, rows = {"label": torch.arange(IMAGES) % 10}, []
    begun = fit_alone(guided(FITTED_AT), process, EVALUATIONS)
    for scale in tqdm(scales, desc="scales"):
        images = guided(scale)
        start, end = process.start(seeds, images.image_shape), reference(images, process, seeds, conditions=told)

        def error(plan: mls.Plan, times: Tensor, ladder=images.ladder, start=start, end=end) -> float:
            y = mls.solve(ladder, start, times, plan, conditions=told, **process.arguments(seeds)).y
            return typical((y - end).double().square().flatten(1).mean(1))

        own = fit_alone(images, process, EVALUATIONS)
        unfitted = min(error(one.plan, one.times) for one in alone_plans(images, process, EVALUATIONS))
        fitted = {"elsewhere": error(begun.plan, begun.times), "here": error(own.plan, own.times)}
        rows.append({"scale": scale, "unfitted": unfitted, **fitted})
    return rows


def main() -> None:
    """Measure, write and print the table."""
    parser = parser_of(__file__, __doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run: 40 steps, two scales")
    parser.add_argument("--show", action="store_true", help="only print what is stored")
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = options.out / "guidance.json"
    if not options.show:
        with torch.no_grad():
            write_json(path, measure(40, SCALES[1:3]) if options.quick else measure())
    rows = json.loads(path.read_bytes())
    body = [[f"{row['scale']:g}", *(f"{row[name]:.2g}" for name in ("unfitted", "elsewhere", "here"))] for row in rows]
    text = "\n".join([*table(["scale", "best unfitted", f"fitted at {FITTED_AT:g}", "fitted there"], body), ""])
    write_atomically(options.out / "guidance.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
