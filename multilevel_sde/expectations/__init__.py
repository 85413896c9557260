"""Expectations: E[phi] by multilevel Monte Carlo over the ladder and over the step size at once.

Rooms:
    estimate    expectation(): a trial, the terms that pay, samples until the tolerance or the budget is met.
    grids       the times of every grid, from coarse to fine, and the price of a path on each.
    terms       differences of neighbouring paths that add up to the finest one; which of them are cheapest.
    paths       values of phi on coupled paths, one seed a sample, on one process or several.
    moments     streaming sums whose result does not depend on batches.
    decay       what the steps still leave: c h^alpha, fitted.
    trial       what is measured first, on few paths of every grid and level.
    sampling    how many samples each term gets, until it is enough.
    result      the Expectation: interval, table, plot, advice.
"""

from multilevel_sde.expectations.estimate import expectation
from multilevel_sde.expectations.result import Expectation

__all__ = ["Expectation", "expectation"]
