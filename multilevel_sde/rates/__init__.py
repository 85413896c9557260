"""Rates: toy problems with known answers, and the exponents of cost against error, measured and predicted.

Rooms:
    problems        ladders whose level errors, costs and solutions are known.
    noise_problems  one problem for each kind of noise, for the orders of rules.
    problem_parts   what they are made of.
    study           measure_rates(): EM and ML-EM on such a ladder, with table and plot.
    runs            its runs.
    first_order     what the theory predicts for them.
"""

from multilevel_sde.rates.first_order import Constants, Point, exponent
from multilevel_sde.rates.runs import measure
from multilevel_sde.rates.study import RatesResult, measure_rates

__all__ = ["Constants", "Point", "RatesResult", "exponent", "measure", "measure_rates"]
