"""Which cheap levels one network offers, and what each is worth: cost and difference, before a pilot is spent on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import multilevel_sde as mls
from multilevel_diffusion.cheap_levels.cached_features import cached_ladder
from multilevel_diffusion.cheap_levels.low_resolution import LowResolution
from multilevel_diffusion.cheap_levels.reduced_precision import half_weights, int8_weights
from multilevel_diffusion.cheap_levels.skipped_blocks import skip_blocks
from multilevel_diffusion.process.schedule_base import NoiseSchedule
from multilevel_sde.cost import CostModel, Drift

__all__ = ["CheapLevel", "level_menu", "survey"]


@dataclass(frozen=True)
class CheapLevel:
    """What the lowest level of a ladder is worth beside the top one.

    Attributes:
        name: Its name.
        cost: Its cost over that of the top level.
        unit: The unit in which the costs were measured.
        difference: Mean |f^1 - f^K|^2 over mean |f^K|^2 along the path.
        by_step: The same at every state.
    """

    name: str
    cost: float
    unit: str
    difference: float
    by_step: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.cost:.3g} of the {self.unit}, V = {self.difference:.2g} |f|^2"


def level_menu(
    denoise: Drift,
    schedule: NoiseSchedule,
    x: Tensor,
    t: float = 0.5,
    *,
    skip: Sequence[str] = (),
    keep: Sequence[str] = (),
    every: Sequence[int] = (4, 8),
    factors: Sequence[int] = (2,),
    detail_variance: Mapping[int, float] | None = None,
    costs: Callable[[Tensor, float], CostModel] = mls.FlopCost,
) -> dict[str, mls.Ladder]:
    """Return the two-level ladders that one network offers, by name, leaving out those that are not cheaper.

    Half and 8-bit weights need the same operations and are offered in other units only. What a ladder is worth is for
    `survey` and `multilevel_sde.pilot` to say.

    Arguments:
        denoise: A module called as net(x, t), or a denoiser around one, that estimates x_0.
        schedule: The noise schedule.
        x: An example state, with which the levels are priced (one sample, to price one sample).
        t: Its time.
        skip: Blocks to leave out (see `choose_blocks`).
        keep: Modules whose outputs can be kept (see `cached_ladder`, `deep_modules`).
        every: Renew kept features at every so many steps.
        factors: Factors of lower resolution.
        detail_variance: For each factor, the variance of the detail that it misses (see `detail_variance`).
        costs: Cost model of (x, t): `mls.FlopCost` or `mls.SecondsCost`.

    Raises:
        TypeError: There is no module in the denoiser.
        ValueError: A name is unknown or does not fit (see the functions named above).

    Example:
        >>> from multilevel_diffusion.cheap_levels import deep_modules
        >>> from multilevel_diffusion.networks.store import load_ladder, shipped_ladder
        >>> images = load_ladder(shipped_ladder("deadleaves32"))
        >>> menu = level_menu(images.denoisers[-1], images.schedule, torch.zeros(1, 3, 32, 32), skip=["bottom.0"],
        ...                     keep=deep_modules(images.networks[-1]), every=[4])
        >>> {name: round(ladder.costs[0] / ladder.costs[1], 2) for name, ladder in menu.items()}
        {'resolution / 2': 0.25, '1 blocks skipped': 0.91, 'features kept, every 4': 0.42}
    """
    model = costs(x, t)
    levels: dict[str, Drift] = {
        f"resolution / {factor}": LowResolution(denoise, schedule, factor, (detail_variance or {}).get(factor, 0.0))
        for factor in factors
    }
    if skip:
        levels[f"{len(skip)} blocks skipped"] = skip_blocks(denoise, skip, x, t)
    if model.unit != mls.FlopCost.unit:
        levels |= {"bfloat16": half_weights(denoise), "float16": half_weights(denoise, torch.float16)}
        levels["int8"] = int8_weights(denoise)
    prices = model([*levels.values(), denoise])
    ladders: dict[str, mls.Ladder] = {
        name: mls.Ladder([level, denoise], mls.GivenCost([price, prices[-1]], model.unit))
        for (name, level), price in zip(levels.items(), prices, strict=False)
        if price < prices[-1]
    }
    for steps in every if keep else ():
        ladders[f"features kept, every {steps}"] = cached_ladder(denoise, keep, x, t, every=steps, costs=costs)
    return ladders


def survey(ladders: Mapping[str, mls.Ladder], states: Tensor, times: Tensor) -> list[CheapLevel]:
    """Measure how far the lowest level of each ladder is from its top level along a path, the closest first.

    Arguments:
        ladders: Ladders by name, such as `level_menu` returns.
        states: States along a few trajectories of the top level, in order: (S, B, ...), for example
            `solve(..., save=True).ys[:-1]`. Levels with memory age from one to the next.
        times: Their times, (S,).

    Raises:
        ValueError: The states do not fit the times.

    Example:
        >>> ladder = mls.Ladder([lambda x, t: 0.9 * x, lambda x, t: x], costs=[1.0, 4.0])
        >>> print(*survey({"nine tenths": ladder}, torch.ones(3, 2, 1), torch.tensor([1.0, 0.6, 0.3])))
        nine tenths: 0.25 of the units, V = 0.01 |f|^2
    """
    if len(states) != len(times) or not len(times):
        raise ValueError(
            f'"states" has {len(states)} times, "times" has {len(times)}; give states (S, B, ...) and (S,)'
        )
    found = []
    for name, ladder in ladders.items():
        drifts = ladder.drifts
        wrong, size = [], []
        with torch.no_grad():
            for x, t in zip(states, times, strict=True):
                cheap, full = drifts[0](x, t).double(), drifts[-1](x, t).double()
                wrong.append(float((cheap - full).square().mean()))
                size.append(float(full.square().mean()))
        by_step = tuple(w / s if s > 0 else 0.0 for w, s in zip(wrong, size, strict=True))
        price = ladder.costs[0] / ladder.costs[-1]
        found.append(CheapLevel(name, price, ladder.unit, sum(wrong) / sum(size), by_step))
    return sorted(found, key=lambda level: level.difference)
