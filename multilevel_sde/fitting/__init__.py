"""Fitting: the coefficients of a plan, improved along its own path to the end of the top level's path.

Rooms:
    gauss_newton      fit_plan(): the iterations, judged on samples that are kept out.
    one_level         plans of one level alone, to fit.
    perturbed_runs    the runs of a fit: a perturbed copy of the path for each coefficient.
"""

from multilevel_sde.fitting.gauss_newton import FittedPlan, fit_plan
from multilevel_sde.fitting.one_level import single_plans

__all__ = ["FittedPlan", "fit_plan", "single_plans"]
