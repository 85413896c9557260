"""Ladders of denoisers for one kind of image: what sampling, pilots, fits and jobs need to know of one.

`DiffusionLadder` holds networks of this package, `OwnLadder` any denoisers of yours; both are an `ImageLadder`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import multilevel_sde as mls
from multilevel_diffusion.networks.denoisers import EpsilonDenoiser
from multilevel_diffusion.networks.fingerprints import as_bytes, fingerprint
from multilevel_diffusion.networks.guidance import Guided
from multilevel_diffusion.networks.modulated import ModulatedNetwork
from multilevel_diffusion.process.schedule_base import NoiseSchedule

__all__ = ["DiffusionLadder", "ImageLadder", "OwnLadder", "class_labels", "labels_in_turn", "pilot_name", "plan_name"]


@dataclass(frozen=True)
class DiffusionLadder:
    """Denoising networks of one kind of image, cheapest first, ready for `multilevel_sde.solve`.

    Arguments:
        networks: The networks, eps(x, t), or eps(x, t, label=...) with classes.
        schedule: The noise schedule they were trained with.
        clip: The box to which each level's x_0 is clipped, or None.
        record: What `ladder.json` says.
        folder: Where it was loaded from.
        guidance: Scale of the classifier-free guidance of all levels, None for networks as they are.

    Example:
        >>> from multilevel_diffusion.networks.store import load_ladder, shipped_ladder
        >>> digits = load_ladder(shipped_ladder("digits"))
        >>> digits.image_shape, len(digits.ladder)
        ((1, 8, 8), 5)
        >>> digits.ladder.drifts[0](torch.zeros(2, 1, 8, 8), torch.tensor(0.5)).shape
        torch.Size([2, 1, 8, 8])
    """

    networks: tuple[ModulatedNetwork, ...]
    schedule: NoiseSchedule
    clip: tuple[float, float] | None
    record: Mapping[str, Any] = field(repr=False)
    folder: Path | None = None
    guidance: float | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one image."""
        return self.networks[0].config.image_shape

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, empty without."""
        return tuple(self.record.get("classes") or ())

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self._weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of their weights, hence of the states."""
        return self._weight.dtype

    @property
    def _weight(self) -> Tensor:
        return next(self.networks[0].parameters())

    @cached_property
    def denoisers(self) -> tuple[EpsilonDenoiser, ...]:
        """One callable (x_t, t) -> x_0 per level, with guidance (x_t, t, label=...) -> x_0."""
        networks = self.networks
        if self.guidance is not None:
            networks = [Guided(network, self.guidance, {"label": network.config.classes}) for network in networks]
        return tuple(EpsilonDenoiser(network, self.schedule, clip=self.clip) for network in networks)

    @cached_property
    def ladder(self) -> mls.Ladder:
        """The denoisers with their FLOPs for one image."""
        return mls.Ladder(self.denoisers, mls.GivenCost(self._costs("flops"), unit="FLOPs"))

    @cached_property
    def seconds_ladder(self) -> mls.Ladder:
        """The denoisers with their recorded seconds for one image."""
        return mls.Ladder(self.denoisers, mls.GivenCost(self._costs("seconds"), unit="seconds"))

    def _costs(self, unit: str) -> list[float]:
        halves = 1 if self.guidance is None else 2
        return [halves * float(level[unit]) for level in self.record["levels"]]

    @property
    def digest(self) -> str:
        """SHA-256 of what it computes: schedule, clipping, guidance, and the networks' shapes and weights."""
        told = [self.schedule.to_dict(), self.clip, *([] if self.guidance is None else [self.guidance])]
        content = hashlib.sha256(json.dumps(told).encode())
        for network in self.networks:
            content.update(json.dumps(network.config.to_dict()).encode())
            for name, weight in network.state_dict().items():
                content.update(name.encode())
                content.update(as_bytes(weight.float() if weight.dtype == torch.float64 else weight))
        return content.hexdigest()

    def guided(self, scale: float) -> DiffusionLadder:
        """Return the ladder with classifier-free guidance on every level, each at twice its cost.

        Raises:
            ValueError: The networks know no classes, or the scale is not a finite number.
        """
        if not self.classes:
            raise ValueError('"scale" guides networks that know classes, these know none; train with --classes')
        found = replace(self, guidance=float(scale))
        assert found.denoisers  # refuses a scale that is no finite number
        return found


