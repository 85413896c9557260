"""What a MultilevelUNet costs beside its models, in a stock pipeline.

    pytest benchmarks/overhead/bench_diffusers.py --benchmark-only  # times each case
    python benchmarks/overhead/bench_diffusers.py                   # runs them in turn and prints ratios

The ratios are of CPU time on one thread: at p = 1 against the plain top UNet (goal: at most 1.02), and below against
the time that its evaluations take in plain pipelines (goal: 1, time linear in evaluations).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

from multilevel_diffusion.diffusers import MultilevelUNet

STEPS = 10
FRACTIONS = (1.0, 0.6, 0.3)


def unet(width: int) -> UNet2DModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(width)
        model = UNet2DModel(
            sample_size=32,
            block_out_channels=(width, 2 * width),
            layers_per_block=2,
            norm_num_groups=8,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
        )
    return model.eval().requires_grad_(False)


def cases() -> dict[str, tuple[Callable[[], object], MultilevelUNet | None]]:
    """A function per case that samples one batch, and the ladder in its pipeline."""
    torch.set_num_threads(1)
    models = {"plain small UNet": unet(16), "plain top UNet": unet(64)}
    levels = list(models.values())
    ladders = {f"ladder, budget {f}": MultilevelUNet(levels, budget_fraction=f) for f in FRACTIONS}
    built: dict[str, tuple[Callable[[], object], MultilevelUNet | None]] = {}
    for name, model in {**models, **ladders}.items():
        ladder = model if isinstance(model, MultilevelUNet) else None
        pipe = DDIMPipeline(levels[-1] if ladder else model, DDIMScheduler(clip_sample=False))
        pipe.set_progress_bar_config(disable=True)
        if ladder is not None:
            ladder.install(pipe)

        def sample(pipe: DDIMPipeline = pipe) -> object:
            return pipe(batch_size=2, num_inference_steps=STEPS, output_type="pt")

        built[name] = (sample, ladder)
    return built


@pytest.mark.filterwarnings("ignore:levels . and . differ")
@pytest.mark.parametrize("name", list(cases()))
def test_sampling(benchmark, name: str) -> None:
    benchmark.group = "DDIMPipeline, 10 steps, batch 2, 32x32"
    benchmark(cases()[name][0])


def main(rounds: int = 15) -> None:
    """Print CPU times of interleaved runs, and ratios to the top UNet and to the plain times of the evaluations."""
    built = cases()
    seconds: dict[str, list[float]] = {name: [] for name in built}
    for round_number in range(rounds + 1):
        for name, (sample, _) in built.items():
            start = time.process_time()
            sample()
            if round_number:  # the first one warms up
                seconds[name].append(time.process_time() - start)
    median = {name: statistics.median(values) / STEPS for name, values in seconds.items()}
    small, top = median["plain small UNet"], median["plain top UNet"]
    print("| case | CPU ms a call | / plain top | / plain evaluations | FLOPs / plain top |")
    print("|---|---|---|---|---|")
    for name, (_, ladder) in built.items():
        row = f"| {name} | {1000 * median[name]:.2f} | {median[name] / top:.3f} |"
        if ladder is None:
            print(f"{row} 1 | |")
            continue
        use = ladder.stats.total
        plain = (use.evaluations[0] * small + use.evaluations[1] * top) / use.calls
        print(f"{row} {median[name] / plain:.3f} | {use.fraction:.3f} |")


if __name__ == "__main__":
    main()
