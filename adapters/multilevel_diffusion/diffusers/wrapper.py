r"""A ladder of diffusers models in the place of one: the drop-in for `pipe.unet` or `pipe.transformer`.

At every call of its denoiser a pipeline gets the multilevel estimate

    F = sum_k (w_k - w_{k+1}) f^k(x, t),        E[F] = f^K(x, t),

of the top model's output, which costs the cheap models at every call and the expensive ones at a few. The schedulers of
diffusers are affine in this output, so their own steps are multilevel Euler-Maruyama, DDIM, DPM-Solver and so on.

One draw is shared by the batch, hence by both halves of classifier-free guidance (independent halves multiply the
error by the guidance scale squared). The draw depends on `seed` and the position in the trajectory alone: every run
uses the same draw, so the same call gives the same image, whatever ran before and however a batch is split.

References:
    Jacot, "Polynomial Speedup in Diffusion Models with the Multilevel Euler-Maruyama Method", 2026, sections 2 and 3.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, Unpack

import torch
from diffusers.configuration_utils import ConfigMixin, FrozenDict
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

import multilevel_sde as mls
from multilevel_diffusion.diffusers.checks import check_levels, slot_of, uncompiled
from multilevel_diffusion.diffusers.controls import Controls
from multilevel_diffusion.diffusers.options import Options
from multilevel_diffusion.diffusers.store import Source, load_ladder, load_models, save_ladder

__all__ = ["MultilevelUNet", "multilevel"]

_ON_EVERY_LEVEL = (
    "set_default_attn_processor",
    "set_attention_slice",
    "fuse_qkv_projections",
    "unfuse_qkv_projections",
    "enable_freeu",
    "disable_freeu",
)


class MultilevelUNet(Controls, ModelMixin, ConfigMixin):
    r"""Several diffusers models as one, evaluated by a random plan whose mean is the top model.

    Its `config` is the top model's, and so is every public attribute that it does not have itself. What is saved with
    the pipeline is written by `save_pretrained` and read by `from_pretrained` below.

    Arguments:
        levels: diffusers models of one family, cheapest first. They are used as they are, not copied.
        budget_fraction: Expected cost of a call relative to the top model's, in (0, 1]; 1 is the top model itself.
        probabilities: Instead: p_k, shape (K,), or p_k(n) for each of N calls, shape (N, K); the lowest level 1.
        plan: Instead: the hits and weights of each of N calls.
        schedule: Shape of the probabilities that are scaled to the budget, by default `InverseCostSchedule()`.
        draw: A random plan, by `multilevel_sde.systematic` (evenly spread hits), `independent` (the paper's) or
            `nested`; its mean is the top model. By default, and without a schedule or probabilities, a budget is spent
            on the top model at evenly spread calls whose corrections are held (:func:`.loops.held.held_plan`), which is
            biased and was measured to err a quarter to a tenth as much.
        seed: Seed of the draw.
        costs: Cost of one call of each level; by default FLOPs, counted from the configurations.

    Raises:
        TypeError: A level is not a diffusers model or of another family; the schedule does not scale to a budget.
        ValueError: The levels do not fit together, not exactly one of budget_fraction, probabilities and plan is
            given, or it does not fit the ladder.

    Example:
        >>> import torch
        >>> from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
        >>> def unet(width):
        ...     return UNet2DModel(sample_size=8, block_out_channels=(width, width), norm_num_groups=8,
        ...                        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2).eval()
        >>> pipe = DDIMPipeline(unet(16), DDIMScheduler(clip_sample=False))
        >>> pipe.set_progress_bar_config(disable=True)
        >>> ladder = MultilevelUNet([unet(8), unet(16)], budget_fraction=0.5).install(pipe)
        >>> pipe(num_inference_steps=10, output_type="np").images.shape
        (1, 8, 8, 3)
        >>> ladder.stats.trajectory.calls
        10
    """

    config_name = "config.json"
    _announced: int | None = None

    def __init__(
        self,
        levels: Sequence[nn.Module],
        *,
        budget_fraction: float | None = None,
        probabilities: Tensor | Sequence[float] | None = None,
        plan: mls.Plan | None = None,
        schedule: mls.Schedule | None = None,
        draw: mls.Draw | None = None,
        seed: int = 0,
        costs: Sequence[float] | mls.GivenCost | None = None,
    ):
        super().__init__()
        models = [uncompiled(level) for level in levels]
        check_levels(models)
        self.levels = nn.ModuleList(levels)
        self._internal_dict = FrozenDict(models[-1].config)
        self._begin_with(levels, costs, draw, seed)
        self.allocate(budget_fraction=budget_fraction, probabilities=probabilities, plan=plan, schedule=schedule)

    def install(self, pipe: Any, slot: str | None = None) -> Self:
        """Put the ladder into a pipeline, in the place of its denoiser, and follow its scheduler from now on.

        `pipe.unet = ladder` also works, but then the ladder sees neither the scheduler's settings nor its steps: it
        warns once and numbers its calls from their timesteps. The link is held weakly and not saved.

        Arguments:
            pipe: A diffusers pipeline.
            slot: "unet" or "transformer"; by default the one that the pipeline has.

        Returns:
            The ladder.

        Raises:
            ValueError: The pipeline has no such slot, or see `check`. The pipeline is then unchanged.
        """
        slot = slot_of(pipe) if slot is None else slot
        if not hasattr(pipe, slot):
            raise ValueError(f'"slot" is {slot!r}, which {type(pipe).__name__} does not have')
        self.check(pipe)
        setattr(pipe, slot, self)
        self._clock.link(pipe, slot)
        return self

    # -- one call --------------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the multilevel estimate of the top model's output; arguments and result are those of the top model.

        Raises:
            TypeError: No sample or timestep is given.
            ValueError: The input or ControlNet residuals do not fit a level; the plan is for another number of calls.
        """
        return self._respond(args, kwargs)

    def _run(self, level: int, call: dict[str, Any]) -> Any:
        return self.levels[level](**call)

    def _step(self) -> int | None:
        return self._announced

    def _reset_stateful_cache(self) -> None:
        """What diffusers calls at the end of every pipeline call."""
        self.reset()
        level: Any
        for level in self.levels:
            if hasattr(level, "_reset_stateful_cache"):
                level._reset_stateful_cache()

    # -- standing in for the top model -----------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name == "levels" or name.startswith("_"):
            return super().__getattr__(name)
        if name in _ON_EVERY_LEVEL:
            methods = [getattr(level, name) for level in self.levels]
            return lambda *args, **kwargs: [method(*args, **kwargs) for method in methods][-1]
        return getattr(self.levels[-1], name)

    def set_attn_processor(self, processor: Any) -> None:
        """Set the attention processors of every level; of a dictionary those that a level has."""
        level: Any
        for level in self.levels:
            model = uncompiled(level)
            own = model.attn_processors
            if isinstance(processor, dict):
                model.set_attn_processor({name: processor.get(name, value) for name, value in own.items()})
            else:
                model.set_attn_processor(processor)

    def _load_ip_adapter_weights(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            "an IP-adapter needs the hook in the place of the wrapper: attach(pipe, ...), which gives it to every level"
        )

    def _set_ar_attention(self, causal_block_size: int) -> None:
        """What the pipelines of SkyReels call."""
        level: Any
        for level in self.levels:
            uncompiled(level)._set_ar_attention(causal_block_size)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the levels."""
        return uncompiled(self.levels[-1]).dtype

    @contextlib.contextmanager
    def cache_context(self, name: str, **kwargs: Any) -> Iterator[None]:
        """Announce a call to every level that caches (the pipelines of transformers use this)."""
        self._announced = kwargs.get("step_index")
        with contextlib.ExitStack() as stack:
            stack.callback(setattr, self, "_announced", None)
            level: Any
            for level in self.levels:
                if hasattr(level, "cache_context"):
                    stack.enter_context(level.cache_context(name, **kwargs))
            yield

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile every level in place, with the arguments of `torch.compile`; the choice between them stays eager."""
        for level in self.levels:
            level.compile(*args, **kwargs)

    # -- files -----------------------------------------------------------------------------------------------------

    @classmethod
    def from_config(cls, *args: Any, **kwargs: Any) -> Any:
        """Refused: what pipelines call for device_map=."""
        raise NotImplementedError(
            "a saved ladder cannot be spread by device_map=; load the pipeline without it, or load that of the top "
            "level with it and attach(pipe, [...])"
        )

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
    ) -> None:
        """Write every level to its own model folder level_1, level_2, ... and the rest to config.json, at the end.

        The link to a pipeline is not saved. Arguments are those of diffusers.

        Raises:
            ValueError: `safe_serialization` is False; a level's class is not one of diffusers; the draw has no name.
        """
        if not safe_serialization:
            raise ValueError('"safe_serialization" must be True, got False; ladders are saved as safetensors only')
        models = [uncompiled(level) for level in self.levels]
        save_ladder(save_directory, models, self._settings, variant=variant, max_shard_size=max_shard_size)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str] | nn.Module],
        *,
        budget_fraction: float | None = None,
        probabilities: Tensor | Sequence[float] | None = None,
        plan: mls.Plan | None = None,
        schedule: mls.Schedule | None = None,
        draw: mls.Draw | None = None,
        seed: int | None = None,
        costs: Sequence[float] | mls.GivenCost | None = None,
        **options: Any,
    ) -> Self:
        """Load a saved ladder, or build one from model folders, hub ids or models, cheapest first.

        Arguments:
            pretrained_model_name_or_path: A folder written by `save_pretrained`, or a list.
            budget_fraction, probabilities, plan, schedule, draw, seed, costs: As for the class; for a saved ladder
                what is left out is what was saved.
            options: Passed on to diffusers for each model, for example torch_dtype, subfolder or variant.

        Raises:
            FileNotFoundError, ValueError, TypeError: A folder is missing, damaged or incomplete, or see the class.
        """
        source = pretrained_model_name_or_path
        saved = asked = None
        if isinstance(source, str | os.PathLike):
            models, saved = load_ladder(Path(source) / (options.pop("subfolder", None) or ""), **options)
            if budget_fraction is None and probabilities is None and plan is None:
                probabilities, plan, budget_fraction = saved.probabilities, saved.plan, saved.held
                probabilities = None if budget_fraction is not None else probabilities
                asked = saved.budget
            costs = saved.costs if costs is None else costs
        else:
            models = load_models(source, **options)
        ladder = cls(
            models,
            budget_fraction=budget_fraction,
            probabilities=probabilities,
            plan=plan,
            schedule=schedule,
            draw=draw or (saved.draw if saved else None),
            seed=seed if seed is not None else (saved.seed if saved else 0),
            costs=costs,
        )
        if saved is not None and saved.pilot is not None:
            found = {name: getattr(saved, name) for name in ("pilot", "aimed", "places", "given")}
            fitted = saved.fitted if asked else None
            ladder._settings = replace(
                ladder._settings, budget=asked or ladder._settings.budget, fitted=fitted, **found
            )
            if budget_fraction is not None:
                ladder.allocate(budget_fraction=budget_fraction, schedule=schedule)
        return ladder


