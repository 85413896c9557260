"""`multilevel-sde sample`: images of a ladder as tensors and PNG pages, and a record of how they were made.

A run that was killed continues when it is started again with the same arguments, and a larger --count adds to what is
there; `torchrun --nproc-per-node N -m
multilevel_sde sample ...` runs it on N processes.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import multilevel_sde as mls
from multilevel_diffusion.commands.options import (
    add_device,
    add_guidance,
    add_ladder,
    add_mode,
    add_out,
    add_price,
    add_seed,
    add_threads,
    as_notes,
    at_least,
    note,
    number,
    own_words,
    prepare,
    priced,
    the_ladder,
    usual_steps,
)

if TYPE_CHECKING:
    from torch import Tensor

    from multilevel_diffusion.networks.image_ladders import ImageLadder
    from multilevel_diffusion.process.reverse_process import Process
    from multilevel_diffusion.sampling.job import Job
    from multilevel_diffusion.sampling.job_folder import Result

__all__ = ["register"]

_PAGE = 64  # images on a page
_UNIT = "evaluations of the largest network"
# The options that images depend on, by which a message tells two runs apart.
_NAMED = ["--budget", "--plan", "--mode", "--label", "--guidance", "--method", "--steps", "--fine", "--plan-seed"]
_NAMED += ["--seed", "--count", "--ladder", "--batch", "--shard", "--price"]
_OF_PLANS = ["--budget", "--plan", "--mode", "--guidance", "--method", "--steps", "--fine", "--plan-seed", "--ladder"]
_OF_PLANS += ["--price"]


def register(subparsers) -> None:
    """Add the command to an argparse subparsers object.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> register(parser.add_subparsers())
        >>> parser.parse_args(["sample", "--ladder", "digits", "--budget", "20"]).count
        64
    """
    parser = subparsers.add_parser("sample", help="sample a ladder: PNG pages and a JSON record", description=__doc__)
    add_ladder(parser)
    parser.add_argument("--budget", type=number(above=0), help="cost of an image in evaluations of the largest network")
    add_price(parser)
    parser.add_argument("--plan", type=Path, help="a saved plan instead of a budget")
    parser.add_argument(
        "--count", type=at_least(1), default=64, help="images; more than before adds to them [%(default)s]"
    )
    add_seed(parser, "seed of the first image; images take consecutive ones")
    add_mode(parser)
    parser.add_argument(
        "--label", nargs="+", metavar="CLASS", help="classes by name or number, one for all images or several in turn"
    )
    add_guidance(parser)
    parser.add_argument("--method", choices=["em", "ml-em"], default="ml-em", help="[%(default)s]")
    parser.add_argument("--steps", type=at_least(1), help="steps; default: the plan's, or the budget's for em, or 200")
    parser.add_argument(
        "--fine", type=at_least(1), default=1000, help="finest grid, on which the noise is defined [1000]"
    )
    parser.add_argument("--plan-seed", type=int, default=0, help="seed of a randomly drawn plan [%(default)s]")
    parser.add_argument("--batch", type=at_least(1), help="images at a time; default: by memory")
    parser.add_argument("--shard", type=at_least(1), help="images in a file of tensors; default: four batches")
    parser.add_argument("--pages", type=at_least(0), help="at most so many PNG pages of 64 images; default: all images")
    parser.add_argument("--png", action="store_true", help="also write each image as png/SEED.png")
    add_out(parser, "samples", "folder; a stopped run continues")
    add_device(parser, "where the networks run; cuda: one GPU a process")
    add_threads(parser)
    parser.add_argument(
        "--timeout",
        type=number(above=0),
        default=1800.0,
        help="seconds that processes wait for each other [%(default)g]",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    import torch

    from multilevel_diffusion.process.grids import uniform
    from multilevel_diffusion.process.reverse_process import MODES, Process
    from multilevel_diffusion.sampling.distributed import place, process_group
    from multilevel_diffusion.sampling.job import Job
    from multilevel_diffusion.sampling.job_folder import run
    from multilevel_diffusion.sampling.samples import batch_for
    from multilevel_diffusion.sampling.shards import read_manifest

    with process_group(prepare(arguments), timeout=arguments.timeout) as device:
        # Threads change the last bits, so a run that continues takes those of the run that it continues.
        manifest = read_manifest(arguments.out) or {}
        before = (manifest.get("job") or {}).get("threads")
        if before and arguments.threads is None:
            torch.set_num_threads(before)
        images = the_ladder(arguments, device)
        process = Process(images.schedule, MODES[arguments.mode], uniform(images.schedule, arguments.fine))
        told = _conditions(arguments, images)
        batch = arguments.batch or batch_for(images.image_shape)
        alone = arguments.method == "em"  # of one level, whose evaluations cost one each
        prices = images.ladder if alone else priced(arguments, images, process, min(batch, arguments.count))
        chosen = _begun(arguments, manifest) or _choose(arguments, images, process, prices.in_evaluations(_UNIT))
        times, plan, how = chosen
        seeds = range(arguments.seed, arguments.seed + arguments.count)
        shard = arguments.shard or 4 * batch
        threads, tau = torch.get_num_threads(), MODES[arguments.mode]
        job = Job(images, times, plan, seeds, tau, arguments.fine, batch, shard, threads, told)
        result = run(job, arguments.out, arguments={name: _given(arguments, name) for name in _NAMED}, progress=True)
        if place()[0] == 0:
            _report(arguments, job, result, how, prices)
    return 0


def _given(arguments: argparse.Namespace, name: str) -> Any:
    """The value of an option, as JSON has it."""
    value = getattr(arguments, name.removeprefix("--").replace("-", "_"))
    return str(value) if isinstance(value, Path) else value


def _begun(arguments: argparse.Namespace, manifest: Mapping[str, Any]) -> tuple[Tensor, mls.Plan, str] | None:
    """What the folder was begun with by the same arguments: seconds may have changed since, images must not."""
    from multilevel_diffusion.sampling.shards import PLAN

    said = (manifest.get("told") or {}).get("arguments") or {}
    path = arguments.out / PLAN
    if not path.is_file() or any(name not in said or said[name] != _given(arguments, name) for name in _OF_PLANS):
        return None
    plan, times = mls.Plan.load_with_times(path)
    return None if times is None else (times, plan, "the plan of the folder")


def _conditions(arguments: argparse.Namespace, images: ImageLadder) -> dict[str, Tensor] | None:
    """The label of each image, None without labels."""
    from multilevel_diffusion.networks.image_ladders import class_labels

    if arguments.label is None:
        if arguments.guidance is not None:
            raise ValueError('"--guidance" needs the class to follow; give --label')
        return None
    labels = class_labels(images, arguments.label)
    return {"label": labels.repeat(-(-arguments.count // len(labels)))[: arguments.count].to(images.device)}


def _report(arguments: argparse.Namespace, job: Job, result: Result, how: str, prices: mls.Ladder) -> None:
    """Write the pages and the record, and say what was done."""
    from multilevel_diffusion.sampling.shards import remove_temporary_files
    from multilevel_sde.files import write_atomically

    plan, price = job.plan, {one.unit: job.plan.cost(one.in_evaluations()) for one in (prices, job.images.ladder)}
    remove_temporary_files(arguments.out, ("samples_*", "record.json"))
    record = {
        "versions": job.description["versions"],
        "ladder": str(arguments.ladder),
        "method": how,
        "mode": arguments.mode,
        "label": arguments.label,
        "guidance": arguments.guidance,
        "steps": plan.steps,
        "fine": arguments.fine,
        "seeds": [job.seeds.start, job.seeds.stop],
        "plan_seed": arguments.plan_seed,
        "evaluations": plan.evaluations.tolist(),
        "cost": {
            **{f"{one.unit} per image": plan.cost(one) for one in (prices, job.images.ladder)},
            "largest network's evaluations": price,
        },
        "computed": result.images,
        "seconds": result.seconds,
        "status": result.status,
        "job": job.digest,
        "pages": _write_pages(arguments.out, job.seeds, arguments.pages),
    }
    if arguments.png:
        _write_images(arguments.out)
    write_atomically(arguments.out / "record.json", (json.dumps(record, indent=1) + "\n").encode())
    there = arguments.count - result.images
    print(
        f"{arguments.count} images by {how}, {plan.steps} steps, cost of each in evaluations of the largest "
        f"network {_in_words(price)}; {result.seconds:.1f} s; {result.status}; "
        + (f"{there} of them were there; " if there else "")
        + f"written to {arguments.out}/"
    )


def _in_words(price: Mapping[str, float]) -> str:
    return ", ".join(f"{value:.2f} by {unit}" for unit, value in price.items())


def _write_pages(folder: Path, seeds: range, most: int | None) -> list[str]:
    """Write PNG pages of the images in a folder, and return their names."""
    import torch
    from tqdm import tqdm

    from multilevel_diffusion.sampling.pictures import save_grid
    from multilevel_diffusion.sampling.shards import read_shards

    images, names = itertools.chain.from_iterable(images for _, images in read_shards(folder)), []
    for first in tqdm(seeds[::_PAGE][:most], desc="pages", unit="page", delay=2):
        page = torch.stack(list(itertools.islice(images, _PAGE)))
        names.append(f"samples_{first:06d}.png")
        save_grid(folder / names[-1], page, scale=max(1, 64 // page.shape[-1]))
    return names


def _write_images(folder: Path) -> None:
    """Write each image alone, named by its seed."""
    from tqdm import tqdm

    from multilevel_diffusion.sampling.pictures import save_image
    from multilevel_diffusion.sampling.shards import read_shards

    for seeds, images in tqdm(read_shards(folder), desc="png", unit="shard", delay=2):
        for seed, image in zip(seeds, images, strict=True):
            save_image(folder / "png" / f"{seed:06d}.png", image)


def _choose(
    arguments: argparse.Namespace, images: ImageLadder, process: Process, ladder: mls.Ladder
) -> tuple[Tensor, mls.Plan, str]:
    """The grid, the plan and its name; `ladder` is that of `images` in evaluations of the largest network."""
    import torch

    from multilevel_diffusion.sampling.origins import load_plan
    from multilevel_diffusion.sampling.stored import stored_pilot, stored_plan

    if arguments.plan is not None:
        if arguments.method == "em" or arguments.budget is not None:
            raise ValueError('"--plan" already says what runs; leave out --method em and --budget')
        plan, times = load_plan(arguments.plan, images, process)
        if arguments.steps not in (None, plan.steps):
            raise ValueError(f'"--steps" is {arguments.steps}, but the plan has {plan.steps}; leave it out')
        return times, plan, f"plan {arguments.plan.name}"
    if arguments.method == "em":
        steps = arguments.steps or max(1, int(arguments.budget or arguments.fine))
        if arguments.budget is not None and steps > arguments.budget:
            raise ValueError(f'"--steps" is {steps}, more than the "--budget" of {arguments.budget:g} evaluations pays')
        times = process.grid(steps)
        return times, mls.em_plan(ladder, times), "Euler-Maruyama on the largest network"
    if arguments.budget is None:
        raise ValueError('"--budget" is missing; give the cost of an image in evaluations of the largest network')
    usual = arguments.steps is None and arguments.fine == 1000
    with as_notes():
        fitted = stored_plan(images, arguments.mode, arguments.budget, ladder)
        pilot = stored_pilot(images, arguments.mode)
    if fitted is not None and usual:
        return fitted[1], fitted[0], "ML-EM, a fitted plan"
    if pilot is not None and usual:
        planned = pilot.priced(ladder).plan(budget=arguments.budget)
        return planned.times, planned.plan, "ML-EM, the pilot's plan"
    if usual:
        _advise_a_pilot(arguments, images)
    steps, budget = arguments.steps, arguments.budget
    if steps is None:
        steps = usual_steps(budget, ladder.costs[0], arguments.fine)
        budget = min(budget, steps * ladder.costs[-1])  # which pays no further step
    times = process.grid(steps)
    table = mls.InverseCostSchedule().probabilities(ladder, times, budget=budget)
    if not usual and (fitted is not None or pilot is not None):
        note(
            "the plans of the ladder's pilot are for --fine 1000 without --steps, so another one is drawn at random, "
            "which is usually worse; leave --fine and --steps out to use the pilot's"
        )
    generator = torch.Generator().manual_seed(arguments.plan_seed)
    return times, mls.draw_plan(table, mls.systematic, generator=generator), "ML-EM, p = C / T, systematic"


def _advise_a_pilot(arguments: argparse.Namespace, images: ImageLadder) -> None:
    """Say which command makes the pilot that is missing; one network alone has a fitted plan instead."""
    words = own_words(arguments)
    if len(images.ladder) == 1:
        kept = "--save" if images.folder is not None else "--out plan.safetensors, and give --plan"
        note(
            f"{arguments.ladder} has no fitted plan for --mode {arguments.mode} and this budget, so its steps are "
            f"Euler's; make one with: multilevel-sde plan {words} --budget {arguments.budget:g} --fit {kept}"
        )
        return
    how = f"multilevel-sde pilot {words} --save"
    if images.folder is None:
        how = (
            f"multilevel-sde pilot {words}, then multilevel-sde plan {words} --pilot pilot/pilot.safetensors, and give"
        )
        how += " --plan"
    note(
        f"{arguments.ladder} has no pilot for --mode {arguments.mode} that can be used, so the plan is drawn at "
        f"random, which is usually worse; make one with: {how}"
    )
