"""What a MultilevelUNet is: an unbiased estimate of its top model, the top model itself at p = 1, and a model."""

from __future__ import annotations

import copy

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

import multilevel_sde as mls  # noqa: E402
from multilevel_diffusion.diffusers.wrapper import MultilevelUNet, multilevel  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:levels . and . differ"),
    pytest.mark.filterwarnings("ignore:the ladder does not know its pipeline"),
]


COSTS = (1.0, 4.0)


def latents(batch: int = 2, channels: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, channels, 8, 8, generator=torch.Generator().manual_seed(seed))


def count_calls(model: torch.nn.Module) -> list[int]:
    """Count a model's calls from outside, by a hook."""
    calls = [0]
    model.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    return calls


@pytest.mark.parametrize("draw", [mls.systematic, mls.independent, mls.nested])
def test_the_mean_over_draws_is_the_top_model(unet, draw: mls.Draw):
    """4 standard errors on the projection on a fixed direction: level 6e-5 a comparison, 6 comparisons."""
    levels = [unet(width).double() for width in (4, 8, 12)]
    ladder = MultilevelUNet(levels, probabilities=[1.0, 0.4, 0.2], draw=draw, costs=[1.0, 4.0, 9.0])
    direction = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(9)).double()
    times, x = torch.tensor([900, 500]), latents(1).double()
    direction /= direction.norm()
    exact = [float((levels[-1](x, t).sample * direction).sum()) for t in times]
    drawn = []
    for seed in range(150):
        ladder.seed = seed
        drawn.append([float((ladder(x.clone(), t).sample * direction).sum()) for t in times])
    samples = torch.tensor(drawn, dtype=torch.float64)
    errors = (samples.mean(0) - torch.tensor(exact, dtype=torch.float64)).abs()
    assert (errors < 4 * samples.std(0) / 150**0.5).all()
    assert (samples.std(0) > 0).all()


def test_the_estimate_is_the_weighted_sum_of_the_levels(unet):
    levels = [unet(4), unet(8)]
    weights = torch.tensor([[1.0, 2.5]], dtype=torch.float64)
    ladder = MultilevelUNet(levels, plan=mls.Plan(weights > 0, weights), costs=COSTS)
    x, t = latents(), torch.tensor(7)
    low, high = (level(x, t).sample for level in levels)
    assert torch.allclose(ladder(x, t).sample, low + 2.5 * (high - low), atol=1e-5)


def test_all_probabilities_one_is_the_top_model_bit_for_bit(unet, ddim):
    levels = [unet(4), unet(8)]
    plain, laddered = ddim(levels[1]), ddim(levels[1])
    ladder = multilevel(laddered, [levels[0]], budget_fraction=1.0)
    low = count_calls(levels[0])
    images = [
        pipe(num_inference_steps=5, output_type="np", generator=torch.Generator().manual_seed(1)).images
        for pipe in (plain, laddered)
    ]
    assert (images[0] == images[1]).all()
    assert low == [0]
    assert ladder.stats.trajectory.fraction == 1.0


def test_statistics_are_the_models_own_call_counts(unet, ddim):
    levels = [unet(4), unet(8), unet(12)]
    pipe = ddim(levels[-1])
    ladder = multilevel(pipe, levels[:-1], budget_fraction=0.5)
    calls = [count_calls(level) for level in levels]
    for _ in range(2):
        pipe(num_inference_steps=20, output_type="np")
    stats = ladder.stats
    assert [count for (count,) in calls] == list(stats.total.evaluations)
    assert [2 * n for n in stats.trajectory.evaluations] == list(stats.total.evaluations)
    assert (stats.trajectories, stats.total.calls) == (2, 40)
    expected = sum(n * c for n, c in zip(stats.total.evaluations, ladder.costs.costs, strict=True))
    assert stats.total.fraction == pytest.approx(expected / (40 * ladder.costs.costs[-1]))
    ladder.reset_stats()
    assert ladder.stats.total.calls == 0


def test_the_budget_is_met_over_a_long_trajectory(unet):
    """A systematic draw has within one of its expected number of hits of each level: the fraction is that exact."""
    ladder = MultilevelUNet([unet(4), unet(8)], budget_fraction=0.4)
    x = latents(1)
    for t in range(200, 0, -1):
        ladder(x.clone(), t)
    assert ladder.stats.trajectory.fraction == pytest.approx(0.4, abs=1.5 / 200)


def test_both_halves_of_guidance_share_one_draw(unet):
    """One call on a doubled batch: equal halves in, equal halves out; two calls on one state: the same row."""
    ladder = MultilevelUNet([unet(4), unet(8)], probabilities=[1.0, 0.5], draw=mls.independent)
    x = latents(1)
    for t in (900, 800, 700, 600):
        doubled = ladder(torch.cat([x, x]), t).sample
        assert torch.equal(doubled[0], doubled[1])
    twice = [(ladder(x, t).sample, ladder(x, t).sample) for t, x in ((900 - n, latents(1, seed=n)) for n in range(20))]
    assert all(torch.equal(a, b) for a, b in twice)
    assert ladder.stats.trajectory.calls == 40
    assert ladder.stats.trajectory.evaluations[1] % 2 == 0


