"""Plans: which level is evaluated at which step, and with which weight, all decided before the solve.

A plan holds weights w_k(n), and the estimate of f^K at step n is

    F(n) = sum_k w_k(n) (f^k - f^{k-1}) + sum_{m<n} r_k(n, m) f^k(m),        f^0 := 0,

where an evaluated correction f^k - f^{k-1} is called a hit, and r_k are the coefficients on values of earlier steps.

Rooms:
    plan        Plan: weights, evaluations, cost; what makes one valid.
    draws       which corrections are drawn together: independent, nested, systematic. Add a draw here.
    drawing     from probabilities and a draw to a plan; expected cost.
    schedules   probabilities from a formula. Add a schedule here.
    budgets     relative probabilities scaled to a budget.
    recall      Recall: the coefficients r_k on stored values.
    memory      plans that remember: multistep bases, held corrections, control variates.
    poisson     the limit of small steps: corrections at random times.
    plan_file   the file of a plan, its version and its checksum.
"""

from multilevel_sde.plans.budgets import scale_to_budget
from multilevel_sde.plans.drawing import draw_plan, em_plan, expected_cost
from multilevel_sde.plans.draws import Draw, independent, nested, systematic
from multilevel_sde.plans.memory import hold, multistep, remember
from multilevel_sde.plans.plan import Plan
from multilevel_sde.plans.poisson import PoissonPlan, even_arrivals, jump_rates, poisson_arrivals, poisson_plan
from multilevel_sde.plans.recall import Recall
from multilevel_sde.plans.schedules import (
    FixedSchedule,
    InverseCostSchedule,
    Schedule,
    SwitchSchedule,
    TheoremSchedule,
)

__all__ = [
    "Draw",
    "FixedSchedule",
    "InverseCostSchedule",
    "Plan",
    "PoissonPlan",
    "Recall",
    "Schedule",
    "SwitchSchedule",
    "TheoremSchedule",
    "draw_plan",
    "em_plan",
    "even_arrivals",
    "expected_cost",
    "hold",
    "independent",
    "jump_rates",
    "multistep",
    "nested",
    "poisson_arrivals",
    "poisson_plan",
    "remember",
    "scale_to_budget",
    "systematic",
]
