"""Docstrings in the docs: plain text with formulas; public names under their public path, and links to it."""

from __future__ import annotations

import importlib
import pydoc
import re
from typing import Any

_DOORS = (
    "multilevel_sde",
    "multilevel_sde.testing",
    "multilevel_diffusion",
    "multilevel_diffusion.diffusers",
    "multilevel_diffusion.quality",
    "multilevel_diffusion.cheap_levels",
    "multilevel_diffusion.sparse",
    "multilevel_forces",
)
_MATH = re.compile(r"(:math:`[^`]*`)")


def _public() -> dict[int, str]:
    """The public path of every public object, by identity."""
    found = {}
    for door in _DOORS:
        module = importlib.import_module(door)
        for name in module.__all__:
            found.setdefault(id(getattr(module, name)), f"{door}.{name}")
    return found


_PUBLIC = _public()


def _plain_text(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Escape what reStructuredText would take for markup, outside of doctests and formulas."""
    doctest, formula = False, None
    for index, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        doctest = line.lstrip().startswith(">>>") or (doctest and bool(line.strip()))
        if line.lstrip().startswith(".. math::"):
            formula = indent
        elif formula is not None and line.strip() and indent <= formula:
            formula = None
        if not doctest and formula is None:
            parts = _MATH.split(line)
            parts[::2] = [part.replace("|", r"\|").replace("*", r"\*") for part in parts[::2]]
            lines[index] = "".join(parts)


def _only_once(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave a public name out of its room: it stands under its public path."""
    return True if what == "module" and id(obj) in _PUBLIC else None


def _under_public_path(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Resolve a reference to a name's private path, such as `multilevel_sde.plans.plan.Plan.save`."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    for full in (target, f"{node.get('py:module')}.{target}"):
        parts = full.split(".")
        for cut in range(len(parts), 1, -1):
            public = _PUBLIC.get(id(pydoc.locate(".".join(parts[:cut]))))
            if public:
                name = ".".join([public, *parts[cut:]])
                domain, kind = env.get_domain("py"), node["reftype"]
                return domain.resolve_xref(env, node["refdoc"], app.builder, kind, name, node, contnode)
    return None


def setup(app: Any) -> dict[str, bool]:
    """Connect the three; plain text before napoleon, whose own markup must stay."""
    app.connect("autodoc-process-docstring", _plain_text, priority=100)
    app.connect("autodoc-skip-member", _only_once)
    app.connect("missing-reference", _under_public_path)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
