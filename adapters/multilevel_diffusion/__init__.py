"""Diffusion models as drifts for `multilevel_sde`: schedules, time grids, denoisers, sampling steps and their noise.

schedule = CosineSchedule()
levels = [EpsilonDenoiser(net, schedule, clip=(-1, 1)) for net in networks]   # (x_t, t) -> x_0-hat
ladder = multilevel_sde.Ladder(levels, costs)
times = uniform(schedule, 1000)
solution = multilevel_sde.solve(ladder, x, times, plan, step=DDIM(schedule))
"""

from multilevel_diffusion.denoisers import (
    DataDenoiser,
    EDMDenoiser,
    EpsilonDenoiser,
    FlowDenoiser,
    TableIndex,
    VDenoiser,
)
from multilevel_diffusion.edm import MultilevelDenoiser
from multilevel_diffusion.forward_value import ForwardValue
from multilevel_diffusion.grids import karras, log_snr_uniform, uniform
from multilevel_diffusion.multistep import corrected_weights, multistep_weights
from multilevel_diffusion.noise import ClockedNoise, coupled_noise
from multilevel_diffusion.sa_solver import SASolver
from multilevel_diffusion.schedules import (
    CosineSchedule,
    EDMSchedule,
    LinearSchedule,
    NoiseSchedule,
    RectifiedFlowSchedule,
    ScaledLinearSchedule,
    TableSchedule,
    schedule_from_dict,
)
from multilevel_diffusion.steps import DDIM, DDPM, ExponentialStep, NoiseExponentialStep, StepCoefficients

__all__ = [
    "DDIM",
    "DDPM",
    "ClockedNoise",
    "CosineSchedule",
    "DataDenoiser",
    "EDMDenoiser",
    "EDMSchedule",
    "EpsilonDenoiser",
    "ExponentialStep",
    "FlowDenoiser",
    "ForwardValue",
    "LinearSchedule",
    "MultilevelDenoiser",
    "NoiseExponentialStep",
    "NoiseSchedule",
    "RectifiedFlowSchedule",
    "SASolver",
    "ScaledLinearSchedule",
    "StepCoefficients",
    "TableIndex",
    "TableSchedule",
    "VDenoiser",
    "corrected_weights",
    "coupled_noise",
    "karras",
    "log_snr_uniform",
    "multistep_weights",
    "schedule_from_dict",
    "uniform",
]
