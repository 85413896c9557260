"""What a user or a pipeline changes on the top model reaches the levels below it.

Pipelines load a LoRA or an IP-adapter into `pipe.unet`, set its attention processors (PAG), its FreeU factors, its
causal blocks. A level that did not get the same would predict something else. So what has changed since the last
trajectory is given to every level that it fits, by name and shape; what does not fit is refused. Weights are shared,
not copied, where their modules fit as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Fingerprint", "Follower"]

_PROJECTIONS = ("encoder_hid_proj", "text_encoder_hid_proj", "image_proj")  # of IP-adapters
_FREEU = ("s1", "s2", "b1", "b2")


class Follower:
    """Keep levels as their top model is.

    Arguments:
        levels: Models, cheapest first, not compiled.

    Example:
        >>> from diffusers import UNet2DConditionModel
        >>> low, top = (UNet2DConditionModel(block_out_channels=(32,), down_block_types=("CrossAttnDownBlock2D",),
        ...                                  up_block_types=("CrossAttnUpBlock2D",)) for _ in range(2))
        >>> follower = Follower([low, top])
        >>> top.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
        >>> follower.follow()
        >>> low.up_blocks[0].b2
        1.4
    """

    def __init__(self, levels: Sequence[Any]):
        *self._lower, self._top = levels
        self._own = [_processors(level) for level in levels]  # as they came
        tops = self._own[-1]
        self._adapted = [  # with IP-adapters of their own
            any(_weighted(value) and value is not tops.get(name) for name, value in own.items()) for own in self._own
        ]
        self._seen = {name: value for name, value in tops.items() if not _weighted(value)}
        self._projections = {} if len(self._seen) < len(tops) else _projections(self._top)
        self._given: set[str] = set()  # adapters that the lower levels have from the top

    def follow(self) -> None:
        """Give the lower levels what the top model got since the last time.

        Raises:
            ValueError: An IP-adapter or a LoRA does not fit a level.
        """
        if not self._lower:
            return
        now = _processors(self._top)
        changed = {name: new for name, new in now.items() if self._seen.get(name) is not new}
        projections = _projections(self._top)
        for number, level in enumerate(self._lower):
            if changed:
                self._set_processors(number, level, changed)
            if projections != self._projections and not self._adapted[number]:
                for name, value in projections.items():
                    setattr(level, name, value)
                level.config.encoder_hid_dim_type = self._top.config.encoder_hid_dim_type
            if hasattr(level, "_set_ar_attention"):
                level._set_ar_attention(self._top.config.num_frame_per_block)
            for block, other in zip(getattr(self._top, "up_blocks", ()), getattr(level, "up_blocks", ()), strict=False):
                for key in _FREEU:
                    if getattr(block, key, None) != getattr(other, key, None):
                        setattr(other, key, getattr(block, key))
        self._seen, self._projections = now, projections
        self._follow_adapters()

    def _set_processors(self, number: int, level: Any, changed: dict[str, Any]) -> None:
        own, before = self._own[number], _processors(level)
        chosen = {}
        for name in before.keys() & changed.keys():
            new = changed[name]
            if _weighted(new) and self._adapted[number]:
                continue
            mine, tops = (model.get_submodule(name.removesuffix(".processor")) for model in (level, self._top))
            if _weighted(new) and _shape(mine) != _shape(tops):
                raise ValueError(
                    f'the IP-adapter of the top level does not fit "levels[{number}]", whose {name} has other widths; '
                    "unload it, or load one into that level before attaching"
                )
            came = new is self._own[-1].get(name) and not _weighted(new)
            chosen[name] = own[name] if came else new
        if chosen:
            level.set_attn_processor({**before, **chosen})

    def _follow_adapters(self) -> None:
        adapters = getattr(self._top, "peft_config", {})
        for number, level in enumerate(self._lower):
            for name in adapters.keys() - getattr(level, "peft_config", {}).keys():
                self._give(number, level, name)
                self._given.add(name)
            gone = self._given & getattr(level, "peft_config", {}).keys() - adapters.keys()
            if gone and len(gone) == len(level.peft_config):
                level.unload_lora()
            elif gone:
                level.delete_adapters(list(gone))
            for path, layer in _lora_layers(level) if adapters else ():
                tops = self._top.get_submodule(path)
                layer.scaling.update({name: tops.scaling[name] for name in self._given & layer.scaling.keys()})
                layer.set_adapter([name for name in tops.active_adapters if name in layer.scaling])
                layer.enable_adapters(not tops.disable_adapters)
        self._given &= adapters.keys()

    def _give(self, number: int, level: Any, name: str) -> None:
        """Load an adapter of the top level into a lower one."""
        from peft import get_peft_model_state_dict  # type: ignore[import-not-found]

        layers, weights = dict(level.named_modules()), {}
        for key, value in get_peft_model_state_dict(self._top, adapter_name=name).items():
            path = key.partition(".lora_")[0]
            if path not in layers:
                continue  # a smaller level has fewer blocks
            if _shape(layers[path]) != _shape(self._top.get_submodule(path)):
                weights = {}
                break
            weights[key] = value
        if not weights:
            raise ValueError(
                f'the LoRA "{name}" of the top level does not fit "levels[{number}]"; unload it, or load one that was '
                f'trained for that level: ladder.levels[{number}].load_lora_adapter(..., adapter_name="{name}")'
            )
        level.load_lora_adapter(weights, adapter_name=name, prefix=None)


def _processors(model: Any) -> dict[str, Any]:
    return dict(getattr(model, "attn_processors", {}))


def _weighted(processor: Any) -> bool:
    return isinstance(processor, nn.Module) and next(processor.parameters(), None) is not None


def _projections(model: Any) -> dict[str, Any]:
    return {name: getattr(model, name) for name in _PROJECTIONS if hasattr(model, name)}


def _shape(module: Any) -> tuple[int, ...] | None:
    """Widths of a layer, or of the queries of an attention."""
    layer = getattr(module, "to_q", module)
    layer = getattr(layer, "base_layer", layer)
    return tuple(layer.weight.shape) if hasattr(layer, "weight") else None


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((path, layer) for path, layer in model.named_modules() if hasattr(layer, "lora_A"))


class Fingerprint:
    """Two numbers of every weight of some models, and the scales of their adapters: whether they are still the same.

    Arguments:
        models: The models.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> before = Fingerprint([model])
        >>> before == Fingerprint([model.double()]), before == Fingerprint([torch.nn.Linear(2, 2)])
        (True, False)
    """

    def __init__(self, models: Sequence[nn.Module]):
        weights = [p.detach() for model in models for p in model.parameters() if p.device.type != "meta"]
        scales = [float(s) for model in models for _, layer in _lora_layers(model) for s in layer.scaling.values()]
        self._kinds = [weight.dtype for weight in weights]
        parts = [torch.tensor(scales)]
        for device in dict.fromkeys(weight.device for weight in weights):
            here = [weight.flatten()[:2].float() for weight in weights if weight.device == device]
            parts.append(torch.cat(here).cpu())
        self._numbers = torch.cat(parts)

    def __eq__(self, other: object) -> bool:
        """Whether the numbers are the same, up to rounding where models were converted."""
        if not isinstance(other, Fingerprint) or len(self._numbers) != len(other._numbers):
            return False
        converted = self._kinds != other._kinds
        return _close(self._numbers, other._numbers, 2.0**-7 if converted else 0.0)

    __hash__ = None  # type: ignore[assignment]


def _close(first: Tensor, second: Tensor, tolerance: float) -> bool:
    return bool(((first - second).abs() <= tolerance * first.abs()).all())
