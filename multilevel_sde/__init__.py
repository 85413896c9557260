"""Multilevel solvers for SDEs and ODEs whose drift is expensive and has cheaper approximations."""

import importlib
from types import ModuleType

from multilevel_sde.acceleration import Autocast, CudaGraph, compiled
from multilevel_sde.adams import AdamsBashforth, adams_bashforth_weights
from multilevel_sde.best import BestPlan, best_plan
from multilevel_sde.brownian import Brownian, BrownianPath, TorchSDEBrownian
from multilevel_sde.cost import CostModel, Drift, FlopCost, GivenCost, SecondsCost
from multilevel_sde.diffusion import Diffusion, NoiseTerm
from multilevel_sde.draw import Draw, independent, nested, systematic
from multilevel_sde.error_model import Advice, Pilot, PilotPlan, Prediction, Rates
from multilevel_sde.errors import NonFiniteError
from multilevel_sde.fit import FittedPlan, fit_plan
from multilevel_sde.ladder import Ladder
from multilevel_sde.learn import DivergedError, learn
from multilevel_sde.learned import LearnedSchedule
from multilevel_sde.memory import hold, multistep, remember
from multilevel_sde.offload import Offload, OffloadStats
from multilevel_sde.path_gradient import central_difference, forward_mode
from multilevel_sde.phase import PhasePlans, phase_plans
from multilevel_sde.pilot import pilot
from multilevel_sde.placement import OnDevice, place
from multilevel_sde.plan import Plan, draw_plan, em_plan, expected_cost
from multilevel_sde.poisson import PoissonPlan, even_arrivals, jump_rates, poisson_arrivals, poisson_plan
from multilevel_sde.recall import Recall
from multilevel_sde.schedule import (
    FixedSchedule,
    InverseCostSchedule,
    Schedule,
    SwitchSchedule,
    TheoremSchedule,
    scale_to_budget,
)
from multilevel_sde.solve import Estimator, Solution, Stats, Telescoping, solve
from multilevel_sde.start import seeded_normal
from multilevel_sde.steps import Heun, Midpoint, Step, StepRule, euler_maruyama, plan_rows
from multilevel_sde.torchsde_bridge import from_torchsde

__version__ = "0.1.0"

__all__ = [
    "AdamsBashforth",
    "Advice",
    "Autocast",
    "BestPlan",
    "Brownian",
    "BrownianPath",
    "CostModel",
    "CudaGraph",
    "Diffusion",
    "DivergedError",
    "Draw",
    "Drift",
    "Estimator",
    "FittedPlan",
    "FixedSchedule",
    "FlopCost",
    "GivenCost",
    "Heun",
    "InverseCostSchedule",
    "Ladder",
    "LearnedSchedule",
    "Midpoint",
    "NoiseTerm",
    "NonFiniteError",
    "Offload",
    "OffloadStats",
    "OnDevice",
    "PhasePlans",
    "Pilot",
    "PilotPlan",
    "Plan",
    "PoissonPlan",
    "Prediction",
    "Rates",
    "Recall",
    "Schedule",
    "SecondsCost",
    "Solution",
    "Stats",
    "Step",
    "StepRule",
    "SwitchSchedule",
    "Telescoping",
    "TheoremSchedule",
    "TorchSDEBrownian",
    "adams_bashforth_weights",
    "best_plan",
    "central_difference",
    "compiled",
    "draw_plan",
    "em_plan",
    "euler_maruyama",
    "even_arrivals",
    "expected_cost",
    "fit_plan",
    "forward_mode",
    "from_torchsde",
    "hold",
    "independent",
    "jump_rates",
    "learn",
    "multistep",
    "nested",
    "phase_plans",
    "pilot",
    "place",
    "plan_rows",
    "poisson_arrivals",
    "poisson_plan",
    "remember",
    "scale_to_budget",
    "seeded_normal",
    "solve",
    "systematic",
]


def __getattr__(name: str) -> ModuleType:
    """Import `problems` and `rates` when they are first used."""
    if name in ("problems", "rates"):
        return importlib.import_module(f"multilevel_sde.{name}")
    raise AttributeError(f"module 'multilevel_sde' has no attribute {name!r}")
