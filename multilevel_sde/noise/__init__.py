"""Noise: increments of a Brownian path as a callable of an interval, brownian(t, s) -> W(s) - W(t).

The same seeds give the same path at every step size, whatever the order of the questions and the split of the batch.

Rooms:
    brownian         BrownianPath (one seed a sample), what a path must offer, torchsde's paths.
    levy             Levy's construction on a tree, refined only where it is looked at.
    trees            where intervals are split: ticks, or the points of a grid in any clock.
    counter          normal numbers as a function of (seed, node, element).
    diffusion        kinds of g: number, g(t), g(y, t), operators. Add a kind of noise here.
    space_time       space-time Levy areas of a path, for steps of order 1.5.
    start            starting states from seeds.
    bridges          running maxima and exit times between saved states.
    torchsde_bridge  SDE objects of torchsde as a ladder.
"""

from multilevel_sde.noise.bridges import exit_times, running_maximum
from multilevel_sde.noise.brownian import Brownian, BrownianPath, TorchSDEBrownian
from multilevel_sde.noise.diffusion import Diffusion, NoiseTerm
from multilevel_sde.noise.start import seeded_normal
from multilevel_sde.noise.torchsde_bridge import from_torchsde

__all__ = [
    "Brownian",
    "BrownianPath",
    "Diffusion",
    "NoiseTerm",
    "TorchSDEBrownian",
    "exit_times",
    "from_torchsde",
    "running_maximum",
    "seeded_normal",
]