def test_the_seed_decides_and_nothing_global(unet, ddim):
    pipe = ddim(unet(8))
    ladder = multilevel(pipe, [unet(4)], budget_fraction=0.5, costs=COSTS, draw=mls.systematic)

    def run() -> torch.Tensor:
        return torch.as_tensor(
            pipe(num_inference_steps=8, output_type="np", generator=torch.Generator().manual_seed(1)).images
        )

    first = run()
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert torch.equal(run(), first)
    assert torch.equal(torch.get_rng_state(), state)
    ladder.seed = 1
    other = run()
    assert not torch.equal(other, first)
    ladder.seed = 0
    assert torch.equal(run(), first)


def test_an_image_does_not_depend_on_its_batch(unet, ddim):
    """To rounding: a convolution of a batch of 3 may sum in another order than one of 1."""
    pipe = ddim(unet(8))
    multilevel(pipe, [unet(4)], budget_fraction=0.5, costs=COSTS)

    def run(seeds: list[int]) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        images = pipe(batch_size=len(seeds), num_inference_steps=6, output_type="np", generator=generators).images
        return torch.as_tensor(images)

    assert torch.allclose(run([3, 4, 5]), torch.cat([run([3]), run([4]), run([5])]), atol=1e-5)


def test_it_answers_for_the_top_model(unet, conditional):
    top = conditional(8)
    ladder = MultilevelUNet([conditional(4), top], budget_fraction=0.5)
    assert ladder.config.cross_attention_dim == 16
    assert ladder.config.sample_size == top.config.sample_size
    assert ladder.conv_in is top.conv_in
    assert (ladder.dtype, ladder.device) == (top.dtype, top.device)
    assert ladder.to(torch.float64).dtype == torch.float64
    assert ladder.levels[0].dtype == torch.float64
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = ladder.no_such_thing


def test_attention_processors_are_set_on_every_level(conditional):
    from diffusers.models.attention_processor import AttnProcessor

    ladder = MultilevelUNet([conditional(4), conditional(8)], budget_fraction=0.5, costs=COSTS)
    ladder.set_attn_processor(AttnProcessor())
    for level in ladder.levels:
        assert {type(processor) for processor in level.attn_processors.values()} == {AttnProcessor}


@pytest.mark.parametrize("positional", [False, True])
def test_return_dict_is_honoured(unet, positional: bool):
    ladder = MultilevelUNet([unet(4), unet(8)], probabilities=[1.0, 1.0])
    x = latents()
    whole = ladder(x, 5)
    assert type(whole).__name__ == "UNet2DOutput"
    parts = ladder(x, 5, None, False) if positional else ladder(x, timestep=5, return_dict=False)
    assert isinstance(parts, tuple)
    assert len(parts) == 1
    assert torch.equal(parts[0], whole.sample)


def test_each_level_compiles_without_graph_breaks(unet, ddim):
    pipe = ddim(unet(8))
    ladder = multilevel(pipe, [unet(4)], budget_fraction=0.5, costs=COSTS, draw=mls.systematic)

    def run() -> torch.Tensor:
        images = pipe(num_inference_steps=4, output_type="np", generator=torch.Generator().manual_seed(1)).images
        return torch.as_tensor(images)

    eager = run()
    ladder.compile(fullgraph=True, backend="eager")
    assert torch.equal(run(), eager)


@pytest.mark.slow
def test_compiled_levels_make_a_ladder(unet, tmp_path):
    levels = [unet(4), unet(8)]
    compiled = [torch.compile(level, fullgraph=True, backend="eager") for level in levels]
    plain = MultilevelUNet(levels, budget_fraction=0.5)
    ladder = MultilevelUNet(compiled, budget_fraction=0.5)
    assert ladder.costs == plain.costs
    for t in (900, 800, 700):
        x = latents(seed=t)
        assert torch.equal(ladder(x, t).sample, plain(x, t).sample)
    ladder.save_pretrained(tmp_path)
    MultilevelUNet.from_pretrained(tmp_path)


def test_sdxl_conditions_reach_every_level(conditional):
    options = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 40,
    }
    levels = [conditional(4, **options), conditional(8, **options)]
    weights = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    ladder = MultilevelUNet(levels, plan=mls.Plan(weights > 0, weights))
    assert ladder.costs.unit == "FLOPs"
    source = torch.Generator().manual_seed(0)
    call = {
        "encoder_hidden_states": torch.randn(2, 5, 16, generator=source),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(2, 16, generator=source),
            "time_ids": torch.randn(2, 6, generator=source),
        },
    }
    x = latents(channels=4)
    low, high = (level(x, 5, **call).sample for level in levels)
    assert torch.allclose(ladder(x, 5, **call).sample, 2 * high - low, atol=1e-5)


def residuals() -> dict[str, object]:
    """ControlNet residuals of the right shapes for a conditional unet of width 8."""
    source = torch.Generator().manual_seed(3)
    shapes = [(8, 8), (8, 8), (8, 4), (16, 4)]
    return {
        "down_block_additional_residuals": [torch.randn(2, c, s, s, generator=source) for c, s in shapes],
        "mid_block_additional_residual": torch.randn(2, 16, 4, 4, generator=source),
    }


