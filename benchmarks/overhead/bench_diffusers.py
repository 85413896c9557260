"""What a ladder costs beside its models, in a stock pipeline.

    pytest benchmarks/overhead/bench_diffusers.py --benchmark-only  # times each case
    python benchmarks/overhead/bench_diffusers.py                   # runs them in turn and prints ratios

The ratios are of CPU time on one thread: at p = 1 against the plain top UNet (goal: at most 1.02), and below against
the time that its evaluations take in plain pipelines (goal: 1, time linear in evaluations). The last lines are the
ladder's own milliseconds beside models that do nothing (goal: at most 0.3).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from multilevel_diffusion.diffusers import MultilevelUNet, attach

STEPS = 10
CALLS, WEIGHTS = 28, 200  # of a pipeline with models that do nothing, each with so many tensors of weights
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
    alone(rounds)


class Nothing(ModelMixin, ConfigMixin):
    """A model that returns a share of its input."""

    @register_to_config
    def __init__(self, share: float, sample_size: int = 32, in_channels: int = 3, out_channels: int = 3):
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.zeros(1000)) for _ in range(WEIGHTS)])

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> UNet2DOutput | tuple[Tensor]:
        """Return a share of the input."""
        value = sample * self.config["share"]
        return UNet2DOutput(sample=value) if return_dict else (value,)


def alone(rounds: int) -> None:
    """Print the ladder's own time a call: of one that was not measured, and of one that was."""
    pipe = DDIMPipeline(Nothing(0.5), DDIMScheduler(clip_sample=False, timestep_spacing="trailing"))
    pipe.set_progress_bar_config(disable=True)

    def milliseconds() -> float:
        seconds = []
        for _ in range(rounds):
            start = time.process_time()
            pipe(num_inference_steps=CALLS, output_type="pt")
            seconds.append(time.process_time() - start)
        return 1000 * statistics.median(seconds) / CALLS

    plain = milliseconds()
    ladder = attach(pipe, [Nothing(0.4)], budget_fraction=0.3, costs=[1.0, 8.0])
    drawn = milliseconds()
    ladder.calibrate(pipe, num_inference_steps=CALLS, progress=False)
    print(f"\nthe ladder alone: {drawn - plain:.3f} ms a call, calibrated {milliseconds() - plain:.3f}")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
