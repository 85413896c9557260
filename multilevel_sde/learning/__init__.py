"""Learning: probabilities p_k(t) by stochastic gradient descent, and the best of several draws.

Rooms:
    descent            learn(): the descent, its progress and its files.
    descent_problem    what is learned on: paths from seeds, features, and which derivative drifts have.
    descent_state      the state of a run, its checkpoint, one step.
    gradients          the gradient of a path's error in the probabilities, at constant memory.
    learned_schedule   p_k(t) = sigmoid(alpha_k log(t + delta) + beta_k).
    best_draw          best_plan(): of several draws, the one that happens to be good.
"""

from multilevel_sde.learning.best_draw import BestPlan, best_plan
from multilevel_sde.learning.descent import learn
from multilevel_sde.learning.descent_state import DivergedError
from multilevel_sde.learning.gradients import central_difference, forward_mode
from multilevel_sde.learning.learned_schedule import LearnedSchedule

__all__ = ["BestPlan", "DivergedError", "LearnedSchedule", "best_plan", "central_difference", "forward_mode", "learn"]
