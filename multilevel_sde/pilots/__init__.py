"""Pilots: a short trial run that measures a ladder, predicts the error of any plan, and makes the best one.

The trial run follows the top level's path and carries every correction D_k(n) = f^k - f^{k-1}, added once at step n, to
the end: the response R_k(n). To first order a plan with weights w errs by (w - 1)' G (w - 1), where G is the Gram
matrix of the responses, and what the first order leaves out is calibrated by runs.

Rooms, in the order of use:
    run_pilot           pilot(): the trial run from its arguments to a Pilot.
    trial               the problem on the pilot's samples: states, noise, conditions, runs.
    measure_responses   the walk along the path, and the responses of all corrections.
    measure_errors      single levels on any number of steps, and plans on samples kept out.
    local_errors        EqualErrors: a grid from the errors of the top level's steps.
    grids, peak         grids of any number of steps; what a call needs of memory.
    responses           the Gram matrix of the responses, for any choice of levels and steps.
    error_model         the measurements as a class, and the error that they predict.
    allocation          where to spend a budget: greedy choice of corrections, best weights for them.
    tracking            the best use of stored corrections between two evaluations.
    curves              error against cost for one choice of levels and steps.
    level_choice        one level at each step, biased on purpose.
    phases              random plans around a given one, unbiased over a phase.
    pilot_class         class Pilot: plans, schedules and advice.
    answers             Prediction, PilotPlan, Advice, Rates.
    pilot_file          a pilot on disk.
    report              the report as one HTML page.
"""

from multilevel_sde.pilots.answers import Advice, PilotPlan, Prediction, Rates
from multilevel_sde.pilots.local_errors import EqualErrors
from multilevel_sde.pilots.phases import PhasePlans, phase_plans
from multilevel_sde.pilots.pilot_class import Pilot
from multilevel_sde.pilots.run_pilot import pilot

__all__ = ["Advice", "EqualErrors", "PhasePlans", "Pilot", "PilotPlan", "Prediction", "Rates", "phase_plans", "pilot"]
