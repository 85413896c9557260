"""Diffusion models as drifts for `multilevel_sde`."""