@dataclass(frozen=True)
class OwnLadder:
    """Denoisers of your own, for everything that takes a :class:`DiffusionLadder`: pilots, fits, samples, jobs.

    Arguments:
        ladder: Denoisers (x_t, t) -> x_0, such as `EpsilonDenoiser(network, schedule)`, cheapest first, with costs.
        schedule: The noise schedule; that of a `Process`.
        image_shape: Shape of one image, (C, H, W).
        classes: Names of the classes, where the denoisers are called with label=0, 1, ...; else empty.
        device: Where the denoisers are.
        dtype: Dtype of the states that they take.
        folder: A folder where the command line keeps the ladder's pilots and plans, or None.
        version: A text of yours that tells two ladders apart of which the digest cannot see the difference: it sees the
            weights of modules and the numbers and tensors that other objects hold, not the code of functions.

    Raises:
        TypeError: `ladder` is no `Ladder` or `schedule` no `NoiseSchedule`.
        ValueError: `image_shape` holds what is no positive integer.

    Example:
        >>> from multilevel_diffusion import CosineSchedule, DataDenoiser
        >>> schedule = CosineSchedule()
        >>> levels = [DataDenoiser(lambda x, t, a=a: a * x, schedule) for a in (0.5, 0.4)]
        >>> OwnLadder(mls.Ladder(levels, [1.0, 10.0]), schedule, (1, 8, 8)).classes
        ()
    """

    ladder: mls.Ladder
    schedule: NoiseSchedule
    image_shape: tuple[int, ...]
    classes: tuple[str, ...] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    folder: Path | None = None
    version: str = ""
    guidance: float | None = field(default=None, init=False)

    def __post_init__(self):
        if not isinstance(self.ladder, mls.Ladder):
            raise TypeError(f'"ladder" must be a multilevel_sde.Ladder of denoisers, got {type(self.ladder).__name__}')
        if not isinstance(self.schedule, NoiseSchedule):
            raise TypeError(f'"schedule" must be a NoiseSchedule, got {type(self.schedule).__name__}')
        shape = tuple(self.image_shape)
        if not shape or any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in shape):
            raise ValueError(f'"image_shape" must hold positive integers such as (3, 64, 64), got {self.image_shape}')
        for name, value in (
            ("image_shape", shape),
            ("classes", tuple(self.classes)),
            ("device", torch.device(self.device)),
            ("folder", None if self.folder is None else Path(self.folder)),
        ):
            object.__setattr__(self, name, value)

    @property
    def digest(self) -> str:
        """SHA-256 of what the ladder is made of: schedule, weights, costs that were not measured, and `version`."""
        told = [
            self.schedule.to_dict(),
            [] if self.ladder.unit == "seconds" else list(self.ladder.costs),  # those are others the next time
            self.ladder.unit,
            list(self.image_shape),
            self.version,
        ]
        content = hashlib.sha256(json.dumps(told).encode())
        content.update(fingerprint(self.ladder.drifts).encode())
        return content.hexdigest()


ImageLadder = DiffusionLadder | OwnLadder
"""What pilots, fits, samples and jobs take."""


def pilot_name(mode: str, guidance: float | None) -> str:
    """Return the name of the file of a ladder's pilot.

    Example:
        >>> pilot_name("ddim", None), pilot_name("ddpm", 2.0)
        ('pilot_ddim.safetensors', 'pilot_ddpm_guidance_2.safetensors')
    """
    return f"pilot_{mode}{_guided(guidance)}.safetensors"


def plan_name(mode: str, guidance: float | None, budget: float | str) -> str:
    """Return the name of the file of a ladder's fitted plan.

    Example:
        >>> plan_name("ddim", None, 8.0), plan_name("ddpm", 2.0, 12.5)
        ('plan_ddim_8.safetensors', 'plan_ddpm_guidance_2_12.5.safetensors')
    """
    return f"plan_{mode}{_guided(guidance)}_{budget if isinstance(budget, str) else f'{budget:g}'}.safetensors"


def _guided(guidance: float | None) -> str:
    return "" if guidance is None else f"_guidance_{guidance:g}"


def labels_in_turn(images: ImageLadder, samples: int) -> dict[str, Tensor]:
    """Return conditions with every class in turn, empty for a ladder without classes.

    Example:
        >>> from multilevel_diffusion import CosineSchedule
        >>> ladder = mls.Ladder([lambda x, t, label: 0 * x], [1.0])
        >>> labels_in_turn(OwnLadder(ladder, CosineSchedule(), (1, 8, 8), ("cat", "dog")), 3)
        {'label': tensor([0, 1, 0])}
    """
    if not images.classes:
        return {}
    return {"label": torch.arange(samples, device=images.device) % len(images.classes)}


def class_labels(images: ImageLadder, names: Sequence[str]) -> Tensor:
    """Return the numbers of classes that a person names, by their names or numbers.

    Raises:
        ValueError: The ladder has no classes, or not these.

    Example:
        >>> from multilevel_diffusion import CosineSchedule
        >>> ladder = mls.Ladder([lambda x, t, label: 0 * x], [1.0])
        >>> class_labels(OwnLadder(ladder, CosineSchedule(), (1, 8, 8), ("cat", "dog")), ["dog", "0"])
        tensor([1, 0])
    """
    if not images.classes:
        raise ValueError('"--label" needs a ladder that knows classes, this one knows none; train it with --classes')
    found = []
    for name in names:
        if name in images.classes:
            found.append(images.classes.index(name))
        elif name.isdecimal() and int(name) < len(images.classes):
            found.append(int(name))
        else:
            known = ", ".join(images.classes[:12]) + (", ..." if len(images.classes) > 12 else "")
            raise ValueError(
                f'"--label" is {name!r}, expected a class ({known}) or its number 0 to {len(images.classes) - 1}'
            )
    return torch.tensor(found)
