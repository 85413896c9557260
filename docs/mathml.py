"""Formulas of the docs as MathML, made when the docs are built: no script, no network, drawn by the browser itself."""

from __future__ import annotations

import html
from typing import Any

import math_core
from docutils import nodes
from sphinx.util import logging

_LOGGER = logging.getLogger(__name__)
_CONVERTER = math_core.LatexToMathML(fancy_error=False)


def _formula(node: nodes.Element, *, block: bool) -> str:
    latex = node.astext()
    try:
        return _CONVERTER.convert_with_local_state(latex, displaystyle=block)
    except math_core.LatexError as error:
        _LOGGER.warning("the formula %s is not understood: %s", latex, error, location=node)
        return f"<code>{html.escape(latex)}</code>"


def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(_formula(node, block=False))
    raise nodes.SkipNode


def _block(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="formula">{_formula(node, block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Make this the renderer of formulas."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
