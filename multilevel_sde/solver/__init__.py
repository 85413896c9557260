"""The solver: one loop that follows a plan. Everything random was decided before, in the plan and in the noise.

Rooms:
    integrate    solve(): checks its arguments, runs the loop, counts what it took.
    loop         the loop over steps, and over step rules that ask for their estimates.
    estimators   how the values of a step become one estimate: the weighted telescoping sum.
    price        seconds of a step, for costs.
    seeds        do states and noise follow from their seeds?
    finite       where a state became NaN or infinite.
    solution     what a solve returns.
"""

from multilevel_sde.solver.estimators import Estimator, Telescoping
from multilevel_sde.solver.integrate import solve
from multilevel_sde.solver.price import StepSecondsCost
from multilevel_sde.solver.solution import Solution, Stats

__all__ = ["Estimator", "Solution", "Stats", "StepSecondsCost", "Telescoping", "solve"]
