"""Running targets: what is tried, what is allowed, what came of it."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

import multilevel_sde as mls

ALLOWED = (ValueError, TypeError, FileNotFoundError, mls.NonFiniteError)
_NAMED = re.compile(r'"[^"\n]+"|the (drift|state)|[\w/.-]+\.(json|safetensors)|\w+\.?\w+ (must|evaluated)')
_EXECUTION = ("exec", "compile", "pickle.find_class", "os.system", "os.exec", "subprocess.Popen", "socket.connect")
_watching = False


@dataclass(frozen=True)
class Target:
    """One thing to attack.

    Attributes:
        name: For the table.
        inputs: Strategy of what to try.
        attack: Tries one; returns a word for what came of it, or raises. "accepted" means that it was a good input.
        share: Its part of all examples.
    """

    name: str
    inputs: st.SearchStrategy
    attack: Callable[[Any], str]
    share: float


def judge(target: Target, value: Any) -> str:
    """Return what came of one input; raise AssertionError where a law does not hold."""
    try:
        return target.attack(value)
    except ALLOWED as error:
        text = str(error)
        if "\n" in text or len(text) > 800 or not _NAMED.search(text):
            raise AssertionError(
                f"{target.name}: {type(error).__name__} is no sentence that names its argument: {text}"
            ) from error
        return type(error).__name__


def run(target: Target, examples: int, seed: int | None = None) -> Counter[str]:
    """Try so many inputs; return what came of them. Without a seed the inputs are the same in every run."""
    outcomes: Counter[str] = Counter()

    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=seed is None,
        suppress_health_check=list(HealthCheck),
    )
    @given(value=target.inputs)
    def law(value: Any) -> None:
        outcomes[judge(target, value)] += 1

    (law if seed is None else seeded(seed)(law))()
    return outcomes


def _hook(event: str, arguments: tuple) -> None:
    if _watching and event in _EXECUTION:
        raise AssertionError(f"reading a file led to {event} {arguments!r:.200}")


sys.addaudithook(_hook)


@contextmanager
def nothing_executed() -> Iterator[None]:
    """Fail where code is compiled, executed, unpickled or started inside."""
    global _watching
    _watching = True
    try:
        yield
    finally:
        _watching = False
