"""Steps: how one estimate of the drift, or several, move the state from one time to the next.

A one-step rule is a function y_{n+1} = step(y_n, F(n), t_n, t_{n+1}, noise), affine in the estimate F(n). A
:class:`StepRule` asks for its estimates itself, several in a step or at other states, and names one row of the plan for
each.

Rooms:
    rules   Step, StepRule, Euler-Maruyama, Heun, midpoint; which rows of a plan a rule uses. Add a one-step rule here.
    adams   Adams-Bashforth, from polynomial interpolation of earlier estimates. Add a multistep rule here.
    sums    Sums of states: in place where nobody else may look.
"""

from multilevel_sde.steps.adams import AdamsBashforth, adams_bashforth_weights
from multilevel_sde.steps.rules import Heun, Midpoint, Step, StepRule, euler_maruyama, plan_rows

__all__ = [
    "AdamsBashforth",
    "Heun",
    "Midpoint",
    "Step",
    "StepRule",
    "adams_bashforth_weights",
    "euler_maruyama",
    "plan_rows",
]
