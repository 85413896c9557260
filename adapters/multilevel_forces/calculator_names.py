"""Calculators by the names that the command line takes."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import Any

from multilevel_sde.files import briefly

__all__ = ["NAMES", "calculator_named"]


def _sevenn(checkpoint: str) -> Callable[..., Any]:
    def make(device: str = "cpu", **options: Any) -> Any:
        from sevenn.calculator import SevenNetCalculator  # pyright: ignore[reportMissingImports]

        return SevenNetCalculator(checkpoint, device=device, **options)

    return make


def _chgnet(device: str = "cpu", **options: Any) -> Any:
    from chgnet.model.dynamics import CHGNetCalculator  # pyright: ignore[reportMissingImports]

    return CHGNetCalculator(use_device=device, verbose=False, **options)


def _of_ase(module: str, name: str) -> Callable[..., Any]:
    return lambda **options: getattr(importlib.import_module(f"ase.calculators.{module}"), name)(**options)


NAMES: dict[str, Callable[..., Any]] = {
    "emt": _of_ase("emt", "EMT"),
    "morse": _of_ase("morse", "MorsePotential"),
    "lj": _of_ase("lj", "LennardJones"),
    "chgnet": _chgnet,
    "7net-0": _sevenn("7net-0"),
    "7net-mf-0": _sevenn("7net-mf-0"),
    "7net-l3i5": _sevenn("7net-l3i5"),
}


def calculator_named(text: str) -> Any:
    """Return a calculator: a name with or without numbers in brackets, or a function of one's own, `module:function`.

    Arguments:
        text: Such as "emt", "morse(epsilon=0.35,r0=2.6,rho0=4.3)" in ASE's units, "7net-l3i5", or "my.potentials:make",
            a function without arguments that returns a calculator or a function of positions.

    Raises:
        ValueError: No such name, numbers that cannot be read or that it does not take, a function that is not there or
            that fails, a package that is not installed (sevenn, chgnet).

    Example:
        >>> type(calculator_named("lj(epsilon=0.01,sigma=2.3)")).__name__
        'LennardJones'
        >>> calculator_named("ljj")
        Traceback (most recent call last):
        ...
        ValueError: "--calculators" has 'ljj', expected one of emt, morse, lj, chgnet, 7net-0, 7net-mf-0, 7net-l3i5, ...
    """
    named = re.fullmatch(r"([\w.:-]+?)(?:\((.*)\))?", text.strip())
    name, options = (named[1], _options(text, named[2])) if named else (text, {})
    if name in NAMES:
        make = NAMES[name]
    elif ":" in name:
        module, _, function = name.partition(":")
        try:
            make = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise ValueError(f'"--calculators" has {text!r}, which cannot be imported: {error}') from None
    else:
        raise ValueError(
            f'"--calculators" has {name!r}, expected one of {", ".join(NAMES)}, or module:function of your own'
        )
    try:
        made = make(**options)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise ValueError(f'"--calculators" has {text!r}, which needs the package {package}; pip install it') from None
    except Exception as error:  # a checkpoint's own, or a user's
        said = briefly(error)
        raise ValueError(f'"--calculators" has {text!r}, which cannot be made: {said}') from None
    known = getattr(made, "default_parameters", None) or {}
    if words := [one for one, value in options.items() if isinstance(value, str) and isinstance(known.get(one), float)]:
        raise ValueError(f'"--calculators" has {text!r}, where {words[0]} must be a number')
    if unknown := [option for option in options if known and option not in known]:  # ASE takes any without a word
        raise ValueError(f'"--calculators" has {text!r}, which takes {", ".join(known)}, not {unknown[0]}')
    return made


def _options(text: str, inside: str | None) -> dict[str, Any]:
    """The numbers and words in brackets."""
    found: dict[str, Any] = {}
    for part in (inside or "").split(","):
        if not part.strip():
            continue
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f'"--calculators" has {text!r}, expected NAME(key=value,...), such as lj(sigma=2.3)')
        try:
            found[key.strip()] = float(value)
        except ValueError:
            found[key.strip()] = value.strip()
    return found
