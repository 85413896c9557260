"""Diffusion models as drifts for `multilevel_sde`: schedules, time grids, denoisers, sampling steps and their noise.

schedule = CosineSchedule()
levels = [EpsilonDenoiser(net, schedule, clip=(-1, 1)) for net in networks]   # (x_t, t) -> x_0-hat
ladder = multilevel_sde.Ladder(levels, costs)
times = uniform(schedule, 1000)
solution = multilevel_sde.solve(ladder, x, times, plan, step=DDIM(schedule))

The public names stand in `__init__.pyi`, by the wing that they live in; a wing is imported when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
