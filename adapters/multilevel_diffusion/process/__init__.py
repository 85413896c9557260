"""From noise to data: noise schedules, time grids, sampling steps and their noise.

A schedule holds x_t = alpha_t x_0 + sigma_t eps. Steps are exact in everything but the estimate of x_0, so that a
ladder of denoisers is a ladder of drifts.

Rooms:
    schedules, schedule_base, tables   alpha_t and sigma_t. Add a noise schedule to schedules.
    grids             where a sampler evaluates: uniform, log-SNR, Karras.
    steps             DDIM, DDPM and what lies between.
    multistep         weights of DPM-Solver++ and of SA-Solver's predictor.
    sa_solver         SA-Solver with predictor and corrector.
    forward_value     the forward-value sampler.
    noise             the noise of a sampler, coupled across step counts.
    reverse_process   Process: schedule, tau and finest grid together.
"""

from multilevel_diffusion.process.forward_value import ForwardValue
from multilevel_diffusion.process.grids import karras, log_snr_uniform, uniform
from multilevel_diffusion.process.multistep import corrected_weights, multistep_weights
from multilevel_diffusion.process.noise import ClockedNoise, coupled_noise
from multilevel_diffusion.process.reverse_process import MODES, Process
from multilevel_diffusion.process.sa_solver import SASolver
from multilevel_diffusion.process.schedules import (
    CosineSchedule,
    EDMSchedule,
    LinearSchedule,
    NoiseSchedule,
    RectifiedFlowSchedule,
    ScaledLinearSchedule,
    TableSchedule,
    schedule_from_dict,
)
from multilevel_diffusion.process.steps import DDIM, DDPM, ExponentialStep, NoiseExponentialStep, StepCoefficients

__all__ = [
    "DDIM",
    "DDPM",
    "MODES",
    "ClockedNoise",
    "CosineSchedule",
    "EDMSchedule",
    "ExponentialStep",
    "ForwardValue",
    "LinearSchedule",
    "NoiseExponentialStep",
    "NoiseSchedule",
    "Process",
    "RectifiedFlowSchedule",
    "SASolver",
    "ScaledLinearSchedule",
    "StepCoefficients",
    "TableSchedule",
    "corrected_weights",
    "coupled_noise",
    "karras",
    "log_snr_uniform",
    "multistep_weights",
    "schedule_from_dict",
    "uniform",
]
