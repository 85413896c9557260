"""`multilevel-sde sample`: images of a ladder as PNG pages, and a record of how they were made."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import multilevel_sde as mls
from multilevel_diffusion.commands import open_ladder
from multilevel_diffusion.fitting import stored_plan
from multilevel_diffusion.grids import uniform
from multilevel_diffusion.pictures import save_grid
from multilevel_diffusion.sampling import MODES, Process, batch_for, sample, stored_pilot
from multilevel_diffusion.store import DiffusionLadder
from multilevel_sde.files import write_atomically

__all__ = ["register"]

_PAGE = 64  # images on a page


def register(subparsers) -> None:
    """Add the command to an argparse subparsers object."""
    parser = subparsers.add_parser("sample", help="sample a ladder: PNG pages and a JSON record", description=__doc__)
    parser.add_argument("--ladder", required=True, help="folder of a ladder, or the name of a shipped one")
    parser.add_argument("--method", choices=["em", "ml-em"], default="ml-em", help="[%(default)s]")
    parser.add_argument("--mode", choices=MODES, default="ddpm", help="reverse SDE or its ODE [%(default)s]")
    parser.add_argument("--steps", type=int, help="steps; default: the plan's, or the budget's for em, or 200")
    parser.add_argument("--fine", type=int, default=1000, help="finest grid, on which the noise is defined [1000]")
    parser.add_argument("--budget", type=float, help="cost of an image in evaluations of the largest network")
    parser.add_argument("--plan", type=Path, help="a saved plan instead of a budget")
    parser.add_argument("--count", type=int, default=64, help="images [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first image; images take consecutive ones")
    parser.add_argument("--plan-seed", type=int, default=0, help="seed of a randomly drawn plan [%(default)s]")
    parser.add_argument("--batch", type=int, help="images at a time; default: by memory")
    parser.add_argument("--out", type=Path, default=Path("samples"), help="folder [%(default)s]")
    parser.add_argument("--device", default="cpu", help="where the networks run [%(default)s]")
    parser.add_argument("--threads", type=int, help="CPU threads; 1 is fastest for images of 8x8")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.count < 1:
        raise ValueError(f'"--count" must be at least 1, got {arguments.count}')
    images = open_ladder(arguments.ladder)
    for network in images.networks:
        network.to(arguments.device)
    process = Process(images.schedule, MODES[arguments.mode], uniform(images.schedule, arguments.fine))
    times, plan, how = _choose(arguments, images, process)
    batch = arguments.batch or batch_for(images.image_shape)
    seconds, status, pages = 0.0, "", []
    with tqdm(total=arguments.count, desc="sampling", unit="image") as bar:
        for first in range(arguments.seed, arguments.seed + arguments.count, _PAGE):
            seeds = range(first, min(first + _PAGE, arguments.seed + arguments.count))
            result = sample(
                images.ladder, process, times, plan, seeds, images.image_shape, batch=batch, device=arguments.device
            )
            pages.append(f"samples_{first:06d}.png")
            save_grid(arguments.out / pages[-1], result.images, scale=max(1, 64 // images.image_shape[-1]))
            seconds, status = seconds + result.seconds, result.status
            bar.update(len(seeds))
    cost = plan.cost(images.ladder)
    record = {
        "versions": {"multilevel_sde": mls.__version__, "torch": torch.__version__},
        "ladder": str(arguments.ladder),
        "method": how,
        "mode": arguments.mode,
        "steps": plan.steps,
        "fine": arguments.fine,
        "seeds": [arguments.seed, arguments.seed + arguments.count],
        "plan_seed": arguments.plan_seed,
        "evaluations": plan.evaluations.tolist(),
        "cost": {"FLOPs per image": cost, "largest network's evaluations": cost / images.ladder.costs[-1]},
        "seconds": seconds,
        "status": status,
        "pages": pages,
    }
    write_atomically(arguments.out / "record.json", (json.dumps(record, indent=1) + "\n").encode())
    plan.save(arguments.out / "plan.safetensors", times)
    print(
        f"{arguments.count} images by {how}, {plan.steps} steps, cost {cost / images.ladder.costs[-1]:.2f} evaluations "
        f"of the largest network each, {seconds:.1f} s; {status}; written to {arguments.out}/"
    )
    return 0


def _choose(arguments: argparse.Namespace, images: DiffusionLadder, process: Process) -> tuple[Tensor, mls.Plan, str]:
    """The grid, the plan and its name."""
    ladder, top = images.ladder, images.ladder.costs[-1]
    if arguments.plan is not None:
        if arguments.method == "em" or arguments.budget is not None:
            raise ValueError('"--plan" already says what runs; leave out --method em and --budget')
        plan, times = mls.Plan.load_with_times(arguments.plan)
        return process.grid(plan.steps) if times is None else times, plan, f"plan {arguments.plan.name}"
    if arguments.method == "em":
        steps = arguments.steps or round(arguments.budget or arguments.fine)
        if arguments.budget is not None and steps > arguments.budget:
            raise ValueError(f'"--steps" is {steps}, more than the "--budget" of {arguments.budget:g} evaluations pays')
        times = process.grid(steps)
        return times, mls.em_plan(ladder, times), "Euler-Maruyama on the largest network"
    if arguments.budget is None:
        raise ValueError('"--budget" is missing; give the cost of an image in evaluations of the largest network')
    fitted = stored_plan(images, arguments.mode, arguments.budget)
    if fitted is not None and arguments.steps is None and arguments.fine == 1000:
        return fitted[1], fitted[0], "ML-EM, a fitted plan"
    pilot = stored_pilot(images, arguments.mode)
    if pilot is not None and arguments.steps is None and arguments.fine == 1000:
        planned = pilot.plan(budget=arguments.budget * top)
        return planned.times, planned.plan, "ML-EM, the pilot's plan"
    times = process.grid(arguments.steps or min(200, arguments.fine))
    table = mls.InverseCostSchedule().probabilities(ladder, times, budget=arguments.budget * top)
    generator = torch.Generator().manual_seed(arguments.plan_seed)
    return times, mls.draw_plan(table, mls.systematic, generator=generator), "ML-EM, p = C / T, systematic"
