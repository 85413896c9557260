"""`multilevel-sde measure`: a ladder's errors on held-out images against its costs, and the exponent gamma."""

from __future__ import annotations

import argparse

from multilevel_diffusion.commands.options import (
    add_device,
    add_ladder,
    add_out,
    add_seed,
    add_threads,
    at_least,
    prepare,
)

__all__ = ["register"]


def register(subparsers) -> None:
    """Add the command to an argparse subparsers object.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> register(parser.add_subparsers())
        >>> parser.parse_args(["measure", "--ladder", "digits"]).draws
        16
    """
    parser = subparsers.add_parser(
        "measure", help="plot a ladder's error against its cost and fit gamma", description=_run.__doc__
    )
    add_ladder(parser)
    parser.add_argument("--data", metavar="SPEC", help="as for train; default: what the ladder was trained on")
    parser.add_argument("--images", type=at_least(1), default=500, help="held-out images, at most [%(default)s]")
    parser.add_argument("--draws", type=at_least(1), default=16, help="noisy versions of each image [%(default)s]")
    parser.add_argument("--batch", type=at_least(1), default=64, help="batch whose seconds are measured [%(default)s]")
    add_seed(parser, "seed of the noise")
    add_out(parser, "scaling", "folder for scaling.json and .png")
    add_device(parser)
    add_threads(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    """Measure the error of every level on held-out images, plot it against FLOPs and seconds, and fit gamma."""
    import torch

    import multilevel_sde as mls
    from multilevel_diffusion.networks.by_name import open_any, open_source, spec_of
    from multilevel_diffusion.networks.data import LabelledSource
    from multilevel_diffusion.networks.image_ladders import DiffusionLadder
    from multilevel_diffusion.networks.scaling import Scaling, measure_errors

    device = prepare(arguments)
    ladder = open_any(arguments.ladder, device)
    if not isinstance(ladder, DiffusionLadder):
        raise ValueError(
            f'"--ladder" is {arguments.ladder!r}, expected a folder: measure compares the noise estimates of networks; '
            "`multilevel-sde pilot` measures denoisers of your own"
        )
    spec = arguments.data or spec_of(ladder.record["data"])
    source = open_source(spec, ladder.image_shape[-1], labelled=bool(ladder.classes))
    if isinstance(source, LabelledSource) and tuple(source.classes) != ladder.classes:
        raise ValueError(
            f'"--data" has classes {list(source.classes)}, expected {list(ladder.classes)}; give other data'
        )
    if tuple(source.image_shape) != ladder.image_shape:
        raise ValueError(f'"--data" gives images {source.image_shape}, expected {ladder.image_shape}; give other data')
    errors = measure_errors(
        ladder.networks,
        ladder.schedule,
        source.held_out(arguments.images),
        labels=source.held_out_labels(arguments.images) if ladder.classes else None,  # type: ignore[attr-defined]
        draws=arguments.draws,
        seed=arguments.seed,
        device=device,
        progress=True,
    )
    batch = torch.zeros(arguments.batch, *ladder.image_shape, device=device)
    seconds = mls.SecondsCost(batch, calls=20)(ladder.networks)
    scaling = Scaling(
        errors,
        [sum(parameter.numel() for parameter in network.parameters()) for network in ladder.networks],
        {"FLOPs": list(ladder.ladder.costs), "seconds": [value / arguments.batch for value in seconds]},
    )
    scaling.save(arguments.out)
    print(scaling.table())
    print(f"\nwritten to {arguments.out / 'scaling.json'} and {arguments.out / 'scaling.png'}")
    return 0
