"""Three sizes of diffusers' own DiTTransformer2DModel on emoji of 32x32 pixels, once for flow and once for noise.

    python -m multilevel_diffusion.networks.emoji_images PACKAGE.tgz --classes heads smileys --out emoji
    python benchmarks/pipelines/train_dit.py emoji --out benchmarks/pipelines/dit32  # 40 minutes with bfloat16

docs/emoji.md says where the package comes from; the two folders are classes. The largest network learns first the
velocity of the straight path (flow), and goes on from there to the noise (eps). The others learn what it says. Errors
of the noise are weighed as those of the velocity, up to a hundredfold. Weights are moving averages in half precision.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path

import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor
from tqdm import tqdm

from multilevel_diffusion.networks.image_folder import ImageFolder

SIZES = {"small": (64, 2), "middle": (96, 3), "large": (160, 6)}  # width, blocks
STEPS = {
    ("large", "flow"): 10000, ("middle", "flow"): 2000, ("small", "flow"): 2500,
    ("large", "eps"): 4000, ("middle", "eps"): 1200, ("small", "eps"): 1500,
}  # fmt: skip
BATCH, RATE, WARM, DECAY = 16, 8e-4, 200, 0.998
BETAS = DDPMScheduler().alphas_cumprod
HALF = torch.cpu._is_avx512_bf16_supported()  # elsewhere bfloat16 is ten times slower than float32


def network(size: str) -> DiTTransformer2DModel:
    """An untrained network of two classes on patches of 4x4 pixels."""
    width, blocks = SIZES[size]
    return DiTTransformer2DModel(
        num_attention_heads=width // 32,
        attention_head_dim=32,
        in_channels=3,
        out_channels=3,
        num_layers=blocks,
        sample_size=32,
        patch_size=4,
        num_embeds_ada_norm=2,
    ).eval()  # in training mode it drops labels


def noisy(images: Tensor, kind: str, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States, times as diffusers' schedulers name them, what is to be said, and the weight of its error."""
    noise = torch.randn(images.shape, generator=generator)
    if kind == "flow":
        t = torch.sigmoid(torch.randn(len(images), 1, 1, 1, generator=generator))
        return (1 - t) * images + t * noise, 1000 * t.flatten(), noise - images, torch.ones(len(images))
    index = torch.randint(1000, (len(images),), generator=generator)
    square = BETAS[index][:, None, None, None]
    states = square.sqrt() * images + (1 - square).sqrt() * noise
    return states, index.float(), noise, 1 / square.flatten().clamp(min=0.01)


def learn(model: DiTTransformer2DModel, teacher: DiTTransformer2DModel | None, kind: str, steps: int, data: ImageFolder,
          seed: int) -> DiTTransformer2DModel:  # fmt: skip
    """Train a network, on the data or on what another one says, and return its moving average."""
    generator, mean = torch.Generator().manual_seed(seed), copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, (0.9, 0.99), weight_decay=0.01)
    bar = tqdm(range(steps), mininterval=20)
    level = 0.0
    for step in bar:
        images, labels = data.labelled_batch(BATCH, generator)
        states, times, target, weight = noisy(images, kind, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=HALF):
            if teacher is not None:
                with torch.no_grad():
                    target = teacher(states, times, class_labels=labels).sample.float()
            said = model(states, times, class_labels=labels).sample
        loss = (weight * (said.float() - target).square().flatten(1).mean(1)).mean()
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / WARM) * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(DECAY, (step + 1) / (step + 10))
        with torch.no_grad():
            for kept, new in zip(mean.parameters(), model.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
        level = loss.item() if step == 0 else level + 0.01 * (loss.item() - level)
        bar.set_postfix(loss=f"{level:.4f}", refresh=False)
    return mean


def main() -> None:
    """Train all sizes and kinds that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="pictures by class")
    parser.add_argument("--out", type=Path, required=True, help="folder of the networks")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of steps [%(default)s]")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data, start = ImageFolder(arguments.folder, 32, vary=True, labelled=True), time.process_time()
    schedulers = {"flow": FlowMatchEulerDiscreteScheduler(), "eps": DDPMScheduler(clip_sample=False)}
    teachers: dict[str, DiTTransformer2DModel] = {}
    for seed, (size, kind) in enumerate(STEPS):
        path = arguments.out / kind / size
        if not path.is_dir():
            torch.manual_seed(seed)
            first = arguments.out / "flow" / size
            model = network(size) if kind == "flow" else DiTTransformer2DModel.from_pretrained(first).float().eval()
            steps = round(arguments.scale * STEPS[size, kind])
            mean = learn(model, teachers.get(kind), kind, steps, data, seed)
            mean.half().save_pretrained(path)
            schedulers[kind].save_pretrained(path.parent / "scheduler")
            print(f"{kind} {size}: {time.process_time() - start:.0f} s of CPU time so far", flush=True)
        if size == "large":
            teachers[kind] = DiTTransformer2DModel.from_pretrained(path).float().eval()


if __name__ == "__main__":
    main()
