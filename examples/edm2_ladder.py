"""How much of EDM2-XXL's cost do its images need when the smaller EDM2 networks answer most calls?

The published sizes XS ... XXL as one ladder inside NVlabs/edm2's own `generate_images`, sampler and file formats:

    python examples/edm2_ladder.py --edm2-repo PATH --sizes xs m xxl --budget-fraction 0.4 --steps 64 --out out

PATH is a checkout of NVlabs/edm2 with what it needs installed. Its networks are pickles that only its own code should
open, and does here: this script unpickles nothing. `--nets` names files instead of the published ones. The networks
are of NVIDIA, under CC BY-NC-SA 4.0.

With networks of your own at hand, in Python:

    model = multilevel({"xs": xs, "xxl": xxl}, budget_fraction=0.4)
    for batch in generate_images(net=model, encoder=encoder, seeds=range(8)):
        ...

A small budget wants more steps than the 32 that the largest network needs alone: the corrections are then smaller and
average out. All levels should have the same EMA length and training length where you can choose them, as what they
differ in otherwise is corrected too.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import multilevel_sde as mls
from multilevel_diffusion import MultilevelDenoiser

# Billions of operations of one evaluation on 64x64 latents, as published by Karras et al. 2024 (arXiv 2312.02696).
GFLOPS = {"xs": 46.0, "s": 102.0, "m": 181.0, "l": 282.0, "xl": 406.0, "xxl": 552.0}


def multilevel(networks: Mapping[str, Any], *, count: bool = False, **choice: Any) -> MultilevelDenoiser:
    """Return EDM2 networks as one network, with the attributes of the largest.

    Arguments:
        networks: D(x, sigma, labels) by size, cheapest first; sizes as in `GFLOPS` unless counted.
        count: Count FLOPs by one evaluation each instead of taking the published ones.
        choice: What runs when: `budget_fraction`, `plan` or `probabilities`, `schedule`, `draw`, `seed`.

    Raises:
        ValueError: The networks are of other images than the largest, or a size has no published cost.
    """
    top = list(networks.values())[-1]
    for size, net in networks.items():
        for name in ("img_channels", "img_resolution", "label_dim"):
            if getattr(net, name) != getattr(top, name):
                raise ValueError(
                    f'"networks" have {name} {getattr(net, name)} at {size!r} and {getattr(top, name)} at the top; '
                    "give networks of the same images and labels"
                )
        if size not in GFLOPS and not count:
            raise ValueError(f'"networks" has the size {size!r}, expected one of {", ".join(GFLOPS)}; or count costs')
    if not count:
        costs: Any = mls.GivenCost([GFLOPS[size] for size in networks], unit="GFLOPs")
        return MultilevelDenoiser(mls.Ladder(list(networks.values()), costs), **choice)
    parameter = next(top.parameters())
    x = torch.zeros(1, top.img_channels, top.img_resolution, top.img_resolution, device=parameter.device)
    labels = torch.zeros(1, top.label_dim, device=parameter.device) if top.label_dim else None
    calls = [lambda x, t, net=net: net(x, t.to(x.dtype), labels) for net in networks.values()]
    return MultilevelDenoiser(mls.Ladder(list(networks.values()), mls.FlopCost(x)(calls)), **choice)


class _NoDecoder:
    """An encoder for a run whose images nobody looks at."""

    def init(self, device: Any) -> None: ...

    def decode(self, x: Tensor) -> Tensor:
        return x


def load(edm2: Any, path: str, device: torch.device) -> nn.Module:
    """Let EDM2 open one of its files: its sampler is handed the network, and this one keeps it."""
    found = []

    def keep(net: nn.Module, noise: Tensor, **arguments: Any) -> Tensor:
        found.append(net)
        return noise

    list(edm2.generate_images(path, encoder=_NoDecoder(), seeds=[0], device=device, verbose=False, sampler_fn=keep))
    return found[0]


def open_edm2(repo: str, device: torch.device) -> Any:
    """Import `generate_images` of a checkout of NVlabs/edm2 and start the process group that it waits for."""
    if not (Path(repo) / "generate_images.py").is_file():
        raise ValueError(f'"--edm2-repo" is {repo!r}, which has no generate_images.py; give a checkout of NVlabs/edm2')
    sys.path.insert(0, repo)
    group: Any = torch.distributed
    if device.type == "cpu" and not group.is_initialized():  # EDM2 itself would ask for NCCL
        group.init_process_group("gloo", store=group.HashStore(), rank=0, world_size=1)
    importlib.import_module("torch_utils.distributed").init()
    return importlib.import_module("generate_images")


def sampler(edm2: Any, lower: Mapping[str, nn.Module], size: str, built: list, **choice: Any) -> Callable[..., Tensor]:
    """Return EDM2's sampler with the ladder in the place of the network that it is handed, the largest one."""

    def sample(net: nn.Module, noise: Tensor, **arguments: Any) -> Tensor:
        if not built:
            built.append(multilevel({**lower, size: net}, **choice))
        return edm2.edm_sampler(built[0], noise, **arguments)

    return sample


def main(argv: Sequence[str] | None = None) -> int:
    """Sample, and print what was evaluated."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edm2-repo", required=True, metavar="PATH", help="checkout of NVlabs/edm2")
    parser.add_argument("--sizes", nargs="+", default=list(GFLOPS), help="levels, cheapest first [all]")
    parser.add_argument("--preset", default="edm2-img512-{size}-fid", help="EDM2's name of a size's file [%(default)s]")
    parser.add_argument("--nets", nargs="+", help="files or addresses instead, one a size")
    parser.add_argument("--count", action="store_true", help="count costs instead of taking the published ones")
    parser.add_argument("--budget-fraction", type=float, default=0.4, help="of the largest network's cost [0.4]")
    parser.add_argument("--steps", type=int, default=64, help="Heun steps, 2 steps - 1 calls [%(default)s]")
    parser.add_argument("--seeds", type=int, nargs=2, default=[0, 8], metavar=("FIRST", "END"), help="images [0 8]")
    parser.add_argument("--class", type=int, dest="class_idx", help="ImageNet class [random]")
    parser.add_argument("--out", default="edm2-ladder", help="folder of the images [%(default)s]")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    if args.nets is not None and len(args.nets) != len(args.sizes):
        parser.error(f'"--nets" has {len(args.nets)} files for {len(args.sizes)} sizes; give one for each')
    edm2 = open_edm2(args.edm2_repo, args.device)
    paths = args.nets or [edm2.config_presets[args.preset.format(size=size)]["net"] for size in args.sizes]
    lower = {s: load(edm2, path, args.device) for s, path in zip(args.sizes[:-1], paths[:-1], strict=True)}
    built: list[MultilevelDenoiser] = []
    fn = sampler(edm2, lower, args.sizes[-1], built, count=args.count, budget_fraction=args.budget_fraction)
    where = {"seeds": range(*args.seeds), "class_idx": args.class_idx, "outdir": args.out, "device": args.device}
    list(edm2.generate_images(paths[-1], sampler_fn=fn, num_steps=args.steps, **where))
    print(built[0].stats)
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except ValueError as error:
        raise SystemExit(f"edm2_ladder: {error}") from None
