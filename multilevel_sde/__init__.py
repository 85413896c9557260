"""Multilevel solvers for SDEs and ODEs whose drift is expensive and has cheaper approximations.

The public names stand in `__init__.pyi`, by the wing that they live in; a wing is imported when it is first used.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
