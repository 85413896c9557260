"""Does a ladder of the SiT transformers S, B, L, XL sample latents like SiT-XL alone, at a fraction of its cost?

    python examples/sit_ladder.py --sit-repo PATH --weights S=s.safetensors B=b.safetensors XL=xl.safetensors \
        --budget 40 --steps 250 --labels 207 360 --out out

PATH is a checkout of willisma/SiT (its `models.py` needs timm). Weights are safetensors files of its state dicts; write
one from a .pt file of your own with `safetensors.torch.save_file(state_dict, "xl.safetensors")`. The budget is the cost
of an image in evaluations of the largest network. With `--vae FOLDER` (sd-vae-ft-mse of diffusers) the latents are
decoded to a page of pictures as well.

SiT runs from noise at t = 0 to data at t = 1 and predicts v = x_0 - eps; this library's rectified flow runs the other
way, so t' = 1 - t and v' = -v. SiT's own default solver adapts its steps and must not be used with a ladder.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

import multilevel_sde as mls
from multilevel_diffusion import DDIM, FlowDenoiser, RectifiedFlowSchedule, uniform
from multilevel_diffusion.sampling.pictures import save_grid
from multilevel_sde.files import write_atomically

# Billions of multiply-adds of one evaluation on 32x32 latents with patches of 2; only their ratios matter. A table, as
# torch's FLOP counter does not see fused attention on a CPU.
GMACS = {"S": 6.06, "B": 23.0, "L": 80.7, "XL": 118.7}
LATENT_SCALE = 0.18215


def load(models: Mapping[str, Callable[..., Any]], size: str, path: str, device: str) -> Any:
    """Build a SiT of a size with the shape that its weights have, and load them.

    Raises:
        ValueError: The file is missing, or its weights are not those of this size.
    """
    if not Path(path).is_file():
        raise ValueError(f'"--weights" has {path!r} for {size}, which is no file; give a safetensors file')
    state = load_file(path, device=device)
    try:
        channels = state["final_layer.linear.bias"].numel() // 4  # of patches of 2x2
        arguments = {
            "input_size": 2 * round(state["pos_embed"].shape[1] ** 0.5),
            "num_classes": state["y_embedder.embedding_table.weight"].shape[0] - 1,
            "learn_sigma": channels == 2 * state["x_embedder.proj.weight"].shape[1],
        }
        model = models[f"SiT-{size}/2"](**arguments).to(device)
        model.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f'"--weights" has {path!r}, which does not hold a SiT-{size}/2 ({reason})') from None
    return model.eval().requires_grad_(False)


def level(model: Any, labels: Tensor, guidance: float = 1.0) -> FlowDenoiser:
    """Return SiT with its labels bound as an estimate of x_0; guidance is linear, hence a part of the level."""
    if guidance == 1:
        return FlowDenoiser(lambda x, t: -model(x, 1 - t, labels))
    both = torch.cat([labels, torch.full_like(labels, model.y_embedder.num_classes)])

    def guided(x: Tensor, t: Tensor) -> Tensor:
        return -model.forward_with_cfg(torch.cat([x, x]), 1 - torch.cat([t, t]), both, guidance)[: len(x)]

    return FlowDenoiser(guided)


def sample(
    networks: Mapping[str, Any], labels: Tensor, seeds: Sequence[int], steps: int, budget: float, **choice: Any
) -> mls.Solution:
    """Sample one latent per label and seed by DDIM, which on the straight path is Euler's method.

    Arguments:
        networks: SiT by size, cheapest first.
        labels: Classes, (B,).
        seeds: One integer per latent.
        steps: N.
        budget: Expected cost of a latent in evaluations of the largest network, at most N.
        choice: `guidance`, and `shape` of a latent if it is not that of SiT at 256x256, (4, 32, 32).

    Raises:
        ValueError: The budget is more than `steps`, or less than the smallest network at every step costs.
    """
    if budget > steps:
        raise ValueError(f'"budget" is {budget:g}, more than the largest network at each of {steps} steps; take less')
    shape = choice.pop("shape", (4, 32, 32))
    costs = mls.GivenCost([GMACS[size] for size in networks], unit="GMACs")
    ladder = mls.Ladder([level(net, labels, **choice) for net in networks.values()], costs)
    times = uniform(RectifiedFlowSchedule(), steps)
    table = mls.InverseCostSchedule().probabilities(ladder, times, budget=budget * ladder.costs[-1])
    plan = mls.draw_plan(table, mls.systematic, generator=torch.Generator().manual_seed(0))
    noise = mls.seeded_normal(seeds, shape, device=labels.device)
    return mls.solve(ladder, noise, times, plan, step=DDIM(RectifiedFlowSchedule()), gradients=False, progress=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Sample, write the latents (and pictures), and print what was evaluated."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sit-repo", required=True, metavar="PATH", help="checkout of willisma/SiT")
    parser.add_argument("--weights", nargs="+", required=True, metavar="SIZE=FILE", help="cheapest first")
    parser.add_argument("--budget", type=float, default=40.0, help="in evaluations of the largest network [40]")
    parser.add_argument("--steps", type=int, default=250, help="[%(default)s]")
    parser.add_argument("--labels", type=int, nargs="+", default=[207, 360, 387, 974, 88, 979, 417, 279])
    parser.add_argument("--guidance", type=float, default=4.0, help="1 for none [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="of the first latent [%(default)s]")
    parser.add_argument("--vae", help="folder or name of the AutoencoderKL that decodes the latents")
    parser.add_argument("--out", type=Path, default=Path("sit-ladder"), help="folder [%(default)s]")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="[%(default)s]")
    args = parser.parse_args(argv)
    pairs = [text.partition("=") for text in args.weights]
    for size, _, path in pairs:
        if size not in GMACS or not path:
            parser.error(f'"--weights" has {size!r}, expected SIZE=FILE with SIZE one of {", ".join(GMACS)}')
    if not (Path(args.sit_repo) / "models.py").is_file():
        raise ValueError(f'"--sit-repo" is {args.sit_repo!r}, which has no models.py; give a checkout of willisma/SiT')
    sys.path.insert(0, args.sit_repo)
    models = importlib.import_module("models").SiT_models
    networks = {size: load(models, size, path, args.device) for size, _, path in pairs}
    labels = torch.tensor(args.labels, device=args.device)
    side = 2 * round(next(iter(networks.values())).pos_embed.shape[1] ** 0.5)
    seeds = range(args.seed, args.seed + len(labels))
    choice = {"guidance": args.guidance, "shape": (4, side, side)}
    solution = sample(networks, labels, seeds, args.steps, args.budget, **choice)
    write_atomically(args.out / "latents.safetensors", save({"latents": solution.y.cpu()}))
    if args.vae:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        decoder: Any = AutoencoderKL.from_pretrained(args.vae).to(args.device)
        with torch.no_grad():
            save_grid(args.out / "samples.png", decoder.decode(solution.y / LATENT_SCALE).sample)
    print(f"evaluations of {', '.join(networks)}: {solution.stats.evaluations.tolist()}; written to {args.out}/")
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except ValueError as error:
        raise SystemExit(f"sit_ladder: {error}") from None