def test_controlnet_residuals_pass_through_levels_of_one_shape(conditional):
    plain = ("DownBlock2D", "DownBlock2D")
    levels = [conditional(8, down_block_types=plain, up_block_types=("UpBlock2D", "UpBlock2D")), conditional(8)]
    weights = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    ladder = MultilevelUNet(levels, plan=mls.Plan(weights > 0, weights), costs=COSTS)
    x, text = latents(channels=4), torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    low, high = (level(x, 5, text, **residuals()).sample for level in levels)
    without = ladder(x, 5, text).sample
    ladder.reset()
    estimate = ladder(x, 5, text, **residuals()).sample
    assert torch.allclose(estimate, 2 * high - low, atol=1e-4)
    assert not torch.allclose(estimate, without, atol=1e-2)


def test_adapter_residuals_that_models_pop_reach_every_level(conditional):
    plain = ("DownBlock2D", "DownBlock2D")
    levels = [conditional(8, down_block_types=plain, up_block_types=("UpBlock2D", "UpBlock2D")), conditional(8)]
    weights = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    ladder = MultilevelUNet(levels, plan=mls.Plan(weights > 0, weights), costs=COSTS)
    x, text = latents(channels=4), torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))

    def adapters() -> dict[str, list[torch.Tensor]]:
        source = torch.Generator().manual_seed(3)
        shapes = [(8, 4), (16, 4)]
        return {"down_intrablock_additional_residuals": [torch.randn(2, c, s, s, generator=source) for c, s in shapes]}

    low, high = (level(x, 5, text, **adapters()).sample for level in levels)
    assert torch.allclose(ladder(x, 5, text, **adapters()).sample, 2 * high - low, atol=1e-4)


def test_gradients_reach_every_evaluated_level(unet):
    levels = [unet(4).requires_grad_(True), unet(8).requires_grad_(True)]
    weights = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    ladder = MultilevelUNet(levels, plan=mls.Plan(weights > 0, weights), costs=COSTS)
    ladder(latents(), 5).sample.sum().backward()
    assert all(level.conv_in.weight.grad is not None for level in levels)


def test_a_copy_is_apart(unet):
    ladder = MultilevelUNet([unet(4), unet(8)], budget_fraction=0.5, costs=COSTS)
    other = copy.deepcopy(ladder)
    other(latents(), 5)
    assert ladder.stats.total.calls == 0
    assert other.levels[0] is not ladder.levels[0]


def test_half_precision_runs_and_keeps_its_dtype(unet):
    levels = [unet(4).bfloat16(), unet(8).bfloat16()]
    weights = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    ladder = MultilevelUNet(levels, plan=mls.Plan(weights > 0, weights), costs=COSTS)
    x = latents().bfloat16()
    low, high = (level(x, 5).sample.float() for level in levels)
    estimate = ladder(x, 5).sample
    assert estimate.dtype == torch.bfloat16
    assert torch.equal(estimate, (2 * high - low).bfloat16())


def test_costs_fall_back_to_parameters_with_a_warning(unet, monkeypatch):
    """At the first call, if neither the configuration nor the call can be run without numbers."""
    monkeypatch.setattr("multilevel_diffusion.diffusers.costs._EXAMPLES", {})
    monkeypatch.setattr("multilevel_diffusion.diffusers.costs._flops", lambda *_: None)
    levels = [unet(4), unet(8)]
    ladder = MultilevelUNet(levels, budget_fraction=0.5)
    with pytest.warns(UserWarning, match="priced by their numbers of parameters"):
        ladder(torch.zeros(1, 3, 8, 8), 5)
    assert ladder.costs.unit == "parameters"
    assert list(ladder.costs.costs) == [level.num_parameters() for level in levels]


def test_given_costs_are_used(unet):
    ladder = MultilevelUNet([unet(4), unet(8)], budget_fraction=0.5, costs=[1.0, 4.0])
    assert ladder.probabilities.tolist() == pytest.approx([1.0, 0.25])


@pytest.mark.parametrize("name", ["dit", "sd3", "flux"])
def test_flops_are_those_of_a_real_call(transformer_pipeline, name: str):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from multilevel_diffusion.diffusers.costs import count_costs, example_call

    levels, _, _ = transformer_pipeline(name)
    counted = []
    for level in levels:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            level(**example_call(level))
        counted.append(counter.get_total_flops())
    assert list(count_costs(levels)[0].costs) == counted


def test_nothing_of_the_base_classes_is_overridden_by_accident():
    from diffusers import ConfigMixin, ModelMixin

    own = set(vars(MultilevelUNet)) - set(vars(object)) - {"__module__", "__doc__", "__annotations__", "__getattr__"}
    inherited = set(dir(ModelMixin)) | set(dir(ConfigMixin))
    meant = {"config_name", "forward", "dtype", "compile", "save_pretrained", "from_pretrained", "_internal_dict"}
    meant |= {"from_config"}  # refused
    assert own & inherited <= meant
