"""Testing of your own drifts, steps and draws: hypothesis strategies, and checks of the laws that the solver relies on.

Strategies make the nouns of the library: :func:`ladders`, :func:`grids`, :func:`probabilities`, :func:`plans`,
:func:`states`. Checks take yours: :func:`check_ladder`, :func:`check_rates`, :func:`check_unbiased`,
:func:`check_order`. A check returns what it measured, and raises AssertionError with one sentence (what was measured,
what was expected) where a law does not hold; wrong arguments raise ValueError or TypeError as everywhere.

The module needs hypothesis (`pip install multilevel-sde[testing]`) and is not imported by `multilevel_sde`.
"""

from multilevel_sde.testing.checks import LadderCheck, Unbiasedness, check_ladder, check_rates, check_unbiased
from multilevel_sde.testing.orders import Order, check_order
from multilevel_sde.testing.strategies import grids, ladders, plans, probabilities, states

__all__ = [
    "LadderCheck",
    "Order",
    "Unbiasedness",
    "check_ladder",
    "check_order",
    "check_rates",
    "check_unbiased",
    "grids",
    "ladders",
    "plans",
    "probabilities",
    "states",
]