def multilevel(
    pipe: Any,
    lower: Source | Iterable[Source],
    *,
    slot: str | None = None,
    **options: Unpack[Options],
) -> MultilevelUNet:
    """Put cheaper models under a pipeline's own denoiser, which stays the top level, and check its scheduler.

    Arguments:
        pipe: A diffusers pipeline, changed in place.
        lower: The cheaper models or their folders, cheapest first; folders are loaded like the pipeline's own model
            (dtype, device).
        slot: "unet" or "transformer"; by default the one that the pipeline has.
        options: budget_fraction, probabilities, plan, schedule, draw, seed, costs as for :class:`MultilevelUNet`.

    Returns:
        The ladder, now in the pipeline.

    Raises:
        TypeError, ValueError: See :class:`MultilevelUNet`; the pipeline is then unchanged.

    Example:
        >>> from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
        >>> def unet(width):
        ...     return UNet2DModel(sample_size=8, block_out_channels=(width, width), norm_num_groups=8,
        ...                        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2).eval()
        >>> pipe = DDPMPipeline(unet(16), DDPMScheduler(clip_sample=False))
        >>> ladder = multilevel(pipe, [unet(8)], budget_fraction=0.5)
        >>> pipe.unet is ladder, ladder.costs.unit
        (True, 'FLOPs')
    """
    slot = slot_of(pipe) if slot is None else slot
    top = getattr(pipe, slot)
    if isinstance(top, MultilevelUNet):
        raise ValueError(f"the pipeline's {slot} is a ladder already; use its allocate() to change it")
    models = [model.to(top.device) for model in load_models(lower, torch_dtype=top.dtype)]
    return MultilevelUNet([*models, top], **options).install(pipe, slot)
