"""What a user changes on a pipeline's model reaches every level that it fits, is refused otherwise, and ends a plan."""

from __future__ import annotations

import copy
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

diffusers = pytest.importorskip("diffusers")

from multilevel_diffusion.diffusers import MultilevelUNet, attach, multilevel  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:levels . and . differ"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

COSTS = (1.0, 10.0)


def alike(conditional: Any) -> list[Any]:
    """Two levels of one shape."""
    return [conditional(8, weights=1), conditional(8)]


def attached(stable_diffusion: Any, levels: list[Any], **options: Any) -> tuple[Any, Any]:
    pipe = stable_diffusion(levels[-1], diffusers.EulerDiscreteScheduler())
    return pipe, attach(pipe, levels[:-1], costs=COSTS[: len(levels)], **{"budget_fraction": 0.5, **options})


# -- LoRA ------------------------------------------------------------------------------------------------------------


def lora(source: Any, layers: str | list[str] = ["to_q", "to_v"]) -> dict[str, Tensor]:  # noqa: B006
    peft = pytest.importorskip("peft")
    source = copy.deepcopy(source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        source.add_adapter(peft.LoraConfig(r=4, target_modules=layers, init_lora_weights=False))
    return {f"unet.{name}": value for name, value in peft.get_peft_model_state_dict(source).items()}


@pytest.mark.parametrize("way", [attach, multilevel])
def test_a_lora_reaches_every_level_with_its_scale_and_leaves_them(conditional, stable_diffusion, guided, way):
    """As if each level had loaded it itself; its scale, disabling and unloading follow."""
    low, top = alike(conditional)
    pipe = stable_diffusion(top, diffusers.EulerDiscreteScheduler())
    state, x, text = lora(top), torch.ones(1, 4, 8, 8), torch.ones(1, 5, 16)
    plain, other = low(x, 5, text).sample, copy.deepcopy(low)
    other.load_lora_adapter(dict(state), prefix="unet", adapter_name="style")
    way(pipe, [low], budget_fraction=0.5, costs=COSTS)
    guided(pipe)
    pipe.load_lora_weights(dict(state), adapter_name="style")
    guided(pipe)
    assert torch.equal(low(x, 5, text).sample, other(x, 5, text).sample)
    pipe.set_adapters(["style"], [0.25])
    other.set_adapters(["style"], [0.25])
    guided(pipe)
    assert torch.equal(low(x, 5, text).sample, other(x, 5, text).sample)
    pipe.disable_lora()
    guided(pipe)
    assert torch.equal(low(x, 5, text).sample, plain)
    pipe.unload_lora_weights()
    guided(pipe)
    assert not any("lora" in name for name, _ in low.named_parameters())


def test_a_lora_that_does_not_fit_is_refused_until_the_level_has_one(conditional, stable_diffusion, guided):
    low, top = conditional(4), conditional(8)
    state = lora(top)
    pipe, _ = attached(stable_diffusion, [low, top])
    pipe.load_lora_weights(state, adapter_name="style")
    with pytest.raises(ValueError, match=re.escape('the LoRA "style" of the top level does not fit "levels[0]"')):
        guided(pipe)
    low.load_lora_adapter(lora(low), prefix="unet", adapter_name="style")
    guided(pipe)


def test_a_level_with_fewer_blocks_gets_the_layers_it_has(conditional, stable_diffusion, guided):
    """As BK-SDM has: no middle block."""
    low, top = conditional(8, mid_block_type=None), conditional(8)
    state = lora(top)
    pipe, _ = attached(stable_diffusion, [low, top])
    pipe.load_lora_weights(state, adapter_name="style")
    guided(pipe)
    given = [name for name, _ in low.named_parameters() if "lora" in name]
    assert given == [name for name, _ in top.named_parameters() if "lora" in name and "mid_block" not in name]
    assert given


# -- IP-adapters, processors, FreeU ------------------------------------------------------------------------------------


def ip_adapter(folder: Path) -> dict[str, Any]:
    from safetensors.torch import save_file

    source = torch.Generator().manual_seed(0)
    weights = {
        "image_proj.proj.weight": torch.randn(64, 16, generator=source),
        "image_proj.proj.bias": torch.zeros(64),
        "image_proj.norm.weight": torch.ones(16),
        "image_proj.norm.bias": torch.zeros(16),
    }
    for layer in (1, 3, 5, 7):
        for kind in "kv":
            weights[f"ip_adapter.{layer}.to_{kind}_ip.weight"] = torch.randn(16, 16, generator=source)
    save_file(weights, folder / "ip.safetensors")
    return {"subfolder": "", "weight_name": "ip.safetensors", "image_encoder_folder": None}


@pytest.mark.parametrize("before", [False, True])
def test_an_ip_adapter_reaches_every_level_and_leaves_them(conditional, stable_diffusion, guided, tmp_path, before):
    """The level under the top is its twin, and says the same with the adapter and after it."""
    low, top = conditional(8), conditional(8)
    call = {"sample": torch.ones(1, 4, 8, 8), "timestep": 5, "encoder_hidden_states": torch.ones(1, 5, 16)}
    plain = low(**call).sample
    pipe, ladder = attached(stable_diffusion, [low, top])
    where = ip_adapter(tmp_path)
    if before:
        ladder.detach()
    pipe.load_ip_adapter(str(tmp_path), **where)
    if before:
        ladder = attach(pipe, [low], budget_fraction=0.5, costs=COSTS)
    pipe.set_ip_adapter_scale(0.7)
    guided(pipe, ip_adapter_image_embeds=[torch.ones(2, 1, 16)])
    ladder.detach()
    call["added_cond_kwargs"] = {"image_embeds": [torch.ones(1, 1, 1, 16)]}
    assert torch.equal(low(**call).sample, top(**call).sample)
    assert not torch.allclose(low(**call).sample, plain, atol=1e-3)
    attach(pipe, [low], budget_fraction=0.5, costs=COSTS)
    pipe.unload_ip_adapter()
    guided(pipe)
    assert torch.allclose(low(**{**call, "added_cond_kwargs": None}).sample, plain, atol=1e-6)


def test_an_ip_adapter_that_does_not_fit_is_refused(conditional, stable_diffusion, guided, tmp_path):
    pipe, _ = attached(stable_diffusion, [conditional(4), conditional(8)])
    where = ip_adapter(tmp_path)
    pipe.load_ip_adapter(str(tmp_path), **where)
    with pytest.raises(ValueError, match='the IP-adapter of the top level does not fit "levels\\[0\\]"'):
        guided(pipe, ip_adapter_image_embeds=[torch.ones(2, 1, 16)])
    ladder = MultilevelUNet(alike(conditional), budget_fraction=0.5, costs=COSTS)
    wrapped = stable_diffusion(ladder, diffusers.EulerDiscreteScheduler())
    with pytest.raises(NotImplementedError, match="an IP-adapter needs the hook"):
        wrapped.load_ip_adapter(str(tmp_path), **where)


@pytest.mark.parametrize("way", [attach, multilevel])
def test_perturbed_attention_is_set_on_every_level_and_taken_back(conditional, stable_diffusion, guided, way):
    low, top = conditional(4), conditional(8)
    plain = stable_diffusion(top, diffusers.EulerDiscreteScheduler())
    pipe = diffusers.StableDiffusionPAGPipeline(
        **{name: getattr(plain, name) for name in plain.components},
        requires_safety_checker=False,
        pag_applied_layers=["mid"],
    )
    pipe.set_progress_bar_config(disable=True)
    own, during = dict(low.attn_processors), []
    low.conv_out.register_forward_hook(lambda *_: during.append(dict(low.attn_processors)))
    way(pipe, [low], budget_fraction=0.5, costs=COSTS)
    guided(pipe, pag_scale=3.0)
    changed = {name for name in own if type(during[0][name]) is not type(own[name])}
    assert changed == {name for name in own if name.startswith("mid_block") and "attn1" in name}
    guided(pipe, pag_scale=0.0)
    assert {name: type(value) for name, value in during[-1].items()} == {n: type(v) for n, v in own.items()}


def test_processors_and_freeu_of_the_model_reach_the_levels(conditional, stable_diffusion, guided):
    from diffusers.models.attention_processor import AttnProcessor

    low, top = conditional(4), conditional(8)
    pipe, _ = attached(stable_diffusion, [low, top])
    top.set_attn_processor(AttnProcessor())
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    guided(pipe)
    assert {type(processor) for processor in low.attn_processors.values()} == {AttnProcessor}
    assert low.up_blocks[0].b1 == 1.2
    pipe.disable_freeu()
    guided(pipe)
    assert low.up_blocks[0].b1 is None
    wrapper = MultilevelUNet([low, top], budget_fraction=0.5, costs=COSTS)
    wrapper.set_attn_processor({name: AttnProcessor() for name in wrapper.attn_processors})


# -- stale plans -----------------------------------------------------------------------------------------------------


def test_a_calibrated_plan_is_stale_after_a_change_of_weights(unet, ddim):
    """One warning, and advise says so; another dtype is no change; a new calibration ends it."""
    pipe = ddim(unet(8))
    ladder = attach(pipe, [unet(4)], budget_fraction=0.5, costs=COSTS)
    given = {"num_inference_steps": 8, "batch_size": 2, "output_type": "np"}
    ladder.calibrate(pipe, num_inference_steps=8, samples=2, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.to(torch.float64)
        pipe(**given)
        pipe.to(torch.float32)
    assert "calibrate again" not in ladder.advise().text
    pipe.unet.conv_out.weight.data.mul_(1.01)
    with pytest.warns(UserWarning, match="weights have changed since the calibration"):
        pipe(**given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe(**given)
    assert ladder.advise().text.endswith("calibrate again.")
    ladder.calibrate(pipe, num_inference_steps=8, samples=2, progress=False)
    assert "calibrate again" not in ladder.advise().text


# -- copies ----------------------------------------------------------------------------------------------------------


def test_a_hooked_pipeline_is_not_copied(unet, ddim):
    pipe = ddim(unet(8))
    with attach(pipe, [unet(4)], budget_fraction=0.5, costs=COSTS):
        for copied in (copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="can be neither copied nor pickled; detach the ladder first"):
                copied(pipe)
    copy.deepcopy(pipe)


def test_the_wrapper_of_a_copied_pipeline_follows_the_copy(unet, ddim):
    """Run with other steps at other times than the first, and pickled."""
    pipe = ddim(unet(8))
    ladder = multilevel(pipe, [unet(4)], budget_fraction=0.5, costs=COSTS)
    other = copy.deepcopy(pipe)
    assert other.unet._clock.pipe is other
    assert pipe.unet._clock.pipe is pipe
    given = {"generator": torch.Generator().manual_seed(0), "num_inference_steps": 6, "output_type": "np"}
    assert torch.equal(
        torch.as_tensor(other(**given).images),
        torch.as_tensor(pipe(**{**given, "generator": torch.Generator().manual_seed(0)}).images),
    )
    again = pickle.loads(pickle.dumps(ladder))
    assert again._clock.pipe is None
    assert [type(level).__name__ for level in again.levels] == ["UNet2DModel"] * 2
