"""The families of networks, by the name that a ladder's config.json gives; a UNet's gives none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from multilevel_diffusion.networks.modulated import NetworkConfig
from multilevel_diffusion.networks.patches import PatchConfig
from multilevel_diffusion.networks.unet import UNetConfig

__all__ = ["config_from_dict"]

_FAMILIES: dict[str | None, type[NetworkConfig]] = {None: UNetConfig, PatchConfig.family: PatchConfig}


def config_from_dict(values: Mapping[str, Any]) -> NetworkConfig:
    """Return the configuration that a family's `to_dict` wrote.

    Raises:
        ValueError: The family is unknown, or a key is unknown or missing.

    Example:
        >>> config_from_dict(PatchConfig(patch=4, width=16, inner=1, outer=0, image_size=8).to_dict()).width
        16
    """
    family = values.get("family")
    if family not in _FAMILIES:
        raise ValueError(f'"family" is {family!r}, expected one of {list(_FAMILIES)}; update multilevel-sde to read it')
    return _FAMILIES[family].from_dict(values)
