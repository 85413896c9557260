"""Loops of others: a ladder that answers a sampler which calls one network.

Rooms:
    edm          MultilevelDenoiser, for the samplers of k-diffusion and EDM.
    trajectory   which call of which trajectory is this?
    rows         the coefficients at each call, and the sum that they weigh.
    black_box    a pilot for samplers that cannot be looked into.
"""

from multilevel_diffusion.loops.edm import MultilevelDenoiser

__all__ = ["MultilevelDenoiser"]
