"""Loops of others: a ladder that answers a sampler which calls one network.

Rooms:
    edm             MultilevelDenoiser, for the samplers of k-diffusion and EDM.
    trajectory      which call of which trajectory is this?
    rows            the coefficients at each call, and the sum that they weigh.
    memory          plans that remember: stored values as estimates of the data.
    euler_base      is a sampler Euler's method? Then a multistep base may take its place.
    held            the plan of a ladder that has not been measured.
    black_box       a pilot for samplers that cannot be looked into.
    recording       what answers the calls of its runs.
    black_box_fit   a fit of a plan's coefficients inside them.
    carried         a pilot of one number of calls for another.
"""

from multilevel_diffusion.loops.edm import MultilevelDenoiser

__all__ = ["MultilevelDenoiser"]
