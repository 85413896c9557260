"""`multilevel-sde quality`: samples against real images, or against other samples of the same seeds."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multilevel_diffusion.commands.options import add_device, add_out, add_seed, add_threads, prepare

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["register"]


def register(subparsers) -> None:
    """Add the command to an argparse subparsers object.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> register(parser.add_subparsers())
        >>> parser.parse_args(["quality", "--samples", "samples", "--reference", "photos"]).psnr
        False
    """
    parser = subparsers.add_parser(
        "quality", help="compare samples with real images, or image by image", description=_run.__doc__
    )
    parser.add_argument("--samples", type=Path, required=True, help="folder of `sample`, or of image files")
    parser.add_argument("--reference", type=Path, required=True, help="the same: of real images, or of other samples")
    parser.add_argument(
        "--psnr", action="store_true", help="only compare image by image, by their names or seeds; any number of them"
    )
    add_seed(parser, "seed of directions, halves and folds")
    add_out(parser, "quality", "folder for quality.json")
    add_device(parser, "where the features are computed")
    add_threads(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    """Compare samples with real images by three distances, or image by image where they have one name or seed.

    The distances are the Frechet distance, the sliced Wasserstein distance, and how often a classifier tells the sets
    apart. Beside them stands what two halves of the real images give.
    """
    from multilevel_diffusion.quality.comparison import compare, samples_needed
    from multilevel_diffusion.sampling.shards import read_manifest
    from multilevel_sde.files import write_atomically

    device = prepare(arguments)
    folders = {"--samples": arguments.samples, "--reference": arguments.reference}
    for option, folder in folders.items():
        if not folder.is_dir():
            raise ValueError(
                f'"{option}" is {str(folder)!r}, which is no folder; give one of samples or of image files'
            )
    shape = _shape(folders.values())
    (samples, names), (reference, others) = (_images(folder, shape) for folder in folders.values())
    if reference.shape[1:] != samples.shape[1:]:
        raise ValueError(
            f'"--reference" holds images {tuple(reference.shape[1:])}, "--samples" {tuple(samples.shape[1:])}; give '
            "images of one shape"
        )
    found: dict[str, Any] = {"samples": str(arguments.samples), "reference": str(arguments.reference)}
    if not arguments.psnr:
        need = samples_needed(samples.shape[1:])
        for option, images in (("--samples", samples), ("--reference", reference)):
            if len(images) < need:
                raise ValueError(
                    f'"{option}" holds {len(images)} images, expected at least {need} of this shape, fewer show noise; '
                    f"give {need} or more, or compare image by image with --psnr"
                )
        compared = compare(samples.to(device), reference.to(device), seed=arguments.seed)
        found |= compared.to_dict()
        print(compared.table())
    jobs = all(read_manifest(folder) is not None for folder in folders.values())  # then one seed is one noise
    pairs = _psnr(samples, names, reference, others) if arguments.psnr or jobs else {}
    if arguments.psnr and not pairs:
        raise ValueError(
            '"--psnr" compares images of the same name or seed, and there is none in both folders; sample the same '
            "--seed, or leave it out"
        )
    if arguments.psnr:
        _check_sizes(folders.values(), sorted(set(names) & set(others)), samples.shape[-1])
    if pairs:
        found["psnr"] = pairs
        if not arguments.psnr:
            print("note: images of one seed are not independent: for the distances, sample another --seed")
        print(f"PSNR of {pairs['pairs']} pairs of images: {pairs['mean']:.2f} dB, the lowest {pairs['lowest']:.2f} dB")
    content = json.dumps({name: _finite(value) for name, value in found.items()}, indent=1) + "\n"
    write_atomically(arguments.out / "quality.json", content.encode())
    print(f"written to {arguments.out / 'quality.json'}")
    return 0


def _shape(folders: Iterable[Path]) -> tuple[int, ...]:
    """The shape of the images of the first sampling job, else that of colour images of the first folder's size."""
    from multilevel_diffusion.networks.image_folder import common_side
    from multilevel_diffusion.sampling.shards import read_manifest, read_shards

    for folder in folders:
        if read_manifest(folder) is not None:
            return tuple(next(images.shape[1:] for _, images in read_shards(folder)))
    side = common_side(next(iter(folders)))
    return 3, side, side


def _check_sizes(folders: Iterable[Path], names: Sequence[str], side: int) -> None:
    """Refuse pairs of images one or both of which were scaled to the side of the tensors."""
    sizes = [_sizes(folder) for folder in folders]
    for name in names:
        first, second = (known.get(name, (side, side)) for known in sizes)
        if first != second or min(first) != side:
            raise ValueError(
                f'"--psnr" compares pixel by pixel, but image {name} is {first[0]}x{first[1]} in --samples and '
                f"{second[0]}x{second[1]} in --reference; bring all images of both to one size"
            )


def _sizes(folder: Path) -> dict[str, tuple[int, int]]:
    """The sizes of the image files of a folder by their names; none of a sampling job, whose images are not scaled."""
    from multilevel_diffusion.networks.image_folder import image_sizes
    from multilevel_diffusion.sampling.shards import read_manifest

    if read_manifest(folder) is not None:
        return {}
    return {file.stem: size for file, size in image_sizes(folder).items()}


def _images(folder: Path, shape: Sequence[int]) -> tuple[Tensor, list[str]]:
    """The images of a folder and their names: those of a sampling job, else those of its image files."""
    from multilevel_diffusion.networks.image_folder import read_images
    from multilevel_diffusion.sampling.shards import load_images, read_manifest, read_shards

    if read_manifest(folder) is None:
        return read_images(folder, shape)
    images = load_images(folder).float().clamp(-1, 1)
    return images, [f"{seed:06d}" for seeds, _ in read_shards(folder) for seed in seeds]


def _psnr(samples: Tensor, names: list[str], reference: Tensor, others: list[str]) -> dict[str, Any]:
    """The PSNR of images of one name, empty where there are none."""
    from multilevel_diffusion.quality.comparison import psnr

    place = {name: index for index, name in enumerate(others)}
    if len(place) < len(others) or len(set(names)) < len(names):
        return {}  # names of images in several subfolders name no pair
    mine = [index for index, name in enumerate(names) if name in place]
    if not mine:
        return {}
    values = psnr(samples[mine], reference[[place[names[index]] for index in mine]])
    return {"pairs": len(mine), "mean": float(values.mean()), "lowest": float(values.min())}


def _finite(value: Any) -> Any:
    """Infinities are texts in JSON."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return value if not isinstance(value, float) or abs(value) < float("inf") else str(value)
