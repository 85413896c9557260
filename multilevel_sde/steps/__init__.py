"""Steps: how one estimate of the drift, or several, move the state from one time to the next.

A one-step rule is a function y_{n+1} = step(y_n, F(n), t_n, t_{n+1}, noise), affine in the estimate F(n). A
:class:`StepRule` asks for its estimates itself, several in a step or at other states, and names one row of the plan for
each. A :class:`NoiseRule` is given its noise in parts as well: the increment, g at any state, and areas.

Rooms:
    rules   Step, StepRule, Euler-Maruyama, Heun, midpoint; which rows of a plan a rule uses. Add a one-step rule here.
    adams   Adams-Bashforth, from polynomial interpolation of earlier estimates. Add a multistep rule here.
    step_noise  NoiseRule and StepNoise: the protocol of rules that ask for their noise themselves.
    strong  Milstein, Euler-Heun, Stratonovich Heun and midpoint, SRA1. Add a rule for g(y, t) here.
    linear_and_tamed  exponential and tamed Euler, for drifts that limit the step.
    langevin  BAOAB, OBABO and their overdamped limit, on positions and momenta.
    sums    Sums of states: in place where nobody else may look.
"""

from multilevel_sde.steps.adams import AdamsBashforth, adams_bashforth_weights
from multilevel_sde.steps.langevin import BAOAB, OBABO, OverdampedLangevin
from multilevel_sde.steps.linear_and_tamed import ExponentialEuler, TamedEuler
from multilevel_sde.steps.rules import Heun, Midpoint, Step, StepRule, euler_maruyama, plan_rows
from multilevel_sde.steps.step_noise import NoiseRule, StepNoise
from multilevel_sde.steps.strong import SRA1, EulerHeun, Milstein, StratonovichHeun, StratonovichMidpoint

__all__ = [
    "BAOAB",
    "OBABO",
    "SRA1",
    "AdamsBashforth",
    "EulerHeun",
    "ExponentialEuler",
    "Heun",
    "Midpoint",
    "Milstein",
    "NoiseRule",
    "OverdampedLangevin",
    "Step",
    "StepNoise",
    "StepRule",
    "StratonovichHeun",
    "StratonovichMidpoint",
    "TamedEuler",
    "adams_bashforth_weights",
    "euler_maruyama",
    "plan_rows",
]
