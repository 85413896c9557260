"""A ladder as a hook on a pipeline's own model, which stays where it is: `attach(pipe, [smaller, ...])`.

The pipeline keeps the class of its model, hence its config, attention processors, adapters, LoRA loading, parallel
plans and compile lists. The hook answers every call of the model by a plan: the smaller models run as often as the plan
says, and the model itself, by its own forward, at a few calls. With no smaller model the plan is that of one network:
its multistep method, fitted if asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self, Unpack

from diffusers.hooks.hooks import BaseState, HookRegistry, ModelHook, StateManager
from torch import nn

from multilevel_diffusion.diffusers.checks import check_levels, slot_of, uncompiled
from multilevel_diffusion.diffusers.controls import Controls
from multilevel_diffusion.diffusers.options import Options, check_options
from multilevel_diffusion.diffusers.store import Source, load_models

__all__ = ["Attached", "attach"]

_NAME = "multilevel_sde"


class _Nothing(BaseState):
    """The hook keeps its state itself; what it wants of diffusers is the context of a call."""

    def reset(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""


class Attached(Controls, ModelHook):
    """A ladder that is attached to a pipeline; made by :func:`attach`.

    Attributes:
        levels: The models, cheapest first; the last is the pipeline's own.
    """

    _is_stateful = True  # so that diffusers resets it at the end of a pipeline's call

    def __init__(self, pipe: Any, slot: str, lower: Sequence[nn.Module], options: Options):
        super().__init__()
        self._top = getattr(pipe, slot)
        models = [uncompiled(level) for level in (*lower, self._top)]
        check_levels(models, pipe)
        self.levels = [*lower, self._top]
        self._begin_with(self.levels, options.get("costs"), options.get("draw"), options.get("seed", 0))
        chosen = {name: options.get(name) for name in ("budget_fraction", "probabilities", "plan", "schedule")}
        if all(chosen[name] is None for name in ("budget_fraction", "probabilities", "plan")):
            chosen["budget_fraction"] = 0.3 if lower else 1.0
        self.allocate(**chosen)  # type: ignore[arg-type]
        self._contexts = StateManager(_Nothing)  # type: ignore[arg-type]
        self.check(pipe)
        HookRegistry.check_if_exists_or_initialize(self._top).register_hook(self, _NAME)
        self._clock.link(pipe, slot)

    @property
    def config(self) -> Any:  # type: ignore[override]
        """That of the pipeline's own model."""
        return uncompiled(self._top).config

    def detach(self) -> None:
        """Give the pipeline back its model as it was. Detaching twice does nothing."""
        registry = getattr(self._top, "_diffusers_hook", None)
        if registry is not None and registry.get_hook(_NAME) is self:
            registry.remove_hook(_NAME, recurse=False)
        self._clock.link(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    def __repr__(self) -> str:
        models = " < ".join(type(uncompiled(level)).__name__ for level in self.levels)
        state = "not calibrated" if self._settings.pilot is None else f"calibrated, {self.plan}"
        return f"Attached({models}; a call costs {list(self.costs.costs)} {self.costs.unit}; {state})"

    def __reduce__(self) -> Any:
        raise TypeError(
            "a pipeline with a ladder attached can be neither copied nor pickled; detach the ladder first, and attach "
            "one to the copy"
        )

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """What diffusers calls in the place of the model's forward."""
        return self._respond(args, kwargs)

    def reset_state(self, module: nn.Module) -> nn.Module:
        """What diffusers calls at the end of a pipeline's call."""
        self.reset()
        for level in self.levels[:-1]:
            if hasattr(level, "_reset_stateful_cache"):
                level._reset_stateful_cache()  # type: ignore[operator]
        return module

    def _begin(self) -> None:
        level: Any
        for level in self.levels[:-1]:
            model, top = uncompiled(level), uncompiled(self._top)
            if (model.device, model.dtype) != (top.device, top.dtype):
                level.to(top.device, top.dtype)  # the pipeline was moved
        super()._begin()

    def _step(self) -> int | None:
        return None if self._contexts._context is None else self._contexts._context.step_index

    def _run(self, level: int, call: dict[str, Any]) -> Any:
        if level == len(self.levels) - 1:
            return self.fn_ref.original_forward(**call)  # type: ignore[misc]
        model, context = self.levels[level], self._contexts._context
        if context is None or not hasattr(model, "cache_context"):
            return model(**call)
        with model.cache_context(**vars(context)):  # type: ignore[operator]
            return model(**call)


def attach(
    pipe: Any,
    lower: Source | Iterable[Source] = (),
    *,
    slot: str | None = None,
    **options: Unpack[Options],
) -> Attached:
    """Let cheaper models answer most calls of a pipeline's denoiser, which stays the top level and where it is.

    Arguments:
        pipe: A diffusers pipeline.
        lower: The cheaper models or their folders, cheapest first, or a single one; folders are loaded like the
            pipeline's own model (dtype, device). With none, the pipeline's model alone is given a multistep method by
            `calibrate`.
        slot: The denoiser's name, such as "transformer_2"; by default the first that the pipeline has.
        options: budget_fraction (by default 0.3, of one model 1), probabilities, plan, schedule, draw, seed, costs
            as for :class:`.MultilevelUNet`.

    Returns:
        The ladder: `calibrate`, `advise`, `allocate`, `stats`, `detach`. It is also a context that detaches at its end.

    Raises:
        TypeError, ValueError: The levels do not fit together, or the scheduler would bias the result; the pipeline is
            then unchanged.

    Example:
        >>> from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
        >>> def unet(width):
        ...     return UNet2DModel(sample_size=8, block_out_channels=(width, width), norm_num_groups=8,
        ...                        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2).eval()
        >>> pipe = DDPMPipeline(unet(16), DDPMScheduler(clip_sample=False))
        >>> pipe.set_progress_bar_config(disable=True)
        >>> with attach(pipe, [unet(8)], budget_fraction=0.5) as ladder:
        ...     images = pipe(num_inference_steps=10, output_type="np").images
        >>> ladder.stats.trajectory.calls, type(pipe.unet).__name__
        (10, 'UNet2DModel')
    """
    check_options(options)
    slot = slot_of(pipe) if slot is None else slot
    if getattr(pipe, slot, None) is None:
        raise ValueError(f'"slot" is {slot!r}, which {type(pipe).__name__} does not have')
    top = getattr(pipe, slot)
    registry = getattr(top, "_diffusers_hook", None)
    if registry is not None and registry.get_hook(_NAME) is not None:
        raise ValueError(f"the pipeline's {slot} has a ladder attached already; use its allocate(), or detach it first")
    models = [model.to(top.device) for model in load_models(lower, torch_dtype=top.dtype)]
    return Attached(pipe, slot, models, options)
